"""Limits of pictures and clips: what a user sets beats a default, wherever it is set, and holds for the whole clip."""

import itertools
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qwen2vl_mini
from qwen2vl_cli.__main__ import main
from qwen2vl_io import limits
from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, smart_resize

CELL = 28 * 28
TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"
TEMPLATE = {"tokenize": True, "return_dict": True}


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def frames(number: int, height: int = 120, width: int = 160) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint with the settings of the released ones, which have no file for clips."""
    folder = tmp_path_factory.mktemp("released")
    for file in TINY.iterdir():
        if file.name != "video_preprocessor_config.json":
            shutil.copy(file, folder)
    settings = json.loads((TINY / "preprocessor_config.json").read_text())
    settings |= {"min_pixels": 3136, "max_pixels": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def tokens(inputs) -> int:
    grid = inputs.get("video_grid_thw", inputs.get("image_grid_thw"))
    return int(grid.prod(1).sum()) // 4


def in_every_way(released, kind: str, source, options: dict):
    """The inputs for a picture or clip, the options given in each place where a user can give them."""
    plain = Qwen2VLProcessor.from_pretrained(released)
    own = {name: value for name, value in options.items() if name != "total_pixels"}
    item = {"type": kind, kind: source}
    chat = [{"role": "user", "content": [item]}]
    nested = {f"{kind}s_kwargs": options}
    yield "call", plain.apply_chat_template(chat, **TEMPLATE, **options)
    yield "item", plain.apply_chat_template([{"role": "user", "content": [item | options]}], **TEMPLATE)
    yield "nested", plain.apply_chat_template(chat, **TEMPLATE, **nested)
    yield "processor_kwargs", plain.apply_chat_template(chat, **TEMPLATE, processor_kwargs=nested)
    yield "image processor", plain.image_processor.preprocess(**{f"{kind}s": [source]}, **options)
    yield "text", plain(text=f"<|{kind}_pad|>", **{f"{kind}s": [source]}, **options)
    if "resized_height" not in options:
        given = own | ({"video_total_pixels": options["total_pixels"]} if "total_pixels" in options else {})
        loaded = Qwen2VLProcessor.from_pretrained(released, **given)
        yield "from_pretrained", loaded.apply_chat_template(chat, **TEMPLATE)


@pytest.mark.parametrize(
    ("kind", "options", "least", "most"),
    [
        ("video", {"max_pixels": 3136}, 1, 4),
        ("video", {"max_pixels": 224 * 224}, 1, 64),
        ("video", {"max_pixels": 130 * CELL}, 1, 130),
        ("video", {"min_pixels": 900 * CELL}, 900, 10**6),
        ("video", {"total_pixels": 30 * CELL}, 1, 10),
        ("video", {"total_pixels": 384 * CELL, "max_pixels": 100 * CELL}, 1, 100),
        ("video", {"resized_height": 28, "resized_width": 56}, 2, 2),
        ("image", {"max_pixels": 1500}, 1, 1),
        ("image", {"max_pixels": 5 * CELL}, 1, 5),
        ("image", {"min_pixels": 17000 * CELL}, 17000, 10**6),
        ("image", {"resized_height": 28, "resized_width": 28}, 1, 1),
    ],
    ids=str,
)
def test_what_a_user_sets_beats_a_default(released, kind, options, least, most):
    source = frames(6) if kind == "video" else noise(120, 160)
    if least > 10_000:  # too large to make: only counted
        assert Qwen2VLImageProcessor.from_pretrained(released).num_image_tokens(120, 160, **options) >= least
        return
    for way, inputs in in_every_way(released, kind, source, options):
        pairs = 3 if kind == "video" else 1
        assert least * pairs <= tokens(inputs) <= most * pairs, way


@pytest.mark.parametrize("options", [{"max_pixels": 3136}, {"max_pixels": 224 * 224}, {"min_pixels": 200 * CELL}])
def test_the_command_line(released, options, tmp_path, capsys):
    """… as its options, and in a line of --batch."""
    frame = [noise(120, 160) for _ in range(4)]
    frame[0].save(tmp_path / "clip.gif", save_all=True, append_images=frame[1:], duration=500)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    asked = ["--video", str(tmp_path / "clip.gif"), "--count-tokens", "--json", "--model", str(released), *words]

    assert main(asked) == 0

    area = json.loads(capsys.readouterr().out)["videos"][0]
    area = area["resized_width"] * area["resized_height"]
    assert options.get("min_pixels", 0) <= area <= options.get("max_pixels", area)


def test_only_limits_that_a_user_set_contradict_each_other(released):
    picture, clip = noise(60, 60), frames(4)
    processor = Qwen2VLProcessor.from_pretrained(released, min_pixels=100 * CELL)
    item = {"type": "image", "image": picture, "max_pixels": 50 * CELL}
    own_size = {"resized_height": 56, "resized_width": 56}
    calls = {
        "constructor and item": lambda: processor.media_patches(item),
        "constructor and call": lambda: processor.image_processor.preprocess(picture, max_pixels=50 * CELL),
        "constructor alone": lambda: Qwen2VLImageProcessor(1000 * CELL, 10 * CELL).preprocess(picture),
        "call": lambda: Qwen2VLImageProcessor().preprocess(videos=clip, min_pixels=784, max_pixels=500),
        "size and minimum": lambda: processor.image_processor.preprocess(picture, **own_size),
        "clip's size and minimum": lambda: processor.image_processor.preprocess(videos=clip, **own_size),
        "minimum and budget": lambda: processor.image_processor.preprocess(videos=clip, total_pixels=150 * CELL),
        "size and budget": lambda: Qwen2VLImageProcessor().preprocess(videos=clip, total_pixels=7 * CELL, **own_size),
        "names": lambda: Qwen2VLImageProcessor().preprocess(videos=clip, fps=1, video_fps=2),
        "numbers of frames": lambda: Qwen2VLImageProcessor().preprocess(videos=clip, min_frames=8, max_frames=4),
        "frames and their limit": lambda: processor.media_patches({"video": clip, "nframes": 4, "max_frames": 2}),
        "a dict in the call": lambda: processor(
            text="Hi", max_pixels=CELL, processor_kwargs={"max_pixels": 2 * CELL}, return_tensors="pt"
        ),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300, name


def test_a_setting_of_a_file_gives_way_and_a_setting_of_a_user_does_not(released):
    loaded = Qwen2VLImageProcessor.from_pretrained(released)
    assert loaded.max_pixels == 12845056 and not limits.is_set(loaded.max_pixels)
    loaded.min_pixels = 300 * CELL  # a user's, from now on
    with pytest.raises(ValueError, match="larger than max_pixels"):
        loaded.num_image_tokens(50, 50, max_pixels=100 * CELL)
    loaded.min_pixels = limits.Default(300 * CELL)
    assert loaded.num_image_tokens(50, 50, max_pixels=100 * CELL) == 100
    assert json.loads(json.dumps(loaded.to_dict()))["max_pixels"] == 12845056


def test_a_budget_holds_with_every_other_limit():
    """An odd frame is counted as the pair that it costs: 5 frames took 324 tokens of 300."""
    processor = Qwen2VLImageProcessor()
    assert processor.num_video_tokens(5, 400, 300, total_pixels=300 * CELL) <= 300
    rng = random.Random(3)
    refused = 0
    for _ in range(3000):
        total = rng.randint(1, 20_000) * CELL
        high = rng.choice((None, rng.randint(1, 1000) * CELL))
        number = rng.choice((1, 2, 3, 5, rng.randint(1, 768)))
        size = rng.randint(1, 1500), rng.randint(10, 1500)
        if max(size) > 200 * min(size):
            continue
        try:
            spent = processor.num_video_tokens(number, *size, max_pixels=high, total_pixels=total)
            assert spent * CELL <= total
            free = 0 if high is None else math.prod(smart_resize(*size, min_pixels=1, max_pixels=high))
            assert high is None or spent * CELL // -(-number // 2) <= max(high, free)  # a strip passes it anyway
        except ValueError as error:
            refused += 1
            assert "more than total_pixels" in str(error)
    assert refused < 1500


def test_the_default_budget_holds_beside_a_maximum():
    processor = Qwen2VLImageProcessor()
    for number, tokens_of_frame in itertools.product((4, 99, 300, 366), (100, 400, 768, 2000)):
        spent = processor.num_video_tokens(number, 1080, 1920, max_pixels=tokens_of_frame * CELL)
        assert spent <= 24576 and spent <= -(-number // 2) * tokens_of_frame


@pytest.mark.parametrize("high", (784, 1000, 2000, 3136, 5000, 20_000))
def test_no_picture_passes_a_maximum_for_the_sake_of_a_default_minimum(high):
    processor = Qwen2VLImageProcessor()
    for height, width in itertools.product((1, 5, 13, 14, 27, 29, 40, 90, 160), repeat=2):
        if max(height, width) <= 200 * min(height, width):
            new_height, new_width = processor.target_size(height, width, max_pixels=high)
            free = smart_resize(height, width, min_pixels=1, max_pixels=high)  # a strip passes it without any minimum
            assert new_height * new_width <= max(high, free[0] * free[1])


@pytest.mark.parametrize("low", (3137, 1003520, 1003521, 2_000_000, 30_000_000))
def test_no_picture_falls_below_a_minimum_for_the_sake_of_a_default_maximum(low):
    processor = Qwen2VLImageProcessor()
    for height, width in itertools.product((1, 13, 50, 160, 1003, 2001), repeat=2):
        if max(height, width) <= 200 * min(height, width):
            new_height, new_width = processor.target_size(height, width, min_pixels=low)
            assert new_height * new_width >= low


def test_smart_resize_alone():
    assert smart_resize(500, 500, max_pixels=784) == (28, 28)  # the default minimum is 3136
    assert smart_resize(50, 50, min_pixels=2_000_000) == (1428, 1428)
    assert smart_resize(5, 5, min_pixels=0) == (28, 28)  # never 0
    with pytest.raises(ValueError, match="larger than max_pixels"):
        smart_resize(50, 50, min_pixels=785, max_pixels=784)


SIZES = (
    {"shortest_edge": 16 * CELL, "longest_edge": 24 * CELL},
    {"longest_edge": 24 * CELL},
    {"shortest_edge": 16 * CELL},
    {"shortest_edge": 16 * CELL, "longest_edge": None},
    {"min_pixels": 16 * CELL, "max_pixels": 24 * CELL},
)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ("image", "video"))
def test_size_is_the_two_limits(released, kind, size):
    names = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    plain = {names.get(name, name): value for name, value in size.items() if value is not None}
    source = frames(4) if kind == "video" else noise(120, 160)
    expected = Qwen2VLImageProcessor.from_pretrained(released).preprocess(**{f"{kind}s": [source]}, **plain)
    for way, inputs in in_every_way(released, kind, source, {"resized_height": None, "size": size}):
        assert tokens(inputs) == tokens(expected), way


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": {"height": 56, "width": 56}}, "resized_height and resized_width"),
        ({"size": 224}, "two areas"),
        ({"size": (224, 224)}, "two areas"),
        ({"size": {"shortest_edge": "x"}}, "min_pixels='x' should be a whole number"),
        ({"size": {"longest_edge": 784}, "max_pixels": 3136}, "say the same differently"),
        ({"size": {"longest_edge": 784, "max_pixels": 3136}}, "twice"),
    ],
    ids=str,
)
def test_another_size_is_refused(options, says):
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    for asked in (options, {"images_kwargs": options}):
        with pytest.raises(ValueError, match=says):
            processor(text="<|image_pad|>", images=noise(50, 50), **asked)
    with pytest.raises(ValueError, match=says):
        processor.media_patches({"image": noise(50, 50), **options})
