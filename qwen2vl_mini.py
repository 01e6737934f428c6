"""Qwen2-VL from scratch, in one file: pixels → patches → vision tower → merger → M-RoPE → decoder → text.

Read it from top to bottom. Each section opens with what comes in, what goes out, and where the paper and the
official code say the same:
  paper     Wang et al. 2024, "Qwen2-VL", https://arxiv.org/abs/2409.12191
  official  https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_vl

One letter stands for one dimension, everywhere in this file:
  B  rows of a batch (prompts)            N  patches of 14×14 pixels, of all pictures of a call
  S  tokens of a sequence                 M  merged patches = visual tokens, N / 4 (28×28 pixels)
  Q  queries, the tokens of a call, ≤ S   L  patches of one attention segment (a picture, or a pair of frames)
  C  channels of a hidden state           T  frames;  t, h, w  the patch grid: frame pairs, rows, columns
  H  attention heads, Hkv of keys/values  D  channels of one head (head_dim)
  V  vocabulary                           G  query heads that share one key/value head, H / Hkv

Run it:  python qwen2vl_mini.py --image assets/scene.png --prompt "Describe this image."
"""

from __future__ import annotations

if __name__ == "__main__":  # the command line; it starts before torch, whose import takes seconds
    from qwen2vl_cli.__main__ import main

    raise SystemExit(main())

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import weights_loader
from qwen2vl_io import chat_templates, limits, messages, official_model, official_tokenizer, options
from qwen2vl_io.boxes import draw_boxes, parse_boxes  # noqa: F401  (users import these two from here)
from qwen2vl_io.generation_config import GenerationSettings
from qwen2vl_io.messages import BatchFeature, MediaReader, media_kind, process_vision_info  # noqa: F401
from qwen2vl_io.official_config import (
    OfficialTextConfig,
    OfficialVisionConfig,
    OfficialWholeConfig,
    takes_official_names,
)
from qwen2vl_io.official_processor import OfficialProcessor

# ── 1 · Configurations ──────────────────────────────────────────────────────────────────────────────────────
# In: the numbers of a checkpoint's config.json. Out: three dataclasses, one for each half of the model and
# one for both. The defaults are those of the 2B model.
# Paper: table 1. Official: configuration_qwen2_vl.py.


@takes_official_names
@dataclass
class Qwen2VLVisionConfig(OfficialVisionConfig):
    """The vision tower, the same 665 M parameters in every released model."""

    depth: int = 32
    embed_dim: int = 1280  # C of the tower
    num_heads: int = 16
    mlp_ratio: float = 4
    hidden_size: int = 1536  # C of the *decoder*: the width of the merger's output
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # 2×2 patches become one token: 28×28 pixels


@takes_official_names
@dataclass
class Qwen2VLTextConfig(OfficialTextConfig):
    """The decoder: Qwen2 with M-RoPE."""

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: list[int] | None = field(default_factory=lambda: [16, 24, 24])  # rotary pairs for t, h, w
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True  # the output matrix is the input embedding

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@takes_official_names
@dataclass
class Qwen2VLConfig(OfficialWholeConfig):
    """Both halves, and the ids of the tokens that stand for pictures.

    `from_dict` and `to_dict` (in qwen2vl_io/official_config.py) read and write the content of a config.json.
    """

    text_config: Qwen2VLTextConfig = field(default_factory=Qwen2VLTextConfig)
    vision_config: Qwen2VLVisionConfig = field(default_factory=Qwen2VLVisionConfig)
    image_token_id: int = 151655  # <|image_pad|>
    video_token_id: int = 151656  # <|video_pad|>
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653

    from_pretrained = classmethod(weights_loader.load_config)  # from "tiny", a folder, a file or a Hub id


# ── 2 · Pixels → patches ────────────────────────────────────────────────────────────────────────────────────
# In: pictures of any size. Out: rows of 1176 numbers, one a patch, and the grid (t, h, w) they came from. A
# picture keeps its shape and costs as many tokens as it has cells of 28×28 pixels: naive dynamic resolution.
# Three functions lead there; call them one after the other and print what each gives:
#     size = smart_resize(image.height, image.width)        # 1: (height, width), multiples of 28
#     pixels = image_processor.pixels_of(image, size)       # 2: (3, height, width), resized and normalised
#     patches, grid = patchify(pixels[None])                # 3: (N, 1176) and (t, h, w)
# Paper 2.1. Official: image_processing_pil_qwen2_vl.py and image_processing_qwen2_vl.py.

