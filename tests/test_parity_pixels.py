"""Pixels → patches, bit for bit as the official processors do it; sizes, counts, limits and the order of the rows."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as OfficialTorchvision
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as official_smart_resize

from qwen2vl_io.pictures import load_image
from qwen2vl_mini import (
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
    patchify,
    smart_resize,
    unpatchify,
)
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.tokenizer import save_tokenizer

OFFICIAL = {"pillow": Qwen2VLImageProcessorPil, "torch": OfficialTorchvision}
RELEASED = (4 * 784, 16384 * 784)  # min_pixels, max_pixels of the released checkpoints
LIMITS = (RELEASED, (784, 9 * 784), (4 * 784, 100 * 784), (256 * 784, 1024 * 784), (784, 784), (200 * 784, 201 * 784))

SKLEARN_IMAGES = Path(sklearn.__file__).parent / "datasets" / "images"
SKIMAGE_IMAGES = Path(skimage.__file__).parent / "data"
PHOTOGRAPHS = (
    SKLEARN_IMAGES / "china.jpg",  # 640×427
    SKLEARN_IMAGES / "flower.jpg",  # 640×427
    SKIMAGE_IMAGES / "astronaut.png",  # 512×512
    SKIMAGE_IMAGES / "rocket.jpg",  # 640×427
    SKIMAGE_IMAGES / "coffee.png",  # 600×400
)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Every pixel at random: the hardest picture to resample, no rounding stays hidden."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_same_as_official(images, resample: str, limits: tuple[int, int]) -> None:
    """Ours and the official tensors are equal to the last bit."""
    ours = Qwen2VLImageProcessor(*limits, resample=resample).preprocess(images)
    theirs = OFFICIAL[resample](min_pixels=limits[0], max_pixels=limits[1])(images=images, return_tensors="pt")
    assert torch.equal(ours.image_grid_thw, theirs["image_grid_thw"]), (limits, ours.image_grid_thw)
    assert ours.pixel_values.dtype == theirs["pixel_values"].dtype == torch.float32
    assert torch.equal(ours.pixel_values, theirs["pixel_values"]), (limits, ours.image_grid_thw)


# --- the same bits as transformers ------------------------------------------------------------------------------------


def sizes_and_limits() -> list[tuple[int, int, tuple[int, int]]]:
    rng = random.Random(0)
    halves = [28 * n + 14 for n in range(1, 9)]  # 42, 70, 98 …: exactly between two multiples of 28
    cases = [(h, w, RELEASED) for h, w in itertools.product(halves[:4], repeat=2)]
    cases += [(28 * h, 28 * w, RELEASED) for h, w in ((2, 2), (3, 7), (8, 8), (20, 5))]  # nothing to resize
    cases += [(5, 113, RELEASED), (13, 13, RELEASED), (1, 150, LIMITS[1]), (300, 9, LIMITS[3]), (13, 14, LIMITS[4])]
    while len(cases) < 60:  # a side under 14 pixels rounds to 0
        sides = [rng.randint(1, 13), rng.randint(1, 200)]
        rng.shuffle(sides)
        if max(sides) <= 200 * min(sides):
            cases.append((*sides, rng.choice(LIMITS)))
    cases += [(28, 28, RELEASED), (29, 577, RELEASED), (600, 31, RELEASED), (15, 27, RELEASED), (27, 332, RELEASED)]
    while len(cases) < 260:
        side = rng.choice((lambda: rng.randint(28, 600), lambda: rng.randint(28, 250), lambda: rng.choice(halves)))
        cases.append((side(), side(), rng.choice(LIMITS)))
    return cases


@pytest.mark.parametrize("resample", OFFICIAL)
def test_bit_equal_to_the_official_processor_over_260_sizes(resample):
    cases = sizes_and_limits()
    assert len(set(cases)) >= 240 and sum(min(case[:2]) < 14 for case in cases) >= 30
    for i, (height, width, limits) in enumerate(cases):
        assert_same_as_official(noise(height, width, i), resample, limits)


@pytest.mark.parametrize("resample", OFFICIAL)
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_bit_equal_on_photographs(path, resample):
    photograph = Image.open(path).convert("RGB")
    for limits in (RELEASED, (784, 64 * 784)):
        assert_same_as_official(photograph, resample, limits)
        from_path = Qwen2VLImageProcessor(*limits, resample=resample).preprocess(path)
        from_pil = Qwen2VLImageProcessor(*limits, resample=resample).preprocess(photograph)
        assert torch.equal(from_path.pixel_values, from_pil.pixel_values)


@pytest.mark.parametrize("resample", OFFICIAL)
def test_bit_equal_for_several_pictures_of_one_call(resample):
    """Equal sizes are batched by the official processor, in between others; the order has to stay."""
    pictures = [noise(100, 90, 1), noise(60, 200, 2), noise(100, 90, 3), noise(200, 60, 4), noise(60, 200, 5)]
    assert_same_as_official(pictures, resample, (784, 16 * 784))


@pytest.mark.parametrize("resample", OFFICIAL)
@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA", "P with transparency"])
def test_bit_equal_for_other_modes(mode, resample):
    image = noise(90, 130)
    if mode == "P with transparency":
        image = image.convert("P")
        image.info["transparency"] = 3
    elif mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(noise(90, 130, 1).convert("L"))
    else:
        image = image.convert(mode)
    assert_same_as_official(image, resample, RELEASED)


def test_the_fast_processor_is_the_torch_one():
    image = noise(123, 77)
    fast, torch_one = Qwen2VLImageProcessorFast(), Qwen2VLImageProcessor(resample="torch")
    assert isinstance(fast, Qwen2VLImageProcessor) and fast.resample == "torch"
    assert torch.equal(fast.preprocess(image).pixel_values, torch_one.preprocess(image).pixel_values)
    with pytest.raises(ValueError, match="'pillow' or 'torch'"):
        Qwen2VLImageProcessor(resample="bilinear")


def test_pitfall_7_pillow_and_torch_are_two_kinds_of_resampling():
    """They differ by single levels of 255, at sharp edges by some more: a parity test must say which one it means.

    How often depends on Pillow's release. By whole levels, and somewhere by one at least, follows from the rounding
    to bytes; the upper limits are twice what was seen with the release that differs most.
    """
    image = Image.open(PHOTOGRAPHS[0])
    a, b = (Qwen2VLImageProcessor(resample=resample).preprocess(image).pixel_values for resample in OFFICIAL)
    std = torch.tensor(Qwen2VLImageProcessor().image_std).repeat_interleave(2 * 14 * 14)  # of each number of a row
    levels = (a - b).abs() * 255 * std  # (N, 1176)
    assert torch.allclose(levels, levels.round(), atol=255 * 2**-20)  # float32 carries 24 bits of numbers up to 2.7
    assert 1 <= levels.max().round() < 16 and levels.mean() < 0.3  # Pillow 10 and 12: 2 and 0.004; 13: 8 and 0.15
    same_size = noise(56, 84)
    a, b = (Qwen2VLImageProcessor(resample=resample).preprocess(same_size).pixel_values for resample in OFFICIAL)
    assert torch.allclose(a, b, atol=1e-6), "without resizing only the last bit of the arithmetic differs"


@pytest.mark.parametrize("route", ["image processor", "conversation", "text and images"])
@pytest.mark.parametrize("resample", OFFICIAL)
def test_pitfall_7_a_picture_is_resized_exactly_once(resample, route, processor, monkeypatch):
    resized = []
    pillow_resize, torch_resize = Image.Image.resize, F.interpolate
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: resized.append("pillow") or pillow_resize(*a, **k))
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: resized.append("torch") or torch_resize(*a, **k))
    processor.image_processor.resample = resample
    image = noise(101, 67)
    if route == "image processor":
        processor.image_processor.preprocess(image)
    elif route == "conversation":
        messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    else:
        processor(text="<|vision_start|><|image_pad|><|vision_end|>", images=[image])
    assert resized == [resample]


# --- smart_resize -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (70, 70, (56, 56)),
        (42, 42, (56, 56)),
        (1, 1, (56, 56)),
        (27, 332, (28, 336)),
        (561, 278, (560, 280)),
        (720, 1280, (728, 1288)),
        (1944, 2592, (1932, 2604)),
        (224, 224, (224, 224)),
        (28, 28, (56, 56)),
    ],
)
def test_smart_resize_table(height, width, expected):
    assert smart_resize(height, width, min_pixels=RELEASED[0], max_pixels=RELEASED[1]) == expected
    tokens = expected[0] * expected[1] // 784
    assert Qwen2VLImageProcessor(*RELEASED).num_image_tokens(height, width) == tokens
    assert {(720, 1280): 1196, (1944, 2592): 6417, (224, 224): 64}.get((height, width), tokens) == tokens


def test_pitfall_7_rounding_is_pythons_not_cs():
    for n in range(1, 40):
        side = 28 * n + 14  # halfway: C's round() goes up always, Python's to the even neighbour
        even = n if n % 2 == 0 else n + 1
        assert smart_resize(side, 280, max_pixels=RELEASED[1])[0] == 28 * even
    assert smart_resize(70, 280)[0] == 56 != math.floor(70 / 28 + 0.5) * 28 == 84


def test_smart_resize_equals_the_official_one():
    rng = random.Random(1)
    compared = 0
    for _ in range(20_000):
        height, width = (int(math.exp(rng.uniform(math.log(15), math.log(8000)))) for _ in range(2))
        low, high = rng.choice(
            (*LIMITS, (56 * 56, 1280 * 784), (rng.randint(1, 500_000), rng.randint(500_000, 9_000_000)))
        )
        if max(height, width) / min(height, width) > 200:
            for function in (smart_resize, official_smart_resize):
                with pytest.raises(ValueError):
                    function(height, width, 28, low, high)
        else:
            compared += 1
            assert smart_resize(height, width, 28, low, high) == official_smart_resize(height, width, 28, low, high)
    assert compared > 15_000


def test_sides_under_14_pixels_are_transformers_not_qwen_vl_utils():
    """transformers rounds such a side to 0 and then scales by area; qwen-vl-utils starts from 28: 28×1008, 28×112."""
    assert smart_resize(10, 1000) == official_smart_resize(10, 1000) == (28, 560)
    assert smart_resize(5, 113) == official_smart_resize(5, 113) == (28, 280)


@pytest.mark.parametrize("limits", (*LIMITS, (56 * 56, 1280 * 784), (1, 784), (3 * 784 + 5, 50_000)), ids=str)
def test_every_size_up_to_300_is_the_official_one(limits):
    different = [
        (height, width)
        for height, width in itertools.product(range(1, 301), repeat=2)
        if max(height, width) <= 200 * min(height, width)
        and smart_resize(height, width, 28, *limits) != official_smart_resize(height, width, 28, *limits)
    ]
    assert different == []


SIDE = st.integers(1, 40_000)
FACTOR = st.sampled_from([28, 28, 28, 32, 4])


@settings(max_examples=400, deadline=None)
@given(SIDE, SIDE, FACTOR, st.integers(1, 20_000_000), st.integers(1, 20_000_000))
def test_smart_resize_properties(height, width, factor, low, high):
    low, high = min(low, high), max(low, high)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="200:1"):
            smart_resize(height, width, factor, low, high)
        return
    new_height, new_width = smart_resize(height, width, factor, low, high)
    area = new_height * new_width
    assert new_height % factor == new_width % factor == 0
    assert new_height >= factor and new_width >= factor, "never 0"
    rounded = [round(side / factor) * factor for side in (height, width)]  # 0 under half a factor
    if math.prod(rounded) < low:
        # it has to grow: never less than the minimum, and never more than one step beyond
        assert area >= low and (new_height - factor) * (new_width - factor) < low
    elif area > high:
        assert min(new_height, new_width) == factor, "too large only where a side cannot become smaller"
    if low <= math.prod(rounded) <= high:
        assert [new_height, new_width] == rounded, "what fits is not scaled"
    assert smart_resize(width, height, factor, low, high) == (new_width, new_height), "height and width are equals"


@pytest.mark.parametrize("resample", OFFICIAL)
def test_pitfall_13_sides_under_28_pixels_are_scaled_up(resample):
    for size in ((1, 1), (1, 28), (27, 27), (5, 300), (13, 14), (1, 200)):
        inputs = Qwen2VLImageProcessor(*RELEASED, resample=resample).preprocess(noise(*size))
        t, h, w = inputs.image_grid_thw[0].tolist()
        assert t == 1 and h >= 2 and w >= 2 and h * w * 196 >= RELEASED[0]
        assert inputs.pixel_values.shape == (h * w, 1176) and inputs.pixel_values.isfinite().all()


def test_pitfall_13_ratios():
    assert smart_resize(28, 5600, max_pixels=RELEASED[1]) == (28, 5600), "exactly 200 passes"
    assert smart_resize(5600, 28, max_pixels=RELEASED[1]) == (5600, 28)
    assert smart_resize(1, 200) == (28, 812)
    for size in ((28, 5601), (5601, 28), (1, 201)):
        with pytest.raises(ValueError, match=f"{size[1]}×{size[0]}.*200:1; crop"):
            smart_resize(*size)
    with pytest.raises(ValueError, match="200:1"):
        Qwen2VLImageProcessor().preprocess(noise(2, 402))
    with pytest.raises(ValueError, match="nothing in it"):
        smart_resize(0, 5)


def test_pitfall_13_no_side_shrinks_to_0():
    height, width = smart_resize(100, 20000, max_pixels=128 * 784)
    assert height == 28 and width % 28 == 0 and width > 0
    for height, width in ((100, 20000), (20000, 100), (200, 40000), (28, 5600)):
        assert min(smart_resize(height, width, min_pixels=784, max_pixels=784)) == 28


# --- counts and limits ------------------------------------------------------------------------------------------------


def test_golden_counts():
    image = noise(1024, 1024)
    inputs = Qwen2VLImageProcessor(784, 1280 * 784).preprocess(image)
    assert inputs.pixel_values.shape == (4900, 1176) and inputs.image_grid_thw.tolist() == [[1, 70, 70]]
    inputs = Qwen2VLImageProcessor(28 * 28, 56 * 56).preprocess(image)
    assert inputs.pixel_values.shape == (16, 1176) and inputs.image_grid_thw.tolist() == [[1, 4, 4]]
    assert Qwen2VLImageProcessor(*RELEASED).num_image_tokens(224, 224) + 2 == 66  # with its two markers


def test_pitfall_26_tokens_are_counted_before_paying():
    rng = random.Random(2)
    for i in range(40):
        limits, size = rng.choice(LIMITS), (rng.randint(20, 400), rng.randint(20, 400))
        image_processor = Qwen2VLImageProcessor(*limits)
        rows = image_processor.preprocess(noise(*size, i)).pixel_values.shape[0]
        assert image_processor.num_image_tokens(*size) == rows // 4
        official = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
        assert official.get_number_of_image_patches(*size) == rows
    # a gigapixel picture is counted at once: nothing is allocated
    assert Qwen2VLImageProcessor(*RELEASED).num_image_tokens(30_000, 40_000) == 110 * 147
    assert 110 * 147 <= 16384
    assert Qwen2VLImageProcessor().num_image_tokens(1000, 1000, max_pixels=64 * 784) == 64


@pytest.fixture()
def processor(tmp_path) -> Qwen2VLProcessor:
    save_tokenizer(tmp_path)
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), Qwen2VLTokenizer(tmp_path / "tokenizer.json"), CHAT_TEMPLATE)


def grid_of(processor, item: dict, **limits) -> list[int]:
    messages = [
        {"role": "user", "content": [{"type": "image", **item}, {"type": "text", "text": "Describe this image."}]}
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **limits)
    image_pad = processor.tokenizer.special_ids["<|image_pad|>"]
    (grid,) = inputs.image_grid_thw.tolist()
    assert (inputs.input_ids == image_pad).sum() * 4 == math.prod(grid) == len(inputs.pixel_values)
    return grid


def test_pitfall_8_limits_from_the_constructor_and_the_call():
    image = noise(500, 500)

    def tokens(image_processor, **call):
        return len(image_processor.preprocess(image, **call).pixel_values) // 4

    assert tokens(Qwen2VLImageProcessor()) == 18 * 18
    assert tokens(Qwen2VLImageProcessor(max_pixels=100 * 784)) == 100
    assert tokens(Qwen2VLImageProcessor(min_pixels=900 * 784)) == 900
    assert tokens(Qwen2VLImageProcessor(), max_pixels=49 * 784) == 49
    assert tokens(Qwen2VLImageProcessor(max_pixels=100 * 784), max_pixels=49 * 784) == 49, "the call wins"
    assert tokens(Qwen2VLImageProcessor(), min_pixels=400 * 784) == 400


def test_pitfall_8_limits_from_the_checkpoints_file(tmp_path):
    def load(content: dict, **overrides) -> tuple[int, int]:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        (tmp_path / "config.json").write_text("{}")
        image_processor = Qwen2VLImageProcessor.from_pretrained(tmp_path, **overrides)
        assert image_processor.num_image_tokens(10, 10) * 784 >= image_processor.min_pixels
        assert image_processor.num_image_tokens(9000, 9000) * 784 <= image_processor.max_pixels
        return image_processor.min_pixels, image_processor.max_pixels

    released = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}
    sizes = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    assert load(released) == load(sizes) == RELEASED
    assert load(released, max_pixels=1024 * 784) == load(sizes, max_pixels=1024 * 784) == (3136, 1024 * 784)
    assert load(released, min_pixels=256 * 784) == load(sizes, min_pixels=256 * 784) == (256 * 784, 12845056)
    assert load(released | {"size": {"shortest_edge": 1, "longest_edge": 784}}) == RELEASED, "explicit limits win"
    assert load(released | {"size": {"min_pixels": 1, "max_pixels": 784}}) == RELEASED, "as the first releases had it"
    assert load({}) == (4 * 784, 1280 * 784)
    assert load(released, min_pixels=None, max_pixels=None) == RELEASED


def test_pitfall_8_limits_survive_saving(tmp_path):
    image_processor = Qwen2VLImageProcessor(5 * 784, 77 * 784)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image_processor.to_dict()))
    again = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert (again.min_pixels, again.max_pixels) == (5 * 784, 77 * 784)
    official = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (official.size["shortest_edge"], official.size["longest_edge"]) == (5 * 784, 77 * 784)
    image = noise(300, 200)
    assert torch.equal(
        again.preprocess(image).pixel_values, official(images=image, return_tensors="pt")["pixel_values"]
    )


def test_pitfall_8_limits_from_the_call_and_from_one_item_of_a_message(processor):
    image = noise(500, 500)
    assert grid_of(processor, {"image": image}) == [1, 36, 36]
    assert grid_of(processor, {"image": image}, max_pixels=100 * 784) == [1, 20, 20]
    assert grid_of(processor, {"image": image, "max_pixels": 49 * 784}) == [1, 14, 14]
    assert grid_of(processor, {"image": image, "max_pixels": 49 * 784}, max_pixels=100 * 784) == [1, 14, 14], (
        "item wins"
    )
    assert grid_of(processor, {"image": image, "min_pixels": 400 * 784}) == [1, 40, 40]
    assert grid_of(processor, {"image": image, "resized_height": 280, "resized_width": 420}) == [1, 20, 30]
    assert grid_of(processor, {"image": image, "resized_height": 100, "resized_width": 75}) == [1, 8, 6]
    assert grid_of(processor, {"image": image, "max_pixels": None, "resized_height": None}) == [1, 36, 36]


def test_pitfall_8_each_picture_has_its_own_limits(processor):
    image = noise(500, 500)
    items = [{"image": image, "max_pixels": n * n * 784} for n in (3, 7, 5)]
    messages = [{"role": "user", "content": items}, {"role": "user", "content": [{"image": image}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, max_pixels=4 * 784)
    assert inputs.image_grid_thw.tolist() == [[1, 6, 6], [1, 14, 14], [1, 10, 10], [1, 4, 4]]
    inputs = processor(text="<|image_pad|>" * 2, images=[image, image], max_pixels=4 * 784)
    assert inputs.image_grid_thw.tolist() == [[1, 4, 4]] * 2


def test_pitfall_8_a_minimum_above_the_maximum_is_an_error(processor):
    image = noise(50, 50)
    for call in (
        lambda: smart_resize(50, 50, min_pixels=785, max_pixels=784),
        lambda: Qwen2VLImageProcessor(1000 * 784, 10 * 784).preprocess(image),
        lambda: Qwen2VLImageProcessor(max_pixels=784).preprocess(image, min_pixels=9_000),
        lambda: grid_of(processor, {"image": image, "max_pixels": 784}, min_pixels=9_000),
    ):
        with pytest.raises(ValueError, match="min_pixels .* is larger than max_pixels"):
            call()


# --- the order of the rows --------------------------------------------------------------------------------------------


def patchify_slowly(frames: torch.Tensor, p: int, f: int, m: int) -> torch.Tensor:
    """One number after the other, from the words of the definition: t, h-block, w-block, 2, 2 | channel, time, y, x."""
    T, channels, height, width = frames.shape
    rows = []
    for t in range(T // f):
        for block_row, block_column in itertools.product(range(height // (p * m)), range(width // (p * m))):
            for row, column in itertools.product(range(m), repeat=2):
                top, left = (block_row * m + row) * p, (block_column * m + column) * p
                rows.append(
                    [
                        frames[t * f + time, channel, top + y, left + x].item()
                        for channel, time, y, x in itertools.product(range(channels), range(f), range(p), range(p))
                    ]
                )
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "shape, p, f, m", [((4, 3, 56, 28), 14, 2, 2), ((6, 3, 12, 24), 2, 3, 3), ((2, 3, 4, 12), 2, 1, 2)]
)
def test_patchify_follows_its_definition(shape, p, f, m):
    frames = torch.arange(math.prod(shape)).reshape(shape)
    patches, grid = patchify(frames, p, f, m)
    assert grid == (shape[0] // f, shape[2] // p, shape[3] // p)
    assert torch.equal(patches, patchify_slowly(frames, p, f, m))
    assert torch.equal(unpatchify(patches, grid, p, f, m), frames)


@pytest.mark.parametrize("T", [1, 2, 3, 4, 7])
def test_unpatchify_undoes_patchify(T):
    frames = torch.rand(T, 3, 56, 112)
    patches, grid = patchify(frames)
    assert patches.shape == (math.prod(grid), 1176) and grid == ((T + 1) // 2, 4, 8)
    restored = unpatchify(patches, grid)
    assert torch.equal(restored[:T], frames)
    if T % 2:
        assert len(restored) == T + 1 and torch.equal(restored[-1], frames[-1]), "an odd last frame is repeated"


@pytest.mark.parametrize("resample", OFFICIAL)
def test_a_still_picture_is_two_identical_frames(resample):
    image = noise(84, 140)
    image_processor = Qwen2VLImageProcessor(resample=resample)
    inputs = image_processor.preprocess(image)
    content = inputs.pixel_values.view(-1, 3, 2, 14, 14)
    assert torch.equal(content[:, :, 0], content[:, :, 1])
    frames = unpatchify(inputs.pixel_values, tuple(inputs.image_grid_thw[0].tolist()))
    assert frames.shape == (2, 3, 84, 140)
    mean, std = (torch.tensor(x)[:, None, None] for x in (image_processor.image_mean, image_processor.image_std))
    restored = ((frames[0] * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(restored.numpy(), np.asarray(image)), "a picture that needs no resizing can be got back"
    assert torch.equal(patchify(frames[:1])[0], patchify(frames)[0])


def test_two_pictures_are_one_after_the_other_each_at_its_own_size():
    a, b = noise(70, 200, 1), noise(300, 40, 2)
    image_processor = Qwen2VLImageProcessor()
    together, first, second = (image_processor.preprocess(images) for images in ([a, b], a, [b]))
    assert torch.equal(together.pixel_values, torch.cat([first.pixel_values, second.pixel_values]))
    assert torch.equal(together.image_grid_thw, torch.cat([first.image_grid_thw, second.image_grid_thw]))
    assert load_image(a) is a, "preprocessing keeps its hands off the picture"
