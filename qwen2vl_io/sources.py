"""Where a picture or clip comes from: a path, a URL, a data URI or bytes, opened safely."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import unquote

from qwen2vl_io.sentences import shorten

SOURCE_KEYS = ("image", "image_url", "video", "video_url", "url", "path", "base64")  # in an item of a message
MAX_BASE64_CHARS = 64 * 2**20  # characters of a data URI: 48 MiB of file
MAX_IMAGE_BYTES = 64 * 2**20  # that a URL may send for a picture
IMAGE_SECONDS = 30  # that it may take
MAX_VIDEO_BYTES = 2**30  # the same for a clip
VIDEO_SECONDS = 300


def item_source(item: dict):
    """The picture or video that an item of a message names, for `load_image` or `load_video`.

    It stands under one of SOURCE_KEYS, there also as {"url": …}; `base64` is a file's content without a "data:" head.
    """
    found = [key for key in SOURCE_KEYS if item.get(key) is not None]
    if len(found) != 1:
        what = f"names its source {len(found)} times ({', '.join(found)})" if found else "names no picture or video"
        raise ValueError(f"An item of a message {what}; give one of {', '.join(SOURCE_KEYS)}.")
    source = item[found[0]]
    if isinstance(source, dict):
        if (source := source.get("url")) is None:
            raise ValueError(f'The {found[0]} of an item holds no address; write {{"url": "…"}}.')
    if found[0] == "base64" and isinstance(source, str) and source[:5].lower() != "data:":
        return base64_bytes(source, "The base64 of an item")
    return source


def opener(source, what: str) -> tuple[Callable, str]:
    """A path, URL, data URI or bytes → a function that opens it at its first byte, and its name in messages.

    `what`: "picture" or "video". Only one of the files that the function opens for a URL can be in use at a time.
    """
    if not isinstance(source, str | os.PathLike):
        content = bytes(source)
        name = f"The {what} of {len(source)} bytes"
        return lambda: io.BytesIO(content), name
    if isinstance(source, str) and source[:5].lower() == "data:":
        content = data_uri_bytes(source)
        return lambda: io.BytesIO(content), f"The {what} in the data URI"
    if isinstance(source, str) and re.match("https?:", source, re.IGNORECASE):
        from qwen2vl_io.urls import open_url

        limits = (MAX_VIDEO_BYTES, VIDEO_SECONDS) if what == "video" else (MAX_IMAGE_BYTES, IMAGE_SECONDS)
        fetched = open_url(source, *limits)  # a temporary file, gone when it is closed

        def rewound():
            fetched.seek(0)
            return nullcontext(fetched)

        weakref.finalize(rewound, fetched.close)  # once nobody can ask for it any more
        return rewound, shorten(source)
    path = find_file(source, what)

    def open_path():
        try:
            return path.open("rb")
        except OSError as error:
            raise ValueError(f"{shorten(path)} cannot be opened ({error.strerror}); check its permissions.") from None

    return open_path, shorten(path)


def find_file(source: str | os.PathLike, what: str = "picture") -> Path:
    """A path or a file URL → the path of an ordinary file that exists. `what` it should hold is named in errors."""
    text = os.fspath(source)
    if isinstance(text, str) and re.match("file:", text, re.IGNORECASE):
        local = re.match("file:(?://(?:localhost)?)?(/.*)", text, re.IGNORECASE | re.DOTALL)
        if not local or local[1].startswith("//"):
            raise ValueError(f"{shorten(text)} does not name a file on this machine; write file:///folder/name.")
        text = unquote(local[1])
    elif isinstance(text, str) and re.match("[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(f"Of URLs only http, https and file are read: save {shorten(text)} to a file, pass its path.")
    path = Path(os.fsdecode(text))
    try:
        if path.is_file():
            return path
        is_dir = path.is_dir()
        exists = path.exists()
    except (OSError, ValueError):  # a name too long for the system, or with a null character in it
        is_dir = exists = False
    if is_dir:
        raise ValueError(f"{shorten(path)} is a folder; name one {what} in it.")
    if exists:
        raise ValueError(f"{shorten(path)} is not an ordinary file; save the {what} to one first.")
    raise FileNotFoundError(f"There is no file {shorten(path)}; check the name and the folder ({shorten(Path.cwd())}).")


def data_uri_bytes(uri: str) -> bytes:
    """The file inside "data:image/png;base64,…"."""
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{shorten(uri, 60)} is not a base64 data URI; write data:image/png;base64,… instead.")
    return base64_bytes(body, "The data URI")


def base64_bytes(text: str, name: str) -> bytes:
    if len(text) > MAX_BASE64_CHARS:
        raise ValueError(f"{name} has {len(text):,} characters, more than {MAX_BASE64_CHARS:,}; save it to a file.")
    try:
        return base64.b64decode(re.sub(r"\s", "", unquote(text)), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} holds no valid base64; encode the file with base64.b64encode.") from None


def is_url(source: str) -> bool:
    return re.match("(?:https?|file|data):", source, re.IGNORECASE) is not None
