"""How an input comes to be (a value, a file, a pipe …), and how the product is asked to look at it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from qwen2vl_mini import Qwen2VLProcessor

# --- ways to make an input --------------------------------------------------------------------------------------------


def given(value) -> Callable[[Path], object]:
    """The input is this value."""
    return lambda folder: value


def made(function: Callable, *args, **options) -> Callable[[Path], object]:
    """The input is what the function returns; it is called only when the case's turn comes."""
    return lambda folder: function(*args, **options)


def file(name: str, content) -> Callable[[Path], str]:
    """The input is the path of a file with this content (bytes, or a function that makes them)."""

    def make(folder: Path) -> str:
        (folder / name).write_bytes(content() if callable(content) else content)
        return str(folder / name)

    return make


def sparse(name: str, head, size: int) -> Callable[[Path], str]:
    """The input is the path of a file of `size` bytes; all but the head are a hole, which takes no room on the disk."""

    def make(folder: Path) -> str:
        with (folder / name).open("wb") as out:
            out.write(head() if callable(head) else head)
            out.truncate(size)
        return str(folder / name)

    return make


def fifo(name: str) -> Callable[[Path], str]:
    """The input is the path of a pipe into which nobody writes: whoever opens it waits for ever."""

    def make(folder: Path) -> str:
        os.mkfifo(folder / name)
        return str(folder / name)

    return make


# --- ways to use it ---------------------------------------------------------------------------------------------------

SMALL = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}


@cache
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


def see(item: dict, **options) -> str:
    """One item of a message on its way to the model's inputs, which are checked."""
    return ask([{"role": "user", "content": [item, {"type": "text", "text": "What is it?"}]}], **options)


def ask(conversation, **options) -> str:
    """Messages on their way to the model's inputs, which are checked."""
    inputs = processor().apply_chat_template(
        conversation, tokenize=True, return_dict=True, add_generation_prompt=True, **options
    )
    return check_inputs(inputs)


def check_inputs(inputs) -> str:
    """Describe inputs of the model; they must have one placeholder for each cell of 2×2 patches, and finite pixels."""
    ids = inputs["input_ids"]
    said = []
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        patches = int(inputs[f"{kind}_grid_thw"].prod(1).sum()) if pixels in inputs else 0
        pad = processor().tokenizer.special_ids[f"<|{kind}_pad|>"]
        assert int((ids == pad).sum()) * 4 == patches, f"{patches} patches, but not a quarter as many {kind} tokens"
        if patches:
            assert inputs[pixels].shape == (patches, 1176) and bool(inputs[pixels].isfinite().all()), "bad pixels"
            said.append(f"{kind} {inputs[f'{kind}_grid_thw'].tolist()}")
    return f"{tuple(ids.shape)} ids, {', '.join(said) or 'no media'}"


def see_picture(source) -> str:
    return see({"type": "image", "image": source, **SMALL})


def see_clip(source) -> str:
    return see({"type": "video", "video": source, **SMALL})


BOTH = (("picture", see_picture), ("clip", see_clip))

# --- what refusals say ------------------------------------------------------------------------------------------------

DAMAGED = "cut off or damaged|no picture|no video|is empty|no frames|no pixels|more pixels|more than|in a way that"
NO_PICTURE = "no picture, or none that can be read|, which is not read|, not a picture"
NO_VIDEO = "no video that can be read"
