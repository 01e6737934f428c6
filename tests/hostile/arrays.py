"""Arrays and tensors in place of pictures and clips: of wrong shapes, types and values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from tests.hostile.cases import Case
from tests.hostile.ways_in import given, see_clip, see_picture

REFUSED = "no picture|no pixels|more pixels|0..1|scale|longer than"
IMAGE = np.zeros((48, 64, 3), np.uint8)
ONE = np.zeros((1, 1, 1), np.uint8)  # broadcast, a byte becomes an array of any size

WRONG_ARRAYS = {
    "no dimension": np.array(3, np.uint8),
    "one dimension": np.zeros(9, np.uint8),
    "five channels": np.zeros((9, 9, 5), np.uint8),
    "channels first": np.zeros((3, 48, 64), np.uint8),
    "four dimensions": np.zeros((1, 48, 64, 3), np.uint8),
    "no rows": np.zeros((0, 64, 3), np.uint8),
    "no columns": np.zeros((48, 0, 3), np.uint8),
    "no channels": np.zeros((48, 64, 0), np.uint8),
    "NaN": np.full((48, 64, 3), np.nan, np.float32),
    "one NaN": np.where(np.arange(48 * 64 * 3).reshape(48, 64, 3) == 7, np.nan, 0.5),
    "infinite": np.full((48, 64, 3), np.inf),
    "negative": np.full((48, 64, 3), -0.1, np.float32),
    "up to 255 in floats": np.full((48, 64, 3), 255.0),
    "negative whole numbers": np.full((48, 64, 3), -1, np.int16),
    "64-bit whole numbers": IMAGE.astype(np.int64),
    "truth values": IMAGE.astype(bool),
    "big-endian": IMAGE.astype(">u2"),
    "complex": IMAGE.astype(np.complex64),
    "objects": IMAGE.astype(object),
    "texts": np.full((4, 4, 3), "x"),
    "dates": np.zeros((4, 4, 3), "datetime64[s]"),
    "records": np.zeros((4, 4), [("r", "u1"), ("g", "u1")]),
    "ten billion pixels": np.broadcast_to(ONE, (100_000, 100_000, 3)),
    "very long": np.zeros((1, 50_000, 3), np.uint8),
}

WRONG_TENSORS = {
    "no dimension": torch.tensor(3, dtype=torch.uint8),
    "channels last": torch.zeros(48, 64, 3, dtype=torch.uint8),
    "five channels": torch.zeros(5, 9, 9),
    "four dimensions": torch.zeros(2, 3, 9, 9),
    "empty": torch.zeros(3, 0, 9),
    "NaN": torch.full((3, 9, 9), math.nan, dtype=torch.bfloat16),
    "infinite": torch.full((3, 9, 9), math.inf, dtype=torch.float16),
    "complex": torch.zeros(3, 9, 9, dtype=torch.complex64),
    "truth values": torch.zeros(3, 9, 9, dtype=torch.bool),
    "whole numbers": torch.zeros(3, 9, 9, dtype=torch.int64),
    "sparse": torch.zeros(3, 9, 9).to_sparse(),
    "without data": torch.zeros(3, 9, 9, device="meta"),
    "ten billion bytes": torch.zeros(1, dtype=torch.uint8).expand(3, 100_000, 100_000),
    "ten billion fractions": torch.zeros(1, dtype=torch.bfloat16).expand(3, 100_000, 100_000),
}

WRONG_CLIPS = {
    "no frames": np.zeros((0, 48, 64, 3), np.uint8),
    "five dimensions": np.zeros((1, 4, 48, 64, 3), np.uint8),
    "three dimensions": IMAGE,
    "seven channels": np.zeros((4, 48, 64, 7), np.uint8),
    "NaN frames": np.full((4, 48, 64, 3), np.nan),
    "two thousand frames": np.broadcast_to(ONE, (2000, 8, 8, 3)),
    "ten billion frames": np.broadcast_to(ONE, (10**10, 8, 8, 3)),
    "frames of ten billion pixels": np.broadcast_to(ONE, (4, 100_000, 100_000, 3)),
    "objects": np.zeros((4, 8, 8, 3), object),
    "a tensor of no frames": torch.zeros(0, 3, 8, 8),
    "a tensor with channels last": torch.zeros(4, 48, 64, 3),
    "a tensor of half a NaN": torch.full((4, 3, 8, 8), math.nan, dtype=torch.bfloat16),
    "a tensor of ten billion frames": torch.zeros(1).expand(10**10, 3, 8, 8),
}

ODD_BUT_SOUND = {
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "one channel": np.zeros((48, 64, 1), np.uint8),
    "grey": np.zeros((48, 64), np.uint16),
    "transposed": IMAGE.transpose(1, 0, 2),
    "backwards": IMAGE[::-1, ::-1],
    "read-only": np.broadcast_to(ONE, (48, 64, 3)),
    "with gradient": torch.zeros(3, 48, 64, requires_grad=True),
    "half precision": torch.ones(3, 48, 64, dtype=torch.bfloat16),
    "masked": np.ma.masked_array(IMAGE, IMAGE == 0),
}


def arrays() -> Iterator[Case]:
    kind = "arrays and tensors"
    for name, array in WRONG_ARRAYS.items():
        yield Case(kind, f"array: {name}", given(array), see_picture, REFUSED)
    for name, tensor in WRONG_TENSORS.items():
        yield Case(kind, f"tensor: {name}", given(tensor), see_picture, REFUSED + "|tensor")
    for name, frames in WRONG_CLIPS.items():
        yield Case(kind, f"clip: {name}", given(frames), see_clip, REFUSED + "|no video|frames")
    for name, array in ODD_BUT_SOUND.items():
        yield Case(kind, f"odd but sound: {name}", given(array), see_picture, REFUSED, "answered")
