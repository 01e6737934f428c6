"""One question, or a chat."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

import qwen2vl_mini
import weights_loader
from qwen2vl_cli.chat import Chat
from qwen2vl_cli.chat_loop import ChatLoop, answer
from qwen2vl_cli.costs import check_length, in_words, measures, media_of, print_costs, prompt_length
from qwen2vl_cli.prompts import read_content, text_of
from qwen2vl_cli.terminal import has_unread_stdin, note
from qwen2vl_io import urls
from qwen2vl_io.boxes import Box, draw_boxes, enlarge_tiny, parse_boxes
from qwen2vl_io.options import sampling_settings
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLProcessor

BUNDLED = (
    "The bundled 4.6 M teaching model knows coloured shapes in small drawings (--questions lists what it was taught); "
    "the real one: --model Qwen/Qwen2-VL-2B-Instruct"
)
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def open_checkpoint(args: argparse.Namespace) -> tuple[Qwen2VLProcessor, int]:
    """The processor and the context length of --model: all that prompts are measured with, and no weights."""
    urls.ALLOW_PRIVATE |= args.allow_private_urls
    folder = weights_loader.find_checkpoint(args.model or "tiny")
    processor = Qwen2VLProcessor.from_pretrained(folder, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    return processor, Qwen2VLConfig.from_pretrained(folder).text_config.max_position_embeddings


def sampling_options(args: argparse.Namespace) -> dict:
    """The options of `generate` and `stream` that choose among likely tokens."""
    return {key: getattr(args, key) for key in ("seed", *SAMPLING)}


def load_model(args: argparse.Namespace) -> tuple[torch.nn.Module, dict, float]:
    """The model, the settings in force, and the seconds that loading took."""
    name = args.model or "tiny"
    began = time.perf_counter()
    model = weights_loader.load_model(name, dtype=args.dtype, device=args.device, attn_implementation=args.attn)
    seconds = time.perf_counter() - began

    settings = {"model": name, "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    settings |= {"attention": model.attn_implementation, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    settings |= sampling_settings(model.generation_config, **{key: getattr(args, key) for key in SAMPLING})
    if args.verbose:
        note("settings  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
        if args.dtype == "auto" and model.device.type == "cpu":
            note(f"dtype     {settings['dtype']}, because {weights_loader.cpu_bfloat16()[1]}")
        note(f"code      {qwen2vl_mini.__file__}")
        note(f"load      {seconds:.2f} s")
    return model, settings, seconds


def run(args: argparse.Namespace) -> int:
    """One question or a chat. All that can be checked is checked before the weights are loaded."""
    check_stdin(args)
    system = text_of(args.system) if args.system else None
    processor, context = open_checkpoint(args)
    content = read_content(args, processor, context)
    media = media_of([{"content": content}])
    if args.model is None:
        note(BUNDLED)
    if content:
        check_prompt(args, processor, context, system, content)
    if args.count_tokens:
        return 0

    model, settings, load_seconds = load_model(args)
    if args.verbose or args.chat:
        for item in media:
            name = "picture" if item["type"] == "image" else "clip"
            note(f"{name:<9} {in_words(item['measured'])}")

    chat = Chat(model, processor, system, args.add_vision_id, args.max_new_tokens, **sampling_options(args))
    if args.chat:
        ChatLoop(chat, content, args).run()
        return 0

    answer(chat, content, args)
    boxes = find_boxes(chat, media)
    show_boxes(boxes, media, args.boxes)
    if args.json:
        print_report(chat, media, boxes, settings, load_seconds)
    return 0


def check_stdin(args: argparse.Namespace) -> None:
    """A chat needs a stdin; a question that is piped in without "-" is not read, which is said."""
    if args.chat and sys.stdin is None:
        raise ValueError("--chat reads its turns from stdin, which is closed; run it in a terminal or pipe lines in.")

    is_read = args.chat or args.system == "-" or ("prompt", "-") in args.content
    if not is_read and has_unread_stdin():
        note("There is text on stdin that was not read; --prompt - takes it as the question.")


def check_prompt(
    args: argparse.Namespace, processor: Qwen2VLProcessor, context: int, system: str | None, content: list[dict]
) -> None:
    """Refuse a prompt that does not fit the context with its answer. --count-tokens: say what it costs."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": content}]
    length = prompt_length(messages, processor, args.add_vision_id)
    if args.count_tokens:
        print_costs(length, media_of(messages), context, args.json)
    check_length(messages, length, 0 if args.count_tokens else args.max_new_tokens, context)


def find_boxes(chat: Chat, media: list[dict]) -> list[Box]:
    """The boxes of the last answer, which belong on the last picture."""
    pictures = [item["image"] for item in media if item["type"] == "image"]
    if not pictures:
        return []
    return parse_boxes(chat.processor.decode(chat.report["ids"]), pictures[-1].width, pictures[-1].height)


def show_boxes(boxes: list[Box], media: list[dict], path: Path | None) -> None:
    """Say where the boxes are; draw them on the last picture, into the file of --boxes."""
    for box in boxes:
        note(f"box       {box.name}: ({box.x1:.0f}, {box.y1:.0f}) to ({box.x2:.0f}, {box.y2:.0f}) pixels")
    if path is None:
        return
    if not boxes:
        note(f"The answer has no box, so {path} was not written.")
        return

    pictures = [item["image"] for item in media if item["type"] == "image"]
    picture, boxes, factor = enlarge_tiny(pictures[-1], boxes)
    draw_boxes(picture, boxes).save(path)
    note(f"Wrote {path}, {factor} times as large as the picture." if factor > 1 else f"Wrote {path}.")


def print_report(chat: Chat, media: list[dict], boxes: list[Box], settings: dict, load_seconds: float) -> None:
    """--json: the answer and all that is to say about it, as one object."""
    measured = dict(chat.report)
    ids = measured.pop("ids")
    measured["tokens"] = measured["tokens"] | {"context": chat.context}
    measured["seconds"] = measured["seconds"] | {"load": load_seconds}
    report = {
        "answer": chat.processor.decode(ids, skip_special_tokens=True),
        "raw": chat.processor.decode(ids),
        "boxes": [asdict(box) for box in boxes],
        **measures(media),
        **measured,
        "settings": settings,
    }
    print(json.dumps(report, ensure_ascii=False), flush=True)
