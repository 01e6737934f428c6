"""The tiny world's tokenizer: Qwen2's byte-level BPE with 256 bytes, a few hundred merges and 14 special tokens.

The structure is Qwen2's to the letter (normalizer, splitting pattern, byte symbols, special strings and their order),
so code that works with this tokenizer works with the released one. Any text can be encoded: what the merges do not
know falls apart into bytes. The merges are learned from the world's wording without its random strings, so each capital
letter and each digit of a text in a picture is one token.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import weights_loader
from qwen2vl_io.tokenizer_files import PATTERN
from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLTokenizer
from tiny_world.chat_template import CHAT_TEMPLATE
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
VOCAB_SIZE = 512  # at most, special tokens included
SYSTEM_MESSAGE = "You are a helpful assistant."
FIXED_WEIGHT = 40  # how often a fixed sentence counts, beside the sentences for each of 80 colour-shape pairs


def wording() -> list[str]:
    """Every question and answer of the world, with the chat template's own words; no random strings, no numbers."""
    lines = fixed_sentences() * FIXED_WEIGHT
    lines += [part for turn in TEXT_ONLY.items() for part in turn]
    for colour, shape in ALL_PAIRS:
        lines += sentences_about(colour, shape)
    return lines


def fixed_sentences() -> list[str]:
    """What is said in the same words whatever is in the picture."""
    return [
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


def sentences_about(colour: str, shape: str) -> list[str]:
    """What is said about a thing of this colour and shape."""
    thing = f"{colour} {shape}"
    a_thing = with_article(thing)
    A_thing = capitalise(a_thing)
    return [
        f"{A_thing}, {a_thing}, {a_thing} and {a_thing}.",
        f"{A_thing}.",
        *[f"How many {plural(shape)} are there?"] * 5,
        f"How many {colour} objects are there?",
        f"What color is the {shape}?",
        f"What shape is the {colour} object?",
        f"{capitalise(with_article(shape))}.",
        f"Where is the {thing}?",
        *[thing] * 8,  # so that a colour right after <|object_ref_start|>, without a space, is one token as well
        "(1,1),(1,1)",
        "What is in the box (1,1),(1,1)?",
        *(f"Is the {thing} {relation} the {thing}?" for relation in RELATIONS),
        f"Which way does the {shape} move?",
        *(f"{A_thing} moves {direction}." for direction in DIRECTIONS),
        *(f"{A_thing} {event}." for event in ("appears", "disappears", f"turns {colour}")),
    ]


def build_tokenizer() -> Tokenizer:
    """Learn the tokenizer anew, which always gives the same bytes. Special tokens take the last ids."""
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


def save_tokenizer(folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))

    tokenizer = Qwen2VLTokenizer(folder / "tokenizer.json")
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, CHAT_TEMPLATE)
    config = json.dumps(weights_loader.tokenizer_config(processor), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