MIN_PIXELS = limits.Default(4 * 28 * 28)  # if no file says one; defaults give way to a user's limits
MAX_PIXELS = limits.Default(1280 * 28 * 28)


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size to resize a picture to: both sides multiples of `factor`, the area within the limits."""
    min_pixels, max_pixels = limits.checked(height, width, min_pixels, max_pixels)  # nothing over 200:1

    # Python's round() goes to the even neighbour (70 / 28 = 2.5 → 2), C's does not: other ports differ here.
    # Under 14 it gives 0, and both sides grow below. (qwen-vl-utils takes 28: 5×113 → 28×112, not 28×280.)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor

    # Too large or too small an area: scale both sides by the same number, so that the shape is kept.
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor

    return limits.checked_size(new_height, new_width)


def patchify(
    frames: Tensor, patch_size: int = 14, temporal_patch_size: int = 2, merge_size: int = 2
) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames (T, 3, height, width) → patches (N, 1176) and their grid (t, h, w), N = t·h·w.

    A patch is 2 frames × 14 × 14 pixels × 3 colours = 1176 numbers. The four patches of a 2×2 window stand
    next to each other, so that the merger can later join them by a plain reshape. A last odd frame is
    repeated; a still picture is one frame, seen twice.
    """
    options.check_frames(frames, patch_size * merge_size)
    missing = -len(frames) % temporal_patch_size
    frames = torch.cat([frames, frames[-1:].repeat(missing, 1, 1, 1)])

    T, channels, height, width = frames.shape
    t = T // temporal_patch_size
    h = height // patch_size
    w = width // patch_size

    # Every axis is split into (which patch, where inside the patch); rows and columns are split by window
    # too.
    down = (h // merge_size, merge_size, patch_size)
    across = (w // merge_size, merge_size, patch_size)
    x = frames.reshape(t, temporal_patch_size, channels, *down, *across)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/2, w/2, 2, 2 | 3, 2, 14, 14): which patch | its content
    return x.reshape(t * h * w, -1), (t, h, w)


def unpatchify(
    patches: Tensor, grid: tuple, patch_size: int = 14, temporal_patch_size: int = 2, merge_size: int = 2
) -> Tensor:
    """The inverse of `patchify`: patches (N, 1176) → frames (T, 3, height, width)."""
    t, h, w = options.checked_grid(patches, grid, patch_size, temporal_patch_size, merge_size)
    which = (t, h // merge_size, w // merge_size, merge_size, merge_size)
    content = (-1, temporal_patch_size, patch_size, patch_size)
    x = patches.reshape(*which, *content)  # (t, h/2, w/2, 2, 2 | 3, 2, 14, 14)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)  # (t, 2, 3, h/2, 2, 14, w/2, 2, 14)
    return x.reshape(t * temporal_patch_size, -1, h * patch_size, w * patch_size)


@takes_official_names
@dataclass
class Qwen2VLImageProcessor(MediaReader):
    """Pictures and clips → the rows of `pixel_values`, each at its own size.

    `min_pixels` and `max_pixels` limit the *area* of a picture in pixels; one token is 28×28 of them. A clip
    has its own limits for a frame, and one for all its frames together. `resample`, of pictures, is "pillow"
    (under the same Pillow equal to transformers' PIL processor and qwen-vl-utils to the bit) or "torch" (to
    its torchvision processor). `preprocess` and `media_patches`, which find and open the pictures of a call,
    are those of `MediaReader`.
    """

    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    resample: str = "pillow"
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in 0..1
    image_std: tuple = (0.26862954, 0.26130258, 0.27577711)
    video_min_pixels: int = limits.Default(128 * 28 * 28)  # of a frame
    video_max_pixels: int = limits.Default(768 * 28 * 28)
    video_total_pixels: int = limits.Default(24576 * 28 * 28)  # of a clip, a pair of frames counted once

    @classmethod
    @options.renamed(pretrained_model_name_or_path="name")
    def from_pretrained(cls, name: str | Path, **overrides) -> Qwen2VLImageProcessor:
        """From a checkpoint's preprocessor_config.json; `overrides` (`max_pixels`, say) win over it."""
        return cls(**weights_loader.processor_options(name, cls, overrides))

    def target_size(self, height: int, width: int, min_pixels=None, max_pixels=None) -> tuple[int, int]:
        """The (height, width) in pixels at which the tower will see a picture."""
        low = min_pixels or self.min_pixels
        high = max_pixels or self.max_pixels
        return limits.resized(smart_resize, height, width, self.patch_size * self.merge_size, low, high)

    def frame_size(
        self, num_frames: int, height: int, width: int, min_pixels=None, max_pixels=None, total_pixels=None
    ) -> tuple[int, int]:
        """The same for the frames of a clip: the more there are, the smaller each (qwen-vl-utils' rule)."""
        low = min_pixels or self.video_min_pixels
        high = max_pixels or self.video_max_pixels
        total = total_pixels or self.video_total_pixels
        pairs = math.ceil(num_frames / self.temporal_patch_size)  # an odd last frame is repeated
        high = limits.of_frame(low, high, total, pairs)  # total / pairs, with its bounds
        return limits.within(self.target_size(height, width, low, high), total, pairs)

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """The visual tokens of frames that already have the tower's size; a picture is one frame."""
        frame_pairs = math.ceil(num_frames / self.temporal_patch_size)
        return frame_pairs * height * width // (self.patch_size * self.merge_size) ** 2

    def num_image_tokens(self, height: int, width: int, min_pixels=None, max_pixels=None) -> int:
        """What a picture costs in tokens, without touching a pixel (its two vision markers not counted)."""
        return self.num_tokens(1, *self.target_size(height, width, min_pixels, max_pixels))

    def num_video_tokens(self, num_frames: int, height: int, width: int, **limits) -> int:
        """What a clip costs: a pair of frames, or a last single one, as much as a picture of their size."""
        return self.num_tokens(num_frames, *self.frame_size(num_frames, height, width, **limits))

    def patches_of(self, frames: Iterable, size: tuple[int, int], resample: str | None = None):
        """RGB frames → patches (N, 1176) and grid, at `size` (height, width); read two at a time."""
        frames = iter(frames)
        patches = []
        for first in frames:
            pair = [first, *islice(frames, self.temporal_patch_size - 1)]
            pixels = torch.stack([self.pixels_of(frame, size, resample) for frame in pair])  # (2, 3, …)
            rows, (_, h, w) = patchify(pixels, self.patch_size, self.temporal_patch_size, self.merge_size)
            patches.append(rows)  # (h·w, 1176)
        return torch.cat(patches), (len(patches), h, w)

    def pixels_of(self, frame, size: tuple[int, int], resample: str | None = None) -> Tensor:
        """One picture → normalised pixels (3, height, width). It is resized once, here, on whole bytes."""
        mean = torch.tensor(self.image_mean)[:, None, None]  # (3, 1, 1)
        std = torch.tensor(self.image_std)[:, None, None]
        if (resample or self.resample) == "pillow":
            resized = frame.resize(size[::-1], Image.Resampling.BICUBIC)  # Pillow wants (width, height)
            pixels = torch.from_numpy(np.array(resized)).movedim(2, 0).float()  # (3, height, width)
            return (pixels / 255 - mean) / std
        pixels = torch.from_numpy(np.array(frame)).movedim(2, 0)[None]  # (1, 3, height, width) bytes
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)[0].float()  # (3, height, width)
        # torchvision's processor folds the 1/255 into mean and std instead; the last bit depends on it
        return (pixels - mean * 255) / (std * 255)


@takes_official_names
@dataclass
class Qwen2VLImageProcessorFast(Qwen2VLImageProcessor):
    """The same with the resampling of transformers' default ("fast") processor."""

    resample: str = "torch"


# ── 3 · Words: tokenizer, chat template, processor ──────────────────────────────────────────────────────────
# In: conversations with pictures. Out: the model's inputs, in which each picture is a run of <|image_pad|>
# placeholders as long as the picture has visual tokens; and, on the way back, ids → text. Paper 2.2 and table
# 1 (the formats). Official: processing_qwen2_vl.py and the checkpoint's chat_template.json.


class Special(str):
    """A piece of a prompt that *we* wrote as a control token. The same letters, typed, are a plain str."""


class Qwen2VLTokenizer(official_tokenizer.OfficialTokenizer):
    """Byte-level BPE. Plain text never becomes a control token; only `Special` pieces do."""

    def __init__(self, file: str | Path):
        self.bpe = official_tokenizer.read_tokenizer(file)
        added = self.bpe.get_added_tokens_decoder()
        self.special_ids = {token.content: token_id for token_id, token in added.items() if token.special}
        messages.check_control_tokens(file, self.special_ids)
        self.settle(file)  # which token pads and which ends: <|endoftext|>, <|im_end|>

    def split(self, text: str) -> list[str]:
        """A text you trust → its pieces, with every special token in it marked as such."""
        pieces = re.split("(" + "|".join(map(re.escape, self.special_ids)) + ")", text)
        return [Special(piece) if piece in self.special_ids else piece for piece in pieces]

    def encode(self, pieces: list[str] | str, **asked) -> list[int]:
        """Pieces → ids. Neighbouring texts are joined first, since BPE may merge across their border.

        `asked`: options of the official call, such as `return_tensors="pt"`.
        """
        self.bpe.encode_special_tokens = True  # a typed "<|im_end|>" is ten characters; a copy forgets it
        ids = []
        for kind, run in groupby(self.as_pieces(pieces), type):
            if kind is Special:
                ids += [self.special_ids[piece] for piece in run]
            else:
                ids += self.bpe.encode("".join(run), add_special_tokens=False).ids
        return self.as_asked(ids, **asked)

    @official_tokenizer.takes_any_ids
    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Ids → text."""
        return self.bpe.decode(ids, skip_special_tokens=skip_special_tokens)

    from_pretrained = classmethod(weights_loader.load_tokenizer)
    apply_chat_template = weights_loader.apply_chat_template  # of a conversation without pictures


def render_chat(
    conversation: list[dict], add_generation_prompt: bool = False, add_vision_id: bool = False
) -> list[str]:
    """Messages → the pieces of the prompt; `"".join` of them is the official template's rendering, to the
    letter.

    Each message becomes `<|im_start|>role\\n`, its content, `<|im_end|>\\n`. A picture is
    `<|vision_start|><|image_pad|><|vision_end|>` at this stage: one placeholder, whatever its size.
    """
    if conversation and conversation[0]["role"] != "system":
        conversation = [{"role": "system", "content": "You are a helpful assistant."}, *conversation]

    pieces = []
    seen = {"image": 0, "video": 0}
    for message in conversation:
        content = message["content"]
        items = [{"text": content}] if isinstance(content, str) else content

        pieces += [Special("<|im_start|>"), f"{message['role']}\n"]
        for item in items:
            kind = media_kind(item)
            if kind is None:
                pieces.append(item.get("text", ""))
                continue
            seen[kind] += 1
            if add_vision_id:
                pieces.append(f"{'Picture' if kind == 'image' else 'Video'} {seen[kind]}: ")
            pieces += [Special("<|vision_start|>"), Special(f"<|{kind}_pad|>"), Special("<|vision_end|>")]
        pieces += [Special("<|im_end|>"), "\n"]

    if add_generation_prompt:
        pieces += [Special("<|im_start|>"), "assistant\n"]
    return pieces


def expand_placeholders(prompts: list[list[int]], placeholder: int, token_counts: list[int]) -> list:
    """Each placeholder id becomes as many of them as its picture has visual tokens: t·h·w / 4.

    The pictures of all prompts are counted in order: the first of `token_counts` belongs to the first
    placeholder.
    """
    counts = iter(token_counts)
    expanded = []
    for prompt in prompts:
        ids = []
        for token_id in prompt:
            ids += [placeholder] * next(counts) if token_id == placeholder else [token_id]
        expanded.append(ids)
    return expanded


def pad_left(prompts: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of any length → ids (B, S) and attention mask (B, S), which is 0 where the padding is.

    Padding stands on the left, whatever the tokenizer's file says: new tokens must follow the prompt.
    """
    longest = max(map(len, prompts), default=0)
    paddings = [longest - len(ids) for ids in prompts]
    input_ids = [[pad_token_id] * padding + ids for padding, ids in zip(paddings, prompts)]
    attention_mask = [[0] * padding + [1] * (longest - padding) for padding in paddings]
    return torch.tensor(input_ids).long(), torch.tensor(attention_mask).long()


@takes_official_names
@dataclass
class Qwen2VLProcessor(OfficialProcessor):
    """Conversations with pictures → the tensors that the model takes, and ids → text."""

    image_processor: Qwen2VLImageProcessor
    tokenizer: Qwen2VLTokenizer
    chat_template: str | None = None

    @classmethod
    @options.renamed(pretrained_model_name_or_path="name")
    def from_pretrained(cls, name: str | Path, **asked) -> Qwen2VLProcessor:
        """From a folder, "tiny" or a Hub id; options such as `max_pixels` win over the checkpoint's."""
        folder, image_options = weights_loader.find_words(name, asked)
        image_processor = Qwen2VLImageProcessor.from_pretrained(folder, **image_options)
        tokenizer = Qwen2VLTokenizer(folder / "tokenizer.json")
        return cls(image_processor, tokenizer, weights_loader.read_chat_template(folder))

    def apply_chat_template(
        self,
        conversation,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        **asked,
    ):
        """One conversation or a list of them → the prompt's text, its ids (`tokenize=True`), or the model's
        inputs (`return_dict=True`, too).

        A picture is what stands in an item's `image` (a path, URL, PIL picture, array …), a clip in its
        `video`. Options, for the call or in an item for that one: `min_pixels`, `max_pixels`,
        `resized_height` with `resized_width` (pixels), `fps` or `nframes`, `video_start`, `video_end` (s);
        all are in qwen2vl_io/options.py. Plain text never becomes a control token.
        """
        chat_templates.check_template(self.chat_template, render_chat)
        asked = options.call_options(asked)
        conversations, is_single = messages.as_conversations(conversation)
        prompts = [render_chat(chat, add_generation_prompt, add_vision_id) for chat in conversations]
        if not tokenize:
            texts = ["".join(pieces) for pieces in prompts]
            return texts[0] if is_single else texts
        inputs = self.assemble(prompts, messages.media_items(conversations), asked)
        return inputs if return_dict else inputs["input_ids"]

    def __call__(self, images=None, text=None, videos=None, **asked) -> BatchFeature:
        """Rendered prompts (str or list) and their pictures and clips, in order → the model's inputs.

        Special tokens in `text` count as such, whoever wrote them; for text you do not trust, use
        `apply_chat_template(…, tokenize=True)`.
        """
        if text is None:
            return self.image_processor.preprocess(images, videos, **asked)
        prompts = [self.tokenizer.split(messages.check_text(prompt)) for prompt in messages.as_list(text)]
        pictures = messages.flatten_media("image", images, prompts)
        clips = messages.flatten_media("video", videos, prompts)
        return self.assemble(prompts, pictures + clips, options.call_options(asked))

    def assemble(self, prompts: list[list[str]], items: list[dict], asked: dict) -> BatchFeature:
        """Pieces of B prompts and their media items → ids (B, S), attention mask, pixels and grids."""
        inputs = self.image_processor.collect(items, asked)
        image_id = self.tokenizer.special_ids["<|image_pad|>"]
        video_id = self.tokenizer.special_ids["<|video_pad|>"]

        rows = [self.tokenizer.encode(pieces) for pieces in prompts]
        for placeholder, grid_name in ((image_id, "image_grid_thw"), (video_id, "video_grid_thw")):
            grids = inputs.get(grid_name, torch.zeros(0, 3, dtype=torch.long))  # (pictures, 3)
            token_counts = grids.prod(dim=1) // self.image_processor.merge_size**2  # (pictures,)
            rows = expand_placeholders(rows, placeholder, token_counts.tolist())

        options.check_lengths(rows, asked)
        ids, mask = pad_left(rows, self.tokenizer.pad_token_id)  # (B, S), (B, S)

        inputs = BatchFeature(input_ids=ids, attention_mask=mask, **inputs)
        if asked.get("return_mm_token_type_ids"):  # (B, S): 0 is a word, 1 a picture, 2 a clip
            inputs["mm_token_type_ids"] = (ids == image_id) + 2 * (ids == video_id)
        return inputs


# ── 4 · Rotary positions: 2-D in the tower, M-RoPE in the decoder ───────────────────────────────────────────
# In: where each patch or token stands. Out: the angles by which attention turns queries and keys, so that
# their product depends on the distance between them. The tower counts rows and columns; the decoder counts
# time, height and width.
# Paper 2.1 and figure 3. Official: apply_multimodal_rotary_pos_emb and get_rope_index.


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of the last axis by its angle. cos and sin broadcast to x (…, D)."""
    first, second = x.chunk(2, dim=-1)  # (…, D/2) each
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (…, D/2) → cos and sin (…, D), *tiled*: the second half of the channels repeats the first's."""
    angles = torch.cat([angles, angles], dim=-1)  # (…, D)
    return angles.cos(), angles.sin()


def inverse_frequencies(pairs: int, base: float, device) -> Tensor:
    """Radians per position for each rotary pair: 1, then ever slower, down to about 1/base."""
    return base ** -(torch.arange(pairs, dtype=torch.float32, device=device) / pairs)


def vision_angles(grids: list[list[int]], head_dim: int, merge_size: int, device) -> Tensor:
    """Angles (N, D/2) of the tower: half of the pairs turn with a patch's row, half with its column."""
    frequencies = inverse_frequencies(head_dim // 4, 10000.0, device)  # (D/4,)
    angles = []
    for t, h, w in grids:
        rows_and_columns = torch.arange(h, device=device), torch.arange(w, device=device)
        coordinates = torch.cartesian_prod(*rows_and_columns)  # (h·w, 2), row by row
        # patchify lists patches window by window, so their coordinates go through the same reordering
        windows = coordinates.view(h // merge_size, merge_size, w // merge_size, merge_size, 2)
        coordinates = windows.transpose(1, 2).reshape(-1, 2)  # (h·w, 2), window by window
        frame_angles = (coordinates[:, :, None] * frequencies).flatten(1)  # (h·w, 2, D/4) → (h·w, D/2)
        angles.append(frame_angles.repeat(t, 1))  # the same for each frame pair: (t·h·w, D/2)
    return torch.cat(angles)  # (N, D/2)


def mrope_angles(position_ids: Tensor, config: Qwen2VLTextConfig) -> Tensor:
    """Positions (3, B, S) → angles (B, S, D/2) of the decoder.

    *Chunked*: with mrope_section [16, 24, 24] the fastest 16 pairs turn with t, the next 24 with h, the last
    24 with w. Where the three positions are equal (all text) this is ordinary RoPE.
    """
    frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta, position_ids.device)  # (D/2,)
    angles = position_ids[..., None].float() * frequencies  # (3, B, S, D/2)
    if config.mrope_section is None:
        return angles[0]
    t_chunk, h_chunk, w_chunk = angles.split(list(config.mrope_section), dim=-1)  # (3, B, S, pairs) each
    return torch.cat([t_chunk[0], h_chunk[1], w_chunk[2]], dim=-1)


def get_rope_index(
    config: Qwen2VLConfig,
    input_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where each token stands in time, height and width: position_ids (3, B, S) and rope_deltas (B, 1).

    `rope_deltas` is (the next free position) − (the number of tokens), which is negative: a picture of 1000
    tokens moves the text on by about 32 positions only. Padding is skipped.
    """
    image_grids = [] if image_grid_thw is None else image_grid_thw.tolist()
    video_grids = [] if video_grid_thw is None else video_grid_thw.tolist()
    grids = {config.image_token_id: iter(image_grids), config.video_token_id: iter(video_grids)}
    if config.text_config.mrope_section is None:
        grids = {}  # plain RoPE: visual tokens are numbered like words

    position_ids = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    rope_deltas = torch.zeros(len(input_ids), 1, dtype=torch.long)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    is_token = mask.cpu().bool()  # (B, S), False where the padding is

    for row, row_ids in enumerate(input_ids.cpu()):
        ids = row_ids[is_token[row]].tolist()
        positions, next_position = row_positions(ids, grids, config.vision_config.spatial_merge_size, row)
        position_ids[:, row, is_token[row]] = torch.tensor(positions).long().view(-1, 3).T  # (3, tokens)
        rope_deltas[row] = next_position - len(ids)
    return position_ids.to(input_ids.device), rope_deltas.to(input_ids.device)


def row_positions(ids: list[int], grids: dict, merge_size: int, row: int) -> tuple[list[tuple], int]:
    """The ids of prompt number `row` → (time, height, width) of each, and the next free position.

    A word takes the next position, on all three axes. A picture that starts at position p has t = p + frame
    pair, h = p + row, w = p + column of each cell; what follows resumes at the largest position so far + 1.

    Three words, a picture of 2×3 cells, two words:
        t  0 1 2  3 3 3 3 3 3  6 7
        h  0 1 2  3 3 3 4 4 4  6 7
        w  0 1 2  3 4 5 3 4 5  6 7
    """
    positions = []
    start = 0  # the next free position
    while len(positions) < len(ids):
        token_id = ids[len(positions)]
        if token_id not in grids:
            positions.append((start, start, start))
            start += 1
            continue

        grid = messages.next_grid(grids, token_id, row)
        t, h, w = grid[0], grid[1] // merge_size, grid[2] // merge_size  # in cells of 28 pixels
        placeholders = ids[len(positions) : len(positions) + t * h * w]
        if placeholders != [token_id] * (t * h * w):
            raise ValueError(f"Row {row}: a picture of {t}×{h}×{w} cells has fewer visual tokens: cut text?")

        positions += [(start + i, start + j, start + k) for i, j, k in product(range(t), range(h), range(w))]
        start += max(t, h, w)
    return positions, start


# ── 5 · Attention ───────────────────────────────────────────────────────────────────────────────────────────
# In: queries, keys and values by head. Out: softmax(q·kᵀ / √D)·v. A model holds one of these functions as
# `model.attention`, for the tower and the decoder. *Causal* goes by place in the sequence: the Q queries are
# the last Q of the S tokens, and a query sees itself and what came before. (Not by M-RoPE position: those of
# a picture repeat.)
# Official: eager_attention_forward in modeling_qwen2_vl.py, and integrations/sdpa_attention.py.

AttentionFunction = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def attention_weights(q: Tensor, k: Tensor, causal: bool, pads: list[int] | None = None) -> Tensor:
    """softmax(q·kᵀ / √D), written out: q (B, H, Q, D) and k (B, Hkv, S, D) → (B, H, Q, S).

    `pads`: the number of padding tokens with which each row's keys begin; nothing looks at them.
    """
    B, H, Q, D = q.shape
    S = k.shape[2]
    k = k.repeat_interleave(H // k.shape[1], dim=1)  # (B, H, S, D): each key head serves G query heads
    scores = q @ k.transpose(2, 3) / math.sqrt(D)  # (B, H, Q, S)

    hidden = torch.zeros(Q, S, dtype=torch.bool, device=q.device)
    if causal:
        hidden = (~hidden).triu(S - Q + 1)  # all True, of which the future is kept
    if pads is not None:
        first_token = torch.tensor(pads, device=q.device)[:, None, None, None]  # (B, 1, 1, 1)
        hidden = hidden | (torch.arange(S, device=q.device) < first_token)

    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return weights.masked_fill(hidden, 0).to(q.dtype)  # a query that sees nothing at all gets zeros, not NaN


def eager_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The formula: q (B, H, Q, D), k and v (B, Hkv, S, D) → (B, H, Q, D)."""
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)  # (B, H, S, D)
    return attention_weights(q, k, causal) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The same by PyTorch's fused kernels; without a mask tensor, CUDA's flash kernel can always run."""
    B, H, Q, D = q.shape
    Hkv, S = k.shape[1:3]
    if Q == 1:  # nothing to hide; the G heads of a group pose as G queries of one head, so keys are read once
        grouped = q.reshape(B, Hkv, H // Hkv, D)  # (B, Hkv, G, D)
        return F.scaled_dot_product_attention(grouped, k, v).reshape(B, H, 1, D)
    if Q == S or not causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=H != Hkv)
    # A later chat turn: Q new tokens behind S − Q cached ones. To CUDA's kernels this mask is only a flag.
    mask = causal_lower_right(Q, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=H != Hkv)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The same by the flash kernel or not at all (Dao 2023, https://arxiv.org/abs/2307.08691)."""
    problem = options.flash_problem(q.device.type, q.dtype, q.shape[-1])
    if problem:
        raise ValueError(f"The flash kernel was demanded but {problem}; use attn_implementation='sdpa'.")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa_attention(q, k, v, causal)


ATTENTION = {"eager": eager_attention, "sdpa": sdpa_attention, "flash": flash_attention}
ATTENTION["flash_attention_2"] = flash_attention  # the official name


def attend_unpadded(q: Tensor, k: Tensor, v: Tensor, pads: list[int], attention: AttentionFunction) -> Tensor:
    """Causal attention (B, H, Q, D) in which row b's first `pads[b]` keys are padding.

    Each row runs on its own tokens alone: that costs a call a row, and never a mask tensor.
    """
    if not any(pads):
        return attention(q, k, v, True)

    Q, S = q.shape[2], k.shape[2]
    outputs = []
    for b, pad in enumerate(pads):
        padded_queries = min(Q, max(0, Q - (S - pad)))  # the queries of this row that are padding themselves
        row_q = q[b : b + 1, :, padded_queries:]  # (1, H, this row's queries, D)
        if row_q.shape[2] == 0:  # a row of nothing but padding
            outputs.append(torch.zeros_like(q[b : b + 1]))
            continue
        y = attention(row_q, k[b : b + 1, :, pad:], v[b : b + 1, :, pad:], True)
        outputs.append(F.pad(y, (0, 0, padded_queries, 0)))  # (1, H, Q, D), zeros where the padding is
    return torch.cat(outputs)


# ── 6 · Vision tower and merger ─────────────────────────────────────────────────────────────────────────────
# In: patches (N, 1176) of any number of pictures and clips, and their grids. Out: visual tokens (M, C of the
# decoder), one for 2×2 patches. Pictures of any size share a call, and none sees another.
# Paper 2.1. Official: Qwen2VisionTransformerPretrainedModel. Module names are the keys of the released files.


class PatchEmbed(nn.Module):
    """A Conv3d that strides by its own size sees each patch once: one product with the reshaped kernel."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, kernel, stride=kernel, bias=False)  # a 5-D weight

    def forward(self, patches: Tensor) -> Tensor:
        kernel = self.proj.weight.flatten(1)  # (C, 1176)
        return F.linear(patches.to(kernel.dtype), kernel)  # (N, 1176) → (N, C)


class VisionAttention(nn.Module):
    """Full attention among the patches of one picture (or one pair of frames), and no others."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: list[int], attention) -> Tensor:
        N, C = x.shape
        q, k, v = self.qkv(x).view(N, 3, self.num_heads, -1).permute(1, 2, 0, 3)  # 3 × (H, N, D)
        q = rotate(q.float(), cos, sin).to(x.dtype)
        k = rotate(k.float(), cos, sin).to(x.dtype)

        outputs = []
        first = 0  # patch of the segments to come
        for L, run in groupby(segments):  # neighbours of equal length share a call; never an N×N mask
            n = len(list(run))
            last = first + n * L
            by_segment = [part[:, first:last].unflatten(1, (n, L)).transpose(0, 1) for part in (q, k, v)]
            y = attention(*by_segment, False)  # (n, H, L, D)
            outputs.append(y.transpose(1, 2).reshape(n * L, C))
            first = last
        return self.proj(torch.cat(outputs))  # (N, C)


class VisionMLP(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)  # (N, 4·C)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # "quick GELU", (N, C)


class VisionBlock(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: list[int], attention) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, segments, attention)  # (N, C)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """2×2 neighbouring patches → one token as wide as the decoder: a fourfold shorter sequence."""

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.window = config.embed_dim * config.spatial_merge_size**2  # numbers in 2×2 patches
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=1e-6)
        widen = nn.Linear(self.window, self.window)
        self.mlp = nn.Sequential(widen, nn.GELU(), nn.Linear(self.window, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        windows = self.ln_q(x).view(-1, self.window)  # (N, C) → (M, 4·C): patchify put the four side by side
        return self.mlp(windows)  # (M, C of the decoder)


class VisionTower(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, attention=sdpa_attention) -> Tensor:
        """Patches (N, 1176) of any number of pictures and their grids (·, 3) → visual tokens (M, C)."""
        x = self.patch_embed(pixel_values)  # (N, C)
        grids = grid_thw.tolist()
        head_dim = self.config.embed_dim // self.config.num_heads
        angles = vision_angles(grids, head_dim, self.config.spatial_merge_size, x.device)  # (N, D/2)
        cos, sin = cos_sin(angles)  # (N, D), float32
        segments = [h * w for t, h, w in grids for _ in range(t)]  # one for each picture and pair of frames
        for block in self.blocks:
            x = block(x, cos, sin, segments, attention)
        return self.merger(x)


# ── 7 · Decoder ─────────────────────────────────────────────────────────────────────────────────────────────
# In: embeddings (B, Q, C) of words and pictures, and their positions. Out: hidden states (B, Q, C), one for
# each token. It is Qwen2; only the angles of its rotary embedding (section 4) know of pictures.
# Qwen2 technical report 2.2.1 (https://arxiv.org/abs/2407.10671). Official: Qwen2VLTextModel.


class KVCache:
    """Keys and values of the tokens so far, and whatever else an unfinished answer remembers.

    It lives with the *generation*, never on the model: two conversations on one model cannot disturb each
    other. `length` tokens are filled; `pads` (B) counts each row's left padding; `next_position` (B, 1) is
    the M-RoPE position of the next token; `token_ids` (B, length) were read (for padding, the last id).
    """

    def __init__(self, config: Qwen2VLTextConfig, rows: int, capacity: int, device=None, dtype=None):
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.data = torch.empty(shape, device=device, dtype=dtype)  # (layers, k and v, B, Hkv, capacity, D)
        self.length = 0
        self.pads = [0] * rows
        self.next_position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.token_ids = torch.zeros(rows, 0, dtype=torch.long, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new k and v (B, Hkv, Q, D) of a layer; return all so far, as views (B, Hkv, S, D)."""
        end = self.length + k.shape[2]
        if end > self.data.shape[4]:  # a longer chat than planned: at least double the room
            self.data = F.pad(self.data, (0, 0, 0, end))
        past_k, past_v = self.data[layer, :, :, :, : self.length]  # (B, Hkv, length, D) each
        self.data[layer, 0, :, :, self.length : end] = k.detach()
        self.data[layer, 1, :, :, self.length : end] = v.detach()
        if torch.is_grad_enabled():  # what is new keeps its gradient
            return torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def advance(self, input_ids: Tensor, position_ids: Tensor, pads: list[int], mask: Tensor | None) -> None:
        """After all layers: what was read (B, Q) at positions (3, B, Q) belongs to the past now."""
        self.length += input_ids.shape[1]
        self.pads = pads
        self.next_position = position_ids.amax(dim=(0, 2))[:, None] + 1  # (B, 1): the largest on any axis + 1
        if mask is not None:
            input_ids = torch.where(mask.bool(), input_ids, input_ids[:, -1:])  # padding was never read
        self.token_ids = torch.cat([self.token_ids, input_ids], dim=1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # the mean of squares overflows in half precision
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query: G query heads share one head of keys and values. q, k and v have biases, o has none."""

    def __init__(self, config: Qwen2VLTextConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width = config.hidden_size
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache, pads, attention, maps) -> Tensor:
        B, Q, _ = x.shape
        q = self.q_proj(x).view(B, Q, -1, self.head_dim).transpose(1, 2)  # (B, H, Q, D)
        k = self.k_proj(x).view(B, Q, -1, self.head_dim).transpose(1, 2)  # (B, Hkv, Q, D)
        v = self.v_proj(x).view(B, Q, -1, self.head_dim).transpose(1, 2)  # (B, Hkv, Q, D)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)

        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, Hkv, S, D)
        if maps is not None:
            maps.append(attention_weights(q, k, causal=True, pads=pads))  # (B, H, Q, S), to look at
        y = attend_unpadded(q, k, v, pads, attention)  # (B, H, Q, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, Q, -1))  # (B, Q, C)


class MLP(nn.Module):
    """SwiGLU: one half of the wide layer gates the other."""

    def __init__(self, config: Qwen2VLTextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, Q, wide) → (B, Q, C)


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen2VLTextConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache, pads, attention, maps) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, pads, attention, maps)  # (B, Q, C)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Qwen2VLTextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, position_ids: Tensor, cache, pads, attention, states=None, maps=None):
        """Embeddings (B, Q, C) at positions (3, B, Q) → hidden states (B, Q, C).

        `cache` is a KVCache or None; `pads` (B) counts the left padding of each row; `attention` is a
        function of section 5. Lists given as `states` and `maps` collect the input of each layer and the
        result, (B, Q, C), and the attention of each layer, (B, H, Q, S).
        """
        cos, sin = cos_sin(mrope_angles(position_ids, self.config))  # (B, Q, D), angles always in float32
        cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, Q, D): the same for every head
        for layer in self.layers:
            if states is not None:
                states.append(x)
            x = layer(x, cos, sin, cache, pads, attention, maps)
        x = self.norm(x)
        if states is not None:
            states.append(x)
        return x


