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
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # all others stay closed, with their decoders' bugs
MAX_IMAGE_PIXELS = 178_956_970  # width × height; decoded to RGB half a gigabyte. Pillow's own hard limit as well
MAX_BASE64_CHARS = 64 * 2**20  # characters of a data URI: 48 MiB of file
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held: 1 is upright, …
TURNS = {  # … and these set the others right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
        except OSError as error:
            raise ValueError(f"{shorten(path)} cannot be opened ({error.strerror}); check its permissions.") from None
    if isinstance(source, np.ndarray):
        return from_array(source, "An array")
    if hasattr(source, "detach"):  # a torch tensor, without importing torch for it
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
        if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
            raise ValueError(f"A tensor of shape {array.shape} is no picture; it should be (3, height, width).")
        return from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, "A tensor")
    raise ValueError(
        f"A {type(source).__name__} is no picture; pass a path, bytes, a PIL picture, an array or a tensor."
    )


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
            image = Image.open(file, formats=FORMATS)  # reads the header, no pixels
        except UnidentifiedImageError:
            if not file.seek(0, io.SEEK_END):
                raise ValueError(f"{name} is empty; get the picture again.") from None
            formats = ", ".join(FORMATS)
            raise ValueError(f"{name} is no picture, or none that can be read; save it as one of {formats}.") from None
        except Image.DecompressionBombError:
            raise ValueError(too_large(name)) from None
        except Exception as error:  # decoders of damaged files raise whatever comes
            raise ValueError(damaged(name, error)) from None
    picture = upright_rgb(image, name, rotate_by_exif)
    return picture.copy() if picture is image else picture  # a copy has no ties to the file, which is about to close


def upright_rgb(image: Image.Image, name: str, rotate_by_exif: bool) -> Image.Image:
    """A PIL picture, perhaps not decoded yet → RGB, turned as its EXIF says."""
    check_size(image.width, image.height, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()  # a file that was cut off fails here
        except Exception as error:
            raise ValueError(damaged(name, error)) from None
        try:
            turn = TURNS.get(image.getexif().get(ORIENTATION))
        except Exception:  # EXIF that cannot be read says nothing about the pixels
            turn = None
        rgb = to_rgb(image, name)
    if turn is not None:
        # from bare pixels, so that the tag is gone: the next one to load this picture must not turn it (again)
        rgb = Image.fromarray(np.array(rgb.transpose(turn) if rotate_by_exif else rgb))
    return rgb


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode → RGB: what is transparent shows white, and what has more than 8 bits a channel is scaled, not cut."""
    if image.mode[0] in "IF":  # "I;16…", "I" (in which Pillow hands out other 16-bit files) and floats
        values = np.asarray(image)
        # what white is in floats no file says, but 1, 255 and 65535 are the habits
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
    return np.rint(np.clip(values.astype(np.float32), 0, top) * np.float32(255 / top)).astype(np.uint8)


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


def check_size(width: int, height: int, name: str) -> None:
    """Refuse what has no pixels, and what has too many before anything is decoded."""
    if width < 1 or height < 1:
        raise ValueError(f"{name} has no pixels ({width}×{height}); pass another.")
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(too_large(f"{name} ({width}×{height})"))


def too_large(name: str) -> str:
    return f"{name} has more pixels than the limit of {MAX_IMAGE_PIXELS:,}; make it smaller first."


def damaged(name: str, error: Exception) -> str:
    reason = shorten(error).rstrip(".") if str(error) else type(error).__name__
    return f"{name} is cut off or damaged ({reason}); get the picture again."


# ── Boxes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
# Qwen2-VL points at things with <|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>,
# in thousandths of the picture's width and height. Decode with skip_special_tokens=False, or the markers are gone.

BOX_SCALE = 1000
MARKED = re.compile(
    r"<\|object_ref_start\|>(?P<name>(?:(?!<\|).)*)<\|object_ref_end\|>|<\|box_start\|>(?P<box>[^<]*)<\|box_end\|>",
    re.DOTALL,
)
NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
CORNERS = re.compile(rf"\s*\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)\s*")


@dataclass
class Box:
    """A named rectangle in pixels of the picture: (x1, y1) is its top left, (x2, y2) its bottom right."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """The boxes in a model's raw answer, in pixels of a picture of width × height.

    A name holds for all boxes that follow it directly; a box without one is named "". Malformed boxes are skipped.

    >>> parse_boxes("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,250),(500,1000)<|box_end|>", 640, 480)
    [Box(name='cat', x1=0.0, y1=120.0, x2=320.0, y2=480.0)]
    """
    if width < 1 or height < 1:
        raise ValueError(f"Boxes need the size of their picture in pixels, not {width}×{height}.")
    boxes, name, end = [], "", 0
    for match in MARKED.finditer(text):
        if text[end : match.start()].strip(" \t\r\n,;"):  # other words came between: the name before them is used up
            name = ""
        end = match.end()
        if match["box"] is None:
            name = match["name"].strip()
        elif corners := CORNERS.fullmatch(match["box"]):
            x1, y1, x2, y2 = (min(max(float(number), 0), BOX_SCALE) / BOX_SCALE for number in corners.groups())
            (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
            boxes.append(Box(name, x1 * width, y1 * height, x2 * width, y2 * height))
    return boxes


def draw_boxes(image, boxes: list[Box]) -> Image.Image:
    """A copy of the picture (anything `load_image` takes) with the boxes and their names drawn on it.

    Names are written with Pillow's own font, which has Latin letters only.
    """
    image = load_image(image).copy()
    draw = ImageDraw.Draw(image)
    shorter = min(image.size)
    line, font = max(2, round(shorter / 150)), ImageFont.load_default(max(10, round(shorter / 25)))  # pixels
    tags, placed = [], []
    for number, box in enumerate(boxes):
        # steps of the golden ratio around the colour circle never come back to the same hue
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.9, 1.0))
        left, right = sorted(min(max(round(x), 0), image.width) for x in (box.x1, box.x2))
        top, bottom = sorted(min(max(round(y), 0), image.height) for y in (box.y1, box.y2))
        right, bottom = max(right - 1, left), max(bottom - 1, top)  # Pillow draws the last pixel too
        edge = line + (line + 2) // 3  # black inside the line, so that it shows on its own colour
        draw.rectangle((left, top, right, bottom), outline="black", width=edge)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        if label := " ".join(box.name.split())[:100]:
            while len(label) > 1 and font.getlength(label) + 2 * line > image.width:
                label = label[:-2] + "…"
            tags.append((label, left, top, colour))
    for label, left, top, colour in tags:  # after all lines, so that none crosses a name
        _, up, _, down = font.getbbox("Ág")
        wide, tall = round(font.getlength(label)) + 2 * line + 2, down - up + 2 * line
        x = max(0, min(left, image.width - wide))
        y = top - tall if top >= tall else min(top, max(0, image.height - tall))  # above the box if there is room
        while y + 2 * tall <= image.height and any(abs(y - b) < tall and a - wide < x < a + w for a, b, w in placed):
            y += tall  # below a name that is there already
        placed.append((x, y, wide))
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill=colour, outline="black")
        red, green, blue = colour
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
        draw.text((x + line + 1, y + line - up), label, fill=ink, font=font)
    return image
