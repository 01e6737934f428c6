"""Pictures and videos from outside → RGB, safely; and the boxes that a model writes, read and drawn.

`load_image` takes what a message may hold: a path, a URL, bytes, a data URI, a PIL picture, an array or a tensor;
`load_video` takes the same of a video, an animated GIF, or a list of pictures. Nothing is decoded before its header
has been checked, of a video no more than the sampled frames need, and all that can go wrong ends in one sentence that
says what to do.
(Words inside a picture are read by the model like any others: do not trust them more than the picture's source.)
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
import itertools
import logging
import math
import numbers
import os
import re
import struct
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # all others stay closed, with their decoders' bugs
MAX_IMAGE_PIXELS = 2**26  # width × height, 67 million; to decode one and make it RGB takes up to 13 bytes each
MAX_JPEG_SCANS = 500, 2**30  # of a progressive JPEG, and pixels of all: each scan goes over all pixels again
MAX_PICTURE_BYTES = 2**29  # of a file
MAX_BASE64_CHARS = 64 * 2**20  # characters of a data URI: 48 MiB of file
MAX_IMAGE_BYTES, IMAGE_SECONDS = 64 * 2**20, 30  # what a URL may send, and how long that may take
MAX_VIDEO_BYTES, VIDEO_SECONDS = 2**30, 300
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

JPEG_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])")  # those that have a length behind them
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would log to stderr what we say in our own words

SOURCE_KEYS = ("image", "image_url", "video", "video_url", "url", "path", "base64")  # in an item of a message

# ── Pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def load_image(source, rotate_by_exif: bool = True) -> Image.Image:
    """One picture → RGB, upright, on white.

    `source`: a path (str or Path, also "file://…"), an http(s) URL, the bytes of a file, a base64 data URI, a PIL
    picture, a numpy array (height, width[, 1, 3 or 4]) or a torch tensor ([1, 3 or 4,] height, width), of whole numbers
    (uint8, uint16) or fractions 0..1. An animation gives its first frame. `rotate_by_exif=False` leaves a photograph as
    the camera stored it (except in TIFF files, which Pillow turns by itself). A plain RGB picture comes back as it is.

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


def item_source(item: dict):
    """The picture or video that an item of a message names, for `load_image` or `load_video`.

    It stands under one of SOURCE_KEYS, there also as {"url": …}; `base64` is a file's content without a "data:" head.
    """
    found = [key for key in SOURCE_KEYS if item.get(key) is not None]
    if len(found) != 1:
        what = f"names its source {len(found)} times ({', '.join(found)})" if found else "names no picture or video"
        raise ValueError(f"An item of a message {what}; give one of {', '.join(SOURCE_KEYS)}.")
    source = item[found[0]]
    if isinstance(source, dict):
        if (source := source.get("url")) is None:
            raise ValueError(f'The {found[0]} of an item holds no address; write {{"url": "…"}}.')
    if found[0] == "base64" and isinstance(source, str) and source[:5].lower() != "data:":
        return base64_bytes(source, "The base64 of an item")
    return source


def opener(source, what: str) -> tuple[Callable, str]:
    """A path, URL, data URI or bytes → a function that opens it at its first byte, and its name in messages.

    `what`: "picture" or "video". Only one of the files that the function opens for a URL can be in use at a time.
    """
    if not isinstance(source, str | os.PathLike):
        content, name = bytes(source), f"The {what} of {len(source)} bytes"
        return lambda: io.BytesIO(content), name
    if isinstance(source, str) and source[:5].lower() == "data:":
        content = data_uri_bytes(source)
        return lambda: io.BytesIO(content), f"The {what} in the data URI"
    if isinstance(source, str) and re.match("https?:", source, re.IGNORECASE):
        from url_fetcher import open_url

        limits = (MAX_VIDEO_BYTES, VIDEO_SECONDS) if what == "video" else (MAX_IMAGE_BYTES, IMAGE_SECONDS)
        fetched = open_url(source, *limits)  # a temporary file, gone when it is closed

        def rewound():
            fetched.seek(0)
            return nullcontext(fetched)

        weakref.finalize(rewound, fetched.close)  # once nobody can ask for it any more
        return rewound, shorten(source)
    path = find_file(source, what)

    def open_path():
        try:
            return path.open("rb")
        except OSError as error:
            raise ValueError(f"{shorten(path)} cannot be opened ({error.strerror}); check its permissions.") from None

    return open_path, shorten(path)