# ── 8 · The whole model ─────────────────────────────────────────────────────────────────────────────────────
# In: what the processor made, ids (B, Q) and pixels. Out: hidden states (B, Q, C). Three steps: embeddings,
# in which visual tokens take the places of the placeholders; positions; the decoder.
# Official: Qwen2VLModel.


@dataclass
class Qwen2VLOutput(official_model.OfficialOutput):
    """What a forward pass gives; fields that were not asked for are None."""

    last_hidden_state: Tensor | None = None  # (B, Q, C)
    cache: KVCache | None = None
    position_ids: Tensor | None = None  # (3, B, Q): time, height, width
    hidden_states: tuple | None = None  # (B, Q, C) each: embeddings, each layer's output; the last is normed
    attentions: tuple | None = None  # (B, H, Q, S) for each layer
    logits: Tensor | None = None  # (B, Q or logits_to_keep, V)
    loss: Tensor | None = None  # ()
    past_key_values = property(lambda self: self.cache)  # the name until transformers 5.23


def left_padding(attention_mask: Tensor | None, rows: int) -> list[int]:
    """The number of padding tokens at each row's start. Those on the right need nothing: they are future."""
    if attention_mask is None:
        return [0] * rows
    mask = attention_mask.bool()  # (B, Q)
    messages.check_mask(mask)  # a row is one run of tokens
    return torch.where(mask.any(dim=1), mask.int().argmax(dim=1), mask.shape[1]).tolist()  # (B,)


