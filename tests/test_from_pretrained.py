"""What the official `from_pretrained` takes: it counts, asks for nothing, or is refused with the way out."""

import os
from pathlib import Path

import pytest
import torch

import qwen2vl_mini
import weights_loader
from qwen2vl_io import official_loading
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
)

TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"
CLASSES = (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
)
MODELS = (Qwen2VLForConditionalGeneration, Qwen2VLModel)
HUB = {
    **{"revision": "v2", "cache_dir": "/somewhere", "token": "hf_x", "force_download": True, "local_files_only": True},
}


def load_model(**options):
    return Qwen2VLForConditionalGeneration.from_pretrained("tiny", **options)


# ── For every class ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "options",
    [
        {"trust_remote_code": True},
        {"use_safetensors": True},
        {"revision": "main", "cache_dir": "/nowhere", "token": None, "force_download": False},
        {"local_files_only": True, "resume_download": True, "subfolder": ""},
        {"use_auth_token": True},
        {"proxies": None, "variant": None},
    ],
)
def test_options_that_ask_for_nothing_here(cls, options):
    assert isinstance(cls.from_pretrained("tiny", **options), cls)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "options, words",
    [
        ({"use_safetensors": False}, "pickles can run code"),
        ({"variant": "fp16"}, "rename model"),
        ({"proxies": {"http": "x"}}, "HTTPS_PROXY"),
        ({"revision": 7}, "revision=7"),
        ({"local_files_only": "yes"}, "True or False"),
        ({"subfolder": "../other"}, "plain name of a folder"),
        ({"subfolder": "/etc"}, "no folder|plain name"),
        ({"nonsense_option": 1}, "nonsense_option"),
    ],
)
def test_options_that_are_refused(cls, options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        cls.from_pretrained("tiny", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_official_name_of_the_name(cls):
    assert isinstance(cls.from_pretrained(pretrained_model_name_or_path="tiny"), cls)
    with pytest.raises(ValueError, match="give one of the two"):
        cls.from_pretrained(pretrained_model_name_or_path="tiny", name="tiny")


@pytest.mark.parametrize("cls", CLASSES)
def test_the_options_of_the_hub_reach_its_client(cls, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **named: asked.append((a, named)) or TINY)
    cls.from_pretrained("org/name", **HUB)
    [(names, options)] = asked
    patterns = options.pop("allow_patterns")
    assert names == ("org/name",) and options == HUB
    assert ("*.safetensors" in patterns) == (cls in MODELS)


def test_load_hands_the_options_of_the_hub_on(monkeypatch):
    asked = []
    monkeypatch.setattr(weights_loader, "download", lambda *a, **named: asked.append(named) or TINY)
    weights_loader.load("org/name", device="cpu", revision="v2", max_pixels=3136)
    assert asked == [{"revision": "v2"}]


def test_a_subfolder(tmp_path, monkeypatch):
    (tmp_path / "inner").symlink_to(TINY)
    assert Qwen2VLConfig.from_pretrained(tmp_path, subfolder="inner").hidden_size == 192
    asked = []

    def download(name, patterns, **hub):
        asked.append(patterns)
        return tmp_path

    monkeypatch.setattr(weights_loader, "download", download)
    assert Qwen2VLConfig.from_pretrained("org/name", subfolder="inner").hidden_size == 192
    assert "inner/*.json" in asked[0]
    with pytest.raises(FileNotFoundError, match="has no folder 'outer'"):
        Qwen2VLConfig.from_pretrained(tmp_path, subfolder="outer")


def test_local_files_only_never_asks_the_hub(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("asked the network"))
    with pytest.raises(ValueError, match="local_files_only forbids"):
        Qwen2VLConfig.from_pretrained("org/name", local_files_only=True, cache_dir=tmp_path)
    assert not os.listdir(tmp_path)


# ── For a model ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", official_loading.FOR_MODEL)
def test_each_option_of_a_model_is_neutral_or_named(name):
    allowed, reason = official_loading.FOR_MODEL[name]
    assert reason or allowed is official_loading.ANY or {None, True, False} <= set(allowed)
    for value in () if allowed is official_loading.ANY else allowed:
        official_loading.model_options({name: value})
    if reason:
        for value in ("something", 7, {"a": 1}):
            with pytest.raises(ValueError, match=rf"^from_pretrained\({name}=.*\) is not supported: ") as caught:
                load_model(**{name: value})
            assert reason in str(caught.value)


@pytest.mark.parametrize(
    "device_map, device",
    [
        ("cpu", "cpu"),
        ({"": "cpu"}, "cpu"),
        ({"": torch.device("cpu")}, "cpu"),
        ({"model": "cpu", "visual": "cpu", "lm_head": "cpu"}, "cpu"),
        ("auto", None),
        ("balanced", None),
        ("balanced_low_0", None),
        ("sequential", None),
        (None, None),
    ],
)
def test_device_maps(device_map, device):
    expected = torch.device(device) if device else weights_loader.choose_device("auto")
    assert load_model(device_map=device_map).device.type == expected.type


@pytest.mark.parametrize("device_map", [0, {"": 0}, {"": "cuda:0"}, "cuda:0", {"model": 0, "visual": 0}])
def test_a_number_is_a_gpu(monkeypatch, device_map):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert weights_loader.choose_device(device_map) == torch.device("cuda:0")


@pytest.mark.parametrize(
    "device_map, words",
    [
        ({"model": 0, "visual": "cpu"}, "a model is on one device"),
        ({}, "a model is on one device"),
        ({"": "disk"}, "is unknown"),
        ("everywhere", "is unknown"),
        (-1, "is unknown"),
        (True, "is unknown"),
        ([0], "is unknown"),
    ],
)
def test_device_maps_that_are_refused(device_map, words):
    with pytest.raises(ValueError, match=words):
        load_model(device_map=device_map)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["torch.bfloat16", "bfloat16", torch.bfloat16])
def test_names_of_dtypes(name, dtype):
    assert load_model(**{name: dtype}, device="cpu").dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "torch.int8", "bf16", ["float32"], {}, 16, torch.int8, "cuda"])
