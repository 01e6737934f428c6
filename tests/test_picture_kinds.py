"""Rarer kinds of pictures: read rightly, or refused by name; and what only looks damaged is read."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from qwen2vl_cli.prompts import kind_of_file, with_files
from qwen2vl_io import picture_files, pictures
from qwen2vl_io.formats import is_camera_raw, kind_of
from qwen2vl_io.pictures import FORMATS, load_image, true_size
from qwen2vl_io.videos import load_video
from qwen2vl_mini import Qwen2VLImageProcessor
from tests.picture_samples import (
    HAS_AVIF,
    HEIC,
    NAMED,
    RARE_FILES,
    RAW_FILES,
    avif,
    grey_tiff,
    jpeg,
    long_note,
    png_chunk,
    png_file,
    raw_tiff,
    three_colours,
)

try:
    import pi_heif  # noqa: F401

    HAS_HEIF = True
except ImportError:
    HAS_HEIF = False

WHITE = (255, 255, 255)
needs_avif = pytest.mark.skipif(not HAS_AVIF, reason="this Pillow has no AVIF")
needs_heif = pytest.mark.skipif(not HAS_HEIF, reason="pi-heif is not installed")
RAMP = np.linspace(0, 1, 96).reshape(8, 12)


def refusal(source, load=load_image) -> str:
    """The sentence with which a picture is refused: one line that names it and ends like a sentence."""
    with pytest.raises(ValueError) as error:
        load(source)
    text = str(error.value)
    assert text.isprintable() and text.endswith(".") and ";" in text and text.startswith("The "), text
    return text


def photo(width: int = 600, height: int = 400) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


# --- greys of more than 8 bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [1, 0])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_white_is_white_in_a_tiff_of_any_depth(bits, order, photometric):
    """By photometric 0 the largest value is black."""
    top = 2**bits - 1
    values = np.rint(RAMP * top).astype(np.uint8 if bits == 8 else np.uint16)
    expected = np.rint(values / top * 255)
    content = grey_tiff(values, bits, order, photometric=photometric)
    if bits == 12 and (order == ">" or photometric == 0) or bits == 16 and order == ">" and photometric == 0:
        assert "in a way that is not read" in refusal(content)
        return
    result = np.asarray(load_image(content))[..., 0]
    assert np.abs(result - (255 - expected if photometric == 0 else expected)).max() <= 0.5


@pytest.mark.parametrize(
    "values",
    [
        RAMP - 0.5,  # as a network wants them
        RAMP * -1,
        RAMP / 100,  # metres, or light as it is
        RAMP * 30,
        RAMP * 300,
        RAMP * 16383,  # 14 bits of a camera
        RAMP * 1e9,
        RAMP * np.nan,
        RAMP + np.inf,
    ],
)
def test_floats_whose_white_cannot_be_told_are_refused(values):
    for source in (grey_tiff(values.astype(np.float32), 32, sample=3), Image.fromarray(values.astype(np.float32))):
        with np.errstate(invalid="ignore"):
            assert "which of them is white" in refusal(source)
    pfm = b"Pf\n12 8\n-1.0\n" + np.flip(values, 0).astype("<f4").tobytes()
    assert "which of them is white" in (text := refusal(pfm)) or "is a PFM" in text  # which old Pillows do not read


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_floats_whose_white_can_be_told_are_read(top):
    values = (RAMP * top * 0.9).astype(np.float32)
    result = np.asarray(load_image(grey_tiff(values, 32, sample=3)))[..., 0]
    assert np.abs(result - RAMP * 0.9 * 255).max() <= 0.51
    assert np.asarray(load_image(grey_tiff(np.zeros((8, 12), np.float32), 32, sample=3))).max() == 0
    assert "white" in refusal(grey_tiff(values, 32, sample=3, photometric=0))


@pytest.mark.parametrize(
    "dtype, top, sample",
    [("int8", 127, 2), ("int16", 32767, 2), ("int32", 255, 2), ("uint32", 30000, 1), ("int32", -9, 2)],
)
def test_whole_numbers_whose_white_cannot_be_told_are_refused(dtype, top, sample):
    values = np.rint(RAMP * top).astype(dtype)
    assert "which of them is white" in refusal(grey_tiff(values, values.dtype.itemsize * 8, sample=sample))


def test_negative_whole_numbers_are_refused():
    assert "beyond 0..65535" in refusal(Image.new("I", (4, 4), -1))


@pytest.mark.parametrize("bits, grey", [(1, 0), (1, 1), (2, 1), (2, 3), (4, 5), (4, 15), (8, 77), (16, 300), (16, 0)])
def test_the_transparent_grey_of_a_png_shows_white_at_any_depth(bits, grey):
    other = 1 - grey if bits == 1 else 2
    row = struct.pack(">2H", grey, other) if bits == 16 else bytes([grey << 8 - bits | other << max(8 - 2 * bits, 0)])
    row = bytes([grey, other]) if bits == 8 else row
    content = png_file(2, 1, bits, 0, b"\0" + row, png_chunk(b"tRNS", struct.pack(">H", grey)))
    shown = round(other * 255 / (2**bits - 1))
    for source in (content, Image.open(io.BytesIO(content))):
        image = load_image(source)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (shown,) * 3]


# --- kinds that are known and not read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAW_FILES)
def test_raw_files_of_cameras_are_refused_as_such(name, tmp_path):
    assert "is a camera's raw file" in refusal(RAW_FILES[name])
    path = tmp_path / "photo.raw"
    path.write_bytes(RAW_FILES[name])
    assert kind_of_file(str(path)) == "image"


def test_tiffs_that_hold_smaller_copies_of_themselves_are_no_raw_files():
    smaller = {254: (4, [1]), 256: (3, [8]), 257: (3, [6]), 262: (3, [2]), 259: (3, [1])}
    for content in (raw_tiff(), raw_tiff({254: (4, [0])}, [smaller]), raw_tiff({271: (2, b"NIKON\0")})):
        assert load_image(content).size == (16, 12)
        for share in range(0, len(content), 7):  # cut off anywhere, it is no reason for another error
            assert not is_camera_raw(io.BytesIO(content[:share]))


@pytest.mark.parametrize("name", NAMED)
def test_what_is_known_and_not_read_is_named(name):
    text = refusal(NAMED[name])
    assert name in text and "is no picture" not in text and "damaged" not in text


def test_what_pillow_writes_and_we_do_not_read_is_named():
    for format in ("ICO", "PCX", "EPS", "PDF", "JPEG2000", "SGI", "ICNS", "DDS", "QOI"):
        file = io.BytesIO()
        try:
            three_colours().save(file, format)
        except (KeyError, OSError):  # not in every Pillow
            continue
        assert "not read; save" in refusal(file.getvalue()), format


def test_noise_and_texts_are_nothing_known():
    rng = np.random.default_rng(0)
    assert sum(kind_of(rng.bytes(1024)) is not None for _ in range(1000)) < 10
    for text in (b"", b"hello", b"A, B; C\n" * 99, b"<", b"# a title", bytes(1024), b" " * 1024, b"{}"):
        assert kind_of(text) is None


@pytest.mark.parametrize("name", RARE_FILES)
def test_rare_variants_are_not_called_damaged(name):
    text = refusal(RARE_FILES[name])
    assert "is stored in a way that is not read" in text and "save it as PNG" in text


def test_a_tiff_that_is_cut_off_is_damaged_and_not_rare():
    for name in ("TIFF of 3 floats", "TIFF of 64 bits", "TIFF in LERC"):
        start = struct.unpack("<I", RARE_FILES[name][4:8])[0]  # of its directory, behind the pixels
        assert "damaged" in refusal(RARE_FILES[name][: start + 20])


# --- HEIC and AVIF ----------------------------------------------------------------------------------------------------


def near(image: Image.Image, expected: Image.Image) -> bool:
    """Whether the middles of the four quarters are of nearly the same colours (both formats lose some)."""
    assert image.mode == "RGB" and image.size == expected.size
    width, height = image.size
    points = [(x * width // 4, y * height // 4) for x in (1, 3) for y in (1, 3)]
    return all(np.abs(np.subtract(image.getpixel(p), expected.getpixel(p))).max() < 40 for p in points)


@needs_heif
def test_heic_is_read_upright():
    assert near(load_image(HEIC), three_colours().transpose(Image.Transpose.ROTATE_270))
    assert "pass it as an image" in refusal(HEIC, load_video)
    for size in (20, 300, 400):
        assert "damaged" in refusal(HEIC[:size])


@needs_heif
def test_heic_is_measured_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded before the size was checked"))
    assert "more pixels than the limit" in refusal(HEIC)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_without_pi_heif_the_sentence_names_format_and_remedy(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = HEIC[:8] + brand + HEIC[12:]
    text = refusal(content)
    assert "is a HEIC photo" in text and "pip install pi-heif" in text and "JPEG" in text
    assert "is a picture (HEIC), no video" in refusal(content, load_video)


def test_heic_does_not_change_pillow_for_others(monkeypatch):
    before = set(Image.registered_extensions())
    try:
        load_image(HEIC)
    except ValueError:
        pass
    assert set(Image.registered_extensions()) == before


@needs_avif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_read_upright(orientation):
    file, png = io.BytesIO(), io.BytesIO()
    for format, output in (("AVIF", file), ("PNG", png)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        three_colours().save(output, format, exif=exif)
    assert near(load_image(file.getvalue()), load_image(png.getvalue()))


@needs_avif
def test_avif_with_transparency_shows_white():
    file = io.BytesIO()
    Image.new("RGBA", (64, 48), (255, 0, 0, 0)).save(file, "AVIF")
    assert load_image(file.getvalue()).getpixel((9, 9)) == WHITE


@needs_avif
def test_an_animated_avif_is_a_picture_and_a_clip(tmp_path):
    assert near(load_image(avif(5)), three_colours())
    clip = load_video(avif(5), nframes=4)
    frames = [Image.fromarray(frame) for frame in clip.frames()]
    assert clip.total_frames == 5 and clip.video_fps == pytest.approx(10) and len(frames) == 4
    assert near(frames[0], three_colours()) and frames[0].tobytes() != frames[3].tobytes()
    for frames, kind in ((1, "image"), (5, "video")):
        path = tmp_path / f"{kind}.avif"
        path.write_bytes(avif(frames))
        assert kind_of_file(str(path)) == kind
        assert with_files(f"What is @{path}?")[1] == {"type": kind, kind: str(path)}


@needs_avif
@pytest.mark.parametrize("side", [(8193, 8192), (16384, 16384), (65535, 65535)])
def test_avif_bombs_are_refused_by_their_header(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded before the size was checked"))
    assert "more pixels than the limit" in (text := refusal(avif(1, side))) or "damaged" in text


def test_a_pillow_without_avif_says_what_to_do(monkeypatch):
    monkeypatch.setattr(pictures, "FORMATS", tuple(format for format in FORMATS if format != "AVIF"))
    head = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(60)
    assert "is an AVIF picture" in (text := refusal(head)) and "pip install --upgrade pillow" in text


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.avif"])
def test_mentions_of_missing_photos_are_noted(name, capsys):
    with_files(f"What is @{name}")
    assert f"There is no file {name}" in capsys.readouterr().err


def test_photos_and_clips_are_told_by_their_content(tmp_path):
    path = tmp_path / "file"
    for content, kind in ((HEIC, "image"), (NAMED["PSD"], "image"), (NAMED["video (MP4"], "video"), (b"?", "video")):
        path.write_bytes(content)
        assert kind_of_file(str(path)) == kind


# --- what only looks damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_large_notes_in_a_png_are_no_damage(kind, place):
    note = long_note(kind, 3_000_000)
    content = png_file(2, 1, 8, 0, b"\0\1\2", *([note] if place == "before the pixels" else []))
    content = content if place == "before the pixels" else content[:-12] + note + content[-12:]
    assert np.asarray(load_image(content))[0, :, 0].tolist() == [1, 2]


def test_many_notes_in_a_png_are_no_damage():
    content = png_file(2, 1, 8, 0, b"\0\1\2", *[long_note(b"zTXt", 10**6)] * 100)
    assert load_image(content).size == (2, 1)


def test_small_notes_of_a_png_stay():
    file = io.BytesIO(png_file(2, 1, 8, 0, b"\0\1\2", long_note(b"zTXt", 1000), long_note(b"iTXt", 1000)))
    assert picture_files.without_large_notes(file) is file


VARIANTS = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"optimize": True}]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("tail", [b"", b"\xff", bytes(50)])
def test_a_jpeg_without_its_end_is_read_to_the_bit(options, tail):
    content = jpeg(photo(), **options)
    assert load_image(content[:-2] + tail).tobytes() == load_image(content).tobytes()
    grey = jpeg(photo(601, 399).convert("L"), **options)
    assert load_image(grey[:-2] + tail).tobytes() == load_image(grey).tobytes()


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
def test_a_jpeg_that_is_cut_off_stays_an_error(options, share):
    content = jpeg(photo(608, 400), **options)
    assert "cut off or damaged" in refusal(content[: int(len(content) * share)])


def test_a_progressive_jpeg_cut_off_between_two_scans_stays_an_error():
    content = jpeg(photo(), progressive=True)
    at = [start for start in range(len(content)) if content[start : start + 2] == b"\xff\xda"]
    assert len(at) > 3
    for start in at:
        refusal(content[:start])


# --- more pixels than the limit ---------------------------------------------------------------------------------------


def large(size: tuple[int, int], **options) -> bytes:
    """A JPEG whose left half is red; "large" where the test has lowered the limit."""
    image = Image.new("RGB", size, "blue")
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return jpeg(image, quality=95, **options)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_jpeg_beyond_the_limit_is_served_smaller(scale, monkeypatch):
    content = large((801, 601))
    whole = load_image(content)
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", -(-801 // scale) * -(-601 // scale))
    for data in (content, content[:-2]):
        image = load_image(data)
        assert image.size == (-(-801 // scale), -(-601 // scale)) and true_size(image) == (601, 801)
    assert true_size(load_image(image)) == (601, 801) and true_size(image.resize((9, 8))) == (8, 9)
    small, exact = (np.asarray(picture.resize((84, 56), Image.Resampling.BICUBIC), float) for picture in (image, whole))
    assert np.abs(small - exact)[:, [*range(38), *range(46, 84)]].max() <= 8  # all but the edge in the middle
    assert "cut off" in refusal(content[:-900])


def test_a_jpeg_within_the_limit_is_pillows_to_the_bit(monkeypatch):
    content = large((800, 600))
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 800 * 600)
    with Image.open(io.BytesIO(content)) as image:
        assert load_image(content).tobytes() == image.convert("RGB").tobytes()
    assert true_size(load_image(content)) == (600, 800)


def test_the_tokens_are_those_of_the_whole_picture(monkeypatch):
    """67×1 cells of 28 pixels: half of 41 rows is 21, which would be a cell of another shape."""
    images = Qwen2VLImageProcessor(min_pixels=784, max_pixels=784 * 2000)
    content = large((2590, 41))
    expected = images.preprocess(content)["image_grid_thw"].tolist()
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 2590 * 41 - 1)
    assert load_image(content).size == (1295, 21)
    assert images.preprocess(content)["image_grid_thw"].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_that_is_turned_has_its_sides_exchanged(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = large((800, 600), exif=exif)
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 400 * 300)
    assert true_size(load_image(content)) == ((800, 600) if orientation >= 5 else (600, 800))
    assert true_size(load_image(content, rotate_by_exif=False)) == (600, 800)


def test_notes_in_a_png_do_not_set_the_true_size():
    note = png_chunk(b"tEXt", pictures.TRUE_SIZE.encode() + b"\0" + b"99")
    assert true_size(load_image(png_file(2, 1, 8, 0, b"\0\1\2", note))) == (1, 2)


def test_other_large_pictures_stay_refused(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 800 * 600 - 1)
    png = io.BytesIO()
    photo(800, 600).save(png, "PNG")
    # a progressive file takes memory for all its pixels, whatever is made of them
    for content in (png.getvalue(), large((800, 600), progressive=True), large((900 * 8, 600 * 8))):
        assert "more pixels than the limit" in refusal(content)


def test_pillows_own_limit_does_not_matter(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 200 megapixels are beyond it, as it stands
    assert load_image(large((800, 600))).size == (800, 600)


# --- what libraries print ---------------------------------------------------------------------------------------------


def test_libtiff_prints_nothing(capfd):
    """Its lines come from C, so that only the file descriptor sees them."""
    if not picture_files.hush_libtiff():
        pytest.skip("the libtiff of this Pillow is out of reach")
    file = io.BytesIO()
    photo(64, 48).save(file, "TIFF", compression="tiff_lzw")
    broken = file.getvalue()[:300] + bytes(range(255, 55, -1)) + file.getvalue()[500:]
    for content in (RARE_FILES["TIFF in the old JPEG"], broken):
        try:
            load_image(content)
        except ValueError:
            pass
    os.write(2, b"what other threads print")
    assert capfd.readouterr().err == "what other threads print"


def test_other_decoders_print_nothing(capfd):
    rng = np.random.default_rng(0)
    for sound in (HEIC, *([avif(), avif(3)] if HAS_AVIF else [])):
        for _ in range(60):
            content = bytearray(sound)
            for place in rng.integers(len(sound) // 3, len(sound), 5):
                content[place] ^= 1 << rng.integers(8)
            try:
                assert load_image(bytes(content)).mode == "RGB"
            except ValueError as error:
                assert str(error).isprintable()
    assert not capfd.readouterr().err


def test_pi_heif_is_not_loaded_unless_it_is_needed():
    code = "import sys, qwen2vl_io.pictures; sys.exit('pi_heif' in sys.modules or 'pillow_heif' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
