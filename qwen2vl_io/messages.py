"""Conversations as callers write them → checked ones; the media in them → patches; and new ids → text as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor

from qwen2vl_io import limits
from qwen2vl_io.keys import (
    check_address,
    check_item_keys,
    check_message_keys,
    kind_of,
)
from qwen2vl_io.official_processor import OfficialImageProcessor
from qwen2vl_io.options import (
    FOR_KIND,
    MEDIA_OPTIONS,
    VIDEO_OPTIONS,
    call_options,
    check_frame_numbers,
    check_image_processor,
    check_numbers,
    own_names,
)
from qwen2vl_io.pictures import load_image, true_size
from qwen2vl_io.sentences import shorten, shown
from qwen2vl_io.sources import SOURCE_KEYS, item_source
from qwen2vl_io.videos import FPS, Video, load_video

WHAT = {"image": "pictures", "video": "clips"}


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
    """One conversation, checked; strings among the items of its messages become text items, keys of None go."""
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
            content = [checked_item(item) for item in content]
        checked.append(check_message_keys(message) | {"content": content})
    return checked


def checked_item(item) -> dict:
    """An item of a message's content is a text, a picture or a clip; keys that are None go."""
    if not isinstance(item, dict):
        raise ValueError(f"An item of a message is a dict with a 'type', not a {type(item).__name__}.")
    item = check_item_keys(item)
    if media_kind(item):
        check_numbers(own_names(item))
        check_address(item)
    elif not isinstance(item["text"], str):
        raise ValueError(f"The text of an item is a text, not a {type(item['text']).__name__} ({shown(item['text'])}).")
    else:
        check_text(item["text"])
    return item


def check_text(text) -> str:
    """A text that the tokenizer can take."""
    if not isinstance(text, str):
        raise ValueError(f"A prompt is a text, not a {type(text).__name__} ({shown(text)}).")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The text {shown(text)} has half a character in it (a lone surrogate); remove it.") from None
    return text


media_kind = kind_of  # 'image', 'video' or None for one item of a message's content


def item_options(item: dict, options: dict) -> tuple[tuple | None, dict, int | None, dict]:
    """What holds for one media item, whose own options win over those of the call.

    Returns the size asked for (height, width) or None; the limits of its area; the budget of a clip; and how to sample
    one.
    """
    options = options | options.get(FOR_KIND[media_kind(item)], {})
    own = own_names(item)
    check_numbers(own)
    if own.keys() & {"fps", "nframes"}:  # two ways to say the same
        options = {name: value for name, value in options.items() if name not in ("fps", "nframes")}
    options = options | {name: own[name] for name in MEDIA_OPTIONS if name in own}
    size = options.get("resized_height"), options.get("resized_width")
    areas = {name: options.get(name) for name in ("min_pixels", "max_pixels")}
    sampling = {name: options[name] for name in VIDEO_OPTIONS if name in options}
    check_frame_numbers(sampling)
    if options.get("do_sample_frames") is False and media_kind(item) == "video":
        check_taken_whole(item_source(item), sampling)
    return None if None in size else size, areas, options.get("total_pixels"), sampling


def check_taken_whole(source, sampling: dict) -> None:
    """`do_sample_frames=False` is what happens to frames anyway, and no way to read a file."""
    is_frames = isinstance(source, list | tuple | Video) or getattr(source, "ndim", 0) == 4
    if not is_frames:
        raise ValueError("do_sample_frames=False is for frames that are given; of a file, nframes are taken.")
    if "nframes" in sampling and not isinstance(source, Video):
        raise ValueError("do_sample_frames=False and nframes contradict each other; leave one of them out.")


def process_vision_info(
    conversations, return_video_kwargs: bool = False, image_patch_size: int = 14, return_video_metadata: bool = False
) -> tuple:
    """The pictures and the clips of conversations, for `processor(text=…, images=…, videos=…)`; None if there are none.

    qwen-vl-utils' function of this name reads and resizes them. Here they stay items of messages, with their options.
    `return_video_kwargs`: a third value, {"fps": how many frames of each clip's seconds are taken}, to be passed on to
    the processor, too. The clips are opened for that, and their frames chosen.
    """
    if image_patch_size != 14:
        raise ValueError(f"image_patch_size={shown(image_patch_size)} is another model's; Qwen2-VL's patches have 14.")
    if return_video_metadata:
        raise ValueError("return_video_metadata is not supported: Qwen2-VL reads no times; leave it out.")
    items = media_items(as_conversations(conversations)[0])
    images, videos = ([item for item in items if media_kind(item) == kind] for kind in ("image", "video"))
    if not return_video_kwargs:
        return images or None, videos or None
    opened = [open_clip(item) for item in videos]
    rates = {"fps": [rate for _, rate in opened]} if opened else {}
    return images or None, [item for item, _ in opened] or None, rates


