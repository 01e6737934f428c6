"""Pictures of rarer kinds: raw files, HEIC and AVIF, odd variants, and those that only look damaged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from tests.hostile.cases import Case
from tests.hostile.material import cut_off, flipped, many_scans, picture
from tests.hostile.ways_in import DAMAGED, file, made, see_clip, see_picture
from tests.picture_samples import (
    HAS_AVIF,
    HEIC,
    NAMED,
    RARE_FILES,
    RAW_FILES,
    avif,
    grey_tiff,
    jpeg,
    long_note,
    png_file,
)

KIND = "kinds of pictures"
HEIC_SAYS = DAMAGED + "|HEIC photo"
AVIF_SAYS = DAMAGED + "|AVIF picture"


def picture_kinds() -> Iterator[Case]:
    for name, content in RAW_FILES.items():
        yield case(f"camera raw {name}", content, "a camera's raw file")
    for name, content in NAMED.items():
        yield case(f"{name.replace('(', '')} as a picture", content, name.replace("(", r"\("))
    for name, content in RARE_FILES.items():
        yield case(name, content, "in a way that is not read.*save it as PNG")
    yield from greys()
    yield from heic_files()
    if HAS_AVIF:
        yield from avif_files()
    yield from harmless_damage()


def case(name: str, content, says: str = "", expect: str = "refused", use=see_picture) -> Case:
    return Case(KIND, name, file("a.jpg", content), use, says, expect)


def greys() -> Iterator[Case]:
    ramp = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    for name, values in {
        "negative": ramp,
        "tiny": ramp * 0 + 1e-3,
        "infinite": ramp + np.inf,
        "missing": ramp * np.nan,
    }.items():
        yield case(f"TIFF of {name} floats", grey_tiff(values, 32, sample=3), "which of them is white")
    yield case("TIFF of signed 16 bits", grey_tiff(np.full((8, 8), -5, np.int16), 16, sample=2), "is white")
    yield case("TIFF of signed 8 bits", grey_tiff(np.full((8, 8), -5, np.int8), 8, sample=2), "is white")
    yield case("TIFF of 12 bits", grey_tiff(np.full((32, 32), 4095), 12), "", "answered")


def heic_files() -> Iterator[Case]:
    """Whether pi-heif is installed or not: an answer, or what HEIC is and what to do."""
    yield case("HEIC as a picture", HEIC, "a HEIC photo.*pip install pi-heif", "either")
    yield case("HEIC as a clip", HEIC, "no video; pass it as an image", "refused", see_clip)
    for share in (0.05, 0.5, 0.95):
        yield case(f"HEIC cut off at {share:.0%}", cut_off(HEIC, share), HEIC_SAYS, "either")
    for seed, bits in enumerate((1, 5, 20, 100)):
        yield case(f"HEIC with {bits} wrong bits", flipped(HEIC, f"heic{seed}", bits, 12), HEIC_SAYS, "either")
    huge = HEIC.replace(b"ispe\0\0\0\0\0\0\0@\0\0\0@", b"ispe\0\0\0\0\0\1\0\0\0\1\0\0")
    assert huge != HEIC
    yield case("HEIC of 65536×65536", huge, HEIC_SAYS)


def avif_files() -> Iterator[Case]:
    yield case("AVIF as a picture", avif, "", "answered")
    yield case("AVIF as a clip", avif, "no video; pass it as an image", "refused", see_clip)
    yield case("animated AVIF as a picture", partial(avif, 5), "", "answered")
    yield case("animated AVIF as a clip", partial(avif, 5), "", "answered", see_clip)
    for use, how in ((see_picture, "picture"), (see_clip, "clip")):
        for frames in (1, 5):
            for share in (0.02, 0.5, 0.95):
                make = made(lambda n, s: cut_off(avif(n), s), frames, share)
                name = f"AVIF of {frames} frames cut off at {share:.0%}, as a {how}"
                yield Case(KIND, name, make, use, AVIF_SAYS + "|can be read")
        for seed, bits in enumerate((1, 5, 20, 100)):
            make = made(lambda s, b: flipped(avif(5), s, b, 12), f"avif{seed}", bits)
            yield Case(KIND, f"animated AVIF with {bits} wrong bits, as a {how}", make, use, AVIF_SAYS, "either")
        for side in ((65535, 65535), (16384, 16384), (8190, 8190), (2**31 - 1, 1)):
            make = made(lambda s: avif(1, s), side)
            yield Case(KIND, f"AVIF of {side[0]}×{side[1]}, as a {how}", make, use, AVIF_SAYS + "|200:1", "either")


def harmless_damage() -> Iterator[Case]:
    """What a viewer shows without a word, and its neighbours that really are damaged."""
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        content = partial(png_file, 40, 30, 8, 0, bytes(41 * 30), long_note(kind, 5_000_000))
        yield case(f"PNG with 5 MB in {kind.decode()}", content, "", "answered")
    notes = [long_note(b"zTXt", 10**6)] * 200
    yield case("PNG with 200 notes", partial(png_file, 40, 30, 8, 0, bytes(41 * 30), *notes), "", "answered")
    yield case("JPEG without its end", lambda: picture("JPEG")[:-2], "", "answered")
    yield case("progressive JPEG without its end", lambda: picture("JPEG", progressive=True)[:-2], "", "answered")
    for share in (0.3, 0.7, 0.95):
        yield case(f"JPEG cut off at {share:.0%} behind a sound end", partial(cut_and_ended, share), DAMAGED, "either")
    yield case("JPEG of 108 million pixels", partial(large_jpeg, 12000, 9000), "", "answered")
    yield case("JPEG of 108 million pixels, half of it", lambda: cut_off(large_jpeg(12000, 9000), 0.5), DAMAGED)
    yield case("JPEG of 300 million pixels", partial(large_jpeg, 20000, 15000), "more pixels than the limit")
    yield case(
        "progressive JPEG of 108 million pixels", partial(many_scans, 10400, 1), "more pixels than the limit|scans"
    )


def cut_and_ended(share: float) -> bytes:
    return cut_off(picture("JPEG"), share) + b"\xff\xd9"


def large_jpeg(width: int, height: int) -> bytes:
    """A sound JPEG of one grey."""
    return jpeg(Image.new("L", (width, height), 128), quality=20)
