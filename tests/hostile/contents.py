"""Files that are not what their name says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.material import clip, picture, zipped
from tests.hostile.ways_in import NO_PICTURE, NO_VIDEO, file, see_clip, see_picture

NEITHER = {  # neither a picture nor a clip
    "text": b"This is no picture, whatever the name says.\n" * 5,
    "zip": zipped,
    "HTML": b"<!doctype html><html><body><img src='http://127.0.0.1/a.png'></body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='file:///etc/passwd'/></svg>",
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(200),
    "m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\nduration 1\n",
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" + bytes(100),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.",
    "JSON": b'{"image": [1, 2, 3]}',
    "one byte": b"\x89",
    "nothing": b"",
    "spaces": b" " * 4096,
    "zeros": bytes(4096),
    "random bytes": random.Random(5).randbytes(4096),
    "MP3": b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"\xff\xfb\x90\x00" + bytes(413),
}


def contents() -> Iterator[Case]:
    kind = "wrong contents"
    for name, content in NEITHER.items():
        for says, use, suffix in ((NO_PICTURE, see_picture, "png"), (NO_VIDEO, see_clip, "mp4")):
            make = file(f"a.{suffix}", content)
            yield Case(kind, f"{name} named a.{suffix}", make, use, "is empty" if content == b"" else says)

    yield Case(kind, "a clip named a.png", file("a.png", clip), see_picture, NO_PICTURE)
    yield Case(kind, "a PNG named a.mp4", file("a.mp4", picture), see_clip, "", "answered")  # a clip of one frame
    yield Case(kind, "a JPEG named a.mp4", file("a.mp4", partial(picture, "JPEG")), see_clip, NO_VIDEO)
    yield Case(kind, "a GIF named a.jpg", file("a.jpg", partial(picture, "GIF")), see_picture, "", "answered")
    yield Case(kind, "a PNG without suffix", file("a", picture), see_picture, "", "answered")
    yield Case(kind, "a PNG before a zip", file("a.png", lambda: picture() + zipped()), see_picture, "", "answered")
    yield Case(kind, "a WebM named a.mp4", file("a.mp4", partial(clip, "webm")), see_clip, "", "answered")
    yield Case(kind, "an HTML with an MP4 behind it", file("a.mp4", lambda: b"<html>" + clip()), see_clip, NO_VIDEO)
    for format in ("ICO", "TGA", "PCX", "JPEG2000"):
        make = file("a.png", partial(picture, format))
        yield Case(kind, f"{format} named a.png", make, see_picture, NO_PICTURE)