def open_clip(item: dict) -> tuple[dict, float]:
    """A clip's item → the same with the clip open, and how many frames of its seconds are taken."""
    *_, sampling = item_options(item, {})
    source = item_source(item)
    video = load_video(source, **sampling)
    rest = {key: value for key, value in item.items() if key not in SOURCE_KEYS}
    if video.video_fps is None:  # frames that were taken already
        return rest | {"type": "video", "video": source}, float(sampling.get("fps", FPS))
    return rest | {"type": "video", "video": video}, video.num_frames / video.total_frames * video.video_fps


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
    items = [checked_item(entry) if isinstance(entry, dict) else {"type": kind, kind: entry} for entry in entries]
    for item in items:
        if media_kind(item) != kind:
            given = shorten(", ".join(map(str, item)))
            raise ValueError(f"Among the {WHAT[kind]} is an item that is none: it has {given}.")
    return items


def as_list(given, kind: str = "image") -> list:
    """One picture, prompt or clip, or a list of them, or a batch of them in one array → a list."""
    if given is None:
        return []
    is_batch = getattr(given, "ndim", 0) == {"image": 4, "video": 5}[kind]
    return list(given) if isinstance(given, list | tuple) or is_batch else [given]


def flat_list(given, kind: str) -> list:
    """Pictures or clips without a text: one, a list of them, or a list of lists, as one list."""
    if kind == "video" and is_clip(given):
        return [given]
    entries = []
    for entry in as_list(given, kind):
        entries += as_list(entry, kind) if is_nested(entry, kind) else [entry]
    return entries


def is_nested(entry, kind: str) -> bool:
    """Whether an entry of a list is a list of pictures or clips itself, that of one prompt."""
    if getattr(entry, "ndim", 0) == {"image": 4, "video": 5}[kind]:
        return True
    if not isinstance(entry, list | tuple):
        return False
    if kind == "image":
        return True
    first = entry[0] if entry else None  # a list of paths or pictures is one clip, that of its frames
    return isinstance(first, dict | list | tuple) or getattr(first, "ndim", 0) == 4


def is_clip(entry) -> bool:
    """Whether a list is one clip, that is a list of frames: pictures, or arrays of three dimensions."""
    first = entry[0] if isinstance(entry, list | tuple) and entry else None
    return isinstance(first, Image.Image) or getattr(first, "ndim", 0) == 3


def flatten_media(kind: str, given, prompts: list[list[str]]) -> list[dict]:
    """The pictures or clips given beside prompts (one, a list, or one list a prompt) → media items in order."""
    entries = [given] if is_clip(given) and kind == "video" else as_list(given, kind)
    wanted = f"<|{kind}_pad|>"
    what = WHAT[kind]
    counts = [prompt.count(wanted) for prompt in prompts]
    if any(isinstance(entry, list | tuple) and not (kind == "video" and is_clip(entry)) for entry in entries):
        is_one_a_prompt = [len(entry) if isinstance(entry, list | tuple) else -1 for entry in entries] == counts
        is_frames = kind == "video" and sum(counts) == len(entries)  # each list has the paths of a clip's frames
        if not is_one_a_prompt and not is_frames:
            raise ValueError(f"Each prompt needs as many {wanted} as there are {what} in its list.")
        entries = [one for entry in entries for one in entry] if is_one_a_prompt else entries
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
        check_pixels(kind, pixels, grid_thw, vision_config.spatial_merge_size)
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