def find_file(source: str | os.PathLike, what: str = "picture") -> Path:
    """A path or a file URL → the path of an ordinary file that exists. `what` it should hold is named in errors."""
    text = os.fspath(source)
    if isinstance(text, str) and re.match("file:", text, re.IGNORECASE):
        local = re.match("file:(?://(?:localhost)?)?(/.*)", text, re.IGNORECASE | re.DOTALL)
        if not local or local[1].startswith("//"):
            raise ValueError(f"{shorten(text)} does not name a file on this machine; write file:///folder/name.")
        text = unquote(local[1])
    elif isinstance(text, str) and re.match("[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(f"Of URLs only http, https and file are read: save {shorten(text)} to a file, pass its path.")
    path = Path(os.fsdecode(text))
    try:
        if path.is_file():
            return path
        is_dir, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # a name too long for the system, or with a null character in it
        is_dir = exists = False
    if is_dir:
        raise ValueError(f"{shorten(path)} is a folder; name one {what} in it.")
    if exists:
        raise ValueError(f"{shorten(path)} is not an ordinary file; save the {what} to one first.")
    raise FileNotFoundError(f"There is no file {shorten(path)}; check the name and the folder ({shorten(Path.cwd())}).")


def shorten(text: str | Path, longest: int = 200) -> str:
    """A path or URL as an error message can show it: one line, of bounded length, without passwords."""
    text = str(text) if len(str(text)) < 20_000 else str(text)[:10_000] + str(text)[-10_000:]
    text = re.sub("(://)[^/?#]*@", r"\1…@", text)
    text = "".join(c if c.isprintable() else "?" for c in text) or '""'
    return text if len(text) <= longest else text[: longest - 20] + "…" + text[-19:]


def data_uri_bytes(uri: str) -> bytes:
    """The file inside "data:image/png;base64,…"."""
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{shorten(uri, 60)} is not a base64 data URI; write data:image/png;base64,… instead.")
    return base64_bytes(body, "The data URI")


def base64_bytes(text: str, name: str) -> bytes:
    if len(text) > MAX_BASE64_CHARS:
        raise ValueError(f"{name} has {len(text):,} characters, more than {MAX_BASE64_CHARS:,}; save it to a file.")
    try:
        return base64.b64decode(re.sub(r"\s", "", unquote(text)), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} holds no valid base64; encode the file with base64.b64encode.") from None


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
    data, at, count = file.read(), 0, 0
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


def damaged(name: str, error: Exception | str) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{name} is cut off or damaged ({shorten(reason).rstrip('.')}); get it again."


# ── Videos ────────────────────────────────────────────────────────────────────────────────────────────────────────
# Frames are chosen as the official qwen-vl-utils does: so many a second, an even number, spread from first to last.

FPS = 2.0  # frames sampled from each second
MIN_FRAMES, MAX_FRAMES = 4, 768  # of one video
FRAME_FACTOR = 2  # frames enter the vision tower in pairs
MAX_FRAME_PIXELS = 2**25  # width × height: 8K. A decoder keeps up to 17 frames, so less than of a picture
MAX_ANIMATION = 10_000, 2**29  # frames, and pixels of all of them: a GIF of a kilobyte can promise hours of work
MAX_ANIMATION_BYTES = 2**26  # of its file: Pillow looks for the next frame byte by byte
MAX_SEARCH_BYTES = 2**28  # that FFmpeg reads without finding a frame
MAX_TABLES_BYTES = 2**26  # of an MP4's tables of contents in one piece; they take about 16 bytes a frame
MAX_PACKETS = 2_000_000  # frames in one file: nine hours at 60 a second
SIGNATURES = {  # what files begin with → FFmpeg's name of the format. No playlists: they open other files and URLs
    rb"....(ftyp|moov|mdat|free|skip|wide|pnot)": "mov",
    rb"\x1a\x45\xdf\xa3": "matroska",
    rb"RIFF....AVI ": "avi",
    rb"FLV\x01": "flv",
    rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47": "mpegts",
    rb"\0\0\x01\xba": "mpeg",
    rb"GIF8|RIFF....WEBP|\x89PNG": "animation",
}
CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,mpeg4,mpeg1video,mpeg2video,h263,flv,mjpeg,msmpeg4,prores,ffv1"


@dataclass
class Video:
    """A video of which frames have been chosen but not kept: `frames()` decodes them, one at a time."""

    name: str  # for messages
    width: int  # pixels, upright
    height: int
    seconds: list[float]  # when each chosen frame is shown, from the start of the source
    video_fps: float | None  # frames a second of the source; None if it has no times
    total_frames: int  # in the source
    note: str  # what the user should know about the choice, in one sentence, or ""
    decoder: Callable[[], Iterator[np.ndarray]] = field(repr=False)

    @property
    def num_frames(self) -> int:
        return len(self.seconds)

    def frames(self) -> Iterator[np.ndarray]:
        """The chosen frames in order, each (height, width, 3) uint8 RGB. Can be called again."""
        return self.decoder()


def load_video(
    source, fps=None, nframes=None, video_start=None, video_end=None, min_frames=None, max_frames=None
) -> Video:
    """A video → which of its frames to look at; the frames themselves are decoded by `.frames()`.

    `source`: a path, an http(s) URL, a data URI or the bytes of an MP4, MOV, MKV, WebM, AVI, MPEG, FLV, GIF, WebP or
    PNG file; an animated PIL picture; a list of pictures (anything `load_image` takes) or an array (T, height, width,
    3) or a tensor (T, 3, height, width). `fps` or `nframes`, `min_frames`, `max_frames`: see `smart_nframes`.
    `video_start`, `video_end`: seconds from the first frame; what is outside does not count. A list has no times: it
    is taken whole whatever `fps` says, or `nframes` of it. A `Video` comes back as it is.

    Raises FileNotFoundError if there is no such file, else ValueError.
    """
    times = {"video_start": video_start, "video_end": video_end}
    if isinstance(source, Video):
        return source
    if isinstance(source, list | tuple) or getattr(source, "ndim", None) == 4:
        pictures = list(source) if isinstance(source, list | tuple) else source
        return from_pictures(pictures, nframes, {**times, "min_frames": min_frames, "max_frames": max_frames})
    if isinstance(source, Image.Image):
        clip = Animation(lambda: nullcontext(source), "The animation")
    elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        clip = open_clip(*opener(source, "video"))
    else:
        raise ValueError(
            f"A {type(source).__name__} is no video; pass a path, a URL, bytes, a list of pictures, or an array of "
            "shape (frames, height, width, 3)."
        )
    inside = cut(clip, video_start, video_end)
    rate = frame_rate(clip.seconds[inside], clip.rate)
    min_frames = MIN_FRAMES if min_frames is None else min_frames
    max_frames = MAX_FRAMES if max_frames is None else max_frames
    number = smart_nframes(len(inside), rate or FPS, fps, nframes, min_frames, max_frames)
    chosen = inside[spread(clip.seconds[inside], number)]
    wanted = nframes or len(inside) / (rate or FPS) * (fps or FPS)
    if wanted >= number + FRAME_FACTOR:
        reason = "there are no more" if number >= len(inside) - 1 else f"max_frames is {max_frames}"
        clip.notes.append(f"{wanted:,.0f} frames are asked for but {number} taken: {reason}.")
    seconds = clip.seconds[chosen].tolist()
    note = " ".join(f"{clip.name}: {note}" for note in clip.notes)
    return Video(
        clip.name, clip.width, clip.height, seconds, clip.rate, len(clip.seconds), note, lambda: clip.read(chosen)
    )


def from_pictures(pictures, nframes: int | None, refused: dict) -> Video:
    """Pictures of one size (a list of anything `load_image` takes, an array, a tensor) → a video without times."""
    total = len(pictures)
    if not total:
        raise ValueError("The list of frames is empty; give at least one picture.")
    if given := [option for option, value in refused.items() if value is not None]:
        raise ValueError(f"A list of pictures has no times, so {given[0]} means nothing; choose with nframes.")
    if nframes is None and total > MAX_FRAMES:
        raise ValueError(f"The list has {total} frames, more than {MAX_FRAMES}; say with nframes how many to take.")
    number = total if nframes is None else smart_nframes(total, FPS, nframes=nframes)
    chosen = frame_indices(total, number)
    as_bytes = hasattr(pictures, "detach") and holds_bytes(pictures[index] for index in chosen)
    first = load_image(pictures[chosen[0]].byte() if as_bytes else pictures[chosen[0]])

    def decoder():
        for index in chosen:
            if index == chosen[0]:
                picture = first  # so that a URL is not fetched twice
            else:
                picture = load_image(pictures[index].byte() if as_bytes else pictures[index])
            if picture.size != first.size:
                size, others = ("×".join(map(str, image.size)) for image in (picture, first))
                raise ValueError(
                    f"Frame {index} of the list is {size} pixels and frame {chosen[0]} is {others}; "
                    "make them the same size."
                )
            yield np.array(picture)

    name, note = "The list of frames", ""
    if nframes is not None and nframes >= number + FRAME_FACTOR:
        note = f"{name}: {nframes} are asked for but {number} taken: there are no more."
    return Video(name, first.width, first.height, [index / FPS for index in chosen], None, total, note, decoder)


def holds_bytes(frames: Iterable) -> bool:
    """Whether tensors of floats hold whole numbers to 255, not fractions: so qwen-vl-utils hands frames over."""
    above = False
    for frame in frames:
        values = tensor_array(frame)
        inside = frame.is_floating_point() and values.min() >= 0 and values.max() <= 255
        if not inside or (values != np.rint(values)).any():
            return False
        above |= bool(values.max() > 1)
    return above


def smart_nframes(
    total_frames: int,
    video_fps: float,
    fps: float | None = None,
    nframes: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
) -> int:
    """How many of a video's frames to take: `nframes`, or `fps` (default 2) for each second; an even number.

    The rule is that of qwen-vl-utils, with `min_frames` and `max_frames` for `fps` only; what that refuses because
    there are too few frames gets all of them (but one if they are odd; a video of one frame gets that).

    >>> smart_nframes(300, 30), smart_nframes(140, 29.97), smart_nframes(300, 30, nframes=7), smart_nframes(1, 30)
    (20, 10, 8, 1)
    """
    if total_frames < 1:
        raise ValueError("The video has no frames; get it again.")
    if fps is not None and nframes is not None:
        raise ValueError("fps and nframes exclude each other; give one of them.")
    fps = positive(FPS if fps is None else fps, "fps")
    min_frames, max_frames = whole(min_frames, "min_frames", 1), whole(max_frames, "max_frames", FRAME_FACTOR)
    there = total_frames // FRAME_FACTOR * FRAME_FACTOR or total_frames
    if nframes is None:
        low, high = math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR, max_frames // FRAME_FACTOR * FRAME_FACTOR
        nframes = min(max(total_frames / positive(video_fps, "video_fps") * fps, low), high)
    else:
        whole(nframes, "nframes", FRAME_FACTOR)
    return min(round(nframes / FRAME_FACTOR) * FRAME_FACTOR, there)


def frame_indices(total_frames: int, nframes: int) -> list[int]:
    """Which frames: `nframes` spread evenly from the first to the last."""
    return np.rint(np.linspace(0, total_frames - 1, nframes)).astype(int).tolist()


def spread(seconds: np.ndarray, number: int) -> np.ndarray:
    """Time stamps (n,) → the indices of `number` frames spread evenly in time from the first to the last."""
    even = np.linspace(seconds[0], seconds[-1], len(seconds))
    # Containers round time stamps; frames that far from their even places are at a constant rate all the same.
    if len(seconds) < 3 or np.abs(seconds - even).max() < (even[1] - even[0]) / 2:
        return np.array(frame_indices(len(seconds), number))
    targets = np.linspace(seconds[0], seconds[-1], number)
    after = np.searchsorted(seconds, targets).clip(1, len(seconds) - 1)
    return after - (targets - seconds[after - 1] <= seconds[after] - targets)


def cut(clip, start: float | None, end: float | None) -> np.ndarray:
    """The indices of the frames shown from `start` to `end`, in seconds; both belong to them."""
    length = clip.seconds[-1] + clip.last
    for name, value in (("video_start", start), ("video_end", end)):
        if value is not None and value != 0:
            positive(value, name)
    start, end = start or 0, length if end is None else end
    inside = np.flatnonzero((clip.seconds >= start - 1e-6) & (clip.seconds <= end + 1e-6))
    if not start < end <= length + clip.last + 0.01 or not len(inside):  # what players say of the length is rounded
        raise ValueError(
            f"{clip.name} has no frames from video_start {start:g} to video_end {end:g} s; choose a stretch of its "
            f"{length:.2f} s."
        )
    return inside


def frame_rate(seconds: np.ndarray, declared: float | None) -> float | None:
    """Frames a second, measured unless the header says nearly the same (then that: it is not rounded)."""
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return declared
    measured = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    return declared if declared and abs(declared / measured - 1) < 0.05 else measured


def positive(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < 1e300:
        raise ValueError(f"{name} must be a number above 0, not {shorten(repr(value), 60)}.")
    return float(value)


def whole(value, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= MAX_FRAMES:
        text = shorten(repr(value), 60)
        raise ValueError(f"{name} must be a whole number from {least} to {MAX_FRAMES}, not {text}.")
    return int(value)


def open_clip(open_file: Callable, name: str) -> Animation | Container:
    """A file → what knows the times of its frames and decodes them."""
    with open_file() as file:
        try:
            head = file.read(1024)
        except OSError as error:
            raise ValueError(damaged(name, error)) from None
        format = next((value for key, value in SIGNATURES.items() if re.match(key, head, re.DOTALL)), None)
        if not head:
            raise ValueError(f"{name} is empty; get it again.")
        if format is None:
            formats = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV or GIF"
            raise ValueError(f"{name} is no video that can be read; save it as {formats} (or pass a picture as such).")
        if format == "mov":
            check_tables(file, name)
    return Animation(open_file, name) if format == "animation" else Container(open_file, name, format)


def check_tables(file, name: str) -> None:
    """Refuse an MP4 that promises more frames than it has bytes: FFmpeg would make room for all of them at once."""
    file.seek(0, io.SEEK_END)
    size, start, promised = file.tell(), 0, 0
    while start + 8 <= size and promised <= size:
        file.seek(start)
        length, kind, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = min(long if length == 1 else length or size, size - start)
        if length < 8:
            break  # FFmpeg stops here, too
        if kind not in (b"mdat", b"free"):  # tables in boxes in boxes, whose names do not turn up by chance
            file.seek(start)
            tables = file.read(min(length, MAX_TABLES_BYTES))
            for each, *counts in re.findall(rb"stsz(?=.{4}(.{4})(.{4}))|trun(?=.{4}(.{4}))", tables, re.DOTALL):
                promised += sum(int.from_bytes(count, "big") for count in counts) * (int.from_bytes(each, "big") or 1)
            if length > MAX_TABLES_BYTES or b"cmov" in tables:  # the latter are compressed, to any size
                promised = math.inf
        start += length
    if promised > size:
        raise ValueError(damaged(name, "its tables do not fit its size"))


class Animation:
    """An animated GIF, WebP or PNG, read by Pillow. A still picture is one frame of it."""

    def __init__(self, open_file: Callable, name: str) -> None:
        self.open_file, self.name, self.notes = open_file, name, []
        durations = []  # seconds
        for image in self.images(itertools.count()):
            if not durations:
                self.height, self.width = self.rgb(image).shape[:2]
            durations.append((image.info.get("duration") or 100) / 1000)  # 0 lasts 100 ms in every browser
            if len(durations) > MAX_ANIMATION[0] or len(durations) * image.width * image.height > MAX_ANIMATION[1]:
                frames, pixels = (f"{limit:,}" for limit in MAX_ANIMATION)
                raise ValueError(f"{name} has more than {frames} frames or {pixels} pixels in all; save it as MP4.")
        self.seconds, self.last = np.cumsum([0, *durations[:-1]]), durations[-1]
        self.rate = len(durations) / sum(durations)

    def images(self, numbers: Iterable[int]) -> Iterator[Image.Image]:
        """The animation, standing at one frame after the other, until there are no more."""
        with self.open_file() as file:
            image = file if isinstance(file, Image.Image) else read_header(file, self.name, MAX_ANIMATION_BYTES)
            before = image.tell()
            try:
                for number in numbers:
                    for step in (partial(image.seek, number), image.load):  # only then does WebP know the duration
                        check_size(image.width, image.height, self.name, MAX_FRAME_PIXELS)  # a frame can enlarge it
                        try:
                            with warnings.catch_warnings():
                                warnings.simplefilter("ignore")
                                step()
                        except EOFError:
                            return
                        except Exception as error:  # decoders of damaged files raise whatever comes
                            raise ValueError(damaged(self.name, error)) from None
                    yield image
            finally:
                if image is file:  # the user's own picture
                    image.seek(before)

    def rgb(self, image: Image.Image) -> np.ndarray:
        return np.array(upright_rgb(image, self.name, rotate_by_exif=True))

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return map(self.rgb, self.images(indices.tolist()))


class Reader:
    """A file as FFmpeg gets it: without a name, and it ends where it fails or where the search takes too long."""

    def __init__(self, file) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.left, self.problem = MAX_SEARCH_BYTES, None

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            self.problem = f"there is no frame in {MAX_SEARCH_BYTES:,} bytes of it"
        try:
            return b"" if self.problem else self.file.read(size)
        except OSError as error:
            self.problem = error
            return b""


def tag_options(pyav: str) -> dict[str, str]:
    """What `av.open` of this version of PyAV needs, or a title that is not UTF-8 would be an error.

    From 19 on it keeps the bytes of such a title, and the argument is gone.
    """
    return {"metadata_errors": "ignore"} if int(pyav.partition(".")[0]) < 19 else {}


class Container:
    """A video file, read by FFmpeg.

    A first pass only looks at the packets. Each holds one frame, most as the difference to frames before it, and says
    when that is shown; those at which decoding can begin are called key frames. Later passes decode between them.
    """

    def __init__(self, open_file: Callable, name: str, format: str) -> None:
        self.open_file, self.name, self.format, self.notes = open_file, name, format, []
        pts, keys, shown = [], [], []  # of each packet: when (None: unknown), is it a key frame, is it to be seen
        with self.opened() as (container, stream, packets):
            context, unit = stream.codec_context, float(stream.time_base or 0)  # unit: seconds
            for packet in packets:
                if len(pts) == MAX_PACKETS:
                    raise ValueError(f"{name} has more than {MAX_PACKETS:,} frames; cut it into pieces.")
                # An editor marks what it cut away to be discarded. VP8 has pictures that only others refer to.
                hidden = packet.is_discard or (context.name == "vp8" and not bytes(packet)[0] & 0x10)
                pts.append(packet.pts)
                keys.append(packet.is_keyframe)
                shown.append(not hidden)
                duration, torn = float(packet.duration or 0) * unit, packet.is_corrupt
            declared = float(stream.average_rate or 0) or None
            ends = float(stream.duration or 0) * unit or (container.duration or 0) / 1e6
            unsorted = format == "avi" and context.has_b_frames  # AVI knows only the order of decoding
        if not pts:
            raise ValueError(f"{name} has no frames; get it again.")
        if torn:
            raise ValueError(damaged(name, "its last frame is incomplete"))
        if not any(keys):
            keys[0] = True
        self.group = np.cumsum(keys)  # (packets,) which key frame it builds on; 0 before the first, not decodable
        key_pts = [None, *(time for time, key in zip(pts, keys) if key)]
        found = [
            # frames shown before the key frame that they follow build on the one before it, too
            (time, group - (time < key_pts[group] and group > 1))
            for time, group, seen in zip(pts, self.group, shown)
            if time is not None and seen and group and key_pts[group] is not None
            if group > 1 or time >= key_pts[1]
        ]
        self.counted = unsorted or not found or len(dict(found)) < len(found) or None in pts
        if self.counted:  # no times to go by: decode everything, to see how many there are
            there = sum(1 for _ in self.decoded(np.arange(len(pts)), np.ones(len(pts))))
            self.positions, self.starts, unit = np.arange(there), np.ones(there), 1 / (declared or 25)
        else:
            self.positions, self.starts = np.array(sorted(found), dtype=np.int64).T  # (frames,) each
        first = next(self.decoded(self.positions[:1], self.starts[:1]), None) if len(self.positions) else None
        if first is None:
            raise ValueError(damaged(name, "its first frame cannot be decoded"))
        self.size = first.width, first.height
        self.turn = display_matrix(first)
        self.height, self.width = self.upright(first).shape[:2]
        self.seconds = (self.positions.astype(float) - float(self.positions[0])) * unit
        self.rate = frame_rate(self.seconds, declared)
        self.last = duration or 1 / (self.rate or FPS)
        if self.seconds[-1] + self.last < 0.9 * ends:
            self.notes.append(
                f"its pictures end at {self.seconds[-1] + self.last:.1f} s of {ends:.1f} s; it may be cut off."
            )

    @contextmanager
    def opened(self) -> Iterator[tuple]:
        """FFmpeg's view of the file, its first stream of pictures, and the packets of that."""
        try:
            import av
        except ImportError:
            raise ValueError("Videos are decoded by PyAV, which is not installed; run pip install av.") from None

        def refuse(url, flags, options):
            raise OSError("a video may not open other files")

        def packets():
            for packet in container.demux(stream):
                if packet.size:  # else the frame before is shown for longer, or this is the end
                    reader.left = MAX_SEARCH_BYTES
                    yield packet
            if reader.problem:
                raise ValueError(damaged(self.name, reader.problem))

        options, reader = {"codec_whitelist": CODECS, "max_pixels": str(MAX_FRAME_PIXELS)}, None
        try:
            with (
                self.open_file() as file,
                av.open(
                    reader := Reader(file),
                    format=self.format,
                    options=options,
                    **tag_options(av.__version__),
                    io_open=refuse,
                ) as container,
            ):
                covers = av.stream.Disposition.attached_pic  # a picture of the record, in music files
                stream = next((s for s in container.streams.video if not s.disposition & covers), None)
                if stream is None and container.streams.audio:
                    raise ValueError(f"{self.name} has no pictures, only sound; pass a video.")
                if stream is None:
                    raise ValueError(damaged(self.name, "there are no pictures in it"))
                context = stream.codec_context
                if context is None or context.name not in CODECS.split(","):
                    raise ValueError(f"{self.name} is compressed in a way that is not read; save it as H.264 in MP4.")
                if not context.width * context.height:
                    raise ValueError(damaged(self.name, "it does not say how large its frames are"))
                check_size(context.width, context.height, self.name, MAX_FRAME_PIXELS)
                context.options = {"max_pixels": options["max_pixels"]}  # for sizes that change later
                yield container, stream, packets()
        except (av.FFmpegError, OSError) as error:
            raise ValueError(damaged(self.name, reader and reader.problem or error)) from None

    def decoded(self, positions: np.ndarray, starts: np.ndarray) -> Iterator:
        """The frames (of PyAV) at increasing `positions` in order, until one is missing.

        `positions`: presentation times in the file's unit, or numbers of frames if those have been counted. `starts`:
        the key frame from which on the packets are needed for each. Packets that none needs are not decoded.
        """
        import av

        done, count, skipped = 0, 0, False
        with self.opened() as (_, stream, packets):
            context = stream.codec_context
            no_more = math.inf, None
            for group, packet in itertools.chain(zip(self.group, packets), [no_more]):
                if group < starts[done]:
                    skipped = True
                    continue
                if skipped and packet:
                    context.flush_buffers()
                    skipped = False
                try:
                    frames = context.decode(packet)
                except av.FFmpegError:  # matters only if a frame that is wanted cannot be made without it
                    continue
                for frame in frames:
                    position = count if self.counted else frame.pts
                    count += 1
                    while position == positions[done]:  # one frame can be wanted twice
                        yield frame
                        done += 1
                        if done == len(positions):
                            return
                    if position is not None and position > positions[done]:
                        return

    def upright(self, frame) -> np.ndarray:
        """A decoded frame → (height, width, 3) RGB, turned as its display matrix says."""
        rgb = frame.to_ndarray(format="rgb24", width=self.size[0], height=self.size[1])  # should its size change
        swap, flip_x, flip_y = self.turn
        rgb = rgb.swapaxes(0, 1) if swap else rgb
        return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        done = 0
        for starts in (self.starts, np.ones_like(self.starts)):
            # The second time nothing is skipped: there are key frames which are none, in streams made for broadcasting.
            for frame in self.decoded(self.positions[indices[done:]], starts[indices[done:]]):
                yield self.upright(frame)
                done += 1
            if done == len(indices):
                return
        when = self.seconds[indices[done]]
        raise ValueError(damaged(self.name, f"the frame at {when:.2f} s cannot be decoded"))


def display_matrix(frame) -> tuple[bool, bool, bool]:
    """How a frame has to be turned to be upright: exchange rows and columns?, then mirror left-right?, up-down?

    The matrix (a b · / c d · / …) sends the pixel (x, y) to (ax + cy, bx + dy); quarter turns and mirrors are read.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix)) if matrix else (1, 0, 0, 0, 1)
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


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
