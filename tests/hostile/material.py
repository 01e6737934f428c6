"""Sound files and their damaged or lying relatives, all made from fixed seeds."""

from __future__ import annotations

import io
import math
import random
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

# --- sound files ------------------------------------------------------------------------------------------------------


@cache
def photo() -> Image.Image:
    """A smooth picture of 64×48 pixels with some noise."""
    y, x = np.mgrid[0:48, 0:64]
    smooth = np.stack([x * 4, y * 5, (x + y) * 2], axis=-1)
    noise = np.random.default_rng(1).integers(0, 16, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@cache
def picture(format: str = "PNG", progressive: bool = False) -> bytes:
    """The photo as a sound file of that format."""
    options = {"progressive": True} if progressive else {}
    file = io.BytesIO()
    photo().save(file, format, **options)
    return file.getvalue()


CLIPS = {  # container: encoder, pixel format
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "matroska": ("libx264", "yuv420p"),
    "asf": ("wmv2", "yuv420p"),
    "mpegts": ("libx264", "yuv420p"),
    "flv": ("flv", "yuv420p"),
}
THEORA = Path(__file__).parent.parent / "clips" / "theora.ogv"  # for which no encoder is here
CONTAINERS = (*CLIPS, "ogg", "gif", "webp")


@cache
def clip(container: str = "mp4", frames: int = 12, sound_only: bool = False, rate: int = 10) -> bytes:
    """A sound file of `frames` frames of 64×48 pixels, or of nothing but sound."""
    if container in ("gif", "webp"):
        return animation(container, frames)
    if container == "ogg":
        return THEORA.read_bytes()

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        if sound_only:
            stream = sound_stream(output)
            pieces = [silence()]
        else:
            stream = video_stream(output, container, rate)
            pieces = [av.VideoFrame.from_image(photo().rotate(number)) for number in range(frames)]

        output.start_encoding()
        for piece in pieces:
            output.mux(stream.encode(piece))
        output.mux(stream.encode())
    return file.getvalue()


def marked(container: str, every: int) -> bytes:
    """A clip of MPEG-4 with one key frame, of which each so many are said to be one."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=10, options={"threads": "1", "g": "600", "bf": "0"})
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            for packet in stream.encode(av.VideoFrame.from_image(photo().rotate(number))):
                packet.is_keyframe = number % every == every - 1
                output.mux(packet)
    return file.getvalue()


def encrypted() -> bytes:
    """An MP4 whose pictures nobody can read without the key."""
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0f" * 16, "encryption_kid": "a1" * 16}
    file = io.BytesIO()
    with av.open(io.BytesIO(clip())) as given, av.open(file, "w", format="mp4", options=options) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def branded(major: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of the MP4 family, and nothing behind it."""
    brands = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(200)


def animation(format: str, frames: int) -> bytes:
    first, *rest = [photo().rotate(number) for number in range(frames)]
    file = io.BytesIO()
    first.save(file, format, save_all=True, append_images=rest, duration=100)
    return file.getvalue()


def video_stream(output, container: str, rate: int):
    codec, pixel_format = CLIPS[container]
    stream = output.add_stream(codec, rate=rate, options={"threads": "1"})
    stream.width = 64
    stream.height = 48
    stream.pix_fmt = pixel_format
    stream.bit_rate = 200_000
    return stream


def sound_stream(output):
    stream = output.add_stream("aac", rate=8000)
    stream.layout = "mono"
    return stream


def silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 8000
    return frame


def zipped() -> bytes:
    """A zip archive with a picture in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.png", picture())
    return file.getvalue()


# --- damage -----------------------------------------------------------------------------------------------------------


def cut_off(data: bytes, share: float) -> bytes:
    """The beginning of a file: `share` of its bytes."""
    return data[: int(len(data) * share)]


def flipped(data: bytes, seed: str, bits: int, start: int = 0) -> bytes:
    """The same bytes with `bits` random bits inverted, none of them before the byte `start`."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(bits):
        damaged[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int = 8, colours: int = 2, *more: bytes, rows: int | None = None) -> bytes:
    """A PNG whose header states this size, with the chunks `more` and then `rows` rows of zeros (all by default)."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    rows = height if rows is None else rows
    row = bytes(1 + (width * channels * depth + 7) // 8) if rows else b""

    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def packed_note(name: bytes) -> bytes:
    """A PNG with 100 kilobytes of text or colour profile that unpack to 100 megabytes."""
    return png(64, 48, 8, 2, chunk(name, b"note\0\0" + zlib.compress(bytes(10**8), 1)))


# --- TIFF -------------------------------------------------------------------------------------------------------------


def tiff(width: int, height: int, data: bytes = b"", strips: int = 1, loop: bool = False, tags=None) -> bytes:
    """A little-endian TIFF, 8-bit RGB unless `tags` ({256: …}) say otherwise; all its strips are the same bytes."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: 3, 278: math.ceil(height / strips)}
    values |= tags or {}

    tables = 8 + 2 + 12 * (len(values) + 2) + 4  # behind the header, the directory and the link to a next one
    sizes = tables + 4 * strips
    start = sizes + 4 * strips

    entries = [(tag, 4, 1, value) for tag, value in values.items()]
    # a single value stands in the directory itself
    entries.append((273, 4, strips, tables if strips > 1 else start))
    entries.append((279, 4, strips, sizes if strips > 1 else len(data)))

    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 8 if loop else 0)
    places = struct.pack(f"<{strips}I", *[start] * strips)
    lengths = struct.pack(f"<{strips}I", *[len(data)] * strips)
    return head + places + lengths + data


def flat_tiff(width: int, height: int, bits: int = 8, samples: int = 3, strips: int = 100, tags=None) -> bytes:
    """A sound, black TIFF of a few kilobytes: one deflated strip serves for the whole picture."""
    strip = zlib.compress(bytes(width * samples * bits // 8 * (height // strips)), 1)
    values = {258: bits, 259: 8, 277: samples}
    if samples == 1:
        values[262] = 1
    return tiff(width, height, strip, strips, tags=values | (tags or {}))


# --- the other formats ------------------------------------------------------------------------------------------------


def gif(width: int, height: int, frames: int, frame_width: int = 1, frame_height: int = 1) -> bytes:
    """A GIF of that canvas whose frames paint one pixel each."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x44\x01\x00"
    return head + (b"\x21\xf9\x04\x04\x01\x00\x00\x00" + frame) * frames + b"\x3b"


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan; the decoder walks over all its pixels each time."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def many_samples(samples: int) -> bytes:
    """An MP4 of a kilobyte whose tables promise `samples` frames of one byte each."""
    data = bytearray(clip())
    for name, at, value in ((b"stsz", 8, 1), (b"stsz", 12, samples), (b"stsc", 16, samples), (b"stts", 12, samples)):
        start = data.index(name) + at
        data[start : start + 4] = struct.pack(">I", value)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    """A lossless WebP whose header states this size, without any pixels."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(16)
    body = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(width: int, height: int) -> bytes:
    """A sound BMP whose header states another size."""
    return picture("BMP")[:18] + struct.pack("<ii", width, height) + picture("BMP")[26:]
