"""Qwen2-VL from scratch, in one file: pixels → patches → vision tower → merger → M-RoPE → decoder → text.

Read it from top to bottom; each section opens with the paper's section or the official file it answers to.
  paper     Wang et al. 2024, "Qwen2-VL", https://arxiv.org/abs/2409.12191
  official  https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_vl

One letter a dimension, everywhere in this file:
  B  rows of a batch (prompts)            N  patches of 14×14 pixels, all pictures of a call one after the other
  S  tokens of a sequence                 M  merged patches = visual tokens, N / 4 (28×28 pixels each)
  Q  tokens that ask (queries), Q ≤ S     L  patches of one attention segment (one picture, or one pair of frames)
  C  channels of a hidden state           T  frames;  t, h, w  the patch grid of a picture: frame pairs, rows, columns
  H  attention heads, Hkv of keys/values  D  channels of one head (head_dim)
  V  vocabulary                           G  query heads that share one key/value head, H / Hkv

Run it:  python qwen2vl_mini.py --image assets/scene.png --prompt "Describe this image."
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # first, because importing torch takes seconds: --help need not wait, nor Ctrl-C
    from qwen2vl_cli.__main__ import main

    sys.exit(main())

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import weights_loader
from qwen2vl_io import messages
from qwen2vl_io import options as call_options_module
from qwen2vl_io.boxes import draw_boxes, parse_boxes  # noqa: F401  (to be found here, like the next one)
from qwen2vl_io.messages import BatchFeature, media_kind, process_vision_info  # noqa: F401
from qwen2vl_io.pictures import load_image
from qwen2vl_io.sources import item_source
from qwen2vl_io.videos import load_video

# ── 1 · Configurations ────────────────────────────────────────────────────────────────────────────────────────────
# Official: configuration_qwen2_vl.py. The defaults are the 2B model; the table of all sizes is in the paper, section 2.


@dataclass
class Qwen2VLVisionConfig:
    """The vision tower, the same 665 M parameters in every released model."""

    depth: int = 32
    embed_dim: int = 1280  # C of the tower
    num_heads: int = 16
    mlp_ratio: float = 4
    hidden_size: int = 1536  # C of the *decoder*: what the merger's last layer puts out
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # 2×2 patches become one token: 28×28 pixels


@dataclass
class Qwen2VLTextConfig:
    """The decoder: Qwen2 with M-RoPE."""

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: list[int] | None = field(default_factory=lambda: [16, 24, 24])  # pairs that turn with t, h, w
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True  # the output matrix is the input embedding

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass
class Qwen2VLConfig:
    """Both halves, and the ids of the tokens that stand for pictures."""

    text_config: Qwen2VLTextConfig = field(default_factory=Qwen2VLTextConfig)
    vision_config: Qwen2VLVisionConfig = field(default_factory=Qwen2VLVisionConfig)
    image_token_id: int = 151655  # <|image_pad|>
    video_token_id: int = 151656  # <|video_pad|>
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653

    @classmethod
    def from_dict(cls, content: dict) -> Qwen2VLConfig:
        """From the content of a config.json, in the released flat layout or the newer nested one."""
        inner, fields = weights_loader.inner_dict, weights_loader.config_fields
        text, vision = content | inner(content, "text_config"), inner(content, "vision_config")
        rope = inner(text, "rope_scaling") | inner(text, "rope_parameters")
        weights_loader.check_kind(content, rope.get("rope_type", rope.get("type", "default")))
        # M-RoPE goes by the presence of `mrope_section`, never by a type name: the name changed between releases.
        text["mrope_section"] = rope.get("mrope_section")
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta", 1e6))
        text["tie_word_embeddings"] = bool(content.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        config = cls(
            Qwen2VLTextConfig(**fields(Qwen2VLTextConfig, text)),
            Qwen2VLVisionConfig(**fields(Qwen2VLVisionConfig, vision, "vision_config.")),
            **fields(cls, {name: value for name, value in content.items() if name.endswith("_id")}),
        )
        weights_loader.check_config(config)
        return config

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Qwen2VLConfig:
        """From a checkpoint's folder or its config.json."""
        return cls.from_dict(weights_loader.read_json(weights_loader.config_file(path)))

    def to_dict(self) -> dict:
        """The content of a config.json in the released, flat layout."""
        return weights_loader.config_to_dict(self)


