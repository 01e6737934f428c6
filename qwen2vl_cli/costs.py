"""Pictures and clips are measured before they cost anything: their sizes, and the tokens of a prompt."""

from __future__ import annotations

import json
import os

from PIL import Image

from qwen2vl_io.limits import is_set
from qwen2vl_io.messages import item_options, media_kind
from qwen2vl_io.options import VIDEO_OPTIONS
from qwen2vl_io.pictures import load_image, true_size
from qwen2vl_io.sentences import shorten
from qwen2vl_io.sources import item_source
from qwen2vl_io.videos import Video, load_video
from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, render_chat


def open_item(item: dict, processor: Qwen2VLProcessor, context: int, clips: dict | None = None) -> dict:
    """A media item of a message → the same with its picture decoded or its clip open (its frames are not decoded yet).

    `clips`: options, such as how to sample a clip, where its item does not say it. What comes back has two keys more:
    `source`, and `measured`, which is the sizes in pixels and the cost in tokens. Raises ValueError or
    FileNotFoundError.
    """
    kind = media_kind(item)
    source = item_source(item)
    if isinstance(source, list | tuple):
        # frames that were taken already have no times by which to sample them
        clips = {name: value for name, value in (clips or {}).items() if name not in VIDEO_OPTIONS}
    size, limits, budget, sampling = item_options(item, clips or {})

    if kind == "image":
        opened = load_image(source)
        options = dict(limits)
        resized = processor.image_processor.picture_size(*true_size(opened), size, limits)
        measured = measure_picture(opened, processor.image_processor, resized)
    else:
        opened = load_video(source, **sampling)
        options = limits | sampling | {"total_pixels": budget}
        resized = processor.image_processor.clip_size(opened, size, limits, budget)
        measured = measure_clip(opened, processor.image_processor, resized)
    measured = {"file": media_name(kind, source), **measured}

    if measured["tokens"] >= context:  # said here, since even resizing to such a size can fill the memory
        what = f"{measured['file']} would take {measured['tokens']} tokens of a context of {context}"
        least = "--min-pixels, " if is_set(limits["min_pixels"] or processor.image_processor.min_pixels) else ""
        lower = f"{least}--max-pixels" if kind == "image" else f"--nframes, --fps, {least}--max-pixels"
        lower = " or ".join(lower.rsplit(", ", 1))
        raise ValueError(f"{what}; lower {lower}.")

    if size:
        options |= {"resized_height": size[0], "resized_width": size[1]}
    options = {key: value for key, value in options.items() if value is not None}
    return {"type": kind, kind: opened, "source": source, **options, "measured": measured}


def media_name(kind: str, source) -> str:
    """What messages call a picture or clip."""
    if not isinstance(source, str | os.PathLike):
        return f"The {kind}"
    name = os.fspath(source)
    return shorten(name, 60) if name[:5].lower() == "data:" else name


def measure_picture(picture: Image.Image, images: Qwen2VLImageProcessor, resized: tuple[int, int]) -> dict:
    """Sizes and cost of a picture that the tower sees at the size `resized` (height, width)."""
    return sizes(picture, resized) | {"tokens": images.num_tokens(1, *resized)}


def measure_clip(clip: Video, images: Qwen2VLImageProcessor, resized: tuple[int, int]) -> dict:
    """Sizes, frames and cost of a clip."""
    measured = sizes(clip, resized)
    measured |= {"frames": clip.num_frames, "total_frames": clip.total_frames, "video_fps": clip.video_fps}
    measured |= {"seconds": [round(second, 3) for second in clip.seconds]}
    if clip.note:
        measured |= {"note": clip.note}
    return measured | {"tokens": images.num_tokens(clip.num_frames, *resized)}


def sizes(opened: Image.Image | Video, resized: tuple[int, int]) -> dict:
    """The size of the file's pictures, and the size (height, width) at which the tower sees them."""
    height, width = true_size(opened) if isinstance(opened, Image.Image) else (opened.height, opened.width)
    return {"width": width, "height": height, "resized_width": resized[1], "resized_height": resized[0]}


def open_media(items: list[dict], processor: Qwen2VLProcessor, context: int, clips: dict | None = None) -> list[dict]:
    """The content of a message with its media open; the rest as for `open_item`."""
    return [open_item(item, processor, context, clips) if media_kind(item) else item for item in items]


def in_words(measured: dict) -> str:
    """One line about a picture or clip."""
    frames = ""
    seconds = measured.get("seconds")
    if seconds:
        first = seconds[0]
        last = seconds[-1]
        spacing = f", every {(last - first) / (len(seconds) - 1):.2f} s" if len(seconds) > 1 else ""
        frames = f"{len(seconds)} of {measured['total_frames']} frames ({first:.2f} to {last:.2f} s{spacing}), "

    before = f"{measured['width']}×{measured['height']}"
    after = f"{measured['resized_width']}×{measured['resized_height']}"
    hint = f" ({measured['note']})" if "note" in measured else ""
    return f"{measured['file']}: {frames}{before} → {after} pixels, {measured['tokens']} tokens{hint}"


def media_of(messages: list[dict]) -> list[dict]:
    """All media items of a conversation, in order."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [item for content in lists for item in content if media_kind(item)]


def prompt_length(messages: list[dict], processor: Qwen2VLProcessor, add_vision_id: bool) -> int:
    """The tokens of a conversation whose media are open, generation prompt included; no pixel is touched."""
    processor.apply_chat_template(messages, add_generation_prompt=True)  # complains where there is no template
    ids = processor.tokenizer.encode(render_chat(messages, True, add_vision_id))
    return len(ids) + sum(item["measured"]["tokens"] - 1 for item in media_of(messages))  # one placeholder is in ids


def check_length(messages: list[dict], length: int, max_new_tokens: int, context: int) -> None:
    """Refuse, with the numbers and what to lower, a prompt that does not fit the context with its answer."""
    if length + max_new_tokens <= context:
        return

    costs = {"image": 0, "video": 0}
    for item in media_of(messages):
        costs[media_kind(item)] += item["measured"]["tokens"]

    prompt = f"The prompt of {length} tokens"
    lower = []
    if costs["image"]:
        prompt += f", {costs['image']} of them pictures"
    if costs["video"]:
        prompt += f", {costs['video']} of them clips"
        lower += ["--nframes", "--fps"]
    if costs["image"] or costs["video"]:
        lower += ["--max-pixels"]
    if length < context:
        lower += ["--max-new-tokens"]

    both = f", and an answer of up to {max_new_tokens} do" if max_new_tokens else " does"
    way_out = f"lower {' or '.join(lower)}" if lower else "shorten the text"
    raise ValueError(f"{prompt}{both} not fit the model's context of {context}; {way_out}.")


def print_costs(length: int, media: list[dict], context: int, as_json: bool) -> None:
    """--count-tokens: the tokens of each picture and clip, of the text, and of all."""
    text_tokens = length - sum(item["measured"]["tokens"] for item in media)
    if as_json:
        counts = {"text_tokens": text_tokens, "total_tokens": length, "context": context}
        print(json.dumps(measures(media) | counts, ensure_ascii=False))
        return

    for item in media:
        print(in_words(item["measured"]))
    print(f"text and the chat's own markers: {text_tokens} tokens")
    print(f"total: {length} tokens, {length / context:.1%} of the context of {context}")


def measures(media: list[dict]) -> dict:
    """What --json says about pictures and clips."""
    return {
        "pictures": [item["measured"] for item in media if item["type"] == "image"],
        "videos": [item["measured"] for item in media if item["type"] == "video"],
    }
