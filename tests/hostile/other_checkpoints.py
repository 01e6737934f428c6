"""Folders that are no checkpoint of ours, models that cannot be saved, names and settings that do not exist."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

import weights_loader
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLTokenizer
from tests.hostile.cases import Case
from tests.hostile.checkpoints import checkpoint, edited, load_weights, load_words, notes, rewritten
from tests.small_models import small_model

KIND = "other checkpoints"
PICKLE = b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93."

FOLDERS = {  # files beside config.json in place of our weights: what the refusal says
    "adapter_model.safetensors": "LoRA adapter.*merge",
    "adapter_config.json": "LoRA adapter.*merge",
    "pytorch_model.bin": "pickles",
    "model.pt": "pickles",
    "training_args.bin": "optimizer",
    "optimizer.pt": "optimizer",
    "weights.gguf": "llama.cpp",
    "consolidated.00.safetensors": "rename",
    "model.fp16.safetensors": "rename",
    "odd\nname.bin": "pickles",
    "x" * 200 + ".safetensors": "rename",
    "model-00001-of-00003.safetensors": "shards",
    "model-00001-of-99999999999.safetensors": "shards",
}

KEYS = {  # a prefix that somebody put before all keys: what the refusal says
    "base_model.model.": "LoRA",
    "module.": "DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "language_model.language_model.": "lacks",
    "layers.": "lacks|text half",
    "\n": "lacks",
}

TEMPLATES = (  # programs that must not run for long, and are not run at all
    "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 9999999999 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{% set n = namespace(a='xx') %}" + "{% set n.a = n.a ~ n.a %}" * 60 + "{{ n.a }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch /tmp/x') }}",
    "{% include '/etc/passwd' %}",
    "{{ " + "(" * 20_000,
)

CONFIGS = (  # keywords of Qwen2VLConfig, what the refusal says
    ({"text_config": [1]}, "text_config"),
    ({"text_config": {"hidden_size": "64"}}, "hidden_size"),
    ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
    ({"text_config": {"x" * 10_000: 1}}, "Qwen2VLTextConfig has no"),
    ({"vision_config": {"depth": 10**9}}, "depth"),
    ({"a\nb": 1}, "Qwen2VLTextConfig has no"),
    ({"hidden_size": 64, "text_config": {"hidden_size": 65}}, "say it once"),
)

OPTIONS = (  # of from_pretrained, what the refusal says
    ({"device_map": {"": "disk"}}, "unknown"),
    ({"device_map": {"a": 0, "b": 1}}, "one device"),
    ({"device_map": 10**30}, "unknown"),
    ({"torch_dtype": "torch." * 1000}, "unknown"),
    ({"quantization_config": object()}, "quantised"),
    ({"revision": ["main"]}, "revision"),
    ({"subfolder": "../.."}, "subfolder"),
    ({"x" * 10_000: 1}, "no option"),
    ({"a\nb": 1}, "no option"),
)

SETTINGS = (  # something of a processor that is set, what the refusal says
    ("max_pixels", "big", "max_pixels"),
    ("max_pixels", 10**400, "max_pixels"),
    ("max_pixel", 3136, "did you mean"),
    ("padding_side", "right", "left"),
    ("size", {"height": 3}, "shortest_edge"),
    ("x" * 10_000, 1, "no "),
)

MODELS = {  # a change of a model, what the refusal to save it says
    "an enlarged embedding": (lambda m: setattr(m.model, "embed_tokens", nn.Embedding(300, 64)), "vocab_size"),
    "a layer less": (lambda m: setattr(m.model, "layers", m.model.layers[:1]), "num_hidden_layers"),
    "no layers": (lambda m: setattr(m.model, "layers", nn.ModuleList()), "num_hidden_layers"),
    "no tower": (lambda m: setattr(m, "visual", nn.Identity()), "lacks"),
    "bytes": (lambda m: setattr(m.model.norm, "weight", nn.Parameter(torch.ones(64).byte(), False)), "uint8"),
    "a layer more": (lambda m: setattr(m, "head_2", nn.Linear(2, 2)), "head_2"),
    "on the meta device": (lambda m: m.to("meta"), "meta"),
}


def other_checkpoints() -> Iterator[Case]:
    yield from folders()
    for number, template in enumerate(TEMPLATES):
        content = json.dumps({"chat_template": template + "<|im_start|>"}).encode()
        make = checkpoint(template=content, **{"tokenizer_config.json": b"{}"})
        yield Case(KIND, f"chat template {number}", make, load_words, "", "answered")
    for number, (options, says) in enumerate(CONFIGS):
        yield Case(KIND, f"Qwen2VLConfig {number}", given(options), lambda o: str(Qwen2VLConfig(**o)), says)
    for number, (options, says) in enumerate(OPTIONS):
        yield Case(KIND, f"from_pretrained {number}", given(options), load_with, says)
    for number, (name, value, says) in enumerate(SETTINGS):
        yield Case(KIND, f"processor setting {number}", given((name, value)), set_on_processor, says)
    for name, (change, says) in MODELS.items():
        yield Case(KIND, f"saving a model with {name}", saving(change), save_to, says)
    for ids in ([-100], [2**40], "text", [[1], "x"], [1.5], None):
        written = repr(ids)
        yield Case(KIND, f"decoding {written}", given(ids), decode, "cannot be decoded")


def folders() -> Iterator[Case]:
    for name, says in FOLDERS.items():
        make = checkpoint(weights=None, **{name: PICKLE})
        yield Case(KIND, f"a folder with {name[:40]!r}", make, load_weights, says)
    for prefix, says in KEYS.items():
        make = checkpoint(weights=rewritten(prefixed(prefix)))
        yield Case(KIND, f"keys that begin with {prefix!r}", make, load_weights, says)
    for name, content in (("a list", b"[]"), ("deep", b"[" * 100_000), ("a number", b'{"image_processor": 5}')):
        make = checkpoint(**{"processor_config.json": content})
        yield Case(KIND, f"processor_config.json is {name}", make, load_words, "processor_config")
    make = checkpoint(generation=edited_or_new(num_beams=4, max_new_tokens=7, stop_strings=["x" * 10_000]))
    yield Case(KIND, "a generation_config of others", make, load_with_notes, "", "answered")
    make = checkpoint(pixels=edited(resample=0, image_processor_type="x" * 10_000))
    yield Case(KIND, "a processor of others", make, load_words, "preprocessor_config")


def edited_or_new(**values) -> Callable[[bytes], bytes]:
    """A generation_config.json with other values, from nothing if need be."""
    return lambda old: json.dumps(json.loads(old or b"{}") | values).encode()


def prefixed(prefix: str) -> Callable[[dict], None]:
    """A change of a header: a prefix before all keys."""

    def change(header: dict) -> None:
        for key in [key for key in header if key != "__metadata__"]:
            header[prefix + key] = header.pop(key)

    return change


def given(what) -> Callable[[Path], object]:
    return lambda folder: what


def load_with(options: dict) -> str:
    return str(Qwen2VLForConditionalGeneration.from_pretrained("tiny", **options))


def load_with_notes(folder: Path) -> str:
    with notes() as lines:
        return load_weights(folder) + " ".join(lines)[:1000]


def set_on_processor(setting: tuple) -> str:
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    setattr(processor, *setting)
    return str(processor)


def saving(change: Callable) -> Callable[[Path], tuple]:
    def make(folder: Path) -> tuple:
        model = small_model()
        change(model)
        return model, folder

    return make


def save_to(model_and_folder: tuple) -> str:
    model, folder = model_and_folder
    weights_loader.save(model, None, folder / "new")
    return "saved"


def decode(ids) -> str:
    return str(Qwen2VLTokenizer.from_pretrained("tiny").decode(ids))
