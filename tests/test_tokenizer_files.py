"""A tokenizer.json from anybody: one of Qwen2's kind is read, all else is refused in one sentence, by name."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from qwen2vl_io import tokenizer_files
from qwen2vl_mini import Qwen2VLTokenizer

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny"
GOOD = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
TEXTS = ["", "Describe this image.", "A red  circle,\nand 12 stars'", "안녕 <|im_end|> 🙂 ﬁ é", " \t\r\n "]


def changed(path: str, value) -> dict:
    """GOOD with something else at a path such as "model/dropout" or "pre_tokenizer/pretokenizers/0/pattern"."""
    content = copy.deepcopy(GOOD)
    *above, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    inner = content
    for key in above:
        inner = inner[key]
    inner[last] = value
    return content


def read(content) -> Tokenizer:
    return tokenizer_files.read(json.dumps(content), "tokenizer.json")


def same(a: Tokenizer, b: Tokenizer) -> bool:
    return all(a.encode(text).ids == b.encode(text).ids for text in TEXTS)


# ── What is read ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bundled_file_is_read_as_the_library_reads_it():
    plain = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ours = tokenizer_files.read((TINY / "tokenizer.json").read_text(encoding="utf-8"), "x")
    assert same(ours, plain) and json.loads(ours.to_str()) == json.loads(plain.to_str())


def test_a_file_saved_by_transformers_is_read_and_its_padding_and_truncation_are_not_kept(tmp_path):
    """It saves the settings of its last call, here one that cuts after five tokens."""
    official = AutoTokenizer.from_pretrained(TINY)
    official(["What is it?", "A"], padding=True, truncation=True, max_length=5)
    official.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"]["max_length"] == 5 and saved["padding"]

    ours = Qwen2VLTokenizer(tmp_path / "tokenizer.json")
    long = "Is the red circle left of the blue square? " * 20
    assert ours.encode(long) == Qwen2VLTokenizer(TINY / "tokenizer.json").encode(long)


@pytest.mark.parametrize(
    "path, value",
    [
        ("truncation", {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 9}),
        ("truncation", {"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 0}),
        (
            "padding",
            {"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": ""},
        ),
        ("padding", "nonsense"),
        ("version", "99"),
        ("post_processor", None),
        ("decoder/trim_offsets", False),
        ("model/ignore_merges", False),
        ("model/ignore_merges", True),  # as converted from the released ranks
        ("model/merges", [" ".join(merge) for merge in GOOD["model"]["merges"]]),
    ],
)
def test_what_changes_no_id_is_taken_and_has_no_effect(path, value):
    assert same(read(changed(path, value)), read(GOOD))


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────────────

REPLACE = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
BOMB = {"type": "Replace", "pattern": {"Regex": "."}, "content": "y" * 1000}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
SECOND = {"Sequence": {"id": "B", "type_id": 0}}
TEMPLATE = {"type": "TemplateProcessing", "single": [SECOND], "pair": [], "special_tokens": {}}
BAD = {
    "a list": ["", [1, 2]],
    "no model": ["model", None],
    "another model": ["model/type", "Unigram"],
    "WordLevel": ["model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}],
    "dropout": ["model/dropout", 0.5],
    "dropout 0": ["model/dropout", 0.0],
    "unk_token": ["model/unk_token", "<unk>"],
    "prefix": ["model/continuing_subword_prefix", "##"],
    "suffix": ["model/end_of_word_suffix", "</w>"],
    "byte_fallback": ["model/byte_fallback", True],
    "fuse_unk": ["model/fuse_unk", 1],
    "ignore_merges": ["model/ignore_merges", 1],
    "a field more": ["model/max_input_chars_per_word", 3],
    "vocabulary of lists": ["model/vocab", [["a", 0]]],
    "empty vocabulary": ["model/vocab", {}],
    "an id that is no number": ["model/vocab/!", "0"],
    "an id that is true": ["model/vocab/!", True],
    "an id that is a fraction": ["model/vocab/!", 1.0],
    "a negative id": ["model/vocab/!", -1],
    "a huge id": ["model/vocab/!", 2**32 - 1],
    "an id twice": ["model/vocab/!", GOOD["model"]["vocab"]['"']],
    "a token of 20,000 characters": ["model/vocab/" + "a" * 20000, 400_000],
    "merges of three": ["model/merges/0", ["a", "b", "c"]],
    "merges of one": ["model/merges/0", "ab"],
    "a merge that is empty": ["model/merges/0", " b"],
    "a merge of numbers": ["model/merges/0", [1, 2]],
    "a merge of unknown tokens": ["model/merges/0", ["한", "국"]],
    "a merge into an unknown token": ["model/merges/0", ["!", "#"]],
    "replace nothing": ["normalizer", REPLACE],
    "replace among others": ["normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, REPLACE]}],
    "NFKC": ["normalizer", {"type": "NFKC"}],
    "no normalizer": ["normalizer", None],
    "prepend": ["normalizer", {"type": "Prepend", "prepend": "x"}],
    "precompiled": ["normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}],
    "NFC with more": ["normalizer", {"type": "NFC", "extra": {"a": 1}}],
    "a slow pattern": ["pre_tokenizer/pretokenizers/0", SLOW],
    "another pattern": ["pre_tokenizer/pretokenizers/0/pattern", {"Regex": "x"}],
    "a string for a pattern": ["pre_tokenizer/pretokenizers/0/pattern", {"String": ""}],
    "removed": ["pre_tokenizer/pretokenizers/0/behavior", "Removed"],
    "inverted": ["pre_tokenizer/pretokenizers/0/invert", True],
    "a space before": ["pre_tokenizer/pretokenizers/1/add_prefix_space", True],
    "its own pattern": ["pre_tokenizer/pretokenizers/1/use_regex", True],
    "three splitters": ["pre_tokenizer/pretokenizers", [SLOW, SLOW, SLOW]],
    "a thousand splitters": ["pre_tokenizer/pretokenizers", [SLOW] * 1000],
    "no splitter": ["pre_tokenizer", None],
    "metaspace": ["pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}],
    "template": ["post_processor", TEMPLATE],
    "BERT": ["post_processor", {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}],
    "a decoder that explodes": ["decoder", {"type": "Sequence", "decoders": [BOMB] * 3}],
    "WordPiece": ["decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}],
    "no decoder": ["decoder", None],
    "no added tokens": ["added_tokens", None],
    "an added token without text": ["added_tokens/0/content", ""],
    "an added token without id": ["added_tokens/0/id", None],
    "an added token of a number": ["added_tokens/0", 5],
    "an added token with a huge id": ["added_tokens/0/id", 2**40],
    "an added token twice": ["added_tokens/1", GOOD["added_tokens"][0]],
    "an added id twice": ["added_tokens/1/id", GOOD["added_tokens"][0]["id"]],
    "a flag that is none": ["added_tokens/0/lstrip", "yes"],
    "a field beside the flags": ["added_tokens/0/regex", "(a+)+$"],
    "40,000 added tokens": ["added_tokens", [{"id": i, "content": f"t{i}"} for i in range(40000)]],
}


@pytest.mark.parametrize("path, value", BAD.values(), ids=BAD)
def test_what_qwen2_does_not_use_is_refused_in_one_sentence(path, value):
    content = changed(path, value) if path else value
    with pytest.raises(ValueError) as refusal:
        read(content)
    text = str(refusal.value)
    assert "tokenizer.json" in text and "\n" not in text and len(text) < 500


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "nonsense", "[" * 100_000, '{"a":' * 60_000, "[" + "{}," * 100_000 + "{}]", "null", "1e999"),
        '{"model": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match="tokenizer.json"):
        tokenizer_files.read(text, "tokenizer.json")


def test_of_a_field_that_stands_twice_only_what_was_checked_is_used():
    """A parser may take the first of two, another the last."""
    good = json.dumps(GOOD)
    for twice in (
        good[:-1] + f', "normalizer": {json.dumps({"type": "NFC"})}}}',
        '{"normalizer": ' + json.dumps(REPLACE) + ", " + good[1:],
    ):
        assert same(tokenizer_files.read(twice, "x"), read(GOOD))
    with pytest.raises(ValueError, match="Replace"):
        tokenizer_files.read(good[:-1] + ', "normalizer": ' + json.dumps(REPLACE) + "}", "x")


def test_a_panic_of_the_library_is_one_sentence(monkeypatch):
    class Panic(BaseException):
        """As pyo3_runtime.PanicException, which is no Exception."""

    def panic(_):
        raise Panic("index out of bounds")

    monkeypatch.setattr(tokenizer_files.tokenizers.Tokenizer, "from_str", panic)
    with pytest.raises(ValueError, match="index out of bounds"):
        read(GOOD)


def test_components_made_by_the_library_itself_are_refused_as_well():
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    with pytest.raises(ValueError, match="normalizer"):
        tokenizer_files.read(tokenizer.to_str(), "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="pre_tokenizer"):
        tokenizer_files.read(tokenizer.to_str(), "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<new>", lstrip=True)])
    assert tokenizer_files.read(tokenizer.to_str(), "x").encode("a <new>").ids == tokenizer.encode("a <new>").ids
