"""Pictures and clips are measured before they cost anything: their sizes, and the tokens of a prompt."""

from __future__ import annotations

import json
import os

from qwen2vl_io.messages import item_options, media_kind
from qwen2vl_io.pictures import load_image
from qwen2vl_io.sentences import shorten
from qwen2vl_io.sources import item_source
from qwen2vl_io.videos import load_video
from qwen2vl_mini import Qwen2VLProcessor, render_chat


def open_item(item: dict, processor: Qwen2VLProcessor, context: int, clips: dict | None = None) -> dict:
    """A media item of a message → the same with its picture decoded or its clip open (its frames are not decoded yet).

    `clips`: how to sample a clip whose item does not say it. What comes back has two keys more: `source`, and
    `measured`, which is the sizes in pixels and the cost in tokens. Raises ValueError or FileNotFoundError.
    """
    kind, source, images = media_kind(item), item_source(item), processor.image_processor
    # the frames of a list have no times, and are taken as they are
    size, limits, total, sampling = item_options(item, {} if isinstance(source, list | tuple) else clips or {})
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else f"The {kind}"
    name = shorten(name, 60) if name[:5].lower() == "data:" else name
    if kind == "image":
        thing, about, sampling, total = load_image(source), {}, {}, None
        height, width = images.target_size(*(size or (thing.height, thing.width)), **limits)
    else:
        thing = load_video(source, **sampling)
        about = {"frames": thing.num_frames, "total_frames": thing.total_frames, "video_fps": thing.video_fps}
        about |= {"seconds": [round(second, 3) for second in thing.seconds]}
        about |= {"note": thing.note} if thing.note else {}
        frame = thing.num_frames, thing.height, thing.width
        height, width = (
            images.target_size(*size, **limits) if size else images.frame_size(*frame, **limits, total_pixels=total)
        )
    tokens = images.num_tokens(about.get("frames", 1), height, width)
    if tokens >= context:  # said here, since even resizing to such a size can fill the memory
        lower = "--max-pixels" if kind == "image" else "--nframes, --fps or --max-pixels"
        raise ValueError(f"{name} would take {tokens} tokens of a context of {context}; lower {lower}.")
    sizes = {"width": thing.width, "height": thing.height, "resized_width": width, "resized_height": height}
    measured = {"file": name, **sizes, **about, "tokens": tokens}
    options = limits | sampling | {"total_pixels": total}
    options |= {"resized_height": size[0], "resized_width": size[1]} if size else {}
    options = {key: value for key, value in options.items() if value is not None}
    return {"type": kind, kind: thing, "source": source, **options, "measured": measured}


def open_media(items: list[dict], *how) -> list[dict]:
    """The content of a message with its media open; `how` as for `open_item`."""
    return [open_item(item, *how) if media_kind(item) else item for item in items]


def in_words(measured: dict) -> str:
    """One line about a picture or clip."""
    frames, m, hint = "", measured, f" ({measured['note']})" if "note" in measured else ""
    if times := m.get("seconds"):
        spacing = f", every {(times[-1] - times[0]) / (len(times) - 1):.2f} s" if len(times) > 1 else ""
        frames = f"{len(times)} of {m['total_frames']} frames ({times[0]:.2f} to {times[-1]:.2f} s{spacing}), "
    sizes = f"{m['width']}×{m['height']} → {m['resized_width']}×{m['resized_height']} pixels"
    return f"{m['file']}: {frames}{sizes}, {m['tokens']} tokens{hint}"


def media_of(messages: list[dict]) -> list[dict]:
    """All media items of a conversation, in order."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [item for content in lists for item in content if media_kind(item)]


def prompt_length(messages: list[dict], processor: Qwen2VLProcessor, add_vision_id: bool) -> int:
    """The tokens of a conversation whose media are open, generation prompt included; no pixel is touched."""
    processor.apply_chat_template(messages, add_generation_prompt=True)  # complains where there is no template
    ids = processor.tokenizer.encode(render_chat(messages, True, add_vision_id))
    return len(ids) + sum(item["measured"]["tokens"] - 1 for item in media_of(messages))  # each has one placeholder


def check_length(messages: list[dict], length: int, max_new_tokens: int, context: int) -> None:
    """Refuse, with the numbers and what to lower, a prompt that does not fit the context with its answer."""
    if length + max_new_tokens <= context:
        return
    costs = {"image": 0, "video": 0}
    for item in media_of(messages):
        costs[media_kind(item)] += item["measured"]["tokens"]
    parts = [f"{cost} of them {name}" for name, cost in zip(("pictures", "clips"), costs.values()) if cost]
    lower = ["--nframes", "--fps"] * bool(costs["video"]) + ["--max-pixels"] * any(costs.values())
    lower += ["--max-new-tokens"] * (length < context)
    way_out = f"lower {' or '.join(lower)}" if lower else "shorten the text"
    prompt = f"The prompt of {length} tokens{''.join(f', {part}' for part in parts)}"
    both = f", and an answer of up to {max_new_tokens} do" if max_new_tokens else " does"
    raise ValueError(f"{prompt}{both} not fit the model's context of {context}; {way_out}.")


def print_costs(length: int, media: list[dict], context: int, as_json: bool) -> None:
    """--count-tokens: the tokens of each picture and clip, of the text, and of all."""
    text_tokens = length - sum(item["measured"]["tokens"] for item in media)
    if as_json:
        counts = {"text_tokens": text_tokens, "total_tokens": length, "context": context}
        return print(json.dumps(measures(media) | counts, ensure_ascii=False))
    for item in media:
        print(in_words(item["measured"]))
    print(f"text and the chat's own markers: {text_tokens} tokens")
    print(f"total: {length} tokens, {length / context:.1%} of the context of {context}")


def measures(media: list[dict]) -> dict:
    """What --json says about pictures and clips."""
    names = {"pictures": "image", "videos": "video"}
    return {name: [item["measured"] for item in media if item["type"] == kind] for name, kind in names.items()}
