"""Conversations as callers write them → checked ones; the media in them → patches; and new ids → text as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor

from qwen2vl_io.options import (
    FOR_KIND,
    MEDIA_OPTIONS,
    SAME,
    VIDEO_OPTIONS,
    call_options,
    check_image_processor,
    check_numbers,
)
from qwen2vl_io.pictures import load_image
from qwen2vl_io.sentences import shorten, shown
from qwen2vl_io.sources import item_source
from qwen2vl_io.videos import load_video


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
        role = message.get("role")
        content = message.get("content")
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
    entries = [given] if is_clip(given) and kind == "video" else as_list(given)
    wanted = f"<|{kind}_pad|>"
    what = {"image": "pictures", "video": "clips"}[kind]
    counts = [prompt.count(wanted) for prompt in prompts]
    if any(isinstance(entry, list | tuple) and not (kind == "video" and is_clip(entry)) for entry in entries):
        if [len(entry) if isinstance(entry, list | tuple) else -1 for entry in entries] != counts:
            raise ValueError(f"Each prompt needs as many {wanted} as there are {what} in its list.")
        entries = [one for entry in entries for one in entry]
    if sum(counts) != len(entries):
        raise ValueError(f"The text has {sum(counts)} {wanted} but {len(entries)} {what} were given.")
    return as_items(kind, entries)


def check_inputs(
    input_ids: Tensor, attention_mask: Tensor | None, images: tuple, videos: tuple, vision_config, cache
) -> None:
    """What a forward pass was given must fit together; it is checked before the expensive tower runs.

    `images` and `videos`: the placeholder's id, the pixels (N, 1176) or None, their grids (·, 3) or None. With a cache
    that holds tokens, a single id is the one just chosen: a word, even if it is <|image_pad|>.
    """
    new_tokens = input_ids.shape[1]
    continues = cache is not None and cache.length > 0
    if continues and attention_mask is not None and not attention_mask[:, -new_tokens:].all():
        raise ValueError("A later turn cannot be padded: only the first one, which the cache knows about, can.")
    if continues and new_tokens == 1:
        return
    for kind, (token_id, pixels, grid_thw) in (("image", images), ("video", videos)):
        check_placeholders(kind, input_ids == token_id, pixels, grid_thw, vision_config.spatial_merge_size)


def check_mask(mask: Tensor) -> None:
    """A row of an attention mask (B, Q) is one run of tokens, with padding before or behind it."""
    starts_again = mask[:, 1:] & ~mask[:, :-1]  # a token behind padding
    runs = starts_again.sum(1) + mask[:, 0]  # (B,)
    if (runs > 1).any():
        raise ValueError("attention_mask has a hole: a row must be one run of ones, padded on its left or right.")


def next_grid(grids: dict[int, Iterator], token_id: int, row: int) -> list[int]:
    """The grid (t, h, w) of the next picture whose placeholder has this id."""
    grid = next(grids[token_id], None)
    if grid is None:
        raise ValueError(f"Row {row} has visual tokens (id {token_id}) for which there is no grid_thw.")
    return grid


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


def check_template(chat_template: str | None) -> None:
    """A checkpoint without Qwen2-VL's chat template, such as a base model, cannot take messages."""
    if "<|im_start|>" not in (chat_template or ""):
        raise ValueError("No chat template in this checkpoint (a base model?): write a prompt for processor(text=…).")


def check_control_tokens(file, special_ids: dict) -> None:
    """A tokenizer without them belongs to another model."""
    wanted = "endoftext im_start im_end vision_start vision_end image_pad video_pad".split()
    missing = [f"<|{name}|>" for name in wanted if f"<|{name}|>" not in special_ids]
    if missing:
        raise ValueError(f"{file} is not Qwen2-VL's tokenizer: it lacks {', '.join(missing)}.")


# ── From messages to patches, and from ids to text ──────────────────────────────────────────────────────────────────


class MediaReader:
    """The part of an image processor that finds and opens the pictures and clips of a call.

    How large they become, and their patches, are up to the class that inherits it: `target_size`, `frame_size` and
    `patches_of` of Qwen2VLImageProcessor.
    """

    def __post_init__(self):
        check_image_processor(self)

    def preprocess(self, images=None, videos=None, **asked) -> BatchFeature:
        """Pictures (one or a list) → `pixel_values` (N, 1176) float32 and `image_grid_thw` (pictures, 3).

        Clips (one or a list) → `pixel_values_videos` and `video_grid_thw`. Options as for `apply_chat_template`.
        """
        clips = [videos] if is_clip(videos) else as_list(videos)
        items = as_items("image", as_list(images)) + as_items("video", clips)
        return self.collect(items, call_options(asked, text=False))

    __call__ = preprocess

    def collect(self, items: list[dict], asked: dict) -> BatchFeature:
        """Media items of messages → their patches and grids, pictures and clips apart, each in their order."""
        return collect_patches(items, lambda item: self.media_patches(item, **asked))

    def media_patches(self, item: dict, **asked) -> tuple[Tensor, tuple[int, int, int]]:
        """One media item → patches (N, 1176) and grid (t, h, w). The item's options win over the call's."""
        size, limits, total_pixels, sampling = item_options(item, asked)
        if media_kind(item) == "image":
            image = load_image(item_source(item))
            height, width = size or (image.height, image.width)
            return self.patches_of([image], self.target_size(height, width, **limits))

        video = load_video(item_source(item), **sampling)
        if size:  # the caller's own size: no budget changes it
            size = self.target_size(*size, **limits)
        else:
            clip = (video.num_frames, video.height, video.width)
            size = self.frame_size(*clip, **limits, total_pixels=total_pixels)
        return self.patches_of(video.frames(), size, resample="torch")  # clips have no "pillow" way, officially


def whole_characters(new_ids: Iterable[int], tokenizer, skip_special_tokens: bool) -> Iterator[str]:
    """The ids of an answer as they come → pieces of its text, each as soon as it is whole characters."""
    ids = []
    shown_characters = 0
    for token_id in new_ids:
        ids.append(token_id)
        text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        # one emoji can be several tokens; until the last of its bytes is there it decodes to "�"
        if not text.endswith("�"):
            yield text[shown_characters:]
            shown_characters = len(text)
    yield tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)[shown_characters:]