# ── 2 · Pixels → patches ──────────────────────────────────────────────────────────────────────────────────────────
# Paper 2.1 "Naive Dynamic Resolution". Official: image_processing_pil_qwen2_vl.py, image_processing_qwen2_vl.py;
# the rounding rules are those of qwen-vl-utils' vision_process.py.

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 1280 * 28 * 28  # pixels; defaults when a checkpoint says nothing
MAX_RATIO, MAX_AREA = 200, 2**26  # longer side / shorter side; pixels, more than twice as many as fit the context


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size a picture is resized to: sides are multiples of `factor`, the area within the limits, the shape kept."""
    if min(height, width) < 1:
        raise ValueError(f"A picture of {width}×{height} pixels has nothing in it.")
    if min_pixels > max_pixels:
        raise ValueError(f"min_pixels ({min_pixels}) is larger than max_pixels ({max_pixels}); swap or lower it.")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"A picture of {width}×{height} pixels is longer than {MAX_RATIO}:1; crop it first.")
    # Python's round() goes to the even neighbour (70 / 28 = 2.5 → 2), C's does not: other ports differ here.
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    if new_height * new_width > MAX_AREA:
        raise ValueError(f"{new_width}×{new_height} pixels do not fit a context of tokens; lower min_ and max_pixels.")
    return new_height, new_width


def patchify(
    frames: Tensor, patch_size: int = 14, temporal_patch_size: int = 2, merge_size: int = 2
) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames (T, 3, height, width) → patches (N, 1176) and their grid (t, h, w), N = t·h·w.

    A patch is 2 frames × 14 × 14 pixels × 3 colours = 1176 numbers. The four patches of a 2×2 window stand next to
    each other, so that the merger can later join them by a plain reshape. A last odd frame is repeated; a still
    picture is one frame, seen twice.
    """
    f, p, m = temporal_patch_size, patch_size, merge_size
    if missing := -len(frames) % f:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    T, channels, height, width = frames.shape
    t, h, w = T // f, height // p, width // p
    # every axis is split into (which patch, where inside it), the two spatial ones by window as well
    x = frames.reshape(t, f, channels, h // m, m, p, w // m, m, p)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/2, w/2, 2, 2 | 3, 2, 14, 14): which patch | its content
    return x.reshape(t * h * w, -1), (t, h, w)


def unpatchify(patches: Tensor, grid: tuple, patch_size=14, temporal_patch_size=2, merge_size=2) -> Tensor:
    """The inverse of `patchify`: patches (N, 1176) → frames (T, 3, height, width)."""
    (t, h, w), f, p, m = grid, temporal_patch_size, patch_size, merge_size
    x = patches.reshape(t, h // m, w // m, m, m, -1, f, p, p)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)  # (t, 2, 3, h/2, 2, 14, w/2, 2, 14)
    return x.reshape(t * f, -1, h * p, w * p)


@dataclass
class Qwen2VLImageProcessor:
    """Pictures and clips → the rows of `pixel_values`, each at its own size.

    `min_pixels` and `max_pixels` limit the *area* of a picture in pixels; one token is 28×28 of them. A clip has its
    own limits for a frame, and one for all its frames together. `resample`, of pictures, is "pillow" (bit-equal to
    transformers' PIL processor and qwen-vl-utils) or "torch" (bit-equal to its torchvision processor).
    """

    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    resample: str = "pillow"
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in 0..1
    image_std: tuple = (0.26862954, 0.26130258, 0.27577711)
    video_min_pixels: int = 128 * 28 * 28  # of a frame
    video_max_pixels: int = 768 * 28 * 28
    video_total_pixels: int = 24576 * 28 * 28  # of a clip, a pair of frames counted once

    def __post_init__(self):
        call_options_module.check_image_processor(self)

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides) -> Qwen2VLImageProcessor:
        """From a checkpoint's preprocessor_config.json; `overrides` (for example `max_pixels`) win over the file."""
        return cls(**weights_loader.processor_options(name, cls, overrides))

    def to_dict(self) -> dict:
        """The content of a preprocessor_config.json."""
        return weights_loader.processor_to_dict(self)

    def target_size(self, height: int, width: int, min_pixels=None, max_pixels=None) -> tuple[int, int]:
        """The (height, width) in pixels at which the tower will see a picture."""
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor, min_pixels or self.min_pixels, max_pixels or self.max_pixels)

    def frame_size(
        self, num_frames: int, height: int, width: int, min_pixels=None, max_pixels=None, total_pixels=None
    ) -> tuple[int, int]:
        """The same for the frames of a clip: the more there are, the smaller each (qwen-vl-utils' rule)."""
        low, total = min_pixels or self.video_min_pixels, total_pixels or self.video_total_pixels
        share = max(min(self.video_max_pixels, total / num_frames * self.temporal_patch_size), int(1.05 * low))
        return self.target_size(height, width, low, max_pixels or share)

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """The visual tokens of frames that already have the size at which the tower sees them; a picture is one."""
        pairs = math.ceil(num_frames / self.temporal_patch_size)
        return pairs * height * width // (self.patch_size * self.merge_size) ** 2

    def num_image_tokens(self, height: int, width: int, min_pixels=None, max_pixels=None) -> int:
        """What a picture costs in tokens, without touching a pixel (its two vision markers not counted)."""
        return self.num_tokens(1, *self.target_size(height, width, min_pixels, max_pixels))

    def num_video_tokens(self, num_frames: int, height: int, width: int, **limits) -> int:
        """What a clip costs: a pair of frames, or a last single one, as much as a picture of their size."""
        return self.num_tokens(num_frames, *self.frame_size(num_frames, height, width, **limits))

    def preprocess(self, images=None, videos=None, **options) -> BatchFeature:
        """Pictures (one or a list) → `pixel_values` (N, 1176) float32 and `image_grid_thw` (pictures, 3).

        Clips (one or a list) → `pixel_values_videos` and `video_grid_thw`. `options` as for `apply_chat_template`.
        """
        images, videos = messages.as_list(images), [videos] if messages.is_clip(videos) else messages.as_list(videos)
        items = messages.as_items("image", images) + messages.as_items("video", videos)
        return self.collect(items, call_options_module.call_options(options, text=False))

    __call__ = preprocess

    def collect(self, items: list[dict], options: dict) -> BatchFeature:
        """Media items of messages → their patches and grids, pictures and clips apart, each in their order."""
        inputs, names = BatchFeature(), {"image": "pixel_values", "video": "pixel_values_videos"}
        for kind, pixels in names.items():
            if found := [item for item in items if media_kind(item) == kind]:
                patches, grids = zip(*(item.get("patches") or self.media_patches(item, **options) for item in found))
                inputs |= {pixels: torch.cat(patches), f"{kind}_grid_thw": torch.tensor(grids)}  # (N, 1176), (found, 3)
        return inputs

    def media_patches(self, item: dict, **options) -> tuple[Tensor, tuple[int, int, int]]:
        """One media item → patches (N, 1176) and grid (t, h, w). The item's options win over the call's."""
        size, limits, total, sampling = messages.item_options(item, options)
        if media_kind(item) == "image":
            image = load_image(item_source(item))
            return self.patches_of([image], self.target_size(*(size or (image.height, image.width)), **limits))
        video = load_video(item_source(item), **sampling)
        if size:  # asked for: no budget changes it
            size = self.target_size(*size, **limits)
        else:
            size = self.frame_size(video.num_frames, video.height, video.width, **limits, total_pixels=total)
        return self.patches_of(video.frames(), size, resample="torch")  # clips have no "pillow" way, officially

    def patches_of(self, frames: Iterable, size: tuple[int, int], resample: str | None = None):
        """RGB pictures or frames → their patches at `size` (height, width) and grid. Frames are read pair by pair."""
        frames, patches = iter(frames), []
        while pair := list(islice(frames, self.temporal_patch_size)):
            pixels = torch.stack([self.pixels_of(frame, size, resample or self.resample) for frame in pair])
            rows, grid = patchify(pixels, self.patch_size, self.temporal_patch_size, self.merge_size)
            patches.append(rows)  # (h·w, 1176), of pixels (2 or 1, 3, height, width)
        return torch.cat(patches), (len(patches), *grid[1:])  # (t·h·w, 1176), (t, h, w)

    def pixels_of(self, frame, size: tuple[int, int], resample: str) -> Tensor:
        """One picture → normalised pixels (3, height, width). It is resized exactly once, here, on whole bytes."""
        mean, std = torch.tensor(self.image_mean)[:, None, None], torch.tensor(self.image_std)[:, None, None]
        if resample == "pillow":
            pixels = np.array(frame.resize((size[1], size[0]), Image.Resampling.BICUBIC))  # (height, width, 3) bytes
            return (torch.from_numpy(pixels).movedim(2, 0).float() / 255 - mean) / std
        pixels = torch.from_numpy(np.array(frame)).movedim(2, 0)[None]  # (1, 3, height, width) bytes
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)[0].float()  # (3, height, width)
        # torchvision's processor folds the 1/255 into mean and std instead; the last bit depends on it
        return (pixels - mean * 255) / (std * 255)


