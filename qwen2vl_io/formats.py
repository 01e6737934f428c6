"""What a file is, by its first bytes: a table. Nothing is decoded here, and no name of a file is believed."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

HEAD_BYTES = 1024  # of a file: as much as `kind_of` looks at
READ, PICTURE, RAW, VIDEO, SOUND, PACKED, OTHER = "read", "picture", "raw", "video", "sound", "packed", "other"
WAYS_OUT = {  # what to say of a file that should have been a picture
    PICTURE: "which is not read; save it as PNG or JPEG",
    RAW: "which is what the sensor saw, not a picture yet; develop it first, or take the JPEG beside it",
    VIDEO: "not a picture; pass it as a video",
    SOUND: "not a picture; pass a picture or a video",
    PACKED: "not a picture; unpack it first",
    OTHER: "not a picture; pass a picture",
}


class Kind(NamedTuple):
    """What a file is: "a PDF document", its family (one of those above), and what to do where a picture is wanted."""

    name: str
    family: str
    way_out: str = ""


HEVC = rb"hei[cxms]|hev[cxms]"
HEIC_WAY = "which is read if pi-heif is installed; run pip install pi-heif, or save it as JPEG"
AVIF_WAY = "which this Pillow does not read; run pip install --upgrade pillow, or save it as PNG"
HTML_WAY = "not a picture; copy the address of the picture itself, not that of the page it is on"
LFS_WAY = "which only stands for the file; run git lfs pull to get it"
PNG = Kind("a PNG", READ)
JPEG = Kind("a JPEG", READ)
TIFF = Kind("a TIFF", READ)
CAMERA_RAW = Kind("a camera's raw file", RAW)
AVIF = Kind("an AVIF picture", PICTURE, AVIF_WAY)  # and of this kind `picture_files` knows whether it is read
HEIC = Kind("a HEIC photo (as iPhones take them)", PICTURE, HEIC_WAY)
KINDS = [  # the first that fits counts. "." is any byte, "^" only the first
    (rb"\x89PNG\r\n\x1a\n", PNG),
    (rb"\xff\xd8\xff\xf7", Kind("a JPEG-LS picture", PICTURE)),
    (rb"\xff\xd8\xff", JPEG),
    (rb"RIFF....WEBP", Kind("a WebP", READ)),
    (rb"GIF8[79]a", Kind("a GIF", READ)),
    (rb"P[1-6]\s", Kind("a PPM", READ)),
    (rb"BM.{10}\0\0", Kind("a BMP", READ)),  # its pixels begin early
    # camera raw files: those that are TIFFs within are found by `is_camera_raw`
    (rb"II\*\0.{4}CR", Kind("a camera's raw file (Canon CR2)", RAW)),
    (rb"....ftypcrx ", Kind("a camera's raw file (Canon CR3)", RAW)),
    (rb"II\x1a\0\0\0HEAPCCDR", Kind("a camera's raw file (Canon CRW)", RAW)),
    (rb"FUJIFILMCCD-RAW", Kind("a camera's raw file (Fujifilm RAF)", RAW)),
    (rb"IIR[OS]|MMOR", Kind("a camera's raw file (Olympus ORF)", RAW)),
    (rb"IIU\0", Kind("a camera's raw file (Panasonic RW2)", RAW)),
    (rb"FOVb", Kind("a camera's raw file (Sigma X3F)", RAW)),
    (rb"\0MRM", Kind("a camera's raw file (Minolta MRW)", RAW)),
    (rb"II[*+]\0|MM\0[*+]", TIFF),
    # pictures that newer Pillows or extras read
    (rb"....ftyp(avi[fs]|m(if|sf)1(.{4}){1,16}?avi[fs])", AVIF),
    (rb"....ftyp(%b|m(if|sf)1|miaf|heif)" % HEVC, HEIC),
    # pictures that are not read
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Kind("a JPEG 2000 picture", PICTURE)),
    (rb"\0\0\0\x0cJXL |\xff\x0a", Kind("a JPEG XL picture", PICTURE)),
    (rb"II\xbc\x01", Kind("a JPEG XR picture", PICTURE)),
    (rb"8BPS", Kind("a Photoshop file (PSD)", PICTURE)),
    (rb"gimp xcf", Kind("a GIMP file (XCF)", PICTURE)),
    (rb"\0\0\x01\0[^\0]\0|icns", Kind("an icon file (ICO or ICNS)", PICTURE)),
    (rb"\0\0\x02\0[^\0]\0.{12}", Kind("a cursor file (CUR)", PICTURE)),
    (rb"#\?(RADIANCE|RGBE)", Kind("a Radiance HDR picture", PICTURE)),
    (rb"v/1\x01", Kind("an OpenEXR picture", PICTURE)),
    (rb"qoif", Kind("a QOI picture", PICTURE)),
    (rb"P[Ff7]\s", Kind("a PFM or PAM picture", PICTURE)),
    (rb"\xd7\xcd\xc6\x9a|[\x01\x02]\0\x09\0\0[\x01\x03]", Kind("a Windows metafile (WMF)", PICTURE)),
    (rb"\x01\0\0\0.{36} EMF", Kind("a Windows metafile (EMF)", PICTURE)),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Kind("a PostScript file (EPS)", PICTURE)),
    (rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]", Kind("a PCX picture", PICTURE)),
    (rb"\x01\xda[\0\x01][\x01\x02]", Kind("an SGI picture", PICTURE)),
    (rb"\x59\xa6\x6a\x95", Kind("a Sun raster picture", PICTURE)),
    (rb"DDS |\xabKTX ", Kind("a texture (DDS or KTX)", PICTURE)),
    (rb"SDPX|XPDS|\x80\x2a\x5f\xd7", Kind("a film scan (DPX or Cineon)", PICTURE)),
    (rb"BPG\xfb|FLIF", Kind("a BPG or FLIF picture", PICTURE)),
    (rb"BA.{12}(CI|BM|PT|IC|CP)|(CI|PT|IC|CP).{4}.{8}\x0c\0\0\0", Kind("an OS/2 bitmap", PICTURE)),
    (rb"FORM....(ILBM|PBM )", Kind("an Amiga picture (ILBM)", PICTURE)),
    (rb"[\x8a\x8b][MJ]NG\r\n", Kind("an MNG or JNG animation", PICTURE)),
    (rb"AT&TFORM", Kind("a DjVu document", PICTURE)),
    (rb"/\* XPM \*/|#define \w+_width ", Kind("an XPM or XBM picture", PICTURE)),
    (rb".{128}DICM", Kind("a DICOM file (a medical picture)", PICTURE)),
    (rb"SIMPLE  = ", Kind("a FITS file (of a telescope)", PICTURE)),
    (rb"\s*(<\?xml.{0,900}|<!--.{0,900})?(<!DOCTYPE svg|<svg\b)|(\xef\xbb\xbf)?\s*<svg\b", Kind("an SVG", PICTURE)),
    (rb".{0,1000}?%PDF-", Kind("a PDF document", PICTURE, "which is not read; save the page as PNG")),
    # clips and sound
    (rb"....ftyp(M4A |M4B |M4P )|ID3|fLaC|RIFF....WAVE|\xff[\xfb\xf3\xf2]", Kind("a sound file", SOUND)),
    (rb"....(ftyp|moov|mdat|wide|pnot)|....(free|skip).*(ftyp|moov|mdat)", Kind("a video (MP4 or MOV)", VIDEO)),
    (rb"\x1a\x45\xdf\xa3", Kind("a video (MKV or WebM)", VIDEO)),
    (rb"RIFF....AVI ", Kind("a video (AVI)", VIDEO)),
    (rb"FLV\x01", Kind("a video (FLV)", VIDEO)),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("a video (WMV)", VIDEO)),
    (rb"OggS", Kind("an Ogg file (a video or sound)", VIDEO)),
    (rb"\0\0\x01[\xba\xb3]|\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47", Kind("a video (MPEG)", VIDEO)),
    # all else that turns up where a picture should be
    (rb"version https://git-lfs", Kind("a Git LFS pointer", OTHER, LFS_WAY)),
    (rb"(?i:(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,500}?-->\s*)*<(!doctype html|html|head|body)\b)",
     Kind("an HTML page", OTHER, HTML_WAY)),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", Kind("a zip archive (or a document that is one)", PACKED)),
    (rb"\x1f\x8b\x08|BZh[1-9]|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x28\xb5\x2f\xfd|.{257}ustar",
     Kind("a packed archive", PACKED)),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("an Office document", OTHER, "not a picture; save the page as PNG")),
    (rb"\{\\rtf", Kind("a text document (RTF)", OTHER)),
    (rb"\x93NUMPY", Kind("a NumPy file", OTHER, "not a picture; read it with numpy.load and pass the array")),
    (rb"\x89HDF\r\n", Kind("an HDF5 file", OTHER)),
    (rb"\x7fELF|MZ.{58}", Kind("a program", OTHER)),
]  # fmt: skip


def kind_of(head: bytes) -> Kind | None:
    """The first HEAD_BYTES of a file → what it is, or None if that is not known.

    >>> kind_of(b"%PDF-1.7").name
    'a PDF document'
    """
    head = bytes(head[:HEAD_BYTES])
    return next((kind for pattern, kind in KINDS if re.match(pattern, head, re.DOTALL)), None)


def kind_of_tail(tail: bytes) -> Kind | None:
    """The same by a file's last bytes: TGA has no first ones of its own."""
    return Kind("a Targa picture (TGA)", PICTURE) if tail.endswith(b"TRUEVISION-XFILE.\0") else None


