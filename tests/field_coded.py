"""Interlaced H.264 as camcorders write it: each field of a frame in a packet of its own. No encoder here makes it.

The pictures are flat. A field is either written out, macroblock by macroblock (I_PCM), or all of its macroblocks are
skipped and so repeat a field before it. The syntax is that of ITU-T H.264, section 7.3.
"""

import functools
import io
from fractions import Fraction

import av
import numpy as np

COLUMNS, ROWS = 4, 4  # of macroblocks in a frame; a field has half of the rows
PACKET_SECONDS = Fraction(1, 50)


class Writer:
    """Collects bits."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def number(self, value: int, bits: int) -> None:
        self.bits += [value >> place & 1 for place in reversed(range(bits))]

    def golomb(self, *values: int) -> None:
        """Exp-Golomb codes."""
        for value in values:
            self.number(value + 1, 2 * (value + 1).bit_length() - 1)

    def align(self) -> None:
        self.bits += [0] * (-len(self.bits) % 8)

    def plain(self, data: bytes) -> None:
        self.align()
        self.bits += np.unpackbits(np.frombuffer(data, np.uint8)).tolist()

    def unit(self, head: int) -> bytes:
        """A NAL unit behind its start code, with its end marked and its zeros escaped."""
        self.number(1, 1)
        self.align()
        escaped = bytearray()
        zeros = 0
        for byte in np.packbits(np.array(self.bits, np.uint8)).tobytes():
            if zeros >= 2 and byte <= 3:
                escaped.append(3)
                zeros = 0
            escaped.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([head]) + bytes(escaped)


def settings() -> bytes:
    """The settings of the sequence (main profile, 8 bits of frame_num, fields allowed) and of the picture."""
    sequence = Writer()
    for value in (77, 0, 30):
        sequence.number(value, 8)
    sequence.golomb(0, 4, 2, 1)
    sequence.number(0, 1)
    sequence.golomb(COLUMNS - 1, ROWS // 2 - 1)
    sequence.number(0b00100, 5)  # fields, direct_8x8_inference, no crop, no VUI

    picture = Writer()
    picture.golomb(0, 0)
    picture.number(0, 2)
    picture.golomb(0, 0, 0)
    picture.number(0, 3)
    picture.golomb(0, 0, 0)
    picture.number(0, 3)
    return sequence.unit(0x67) + picture.unit(0x68)


def field(number: int, frame_num: int, bottom: bool, is_idr: bool, is_intra: bool) -> bytes:
    """The packet of one field."""
    slice_ = Writer()
    slice_.golomb(0, 7 if is_intra else 5, 0)
    slice_.number(frame_num, 8)
    slice_.number(1, 1)
    slice_.number(bottom, 1)
    if is_idr:
        slice_.golomb(number % 2)
    if not is_intra:
        slice_.number(0, 2)
    slice_.number(0, 2 if is_idr else 1)
    slice_.golomb(0)
    if is_intra:
        for _ in range(COLUMNS * ROWS // 2):
            slice_.golomb(25)
            slice_.plain(bytes([20 + 5 * number + 3 * bottom]) * 256 + b"\x80" * 128)
    else:
        slice_.golomb(COLUMNS * ROWS // 2)
    return slice_.unit(0x65 if is_idr else 0x61)


@functools.cache
def field_coded(format: str, frames: int, second_is_intra: bool, gop: int = 8) -> bytes:
    """A clip at 25 frames a second, of which some repeat the one before."""
    stream = b""
    for number in range(frames):
        place = number % gop
        for bottom in (False, True):
            is_intra = place % 4 != 3 and (second_is_intra or not bottom)
            stream += b"\0\0\0\1\x09\xf0"  # here begins an access unit
            stream += settings() if place == 0 and not bottom else b""
            stream += field(number, place, bottom, place == 0 and not bottom, is_intra)

    buffer = io.BytesIO()
    with av.open(io.BytesIO(stream), format="h264") as given, av.open(buffer, "w", format=format) as made:
        copy = made.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream = copy
            packet.time_base = PACKET_SECONDS
            packet.pts = packet.dts = number
            packet.duration = 1
            made.mux(packet)
    return buffer.getvalue()