class Qwen2VLModel(official_model.OfficialModel):
    """Tower and decoder, joined: visual tokens take the places of <|image_pad|> and <|video_pad|>."""

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa"):
        super().__init__()
        self.config = config
        self.attn_implementation = attn_implementation
        self.visual = VisionTower(config.vision_config)
        self.model = Decoder(config.text_config)
        official_model.initialise(self)  # random weights, until others are loaded

    @classmethod
    @options.renamed(pretrained_model_name_or_path="name")
    def from_pretrained(cls, name: str | Path, **asked):
        """A model with a checkpoint's weights, in eval() mode; `name` is "tiny", a folder or a Hub id.

        `asked`: `dtype` and `device` (or `torch_dtype` and `device_map`), both "auto" by default, and
        `attn_implementation`; the rest of the official options is in qwen2vl_io/official_loading.py.
        """
        plan = weights_loader.plan_loading(name, asked)
        config = Qwen2VLConfig.from_pretrained(plan.folder)
        with torch.device("meta"):  # modules with shapes but without memory
            model = cls(config, plan.attention)
        weights_loader.put_weights(model, plan.folder, plan.device, plan.dtype)  # each once, to its place
        return model.eval()

    save_pretrained = weights_loader.save_model  # weights and config.json; the processor saves its own files

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def attn_implementation(self) -> str:
        """The name of `self.attention`: "eager", "sdpa" or "flash"; "custom" for a function of your own."""
        return next((name for name, function in ATTENTION.items() if function is self.attention), "custom")

    @attn_implementation.setter
    def attn_implementation(self, name: str) -> None:
        options.check_attention(name, ATTENTION)
        self.attention = ATTENTION[name]

    @official_model.official_forward(KVCache)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        cache: KVCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Qwen2VLOutput:
        """Ids (B, Q) and media → `last_hidden_state` (B, Q, C).

        `attention_mask` (B, Q) marks padding with 0, on the left or on the right. With a `cache` the ids
        continue what it holds (text or media), and need no mask. `position_ids` (3, B, Q) are worked out if
        not given. `inputs_embeds` (B, Q, C) take the place of the ids' own embeddings.
        """
        continues = cache is not None and cache.length > 0
        decoding = continues and input_ids.shape[1] == 1  # the id just chosen
        images = (self.config.image_token_id, pixel_values, image_grid_thw)
        videos = (self.config.video_token_id, pixel_values_videos, video_grid_thw)
        messages.check_inputs(input_ids, attention_mask, images, videos, self.config.vision_config, cache)
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, Q, C)
        x = self.put_media(x, input_ids, images, videos)  # (B, Q, C)

        mask = None if continues else attention_mask  # only a first turn is padded; the cache knows how
        pads = cache.pads if continues else left_padding(mask, len(input_ids))

        if position_ids is None and decoding:
            position_ids = cache.next_position.expand(3, -1, -1)  # (3, B, 1)
        elif position_ids is None:
            position_ids, _ = get_rope_index(self.config, input_ids, image_grid_thw, video_grid_thw, mask)
            position_ids = position_ids if cache is None else position_ids + cache.next_position  # (3, B, Q)

        states = [] if output_hidden_states else None
        maps = [] if output_attentions else None
        x = self.model(x, position_ids, cache, pads, self.attention, states, maps)  # (B, Q, C)
        if cache is not None:
            cache.advance(input_ids, position_ids, pads, mask)
        return Qwen2VLOutput(x, cache, position_ids, states and tuple(states), maps and tuple(maps))

    def put_media(self, x: Tensor, input_ids: Tensor, images: tuple, videos: tuple) -> Tensor:
        """Visual tokens take the places of the placeholders' embeddings in x (B, Q, C), those of ids (B, Q).

        `images` and `videos`: the placeholder's id, the pixels (N, 1176) or None, their grids (·, 3).
        """
        for placeholder, pixels, grid_thw in (images, videos):
            if pixels is not None:
                is_placeholder = (input_ids == placeholder)[..., None]  # (B, Q, 1), true M times
                visual_tokens = self.visual(pixels, grid_thw, self.attention)  # (M, C)
                x = x.masked_scatter(is_placeholder, visual_tokens.to(x.dtype))  # in order
        return x

    @official_model.checks_pixels
    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """What the decoder is given for each picture: visual tokens (M, C), row by row."""
        visual_tokens = self.visual(pixel_values, image_grid_thw, self.attention)  # of all pictures: (M, C)
        counts = image_grid_thw.prod(dim=1) // self.config.vision_config.spatial_merge_size**2
        return visual_tokens.split(counts.tolist())

    rope_index = staticmethod(get_rope_index)  # of model.get_rope_index, the official name


