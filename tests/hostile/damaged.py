"""Pictures and clips that are cut off, or in which some bits are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.material import CONTAINERS, clip, cut_off, flipped, picture
from tests.hostile.ways_in import DAMAGED, file, made, see_clip, see_picture


def damaged_pictures() -> Iterator[Case]:
    kind = "damaged pictures"
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        suffix = format.lower()
        for share in (0.02, 0.3, 0.9):
            make = file(f"a.{suffix}", partial(short_picture, format, share))
            # the last tenth of a GIF or TIFF may hold no pixels
            expect = "either" if share == 0.9 and format in ("GIF", "TIFF") else "refused"
            yield Case(kind, f"{format} cut off at {share:.0%}", make, see_picture, DAMAGED, expect)

        for seed, bits in enumerate((1, 3, 10, 100)):
            make = made(wrong_picture, format, f"{format}{seed}", bits)
            yield Case(kind, f"{format} with {bits} wrong bits", make, see_picture, DAMAGED, "either")

        make = made(wrong_head, format)
        yield Case(kind, f"{format} with a wrong head", make, see_picture, DAMAGED, "either")

    for seed in range(3):
        make = made(wrong_progressive, f"progressive{seed}")
        yield Case(kind, f"progressive JPEG, wrong bits {seed}", make, see_picture, DAMAGED, "either")


def short_picture(format: str, share: float) -> bytes:
    return cut_off(picture(format), share)


def wrong_picture(format: str, seed: str, bits: int) -> bytes:
    return flipped(picture(format), seed, bits)


def wrong_head(format: str) -> bytes:
    """The first 40 bytes of a damaged picture, then the sound one."""
    return flipped(picture(format), f"head {format}", 6)[:40] + picture(format)[40:]


def wrong_progressive(seed: str) -> bytes:
    return flipped(picture("JPEG", progressive=True), seed, 20)


def damaged_clips() -> Iterator[Case]:
    kind = "damaged clips"
    for container in CONTAINERS:
        for share in (0.02, 0.4, 0.8):
            make = file(f"a.{container}", partial(short_clip, container, share))
            yield Case(kind, f"{container} cut off at {share:.0%}", make, see_clip, DAMAGED, "either")
        for seed, bits in enumerate((1, 5, 20, 200)):
            make = made(wrong_clip, container, f"{container}{seed}", bits)
            yield Case(kind, f"{container} with {bits} wrong bits", make, see_clip, DAMAGED, "either")

    for seed in range(6):
        make = made(index_alone, f"moov{seed}")
        yield Case(kind, f"mp4 index alone, wrong bits {seed}", make, see_clip, DAMAGED)
        make = made(wrong_index, f"table{seed}")
        yield Case(kind, f"mp4 with a wrong index {seed}", make, see_clip, DAMAGED, "either")

    yield Case(kind, "a clip of no frames", made(clip, frames=0), see_clip, "no frames|damaged|no pictures|no pixels")
    yield Case(kind, "sound alone", made(clip, "mp4", sound_only=True), see_clip, "no pictures, only sound")
    yield Case(kind, "a clip of one frame", made(clip, frames=1), see_clip, "", "answered")
    yield Case(kind, "a frame a second", made(clip, frames=3, rate=1), see_clip, "", "answered")
    yield Case(kind, "960 frames a second", made(clip, frames=30, rate=960), see_clip, "", "answered")


def short_clip(container: str, share: float) -> bytes:
    return cut_off(clip(container), share)


def wrong_clip(container: str, seed: str, bits: int) -> bytes:
    return flipped(clip(container), seed, bits)


def index_alone(seed: str) -> bytes:
    """The index of an MP4, damaged, without the frames in front of it."""
    return flipped(clip()[clip().index(b"moov") :], seed, 8)


def wrong_index(seed: str) -> bytes:
    """An MP4 in which only the index, at its end, is damaged."""
    return flipped(clip(), seed, 12, clip().index(b"moov"))
