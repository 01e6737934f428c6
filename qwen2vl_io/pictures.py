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
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from qwen2vl_io.formats import (
    AVIF,
    BITS,
    CAMERA_RAW,
    HEAD_BYTES,
    HEIC,
    JPEG,
    PHOTOMETRIC,
    PNG,
    RAW,
    READ,
    SAMPLE_FORMAT,
    TIFF,
    Kind,
    is_camera_raw,
    kind_of,
    kind_of_tail,
    not_a_picture,
)
from qwen2vl_io.picture_files import (
    FORMATS,
    draft_scale,
    open_heic,
    open_large_jpeg,
    read_segments,
    unreadable,
    with_two_ends,
    without_large_notes,
)
from qwen2vl_io.sentences import damaged
from qwen2vl_io.sources import opener

MAX_IMAGE_PIXELS = 2**26  # width × height, 67 million; to decode one and make it RGB takes up to 13 bytes each
MAX_DRAFT_PIXELS = 2**28  # of a JPEG, of which the decoder makes fewer
MAX_JPEG_SCANS = 500, 2**30  # of a progressive JPEG, and pixels of all: each scan goes over all pixels again
MAX_PICTURE_BYTES = 2**29  # of a file
UPRIGHT = 1  # of EXIF's orientations
TRUE_SIZE = "true size"  # the key in a picture's `info` under which that of a larger file stands

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would log to stderr what we say in our own words


def load_image(source, rotate_by_exif: bool = True) -> Image.Image:
    """One picture → RGB, upright, on white.

    `source`: a path (str or Path, also "file://…"), an http(s) URL, the bytes of a file, a base64 data URI, a PIL
    picture, a numpy array (height, width[, 1, 3 or 4]) or a torch tensor ([1, 3 or 4,] height, width), of whole numbers
    (uint8, uint16) or fractions 0..1. An animation gives its first frame. `rotate_by_exif=False` leaves a photograph as
    the camera stored it (except in TIFF and HEIC files, which are turned by their decoders). A plain RGB picture comes
    back unchanged. A JPEG of more than MAX_IMAGE_PIXELS comes back smaller (see `true_size`).

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
    if image.format not in ("JPEG", "MPO"):
        return without_file(upright_rgb(image, name, rotate_by_exif, file), image)

    true_width, true_height = image.size
    *others, image = served_jpeg(image, file, name)
    digests = [zlib.crc32(upright_rgb(other, name, rotate_by_exif).tobytes()) for other in others]
    del others  # with their pixels
    picture = without_file(upright_rgb(image, name, rotate_by_exif), image)
    if digests and zlib.crc32(picture.tobytes()) not in digests:
        raise ValueError(damaged(name, "its last pixels are missing"))
    if image.size != (true_width, true_height):
        turned = exif_orientation(image) >= 5 and rotate_by_exif  # by a quarter
        picture.info[TRUE_SIZE] = picture.size, (true_height, true_width) if turned else (true_width, true_height)
    return picture


def without_file(picture: Image.Image, image: Image.Image) -> Image.Image:
    """A picture without ties to the file of `image`, which is about to close."""
    return picture.copy() if picture is image else picture


def true_size(image: Image.Image) -> tuple[int, int]:
    """The (height, width) of a picture in its file, by which its size in tokens is chosen.

    It differs from that of the pixels only for a JPEG beyond MAX_IMAGE_PIXELS, as phones with 108 or 200 megapixels
    write them: of such a file the decoder makes a half of each side (a quarter or an eighth if need be), which is what
    it would average anyway before the model sees it. So the tokens are those of the whole picture, its values differ a
    little from those of the whole picture resized. All others equal Pillow's to the bit.
    """
    found = image.info.get(TRUE_SIZE)
    now, true = found if isinstance(found, tuple) else (None, None)  # a PNG may hold a text of that name
    width, height = true if image.size == now else image.size  # else it has been cut or resized since
    return height, width


def read_header(file, name: str, max_bytes: int = MAX_PICTURE_BYTES) -> Image.Image:
    """A file opened for reading → a PIL picture of which no pixels are decoded yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's doubts about metadata are nothing a user could act on
        kind = None
        size = None
        try:
            size = file.seek(0, io.SEEK_END)
            if size > max_bytes:
                raise OverflowError
            file.seek(0)
            kind = kind_of(file.read(HEAD_BYTES))
            if kind is TIFF and is_camera_raw(file):
                kind = CAMERA_RAW
            if kind and kind.family == RAW:  # many are TIFFs within, and Pillow would show the thumbnail
                raise UnidentifiedImageError
            return open_file(file, kind)
        except OverflowError:
            text = f"{name} has {size:,} bytes, more than the limit of {max_bytes:,}; make it smaller first."
        except UnidentifiedImageError as error:
            text = unidentified(file, name, kind, error) if size else f"{name} is empty; get it again."
        except Image.DecompressionBombError:
            text = too_large(name)
        except Exception as error:  # decoders of damaged files raise whatever comes
            text = unreadable(name, error)
    raise ValueError(text)


