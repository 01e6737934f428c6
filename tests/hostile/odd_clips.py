"""Clips whose container says what is not true of the pictures in it, or that nobody can read without a key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.field_coded import field_coded
from tests.hostile.cases import Case
from tests.hostile.material import branded, clip, cut_off, encrypted, flipped, marked
from tests.hostile.ways_in import DAMAGED, file, made, see_clip

BRANDS = {
    "HEIC": (b"heic", b"mif1", b"heic"),
    "HEIC of a burst": (b"msf1", b"hevc"),
    "HEIC that says mif1": (b"mif1", b"heic"),
    "AVIF": (b"avif", b"mif1", b"miaf"),
    "AVIF that says mif1": (b"mif1", b"avif"),
    "a raw photo": (b"crx ", b"isom"),
}
ENCRYPTED = "is encrypted"


def odd_clips() -> Iterator[Case]:
    kind = "odd clips"
    for container in ("mp4", "mov", "3gp", "matroska", "avi"):
        for every in (1, 3, 10):
            make = file(f"a.{container}", partial(marked, container, every))
            yield Case(kind, f"{container}, each {every} marked as key frame", make, see_clip, "", "answered")
        make = made(cut_marked, container)
        yield Case(kind, f"{container}, wrong marks and cut off", make, see_clip, DAMAGED, "either")

    for format in ("mpegts", "mp4", "matroska"):
        yield Case(kind, f"fields in {format}", made(field_coded, format, 16, True), see_clip, "", "answered")
        for seed, bits in enumerate((1, 20)):
            make = made(wrong_fields, format, f"fields{seed}", bits)
            yield Case(kind, f"fields in {format} with {bits} wrong bits", make, see_clip, DAMAGED, "either")

    yield Case(kind, "an encrypted MP4", file("a.mp4", encrypted), see_clip, ENCRYPTED)
    yield Case(kind, "an encrypted MP4, cut off", made(cut_encrypted), see_clip, f"{ENCRYPTED}|{DAMAGED}")
    yield Case(kind, "a scrambled broadcast", file("a.ts", scrambled), see_clip, ENCRYPTED)
    yield Case(kind, "a broadcast of noise", file("a.ts", noise), see_clip, DAMAGED)
    for seed in range(3):
        yield Case(kind, f"an encrypted MP4, wrong bits {seed}", made(wrong_encrypted, seed), see_clip, "", "either")

    for name, brands in BRANDS.items():
        yield Case(kind, f"{name} named a.mp4", file("a.mp4", partial(branded, *brands)), see_clip, "is a picture")
    yield Case(kind, "a clip of no known brand", made(branded, b"what", b"ever"), see_clip, DAMAGED)


def cut_marked(container: str) -> bytes:
    return cut_off(marked(container, 10), 0.6)


def wrong_fields(format: str, seed: str, bits: int) -> bytes:
    return flipped(field_coded(format, 16, True), seed, bits)


def cut_encrypted() -> bytes:
    return cut_off(encrypted(), 0.7)


def wrong_encrypted(seed: int) -> bytes:
    return flipped(encrypted(), f"encrypted{seed}", 5)


def scrambled() -> bytes:
    """A broadcast of which only the tables can be read."""
    cells = clip("mpegts")
    cells = [bytearray(cells[start : start + 188]) for start in range(0, len(cells), 188)]
    for cell in cells[3:]:
        cell[3] |= 0xC0
    return b"".join(cells)


def noise() -> bytes:
    """Cells of a broadcast with anything in them."""
    return flipped(b"".join(b"\x47" + bytes(187) for _ in range(400)), "noise", 20000, 1)
