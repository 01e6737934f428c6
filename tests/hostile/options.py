"""Absurd options: in an item of a message, in the call, and for the image processor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from qwen2vl_mini import Qwen2VLImageProcessor
from tests.hostile.cases import Case
from tests.hostile.material import clip, photo
from tests.hostile.ways_in import given, made, see

HUGE = 10**400  # too large for a float

WRONG_VALUES = {
    "fps": [0, -1, math.nan, math.inf, "2", True, [], 1j, 1e300, HUGE, np.float32("nan")],
    "nframes": [0, -2, 1, 1.5, 769, 2**63, "8", True, math.nan, None.__class__],
    "min_frames": [0, -1, 10**9, "4", 2.5],
    "max_frames": [0, 1, 10**9, "4", math.inf],
    "video_start": [-1, math.nan, math.inf, "0:01", 10**9, {}],
    "video_end": [-1, math.nan, "end", 0, -math.inf],
    "min_pixels": [-1, 0, math.nan, 1.5, "big", True, 10**12, HUGE, [3136]],
    "max_pixels": [-1, 0, math.inf, "1e6", False, (1,), b"1"],
    "total_pixels": [-5, 0, math.nan, "x"],
    "resized_height": [-28, 0, "56", 10**9, math.nan],
}

EXTREME_BUT_SOUND = (
    {"fps": 1e-300},
    {"max_frames": 2},
    {"min_frames": 700},
    {"fps": np.int64(1)},
    {"nframes": 700},
    {"video_end": 1e-5},
    {"max_pixels": 1, "min_pixels": 1},
    {"max_pixels": HUGE},
    {"total_pixels": 2 * 784},
)

WRONG_CALLS = {  # name: options of the call, what the refusal says
    "an unknown option": ({"max_pixel": 3136}, "did you mean max_pixels"),
    "an option of 10,000 letters": ({"x" * 10_000: 1}, "unknown"),
    "a line break in an option": ({"a\nb": 1}, "unknown"),
    "return_tensors='np'": ({"return_tensors": "np"}, "return_tensors"),
    "padding='longer'": ({"padding": "longer"}, "padding"),
    "padding is an array": ({"padding": np.ones(3)}, "padding"),
    "truncation": ({"truncation": True, "max_length": 9}, "truncation|max_length"),
    "a long refused value": ({"truncation": "x" * 10_000}, "truncation"),
    "images_kwargs is a text": ({"images_kwargs": "x"}, "images_kwargs"),
    "images_kwargs inside itself": ({"images_kwargs": {"images_kwargs": {"max_pixels": "x"}}}, "max_pixels"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
}

WRONG_SETTINGS = {"min_pixels": "x", "max_pixels": -1, "patch_size": 0, "resample": 2, "nonsense": 1}


def options() -> Iterator[Case]:
    kind = "options"
    for option, values in WRONG_VALUES.items():
        for value in values:
            item = {option: value}
            if option == "resized_height":
                item["resized_width"] = 56  # one of the two alone would be refused for that
            yield clip_with(f"{option}={value_name(value)}", f"{option}|no frames from|pixels", item)

    yield from options_that_disagree()
    for number, item in enumerate(EXTREME_BUT_SOUND, 1):
        yield clip_with(f"extreme but sound {number}", "", item, "answered")

    for name, (said, says) in WRONG_CALLS.items():
        yield Case(kind, name, made(photo_item), partial(see_with, said), says)
    for name, value in WRONG_SETTINGS.items():
        yield Case(kind, f"a processor with {name}={value!r}", given({name: value}), construct, name)


def options_that_disagree() -> Iterator[Case]:
    yield clip_with("fps and nframes", "exclude each other", {"fps": 1, "nframes": 4})
    yield clip_with("start after end", "no frames from", {"video_start": 1, "video_end": 0.5})
    yield clip_with("start at the end", "no frames from", {"video_start": 1.5})
    limits = {"min_pixels": 10**6, "max_pixels": 3136}
    yield clip_with("min_pixels over max_pixels", "larger than max_pixels", limits)
    yield clip_with("min_frames over max_frames", "larger than max_frames", {"max_frames": 2, "min_frames": 700})
    yield clip_with("nframes over max_frames", "contradicts max_frames", {"max_frames": 4, "nframes": 8})
    yield clip_with("a budget of one pixel", "more than total_pixels", {"total_pixels": 1})
    yield clip_with("min_pixels over the budget", "more than total_pixels", {"total_pixels": 784, "min_pixels": 784})
    small = {"resized_height": 56, "resized_width": 56, "min_pixels": 10**6}
    yield clip_with("a size under min_pixels", "contradict min_pixels", small)
    yield clip_with("two names of one number", "say the same", {"nframes": 4, "num_frames": 6})
    yield clip_with("size and max_pixels", "say the same", {"size": {"longest_edge": 3136}, "max_pixels": 784})
    yield clip_with("size in sides", "resized_height", {"size": {"height": 56, "width": 56}})
    yield clip_with("only a height", "go together", {"resized_height": 56})
    size = {"resized_height": 28_000, "resized_width": 28_000, "max_pixels": 10**10}
    yield clip_with("a size of a building", "pixels|limit", size)
    yield clip_with("pixels of a building", "pixels|limit", {"min_pixels": 10**9, "max_pixels": 10**10})


def clip_with(name: str, says: str, options: dict, expect: str = "refused") -> Case:
    """A clip with options of its own, in a message."""

    def make(folder: Path) -> dict:
        return {"type": "video", "video": clip("gif"), **options}

    return Case("options", name, make, see, says, expect)


def value_name(value) -> str:
    """The value as it is written in Python, the same for every version of numpy; long ones are only described."""
    # up to numpy 1.26, repr(np.float32("nan")) is "nan", which is also the name of math.nan
    written = f"np.{type(value).__name__}({value})" if isinstance(value, np.generic) else repr(value)
    return written if len(written) < 30 else f"a number of {len(written)} digits"


def photo_item() -> dict:
    return {"type": "image", "image": photo()}


def see_with(options: dict, item: dict) -> str:
    return see(item, **options)


def construct(options: dict) -> str:
    """An image processor with these settings, used once."""
    processor = Qwen2VLImageProcessor.from_pretrained("tiny", **options)
    return str(processor.preprocess(photo())["image_grid_thw"].tolist())
