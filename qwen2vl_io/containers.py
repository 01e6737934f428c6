"""Video files, read by FFmpeg (through PyAV): which frames there are, and the few of them that are wanted.

FFmpeg knows hundreds of formats, many of them written without care for hostile files. Only the ones named here are
opened, and none of them may open another file.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from qwen2vl_io.h264 import Fields
from qwen2vl_io.pictures import check_size
from qwen2vl_io.sentences import damaged

FPS = 2.0  # assumed where a file has neither times nor a rate
INTRA = 1  # the type of a frame that is no difference to another: FFmpeg's AV_PICTURE_TYPE_I
MAX_FRAME_PIXELS = 2**25  # width × height: 8K. A decoder keeps up to 17 frames, so less than of a picture
MAX_THREADS_PIXELS = 2**26  # of the frames that are decoded side by side: 8 of 4K, 2 of 8K
MAX_THREADS = 16
MAX_SEARCH_BYTES = 2**28  # that FFmpeg reads without finding a frame
MAX_TABLES_BYTES = 2**26  # of an MP4's tables of contents in one piece; they take about 16 bytes a frame
MAX_START_FRAMES = 1000  # among which to look for one that is intra-coded
MAX_PACKETS = 2_000_000  # frames in one file: nine hours at 60 a second
TIMES_OF_DECODING = "avi", "asf", "mpegvideo"  # formats that do not say when a frame is shown
SCRAMBLING_BYTES = 2**20  # in which to look for signs of encryption
ASF_ENCRYPTION = tuple(  # the objects in the head of a Windows Media file that say so
    map(
        bytes.fromhex,
        (
            "fbb3112223bdd211b4b700a0c955fc6e",
            "14e68a292226174cb935dae07ee9289c",
            "338505438169e6499b74ad12cb86d58c",
        ),
    )
)
CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,mpeg4,mpeg1video,mpeg2video,h263,flv,mjpeg,prores,ffv1,"
    "msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,theora"
)


def check_tables(file, name: str) -> None:
    """Refuse an MP4 that promises more frames than it has bytes: FFmpeg would make room for all of them at once.

    One whose pictures are encrypted is refused, too.
    """
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
            if re.search(rb"stsd\0{4}.{4}.{4}(encv|drmi)", tables, re.DOTALL):
                raise ValueError(encrypted(name))
            for each, *counts in re.findall(rb"stsz(?=.{4}(.{4})(.{4}))|trun(?=.{4}(.{4}))", tables, re.DOTALL):
                promised += sum(int.from_bytes(count, "big") for count in counts) * (int.from_bytes(each, "big") or 1)
            if length > MAX_TABLES_BYTES or b"cmov" in tables:  # the latter are compressed, to any size
                promised = math.inf
        start += length
    if promised > size:
        raise ValueError(damaged(name, "its tables do not fit its size"))


def frame_rate(seconds: np.ndarray, declared: float | None) -> float | None:
    """Frames a second, measured unless the header says nearly the same (then that: it is not rounded)."""
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return declared
    measured = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    return declared if declared and abs(declared / measured - 1) < 0.05 else measured


def check_scrambling(file, name: str, format: str) -> None:
    """Refuse a stream from broadcasting, a DVD or Windows Media whose pictures are encrypted."""
    file.seek(0)
    data = file.read(SCRAMBLING_BYTES)
    flags = np.zeros(0, np.uint8)  # one byte a piece of the file, in which two bits are 0 if it can be read
    mask = 0xC0
    if format == "mpegts":
        start, stride = (3, 188) if data[:1] == b"\x47" and data[188:189] == b"\x47" else (7, 192)
        flags = np.frombuffer(data, np.uint8)[start::stride]
        flags = flags[flags & 0x10 > 0]  # those with a payload
    if format == "mpeg":
        flags = np.array([flag[0] for flag in re.findall(rb"\0\0\x01[\xe0-\xef]..([\x80-\xbf])", data, re.DOTALL)])
        mask = 0x30
    is_scrambled = len(flags) > 0 and np.mean(flags.astype(np.uint8) & mask > 0) > 0.5  # few can be so by damage
    if is_scrambled or format == "asf" and any(guid in data for guid in ASF_ENCRYPTION):
        raise ValueError(encrypted(name))


def encrypted(name: str) -> str:
    return f"{name} is encrypted (copy protection, DRM), so its pictures cannot be read; pass a clip without it."


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
    is_shown: list[bool] = field(default_factory=list)  # False: only other frames refer to it, or half a frame
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

    Containers mark packets as key frames which are none, and the other way round. So the first is looked for by
    decoding, and a later one is believed only if what comes out of it is intra-coded.
    """

    def __init__(self, open_file: Callable, name: str, format: str) -> None:
        self.open_file = open_file
        self.name = name
        self.format = format
        self.notes: list[str] = []

        table = self.scan()
        first = self.find_start(table)
        unit = self.find_frames(table)
        if first is None or not len(self.positions):
            raise ValueError(damaged(name, "its first frame cannot be decoded"))
        if self.counted or first.pts != self.positions[0]:
            first = next(self.decoded(self.positions[:1], self.starts[:1]), first)

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
            fields = Fields(context.extradata if context.name == "h264" else None)
            self.skips_unused = context.name == "h264" and not fields.may_be
            table.unit = float(stream.time_base or 0)
            for packet in packets:
                if len(table.pts) == MAX_PACKETS:
                    raise ValueError(f"{self.name} has more than {MAX_PACKETS:,} frames; cut it into pieces.")
                # An editor marks what it cut away to be discarded. VP8 has pictures that only others refer to.
                is_hidden = packet.is_discard or (context.name == "vp8" and not bytes(packet)[0] & 0x10)
                is_second = fields.may_be and fields.is_second(bytes(packet))
                if packet.has_sidedata("encryption_info"):
                    raise ValueError(encrypted(self.name))
                table.pts.append(packet.pts)
                table.is_key.append(packet.is_keyframe and not is_second)
                table.is_shown.append(not is_hidden and not is_second)
                table.duration = float(packet.duration or 0) * table.unit
                table.is_torn = packet.is_corrupt

            rate = stream.guessed_rate if self.format == "mpegvideo" else stream.average_rate  # which is 25 there
            table.declared_rate = float(rate or 0) or None
            table.declared_end = float(stream.duration or 0) * table.unit or (container.duration or 0) / 1e6
            table.has_display_order = self.format not in TIMES_OF_DECODING or not context.has_b_frames

        if not table.pts:
            raise ValueError(f"{self.name} has no frames; get it again.")
        if table.is_torn:
            raise ValueError(damaged(self.name, "its last frame is incomplete"))
        return table

    def find_start(self, table: PacketTable):
        """Correct where the first key frame is; return its frame (of PyAV), or None where there is none at all.

        `self.dropped` frames come out before the first that is intra-coded: they are made of nothing.
        """
        first = None
        self.dropped = 0
        for frame in itertools.islice(self.all_frames(), MAX_START_FRAMES):
            first = first or frame
            if frame.key_frame or frame.pict_type == INTRA:
                first = frame
                break
            self.dropped += 1
        else:  # streams can refresh their pictures bit by bit
            self.dropped = 0

        if first and first.pts is not None and first.pts in table.pts:
            start = table.pts.index(first.pts)
            table.is_key[: start + 1] = [True] + [False] * start  # even what does not come out can help to make it
            for place, time in enumerate(table.pts):
                table.is_shown[place] &= place >= start and (time is None or time >= first.pts)
        return first

    def find_frames(self, table: PacketTable) -> float:
        """Set where the frames are and from which key frame each is decoded; return the unit of time, in seconds."""
        if not any(table.is_key):
            table.is_key[0] = True
        self.group = np.cumsum(table.is_key)  # (packets,) the key frame it builds on; 0: before the first, undecodable

        frames = shown_frames(table, self.group)
        no_time = any(time is None and is_shown for time, is_shown in zip(table.pts, table.is_shown))
        has_all_times = not no_time and len(dict(frames)) == len(frames) > 0
        self.counted = not (has_all_times and table.has_display_order)
        if not self.counted:
            self.positions, self.starts = np.array(sorted(frames), dtype=np.int64).T  # (frames,) each
            places = {time: place for place, time in enumerate(table.pts) if table.is_shown[place]}
            self.places = np.array([places[time] for time in self.positions.tolist()])
            return table.unit

        # no times to go by: decode everything, to see how many frames there are
        there = sum(1 for _ in self.all_frames())
        self.positions = np.arange(self.dropped, there)
        self.starts = np.zeros(len(self.positions), dtype=np.int64)
        self.places = self.positions
        return 1 / (table.declared_rate or 25)

    def all_frames(self) -> Iterator:
        """All frames (of PyAV) that come out when nothing is skipped."""
        with self.opened() as (_, stream, packets):
            for packet in itertools.chain(packets, [None]):
                yield from decode(stream.codec_context, packet) or ()

    @contextmanager
    def opened(self, side_by_side: bool = False) -> Iterator[tuple]:
        """FFmpeg's view of the file, its first stream of pictures, and the packets of that.

        Threads share the work on one frame or, `side_by_side`, decode several at once.
        """
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
                    stream.codec_context.thread_type = "AUTO" if side_by_side else "SLICE"
                    stream.codec_context.thread_count = threads_for(stream.codec_context)
                    try:
                        yield container, stream, packets()
                    finally:  # its threads come to rest, or one that wants to log could be waited for in vain
                        stream.codec_context.flush_buffers()
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
            codec = f" ({context.name})" if context else ""
            raise ValueError(f"{self.name} is compressed in a way that is not read{codec}; save it as H.264 in MP4.")
        if not context.width * context.height:
            raise ValueError(damaged(self.name, "it does not say how large its frames are"))
        check_size(context.width, context.height, self.name, MAX_FRAME_PIXELS)
        if "enc_key_id" in stream.metadata:  # Matroska's and WebM's way
            raise ValueError(encrypted(self.name))
        return stream

    def decoded(self, positions: np.ndarray, starts: np.ndarray, fast: bool = False) -> Iterator:
        """The frames (of PyAV) at increasing `positions` in order, until one is missing or cannot be relied on.

        `positions`: presentation times in the file's unit, or numbers of frames if those have been counted. `starts`:
        the key frame from which on the packets are needed for each. Packets that none needs are not decoded.
        `fast`: frames are decoded side by side, and those to which no other refers are not.
        """
        done = 0
        count = 0
        skipped = False
        doubtful = None  # when the key frame is shown at which decoding began, until it has come out
        wanted = set(positions.tolist()) if fast and self.skips_unused and not self.counted else None
        with self.opened(fast) as (_, stream, packets):
            context = stream.codec_context
            no_more = math.inf, None
            for group, packet in itertools.chain(zip(self.group, packets), [no_more]):
                if group < starts[done]:
                    skipped = True
                    continue
                if skipped and packet:
                    context.flush_buffers()
                    skipped = False
                    doubtful = packet.pts if group > 1 else None
                if wanted is not None and packet:
                    context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                frames = decode(context, packet)
                if frames is None and fast and self.counted:
                    return  # side by side, others can be lost with it, and the numbers be wrong
                for frame in frames or ():
                    position = count if self.counted else frame.pts
                    count += 1
                    if position == doubtful and is_intra(frame):
                        doubtful = None
                    while position == positions[done] and doubtful is None:  # one frame can be wanted twice
                        yield frame
                        done += 1
                        if done == len(positions):
                            return
                    if position is not None and position >= positions[done]:
                        return

    def upright(self, frame) -> np.ndarray:
        """A decoded frame → (height, width, 3) RGB, turned as its display matrix says."""
        rgb = frame.to_ndarray(format="rgb24", width=self.size[0], height=self.size[1])  # should its size change
        swap, flip_x, flip_y = self.turn
        rgb = rgb.swapaxes(0, 1) if swap else rgb
        return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def read(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        done = 0
        from_start = np.full_like(self.starts, self.starts[0])
        # If a frame is not found, the key frame before it is none: nothing more is skipped. If there are errors, they
        # take neighbours with them where frames are decoded side by side.
        for starts, fast in ((self.starts, True), (from_start, True), (from_start, False)):
            for frame in self.decoded(self.positions[indices[done:]], starts[indices[done:]], fast):
                yield self.upright(frame)
                done += 1
            if done == len(indices):
                return
        when = self.seconds[indices[done]]
        raise ValueError(damaged(self.name, f"the frame at {when:.2f} s cannot be decoded"))

    def work(self, indices: np.ndarray) -> int:
        """How many frames are decoded to have those of these numbers."""
        first_places = np.searchsorted(self.group, self.starts[indices])
        last_places = self.places[indices]
        before = np.append(-1, np.maximum.accumulate(last_places)[:-1])
        return int(np.maximum(last_places - np.maximum(first_places - 1, before), 0).sum())


def threads_for(context) -> int:
    """How many threads decode: each can hold a frame of its own in memory."""
    return min(os.cpu_count() or 1, MAX_THREADS, max(1, MAX_THREADS_PIXELS // (context.width * context.height)))


def decode(context, packet) -> list | None:
    """The frames that come out of a decoder when this packet goes in (None: the last is in); None if that fails."""
    import av

    try:
        return context.decode(packet)
    except av.FFmpegError:  # matters only if a frame that is wanted cannot be made without it
        return None


def is_intra(frame) -> bool:
    """Whether decoding can begin at this frame, as the stream itself says, not the file around it."""
    return bool(frame.key_frame) and frame.pict_type == INTRA


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
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # there is side data newer than this PyAV
        quarter_turns = round(frame.rotation / 90) % 4
        return [(False, False, False), (True, False, True), (False, True, True), (True, True, False)][quarter_turns]
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix)) if matrix else (1, 0, 0, 0, 1)
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
