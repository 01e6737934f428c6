"""As much of H.264 as tells which packets are the second half of a frame: the heads of its NAL units.

A recording of 1080i can hold a frame as two fields (its odd and its even lines), each in a packet of its own. The
decoder makes one frame of the two, so only one of them counts. The syntax is that of ITU-T H.264, sections 7.3.2.1 and
7.3.3. Whatever does not follow it is taken for no field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SPS_TYPE = 7
SLICE_TYPES = 1, 2, 5
SPS_BYTES = 4096  # of a sequence's settings, at most
HEAD_BYTES = 64  # of a NAL unit: more than the part of a slice's head that is read here
HIGH_PROFILES = 100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135


class Bits:
    """Reads bits from the first to the last. Raises IndexError behind the last."""

    def __init__(self, data: bytes) -> None:
        self.number = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def read(self, bits: int) -> int:
        self.left -= bits
        if self.left < 0:
            raise IndexError("no more bits")
        return self.number >> self.left & (1 << bits) - 1

    def golomb(self) -> int:
        """An Exp-Golomb code: n zeros, then n + 1 bits."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise IndexError("no such code")
        return (1 << zeros) - 1 + self.read(zeros)


@dataclass
class Slice:
    """What the head of a frame's or field's first slice says."""

    frame_num: int
    field: int | None  # 0: the even lines, 1: the odd ones, None: a whole frame


class Fields:
    """Tells for one packet after the other whether it is the second field of a frame."""

    def __init__(self, extradata: bytes | None) -> None:
        self.extradata = (extradata or b"")[:SPS_BYTES]
        has_lengths = self.extradata[:1] == b"\x01" and len(self.extradata) > 8
        self.length_size = (self.extradata[4] & 3) + 1 if has_lengths else 0
        self.may_be = False  # can there be fields at all?
        self.before: Slice | None = None  # a field that waits for its second
        try:
            self.read_sps()
        except (IndexError, StopIteration):
            pass

    def read_sps(self) -> None:
        """The sequence's settings → the lengths of the numbers in the heads of slices."""
        if self.length_size:
            sps = self.extradata[8:]
        else:
            sps = next(unit for unit in nal_units(self.extradata, 0) if unit[0] & 31 == SPS_TYPE)
        bits = Bits(unescaped(sps[1:]))
        profile = bits.read(8)
        bits.read(16)
        bits.golomb()

        self.has_planes = False
        if profile in HIGH_PROFILES:
            skip_high_profile(bits, self)
        self.frame_num_bits = bits.golomb() + 4
        skip_order_count(bits)
        bits.golomb()
        bits.read(1)
        bits.golomb()
        bits.golomb()
        self.may_be = not bits.read(1)

    def first_slice(self, packet: bytes) -> Slice | None:
        for unit in nal_units(packet, self.length_size):
            if unit and unit[0] & 31 in SLICE_TYPES:
                bits = Bits(unescaped(unit[1:HEAD_BYTES]))
                bits.golomb()
                bits.golomb()
                bits.golomb()
                bits.read(2 if self.has_planes else 0)
                frame_num = bits.read(self.frame_num_bits)
                return Slice(frame_num, bits.read(1) if bits.read(1) else None)
        return None

    def is_second(self, packet: bytes) -> bool:
        """Whether this packet completes the frame that the one before began."""
        before = self.before
        self.before = None
        try:
            here = self.first_slice(packet) if self.may_be else None
        except IndexError:
            here = None
        if here is None or here.field is None:
            return False
        if before and before.field != here.field and before.frame_num == here.frame_num:
            return True
        self.before = here
        return False


def skip_high_profile(bits: Bits, fields: Fields) -> None:
    """Go over chroma format, depths and scaling lists."""
    chroma = bits.golomb()
    fields.has_planes = chroma == 3 and bool(bits.read(1))
    bits.golomb()
    bits.golomb()
    bits.read(1)
    if not bits.read(1):
        return
    for number in range(12 if chroma == 3 else 8):
        if bits.read(1):
            skip_scaling_list(bits, 16 if number < 6 else 64)


def skip_scaling_list(bits: Bits, size: int) -> None:
    scale = 8
    for _ in range(size):
        code = bits.golomb()
        scale = (scale + (code + 1 >> 1 if code & 1 else -(code >> 1))) % 256
        if not scale:
            return


def skip_order_count(bits: Bits) -> None:
    kind = bits.golomb()
    if kind == 0:
        bits.golomb()
    if kind == 1:
        bits.read(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()


def unescaped(unit: bytes) -> bytes:
    return unit.replace(b"\0\0\x03", b"\0\0")


def nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The beginnings of a packet's NAL units. In front of each stands its length (as in MP4), or a start code (0)."""
    if not length_size:
        for match in re.finditer(rb"\0\0\x01(?=.)", data, re.DOTALL):
            yield data[match.end() : match.end() + SPS_BYTES]
        return
    start = 0
    while start + length_size < len(data):
        length = int.from_bytes(data[start : start + length_size], "big")
        start += length_size
        yield data[start : start + min(length, SPS_BYTES)]
        start += length