# ── 9 · Generation ──────────────────────────────────────────────────────────────────────────────────────────
# In: a prompt's ids and pixels. Out: the ids of the answer, one at a time. The prompt is read at once, then
# each new id alone, with the cache standing in for all before it. The released generation_config.json
# (temperature 0.01, top_k 1) means: greedy.
# Official: GenerationMixin in generation/utils.py, the warpers in generation/logits_process.py.


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the ids `seen` so far (B, S), the prompt's too, less likely: logits (B, V) → (B, V)."""
    old = logits.gather(1, seen)  # (B, S)
    return logits.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k likeliest ids of each row stay possible: (B, V) → (B, V)."""
    smallest_kept = logits.topk(k).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the smallest set of likeliest ids that together reach the probability p stays: (B, V) → (B, V)."""
    ordered, order = logits.sort(descending=True)  # (B, V) each
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier ids already reach
    drop = (before >= p).gather(1, order.argsort(dim=-1))  # back in the order of the vocabulary
    return logits.masked_fill(drop, -torch.inf)


def choose(logits: Tensor, seen: Tensor, settings: dict, generator: torch.Generator | None = None) -> Tensor:
    """The next id of each row, (B,), from its logits (B, V), given the ids `seen` so far (B, S).

    `settings`: do_sample, temperature, top_k (0: all), top_p and repetition_penalty (1 changes nothing).
    """
    logits = penalise_repetition(logits, seen, settings["repetition_penalty"])
    if not settings["do_sample"]:
        return logits.argmax(dim=-1)
    logits = logits / settings["temperature"]  # below 1 the likeliest gain, above 1 the others do
    if 0 < settings["top_k"] < logits.shape[-1]:
        logits = keep_top_k(logits, settings["top_k"])
    if settings["top_p"] < 1:
        logits = keep_top_p(logits, settings["top_p"])
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