def test_dtypes_that_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype=.* is unknown; choose 'auto'"):
        load_model(dtype=dtype)


def test_two_words_for_one_thing():
    assert load_model(dtype="float32", torch_dtype="float32", device="cpu").dtype is torch.float32
    with pytest.raises(ValueError, match="two words for one thing"):
        load_model(dtype="float32", torch_dtype="bfloat16")
    with pytest.raises(ValueError, match="two words for one thing"):
        load_model(device="cpu", device_map={"": 0})


def test_other_options_of_a_model():
    model = load_model(
        attn_implementation=None, dtype=None, low_cpu_mem_usage=True, use_cache=False, device="cpu", token="hf_x"
    )
    assert model.attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="did you mean attn_implementation"):
        load_model(atn_implementation="eager")
    with pytest.raises(ValueError, match="the processor takes it"):
        load_model(max_pixels=3136)


# ── For processor, image processor and tokenizer ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cls", [Qwen2VLProcessor, Qwen2VLImageProcessor])
@pytest.mark.parametrize(
    "options, fields",
    [
        ({"use_fast": True}, {"resample": "torch"}),
        ({"use_fast": False}, {"resample": "pillow"}),
        ({"backend": "torchvision"}, {"resample": "torch"}),
        ({"backend": "pil", "use_fast": None}, {"resample": "pillow"}),
        ({"size": {"shortest_edge": 784, "longest_edge": 7840}}, {"min_pixels": 784, "max_pixels": 7840}),
        ({"size": {"longest_edge": 7840}}, {"max_pixels": 7840, "video_max_pixels": 7840}),
        ({"max_pixels": 7840, "do_resize": True, "do_normalize": None}, {"max_pixels": 7840}),
        ({"resample": 3}, {"resample": "pillow"}),
    ],
)
def test_options_of_an_image_processor(cls, options, fields):
    made = cls.from_pretrained("tiny", **options)
    pixels = made.image_processor if cls is Qwen2VLProcessor else made
    assert {name: getattr(pixels, name) for name in fields} == fields


@pytest.mark.parametrize("cls", [Qwen2VLProcessor, Qwen2VLImageProcessor])
@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_pixel": 3}, "'max_pixel' is unknown; did you mean max_pixels"),
        ({"size": 224}, "shortest_edge"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ({"use_fast": "yes"}, "use_fast"),
        ({"do_resize": False}, "do_resize = False"),
        ({"resample": 2}, "resample=2"),
        ({"max_pixels": -1}, "max_pixels=-1"),
    ],
)
def test_options_of_an_image_processor_that_are_refused(cls, options, words):
    with pytest.raises(ValueError, match=words):
        cls.from_pretrained("tiny", **options)


@pytest.mark.parametrize("cls", [Qwen2VLProcessor, Qwen2VLTokenizer])
@pytest.mark.parametrize("name", official_loading.FOR_WORDS)
def test_each_option_of_the_words_is_neutral_or_named(cls, name):
    allowed, reason = official_loading.FOR_WORDS[name]
    for value in (None,) if allowed is official_loading.ANY else allowed:
        cls.from_pretrained("tiny", **{name: value})
    if reason:
        with pytest.raises(ValueError, match=rf"^from_pretrained\({name}='something'\) is not supported: "):
            cls.from_pretrained("tiny", **{name: "something"})


def test_padding_on_the_right_is_told_why_not():
    with pytest.raises(ValueError, match=r"padding_side='right'\) is not supported: new tokens follow the prompt"):
        Qwen2VLProcessor.from_pretrained("tiny", padding_side="right")
    assert Qwen2VLProcessor.from_pretrained("tiny", padding_side="left").tokenizer.padding_side == "left"
