"""Prompts from the command line and the keyboard → the content of messages."""

from __future__ import annotations

import argparse
import os
import re
import sys

from PIL import Image, UnidentifiedImageError

from qwen2vl_cli.costs import open_media
from qwen2vl_cli.progress import watched_clips
from qwen2vl_cli.questions import is_bundled
from qwen2vl_cli.terminal import note
from qwen2vl_io.formats import HEAD_BYTES, PICTURE, RAW, READ, kind_of
from qwen2vl_io.picture_files import FORMATS
from qwen2vl_io.sentences import shorten
from qwen2vl_mini import Qwen2VLProcessor

PICTURE_PROMPT = "Describe this image."
VIDEO_PROMPT = "Describe this video."
BUNDLED_VIDEO_PROMPT = "What happens?"  # the question that "tiny" was taught
CLIPS = ("fps", "nframes", "video_start", "video_end")
MENTION = re.compile(r'(?<![^\s(])@(?:"([^"\n]+)"|(\S+))')  # not the @ of an e-mail address
MEDIA_NAME = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|heif|mp4|mov|mkv|webm|avi|m4v)$", re.IGNORECASE)


def text_of(text: str) -> str:
    """The text as it is; "-" stands for all of stdin. Raises ValueError if that has no text."""
    is_piped = text == "-"
    if is_piped and sys.stdin is None:
        raise ValueError("stdin is closed, so there is no text to read from it; write the text in place of -.")

    try:
        text = sys.stdin.read().rstrip("\n") if is_piped else text
        text.encode()
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text; convert it first.") from None
    if is_piped and not text.strip():
        raise ValueError("stdin is empty; pipe a text into it, or write the text in place of -.")
    return text


def kind_of_file(path: str) -> str:
    """'image' or 'video', by the content: an animation is a clip, and so is all that is no picture."""
    try:
        with open(path, "rb") as file:
            kind = kind_of(file.read(HEAD_BYTES))
        with Image.open(path, formats=FORMATS) as picture:
            return "video" if getattr(picture, "is_animated", False) else "image"
    except UnidentifiedImageError:
        if kind is not None:
            return "image" if kind.family in (READ, PICTURE, RAW) else "video"
        return "image" if re.search(r"\.(png|jpe?g|webp|bmp|tiff?|avif|hei[cf])$", path, re.IGNORECASE) else "video"
    except Exception:  # a damaged picture: loading it will say so
        return "image"


def with_files(text: str) -> list[dict]:
    """A prompt → items of a message, in which each @path (or @"path") of an existing file has become that file."""
    items = []
    end = 0  # of the last file's name
    for match in MENTION.finditer(text):
        # "@a.png?" may end a question
        names = [match[1]] if match[1] else [match[2], match[2].rstrip(".,;:!?)'\"")]
        name = next((name for name in names if is_file(name)), None)
        if name is None:
            if MEDIA_NAME.search(names[-1]):
                note(f"There is no file {shorten(names[-1])}, so @{shorten(names[-1])} stays text.")
            continue

        path = os.path.expanduser(name)
        kind = kind_of_file(path)
        items.append({"type": "text", "text": text[end : match.start()].strip()})
        items.append({"type": kind, kind: path})
        end = match.end() if match[1] else match.start() + len("@") + len(name)

    items.append({"type": "text", "text": text[end:].strip() if items else text})
    return [item for item in items if item.get("text") != ""] or items[:1]


def is_file(name: str) -> bool:
    try:
        return os.path.isfile(os.path.expanduser(name))
    except (OSError, ValueError):  # too long, or with a zero byte: no name of a file at all
        return False


def clip_options(args: argparse.Namespace) -> dict:
    """--fps, --nframes, --video-start and --video-end, as far as they are given."""
    return {key: getattr(args, key) for key in CLIPS if getattr(args, key) is not None}


def in_reading_order(given: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the command line gave, in the order in which the model reads it.

    A single prompt is a question about all media, and models are taught to read those first, so it comes last wherever
    it stands. Of several prompts each is meant for its own place.
    """
    prompts = [kind for kind, _ in given if kind == "prompt"]
    return sorted(given, key=lambda entry: entry[0] == "prompt") if len(prompts) == 1 else given


def read_content(args: argparse.Namespace, processor: Qwen2VLProcessor, context: int) -> list[dict]:
    """The command line's pictures, clips and prompts → the content of a message, its media open."""
    items = []
    for kind, value in in_reading_order(args.content):
        if kind == "prompt":
            text = text_of(value)
            # what comes through a pipe may be anybody's words: they attach no files
            items += [{"type": "text", "text": text}] if value == "-" else with_files(text)
        else:
            items.append({"type": kind, kind: value})

    kinds = {item["type"] for item in items}
    if clip_options(args) and "video" not in kinds and not args.chat:
        raise ValueError("--fps, --nframes, --video-start and --video-end are about clips; add --video.")

    content = watched_clips(open_media(items, processor, context, clip_options(args)))
    if "text" not in kinds and not args.chat:
        video_prompt = BUNDLED_VIDEO_PROMPT if is_bundled(args.model) else VIDEO_PROMPT
        content.append({"type": "text", "text": video_prompt if "video" in kinds else PICTURE_PROMPT})
    return content
