"""Conversations as callers write them → checked ones, and the media in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from PIL import Image
from torch import Tensor

from qwen2vl_io.options import FOR_KIND, MEDIA_OPTIONS, SAME, VIDEO_OPTIONS, check_numbers
from qwen2vl_io.sentences import shorten, shown


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


def process_vision_info(conversations) -> tuple[list | None, list | None]:
    """The pictures and the clips of conversations, for `processor(text=…, images=…, videos=…)`; None if there are none.

    qwen-vl-utils' function of this name reads and resizes them. Here they stay items of messages, with their options.
    """
    messages = [message for conversation in as_conversations(conversations)[0] for message in conversation]
    items = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
    images, videos = ([item for item in items if media_kind(item) == kind] for kind in ("image", "video"))
    return images or None, videos or None


def media_items(conversations: list[list[dict]]) -> list[dict]:
    """All pictures and clips of conversations that `as_conversations` has checked, in their order."""
    found = []
    for conversation in conversations:
        for message in conversation:
            content = message["content"]
            if not isinstance(content, str):
                found += [item for item in content if media_kind(item)]
    return found


def collect_patches(items: list[dict], make_patches: Callable[[dict], tuple[Tensor, tuple]]) -> BatchFeature:
    """Media items → the model's inputs: pictures and clips apart, each in their order.

    Pictures become `pixel_values` (N, 1176) and `image_grid_thw` (pictures, 3), clips `pixel_values_videos` and
    `video_grid_thw`; a kind without items has no entries. `make_patches` turns one item into its patches (n, 1176) and
    grid (t, h, w); an item that has them ready under "patches" keeps those.
    """
    inputs = BatchFeature()
    for kind, pixels_name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        made = [item.get("patches") or make_patches(item) for item in items if media_kind(item) == kind]
        if made:
            inputs[pixels_name] = torch.cat([patches for patches, _ in made])
            inputs[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in made])
    return inputs


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


def check_control_tokens(file, special_ids: dict) -> None:
    """A tokenizer without them belongs to another model."""
    wanted = "endoftext im_start im_end vision_start vision_end image_pad video_pad".split()
    if missing := [f"<|{name}|>" for name in wanted if f"<|{name}|>" not in special_ids]:
        raise ValueError(f"{file} is not Qwen2-VL's tokenizer: it lacks {', '.join(missing)}.")
