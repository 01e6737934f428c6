"""Pictures from outside → RGB, safely; and the boxes that a model writes, read and drawn.

`load_image` takes what a message may hold: a path, bytes, a data URI, a PIL picture, an array or a tensor. Nothing is
decoded before its header has been checked, and all that can go wrong ends in one sentence that says what to do.
(Words inside a picture are read by the model like any others: do not trust them more than the picture's source.)
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # all others stay closed, with their decoders' bugs
MAX_IMAGE_PIXELS = 178_956_970  # width × height; decoded to RGB half a gigabyte. Pillow's own hard limit as well
MAX_BASE64_CHARS = 64 * 2**20  # characters of a data URI: 48 MiB of file
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held: 1 is upright, 2 to 8 are not

# ── Pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def load_image(source, rotate_by_exif: bool = True) -> Image.Image:
    """One picture → RGB, upright, on white.

    `source`: a path (str or Path, also "file://…"), the bytes of a file, a base64 data URI, a PIL picture, a numpy
    array (height, width[, 1, 3 or 4]) or a torch tensor ([1, 3 or 4,] height, width), of whole numbers (uint8, uint16)
    or fractions 0..1. An animation gives its first frame. `rotate_by_exif=False` leaves a photograph as the camera
    stored it (except in TIFF files, which Pillow turns by itself). A plain RGB picture comes back as it is.

    Raises FileNotFoundError if there is no such file, else ValueError.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source, "The picture", rotate_by_exif)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(io.BytesIO(source), f"The picture of {len(source)} bytes", rotate_by_exif)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return decode(io.BytesIO(data_uri_bytes(source)), "The picture in the data URI", rotate_by_exif)
    if isinstance(source, str | os.PathLike):
        path = find_file(source)
        try:
            with path.open("rb") as file:
                return decode(file, shorten(path), rotate_by_exif)
        except PermissionError:
            raise ValueError(f"{shorten(path)} may not be read by this user; change its permissions.") from None
    if isinstance(source, np.ndarray):
        return from_array(source, "An array")
    if hasattr(source, "detach"):  # a torch tensor, without importing torch for it
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
        if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
            raise ValueError(f"A tensor of shape {array.shape} is no picture; it should be (3, height, width).")
        return from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, "A tensor")
    raise ValueError(f"A {type(source).__name__} is no picture; pass a path, bytes, a PIL picture, an array or a tensor.")


def find_file(source: str | os.PathLike) -> Path:
    """A path or a file URL → the path of an ordinary file that exists."""
    text = os.fspath(source)
    if isinstance(text, str) and re.match("file:", text, re.IGNORECASE):
        local = re.match("file:(?://(?:localhost)?)?(/.*)", text, re.IGNORECASE | re.DOTALL)
        if not local or local[1].startswith("//"):
            raise ValueError(f"{shorten(text)} does not name a file on this machine; write file:///folder/picture.png.")
        text = unquote(local[1])
    elif isinstance(text, str) and re.match("[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(f"URLs are not read yet: save {shorten(text)} to a file first and pass its path.")
    path = Path(os.fsdecode(text))
    try:
        if path.is_file():
            return path
        is_dir, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # a name too long for the system, or with a null character in it
        is_dir = exists = False
    if is_dir:
        raise ValueError(f"{shorten(path)} is a folder; name one picture in it.")
    if exists:
        raise ValueError(f"{shorten(path)} is not an ordinary file; save the picture to one first.")
    raise FileNotFoundError(f"There is no file {shorten(path)}; check the name and the folder ({shorten(Path.cwd())}).")


def shorten(text: str | Path, longest: int = 200) -> str:
    """A path or URL as an error message can show it: one line, of bounded length."""
    text = "".join(c if c.isprintable() else "?" for c in str(text)) or '""'
    return text if len(text) <= longest else text[: longest - 20] + "…" + text[-19:]


def data_uri_bytes(uri: str) -> bytes:
    """The file inside "data:image/png;base64,…"."""
    if len(uri) > MAX_BASE64_CHARS:
        raise ValueError(
            f"The data URI has {len(uri):,} characters, more than {MAX_BASE64_CHARS:,}; save the picture to a file."
        )
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{shorten(uri, 60)} is not a base64 data URI; write data:image/png;base64,… instead.")
    try:
        return base64.b64decode(re.sub(r"\s", "", unquote(body)), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The data URI holds no valid base64; encode the file with base64.b64encode.") from None


def decode(file, name: str, rotate_by_exif: bool) -> Image.Image:
    """A file opened for reading → an RGB picture. `name` is what error messages call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's doubts about metadata are nothing a user could act on
        try:
            image = Image.open(file, formats=FORMATS)  # reads the header only
        except UnidentifiedImageError:
            if not file.seek(0, io.SEEK_END):
                raise ValueError(f"{name} is empty; get the picture again.") from None
            raise ValueError(f"{name} is not a picture in a known format; save it as {', '.join(FORMATS)}.") from None
        except Image.DecompressionBombError:
            raise ValueError(too_large(name)) from None
        except Exception as error:  # decoders of broken files raise whatever comes
            raise ValueError(f"{name} is damaged ({reason(error)}); get the picture again.") from None
    return upright_rgb(image, name, rotate_by_exif)


def upright_rgb(image: Image.Image, name: str, rotate_by_exif: bool) -> Image.Image:
    """A PIL picture, perhaps not decoded yet → RGB, turned as its EXIF says."""
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels ({image.width}×{image.height}); pass another.")
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(too_large(name, f"{image.width}×{image.height} = {image.width * image.height:,}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()  # a file that was cut off fails here
            turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
            rgb = to_rgb(image, name)
            if turned and rotate_by_exif:
                rgb = to_rgb(ImageOps.exif_transpose(image), name)
            elif turned:  # without the tag, or the next reader would turn it after all
                rgb = Image.fromarray(np.asarray(rgb))
            return rgb
        except PictureError:
            raise
        except Exception as error:
            raise ValueError(f"{name} is cut off or damaged ({reason(error)}); get the picture again.") from None
