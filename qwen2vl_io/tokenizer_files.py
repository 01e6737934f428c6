"""A tokenizer.json → a tokenizer, if it is one of Qwen2's kind and nothing else.

The library that reads these files has many components, and files from strangers can make some of them panic, abort the
process or run for hours: a regular expression such as `(a+)+$`, a replacement that doubles each text a thousand times.
Qwen2's tokenizer needs few: NFC, one splitting pattern, bytes, BPE. Exactly these are let in, everything else is
refused by its name. The library is given what was checked, written out anew, never the file: two parsers may read one
file differently.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from qwen2vl_io.options import is_number
from qwen2vl_io.sentences import shorten, shown

# Qwen2's splitting pattern: contractions, words with one leading sign or space, single digits, punctuation, space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}  # `trim_offsets` changes no id
MAX_OBJECTS = 50_000  # in the file: a released one has some 40, of which 14 are added tokens
MAX_ADDED = 10_000  # tokens beside the vocabulary
MAX_TOKEN_CHARS = 1000
MAX_TOKENS = 2**20
COMPONENTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read(text: str, file: str | Path) -> tokenizers.Tokenizer:
    """The text of a tokenizer.json → its tokenizer, without padding and truncation. Raises ValueError."""
    if text.count("{") > MAX_OBJECTS:
        raise ValueError(f"{shorten(file)} has more than {MAX_OBJECTS:,} objects; it is no tokenizer of Qwen2-VL.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shorten(file)} is not a readable tokenizer.json ({shorten(str(error))}).") from None

    problem = find_problem(content)
    if problem:
        raise ValueError(f"{shorten(file)} is no tokenizer of Qwen2's kind: {problem}; take the released file.")
    # A file may carry truncation and padding from its training; they would cut prompts without a word.
    checked = {"version": "1.0", "truncation": None, "padding": None}
    checked |= {name: content.get(name) for name in COMPONENTS}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(checked))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ValueError(f"{shorten(file)} is not a readable tokenizer.json ({shorten(str(error))}).") from None


def find_problem(content) -> str | None:
    """What is not as in Qwen2's tokenizers, in words; None if nothing is."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    return (
        component_problem("normalizer", content.get("normalizer"), ({"type": "NFC"},))
        or pre_tokenizer_problem(content.get("pre_tokenizer"))
        or component_problem("post_processor", content.get("post_processor"), ({"type": "ByteLevel"}, None))
        or component_problem("decoder", content.get("decoder"), ({"type": "ByteLevel"},))
        or model_problem(content.get("model"))
        or added_problem(content.get("added_tokens"))
    )


def component_problem(name: str, component, allowed: tuple) -> str | None:
    """A component has to be one of those allowed: in their settings, further ones being true or false."""
    for wanted in allowed:
        if wanted is None and component is None:
            return None
        if isinstance(component, dict) and wanted is not None:
            rest = {key: value for key, value in component.items() if key not in wanted}
            if component == wanted | rest and all(isinstance(value, bool) for value in rest.values()):
                return None
    if isinstance(component, dict):
        return f"its {name} is {shown(component.get('type'))} with settings that Qwen2 does not use"
    return f"its {name} is {shown(component)}"


def pre_tokenizer_problem(component) -> str | None:
    """A sequence of the splitting pattern and the bytes."""
    parts = component.get("pretokenizers") if isinstance(component, dict) else None
    if not isinstance(parts, list) or component.get("type") != "Sequence" or len(parts) != 2 or len(component) != 2:
        return "its pre_tokenizer is not Qwen2's pattern followed by bytes"
    split, to_bytes = parts
    return component_problem("pattern", split, (SPLIT,)) or component_problem("pre_tokenizer", to_bytes, (BYTES,))


def model_problem(model) -> str | None:
    """BPE over bytes, without chance and without a token for what is unknown."""
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return f"its model is {shown(model.get('type') if isinstance(model, dict) else model)}, not BPE"
    plain = {"dropout": (None,), "unk_token": (None,), "fuse_unk": (None, False), "byte_fallback": (None, False)}
    plain |= {
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "ignore_merges": (None, False, True),
    }
    for name, value in model.items():
        if name in ("type", "vocab", "merges"):
            continue
        if not any(value is one or (value == one == "") for one in plain.get(name, ())):
            return f"its model has {shown(name)} = {shown(value)}"
    return vocabulary_problem(model.get("vocab")) or merges_problem(model.get("merges"))


def vocabulary_problem(vocabulary) -> str | None:
    """Texts and their ids, no id twice."""
    if not isinstance(vocabulary, dict) or not vocabulary:
        return "its model has no vocabulary"
    ids = list(vocabulary.values())
    if not all(is_number(i, int, 0, MAX_TOKENS) for i in ids):
        return f"an id of its vocabulary is not a whole number up to {MAX_TOKENS}"
    if len(set(ids)) < len(ids):
        return "its vocabulary has an id twice"
    longest = max(vocabulary, key=len)
    return f"a token has {len(longest):,} characters" if len(longest) > MAX_TOKEN_CHARS else None


def merges_problem(merges) -> str | None:
    """Pairs of tokens, as "a b" or ["a", "b"]."""
    if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
        return f"its merges are not a list of up to {MAX_TOKENS:,}"
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            return f"{shown(merge)} is no merge of two tokens"
    return None


def added_problem(added) -> str | None:
    """Control tokens with ids of their own."""
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        return f"its added_tokens are not a list of up to {MAX_ADDED:,}"
    seen = set()
    for token in added:
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or not 0 < len(text) <= MAX_TOKEN_CHARS:
            return f"{shown(token)} is no added token"
        right = is_number(token.get("id"), int, 0, MAX_TOKENS)
        right = right and all(isinstance(token.get(flag, False), bool) for flag in FLAGS)
        if not right or token.keys() - {"id", "content", *FLAGS}:
            return f"its added token {shown(text)} has other fields than an id and true or false"
        if text in seen or token["id"] in seen:
            return f"its added token {shown(text)}, or its id, is there twice"
        seen |= {text, token["id"]}
    return None
