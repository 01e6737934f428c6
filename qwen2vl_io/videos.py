"""Clips from outside → the frames that the model looks at, safely.

Frames are chosen as the official qwen-vl-utils does: a number for each second, an even number in all, spread from the
first frame to the last. Only what the chosen frames need is decoded.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from qwen2vl_io.options import positive_number, whole_number
from qwen2vl_io.pictures import check_size, load_image, read_header, tensor_array, upright_rgb
from qwen2vl_io.sentences import damaged
from qwen2vl_io.sources import opener

FPS = 2.0  # frames sampled from each second
MIN_FRAMES = 4  # of one video
MAX_FRAMES = 768  # of one video
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
    is taken whole whatever `fps` says, or `nframes` of it. A `Video` comes back unchanged.

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


def frame_rate(seconds: np.ndarray, declared: float | None) -> float | None:
    """Frames a second, measured unless the header says nearly the same (then that: it is not rounded)."""
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return declared
    measured = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    return declared if declared and abs(declared / measured - 1) < 0.05 else measured


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
    size = file.tell()
    start = 0
    promised = 0
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

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return map(self.rgb, self.images(indices.tolist()))


class Reader:
    """A file as FFmpeg gets it: without a name, and it ends where it fails or where the search takes too long."""

    def __init__(self, file) -> None:
        self.file = file
        self.seek = file.seek
        self.tell = file.tell
        self.left = MAX_SEARCH_BYTES
        self.problem = None

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


@dataclass
class PacketTable:
    """What the first pass over a file learns: one entry a packet, in the order of decoding."""

    pts: list[int | None] = field(default_factory=list)  # when its frame is shown, in `unit`; None: unknown
    is_key: list[bool] = field(default_factory=list)  # can decoding begin here?
    is_shown: list[bool] = field(default_factory=list)  # False: only other frames refer to it
    unit: float = 0.0  # seconds
    duration: float = 0.0  # of the last frame, in seconds; 0: unknown
    is_torn: bool = False  # the last packet is incomplete
    declared_rate: float | None = None  # frames a second, as the header says
    declared_end: float = 0.0  # seconds, as the header says; 0: unknown
    has_display_order: bool = True  # False: the times are those of decoding


class Container:
    """A video file, read by FFmpeg.

    A first pass only looks at the packets. Each holds one frame, most as the difference to frames before it, and says
    when that is shown; those at which decoding can begin are called key frames. Later passes decode between them.
    """

    def __init__(self, open_file: Callable, name: str, format: str) -> None:
        self.open_file = open_file
        self.name = name
        self.format = format
        self.notes: list[str] = []

        table = self.scan()
        unit = self.find_frames(table)
        first = next(self.decoded(self.positions[:1], self.starts[:1]), None) if len(self.positions) else None
        if first is None:
            raise ValueError(damaged(name, "its first frame cannot be decoded"))

        self.size = first.width, first.height
        self.turn = display_matrix(first)
        self.height, self.width = self.upright(first).shape[:2]
        self.seconds = (self.positions.astype(float) - float(self.positions[0])) * unit
        self.rate = frame_rate(self.seconds, table.declared_rate)
        self.last = table.duration or 1 / (self.rate or FPS)

        end = self.seconds[-1] + self.last
        if end < 0.9 * table.declared_end:
            self.notes.append(f"its pictures end at {end:.1f} s of {table.declared_end:.1f} s; it may be cut off.")

    def scan(self) -> PacketTable:
        """Look at all packets without decoding any. Raises ValueError where there are none, or too many."""
        table = PacketTable()
        with self.opened() as (container, stream, packets):
            context = stream.codec_context
            table.unit = float(stream.time_base or 0)
            for packet in packets:
                if len(table.pts) == MAX_PACKETS:
                    raise ValueError(f"{self.name} has more than {MAX_PACKETS:,} frames; cut it into pieces.")
                # An editor marks what it cut away to be discarded. VP8 has pictures that only others refer to.
                is_hidden = packet.is_discard or (context.name == "vp8" and not bytes(packet)[0] & 0x10)
                table.pts.append(packet.pts)
                table.is_key.append(packet.is_keyframe)
                table.is_shown.append(not is_hidden)
                table.duration = float(packet.duration or 0) * table.unit
                table.is_torn = packet.is_corrupt

            table.declared_rate = float(stream.average_rate or 0) or None
            table.declared_end = float(stream.duration or 0) * table.unit or (container.duration or 0) / 1e6
            table.has_display_order = not (self.format == "avi" and context.has_b_frames)  # AVI knows decoding only

        if not table.pts:
            raise ValueError(f"{self.name} has no frames; get it again.")
        if table.is_torn:
            raise ValueError(damaged(self.name, "its last frame is incomplete"))
        return table

    def find_frames(self, table: PacketTable) -> float:
        """Set where the frames are and from which key frame each is decoded; return the unit of time, in seconds."""
        if not any(table.is_key):
            table.is_key[0] = True
        self.group = np.cumsum(table.is_key)  # (packets,) the key frame it builds on; 0: before the first, undecodable

        frames = shown_frames(table, self.group)
        has_all_times = None not in table.pts and len(dict(frames)) == len(frames) > 0
        self.counted = not (has_all_times and table.has_display_order)
        if not self.counted:
            self.positions, self.starts = np.array(sorted(frames), dtype=np.int64).T  # (frames,) each
            return table.unit

        # no times to go by: decode everything, to see how many frames there are
        packets = len(table.pts)
        there = sum(1 for _ in self.decoded(np.arange(packets), np.ones(packets)))
        self.positions = np.arange(there)
        self.starts = np.ones(there)
        return 1 / (table.declared_rate or 25)

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

        reader = None
        options = {"codec_whitelist": CODECS, "max_pixels": str(MAX_FRAME_PIXELS)}
        try:
            with self.open_file() as file:
                reader = Reader(file)
                how = {"format": self.format, "options": options, "io_open": refuse, **tag_options(av.__version__)}
                with av.open(reader, **how) as container:
                    stream = self.pick_stream(container, av.stream.Disposition.attached_pic)
                    stream.codec_context.options = {"max_pixels": options["max_pixels"]}  # for sizes that change later
                    yield container, stream, packets()
        except (av.FFmpegError, OSError) as error:
            raise ValueError(damaged(self.name, reader and reader.problem or error)) from None

    def pick_stream(self, container, cover):
        """The first stream of pictures in the file that can be decoded. `cover` marks the picture of a music file."""
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
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
        return stream

    def decoded(self, positions: np.ndarray, starts: np.ndarray) -> Iterator:
        """The frames (of PyAV) at increasing `positions` in order, until one is missing.

        `positions`: presentation times in the file's unit, or numbers of frames if those have been counted. `starts`:
        the key frame from which on the packets are needed for each. Packets that none needs are not decoded.
        """
        import av

        done = 0
        count = 0
        skipped = False
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


def shown_frames(table: PacketTable, group: np.ndarray) -> list[tuple[int, int]]:
    """The frames that can be decoded and are to be seen: (when, the key frame from which on packets are needed)."""
    key_pts = [None, *(time for time, is_key in zip(table.pts, table.is_key) if is_key)]
    frames = []
    for time, key, is_shown in zip(table.pts, group.tolist(), table.is_shown):
        if time is None or not is_shown or key == 0 or key_pts[key] is None:
            continue
        is_earlier = time < key_pts[key]  # shown before the key frame that it follows
        if is_earlier and key == 1:
            continue  # what it refers to is not in the file
        frames.append((time, key - is_earlier))  # it builds on the key frame before that one, too
    return frames


def display_matrix(frame) -> tuple[bool, bool, bool]:
    """How a frame has to be turned to be upright: exchange rows and columns?, then mirror left-right?, up-down?

    The matrix (a b · / c d · / …) sends the pixel (x, y) to (ax + cy, bx + dy); quarter turns and mirrors are read.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix)) if matrix else (1, 0, 0, 0, 1)
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
