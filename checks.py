"""The plumbing around the model's inputs: which options calls take, which messages they understand, what they refuse.

Nothing here is particular to how Qwen2-VL works, which is why it is not in qwen2vl_mini.py. Everything that is refused
gets one sentence with the way out, and raises ValueError.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from media_loader import shorten


class BatchFeature(dict):
    """A dict of tensors: `inputs.input_ids` is `inputs["input_ids"]`, and `.to(device)` moves all of them.

    `.to("cuda", torch.bfloat16)` also changes the dtype of the pixels, and of nothing else.
    """

    def __getattr__(self, name: str):
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to(self, *where, **named) -> BatchFeature:
        wanted = [named.pop("device", None), named.pop("dtype", None), *where]
        device = next((w for w in wanted if w is not None and not isinstance(w, torch.dtype)), None)
        dtype = next((w for w in wanted if isinstance(w, torch.dtype)), None)
        return BatchFeature(
            {name: x.to(device=device, dtype=dtype if x.is_floating_point() else None) for name, x in self.items()}
        )


# ── Options ───────────────────────────────────────────────────────────────────────────────────────────────────────

MEDIA_OPTIONS = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"), "a whole number"),
    **dict.fromkeys(("nframes", "min_frames", "max_frames"), "a whole number"),
    **dict.fromkeys(("fps", "video_start", "video_end"), "a number"),
}
VIDEO_OPTIONS = ("fps", "nframes", "video_start", "video_end", "min_frames", "max_frames")  # of load_video
FOR_KIND = {"image": "images_kwargs", "video": "videos_kwargs"}
NESTED = (*FOR_KIND.values(), "processor_kwargs", "text_kwargs", "common_kwargs")  # dicts that official calls take
TEXT_OPTIONS = ("padding", "return_tensors", "return_mm_token_type_ids")
SAME = {"video_fps": "fps", "num_frames": "nframes"}  # the official calls' other names
# What the official calls take and we do otherwise or not at all: the values that ask for nothing, and why not others.
REFUSED = {
    "truncation": ((False, None, "do_not_truncate"), "a cut prompt would cut pictures; lower max_pixels instead"),
    "max_length": ((None,), "batches are as long as their longest prompt"),
    "pad_to_multiple_of": ((None,), "batches are as long as their longest prompt"),
    "padding_side": ((None, "left"), "new tokens follow the prompt, so it is padded on its left"),
    "add_special_tokens": ((None, True, False), "Qwen2's tokenizer adds none anyway"),
    "return_attention_mask": ((None, True), "the mask is always there; leave it out yourself"),
    "return_token_type_ids": ((None, False), "Qwen2-VL has none; return_mm_token_type_ids tells pictures from words"),
    "return_assistant_tokens_mask": ((None, False), "the template marks no answers"),
    "return_metadata": ((None, False), "media_loader.load_video tells frames and time stamps"),
    "continue_final_message": ((None, False), "write the open answer behind the rendered prompt and tokenize that"),
    "tools": ((None, []), "Qwen2-VL's own template has no place for tools; describe them in the system message"),
    "documents": ((None, []), "Qwen2-VL's own template has no place for documents; put them into the text"),
    "chat_template": ((None,), "the template is Qwen2-VL's own; render another one yourself for processor(text=…)"),
    "load_audio_from_video": ((None, False), "Qwen2-VL does not hear"),
    "sanitize_control_tokens": ((None, True, False), "what a user typed is always plain text here"),
    "do_resize": ((None, True), "sizes must be multiples of 28; resized_height and resized_width set them"),
    "do_rescale": ((None, True), "pass whole bytes, or fractions from 0 to 1"),
    "do_normalize": ((None, True), "the tower was trained on normalised pixels"),
    "do_convert_rgb": ((None, True), "the tower knows RGB only"),
    "do_sample_frames": ((None, True), "nframes tells how many frames are taken"),
    "size": ((None,), "say min_pixels and max_pixels, which are the same areas"),
    "device": ((None, "cpu"), "move the inputs with .to(device)"),
    "data_format": ((None, "channels_first"), "patches have one layout only"),
    "input_data_format": ((None,), "arrays are (height, width, 3), tensors (3, height, width)"),
}
PADDING = (True, False, "longest", "do_not_pad")


def call_options(asked: dict, text: bool = True) -> dict:
    """The options of a processor's call under our names, without those that ask for nothing.

    `text`: whether the call makes ids, too. The official nested dicts count like their contents, but those for one kind
    of media stay apart.
    """
    flat, apart = {}, {}
    for name, value in asked.items():
        if name in NESTED:
            if not isinstance(value, dict | None):
                raise ValueError(f"{name}={shown(value)} should be a dict of options.")
            inner = call_options(value or {}, text)
            apart |= {kind: inner.pop(kind) for kind in FOR_KIND.values() if kind in inner}
            if name in FOR_KIND.values():
                apart[name] = inner
            else:
                flat |= inner
        else:
            flat[SAME.get(name, name)] = value
    known = (*MEDIA_OPTIONS, *(TEXT_OPTIONS if text else ("return_tensors",)))
    options = {}
    for name, value in flat.items():
        if name in REFUSED:
            allowed, reason = REFUSED[name]
            if not any(value is one or (isinstance(value, type(one)) and value == one) for one in allowed):
                raise ValueError(f"{name}={shown(value)} is not supported: {reason}.")
        elif name not in known:
            close = get_close_matches(name[:100], [*known, *SAME], 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"The option {shown(name)} is unknown; {hint}")
        elif value is not None:
            options[name] = value
    padding, tensors = options.get("padding", True), options.get("return_tensors", "pt")
    if not isinstance(padding, bool | str) or padding not in PADDING:
        raise ValueError(f"padding={shown(padding)} is not supported: batches are as long as their longest row.")
    if not isinstance(tensors, str) or tensors != "pt":
        raise ValueError(f"return_tensors={shown(tensors)} is not supported; use 'pt', torch tensors.")
    check_numbers(options)
    return options | apart


def item_options(item: dict, options: dict) -> tuple[tuple | None, dict, int | None, dict]:
    """What holds for one media item, whose own options win over those of the call.

    Returns the size asked for (height, width) or None; the limits of its area; the budget of a clip; and how to sample
    one.
    """
    options = options | options.get(FOR_KIND[media_kind(item)], {})
    own = {SAME.get(name, name): value for name, value in item.items() if value is not None}
    if own.keys() & {"fps", "nframes"}:  # two ways to say the same
        options = {name: value for name, value in options.items() if name not in ("fps", "nframes")}
    options = options | {name: own[name] for name in MEDIA_OPTIONS if name in own}
    size = options.get("resized_height"), options.get("resized_width")
    limits = {name: options.get(name) for name in ("min_pixels", "max_pixels")}
    sampling = {name: options[name] for name in VIDEO_OPTIONS if name in options}
    return None if None in size else size, limits, options.get("total_pixels"), sampling


GENERATION = {  # what the official generate takes besides our own, and the values that change nothing here
    "use_cache": (None, True),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
    "output_scores": (None, False),
    "synced_gpus": (None, False),
    "streamer": (None,),
    "max_length": (None,),
    "min_new_tokens": (None,),
    "generation_config": (None,),
    "stopping_criteria": (None, []),
    "logits_processor": (None, []),
}
MODEL_INPUTS = (
    *("attention_mask", "position_ids", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"),
    "mm_token_type_ids",
)


def renamed(**names: str):
    """Decorator: keywords that transformers has renamed are taken under their earlier names, too (old=new)."""

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **options):
            for old, new in names.items():
                if old in options and new in options:
                    raise ValueError(f"{old} is the earlier name of {new}; give one of the two.")
                if old in options:
                    options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def generation_inputs(asked: dict) -> dict:
    """The model's inputs among what a call of `generate` was given; other official options are refused by name."""
    for name, value in asked.items():
        if name not in MODEL_INPUTS and not any(value is one or value == one for one in GENERATION.get(name, ())):
            known = "max_new_tokens, eos_token_id, suppress_tokens, seed, cache, do_sample, temperature, top_p"
            known += ", top_k, repetition_penalty and the processor's output"
            raise ValueError(f"generate({name}={shown(value)}) is not supported; it takes {known}.")
    return {name: value for name, value in asked.items() if name in MODEL_INPUTS}