@dataclass
class Qwen2VLImageProcessorFast(Qwen2VLImageProcessor):
    """The same with the resampling of transformers' default ("fast") processor."""

    resample: str = "torch"


# ── 3 · Words: tokenizer, chat template, processor ────────────────────────────────────────────────────────────────
# Paper 2.2 and table 1 (the formats). Official: processing_qwen2_vl.py and the checkpoint's chat_template.json.


class Special(str):
    """A piece of a prompt that *we* wrote as a control token. The same letters typed by a user are a plain str."""


class Qwen2VLTokenizer:
    """Byte-level BPE from a checkpoint's tokenizer.json. A text stays text: control tokens come as `Special` only."""

    def __init__(self, file: str | Path):
        file = weights_loader.plain_file(file, weights_loader.MAX_TEXT_BYTES)
        try:
            self.bpe = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{file} is not a readable tokenizer.json ({error}).") from None
        self.bpe.encode_special_tokens = True  # "<|im_end|>" in a text is ten characters, not the end of a turn
        self.special_ids = {t.content: i for i, t in self.bpe.get_added_tokens_decoder().items() if t.special}
        messages.check_control_tokens(file, self.special_ids)
        self.pad_token_id = self.special_ids["<|endoftext|>"]

    def split(self, text: str) -> list[str]:
        """A text you trust → its pieces, with every special token in it marked as such."""
        pieces = re.split("(" + "|".join(map(re.escape, self.special_ids)) + ")", text)
        return [Special(piece) if piece in self.special_ids else piece for piece in pieces]

    def encode(self, pieces: list[str] | str) -> list[int]:
        """Pieces → ids. Neighbouring texts are joined first, since BPE may merge across their border."""
        ids = []
        for kind, run in groupby([pieces] if isinstance(pieces, str) else pieces, type):
            if kind is Special:
                ids += [self.special_ids[piece] for piece in run]
            else:
                ids += self.bpe.encode("".join(run), add_special_tokens=False).ids
        return ids

    def decode(self, ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False) -> str:
        """Ids → text. (The official call's `clean_up_tokenization_spaces` is accepted; BPE has no use for it.)"""
        return self.bpe.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def batch_decode(self, rows, **options) -> list[str]:
        """One text for each row of ids."""
        return [self.decode(row, **options) for row in rows]


def render_chat(conversation: list, add_generation_prompt: bool = False, add_vision_id: bool = False) -> list[str]:
    """Messages → the pieces of the prompt; `"".join` of them is the official template's rendering, to the letter."""
    start, end = Special("<|im_start|>"), Special("<|im_end|>")
    label, counts = {"image": "Picture", "video": "Video"}, {"image": 0, "video": 0}
    pieces = []
    if conversation and conversation[0]["role"] != "system":
        conversation = [{"role": "system", "content": "You are a helpful assistant."}, *conversation]
    for message in conversation:
        pieces += [start, f"{message['role']}\n"]
        content = message["content"]
        for item in [{"text": content}] if isinstance(content, str) else content:
            if kind := media_kind(item):
                counts[kind] += 1
                pieces += [f"{label[kind]} {counts[kind]}: "] if add_vision_id else []
                pieces += [Special("<|vision_start|>"), Special(f"<|{kind}_pad|>"), Special("<|vision_end|>")]
            else:
                pieces += [item.get("text", "")]
        pieces += [end, "\n"]
    return pieces + ([start, "assistant\n"] if add_generation_prompt else [])


