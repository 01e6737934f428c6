"""Small files of many kinds, made by hand where no library of the tests writes them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, features

HAS_AVIF = "avif" in features.get_supported_modules()
HEIC = base64.b64decode(  # 64×48 as stored: red over green on the left, blue over red on the right; turned by EXIF 6
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAHUAAgAAAAACYQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAKFtZGF0AAAAcSgBrxOA5Ta3/6SvX98YAe8AKa7kiyhe4w/2CX+f"
    "5FiDcceP/oofjwfdf4yREFGhGA/+Pbve5hxRHEnqIKG86V+s0CosQcx21qtm8fliHo+wj1r0sXWeRzk6xKIcouN2UQ+WTbJw781Q"
    "XLAXMzf5uYpIAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


def three_colours() -> Image.Image:
    """The picture in HEIC: 64×48, red with a blue quarter at the top right and a green one at the bottom left."""
    image = Image.new("RGB", (64, 48), "red")
    image.paste((0, 0, 255), (32, 0, 64, 24))
    image.paste((0, 255, 0), (0, 24, 32, 48))
    return image


@cache
def avif(frames: int = 1, side: tuple[int, int] | None = None) -> bytes:
    """An AVIF of the three colours, turned a little in each frame; its header states another size if `side` does."""
    first, *rest = [three_colours().rotate(9 * number) for number in range(frames)]
    file = io.BytesIO()
    first.save(file, "AVIF", save_all=frames > 1, append_images=rest, duration=100, quality=95)
    data = file.getvalue()
    if side:
        at = data.index(b"ispe") + 8
        data = data[:at] + struct.pack(">II", *side) + data[at + 8 :]
    return data


# --- TIFF -------------------------------------------------------------------------------------------------------------

LETTERS = {1: "B", 2: "s", 3: "H", 4: "I"}


def tiff_file(tags: dict[int, tuple[int, list]], data: bytes, others: list[dict] = (), order: str = "<") -> bytes:
    """A TIFF of one strip. `tags`: {number: (type, values)}, `others`: the directories that tag 330 points to."""
    directories = [dict(tags), *map(dict, others)]
    starts = [8 + len(data)]
    for directory in directories:
        more = 2 if directory is directories[0] else 0
        starts.append(starts[-1] + 6 + 12 * (len(directory) + more + (1 if more and others else 0)) + 400)
    if others:
        directories[0][330] = (4, starts[1:-1])
    directories[0] |= {273: (4, [8]), 279: (4, [len(data)])}

    file = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[0]) + data)
    for directory, start, stop in zip(directories, starts, starts[1:]):
        file += bytes(start - len(file))
        entries, long = b"", b""
        at_long = start + 6 + 12 * len(directory)
        for tag, (kind, values) in sorted(directory.items()):
            letter = LETTERS[kind]
            body = values if kind == 2 else struct.pack(order + letter * len(values), *values)
            count = len(body) if kind == 2 else len(values)
            if len(body) > 4:
                long, body = long + body, struct.pack(order + "I", at_long + len(long))
            entries += struct.pack(order + "HHI", tag, kind, count) + body.ljust(4, b"\0")
        file += struct.pack(order + "H", len(directory)) + entries + bytes(4) + long
        assert len(file) <= stop
    return bytes(file)


def grey_tiff(values: np.ndarray, bits: int, order: str = "<", sample: int = 1, photometric: int = 1) -> bytes:
    """A grey TIFF. 12 bits are packed by hand; all others are those of the array."""
    height, width = values.shape
    if bits == 12:
        flat = values.astype(np.uint16).reshape(-1, 2)
        first, second = flat[:, 0], flat[:, 1]
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 339: sample}
    return tiff_file({tag: (3, [value]) for tag, value in tags.items()}, data, order=order)


def raw_tiff(more: dict[int, tuple] = None, others: list[dict] = ()) -> bytes:
    """What a camera writes: a TIFF whose first directory is a thumbnail."""
    tags = {256: 16, 257: 12, 258: 8, 259: 1, 262: 2, 277: 3, 278: 12}
    tags = {tag: (3, [value]) for tag, value in tags.items()}
    return tiff_file(tags | (more or {}), bytes(16 * 12 * 3), others)


MOSAIC = {254: (4, [0]), 256: (3, [6000]), 257: (3, [4000]), 258: (3, [14]), 259: (3, [34713]), 262: (3, [32803])}
PREVIEW = {254: (4, [1]), 256: (3, [1600]), 257: (3, [1200]), 258: (3, [8]), 259: (3, [6]), 262: (3, [6])}
THUMBNAIL = {254: (4, [1])}
RAW_FILES = {
    "DNG": raw_tiff(THUMBNAIL | {50706: (1, [1, 4, 0, 0])}, [MOSAIC]),
    "DNG without thumbnail": raw_tiff({50706: (1, [1, 4, 0, 0]), 262: (3, [34892])}),
    "NEF": raw_tiff(THUMBNAIL | {271: (2, b"NIKON CORPORATION\0")}, [PREVIEW, MOSAIC]),
    "SRW": raw_tiff({271: (2, b"SAMSUNG\0")}, [MOSAIC]),
    "ARW": raw_tiff(THUMBNAIL | {271: (2, b"SONY\0"), 259: (3, [6])}, [{**MOSAIC, 259: (3, [32767])}]),
    "PEF": raw_tiff({271: (2, b"PENTAX\0"), 259: (3, [65535]), 262: (3, [32803])}),
    "3FR": raw_tiff(THUMBNAIL, [{**MOSAIC, 259: (3, [1])}]),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + raw_tiff()[12:],
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100),
    "CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(100),
    "RAF": b"FUJIFILMCCD-RAW 0201FF393102X-T3" + bytes(200),
    "ORF": b"IIRO" + raw_tiff()[4:],
    "ORF of a newer camera": b"IIRS" + raw_tiff()[4:],
    "RW2": b"IIU\0" + raw_tiff()[4:],
    "X3F": b"FOVb\0\0\2\0" + bytes(100),
    "MRW": b"\0MRM" + bytes(100),
}

NAMED = {  # the kind's name in the sentence: its first bytes
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "JPEG XL": b"\xff\x0a\xfa\x1f" + bytes(40),
    "JPEG XR": b"II\xbc\1\x20\0\0\0" + bytes(40),
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b\x08" + bytes(40),
    "PSD": b"8BPS\0\1" + bytes(40),
    "XCF": b"gimp xcf v011\0" + bytes(40),
    "ICO": b"\0\0\1\0\1\0\x10\x10" + bytes(40),
    "CUR": b"\0\0\2\0\1\0\x10\x10" + bytes(40),
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n",
    "OpenEXR": b"v/1\1\2\0\0\0" + bytes(40),
    "QOI": b"qoif\0\0\0\1\0\0\0\1\4\0" + bytes(8),
    "PFM": b"PF\n2 2\n-1.0\n" + bytes(48),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(40),
    "EMF": b"\1\0\0\0\x6c" + bytes(35) + b" EMF" + bytes(40),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PCX": b"\x0a\5\1\x08" + bytes(124),
    "TGA": bytes(2) + b"\2" + bytes(9) + b"\1\0\1\0\x18\0" + bytes(11) + b"TRUEVISION-XFILE.\0",
    "DDS": b"DDS \x7c\0\0\0" + bytes(120),
    "DPX": b"SDPX" + bytes(200),
    "DICOM": bytes(128) + b"DICM\2\0\0\0UL\4\0" + bytes(40),
    "FITS": b"SIMPLE  =                    T" + b" " * 50,
    "DjVu": b"AT&TFORM\0\0\0\x20DJVUINFO" + bytes(40),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "video (MP4": b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(40),
    "video (MKV": b"\x1a\x45\xdf\xa3" + bytes(40),
    "video (WMV": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9" + bytes(40),
    "sound file": b"ID3\4\0" + bytes(40),
    "HTML page": b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "zip archive": b"PK\3\4\x14\0" + bytes(40),
    "packed archive": b"\x1f\x8b\x08\0" + bytes(40),
    "Office document": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40),
    "NumPy file": b"\x93NUMPY\1\0" + bytes(40),
}

# --- PNG, JPEG, BMP ---------------------------------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_file(width: int, height: int, bits: int, colours: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG of rows given with their filter bytes, with the chunks `more` before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + png_chunk(b"IEND", b"")


def long_note(kind: bytes, size: int) -> bytes:
    """A chunk of a PNG that unpacks to `size` letters."""
    text = b"x" * size
    body = {b"tEXt": b"\0" + text, b"iTXt": b"\0\1\0\0\0" + zlib.compress(text)}.get(
        kind, b"\0\0" + zlib.compress(text)
    )
    return png_chunk(kind, b"note" + body)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def rare_jpeg(marker: int, bits: int) -> bytes:
    """A JPEG that says it is compressed in another way, or has other than 8 bits."""
    data = bytearray(jpeg(three_colours()))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    return bytes(data)


def bmp_file(header: int = 40, bits: int = 24, compression: int = 0, masks: tuple = ()) -> bytes:
    """A BMP of 4×2 pixels with a header of that size."""
    extra = struct.pack(f"<{len(masks)}I", *masks)
    head = struct.pack("<IiiHHI", header, 4, 2, 1, bits, compression) + bytes(20)
    body = head[:header].ljust(header, b"\0") + extra
    start = 14 + len(body)
    return b"BM" + struct.pack("<IHHI", start + 64, 0, 0, start) + body + bytes(64)


RARE_FILES = {  # sound files that Pillow does not read
    "BMP with 10 bits a colour": bmp_file(40, 32, 3, (0x3FF00000, 0xFFC00, 0x3FF)),
    "BMP with a header of 16 bytes": bmp_file(16),
    "BMP with a JPEG in it": bmp_file(40, 24, 4),
    "BMP of 2 bits": bmp_file(40, 2),
    "TIFF of 3 floats": raw_tiff({258: (3, [32, 32, 32]), 339: (3, [3, 3, 3])}),
    "TIFF of 64 bits": grey_tiff(np.zeros((4, 4)), 64, sample=3),
    "TIFF of 16-bit floats": grey_tiff(np.zeros((4, 4), np.float16), 16, sample=3),
    "TIFF in LERC": raw_tiff({259: (3, [34887])}),
    "TIFF in JPEG 2000": raw_tiff({259: (3, [34712])}),
    "TIFF in the old JPEG": raw_tiff({259: (3, [6]), 262: (3, [6])}),
    "JPEG of 12 bits": rare_jpeg(0xC1, 12),
    "JPEG without loss": rare_jpeg(0xC3, 8),
    "JPEG in layers": rare_jpeg(0xC5, 8),
    "PNG of 16 bits with a transparent colour": png_file(
        1, 1, 16, 2, bytes(7), png_chunk(b"tRNS", struct.pack(">3H", 258, 772, 9))
    ),
}