def shown(value) -> str:
    """A value in an error message: short, on one line."""
    if isinstance(value, int) and abs(value) > 10**100:
        return "a huge number"  # Python refuses to write out the largest
    return shorten(repr(value), 60)


def check_numbers(options: dict) -> None:
    """Limits and frame numbers, of a call or of a message's item, must be numbers above zero (times may be zero)."""
    largest = 2**31  # far beyond all that makes sense, and still a number to every library
    for name, kind in MEDIA_OPTIONS.items():
        value = options.get(name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        right = whole or (kind == "a number" and isinstance(value, float | np.floating) and np.isfinite(value))
        if value is None or (right and value == 0 and name.startswith("video_")):
            continue
        if not right or value <= 0 or (value >= largest and name != "max_pixels"):  # "no limit" may be as large
            raise ValueError(f"{name}={shown(value)} should be {kind} above zero and below {largest}.")
    if (options.get("resized_height") is None) != (options.get("resized_width") is None):
        raise ValueError("resized_height and resized_width go together: give both or none.")


def check_image_processor(processor) -> None:
    """The fields of a Qwen2VLImageProcessor, which may come from anybody's preprocessor_config.json."""
    for name, value in vars(processor).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name.endswith("_pixels") and not (whole and 0 < value < 2**63):
            raise ValueError(f"preprocessor_config: {name}={shown(value)} should be a whole number above zero.")
        if name.endswith("_size") and not (whole and 0 < value <= 100):
            raise ValueError(f"preprocessor_config: {name}={shown(value)} should be a whole number from 1 to 100.")
        if name in ("image_mean", "image_std"):
            three = list(value) if isinstance(value, list | tuple) and len(value) == 3 else [None]
            right = all(isinstance(x, float | int) and abs(x) < 1e6 for x in three)  # nor is NaN below it
            if not right or (name == "image_std" and min(three) <= 0):
                raise ValueError(f"preprocessor_config: {name}={shown(value)} should be three numbers, one a colour.")
    if processor.resample not in ("pillow", "torch"):
        raise ValueError(f"resample={shown(processor.resample)} is unknown; use 'pillow' or 'torch'.")


def check_control_tokens(file, special_ids: dict) -> None:
    """A tokenizer without them belongs to another model."""
    wanted = "endoftext im_start im_end vision_start vision_end image_pad video_pad".split()
    if missing := [f"<|{name}|>" for name in wanted if f"<|{name}|>" not in special_ids]:
        raise ValueError(f"{file} is not Qwen2-VL's tokenizer: it lacks {', '.join(missing)}.")


# ── Conversations ─────────────────────────────────────────────────────────────────────────────────────────────────


def as_conversations(conversation) -> tuple[list[list[dict]], bool]:
    """One conversation or several → a list of checked ones, and whether it was one.

    Strings among a message's items count as text. Raises ValueError for whatever the template would drop in silence.
    """
    if isinstance(conversation, dict | str) or not isinstance(conversation, Iterable):
        raise ValueError(
            f"A conversation is a list of messages such as {{'role': 'user', 'content': 'Hello'}}, not a "
            f"{type(conversation).__name__}; put the message into a list."
        )
    conversation = list(conversation)
    single = not conversation or isinstance(conversation[0], dict)
    return [as_messages(messages) for messages in ([conversation] if single else conversation)], single


def as_messages(messages) -> list[dict]:
    """One conversation, checked; strings among the items of its messages become text items."""
    if not isinstance(messages, list | tuple) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("A conversation is a list of messages, and a message is a dict with 'role' and 'content'.")
    checked = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or content is None:
            keys = shorten(", ".join(sorted(map(str, message))) or "nothing")
            raise ValueError(f"A message needs a 'role' and a 'content', but this one has {keys}.")
        check_text(role)
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, str):
            check_text(content)
        else:
            if not isinstance(content, list | tuple):
                raise ValueError(f"A message's content is a text or a list of items, not a {type(content).__name__}.")
            content = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
            for item in content:
                check_item(item)
        checked.append({**message, "content": content})
    return checked