def open_file(file, kind: Kind | None) -> Image.Image:
    """A file of that kind → a PIL picture that is not decoded yet."""
    if kind is PNG:
        file = without_large_notes(file)
    file.seek(0)
    if kind is HEIC:
        return open_heic(file)
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        if kind is JPEG:
            return open_large_jpeg(file)
        raise


def unidentified(file, name: str, kind: Kind | None, error: Exception) -> str:
    """The sentence about a file that Pillow does not know: what it is, or that it is damaged."""
    try:
        if kind is None:
            file.seek(-min(26, file.seek(0, io.SEEK_END)), io.SEEK_END)
            kind = kind_of_tail(file.read())
        if kind is None:
            return f"{name} is no picture, or none that can be read; save it as one of {', '.join(FORMATS)}."
        if kind.family != READ and not (kind is AVIF and "AVIF" in FORMATS):
            return not_a_picture(name, kind)
        if kind is JPEG and read_segments(rewound(file).read(), MAX_JPEG_SCANS[0]).is_rare:
            return unreadable(name, "unsupported kind of JPEG")
        return unreadable(name, error, file)
    except OSError as error:
        return damaged(name, error)


def rewound(file):
    """The same file, standing at its first byte."""
    file.seek(0)
    return file


def served_jpeg(image: Image.Image, file, name: str) -> list[Image.Image]:
    """A JPEG → the same, ready to be decoded within the limits; two of it if its end is missing (`with_two_ends`)."""
    pixels = max(1, image.width * image.height)
    if pixels > MAX_DRAFT_PIXELS:
        raise ValueError(too_large(f"{name} ({image.width}×{image.height})"))
    data = rewound(file).read()
    most = min(MAX_JPEG_SCANS[0], MAX_JPEG_SCANS[1] // pixels)
    jpeg = read_segments(data, most)
    if jpeg.scans > most:
        raise ValueError(f"{name} is a JPEG of more than {most} scans; save it as a PNG or an ordinary JPEG.")
    if jpeg.is_rare:
        raise ValueError(unreadable(name, "unsupported kind of JPEG"))

    versions = [image]
    if not jpeg.has_end and jpeg.scans and not jpeg.missing:
        versions = [open_large_jpeg(io.BytesIO(whole)) for whole in with_two_ends(data)]
    # a decoder holds all frequencies of a picture of several scans, however few pixels it is to make
    scale = draft_scale(*image.size, MAX_IMAGE_PIXELS) if jpeg.scans == 1 else 1
    if scale != 1:
        for version in versions:
            version.draft(None, (image.width // scale, image.height // scale))
    return versions


def upright_rgb(image: Image.Image, name: str, rotate_by_exif: bool, file=None) -> Image.Image:
    """A PIL picture, perhaps not decoded yet (from `file`) → RGB, turned as its EXIF says."""
    check_size(image.width, image.height, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            key = transparent_value(image)
            image.load()  # a file that was cut off fails here
        except Exception as error:
            raise ValueError(unreadable(name, error, file)) from None
        check_size(image.width, image.height, name)  # HEIC: what is decoded can have another size than its header says
        orientation = exif_orientation(image)
        rgb = to_rgb(image, name, key)
    if orientation == UPRIGHT:
        return rgb

    bare = Image.fromarray(np.array(rgb))  # pixels without the tag, so that nobody turns this picture again
    if rotate_by_exif:
        bare.getexif()[Base.Orientation] = orientation
        bare = ImageOps.exif_transpose(bare)
    return bare


def transparent_value(image: Image.Image):
    """Which grey of a picture that is not decoded yet stands for "nothing here", as its pixels will have it.

    Of a PNG of 2 or 4 bits Pillow hands out that grey as the file has it, but the pixels scaled to 8 bits.
    """
    key = image.info.get("transparency")
    stored = getattr(image.tile[0], "args", None) or image.tile[0][3] if getattr(image, "tile", None) else None
    stored = stored[0] if isinstance(stored, tuple) and stored else stored
    if stored == "RGB;16B" and key is not None:
        raise ValueError("unsupported: 16 bits a channel and a transparent colour")  # of which only 8 bits are left
    return key * {"L;2": 85, "L;4": 17}.get(stored, 1) if isinstance(key, int) else key


def exif_orientation(image: Image.Image) -> int:
    """How the camera was held: 1 is upright, 2 to 8 are quarter turns and mirror images."""
    try:
        orientation = image.getexif().get(Base.Orientation)
    except Exception:  # EXIF that cannot be read says nothing about the pixels
        return UPRIGHT
    return orientation if orientation in range(2, 9) else UPRIGHT


def to_rgb(image: Image.Image, name: str, key=None) -> Image.Image:
    """Any mode → RGB: what is transparent shows white, and what has more than 8 bits a channel is scaled, not cut.

    `key`: the grey that stands for transparent, if it is another than the picture itself says.
    """
    # "I;16…", "I" (in which Pillow hands out other 16-bit files) and floats
    if image.mode[0] in "IF" or image.mode == "L" and has_signed_values(image):
        return scaled_grey(image, name)
    try:
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        if key != image.info.get("transparency"):
            image = image.copy()
            image.info["transparency"] = key
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except Exception:  # La (grey, alpha multiplied in), for example; or a palette that does not fit
        raise ValueError(f"{name} has the colour mode {image.mode}, which cannot become RGB; save it as RGB.") from None


def scaled_grey(image: Image.Image, name: str) -> Image.Image:
    """Greys of more than 8 bits → RGB. What value is white depends on the file; if nothing tells, it is refused."""
    tags = getattr(image, "tag_v2", None) or {}  # of a TIFF
    bits = (first_number(tags.get(BITS)) or 32) if tags else 16
    is_signed = has_signed_values(image)
    is_negative = first_number(tags.get(PHOTOMETRIC)) == 0  # "white is zero", which Pillow heeds for 8 bits only
    values = np.asarray(image)
    values = values.view(np.int8) if values.dtype == np.uint8 else values
    low, high = values.min(), values.max()

    top = 2**bits - 1 if bits <= 16 else 65535
    if image.mode == "F" or tags and not image.mode.startswith("I;"):
        # no such file says which value is white. It is told by the brightest, if that is near one of the usual ones
        tops = (1, 255, 65535) if image.mode == "F" else () if is_signed and bits < 32 else (65535,)
        top = next((top for top in tops if top / (4 if top == 1 else 2) < high <= top or high == low == 0), None)
        if top is None or not low >= 0 or is_negative:  # so written, NaN is refused too
            raise ValueError(
                f"{name} has values from {low:g} to {high:g}, and nothing says which of them is white; scale them to "
                "0..1, the brightest to 1, or save it with 8 bits a channel."
            )
    if low < 0 or high > top:
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}, beyond 0..{top}; bring them to 0..{top}, or save it with 8 "
            "bits a channel."
        )
    grey = to_bytes(values, top)
    if is_negative:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def has_signed_values(image: Image.Image) -> bool:
    """Whether a TIFF holds signed numbers, of which Pillow hands out those of 8 bits as if they had no sign."""
    return first_number((getattr(image, "tag_v2", None) or {}).get(SAMPLE_FORMAT)) == 2


def first_number(value) -> int | None:
    """A tag of a TIFF, which Pillow hands out as a number or as several."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


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
