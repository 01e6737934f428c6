"""Checkpoints of a few kilobytes, sound or with changed files, and how the product is asked to load them."""

from __future__ import annotations

import json
import logging
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

import weights_loader
from qwen2vl_mini import Qwen2VLProcessor
from tests.hostile.cases import ROOT
from tests.hostile.material import photo
from tests.small_models import small_model

NAMES = {
    "config": "config.json",
    "weights": "model.safetensors",
    "index": "model.safetensors.index.json",
    "pixels": "preprocessor_config.json",
    "words": "tokenizer.json",
    "template": "chat_template.json",
    "frames": "video_preprocessor_config.json",
    "generation": "generation_config.json",
}


@cache
def sound_checkpoint() -> dict[str, bytes]:
    """The files of a sound checkpoint: the tokenizer and settings of the bundled one with a small random model."""
    with tempfile.TemporaryDirectory() as folder:
        weights_loader.save(small_model(), None, folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    tiny = ROOT / "checkpoints" / "tiny"
    return {path.name: path.read_bytes() for path in tiny.glob("*.json")} | files


def checkpoint(**changes) -> Callable[[Path], Path]:
    """The input is the folder of a sound checkpoint with some files changed.

    A change is known by a name of NAMES or by that of the file. Bytes replace the file, None leaves it out, and
    a function is given the sound one.
    """

    def make(folder: Path) -> Path:
        files = dict(sound_checkpoint())
        for name, change in changes.items():
            name = NAMES.get(name, name)
            files[name] = change(files.get(name, b"")) if callable(change) else change
        for name, content in files.items():
            if content is not None:
                (folder / name).write_bytes(content)
        return folder

    return make


def edited(**values) -> Callable[[bytes], bytes]:
    """A JSON file with other values; `vision__depth=3` reaches into "vision_config"."""

    def edit(old: bytes) -> bytes:
        content = json.loads(old)
        for name, value in values.items():
            part, _, inner = name.rpartition("__")
            (content[f"{part}_config"] if part else content)[inner] = value
        return json.dumps(content).encode()

    return edit


def stored(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with that header (a dict, or the bytes in its place) and that length of the header stated."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def header_of(content: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file, and the data behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewritten(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    """The sound weights with a change of their header, in place."""

    def edit(old: bytes) -> bytes:
        header, data = header_of(old)
        change(header)
        return stored(header, data)

    return edit


def load_weights(folder: Path) -> str:
    """Load the model, and let it read three tokens."""
    model = weights_loader.load_model(folder, dtype="float32", device="cpu")
    return str(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1).shape)


class Notes(logging.Handler):
    """What the product's log says, in place of the terminal."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def notes() -> Iterator[list[str]]:
    """The lines of the log while something runs: notes to the user are no fault of an input."""
    handler = Notes()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger().removeHandler(handler)


def load_words(folder: Path) -> str:
    """Load the processor, and let it prepare two pictures and a letter."""
    with notes():
        return prepare(folder)


def prepare(folder: Path) -> str:
    processor = Qwen2VLProcessor.from_pretrained(folder)
    item = {"type": "image", "image": photo()}
    conversation = [{"role": "user", "content": [item, item, "x"]}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert inputs["pixel_values"].isfinite().all(), "the pixels are not finite"
    return str(tuple(inputs["input_ids"].shape))
