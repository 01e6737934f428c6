"""Clips from outside → the frames that the model looks at, safely.

Frames are chosen as the official qwen-vl-utils does: a number for each second, an even number in all, spread from the
first frame to the last. Only what the chosen frames need is decoded.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from qwen2vl_io import pictures
from qwen2vl_io.containers import MAX_FRAME_PIXELS, Container, check_scrambling, check_tables, frame_rate
from qwen2vl_io.options import positive_number, whole_number
from qwen2vl_io.pictures import check_size, load_image, read_header, tensor_array, upright_rgb
from qwen2vl_io.sentences import damaged
from qwen2vl_io.sources import opener

FPS = 2.0  # frames sampled from each second
MIN_FRAMES = 4  # of one video
MAX_FRAMES = 768  # of one video
FRAME_FACTOR = 2  # frames enter the vision tower in pairs
MAX_ANIMATION = 10_000, 2**29  # frames, and pixels of all of them: a GIF of a kilobyte can promise hours of work
MAX_ANIMATION_BYTES = 2**26  # of its file: Pillow looks for the next frame byte by byte
SIGNATURES = {  # what files begin with → FFmpeg's name of the format. No playlists: they open other files and URLs
    rb"....ftyp(avi[fs]|hei[cxms]|hev[cxms]|m(if|sf)1|miaf|heif)": "animation",  # pictures, in the container of clips
    rb"....(ftyp|moov|mdat|free|skip|wide|pnot)": "mov",
    rb"\x1a\x45\xdf\xa3": "matroska",
    rb"RIFF....AVI ": "avi",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    rb"OggS": "ogg",
    rb"FLV\x01": "flv",
    rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47": "mpegts",
    rb"\0\0\x01\xba": "mpeg",
    rb"\0\0\x01\xb3": "mpegvideo",  # pictures alone
    rb"GIF8|RIFF....WEBP|\x89PNG": "animation",
}
STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
STILL_BRANDS += (b"avif", b"avis", b"crx ")


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
    pixels_to_decode: int = 0  # of all frames that have to be decoded for the chosen ones; 0: next to none

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

    `source`: a path, an http(s) URL, a data URI or the bytes of an MP4, MOV, MKV, WebM, AVI, MPEG, WMV, OGV, FLV, GIF,
    WebP, PNG or AVIF file; an animated PIL picture; a list of pictures (anything `load_image` takes) or an array (T,
    height, width, 3) or a tensor (T, 3, height, width). `fps` or `nframes`, `min_frames`, `max_frames`: see
    `smart_nframes`.
    `video_start`, `video_end`: seconds from the first frame; what is outside does not count. A list has no times: it
    is taken whole whatever `fps` says, or `nframes` of it. A `Video` comes back unchanged.

    Raises FileNotFoundError if there is no such file, else ValueError.
    """
    times = {"video_start": video_start, "video_end": video_end}
    if isinstance(source, Video):
        return source
    if isinstance(source, list | tuple) or getattr(source, "ndim", None) == 4:
        pictures = list(source) if isinstance(source, list | tuple) else source
        check_rate(fps, nframes)
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
    return video_of(clip, chosen)


def video_of(clip: Animation | Container, chosen: np.ndarray) -> Video:
    """The frames of these numbers."""
    seconds = clip.seconds[chosen].tolist()
    note = " ".join(f"{clip.name}: {note}" for note in clip.notes)
    return Video(
        clip.name,
        clip.width,
        clip.height,
        seconds,
        clip.rate,
        len(clip.seconds),
        note,
        lambda: clip.read(chosen),
        clip.work(chosen) * clip.width * clip.height,
    )


def from_pictures(pictures, nframes: int | None, refused: dict) -> Video:
    """Pictures of one size (a list of anything `load_image` takes, an array, a tensor) → a video without times."""
    total = len(pictures)
    if not total:
        raise ValueError("The list of frames is empty; give at least one picture.")
    given = [option for option, value in refused.items() if value is not None]
    if given:
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

    name = "The list of frames"
    note = ""
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


