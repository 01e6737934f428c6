"""Pictures and clips in the address itself: data URIs, and base64 without one."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from tests.hostile.cases import Case
from tests.hostile.material import picture
from tests.hostile.ways_in import BOTH, given, made, see, see_picture

ENCODED = base64.b64encode(picture()).decode()

WRONG_URIS = {  # name: URI, what the refusal says
    "nothing": ("data:", "not a base64 data URI"),
    "no comma": ("data:image/png;base64", "not a base64 data URI"),
    "no base64": ("data:image/png,abc", "not a base64 data URI"),
    "an empty body": ("data:image/png;base64,", "is empty"),
    "no letters of base64": ("data:image/png;base64,????", "no valid base64"),
    "an odd length": ("data:image/png;base64,A", "no valid base64"),
    "half of it": ("data:image/png;base64," + ENCODED[: len(ENCODED) // 8 * 4], "cut off or damaged"),
    "letters beyond ASCII": ("data:image/png;base64,ÄÖÜß", "no valid base64"),
    "half a character": ("data:image/png;base64,\ud800", "no valid base64"),
    "a text": ("data:text/plain;base64,SGVsbG8=", "no picture|not a picture|no video"),
    "an HTML page": (
        "data:text/html;base64," + base64.b64encode(b"<html>" * 9).decode(),
        "no picture|not a picture|no video",
    ),
    "another data URI": ("data:image/png;base64,data:image/png;base64," + ENCODED, "no valid base64"),
    "a head of a megabyte": ("data:" + "x" * 10**6 + ",abc", "not a base64 data URI"),
    "a line break in its head": ("data:image/\npng,x", "not a base64 data URI"),
}

ODD_BUT_SOUND = {
    "a wrong type": "data:text/plain;base64," + ENCODED,
    "no type": "data:;base64," + ENCODED,
    "capitals": "DATA:IMAGE/PNG;BASE64," + ENCODED,
    "line breaks": "data:image/png;base64," + "\n".join(re.findall(".{,76}", ENCODED)),
    "quoted": "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
}

WRONG_BASE64 = {  # name: what stands in place of base64, what the refusal says
    "no text": (5, "no picture|base64"),
    "not base64": ("a.png!", "no valid base64"),
    "no padding": ("AAA", "no valid base64"),
    "empty": ("", "is empty|names no"),
}


def data_uris() -> Iterator[Case]:
    kind = "data URIs"
    for name, (uri, says) in WRONG_URIS.items():
        for what, use in BOTH[:1] if name == "half of it" else BOTH:  # half a PNG is no clip at all
            yield Case(kind, f"{name}, {what}", given(uri), use, says)
    for what, use in BOTH:
        yield Case(kind, f"100 MB, {what}", made(long_uri), use, "more than 67,108,864")
    for name, uri in ODD_BUT_SOUND.items():
        yield Case(kind, f"odd but sound: {name}", given(uri), see_picture, "", "answered")
    for name, (text, says) in WRONG_BASE64.items():
        yield Case(kind, f"bare: {name}", given({"type": "image", "base64": text}), see, says)


def long_uri() -> str:
    return "data:image/png;base64," + "A" * 10**8