def not_a_picture(name: str, kind: Kind) -> str:
    """The sentence about a file that is something else than a picture that is read."""
    return f"{name} is {kind.name}, {kind.way_out or WAYS_OUT[kind.family]}."


# --- TIFF: a directory of numbered tags, which camera raw files use, too ----------------------------------------------

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLE_FORMAT = 256, 257, 258, 259, 262, 339
SUBFILE, SUB_DIRECTORIES, DNG_VERSION = 254, 330, 50706
COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946)  # that every libtiff unpacks
RAW_COMPRESSIONS = (32767, 32769, 32770, 32867, 34713, 65000, 65535)  # Sony, Epson, Samsung, Kodak, Nikon, …, Pentax
RAW_PHOTOMETRICS = (32803, 34892)  # a mosaic of colours, and one number for each colour as the sensor counts


def tiff_tags(file, at: int | None = None) -> dict[int, list[int]]:
    """The whole numbers in the directory of a TIFF that stands `at` a place (by default the first): {} if none does."""
    try:
        file.seek(0)
        head = file.read(16).ljust(16, b"\0")
        order = "<" if head[:2] == b"II" else ">"
        is_big = struct.unpack(order + "H", head[2:4])[0] == 43
        count_format, entry_format, room = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
        if at is None:
            at = struct.unpack(order + ("Q" if is_big else "I"), head[8:16] if is_big else head[4:8])[0]

        file.seek(at)
        count = struct.unpack(order + count_format, file.read(struct.calcsize(order + count_format)))[0]
        size = struct.calcsize(order + entry_format) + room
        table = file.read(min(count, 1000) * size)
        entries = [table[start : start + size] for start in range(0, len(table) - size + 1, size)]
        if len(entries) < count:
            return {}  # cut off
        tags = {}
        for entry in entries:
            tag, kind, number = struct.unpack(order + entry_format, entry[:-room])
            tags[tag] = tag_values(file, order, kind, number, entry[-room:])
        return tags
    except (struct.error, OverflowError, ValueError, OSError):  # damaged: it says nothing
        return {}


