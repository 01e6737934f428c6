"""Weights: damaged safetensors, wrong tensors, and files in odd places."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.checkpoints import NAMES, checkpoint, load_weights, load_words, rewritten, stored
from tests.hostile.material import flipped, zipped
from tests.hostile.ways_in import sparse

NORM = "model.norm.weight"  # a tensor that every checkpoint has
NOT_WHOLE = "not a whole safetensors file"

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

BROKEN_FILES = {
    "an empty file": b"",
    "seven bytes": b"\0" * 7,
    "a header of no bytes": stored(b""),
    "a header of 2^63 bytes": stored({}, length=2**63),
    "a header of 2^64 − 1 bytes": stored({}, length=2**64 - 1),
    "a header longer than the file": stored({}, length=1000),
    "a header that is no JSON": stored(b"hello, world"),
    "a header that is not UTF-8": stored(b'{"\xff\xfe": 1}'),
    "a header that is a list": stored([1, 2]),
    "a header 10,000 deep": stored(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "a header cut off": stored(b'{"a": {"dtype": "F3'),
    "a tensor that is a number": stored({"a": 1}),
    "a tensor without a shape": stored({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "offsets that overlap": stored({"a": ONE, "b": ONE}, bytes(4)),
    "offsets backwards": stored({"a": ONE | {"data_offsets": [4, 0]}}, bytes(4)),
    "offsets beyond the file": stored({"a": ONE | {"data_offsets": [0, 4]}}),
    "offsets with a gap": stored({"a": ONE, "b": ONE | {"data_offsets": [8, 12]}}, bytes(12)),
    "negative offsets": stored({"a": ONE | {"data_offsets": [-4, 0]}}, bytes(4)),
    "offsets of 2^64": stored({"a": ONE | {"data_offsets": [0, 2**64]}}, bytes(4)),
    "a shape that does not fit": stored({"a": ONE | {"shape": [2]}}, bytes(4)),
    "a negative shape": stored({"a": ONE | {"shape": [-1]}}, bytes(4)),
    "a shape that overflows": stored({"a": ONE | {"shape": [2**62, 2**62]}}, bytes(4)),
    "an unknown dtype": stored({"a": ONE | {"dtype": "F99"}}, bytes(4)),
    "bytes behind the tensors": stored({"a": ONE}, bytes(9)),
    "metadata that are a list": stored({"__metadata__": [1], "a": ONE}, bytes(4)),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93." * 3,
    "a zip": zipped(),
}


def weights() -> Iterator[Case]:
    for name, content in BROKEN_FILES.items():
        yield changed(name, NOT_WHOLE, content)
    yield from damaged_weights()
    yield from wrong_tensors()
    yield from odd_places()


def changed(name: str, says: str, weights) -> Case:
    """A sound checkpoint with other weights."""
    return Case("weights", name, checkpoint(weights=weights), load_weights, says)


def damaged_weights() -> Iterator[Case]:
    yield changed("a header that promises 90 MB", NOT_WHOLE, stored(b"{" + b" " * 1000, length=90_000_000))
    yield changed("200,000 empty tensors", "lacks", lambda old: stored({f"t{i}": NOTHING for i in range(200_000)}))
    yield changed("weights cut off", NOT_WHOLE, lambda old: old[:-100])
    says = NOT_WHOLE + "|lacks|holds|shape|stores"
    yield changed("20 wrong bits in the header", says, lambda old: flipped(old[:900], "w", 20, 8) + old[900:])


def wrong_tensors() -> Iterator[Case]:
    yield changed("one missing", f"lacks {NORM}", rewritten(partial(rename, NORM, "model.visual.x")))
    yield changed("one too many", "holds extra", rewritten(partial(add, "extra")))
    yield changed("whole numbers for weights", f"stores {NORM} as I32", rewritten(partial(retype, NORM, "I32")))
    twice = partial(rename, "model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight")
    yield changed("one under both names", "twice", rewritten(twice))
    yield changed("another shape", "has shape", rewritten(partial(reshape, NORM)))
    yield changed("a name with line breaks", "holds", rewritten(partial(add, "a\n\x1b[31mb\n")))
    yield changed("a name of 100,000 letters", "holds", rewritten(partial(add, "n" * 100_000)))
    yield changed("a name with half a character", "lacks|holds|whole", half_a_character)


def half_a_character(old: bytes) -> bytes:
    return old.replace(NORM.encode(), rb"model.norm.\ud800")


def rename(old: str, new: str, header: dict) -> None:
    header[new] = header.pop(old)


def add(name: str, header: dict) -> None:
    header[name] = NOTHING


def retype(name: str, dtype: str, header: dict) -> None:
    header[name]["dtype"] = dtype


def reshape(name: str, header: dict) -> None:
    header[name]["shape"] = [1, *header[name]["shape"]]


def odd_places() -> Iterator[Case]:
    """No file, or none that can be read like a file."""
    yield changed("no weights", "has no model.safetensors", None)
    pickle = checkpoint(weights=None, **{"pytorch_model.bin": b"\x80\x04."})
    yield Case("weights", "only a pickle", pickle, load_weights, "has no model.safetensors")

    for place, put in (("a folder", Path.mkdir), ("a pipe", os.mkfifo), ("a link to itself", link_to_itself)):
        for name in ("weights", "config", "words", "pixels", "template", "generation"):
            use = load_weights if name in ("weights", "config", "generation") else load_words
            # a link that leads nowhere counts as no file, and these two may be missing
            optional = place == "a link to itself" and name in ("template", "generation")
            expect = "either" if optional else "refused"
            says = f"{NAMES[name]}|template"
            yield Case("weights", f"{place} for {NAMES[name]}", in_place_of(name, put), use, says, expect)

    device = in_place_of("weights", link_to_device)
    yield Case("weights", "a device for weights", device, load_weights, NAMES["weights"])
    device = in_place_of("config", link_to_device)
    yield Case("weights", "a device for config.json", device, load_weights, "config.json")
    yield Case("weights", "3 GB of config.json", in_place_of("config", long_hole), load_weights, "config.json")


def in_place_of(name: str, put: Callable[[Path], object]) -> Callable[[Path], Path]:
    """The input is the folder of a sound checkpoint in which `put` makes something else of one file."""

    def make(folder: Path) -> Path:
        checkpoint(**{name: None})(folder)
        put(folder / NAMES[name])
        return folder

    return make


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def long_hole(path: Path) -> None:
    sparse(path.name, b"{", 3 * 2**30)(path.parent)
