"""A few bytes that promise many pixels, frames or samples; a refusal names the limit that was exceeded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.material import (
    bmp,
    chunk,
    clip,
    flat_tiff,
    gif,
    many_samples,
    many_scans,
    packed_note,
    picture,
    png,
    tiff,
    webp_header,
)
from tests.hostile.ways_in import DAMAGED, made, see_clip, see_picture, sparse

LIMIT = "more pixels than the limit|has more than|longer than 200:1"
SIDE = 8000  # squared, 64 million pixels: just below the limit


def bombs() -> Iterator[Case]:
    yield from png_bombs()
    yield from tiff_bombs()
    yield from gif_bombs()
    yield from bombs_of_other_pictures()
    yield from notes_in_a_png()
    yield from mp4_bombs()
    yield from long_holes()
    yield bomb("PNG of one row", partial(png, 40_000, 1), "longer than 200:1")
    yield bomb("PNG of one column", partial(png, 1, 40_000), "longer than 200:1")


def bomb(name: str, data: Callable, says: str = LIMIT, use: Callable = see_picture, expect: str = "refused") -> Case:
    return Case("bombs", name, made(data), use, says, expect)


def png_bombs() -> Iterator[Case]:
    for width, height in ((65535, 65535), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (50000, 50000)):
        yield bomb(f"PNG of {width}×{height}", partial(png, width, height, rows=0), LIMIT + "|damaged")
    yield bomb("PNG of 0×0", partial(png, 0, 0, rows=0), DAMAGED)
    yield bomb("PNG of 0×9", partial(png, 0, 9, rows=0), DAMAGED)
    yield bomb("PNG one row too wide", partial(png, 8000, 9, 1, 0), "longer than 200:1")

    palette = chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\0\x80")
    yield bomb("PNG, 64 million pixels of one bit", partial(png, SIDE, SIDE, 1, 0), expect="either")
    yield bomb("PNG, 64 million half transparent pixels", partial(png, SIDE, SIDE, 1, 3, *palette), expect="either")
    # Pillow paints missing rows black if the end of the file is sound
    yield bomb("PNG, 64 million pixels missing", partial(png, SIDE, SIDE, 8, 6, rows=1), expect="either")


def tiff_bombs() -> Iterator[Case]:
    yield bomb("TIFF, 64 million pixels", partial(flat_tiff, SIDE, SIDE), expect="either")
    yield bomb("TIFF, 64 million pixels of 16 bits", partial(flat_tiff, SIDE, SIDE, 16, 1), expect="either")
    yield bomb("TIFF, 64 million turned pixels", partial(flat_tiff, SIDE, SIDE, tags={274: 6}), expect="either")
    yield bomb("TIFF of 4 billion pixels", partial(flat_tiff, 65000, 65000, strips=6500))
    yield bomb("TIFF of no data", partial(tiff, 1000, 1000), "damaged")
    yield bomb("TIFF in a circle", partial(tiff, 8, 8, bytes(192), loop=True), DAMAGED, expect="either")
    yield bomb("TIFF of 65535 channels", partial(tiff, 8, 8, bytes(192), tags={277: 65535}), DAMAGED)
    yield bomb("TIFF of 255 bits a channel", partial(tiff, 8, 8, bytes(192), tags={258: 255}), DAMAGED)
    yield bomb("TIFF with a strip of 4 GB", partial(tiff, 64, 64, b"", tags={279: 2**32 - 1}), DAMAGED)
    yield bomb("TIFF of unknown packing", partial(tiff, 8, 8, bytes(192), tags={259: 61234}), DAMAGED)
    yield bomb("TIFF with 65535 tags", lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(1200), DAMAGED)


def gif_bombs() -> Iterator[Case]:
    yield bomb("GIF with a canvas of 65535×65535", partial(gif, 65535, 65535, 1))
    yield bomb("GIF with a canvas of 64 million pixels", partial(gif, SIDE, SIDE, 1), expect="either")
    yield bomb("GIF frame larger than its canvas", partial(gif, 8, 8, 1, 65535, 65535), DAMAGED, expect="either")
    yield bomb("GIF of 20,000 frames, as a picture", partial(gif, 8, 8, 20000), expect="answered")
    yield bomb("GIF of 20,000 frames, as a clip", partial(gif, 8, 8, 20000), "10,000 frames", see_clip)
    yield bomb("GIF clip of 65535×65535", partial(gif, 65535, 65535, 3), LIMIT, see_clip)
    yield bomb("GIF clip of 32 frames of 33 million pixels", partial(gif, 8190, 4095, 32), LIMIT, see_clip, "either")
    yield bomb("GIF clip over all limits", partial(gif, 5000, 5000, 500), LIMIT, see_clip)


def bombs_of_other_pictures() -> Iterator[Case]:
    yield bomb("WebP of 16384×16384", partial(webp_header, 16384, 16384))
    yield bomb("WebP of 64 million missing pixels", partial(webp_header, SIDE, SIDE), LIMIT + "|damaged")
    yield bomb("JPEG of 56540×56540", huge_jpeg)
    yield bomb("JPEG of 3,000 scans", partial(many_scans, 4096, 3000), "damaged|scans|limit")
    yield bomb("BMP of 214 billion pixels", partial(bmp, 2**31 - 1, 100), LIMIT + "|damaged")
    yield bomb("BMP of negative width", partial(bmp, -64, 48), DAMAGED)
    yield bomb("PPM of a size of 5,000 digits", lambda: b"P6 " + b"9" * 5000 + b" 9 255\n", DAMAGED)
    yield bomb("PPM of 64 million missing pixels", lambda: b"P6 8000 8000 255\n" + bytes(100), LIMIT + "|damaged")


def huge_jpeg() -> bytes:
    """A sound JPEG whose header states 0xdcdc×0xdcdc pixels."""
    return re.sub(b"(\xff\xc0...)....", b"\\1" + b"\xdc" * 4, picture("JPEG"), flags=re.S)


def notes_in_a_png() -> Iterator[Case]:
    yield bomb("PNG with 100 MB of packed text", partial(packed_note, b"zTXt"), DAMAGED, expect="either")
    yield bomb("PNG with 100 MB of packed colours", partial(packed_note, b"iCCP"), DAMAGED, expect="either")
    chunks = [chunk(b"tEXt", b"a\0b")] * 20_000
    yield bomb("PNG with 20,000 chunks", partial(png, 64, 48, 8, 2, *chunks), DAMAGED, expect="either")
    lie = struct.pack(">I", 2**31 - 1)
    yield bomb("PNG with a chunk of 2 GB", lambda: picture()[:33] + lie + picture()[37:], DAMAGED, expect="either")


def mp4_bombs() -> Iterator[Case]:
    yield bomb("MP4 that promises 80 million frames", partial(many_samples, 80_000_000), DAMAGED, see_clip)
    yield bomb("MP4 that promises 4 billion frames", partial(many_samples, 2**32 - 1), DAMAGED, see_clip)
    yield bomb("MP4 that says 65535×65535", huge_mp4, LIMIT, see_clip, "either")


def huge_mp4() -> bytes:
    """A sound MP4 whose description of the codec states 0xffff×0xffff pixels."""
    return re.sub(b"(avc1.{24})....", b"\\1" + b"\xff" * 4, clip(), flags=re.S)


HEADS: dict[str, Callable[[], bytes]] = {
    "matroska": partial(clip, "matroska"),
    "mp4": clip,
    "avi": partial(clip, "avi"),
    "mpegts": lambda: (b"\x47" + bytes(187)) * 8,
    "mpeg": lambda: b"\0\0\x01\xba" + bytes(60),
    "asf": partial(clip, "asf"),
    "ogg": partial(clip, "ogg"),
    "flv": lambda: b"FLV\x01\x01\0\0\0\x09\0\0\0\0",
    "png": lambda: picture()[:60],
    "gif": lambda: clip("gif")[:800],
}


def long_holes() -> Iterator[Case]:
    for name, head in HEADS.items():
        make = sparse(f"a.{name}", head, 2**32)
        use = see_picture if name == "png" else see_clip
        yield Case("bombs", f"{name} with 4 GB of zeros behind it", make, use, DAMAGED, "either")