def check_rate(fps, nframes) -> None:
    """Two ways to say how many frames are taken."""
    if fps is not None and nframes is not None:
        raise ValueError("fps and nframes exclude each other; give one of them.")


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
    check_rate(fps, nframes)
    fps = positive_number(FPS if fps is None else fps, "fps")
    min_frames = whole_number(min_frames, "min_frames", 1, MAX_FRAMES)
    max_frames = whole_number(max_frames, "max_frames", FRAME_FACTOR, MAX_FRAMES)
    there = total_frames // FRAME_FACTOR * FRAME_FACTOR or total_frames
    if nframes is None:
        low = math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR
        high = max_frames // FRAME_FACTOR * FRAME_FACTOR
        nframes = min(max(total_frames / positive_number(video_fps, "video_fps") * fps, low), high)
    else:
        whole_number(nframes, "nframes", FRAME_FACTOR, MAX_FRAMES)
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
            positive_number(value, name)
    start = start or 0
    end = length if end is None else end
    inside = np.flatnonzero((clip.seconds >= start - 1e-6) & (clip.seconds <= end + 1e-6))
    if not start < end <= length + clip.last + 0.01 or not len(inside):  # what players say of the length is rounded
        raise ValueError(
            f"{clip.name} has no frames from video_start {start:g} to video_end {end:g} s; choose a stretch of its "
            f"{length:.2f} s."
        )
    return inside


def open_clip(open_file: Callable, name: str) -> Animation | Container:
    """A file → what knows the times of its frames and decodes them."""
    with open_file() as file:
        try:
            head = file.read(1024)
        except OSError as error:
            raise ValueError(damaged(name, error)) from None
        format = next((value for key, value in SIGNATURES.items() if re.match(key, head, re.DOTALL)), None)
        still = still_picture(head)
        if still == "AVIF" and head[8:12] == b"avis" and still in pictures.FORMATS:
            format = "animation"
        elif still:
            raise ValueError(f"{name} is a picture ({still}), no video; pass it as an image.")
        if not head:
            raise ValueError(f"{name} is empty; get it again.")
        if format is None:
            formats = "MP4, MOV, MKV, WebM, AVI, MPEG, WMV, OGV, FLV or GIF"
            raise ValueError(f"{name} is no video that can be read; save it as {formats} (or pass a picture as such).")
        if format == "mov":
            check_tables(file, name)
        else:
            check_scrambling(file, name, format)
    return Animation(open_file, name) if format == "animation" else Container(open_file, name, format)


def still_picture(head: bytes) -> str:
    """What kind of picture begins like an MP4; "" if none does. FFmpeg would take it for a clip of its tiles."""
    if head[4:8] != b"ftyp" or head[8:12] not in STILL_BRANDS:
        return ""
    size = int.from_bytes(head[:4], "big")
    brands = {head[start : start + 4] for start in range(8, min(max(size, 12), len(head)), 4)}
    if head[8:12] == b"crx ":
        return "a camera's raw file, CR3"
    return "AVIF" if brands & {b"avif", b"avis"} else "HEIC"


class Animation:
    """An animated GIF, WebP, PNG or AVIF, read by Pillow. A still picture is one frame of it."""

    def __init__(self, open_file: Callable, name: str) -> None:
        self.open_file = open_file
        self.name = name
        self.notes = []
        durations = []  # seconds
        for image in self.images(itertools.count()):
            if not durations:
                self.height, self.width = self.rgb(image).shape[:2]
            durations.append((image.info.get("duration") or 100) / 1000)  # 0 lasts 100 ms in every browser
            if len(durations) > MAX_ANIMATION[0] or len(durations) * image.width * image.height > MAX_ANIMATION[1]:
                frames, pixels = (f"{limit:,}" for limit in MAX_ANIMATION)
                raise ValueError(f"{name} has more than {frames} frames or {pixels} pixels in all; save it as MP4.")
        self.seconds = np.cumsum([0, *durations[:-1]])
        self.last = durations[-1]
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

    def work(self, indices: np.ndarray) -> int:
        """How many frames are decoded to have those of these numbers."""
        return int(indices[-1]) + 1

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return map(self.rgb, self.images(indices.tolist()))