def check_item(item) -> None:
    """An item of a message's content is a text, a picture or a clip."""
    if not isinstance(item, dict):
        raise ValueError(f"An item of a message is a dict with a 'type', not a {type(item).__name__}.")
    if media_kind(item):
        check_numbers(item)
    elif isinstance(item.get("text"), str):
        check_text(item["text"])
    else:
        keys = shorten(", ".join(sorted(map(str, item))) or "nothing")
        raise ValueError(f"An item of a message has a 'text', an 'image' or a 'video', but this one has {keys}.")


def check_text(text) -> str:
    """A text that the tokenizer can take."""
    if not isinstance(text, str):
        raise ValueError(f"A prompt is a text, not a {type(text).__name__} ({shown(text)}).")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The text {shown(text)} has half a character in it (a lone surrogate); remove it.") from None
    return text


def media_kind(item: dict) -> str | None:
    """'image', 'video' or None for one item of a message's content, by the official template's rule."""
    if item.get("type") == "image" or "image" in item or "image_url" in item:
        return "image"
    return "video" if item.get("type") == "video" or "video" in item else None


def process_vision_info(conversations) -> tuple[list | None, list | None]:
    """The pictures and the clips of conversations, for `processor(text=…, images=…, videos=…)`; None if there are none.

    qwen-vl-utils' function of this name reads and resizes them. Here they stay items of messages, with their options.
    """
    messages = [message for conversation in as_conversations(conversations)[0] for message in conversation]
    items = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
    images, videos = ([item for item in items if media_kind(item) == kind] for kind in ("image", "video"))
    return images or None, videos or None