class Qwen2VLForConditionalGeneration(Qwen2VLModel):
    """The model with its output matrix: logits, loss, generation."""

    generation_config = GenerationSettings()  # what the checkpoint's generation_config.json says, a dict

    def __init__(self, config: Qwen2VLConfig, attn_implementation: str = "sdpa"):
        super().__init__(config, attn_implementation)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        official_model.initialise(self.lm_head)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @official_model.official_forward(like=Qwen2VLModel.forward)
    def forward(self, labels: Tensor | None = None, logits_to_keep=0, **inputs) -> Qwen2VLOutput:
        """As `Qwen2VLModel.forward`, plus logits (B, Q, V) and, with `labels` (B, Q), the loss.

        `logits_to_keep`: an int keeps the logits of that many last places only (0: all), a tensor those of
        the places it names. `labels` are the ids themselves, shifted here; −100 marks what does not count.
        """
        output = super().forward(**inputs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.lm_head(output.last_hidden_state[:, keep])  # (B, kept, V); -0 keeps all
        if labels is not None:
            predicted = output.logits[:, :-1].float()  # (B, Q − 1, V): place i − 1 predicts the token at i
            output.loss = F.cross_entropy(predicted.flatten(0, 1), labels[:, 1:].flatten())
        return output

    def end_token_ids(self, eos_token_id: int | list[int] | None = None) -> list[int]:
        """The ids that end an answer: those asked for, else those of generation_config.json."""
        ids = self.generation_config.get("eos_token_id", []) if eos_token_id is None else eos_token_id
        return [ids] if isinstance(ids, int) else list(ids)

    @official_model.official_generation
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
    ) -> Iterator[Tensor]:
        """Yield the next id of each row, (B,), until every row has ended or `max_new_tokens` are out.

        A row that has ended yields padding. `suppress_tokens`: ids never written; by default the vision
        tokens, which would announce a picture that is not there ([] allows all). `seed` makes sampling
        repeatable. `inputs`: what the processor gave, and the settings of `choose`.
        """
        B, Q = input_ids.shape
        held = 0 if cache is None else cache.length
        options.check_prompt(inputs.get("attention_mask"), held + Q, max_new_tokens, self.config.text_config)
        if cache is None:
            cache = KVCache(self.config.text_config, B, Q + max_new_tokens, self.device, self.dtype)
        plan = options.plan_generation(self, inputs, eos_token_id, suppress_tokens, seed)
        ended = torch.zeros(B, dtype=torch.bool, device=self.device)
        inputs = plan.inputs

        for _ in range(max_new_tokens):
            logits = self(input_ids, **inputs, cache=cache, logits_to_keep=1).logits[:, -1].float()  # (B, V)
            options.check_finite(logits, self.dtype)
            logits[:, plan.suppressed] = -torch.inf
            next_ids = choose(logits, cache.token_ids, plan.settings, plan.generator)  # (B,)
            next_ids = next_ids.masked_fill(ended, plan.pad_id)
            yield next_ids

            ended |= torch.isin(next_ids, plan.end_ids)
            if ended.all():
                return
            input_ids = next_ids[:, None]  # (B, 1): from now on one id at a time, the cache has all before it
            inputs = {}

    @official_model.with_streamer
    def generate(self, input_ids: Tensor, **asked) -> Tensor:
        """The prompt and its continuation, (B, S + new); options as for `generate_steps`."""
        new_ids = [ids[:, None] for ids in self.generate_steps(input_ids, **asked)]  # (B, 1) each
        return torch.cat([input_ids, *new_ids], dim=1)

    def stream(self, tokenizer, input_ids: Tensor, skip_special_tokens=True, **asked) -> Iterator[str]:
        """Yield the answer to one prompt (B = 1) as pieces of text, as soon as they are whole characters."""
        official_model.check_one_row(input_ids, "stream()")
        new_ids = (int(ids[0]) for ids in self.generate_steps(input_ids, **asked))
        return messages.whole_characters(new_ids, tokenizer, skip_special_tokens)
