"""Keys that mean nothing, limits that contradict each other, and lists and shapes that nobody expects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qwen2vl_cli import batch
from qwen2vl_mini import patchify, process_vision_info, unpatchify
from tests.hostile.cases import Case
from tests.hostile.material import clip, photo
from tests.hostile.ways_in import ask, check_inputs, given, made, processor

IMAGE = {"type": "image", "image": photo()}
TEXT = {"type": "text", "text": "What is it?"}
LONG = "k" * 100_000

WRONG_MESSAGES = {  # name: keys of a message beside role and content, what the refusal says
    "images": ({"images": [photo()]}, "stands in the content"),
    "image": ({"image": photo()}, "stands in the content"),
    "a misspelt role": ({"rol": "user"}, "did you mean role"),
    "a limit": ({"max_pixels": 3136}, "belongs into the item"),
    "tool calls": ({"tool_calls": [{"id": "1", "function": {}}]}, "no place"),
    "a key of 100,000 letters": ({LONG: 1}, "means nothing"),
    "keys that are no texts": ({(1, 2): 3, 4: 5}, "means nothing"),
    "1,000 keys": ({f"key{i}": i for i in range(1000)}, "means nothing"),
    "a key with a line break": ({"a\nb": 1}, "means nothing"),
    "half a character": ({"\ud83d": 1}, "means nothing"),
}
WRONG_ITEMS = {
    "max_pixel": ({"max_pixel": 3136}, "did you mean max_pixels"),
    "a text": ({"text": "What is it?"}, "make two items"),
    "a text that is a list": ({"text": ["What is it?"]}, "make two items"),
    "a caption": ({"caption": "A cat"}, "an item of their own"),
    "sides": ({"height": 56}, "resized_height"),
    "a detail of a list": ({"detail": ["low"]}, "max_pixels"),
    "a size of a list": ({"size": [56, 56]}, "two areas"),
    "a size in itself": ({"size": {"shortest_edge": {"shortest_edge": 1}}}, "min_pixels"),
    "a size of an object": ({"size": object()}, "two areas"),
    "do_sample_frames": ({"do_sample_frames": False}, "nframes"),
    "a key of None": ({None: 5}, "means nothing"),
    "a key of bytes": ({b"max_pixels": 5}, "means nothing"),
    "a type of a list": ({"type": ["image"]}, "type"),
    "a type in capitals": ({"type": "Image"}, "did you mean image"),
    "a long type": ({"type": LONG}, "unknown"),
}
SOUND_ITEMS = {
    "keys of None": dict.fromkeys(("text", "video", "max_pixels", "fps", "what")),
    "notes": {"id": 1, "name": "x", "cache_control": {"type": "ephemeral"}},
    "an empty text": {"text": ""},
    "a size": {"size": {"shortest_edge": 784, "longest_edge": 3136}},
}
WRONG_LINES = {  # of --batch
    "images": ({"images": ["a.png"]}, "stands in .messages"),
    "a misspelt key": ({"mesages": []}, "did you mean messages"),
    "max_new_tokens": ({"max_new_tokens": 3}, "all lines"),
    "a wrong limit": ({"max_pixels": [3]}, "max_pixels"),
    "a key of 100,000 letters": ({LONG: 1}, "means nothing"),
    "no messages": ({"messages": None}, "messages"),
}
WRONG_MEDIA = {  # name: arguments of the processor, what the refusal says
    "nothing": ({}, "nothing to process"),
    "empty lists": ({"images": [[], []], "videos": []}, "nothing to process"),
    "lists 1,000 deep": ({"images": json.loads("[" * 900 + "]" * 900)}, "no picture|nothing to process"),
    "a clip among pictures": ({"images": [{"type": "video", "video": "a.mp4"}]}, "an item that is none"),
    "rates for no clips": ({"images": [photo()], "fps": [1.0, 2.0]}, "fps has 2 numbers for 0 clips"),
    "rates of texts": ({"videos": [clip("gif")], "fps": ["2"]}, "fps='2'"),
    "rates of NaN": ({"videos": [clip("gif")], "fps": [float("nan")]}, "fps=nan"),
    "no sampling of a file": ({"videos": [clip("gif")], "do_sample_frames": False}, "nframes"),
    "an array of five dimensions": ({"images": np.zeros((1, 1, 8, 8, 3), np.uint8)}, "no picture|dimensions|shape"),
}
FRAME = torch.zeros(1, 3, 56, 56)
WRONG_SHAPES = {
    "patchify three dimensions": (partial(patchify, FRAME[0]), r"frames\[None\]"),
    "patchify 50 pixels": (partial(patchify, FRAME[..., :50]), "28×28"),
    "patchify a picture": (partial(patchify, photo()), "tensor of frames"),
    "patchify nothing": (partial(patchify, FRAME[:0]), "cannot be cut"),
    "unpatchify a grid of floats": (partial(unpatchify, *(torch.zeros(16, 1176), (1.0, 4.0, 4.0))), "whole numbers"),
    "unpatchify another grid": (partial(unpatchify, *(torch.zeros(16, 1176), (1, 4, 6))), "belongs to patches"),
    "unpatchify a huge grid": (partial(unpatchify, *(torch.zeros(16, 1176), (2**30, 2**30, 2**30))), "belongs to"),
    "vision info of another model": (partial(process_vision_info, [], image_patch_size=16), "image_patch_size"),
}


def unexpected() -> Iterator[Case]:
    kind = "keys and shapes"
    for name, (more, says) in WRONG_MESSAGES.items():
        message = {"role": "user", "content": [IMAGE, TEXT]} | more
        yield Case(kind, f"a message with {name}", given([message]), ask, says)
    for name, (more, says) in WRONG_ITEMS.items():
        yield Case(kind, f"an item with {name}", given(said(IMAGE | more)), ask, says)
    for name, more in SOUND_ITEMS.items():
        yield Case(kind, f"odd: an item with {name}", given(said(IMAGE | more)), ask, "", "answered")
    for name, (more, says) in WRONG_LINES.items():
        line = {"messages": [{"role": "user", "content": "x"}]} | more
        yield Case(kind, f"a line with {name}", made(json.dumps, line), parse, says)
    for name, (arguments, says) in WRONG_MEDIA.items():
        yield Case(kind, name, given(arguments), process, says)
    for name, (call, says) in WRONG_SHAPES.items():
        yield Case(kind, name, given(call), lambda call: str(call()), says)


def said(item: dict) -> list[dict]:
    return [{"role": "user", "content": [item, TEXT]}]


def parse(text: str) -> str:
    line = batch.Line(1, text.encode())
    batch.parse(line, Path(), None)
    return str(line.messages)


def process(arguments: dict) -> str:
    return check_inputs(processor()(**arguments))