def as_items(kind: str, entries: list) -> list[dict]:
    """Pictures or clips → items of a message, which some may be already."""
    return [entry if isinstance(entry, dict) else {"type": kind, kind: entry} for entry in entries]


def as_list(images) -> list:
    """One picture or a list of them → a list."""
    return [] if images is None else list(images) if isinstance(images, list | tuple) else [images]


def is_clip(entry) -> bool:
    """Whether a list is one clip, that is a list of frames: pictures, or arrays of three dimensions."""
    first = entry[0] if isinstance(entry, list | tuple) and entry else None
    return isinstance(first, Image.Image) or getattr(first, "ndim", 0) == 3


# ── What the model checks ─────────────────────────────────────────────────────────────────────────────────────────


def flash_problem(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the flash kernel cannot run this attention; None if it can. (On CPU, PyTorch's own flash kernel is meant.)"""
    fits = device == "cuda" and dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256
    if fits or device == "cpu":
        return None
    wanted = "cuda, float16 or bfloat16, and a head_dim that is a multiple of 8 up to 256"
    return f"it needs {wanted}; here are {device}, {dtype}, {head_dim}".replace("torch.", "")


def left_padding(attention_mask: Tensor | None, rows: int) -> list[int]:
    """How many tokens of padding each row starts with. Padding on the right needs nothing: it is in the future."""
    if attention_mask is None:
        return [0] * rows
    mask = attention_mask.bool()
    starts_again = mask[:, 1:] & ~mask[:, :-1]  # a one after a zero
    if (starts_again.sum(1) + mask[:, 0] > 1).any():
        raise ValueError("attention_mask has a hole: a row must be one run of ones, padded on its left or right.")
    return torch.where(mask.any(1), mask.int().argmax(1), mask.shape[1]).tolist()


def check_placeholders(name: str, is_media: Tensor, pixels: Tensor | None, grid_thw: Tensor | None, merge: int) -> None:
    """Every row's media tokens (`is_media`, (B, Q)) must be used up exactly by the next pictures, in order."""
    sizes = [] if grid_thw is None else (grid_thw.prod(1) // merge**2).tolist()  # tokens of each picture
    if (rows := 0 if pixels is None else len(pixels)) != sum(sizes) * merge**2:
        raise ValueError(f"The {name} pixels have {rows} rows, but their grid_thw describes {sum(sizes) * merge**2}.")
    sizes.reverse()
    for row, found in enumerate(is_media.sum(1).tolist()):
        expected = 0
        while expected < found and sizes:
            expected += sizes.pop()
        if expected != found:
            raise ValueError(f"Row {row} has {found} <|{name}_pad|> tokens, but its {name}s make {expected}: cut text?")
    if sizes:
        raise ValueError(f"{len(sizes)} {name}(s) are left over: no row has <|{name}_pad|> tokens for them.")


def flatten_media(kind: str, given, prompts: list[list[str]]) -> list[dict]:
    """The pictures or clips given beside prompts (one, a list, or one list a prompt) → media items in order."""
    entries, wanted = [given] if is_clip(given) and kind == "video" else as_list(given), f"<|{kind}_pad|>"
    what = {"image": "pictures", "video": "clips"}[kind]
    counts = [prompt.count(wanted) for prompt in prompts]
    if any(isinstance(entry, list | tuple) and not (kind == "video" and is_clip(entry)) for entry in entries):
        if [len(entry) if isinstance(entry, list | tuple) else -1 for entry in entries] != counts:
            raise ValueError(f"Each prompt needs as many {wanted} as there are {what} in its list.")
        entries = [one for entry in entries for one in entry]
    if sum(counts) != len(entries):
        raise ValueError(f"The text has {sum(counts)} {wanted} but {len(entries)} {what} were given.")
    return as_items(kind, entries)
