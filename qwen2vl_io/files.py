"""The small files of a checkpoint: read with one sentence for each fault, and written all at once or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor

from qwen2vl_io.sentences import shorten, shown

MAX_TEXT_BYTES = 32 * 2**20  # of a JSON file: the largest there is, tokenizer.json, has 11 MB


def plain_file(path: str | Path, max_bytes: float = float("inf")) -> Path:
    """The path of an ordinary file of bounded size. Others are not opened: a pipe may block, a device never ends."""
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # a name too long for the system, or a folder that is closed to us
        size = None
    if size is None:
        raise FileNotFoundError(f"{shorten(path)} is missing, or not an ordinary file: get that file too.")
    if size > max_bytes:
        raise ValueError(f"{shorten(path)} has {size:,} bytes, more than {max_bytes:,}: it cannot be what it is named.")
    return path


def read_text(path: Path) -> str:
    """The text of a small file; errors name the file."""
    try:
        return plain_file(path, MAX_TEXT_BYTES).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shorten(path)} is not valid JSON or Jinja, which are UTF-8 ({error}).") from None
    except PermissionError:
        raise ValueError(f"{shorten(path)} cannot be opened; check its permissions.") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file; errors name the file."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shorten(path)} is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shorten(path)} should hold a JSON object, not a {type(content).__name__}.")
    return content


def inner_dict(d: dict, name: str, file: str | Path = "config.json") -> dict:
    """The object in an object of a JSON file, empty where there is none."""
    inner = d.get(name)
    if not isinstance(inner, dict | None):
        raise ValueError(f"{shorten(file)}: {name} = {shown(inner)} should be a JSON object.")
    return inner or {}


def folder_to_write(folder: str | Path) -> Path:
    """A folder that is there, made if need be."""
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise ValueError(f"A folder to save into is a path, not {shown(folder)}.")
    folder = Path(os.path.expanduser(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror or type(error).__name__
        raise ValueError(f"{shorten(folder)} cannot be made a folder to save into ({why}); choose another.") from None
    return folder


def write_files(
    folder: str | Path, files: dict[str, dict | str], weights: dict[str, dict[str, Tensor]] | None = None, stale=()
) -> list[str]:
    """Write JSON files (dicts), texts and safetensors files into a folder; returns their paths.

    All is written under temporary names first: a crash while writing leaves the folder as it was. The first of `files`
    takes its place last. `stale`: names of files that these replace, removed in the end.
    """
    folder = folder_to_write(folder)
    weights = weights or {}
    with TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        for name, tensors in weights.items():
            save_file(apart(tensors), Path(temporary, name), metadata={"format": "pt"})  # transformers insists on this
        for name, content in files.items():
            text = content if isinstance(content, str) else json_text(content)
            Path(temporary, name).write_text(text, encoding="utf-8")

        for name in (*weights, *reversed(files)):
            Path(temporary, name).chmod(0o644)  # safetensors makes its files private
            os.replace(Path(temporary, name), folder / name)
        for name in set(stale) - {*weights, *files}:
            (folder / name).unlink(missing_ok=True)
    return [str(folder / name) for name in (*files, *weights)]


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that lie in one piece each and share no memory, as safetensors wants them."""
    seen = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen and tensor.numel() else tensor.contiguous()
        seen.add(place)
    return found


def write_json(path: str | Path, content: dict) -> None:
    """Write one JSON file, wherever it shall lie."""
    path = Path(path)
    write_files(path.parent, {path.name: content})


def json_text(content: dict) -> str:
    """A JSON file's text."""
    try:
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"What is to be saved holds something that is no JSON ({shorten(error)}); remove it."
        ) from None
