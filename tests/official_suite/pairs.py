"""Ours and the official class side by side, on the same tiny random weights or the same checkpoint's files."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration as OfficialModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import qwen2vl_mini
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tests.official import load_official, twins
from tests.small_models import image, make_inputs, video

TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"
SAME = 1e-5  # largest difference relative to the largest number, in float32

LAYOUTS = {  # as in make_inputs: counts of words, pictures, clips
    "text": [[9]],
    "image": [[3, image(4, 6), 4]],
    "clip": [[2, video(2, 4, 6), 3]],
    "batch": [[3, image(4, 6), 4], [7], [1, video(2, 4, 4), 2, image(2, 4), 2]],
}


def fresh_twins(shape: str = "gqa2") -> tuple[Qwen2VLForConditionalGeneration, OfficialModel]:
    """(ours, official) that a test may change."""
    ours, official = (copy.deepcopy(model) for model in twins(shape))
    official.model.rope_deltas = None  # it keeps those of its last prompt
    return ours, official


def both_inputs(layout: str = "image", shape: str = "gqa2", **options) -> dict[str, Tensor]:
    return make_inputs(twins(shape)[0].config, LAYOUTS[layout], **options)


@cache
def our_processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained(str(TINY))


@cache
def official_processor() -> transformers.Qwen2VLProcessor:
    """Resizes with Pillow and pads on the left, as ours does."""
    official = transformers.AutoProcessor.from_pretrained(TINY)
    official.image_processor = Qwen2VLImageProcessorPil.from_pretrained(TINY)
    official.tokenizer.padding_side = "left"
    return official


@cache
def tiny_models() -> tuple[Qwen2VLForConditionalGeneration, OfficialModel]:
    """(ours, official) of the bundled checkpoint, in float32: only to be read."""
    ours = Qwen2VLForConditionalGeneration.from_pretrained(str(TINY), dtype="float32", device="cpu")
    return ours, load_official(TINY)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, (height, width, 3) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(pixels(height, width, seed))


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, (frames, height, width, 3) bytes."""
    return np.stack([pixels(height, width, seed + i) for i in range(frames)])


def ask(*content) -> list[dict]:
    """One question; strings are its words."""
    return [{"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}]


def assert_same_inputs(found, expected) -> None:
    """The same tensors, to the last bit; only the official processor always adds `mm_token_type_ids`."""
    assert set(found) - {"mm_token_type_ids"} == set(expected) - {"mm_token_type_ids"}
    for name in set(found) & set(expected):
        assert torch.equal(found[name].long() if name[:2] == "mm" else found[name], expected[name]), name
