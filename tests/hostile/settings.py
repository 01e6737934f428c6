"""The JSON files of a checkpoint: absurd or missing numbers, wrong types, and files that are no JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from tests.hostile.cases import Case
from tests.hostile.checkpoints import checkpoint, edited, load_weights, load_words

# --- config.json ------------------------------------------------------------------------------------------------------

WRONG_VALUES = {
    "hidden_size": ("64", 0, -64, 63.5, None, 10**30, [64], True),
    "num_attention_heads": (0, "4", -4, 3, 10**9),
    "num_key_value_heads": (0, "2", 3, None),
    "num_hidden_layers": ("2", -1, 0, 2.5, None, 10**8, [2]),
    "vocab_size": ("200", 0, -5, 10**15, 10**30, 3.5, None),
    "intermediate_size": (0, "x", -8, 10**30, None),
    "rms_norm_eps": ("small", None, -1.0, math.nan),
    "rope_theta": ("fast", None, 0, -5.0, math.nan),
    "rope_scaling": (
        "linear",
        [1],
        {"type": "yarn"},
        {"mrope_section": "abc"},
        {"mrope_section": [1, 2]},
        {"mrope_section": ["2", 3, 3]},
        {"mrope_section": [-2, 5, 5]},
        {"mrope_section": [2, 3, 2, 1]},
        {"mrope_section": 8},
    ),
    "max_position_embeddings": ("many", 0, -1, None),
    "text_config": ("x", [1], 5),
    "vision_config": ("x", [1], 5, {}),
    "vision__depth": ("x", -1, 10**8, None),
    "vision__patch_size": (0, "14", -14, 10**9, None),
    "vision__spatial_merge_size": (0, "2", 3, None),
    "vision__temporal_patch_size": (0, "2", 10**9),
    "vision__embed_dim": (0, "32", 30, 10**30),
    "vision__num_heads": (0, "2", -2),
    "vision__mlp_ratio": ("4", 0, math.nan, math.inf, None),
    "image_token_id": ("x", -1, 10**30, None),
    "model_type": (None, "llama", ["qwen2_vl"], "x" * 10_000, "a\nb"),
    "quantization_config": ({"bits": 4},),
    "use_sliding_window": (True,),
}

WRONG_CONFIGS = {  # name: content, what the refusal says
    "no file": (None, "no config.json"),
    "empty": (b"", "not valid JSON"),
    "cut off": (lambda old: old[:100], "not valid JSON"),
    "bytes": (b"\xff\xfe\x00\x01" * 9, "not valid JSON"),
    "UTF-16": (lambda old: old.decode().encode("utf-16"), "not valid JSON"),
    "a list": (b"[1, 2]", "JSON object"),
    "a number": (b"17", "JSON object"),
    "null": (b"null", "JSON object"),
    "lists 100,000 deep": (b"[" * 100_000, "JSON|config"),
    "objects 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "JSON|config"),
    "a number of 10,000 digits": (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "JSON|config"),
    "comments": (b"// hello\n{}", "not valid JSON"),
    "no model at all": (b"{}", "describes a None model"),
}

# --- preprocessor_config.json -----------------------------------------------------------------------------------------

WRONG_PIXELS = {
    "patch_size": ("14", -14, 10**9, 1.5),
    "merge_size": ("2", -2, [2]),
    "temporal_patch_size": ("2", -2),
    "min_pixels": ("many", -5, 10**12, math.nan),
    "max_pixels": ("few", -5, 1.5, [9]),
    "size": ("large", [1, 2], {"shortest_edge": "x"}, 7),
    "image_mean": ([0.5], "x", [None, 1, 2], {"r": 1}),
    "image_std": ([0, 0, 0], [1, 1], "x", [math.nan] * 3),
}

# --- tokenizer.json and the chat template -----------------------------------------------------------------------------

WRONG_WORDS = {  # name: content, what the refusal says
    "no file": (None, "tokenizer.json"),
    "empty": (b"", "tokenizer.json"),
    "no JSON": (b"hello", "tokenizer.json"),
    "an empty object": (b"{}", "tokenizer.json"),
    "lists 100,000 deep": (b"[" * 100_000, "tokenizer.json"),
    "no control tokens": (edited(added_tokens=[]), "tokenizer|endoftext|special"),
    "one control token less": (lambda old: old.replace(b"<|image_pad|>", b"<|image_bad|>"), "tokenizer|image_pad"),
    "another kind of model": (
        edited(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        "tokenizer",
    ),
    "merges of nothing": (edited(model={"type": "BPE", "vocab": {}, "merges": ["a b"]}), "tokenizer"),
}

WRONG_TEMPLATES = {  # name: content, what the refusal says, what is expected
    "no template": (None, "chat template"),
    "a number": (b'{"chat_template": 5}', "chat.template"),
    "a list": (b'{"chat_template": [{"name": "default", "template": "x"}]}', "chat.template"),
    "another template": (b'{"chat_template": "{{ messages }}"}', "chat template"),
    "no JSON": (b"{% for %}", "not valid JSON"),
    "code": (b'{"chat_template": "{{ \'\'.__class__.__mro__ }}<|im_start|>"}', "", "answered"),  # it is never run
}

# --- generation_config.json -------------------------------------------------------------------------------------------

WRONG_GENERATION = {  # name: content, what the refusal says, what is expected
    "no JSON": (b"eos", "not valid JSON"),
    "a list": (b"[]", "JSON object"),
    "eos_token_id is a text": (b'{"eos_token_id": "x"}', "eos_token_id|generation_config"),
    "eos_token_id is a list of texts": (b'{"eos_token_id": ["x"]}', "eos_token_id|generation_config"),
    "eos_token_id is null": (b'{"eos_token_id": null}', "eos_token_id|generation_config", "either"),
    "temperature is a text": (b'{"do_sample": true, "temperature": "hot"}', "temperature"),
    "temperature is NaN": (b'{"do_sample": true, "temperature": NaN}', "temperature"),
    "top_k is −1": (b'{"do_sample": true, "top_k": -1}', "top_k", "either"),
    "top_p is 7": (b'{"do_sample": true, "top_p": 7}', "top_p", "either"),
    "repetition_penalty is 0": (b'{"repetition_penalty": 0}', "repetition_penalty"),
    "pad_token_id is a text": (b'{"pad_token_id": "x", "eos_token_id": 1}', "pad_token_id|generation_config"),
}

# --- the cases --------------------------------------------------------------------------------------------------------


def settings() -> Iterator[Case]:
    yield from configs()
    yield from pixel_settings()
    yield from word_settings()
    for name, (content, says, *expect) in WRONG_GENERATION.items():
        make = checkpoint(generation=content)
        yield Case("settings", f"generation: {name}", make, load_weights, says, *expect)


def configs() -> Iterator[Case]:
    # some values only show in the numbers that the model computes, so the refusal does not name the file
    says = r"config\.json|config|not finite|context of"
    for name, values in WRONG_VALUES.items():
        for value in values:
            written = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:9]}…"
            harmless = (name, value) in (("vision__spatial_merge_size", 3), ("image_token_id", -1))
            expect = "either" if harmless else "refused"
            make = checkpoint(config=edited(**{name: value}))
            yield Case("settings", f"{name}={written}", make, load_weights, says, expect)

    for name, (content, says) in WRONG_CONFIGS.items():
        yield Case("settings", f"config.json: {name}", checkpoint(config=content), load_weights, says)


def pixel_settings() -> Iterator[Case]:
    for name, values in WRONG_PIXELS.items():
        for value in values:
            # the limits in the sound file would win over "size", so that one stands alone
            pixels = json.dumps({"size": value}).encode() if name == "size" else edited(**{name: value})
            expect = "either" if name == "min_pixels" and isinstance(value, int | float) else "refused"
            says = f"preprocessor_config|{name}|pixels"
            yield Case("settings", f"pixels: {name}={value!r}", checkpoint(pixels=pixels), load_words, says, expect)
    yield Case("settings", "pixels: no file", checkpoint(pixels=None), load_words, "preprocessor_config")


def word_settings() -> Iterator[Case]:
    for name, (content, says) in WRONG_WORDS.items():
        expect = "either" if name == "another kind of model" else "refused"
        yield Case("settings", f"words: {name}", checkpoint(words=content), load_words, says, expect)
    for name, (content, says, *expect) in WRONG_TEMPLATES.items():
        make = checkpoint(template=content, **{"tokenizer_config.json": b"{}"})  # which may hold a template, too
        yield Case("settings", f"template: {name}", make, load_words, says, *expect)
