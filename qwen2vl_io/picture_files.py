"""What is particular to a format of pictures: its limits, its harmless damage, and how it is opened.

Everything here looks at the bytes of a file and decodes none of its pixels.
"""

from __future__ import annotations

import ctypes
import io
import re
import struct
import zlib
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError, features

from qwen2vl_io.formats import COMPRESSION, COMPRESSIONS, is_sound_tiff, tiff_tags
from qwen2vl_io.sentences import damaged, shorten

# all others stay closed, with their decoders' bugs; Pillow has AVIF in its wheels from 11.3 on
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    *(["AVIF"] if "avif" in features.get_supported_modules() else []),
)
NOT_READ = re.compile(
    "unsupported|not supported|not available|cannot handle|unknown (pixel mode|data organization|compression)",
    re.IGNORECASE,
)


def hush_libtiff() -> bool:
    """Libtiff's own lines about a file do not reach the terminal. Says whether that could be arranged.

    It prints them in C, to file descriptor 2, whatever sys.stderr is. To point that descriptor elsewhere while a
    picture is decoded would swallow what other threads print meanwhile; so libtiff is told, once, to call nothing where
    it would print. What went wrong reaches us as Pillow's exception all the same. The two functions are those of the
    libtiff that this Pillow brought along: a search in a library goes on in the libraries that it is linked to.
    (In Pillow for Windows they are not to be seen from outside, and nothing is changed.)
    """
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for function in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            function.argtypes = [ctypes.c_void_p]
            function.restype = ctypes.c_void_p
            function(None)
    except (AttributeError, OSError, TypeError):
        return False
    return True


hush_libtiff()


def open_heic(file) -> Image.Image:
    """A HEIC file → a PIL picture that is not decoded yet, by pi-heif (or pillow-heif) if one is installed.

    Its class is called by name: to register it with Pillow would change what `Image.open` does for everybody. A file
    of several pictures is its main one: to go to another would make room for that before its size can be checked.
    """
    try:
        from pi_heif import HeifImageFile
    except ImportError:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise UnidentifiedImageError("pi-heif is not installed") from None

    class Photo(HeifImageFile):
        n_frames = 1
        is_animated = False

        def seek(self, frame: int) -> None:
            if frame:
                raise EOFError

    return Photo(file)


def open_large_jpeg(file) -> Image.Image:
    """A JPEG beyond Pillow's own limit, by the function that `Image.open` calls before it applies that."""
    Image.preinit()
    file.seek(0)
    return Image.OPEN["JPEG"][0](file, "")


def unreadable(name: str, error: Exception | str, file=None) -> str:
    """The sentence about a file whose kind is read, but not this one: it is damaged, or stored in a rare way."""
    rare = NOT_READ.search(str(error)) is not None
    if file is not None and not rare and "truncated" not in str(error):
        file.seek(0)
        if file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            compression = tiff_tags(file).get(COMPRESSION, [1])
            # "decoder error" may be damage, too, if the way of compression is one that is read
            rare = is_sound_tiff(file) and (
                isinstance(error, UnidentifiedImageError) or not set(compression) <= set(COMPRESSIONS)
            )
    if not rare:
        reason = "its header makes no sense" if isinstance(error, UnidentifiedImageError) else error
        return damaged(name, reason)
    reason = "" if isinstance(error, UnidentifiedImageError) else f" ({shorten(error).rstrip('.')})"
    depth = " with 8 bits a channel" if "16 bits" in reason else ""
    return f"{name} is stored in a way that is not read{reason}; save it as PNG{depth}."


# --- PNG: notes that are large once they are unpacked -----------------------------------------------------------------

MAX_NOTE_BYTES = 2**20  # of text or colour profile in a PNG, unpacked: what Pillow takes
MAX_NOTES_BYTES = 2**25  # of all of them
MAX_CHUNKS = 100_000  # of a PNG that are looked at


