"""The official names of a tokenizer, beside ours: special tokens, the call, ids ↔ tokens, files.

The one difference is on purpose: `encode` of a plain text never makes control tokens of it, the call does.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch

from qwen2vl_io import tokenizer_files
from qwen2vl_io.files import read_json, read_text, write_files
from qwen2vl_io.messages import BatchFeature, check_text
from qwen2vl_io.official_names import INNER, OfficialNames, did_you_mean
from qwen2vl_io.official_processor import PUSH, refuse_pushing
from qwen2vl_io.options import is_number, whole_number
from qwen2vl_io.sentences import shorten, shown

logger = logging.getLogger(__name__)

SETTINGS = "tokenizer_config.json"
NAMED = {"bos_token": None, "eos_token": "<|im_end|>", "unk_token": None}  # unless tokenizer_config.json says otherwise
PAD_TOKEN = "<|endoftext|>"
TEACH = "the vocabulary is fixed: a model has no embedding for other tokens"
LEFT = "prompts are padded on the left, since new tokens follow the last place; to train with padding on the right, pad"
LEFT = f'{LEFT} the ids yourself, which forward(attention_mask=…) takes; padding_side="left"'
ABSENT = {
    "push_to_hub": PUSH,
    **dict.fromkeys("add_tokens add_special_tokens train_new_from_iterator sanitize_special_tokens".split(), TEACH),
    "save_vocabulary": "save_pretrained(folder) writes tokenizer.json",
    "save_chat_templates": "processor.save_pretrained(folder) writes the chat template",
    "parse_response": "decode the answer with batch_decode; boxes in it with parse_boxes",
    "prepare_for_model": "call the tokenizer, tokenizer(text)",
    "encode_message_with_chat_template": "apply_chat_template takes the whole conversation",
    **dict.fromkeys(("max_len_single_sentence", "max_len_sentences_pair"), "model_max_length is the context"),
    **dict.fromkeys(("backend", "model"), "backend_tokenizer is the one of the library tokenizers"),
}
NEUTRAL = {  # keywords of the official calls that change nothing here, with these values
    "add_special_tokens": (None, True, False),  # Qwen2's tokenizer adds none anyway
    "split_special_tokens": (None, False),
    "is_split_into_words": (None, False),
    "text_pair": (None,),
    "text_target": (None,),
    "stride": (None, 0),
    "pad_to_multiple_of": (None,),
    "padding_side": (None, "left"),
    "return_token_type_ids": (None, False),
    "return_overflowing_tokens": (None, False),
    "return_special_tokens_mask": (None, False),
    "return_offsets_mapping": (None, False),
    "return_length": (None, False),
    "verbose": (None, True, False),
}
DECODING = ("clean_up_tokenization_spaces", "spaces_between_special_tokens", "use_source_tokenizer")

# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tokenizer(file: str | Path) -> tokenizers.Tokenizer:
    """A tokenizer.json, whose vocabulary and merges are all that BPE needs."""
    return tokenizer_files.read(read_text(Path(file)), file)


def tokenizer_config(tokenizer, chat_template: str | None) -> dict:
    """The content of tokenizer_config.json, which tells transformers' AutoTokenizer what kind tokenizer.json is.

    What the file it came from said besides is written back.
    """
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = sorted(tokenizer.bpe.get_added_tokens_decoder().items())
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(i): {flag: getattr(token, flag) for flag in flags} for i, token in added},
        "additional_special_tokens": [token.content for _, token in added if token.special],
        "clean_up_tokenization_spaces": False,
        **{name: value for name, value in tokenizer.settings.items() if name not in OWN_SETTINGS},
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "chat_template": chat_template,
    }


OWN_SETTINGS = (  # of tokenizer_config.json, which are written anew
    *("tokenizer_class", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "backend"),
    *("is_local", "local_files_only", "clean_up_tokenization_spaces", "chat_template", "auto_map"),
)


# ── Ids as they come, options as they are called ────────────────────────────────────────────────────────────────────


def as_ids(ids) -> int | list:
    """Ids of any kind (a number, a tensor, an array, lists of these) → an int, or a list of what is in it."""
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if is_number(ids, int, 0, 2**31):
        return int(ids)
    if isinstance(ids, list | tuple | range):
        return [as_ids(one) for one in ids]
    hint = "; put the padding's id in the place of −100 first" if is_number(ids, int, -100, -100) else ""
    raise ValueError(f"{shown(ids)} cannot be decoded: ids are whole numbers from 0, in a list or a tensor{hint}.")


def as_row(ids) -> list[int]:
    """The ids of one text."""
    row = as_ids(ids)
    return [row] if isinstance(row, int) else row


def takes_any_ids(decode: Callable) -> Callable:
    """Decorator of `decode`: ids come as a number, a list, a tensor, or as rows, for which it gives a list of texts."""

    @functools.wraps(decode)
    def call(self, token_ids, skip_special_tokens: bool = False, **how):
        for name in how:
            if name not in DECODING:
                raise ValueError(f"decode has no option {shown(name)}; {did_you_mean(name, ['skip_special_tokens'])}")
        ids = as_row(token_ids)
        if any(isinstance(one, list) for one in ids):
            return [call(self, row, skip_special_tokens) for row in ids]
        return decode(self, ids, bool(skip_special_tokens))

    return call


def check_encoding(asked: dict) -> dict:
    """The options of an encoding call: those that count (padding, truncation, max_length); others are refused."""
    counted = {}
    for name, value in asked.items():
        if name in ("padding", "truncation", "max_length", "return_attention_mask"):
            counted[name] = value
        elif name not in NEUTRAL:
            known = [*NEUTRAL, "padding", "truncation", "max_length", "return_attention_mask", "return_tensors"]
            raise ValueError(f"The tokenizer has no option {shown(name)}; {did_you_mean(name, known)}")
        elif not any(value is one or (type(value) is type(one) and value == one) for one in NEUTRAL[name]):
            reason = f": {LEFT} is the only one" if name == "padding_side" else ""
            raise ValueError(f"tokenizer({name}={shown(value)}) is not supported{reason}; leave it out.")
    if counted.get("max_length") is not None:
        counted["max_length"] = whole_number(counted["max_length"], "max_length", 1, 2**31)
    for name, known in (
        ("padding", (None, False, True, "longest", "max_length", "do_not_pad")),
        ("truncation", (None, False, True, "longest_first", "only_first", "do_not_truncate")),
    ):
        if not isinstance(counted.get(name), bool | str | None) or counted.get(name) not in known:
            raise ValueError(f"{name}={shown(counted[name])} is unknown; known are {', '.join(map(str, known))}.")
    if counted.get("max_length") is None and (counted.get("padding") == "max_length"):
        raise ValueError('padding="max_length" needs max_length, a number of tokens.')
    return counted


def cut(ids: list[int], asked: dict) -> list[int]:
    """Ids, shortened at their end if that was asked for."""
    wanted = asked.get("truncation") not in (None, False, "do_not_truncate")
    return ids[: asked["max_length"]] if wanted and asked.get("max_length") is not None else ids


def check_tensors(return_tensors) -> None:
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors={shown(return_tensors)} is not supported; use 'pt', torch tensors, or None.")


# ── The class ───────────────────────────────────────────────────────────────────────────────────────────────────────


class OfficialTokenizer(OfficialNames):
    """The official names of a tokenizer whose `bpe`, `special_ids`, `split`, `encode` and `decode` are its own."""

    ABSENT = ABSENT
    is_fast = True
    model_input_names = ("input_ids", "attention_mask")
    padding_side = "left"
    truncation_side = "right"
    pad_token_type_id = 0
    clean_up_tokenization_spaces = False
    split_special_tokens = False
    add_prefix_space = False
    add_bos_token = False
    add_eos_token = False
    bos_token_id = None
    unk_token_id = None
    chat_template = None

    def settle(self, file: str | Path) -> None:
        """Take over what tokenizer_config.json, beside tokenizer.json, says of special tokens."""
        path = Path(file).with_name(SETTINGS)
        settings = read_json(path) if path.is_file() else {}
        names = {name: settings.get(name, default) for name, default in (NAMED | {"pad_token": PAD_TOKEN}).items()}
        for name, token in names.items():
            token = token.get("content") if isinstance(token, dict) else token  # older files write out all flags
            known = isinstance(token, str) and self.bpe.token_to_id(token) is not None
            if token is not None and not known and name in ("eos_token", "pad_token"):
                raise ValueError(f"{shorten(path)}: {name} = {shown(token)} is no token of tokenizer.json.")
            names[name] = token if known else None
        pad = names.pop("pad_token") or PAD_TOKEN
        vars(self).update(
            settings=settings, name_or_path=str(Path(file).parent), pad_token_id=self.bpe.token_to_id(pad)
        )
        vars(self).update(names, chat_template=None)
        vars(self).update({f"{name}_id": token and self.bpe.token_to_id(token) for name, token in names.items()})

    def files(self, chat_template: str | None) -> dict[str, dict]:
        """What a checkpoint's folder says of words."""
        return {"tokenizer.json": json.loads(self.bpe.to_str()), SETTINGS: tokenizer_config(self, chat_template)}

    def get_chat_template(self, chat_template=None, tools=None) -> str | None:
        return self.chat_template

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **asked) -> list[str]:
        """Write tokenizer.json and tokenizer_config.json into a folder."""
        refuse_pushing(push_to_hub)
        return write_files(save_directory, self.files(self.chat_template))

    # Tokens and ids

    @property
    def pad_token(self) -> str:
        return self.bpe.id_to_token(self.pad_token_id)

    @property
    def vocab_size(self) -> int:
        """The vocabulary without what was added to it, as officially; `len` counts all."""
        return self.bpe.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.bpe.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, token) -> bool:
        return isinstance(token, str) and self.bpe.token_to_id(token) is not None

    def get_vocab(self) -> dict[str, int]:
        return self.bpe.get_vocab(with_added_tokens=True)

    vocab = property(get_vocab)

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: token_id for token_id, token in self.bpe.get_added_tokens_decoder().items()}

    added_tokens_encoder = property(get_added_vocab)

    @property
    def added_tokens_decoder(self) -> dict:
        return self.bpe.get_added_tokens_decoder()

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        return self.bpe

    @property
    def all_special_tokens(self) -> list[str]:
        return list(self.special_ids)

    @property
    def all_special_ids(self) -> list[int]:
        return list(self.special_ids.values())

    @property
    def additional_special_tokens(self) -> list[str]:
        return [token for token in self.special_ids if token not in (self.eos_token, self.pad_token)]

    extra_special_tokens = additional_special_tokens

    @property
    def special_tokens_map(self) -> dict:
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        found = {name: getattr(self, name) for name in names if getattr(self, name)}
        return found | {"additional_special_tokens": self.additional_special_tokens}

    @property
    def model_max_length(self) -> int:
        limit = self.settings.get("model_max_length")
        return int(limit) if is_number(limit, float, 1, 1e40) else 32768

    def convert_tokens_to_ids(self, tokens):
        """One token or a list of them → ids; None for what is no token."""
        if isinstance(tokens, str):
            return self.bpe.token_to_id(tokens)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        """One id or a list of them → tokens, as the vocabulary writes them."""
        if is_number(ids, int, 0, 2**31):
            return self.bpe.id_to_token(int(ids))
        kept = [one for one in as_row(ids) if not skip_special_tokens or one not in self.all_special_ids]
        return [self.bpe.id_to_token(one) for one in kept]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.decode([one for one in self.convert_tokens_to_ids(tokens) if one is not None])

    def tokenize(self, text: str, **asked) -> list[str]:
        """A text → its tokens; special tokens in it count as such."""
        check_encoding(asked)
        return self.convert_ids_to_tokens(self.encode(self.split(check_text(text))))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 0

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1=None) -> list[int]:
        return list(token_ids_0) + list(token_ids_1 or [])

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False) -> list[int]:
        return [int(one in self.all_special_ids) for one in as_row(token_ids_0)]

    # Texts ↔ ids

    def as_pieces(self, pieces) -> list[str]:
        """What `encode` was given, as a list. A text is plain, whatever control tokens are typed in it."""
        is_list = isinstance(pieces, list | tuple) and all(isinstance(piece, str) for piece in pieces)
        if not isinstance(pieces, str) and not is_list:
            raise ValueError(f"encode takes a text or a list of pieces, not {shown(pieces)}.")
        if is_list:
            return pieces
        return [check_text(pieces)]

    @staticmethod
    def as_asked(ids: list[int], return_tensors: str | None = None, **asked):
        """Ids as the official options of `encode` want them."""
        ids = cut(ids, check_encoding(asked))
        check_tensors(return_tensors)
        return ids if return_tensors is None else torch.tensor([ids])

    def batch_decode(self, rows, skip_special_tokens: bool = False, **how) -> list[str]:
        """One text for each row of ids; a single row is one text, too."""
        rows = as_row(rows)
        if rows and not any(isinstance(row, list) for row in rows):
            rows = [rows]
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **how) for row in rows]

    def __call__(self, text=None, return_tensors: str | None = None, **asked) -> BatchFeature:
        """A text you trust, or a list of them → `input_ids` and `attention_mask`; special tokens count as such."""
        asked = check_encoding(asked)
        check_tensors(return_tensors)
        if not isinstance(text, str | list | tuple):
            raise ValueError(f"The tokenizer takes a text or a list of texts, not a {type(text).__name__}.")
        texts = [text] if isinstance(text, str) else list(text)
        rows = [cut(self.encode(self.split(check_text(one))), asked) for one in texts]
        return self.assemble(rows, isinstance(text, str), return_tensors, asked)

    def batch_encode_plus(self, batch_text_or_text_pairs, **asked) -> BatchFeature:
        return self(list(batch_text_or_text_pairs), **asked)

    def encode_plus(self, text, **asked) -> BatchFeature:
        return self(text, **asked)

    def pad(self, encoded_inputs, padding=True, max_length=None, return_tensors=None, **asked) -> BatchFeature:
        """Rows of ids (under "input_ids", or dicts that have them) → rows of one length, padded on the left."""
        asked = check_encoding({**asked, "padding": padding, "max_length": max_length})
        check_tensors(return_tensors)
        if isinstance(encoded_inputs, list | tuple):
            encoded_inputs = {"input_ids": [one["input_ids"] for one in encoded_inputs]}
        return self.assemble([as_row(row) for row in encoded_inputs["input_ids"]], False, return_tensors, asked)

    def assemble(self, rows: list[list[int]], single: bool, return_tensors: str | None, asked: dict) -> BatchFeature:
        """Rows of ids → the call's answer, padded on the left if that was asked for."""
        padding = asked.get("padding")
        longest = max(map(len, rows), default=0)
        if padding == "max_length":
            longest = max(longest, asked["max_length"])
        wanted = longest if padding not in (None, False, "do_not_pad") else 0
        pads = [max(0, wanted - len(row)) for row in rows]
        ids = [[self.pad_token_id] * count + row for count, row in zip(pads, rows)]
        mask = [[0] * count + [1] * len(row) for count, row in zip(pads, rows)]
        if return_tensors == "pt":
            if len({len(row) for row in ids}) > 1:
                raise ValueError("Texts of different lengths need padding=True to become one tensor.")
            answer = BatchFeature(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask))
        else:
            answer = BatchFeature(input_ids=ids, attention_mask=mask)
        if single and return_tensors is None:
            answer = BatchFeature({name: values[0] for name, values in answer.items()})
        if asked.get("return_attention_mask") is False:
            del answer["attention_mask"]
        return answer

    def __setattr__(self, name: str, value) -> None:
        if name == "padding_side":
            if value != "left":
                raise ValueError(f"padding_side={shown(value)} is not supported: {LEFT} is the only one.")
        elif name in ("pad_token", "pad_token_id", "eos_token", "eos_token_id"):
            self.set_special(name, value)
        elif name in ("bpe", "special_ids", "settings", "name_or_path", "chat_template") or INNER.match(name):
            object.__setattr__(self, name, value)
        elif name == "model_max_length":
            object.__setattr__(self, "settings", self.settings | {name: whole_number(value, name, 1, 2**31)})
        elif callable(getattr(type(self), name, None)):
            object.__setattr__(self, name, value)
        elif hasattr(type(self), name) and getattr(self, name) == value:
            return
        else:
            hint = "it follows from tokenizer.json." if hasattr(type(self), name) else did_you_mean(name, SETTABLE)
            raise ValueError(f"The tokenizer's {shown(name)} cannot be set; {hint}")

    def set_special(self, name: str, value) -> None:
        """Choose another token for padding, or for the end: by its text or by its id."""
        by_id = name.endswith("_id")
        token = self.bpe.id_to_token(value) if by_id and is_number(value, int, 0, 2**31) else value
        token_id = self.bpe.token_to_id(token) if isinstance(token, str) else None
        if token_id is None:
            raise ValueError(f"{name} = {shown(value)} is no token of this vocabulary; choose one of get_vocab().")
        vars(self)[f"{name.removesuffix('_id')}_id"] = token_id
        if name.startswith("eos"):
            vars(self)["eos_token"] = token


SETTABLE = ("pad_token", "pad_token_id", "eos_token", "eos_token_id", "model_max_length", "padding_side")