def check_pixels(name: str, pixels: Tensor | None, grid_thw: Tensor | None, merge: int) -> None:
    """The pixels of all pictures (or clips) of a call, and their grids, have the shapes that the processor gives."""
    shape = tuple(getattr(pixels, "shape", ()))
    if pixels is not None and (not isinstance(pixels, Tensor) or len(shape) != 2 or not pixels.is_floating_point()):
        what = f"a tensor of shape {shape}" if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
        rows = f"rows (patches, 1176) of all {name}s"
        raise ValueError(f"The {name} pixels are {rows}, as the processor gives them, not {what}.")
    if grid_thw is None:
        return
    is_table = isinstance(grid_thw, Tensor) and grid_thw.ndim == 2 and grid_thw.shape[1] == 3
    is_whole = is_table and not grid_thw.is_floating_point() and grid_thw.dtype != torch.bool
    if not is_whole or bool((grid_thw < 1).any()) or bool((grid_thw[:, 1:] % merge).any()):
        raise ValueError(
            f"{name}_grid_thw is a tensor ({name}s, 3) of whole numbers t, h, w above zero, h and w multiples of "
            f"{merge}, as the processor gives it, not {shown(grid_thw)}."
        )


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
    missing = [f"<|{name}|>" for name in wanted if f"<|{name}|>" not in special_ids]
    if missing:
        raise ValueError(f"{file} is not Qwen2-VL's tokenizer: it lacks {', '.join(missing)}.")


# ── From messages to patches, and from ids to text ──────────────────────────────────────────────────────────────────


class MediaReader(OfficialImageProcessor):
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
        items = as_items("image", flat_list(images, "image")) + as_items("video", flat_list(videos, "video"))
        if not items:
            raise ValueError("There is nothing to process; give images or videos (or, to a processor, a text).")
        return self.collect(items, call_options(asked, text=False))

    __call__ = preprocess

    def collect(self, items: list[dict], asked: dict) -> BatchFeature:
        """Media items of messages → their patches and grids, pictures and clips apart, each in their order."""
        items, asked = with_rates(items, asked)
        return collect_patches(items, lambda item: self.media_patches(item, **asked))

    def media_patches(self, item: dict, **asked) -> tuple[Tensor, tuple[int, int, int]]:
        """One media item → patches (N, 1176) and grid (t, h, w). The item's options win over the call's."""
        item = checked_item(item)
        size, limits, total_pixels, sampling = item_options(item, asked)
        if media_kind(item) == "image":
            image = load_image(item_source(item))
            return self.patches_of([image], self.picture_size(*true_size(image), size, limits))

        video = load_video(item_source(item), **sampling)
        size = self.clip_size(video, size, limits, total_pixels)
        return self.patches_of(video.frames(), size, resample="torch")  # clips have no "pillow" way, officially

    def picture_size(self, height: int, width: int, size: tuple | None, asked: dict) -> tuple[int, int]:
        """The size of a picture: `size`, (height, width), if its item or call says it, within the limits `asked`."""
        if not size:
            return self.target_size(height, width, **asked)
        low, high = (asked.get(name) or getattr(self, name) for name in ("min_pixels", "max_pixels"))
        return limits.own_size(size, self.patch_size * self.merge_size, low, high)

    def clip_size(self, video: Video, size: tuple | None, asked: dict, total_pixels: int | None) -> tuple[int, int]:
        """The same for a clip's frames; `total_pixels` is the budget for all of them together, or None."""
        if not size:
            return self.frame_size(video.num_frames, video.height, video.width, **asked, total_pixels=total_pixels)
        low, high = (asked.get(name) or getattr(self, f"video_{name}") for name in ("min_pixels", "max_pixels"))
        size = limits.own_size(size, self.patch_size * self.merge_size, low, high)
        pairs = -(-video.num_frames // self.temporal_patch_size)
        return limits.within(size, total_pixels or self.video_total_pixels, pairs)


def with_rates(items: list[dict], asked: dict) -> tuple[list[dict], dict]:
    """Items and options of a call, in which a list of frame rates, one for each clip, has gone into the clips."""
    options = asked | {key: value for key, value in asked.get("videos_kwargs", {}).items() if key == "fps"}
    rates = options.get("fps")
    if not isinstance(rates, list | tuple):
        return items, asked
    clips = [item for item in items if media_kind(item) == "video"]
    if len(clips) != len(rates):
        raise ValueError(f"fps has {len(rates)} numbers for {len(clips)} clips; give one number, or one for each.")
    own = {id(item): rate for item, rate in zip(clips, rates)}
    dated = [item | {"fps": own[id(item)]} if is_undated(item) and id(item) in own else item for item in items]
    rest = {key: value for key, value in asked.items() if key != "fps"}
    if "videos_kwargs" in rest:
        rest["videos_kwargs"] = {key: value for key, value in rest["videos_kwargs"].items() if key != "fps"}
    return dated, rest


def is_undated(item: dict) -> bool:
    """Whether an item does not say itself how many frames are taken."""
    return not own_names(item).keys() & {"fps", "nframes"}


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
