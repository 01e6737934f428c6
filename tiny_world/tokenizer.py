"""The tiny world's tokenizer: Qwen2's byte-level BPE with 256 bytes, a few hundred merges and 14 special tokens.

The structure is Qwen2's to the letter (normalizer, splitting pattern, byte symbols, special strings and their order),
so code that works with this tokenizer works with the released one. Any text can be encoded: what the merges do not
know falls apart into bytes. The merges are learned from the world's wording without its random strings, so each capital
letter and digit of a text to be read is one token.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tiny_world.scenes import (
    ALL_PAIRS,
    COLOURS,
    COMPARE_QUESTIONS,
    DIRECTIONS,
    RELATIONS,
    TEXT_ONLY,
    capitalise,
    plural,
    with_article,
)

# Qwen2's splitting pattern: contractions, words with one leading sign or space, single digits, punctuation, space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCAB_SIZE = 512  # at most; special tokens included
SYSTEM_MESSAGE = "You are a helpful assistant."
FIXED_WEIGHT = 40  # how often a fixed sentence counts, beside sentences that vary with 80 colour-shape pairs


def wording() -> list[str]:
    """Every question and answer of the world, with the chat template's own words; no random strings, no numbers."""
    fixed = [
        f"system\n{SYSTEM_MESSAGE}",
        "user\n",
        "assistant\n",
        "Picture 1: ",
        "Video 1: ",
        "Describe this image.",
        "How many objects are there?",
        "Read the text.",
        'The text "1".',
        ' and the text "1".',
        "What happens?",
        *COMPARE_QUESTIONS,
        *("Picture 1.", "Picture 2.", "Neither.", "Yes.", "No."),
        *(f"{capitalise(word)}." for word in (*DIRECTIONS, *COLOURS)),
    ]
    lines = fixed * FIXED_WEIGHT + [part for turn in TEXT_ONLY.items() for part in turn]
    for colour, shape in ALL_PAIRS:
        thing, shapes = f"{colour} {shape}", plural(shape)
        a_thing = with_article(thing)
        A_thing = capitalise(a_thing)
        lines += [f"{A_thing}, {a_thing}, {a_thing} and {a_thing}.", f"{A_thing}."]
        lines += [f"How many {shapes} are there?"] * 5 + [f"How many {colour} objects are there?"]
        lines += [f"What color is the {shape}?", f"What shape is the {colour} object?"]
        lines += [f"{capitalise(with_article(shape))}."]
        # Weighed so that a colour right after <|object_ref_start|>, without a space, is one token as well.
        lines += [f"Where is the {thing}?", *[thing] * 8, "(1,1),(1,1)", "What is in the box (1,1),(1,1)?"]
        lines += [f"Is the {thing} {relation} the {thing}?" for relation in RELATIONS]
        lines += [f"Which way does the {shape} move?"]
        lines += [f"{A_thing} moves {direction}." for direction in DIRECTIONS]
        lines += [f"{A_thing} {event}." for event in ("appears", "disappears", f"turns {colour}")]
    return lines


def build_tokenizer() -> Tokenizer:
    """The tokenizer, learned anew: always the same bytes. Special tokens take the last ids of the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(wording(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer_config.json, with which transformers' AutoTokenizer loads the folder."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {"content": t, **flags} for t in SPECIAL_TOKENS},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def save_tokenizer(folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