@dataclass
class Qwen2VLProcessor:
    """Conversations with pictures → the tensors that the model takes, and ids → text."""

    image_processor: Qwen2VLImageProcessor
    tokenizer: Qwen2VLTokenizer
    chat_template: str | None = None

    def __post_init__(self):
        self.decode, self.batch_decode = self.tokenizer.decode, self.tokenizer.batch_decode
        self.media_patches = self.image_processor.media_patches

    @classmethod
    def from_pretrained(cls, name: str | Path, **image_options) -> Qwen2VLProcessor:
        """From a folder, "tiny" or a Hub id; options such as `max_pixels` win over the checkpoint's."""
        folder = weights_loader.find_checkpoint(name)
        image_processor = Qwen2VLImageProcessor.from_pretrained(folder, **image_options)
        tokenizer = Qwen2VLTokenizer(folder / "tokenizer.json")
        return cls(image_processor, tokenizer, weights_loader.read_chat_template(folder))

    def apply_chat_template(
        self,
        conversation,
        tokenize=False,
        add_generation_prompt=False,
        add_vision_id=False,
        return_dict=False,
        **options,
    ):
        """One conversation or a list of them → the prompt's text (`tokenize=False`), its ids, or the model's inputs.

        A picture is what stands in an item's `image` (a path, URL, PIL picture, array …), a clip what stands in its
        `video`. `options`, for all media or in an item for that one: `min_pixels`, `max_pixels`, `total_pixels`,
        `resized_height` with `resized_width` (pixels); `fps` (or `video_fps`) or `nframes`, `video_start`, `video_end`
        (seconds), `min_frames`, `max_frames`. For the call: `padding`, `return_tensors`, `return_mm_token_type_ids`;
        qwen2vl_io/options.py has what else the official call knows. Text is safe: special tokens in it stay text.
        """
        if "<|im_start|>" not in (self.chat_template or ""):
            raise ValueError(
                "No chat template in this checkpoint (a base model?): write a prompt for processor(text=…)."
            )
        options, (conversations, single) = (
            call_options_module.call_options(options),
            messages.as_conversations(conversation),
        )
        prompts = [render_chat(messages, add_generation_prompt, add_vision_id) for messages in conversations]
        if not tokenize:
            texts = ["".join(pieces) for pieces in prompts]
            return texts[0] if single else texts
        lists = [m["content"] for messages in conversations for m in messages if not isinstance(m["content"], str)]
        inputs = self.assemble(prompts, [item for content in lists for item in content if media_kind(item)], options)
        return inputs if return_dict else inputs["input_ids"]

    def __call__(self, images=None, text=None, videos=None, **options) -> BatchFeature:
        """Rendered prompts (str or list) and their pictures and clips, in order → the model's inputs.

        Special tokens in `text` count as such, whoever wrote them; for text you do not trust, use
        `apply_chat_template(…, tokenize=True)`.
        """
        if text is None:
            return self.image_processor.preprocess(images, videos, **options)
        prompts = [self.tokenizer.split(messages.check_text(prompt)) for prompt in messages.as_list(text)]
        items = messages.flatten_media("image", images, prompts) + messages.flatten_media("video", videos, prompts)
        return self.assemble(prompts, items, call_options_module.call_options(options))

    def assemble(self, prompts: list[list[str]], items: list[dict], options: dict) -> BatchFeature:
        """Pieces of B prompts and their media items → padded ids, one <|image_pad|> or <|video_pad|> a 28×28 cell."""
        inputs, ids_of = self.image_processor.collect(items, options), self.tokenizer.special_ids
        prompts = [self.tokenizer.encode(pieces) for pieces in prompts]
        for kind in ("image", "video"):
            pad, grids = ids_of[f"<|{kind}_pad|>"], inputs.get(f"{kind}_grid_thw", torch.empty(0, 3))
            costs = iter((grids.prod(1) // self.image_processor.merge_size**2).long().tolist())  # tokens of each
            prompts = [[i for id in ids for i in [id] * (next(costs) if id == pad else 1)] for ids in prompts]
        longest = max(map(len, prompts), default=0)
        if options.get("padding") in (False, "do_not_pad") and any(len(ids) != longest for ids in prompts):
            raise ValueError("Prompts of different lengths need padding=True to become one tensor.")
        # On the left, whatever the tokenizer's file says: new tokens must follow the prompt, not its padding.
        padded = [[self.tokenizer.pad_token_id] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        ids, mask = torch.tensor(padded).long(), torch.tensor(mask).long()  # (B, S)
        inputs = BatchFeature(input_ids=ids, attention_mask=mask, **inputs)
        if options.get("return_mm_token_type_ids"):  # (B, S): 0 is a word, 1 a picture, 2 a clip
            inputs["mm_token_type_ids"] = (ids == ids_of["<|image_pad|>"]) + 2 * (ids == ids_of["<|video_pad|>"])
        return inputs


# ── 4 · Rotary positions: 2-D in the tower, M-RoPE in the decoder ─────────────────────────────────────────────────
# Paper 2.1 "Multimodal Rotary Position Embedding" and figure 3. Official: get_rope_index in modeling_qwen2_vl.py.


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of the last axis by its angle. cos and sin broadcast to x (…, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (…, D/2) → cos and sin (…, D), *tiled*: the second half of the channels repeats the first's angles."""
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def inverse_frequencies(pairs: int, base: float, device) -> Tensor:
    """Radians per position for each rotary pair: 1, then ever slower, down to about 1/base."""
    return base ** -(torch.arange(pairs, dtype=torch.float32, device=device) / pairs)


def vision_angles(grids: list[list[int]], head_dim: int, merge_size: int, device) -> Tensor:
    """Angles (N, D/2) of the tower's 2-D rotary: half of the pairs turn with a patch's row, half with its column."""
    turn, m, angles = inverse_frequencies(head_dim // 4, 10000.0, device), merge_size, []  # turn: (D/4,)
    for t, h, w in grids:
        places = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))  # (h·w, 2)
        # patchify lists patches window by window, so their (row, column) go through the same reordering
        places = places.view(h // m, m, w // m, m, 2).transpose(1, 2).reshape(-1, 2)  # (h·w, 2)
        picture = (places[:, :, None] * turn).flatten(1)  # (h·w, 2, D/4) → (h·w, D/2): the row's angles, the column's
        angles.append(picture.repeat(t, 1))  # all frame pairs have the same rows and columns: (t·h·w, D/2)
    return torch.cat(angles)


def mrope_angles(position_ids: Tensor, config: Qwen2VLTextConfig) -> Tensor:
    """Positions (3, B, S) → angles (B, S, D/2).

    *Chunked*: with mrope_section [16, 24, 24] the fastest 16 pairs turn with t, the next 24 with h, the last 24 with
    w. Where the three positions are equal (all text) this is ordinary RoPE.
    """
    turn = inverse_frequencies(config.head_dim // 2, config.rope_theta, position_ids.device)  # (D/2,)
    angles = position_ids[..., None].float() * turn  # (3, B, S, D/2)
    if config.mrope_section is None:
        return angles[0]
    chunks = angles.split(list(config.mrope_section), dim=-1)
    return torch.cat([chunk[axis] for axis, chunk in enumerate(chunks)], dim=-1)


def get_rope_index(
    config: Qwen2VLConfig,
    input_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where each token stands in time, height and width: position_ids (3, B, S) and rope_deltas (B, 1).

    Text counts on, the same on all three axes. A picture of t×h×w cells that starts at p has t = p + frame pair,
    h = p + row, w = p + column; the text after it resumes at the largest position so far + 1. So a picture of
    1000 tokens moves the text on by about 32 only. `rope_deltas` is that saving, (largest position + 1) − (number of
    real tokens), and is what decoding adds to a token's index. Padding is skipped.
    """
    merge, position_ids = config.vision_config.spatial_merge_size, torch.zeros(3, *input_ids.shape, dtype=torch.long)
    rope_deltas = torch.zeros(len(input_ids), 1, dtype=torch.long)
    grids = {
        config.image_token_id: iter(() if image_grid_thw is None else image_grid_thw.tolist()),
        config.video_token_id: iter(() if video_grid_thw is None else video_grid_thw.tolist()),
    }
    if config.text_config.mrope_section is None:
        grids = {}  # plain RoPE: visual tokens are numbered like words
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    for row, (ids, real) in enumerate(zip(input_ids.cpu(), mask.cpu().bool())):
        ids, blocks, start = ids[real].tolist(), [], 0  # start: the next free position
        for kind, run in groupby(ids, lambda id: id if id in grids else None):
            left = len(list(run))  # tokens of this run without a position
            while left > 0:  # two pictures may stand side by side
                if kind is None:
                    block = torch.arange(left).expand(3, -1)  # (3, left)
                elif grid := next(grids[kind], None):
                    axes = torch.arange(grid[0]), torch.arange(grid[1] // merge), torch.arange(grid[2] // merge)
                    block = torch.cartesian_prod(*axes).reshape(-1, 3).T  # (3, t·h·w), in cells of 28 pixels
                else:
                    raise ValueError(f"Row {row} has visual tokens (id {kind}) for which there is no grid_thw.")
                blocks.append(block + start)
                start, left = int(blocks[-1].max()) + 1, left - block.shape[1]
        if blocks:
            position_ids[:, row, real] = torch.cat(blocks, dim=1)
            rope_deltas[row] = start - len(ids)
    return position_ids.to(input_ids.device), rope_deltas.to(input_ids.device)


# ── 5 · Attention ─────────────────────────────────────────────────────────────────────────────────────────────────
# One function for tower and decoder. `sdpa` lets PyTorch choose the kernel and gives it no reason to refuse the flash
# kernel on CUDA: never a mask tensor. `flash` insists on that kernel; `eager` writes the formula out.


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, implementation: str, maps: list | None = None) -> Tensor:
    """softmax(q·kᵀ / √D)·v: q (B, H, Q, D), k and v (B, Hkv, S, D) → (B, H, Q, D).

    Causal means by place in the sequence: the Q queries are the last Q of the S tokens, and a query sees itself and
    what came before. (Not by M-RoPE position: those of a picture repeat.) `eager` adds its softmax to `maps`.
    """
    (B, H, Q, D), (Hkv, S) = q.shape, k.shape[1:3]
    if implementation == "eager":
        k, v = (x.repeat_interleave(H // Hkv, dim=1) for x in (k, v))  # (B, H, S, D)
        scores = q @ k.transpose(2, 3) / math.sqrt(D)  # (B, H, Q, S)
        if causal:
            future = torch.ones(Q, S, dtype=torch.bool, device=q.device).triu(S - Q + 1)
            scores = scores.masked_fill(future, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        if maps is not None:
            maps.append(weights)
        return weights @ v
    if implementation == "flash" and (problem := call_options_module.flash_problem(q.device.type, q.dtype, D)):
        raise ValueError(f"The flash kernel was demanded but {problem}; use attn_implementation='sdpa'.")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if implementation == "flash" else nullcontext():
        if Q == 1:  # nothing to hide, so the G heads of a group can pose as G queries of one head: keys are read once
            return F.scaled_dot_product_attention(q.reshape(B, Hkv, H // Hkv, D), k, v).reshape(B, H, 1, D)
        if Q == S or not causal:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=H != Hkv)
        # A later chat turn: Q new tokens behind S − Q cached ones. To CUDA's kernels this mask is a flag, not a tensor.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(Q, S), enable_gqa=H != Hkv)


def attend_unpadded(q: Tensor, k: Tensor, v: Tensor, pads: list[int], implementation: str, maps=None) -> Tensor:
    """Causal `attend` in which row b's first `pads[b]` keys are padding: each row runs on its real tokens alone."""
    if not any(pads):
        return attend(q, k, v, True, implementation, maps)
    Q, S, rows, row_maps = q.shape[2], k.shape[2], [], []
    for b, pad in enumerate(pads):
        skip = max(0, Q - (S - pad))  # of this row's queries, how many are padding themselves
        if skip == Q:  # nothing but padding
            rows.append(torch.zeros_like(q[b : b + 1]))
            row_maps.append(q.new_zeros(1, q.shape[1], 0, S - pad))
        else:
            parts = q[b : b + 1, :, skip:], k[b : b + 1, :, pad:], v[b : b + 1, :, pad:]
            rows.append(F.pad(attend(*parts, True, implementation, row_maps), (0, 0, skip, 0)))  # (1, H, Q, D)
    if maps is not None:  # zeros where the padding was, here too
        maps.append(torch.cat([F.pad(m, (S - m.shape[3], 0, Q - m.shape[2], 0)) for m in row_maps]))  # (B, H, Q, S)
    return torch.cat(rows)


# ── 6 · Vision tower and merger ───────────────────────────────────────────────────────────────────────────────────
# Paper 2.1. Official: Qwen2VisionTransformerPretrainedModel in modeling_qwen2_vl.py. Module names are the files' keys.


class VisionAttention(nn.Module):
    """Full attention among the patches of one picture (or one pair of frames), and no others."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: list[int], implementation: str) -> Tensor:
        N, C = x.shape
        q, k, v = self.qkv(x).view(N, 3, self.num_heads, -1).permute(1, 2, 0, 3)  # 3 × (H, N, D)
        q, k = (rotate(part.float(), cos, sin).to(x.dtype) for part in (q, k))
        outputs, first = [], 0
        for L, run in groupby(segments):  # neighbours of equal length share one call; there is never an N×N mask
            n = len(list(run))
            parts = [part[:, first : first + n * L].unflatten(1, (n, L)).transpose(0, 1) for part in (q, k, v)]
            y = attend(*parts, causal=False, implementation=implementation)  # (n, H, L, D)
            outputs.append(y.transpose(1, 2).reshape(n * L, C))
            first += n * L
        return self.proj(torch.cat(outputs))  # (N, C)


class VisionMLP(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, int(config.embed_dim * config.mlp_ratio))
        self.fc2 = nn.Linear(int(config.embed_dim * config.mlp_ratio), config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # "quick GELU"


class VisionBlock(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, *where) -> Tensor:
        x = x + self.attn(self.norm1(x), *where)  # (N, C)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A Conv3d whose stride is its kernel sees each patch once: that is one matrix product with the reshaped kernel."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, kernel, stride=kernel, bias=False)  # keeps the released 5-D weight

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1))  # (N, 1176) → (N, C)


class PatchMerger(nn.Module):
    """2×2 neighbouring patches → one token as wide as the decoder: a fourfold shorter sequence."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.window = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=1e-6)
        last = nn.Linear(self.window, config.hidden_size)
        self.mlp = nn.Sequential(nn.Linear(self.window, self.window), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.window))  # (N, C) → (M, 4·C) → (M, C of the decoder)


class VisionTower(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, implementation: str = "sdpa") -> Tensor:
        """Patches (N, 1176) of any number of pictures and clips with their grids (·, 3) → visual tokens (M, C)."""
        grids = grid_thw.tolist()
        x = self.patch_embed(pixel_values)  # (N, C)
        head_dim = self.config.embed_dim // self.config.num_heads
        angles = vision_angles(grids, head_dim, self.config.spatial_merge_size, x.device)  # (N, D/2)
        cos, sin = cos_sin(angles)  # (N, D), float32
        segments = [h * w for t, h, w in grids for _ in range(t)]
        for block in self.blocks:
            x = block(x, cos, sin, segments, implementation)
        return self.merger(x)


# ── 7 · Decoder ───────────────────────────────────────────────────────────────────────────────────────────────────
# Paper 2, Qwen2 technical report 2.2.1 (https://arxiv.org/abs/2407.10671). Official: Qwen2VLTextModel.


class KVCache:
    """Keys and values of the tokens seen so far, written in place; and all else that a half-done answer must remember.

    It lives with the *generation*, never on the model: two conversations on one model cannot disturb each other.
    `length` tokens are filled; `pads` (B) counts each row's left padding; `next_position` (B, 1) is the M-RoPE
    position that the next token takes; `token_ids` (B, length) is what was read (where there is padding, the last id).
    """

    def __init__(self, config: Qwen2VLTextConfig, batch_size: int, capacity: int, device=None, dtype=None):
        shape = (config.num_hidden_layers, 2, batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.data = torch.empty(shape, device=device, dtype=dtype)  # (layers, k and v, B, Hkv, capacity, D)
        self.length = 0
        self.pads = [0] * batch_size
        self.next_position = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self.token_ids = torch.zeros(batch_size, 0, dtype=torch.long, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new k and v (B, Hkv, Q, D) of one layer; return all so far, as views (B, Hkv, length + Q, D)."""
        end = self.length + k.shape[2]
        if end > self.data.shape[4]:  # a longer chat than planned: double the room
            self.data = torch.cat([self.data, self.data.new_empty(*self.data.shape[:4], end, k.shape[3])], dim=4)
        for i, new in enumerate((k, v)):
            self.data[layer, i, :, :, self.length : end] = new
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # the mean of squares overflows in half precision
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: G query heads share the keys and values of one head. Biases on q, k, v but not on o."""

    def __init__(self, config: Qwen2VLTextConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, pads: list[int], *how) -> Tensor:
        B, Q, _ = x.shape
        q, k, v = (
            proj(x).view(B, Q, -1, self.head_dim).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, Q, D), (B, Hkv, Q, D), (B, Hkv, Q, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, Hkv, S, D)
        y = attend_unpadded(q, k, v, pads, *how)  # (B, H, Q, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, Q, -1))  # (B, Q, C)


class MLP(nn.Module):
    """SwiGLU: one half of the wide layer gates the other."""

    def __init__(self, config: Qwen2VLTextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen2VLTextConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, *context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *context)  # (B, Q, C)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Qwen2VLTextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, position_ids: Tensor, *context, states: list | None = None) -> Tensor:
        """Embeddings (B, Q, C) at positions (3, B, Q) → hidden states (B, Q, C); `states` collects all on the way."""
        cos, sin = cos_sin(mrope_angles(position_ids, self.config))  # (B, Q, D), angles always in float32
        cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, Q, D): the same for every head
        for layer in self.layers:
            if states is not None:
                states.append(x)
            x = layer(x, cos, sin, *context)
        return self.norm(x)


def left_padding(attention_mask: Tensor | None, rows: int) -> list[int]:
    """How many tokens of padding each row starts with. Padding on the right needs nothing: it is in the future."""
    if attention_mask is None:
        return [0] * rows
    mask = attention_mask.bool()
    starts_again = mask[:, 1:] & ~mask[:, :-1]  # a one after a zero
    if (starts_again.sum(1) + mask[:, 0] > 1).any():
        raise ValueError("attention_mask has a hole: a row must be one run of ones, padded on its left or right.")
    return torch.where(mask.any(1), mask.int().argmax(1), mask.shape[1]).tolist()


def choose(logits: Tensor, seen: Tensor, settings: dict, generator: torch.Generator | None = None) -> Tensor:
    """The next id of each row, (B,), from its logits (B, V), given the ids `seen` so far (B, S), the prompt's too."""
    if (penalty := settings["repetition_penalty"]) != 1:
        old = logits.gather(1, seen)
        logits = logits.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))
    if not settings["do_sample"]:
        return logits.argmax(-1)
    logits = logits / settings["temperature"]
    if 0 < settings["top_k"] < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(settings["top_k"]).values[:, -1:], -torch.inf)
    if settings["top_p"] < 1:  # keep the smallest set of likeliest ids that together reach top_p
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        drop = probabilities.cumsum(-1) - probabilities >= settings["top_p"]  # what came before was already enough
        logits = logits.masked_fill(drop.gather(1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


# ── 8 · The whole model ───────────────────────────────────────────────────────────────────────────────────────────
# Official: Qwen2VLModel and Qwen2VLForConditionalGeneration.

ATTENTION_NAMES = {"eager": "eager", "sdpa": "sdpa", "flash": "flash", "flash_attention_2": "flash"}


@dataclass
class Qwen2VLOutput:
    """What a forward pass gives; fields that were not asked for are None."""

    last_hidden_state: Tensor | None = None  # (B, Q, C)
    logits: Tensor | None = None  # (B, Q or logits_to_keep, V)
    loss: Tensor | None = None  # ()
    cache: KVCache | None = None
    position_ids: Tensor | None = None  # (3, B, Q): time, height, width
    hidden_states: tuple | None = None  # (B, Q, C) each: the embeddings, then what each layer makes; normed at the end
    attentions: tuple | None = None  # (B, H, Q, S) for each layer
    past_key_values = property(lambda self: self.cache)  # the name until transformers 5.23


class Qwen2VLModel(nn.Module):
    """Tower and decoder, joined: visual tokens take the places of the <|image_pad|> and <|video_pad|> embeddings."""

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa"):
        super().__init__()
        if attn_implementation not in ATTENTION_NAMES:
            raise ValueError(f"attn_implementation={attn_implementation!r} is not one of {', '.join(ATTENTION_NAMES)}.")
        self.config = config
        self.attn_implementation = ATTENTION_NAMES[attn_implementation]
        self.visual = VisionTower(config.vision_config)
        self.model = Decoder(config.text_config)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options):
        """A model with a checkpoint's weights; options as for `weights_loader.load_model`."""
        attn_implementation = options.pop("attn_implementation", "sdpa")
        device, dtype = weights_loader.placement(**options)
        folder = weights_loader.find_checkpoint(name, weights=True)
        config = Qwen2VLConfig.from_pretrained(folder)
        with torch.device("meta"):  # shapes without memory
            model = cls(config, attn_implementation)
        weights_loader.put_weights(model, folder, device, dtype)
        return model.eval()

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @call_options_module.renamed(past_key_values="cache")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        cache: KVCache | None = None,
        mm_token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Qwen2VLOutput:
        """Ids (B, Q) and media → `last_hidden_state` (B, Q, C).

        `attention_mask` (B, Q) marks padding with 0, on the left or on the right. With a `cache` the ids continue what
        it holds (text or media), and need no mask. `mm_token_type_ids`, which the official processor adds, says nothing
        that the ids do not; it is not used. `output_attentions` writes the decoder's attention out (eager).
        """
        media = (
            ("image", input_ids == self.config.image_token_id, pixel_values, image_grid_thw),
            ("video", input_ids == self.config.video_token_id, pixel_values_videos, video_grid_thw),
        )
        continues = cache is not None and cache.length > 0
        decoding = continues and input_ids.shape[1] == 1  # the id just chosen: a word, even if it is <|image_pad|>
        for item in () if decoding else media:  # all counts are checked before the expensive tower runs
            messages.check_placeholders(*item, self.config.vision_config.spatial_merge_size)
        x = self.model.embed_tokens(input_ids)  # (B, Q, C)
        for _, places, pixels, grid_thw in media:
            if pixels is not None:
                seen = self.visual(pixels, grid_thw, self.attn_implementation)  # (M, C)
                x = x.masked_scatter(places[..., None], seen.to(x.dtype))  # in place of the placeholders' embeddings
        if continues and attention_mask is not None and not attention_mask[:, -input_ids.shape[1] :].all():
            raise ValueError("A later turn cannot be padded: only the first one, which the cache knows about, can.")
        mask = None if continues else attention_mask
        pads = cache.pads if continues else left_padding(mask, len(input_ids))
        if position_ids is None:
            if decoding:
                position_ids, rope_deltas = input_ids.new_zeros(3, *input_ids.shape), 0  # (3, B, 1)
            else:
                position_ids, rope_deltas = get_rope_index(self.config, input_ids, image_grid_thw, video_grid_thw, mask)
            if cache is not None:
                position_ids = position_ids + cache.next_position
                real = input_ids.shape[1] if mask is None else mask.sum(1, keepdim=True)  # tokens without padding
                cache.next_position = cache.next_position + real + rope_deltas
        states, maps = ([] if wanted else None for wanted in (output_hidden_states, output_attentions))
        implementation = "eager" if output_attentions else self.attn_implementation
        x = self.model(x, position_ids, cache, pads, implementation, maps, states=states)
        if cache is not None:
            cache.pads = pads
            cache.length += input_ids.shape[1]
            read = input_ids if mask is None else torch.where(mask.bool(), input_ids, input_ids[:, -1:])  # no padding
            cache.token_ids = torch.cat([cache.token_ids, read], dim=1)
        states, maps = states and (*states, x), maps and tuple(maps)
        return Qwen2VLOutput(x, None, None, cache, position_ids, hidden_states=states, attentions=maps)

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """What the decoder is given for each picture: visual tokens (M, C), row by row."""
        seen = self.visual(pixel_values, image_grid_thw, self.attn_implementation)  # of all pictures: (M, C)
        return seen.split((image_grid_thw.prod(1) // self.config.vision_config.spatial_merge_size**2).tolist())

    get_video_features = get_image_features  # a clip is pictures one after the other, as far as the tower can tell


class Qwen2VLForConditionalGeneration(Qwen2VLModel):
    """The model with its output matrix: logits, loss, generation."""

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa"):
        super().__init__(config, attn_implementation)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.generation_config: dict = {}  # what the checkpoint's generation_config.json says

    def forward(self, input_ids: Tensor, *args, labels=None, logits_to_keep=0, **kwargs) -> Qwen2VLOutput:
        """As `Qwen2VLModel.forward`, plus logits (B, Q, V) and, with `labels` (B, Q), the loss.

        `logits_to_keep`: only the last so many places (int; 0: all), or the places a tensor names. `labels` are the
        ids themselves: they are shifted here, and places with −100 do not count.
        """
        output = super().forward(input_ids, *args, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.lm_head(output.last_hidden_state[:, keep])  # (B, kept, V); slice(-0, None) keeps all
        if labels is not None:
            # the token at place i is predicted at place i − 1
            output.loss = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return output

    # ── 9 · Generation ──────────────────────────────────────────────────────────────────────────────────────────
    # Official: GenerationMixin. The released generation_config.json (temperature 0.01, top_k 1) means: greedy.

    def sampling_settings(self, **asked) -> dict:
        """The settings in force: what is asked for, else the checkpoint's, else neutral values (see `choose`)."""
        return call_options_module.sampling_settings(self.generation_config, **asked)

    def end_token_ids(self, eos_token_id: int | list[int] | None = None) -> list[int]:
        """The ids that end an answer: those asked for, else those of the checkpoint's generation_config.json."""
        ids = self.generation_config.get("eos_token_id", []) if eos_token_id is None else eos_token_id
        return [ids] if isinstance(ids, int) else list(ids)

    @call_options_module.renamed(past_key_values="cache")
    @torch.no_grad()
    def generate_steps(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        eos_token_id: int | list[int] | None = None,
        suppress_tokens: list[int] | None = None,
        seed: int | None = None,
        cache: KVCache | None = None,
        **inputs,
    ):
        """Yield the next id of each row, (B,), until every row has ended or `max_new_tokens` are out.

        A row that has ended yields padding. `suppress_tokens`: ids never written; by default the vision tokens, which
        would announce a picture that is not there ([] allows all). `seed` makes sampling repeatable. `inputs`: what
        the processor gave, and `do_sample`, `temperature`, `top_p`, `top_k`, `repetition_penalty` (see `choose`).
        """
        settings = self.sampling_settings(**{name: inputs.pop(name, None) for name in call_options_module.NEUTRAL})
        inputs = call_options_module.generation_inputs(inputs)
        eos = torch.tensor(self.end_token_ids(eos_token_id), dtype=torch.long, device=self.device)
        pad = self.generation_config.get("pad_token_id", int(eos[0]) if len(eos) else 0)
        if suppress_tokens is None:
            suppress_tokens = list(range(self.config.vision_start_token_id, self.config.video_token_id + 1))
        (B, Q), mask = input_ids.shape, inputs.get("attention_mask")
        if mask is not None and (mask.any(1) & (mask[:, -1] == 0)).any():
            raise ValueError("To generate, pad the prompts on the left: the new tokens follow the last place.")
        if cache is None:
            cache = KVCache(self.config.text_config, B, Q + max_new_tokens, self.device, self.dtype)
        if cache.length + Q + max_new_tokens > (limit := self.config.text_config.max_position_embeddings):
            sizes = f"{cache.length + Q} tokens and {max_new_tokens} new ones do not fit the model's context of {limit}"
            raise ValueError(f"{sizes}; lower max_pixels or max_new_tokens, or start anew.")
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        ended = torch.zeros(B, dtype=torch.bool, device=self.device)
        for _ in range(max_new_tokens):
            # the whole prompt first, then one id at a time; of the prompt's logits only the last are ever made
            logits = self(input_ids, **inputs, cache=cache, logits_to_keep=1).logits[:, -1].float()  # (B, V)
            if not logits.isfinite().all():
                raise ValueError(f"The logits are not finite in {self.dtype}; load the model in bfloat16 or float32.")
            logits[:, suppress_tokens] = -torch.inf
            next_ids = choose(logits, cache.token_ids, settings, generator).masked_fill(ended, pad)  # (B,)
            yield next_ids
            ended |= torch.isin(next_ids, eos)
            if ended.all():
                return
            input_ids, inputs = next_ids[:, None], {}

    def generate(self, input_ids: Tensor, **options) -> Tensor:
        """The prompt and its continuation, (B, S + new); options as for `generate_steps`."""
        return torch.cat([input_ids, *(ids[:, None] for ids in self.generate_steps(input_ids, **options))], dim=1)

    def stream(self, tokenizer: Qwen2VLTokenizer, input_ids: Tensor, skip_special_tokens: bool = True, **options):
        """Yield the answer to one prompt (B = 1) as pieces of text, as soon as they are whole characters."""
        ids, shown = [], 0
        for next_id in self.generate_steps(input_ids, **options):
            ids.append(int(next_id[0]))
            text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
            # one emoji can be several tokens; until the last of its bytes is there it decodes to "�"
            if not text.endswith("�"):
                yield text[shown:]
                shown = len(text)
        yield tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)[shown:]
