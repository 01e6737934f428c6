"""Pictures from outside → upright RGB, safely.

`load_image` takes what a message may hold: a path, a URL, bytes, a data URI, a PIL picture, an array or a tensor.
Nothing is decoded before its header has been checked, and everything that can go wrong ends in one sentence that says
what to do. (Words inside a picture are read by the model like any others: do not trust them more than the picture's
source.)
"""

from __future__ import annotations

import io
import logging
import os
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from qwen2vl_io.sentences import damaged
from qwen2vl_io.sources import opener

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # all others stay closed, with their decoders' bugs
MAX_IMAGE_PIXELS = 2**26  # width × height, 67 million; to decode one and make it RGB takes up to 13 bytes each
MAX_JPEG_SCANS = 500, 2**30  # of a progressive JPEG, and pixels of all: each scan goes over all pixels again
MAX_PICTURE_BYTES = 2**29  # of a file
UPRIGHT = 1  # of EXIF's orientations
JPEG_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])")  # the markers that a length follows

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would log to stderr what we say in our own words


def load_image(source, rotate_by_exif: bool = True) -> Image.Image:
    """One picture → RGB, upright, on white.

    `source`: a path (str or Path, also "file://…"), an http(s) URL, the bytes of a file, a base64 data URI, a PIL
    picture, a numpy array (height, width[, 1, 3 or 4]) or a torch tensor ([1, 3 or 4,] height, width), of whole numbers
    (uint8, uint16) or fractions 0..1. An animation gives its first frame. `rotate_by_exif=False` leaves a photograph as
    the camera stored it (except in TIFF files, which Pillow turns by itself). A plain RGB picture comes back unchanged.

    Raises FileNotFoundError if there is no such file, else ValueError.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source, "The picture", rotate_by_exif)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        open_file, name = opener(source, "picture")
        with open_file() as file:
            return decode(file, name, rotate_by_exif)
    if isinstance(source, np.ndarray):
        return from_array(source, "An array")
    if hasattr(source, "detach"):  # a torch tensor, without importing torch for it
        return from_array(tensor_array(source), "A tensor")
    raise ValueError(
        f"A {type(source).__name__} is no picture; pass a path, a URL, bytes, a PIL picture, an array or a tensor."
    )


def decode(file, name: str, rotate_by_exif: bool) -> Image.Image:
    """A file opened for reading → an RGB picture. `name` is what error messages call it."""
    image = read_header(file, name)
    picture = upright_rgb(image, name, rotate_by_exif)
    return picture.copy() if picture is image else picture  # a copy has no ties to the file, which is about to close


def read_header(file, name: str, max_bytes: int = MAX_PICTURE_BYTES) -> Image.Image:
    """A file opened for reading → a PIL picture of which no pixels are decoded yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's doubts about metadata are nothing a user could act on
        size = None
        try:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            image = Image.open(file, formats=FORMATS) if size <= max_bytes else None
        except UnidentifiedImageError:
            if not size:
                raise ValueError(f"{name} is empty; get it again.") from None
            formats = ", ".join(FORMATS)
            raise ValueError(f"{name} is no picture, or none that can be read; save it as one of {formats}.") from None
        except Image.DecompressionBombError:
            raise ValueError(too_large(name)) from None
        except Exception as error:  # decoders of damaged files raise whatever comes
            raise ValueError(damaged(name, error)) from None
    if image is None:
        raise ValueError(f"{name} has {size:,} bytes, more than the limit of {max_bytes:,}; make it smaller first.")
    most = min(MAX_JPEG_SCANS[0], MAX_JPEG_SCANS[1] // max(1, image.width * image.height))
    if image.format in ("JPEG", "MPO") and too_many_scans(file, most):
        raise ValueError(f"{name} is a JPEG of more than {most} scans; save it as a PNG or an ordinary JPEG.")
    return image


def too_many_scans(file, most: int) -> bool:
    """Whether a JPEG goes over its pixels more than `most` times, or has absurdly many segments."""
    file.seek(0)
    data = file.read()
    at = 0
    count = 0
    for _ in range(10_000):
        marker = JPEG_MARKER.search(data, at)
        if not marker or marker[1] == b"\xd9":  # the end of the picture; others can follow
            return False
        count += marker[1] == b"\xda"
        if count > most:
            return True
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def upright_rgb(image: Image.Image, name: str, rotate_by_exif: bool) -> Image.Image:
    """A PIL picture, perhaps not decoded yet → RGB, turned as its EXIF says."""
    check_size(image.width, image.height, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()  # a file that was cut off fails here
        except Exception as error:
            raise ValueError(damaged(name, error)) from None
        orientation = exif_orientation(image)
        rgb = to_rgb(image, name)
    if orientation == UPRIGHT:
        return rgb

    bare = Image.fromarray(np.array(rgb))  # pixels without the tag, so that nobody turns this picture again
    if rotate_by_exif:
        bare.getexif()[Base.Orientation] = orientation
        bare = ImageOps.exif_transpose(bare)
    return bare


def exif_orientation(image: Image.Image) -> int:
    """How the camera was held: 1 is upright, 2 to 8 are quarter turns and mirror images."""
    try:
        orientation = image.getexif().get(Base.Orientation)
    except Exception:  # EXIF that cannot be read says nothing about the pixels
        return UPRIGHT
    return orientation if orientation in range(2, 9) else UPRIGHT


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode → RGB: what is transparent shows white, and what has more than 8 bits a channel is scaled, not cut."""
    if image.mode[0] in "IF":  # "I;16…", "I" (in which Pillow hands out other 16-bit files) and floats
        values = np.asarray(image)
        # no file of floats says which value is white; 1, 255 and 65535 are the usual ones
        for top in (1, 255, 65535) if image.mode == "F" else (65535,):
            if values.max() <= top:
                return Image.fromarray(to_bytes(values, top)).convert("RGB")
        raise ValueError(f"{name} has values up to {values.max():g}, beyond 65535; bring them to 0..1 first.")
    try:
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except ValueError:  # La (grey, alpha multiplied in), for example
        raise ValueError(f"{name} has the colour mode {image.mode}, which cannot become RGB; save it as RGB.") from None


def to_bytes(values: np.ndarray, top: float) -> np.ndarray:
    """Values from 0 (black) to `top` (white) → uint8, rounded to the nearest."""
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # rows, a few at a time: the fractions take far more memory
        rows = values[start : start + 256].astype(np.float32)
        result[start : start + 256] = np.rint(np.clip(rows, 0, top) * np.float32(255 / top))
    return result


def from_array(array: np.ndarray, name: str) -> Image.Image:
    """(height, width[, 1, 3 or 4]) of uint8, uint16 or floats 0..1 → RGB."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"{name} of shape {array.shape} is no picture; it should be (height, width, 3).")
    check_size(array.shape[1], array.shape[0], name)
    if array.dtype == np.uint16:
        array = to_bytes(array, 65535)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # so written, NaN is refused too
            raise ValueError(
                f"{name} of floats must hold 0..1, not {array.min():g}..{array.max():g}; scale or clip it."
            )
        array = to_bytes(array, 1)
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} of {array.dtype} is no picture; convert it to uint8, or to floats from 0 to 1.")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def tensor_array(tensor) -> np.ndarray:
    """A torch tensor ([1, 3 or 4,] height, width) → an array (height, width[, 1, 3 or 4])."""
    try:
        shape = tuple(tensor.shape)
        if len(shape) not in (2, 3) or len(shape) == 3 and shape[0] not in (1, 3, 4):
            raise ValueError(f"A tensor of shape {shape} is no picture; it should be (3, height, width).")
        check_size(shape[-1], shape[-2], "A tensor")
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    except (RuntimeError, TypeError):  # sparse, quantized, without data, …
        raise ValueError("A tensor of this kind is no picture; pass an ordinary one, which holds all values.") from None
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def check_size(width: int, height: int, name: str, limit: int | None = None) -> None:
    """Refuse what has no pixels, and what has too many before anything is decoded."""
    limit = limit or MAX_IMAGE_PIXELS
    if width < 1 or height < 1:
        raise ValueError(f"{name} has no pixels ({width}×{height}); pass another.")
    if width * height > limit:
        raise ValueError(too_large(f"{name} ({width}×{height})", limit))


def too_large(name: str, limit: int | None = None) -> str:
    return f"{name} has more pixels than the limit of {limit or MAX_IMAGE_PIXELS:,}; make it smaller first."