def tag_values(file, order: str, kind: int, number: int, content: bytes) -> list[int]:
    """The first eight values of a tag, if they are whole numbers. `content`: they themselves, or their place."""
    letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(kind)
    if letter is None:
        return []
    length = struct.calcsize(order + letter)
    if length * number > len(content):
        file.seek(struct.unpack(order + ("Q" if len(content) == 8 else "I"), content)[0])
        content = file.read(length * min(number, 8))
    number = min(number, 8, len(content) // length)
    return list(struct.unpack(order + letter * number, content[: length * number]))


def is_camera_raw(file) -> bool:
    """Whether a TIFF is a camera's raw file (NEF, DNG, ARW, PEF, …): of those Pillow would show the thumbnail."""
    first = tiff_tags(file)
    if DNG_VERSION in first:
        return True
    others = [tiff_tags(file, at) for at in first.get(SUB_DIRECTORIES, [])]
    for tags in (first, *others):
        photometric = set(tags.get(PHOTOMETRIC, []))
        if photometric & set(RAW_PHOTOMETRICS) or set(tags.get(COMPRESSION, [])) & set(RAW_COMPRESSIONS):
            return True
    is_thumbnail = bool(sum(first.get(SUBFILE, [])[:1]) & 1)
    return is_thumbnail and bool(others)


def is_sound_tiff(file) -> bool:
    """Whether the first directory of a TIFF is all there, so that what is not read is a kind and no damage."""
    tags = tiff_tags(file)
    return all(tags.get(tag) for tag in (WIDTH, HEIGHT))