def without_large_notes(file):
    """A PNG without the texts and colour profiles that Pillow refuses to unpack, which say nothing about its pixels.

    Programs put whole workflows and edit histories there. What is small stays; if all is small, so does the file.
    """
    file.seek(0, io.SEEK_END)
    end = file.tell()
    left_out = []  # (start, stop)
    total = 0
    start = 8
    for _ in range(MAX_CHUNKS):
        if start + 12 > end:
            break
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        stop = start + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and stop <= end:
            if total <= MAX_NOTES_BYTES:  # beyond that nothing is unpacked any more
                size = length if kind == b"tEXt" else note_size(kind, file.read(min(length, 2 * MAX_NOTE_BYTES)))
                total += min(size, MAX_NOTE_BYTES)
            if size > MAX_NOTE_BYTES or total > MAX_NOTES_BYTES:
                left_out.append((start, stop))
        start = stop
    if not left_out:
        return file

    kept = io.BytesIO()
    at = 0
    for start, stop in [*left_out, (end, end)]:
        file.seek(at)
        kept.write(file.read(start - at))
        at = stop
    return kept


def note_size(kind: bytes, content: bytes) -> int:
    """How many bytes a note of a PNG takes, unpacked; beyond MAX_NOTE_BYTES they are not counted any further."""
    body = content.partition(b"\0")[2]  # behind its name: how it is packed, then the text or profile
    if kind == b"iTXt":
        if body[:1] != b"\x01":
            return len(content)  # not packed
        body = b"\0" + body[2:].partition(b"\0")[2].partition(b"\0")[2]  # without its language and translated name
    try:
        return len(zlib.decompressobj().decompress(body[1:], MAX_NOTE_BYTES + 1))
    except zlib.error:  # Pillow knows what to make of it
        return 0


# --- JPEG: scans, an end that is missing, and more pixels than the limit ----------------------------------------------

MAX_SEGMENTS = 10_000  # of a JPEG
MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])")  # the markers that a length follows
END = b"\xff\xd9"
NOISE = bytes(range(1, 251)) * 8  # no marker in it


@dataclass
class Jpeg:
    """What the segments of a JPEG say, in their order, up to its end or to that of the file."""

    scans: int = 0  # how often it goes over its pixels
    has_end: bool = False
    layout: tuple[int, int] = (0xC0, 8)  # the marker of its way of compression, and bits a value
    missing: set = field(default_factory=set)  # the (component, frequency) that no scan brought to the last bit

    @property
    def is_rare(self) -> bool:
        """Lossless and hierarchical files, and those of 12 bits, which Pillow's decoder does not read."""
        marker, bits = self.layout
        return bits != 8 or marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)


def read_segments(data: bytes, most: int) -> Jpeg:
    """The segments of a JPEG, until there are more than `most` scans."""
    jpeg = Jpeg()
    at = 0
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, at)
        if not found or found[1] == b"\xd9":  # the end of the picture; others can follow
            jpeg.has_end = found is not None
            return jpeg
        marker = found[1][0]
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        body = data[found.end() + 2 : at]
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            jpeg.layout = marker, body[0]
            jpeg.missing = {(component, step) for component in body[6::3] for step in range(64)}
        elif marker == 0xDA and len(body) >= 4:
            first, last, bits_left = body[-3], body[-2], body[-1] & 15
            if not bits_left:
                jpeg.missing -= {(component, step) for component in body[1:-3:2] for step in range(first, last + 1)}
        jpeg.scans += marker == 0xDA
        if jpeg.scans > most:
            return jpeg
    jpeg.scans = most + 1
    return jpeg


def with_two_ends(data: bytes) -> list[bytes]:
    """A JPEG without its end → twice the same with one, once behind other bytes.

    A decoder skips bytes between the last pixel and the end; but if pixels are missing it makes them up of what is
    there. So the two give the same picture only if none is missing.
    """
    data = data.rstrip(b"\xff")
    return [data + END, data + NOISE + END]


def draft_scale(width: int, height: int, limit: int) -> int:
    """The smallest scale at which a JPEG decoder can leave pixels out so that the limit is kept; 1 if none does.

    >>> draft_scale(4000, 3000, 2**26), draft_scale(12000, 9000, 2**26), draft_scale(65500, 65500, 2**26)
    (1, 2, 8)
    """
    return next((scale for scale in (2, 4, 8) if -(-width // scale) * -(-height // scale) <= limit < width * height), 1)
