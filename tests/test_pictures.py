"""Pictures come in as RGB whatever they were, or not at all with one clear sentence."""

import base64
import functools
import http.server
import io
import logging
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from PIL.ExifTags import Base

from qwen2vl_io import pictures, sources, urls
from qwen2vl_io.pictures import load_image
from qwen2vl_io.sources import item_source

ACCENT = "é" if sys.getfilesystemencoding() == "utf-8" else "e"  # as far as names of files can have one
WHITE = (255, 255, 255)


@pytest.fixture(autouse=True)
def pillow_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """40×30 pixels in which no two corners are alike."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    ImageDraw.Draw(image).rectangle((0, 0, 19, 9), fill=(200, 30, 30))
    return image


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()


def file_bytes(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def sentence(error) -> str:
    """The message of an error, which has to be one printable line that ends like a sentence."""
    text = str(error.value)
    assert text.isprintable() and text.endswith((".", ")")) and len(text) < 700, text
    return text


# --- where a picture may come from ------------------------------------------------------------------------------------


def test_a_plain_rgb_picture_comes_back_untouched(scene):
    before = scene.tobytes()
    assert load_image(scene) is scene
    assert scene.tobytes() == before


def test_path_string_file_url_bytes_and_data_uri_give_the_same(scene, tmp_path):
    path = tmp_path / f"a picture #1 {ACCENT}%.png"
    scene.save(path)
    content = path.read_bytes()
    encoded = base64.b64encode(content).decode()
    sources = [
        path,
        str(path),
        path.as_uri(),
        path.as_uri().replace("file://", "file://localhost"),
        path.as_uri().replace("file://", "FILE:"),
        content,
        bytearray(content),
        memoryview(content),
        f"data:image/png;base64,{encoded}",
        f"DATA:;base64,{encoded[:80]}\n{encoded[80:]}",
    ]
    for source in sources:
        assert same(load_image(source), scene), source


def test_a_relative_path_and_a_loaded_picture_without_its_file(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene.save("p.png")
    image = load_image("p.png")
    Path("p.png").unlink()
    assert type(image) is Image.Image
    image.load()
    assert same(image, scene) and same(load_image(image), scene)


def test_arrays_and_tensors_of_whole_numbers(scene):
    rgb = np.asarray(scene)
    grey = np.asarray(scene.convert("L"))
    assert same(load_image(rgb), scene)
    assert same(load_image(np.flip(np.flip(rgb, 0), 0)), scene), "strides do not matter"
    assert same(load_image(torch.tensor(rgb).permute(2, 0, 1)), scene)
    for source in (grey, grey[..., None], torch.tensor(grey), torch.tensor(grey)[None]):
        assert same(load_image(source), scene.convert("L").convert("RGB"))
    assert same(load_image(grey.astype(np.uint16) * 257), scene.convert("L").convert("RGB"))
    assert same(load_image(rgb.astype(np.uint16) * 257), scene)
    half = np.dstack([rgb, np.full((30, 40), 128, np.uint8)])
    assert same(load_image(half), load_image(Image.fromarray(half)))
    assert same(load_image(torch.tensor(half).permute(2, 0, 1)), load_image(half))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_and_tensors_of_fractions(scene, dtype):
    array = np.asarray(scene).astype(dtype) / 255
    assert same(load_image(array), scene)
    assert same(load_image(torch.tensor(array).permute(2, 0, 1)), scene)


def test_half_precision_and_gradients(scene):
    tensor = torch.tensor(np.asarray(scene)).permute(2, 0, 1) / 255
    assert same(load_image(tensor.requires_grad_()), scene)
    assert same(load_image(tensor.half()), scene)
    difference = np.asarray(load_image(tensor.bfloat16())).astype(int) - np.asarray(scene)
    assert np.abs(difference).max() <= 1  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    "source, hint",
    [
        (np.zeros((3, 30, 40), np.uint8), "height, width, 3"),
        (np.zeros((30, 40, 2), np.uint8), "height, width, 3"),
        (np.zeros(40, np.uint8), "height, width, 3"),
        (np.zeros((30, 40, 3), np.int64), "uint8"),
        (np.zeros((30, 40), bool), "uint8"),
        (np.full((30, 40, 3), 200.0), "0..1"),
        (np.full((30, 40, 3), np.nan), "0..1"),
        (np.full((30, 40, 3), -0.1), "0..1"),
        (np.zeros((0, 40, 3), np.uint8), "no pixels"),
        (torch.zeros(30, 40, 3), r"\(3, height, width\)"),
        (torch.zeros(1, 3, 30, 40), r"\(3, height, width\)"),
        (torch.zeros(3, 30, 40).to_sparse(), "ordinary one"),
        (torch.zeros(3, 30, 40, device="meta"), "ordinary one"),
        (torch.zeros(1, dtype=torch.bfloat16).expand(3, 10**5, 10**5), "more pixels than the limit"),
        (torch.zeros(3, 30, 40, dtype=torch.int64), "uint8"),
        (Image.new("RGB", (0, 10)), "no pixels"),
        (b"", "empty"),
        (None, "NoneType"),
        ({"url": "x"}, "dict"),
        (3, "int"),
    ],
)
def test_what_is_no_picture_is_refused(source, hint):
    with pytest.raises(ValueError, match=hint) as error:
        load_image(source)
    sentence(error)


# --- PITFALL 24: EXIF and modes ---------------------------------------------------------------------------------------


def with_orientation(image: Image.Image, orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    return file_bytes(image, format, exif=exif, **options)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pitfall_24_exif_rotation(scene, format, orientation):
    """The eight ways to hold a camera, each written out by hand as rows and columns."""
    as_stored = np.asarray(load_image(with_orientation(scene, 1, format)))
    columns_first = as_stored.swapaxes(0, 1)
    upright = {
        1: as_stored,
        2: as_stored[:, ::-1],
        3: as_stored[::-1, ::-1],
        4: as_stored[::-1],
        5: columns_first,
        6: columns_first[:, ::-1],
        7: columns_first[::-1, ::-1],
        8: columns_first[::-1],
    }[orientation]
    content = with_orientation(scene, orientation, format)
    turned, stored = load_image(content), load_image(content, rotate_by_exif=False)
    assert np.array_equal(turned, upright)
    assert np.array_equal(stored, as_stored)
    # loading again must not turn again, and what was left alone stays so when the processor loads it once more
    assert same(load_image(turned), turned) and same(load_image(stored), stored)
    assert np.array_equal(load_image(Image.open(io.BytesIO(content))), upright), "a PIL picture counts like its file"


def test_pitfall_24_exif_of_a_tiff_is_applied_once(scene):
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    content = file_bytes(scene, "TIFF", exif=exif)
    assert np.array_equal(load_image(content), np.asarray(scene).swapaxes(0, 1)[:, ::-1])


def test_exif_that_is_broken_or_absurd_is_no_reason_to_refuse_a_picture(scene):
    for orientation in (0, 9, 65535):
        assert same(load_image(with_orientation(scene, orientation, "PNG")), scene)
    for exif in (b"Exif\x00\x00II*\x00", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"nonsense"):
        assert same(load_image(file_bytes(scene, "PNG", exif=exif)), scene)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_pitfall_24_opaque_modes(scene, mode):
    image = scene.convert(mode)
    assert same(load_image(image), image.convert("RGB"))
    assert image.mode == mode, "the picture given is not changed"


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_pitfall_24_alpha_is_composed_on_white(scene, mode):
    opaque = {"LA": "L", "RGBA": "RGB", "PA": "P"}[mode]
    image = scene.convert(opaque).convert(mode)
    colours = np.asarray(image.convert("RGBA"))[..., :3].astype(float)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1)))
    image.putalpha(alpha)
    share = np.asarray(alpha)[..., None] / 255
    result = np.asarray(load_image(image)).astype(float)
    assert np.abs(result - (colours * share + 255 * (1 - share))).max() <= 1.01
    assert (result[:, 0] == 255).all() and (result[:, -1] == colours[:, -1]).all()


def test_pitfall_24_transparency_by_key_colour(scene):
    """GIF and PNG can mark one colour, or each palette entry, as transparent."""
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([255, 0, 0, 0, 0, 255])
    paletted.putdata([0, 1])
    for format in ("PNG", "GIF"):
        image = load_image(file_bytes(paletted, format, transparency=0))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 255)]
    image = load_image(file_bytes(paletted, "PNG", transparency=bytes([0, 128])))
    assert image.getpixel((0, 0)) == WHITE and image.getpixel((1, 0)) == pytest.approx((127, 127, 255), abs=1)
    content = file_bytes(Image.new("RGB", (2, 1), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert load_image(content).getpixel((0, 0)) == WHITE
    content = file_bytes(Image.new("L", (2, 1), 7), "PNG", transparency=7)
    assert load_image(content).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("how", ["I;16", "I;16B", "I", "png", "tiff", "pgm"])
def test_pitfall_24_sixteen_bits_are_scaled_not_clipped(how):
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    values[0, :3] = 0, 128, 129  # 128 / 257 rounds down, 129 / 257 up
    image = Image.fromarray(values)
    if how == "I":
        source = Image.fromarray(values.astype(np.int32))
    elif how == "I;16B":
        source = Image.frombytes("I;16B", image.size, values.astype(">u2").tobytes())
    elif how == "pgm":
        source = b"P5 40 30 65535\n" + values.astype(">u2").tobytes()
    else:
        source = image if how == "I;16" else file_bytes(image, how)
    result = load_image(source)
    exact = np.array([[round(int(v) / 257) for v in row] for row in values])
    assert np.array_equal(np.asarray(result), np.repeat(exact[..., None], 3, 2))
    assert result.getpixel((39, 29)) == WHITE


def test_pitfall_24_a_dark_sixteen_bit_picture_stays_dark():
    dark = np.full((4, 4), 255, np.uint16)  # would be white in 8 bits
    for image in (Image.fromarray(dark), Image.fromarray(dark.astype(np.int32))):
        assert load_image(image).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_pitfall_24_floats_of_the_usual_scales(scene, top):
    grey = np.asarray(scene.convert("L"))
    image = Image.fromarray((np.clip(grey, 0, 254) / 255 * top).astype(np.float32))
    image.putpixel((0, 0), top)
    expected = np.clip(grey, 0, 254)
    expected[0, 0] = 255
    assert np.array_equal(np.asarray(load_image(image))[..., 0], expected)
    assert np.array_equal(load_image(image), load_image(file_bytes(image, "TIFF")))


@pytest.mark.parametrize("image", [Image.new("F", (4, 4), float("nan")), Image.new("F", (4, 4), 1e9)])
def test_floats_beyond_any_scale_are_refused(image):
    with pytest.raises(ValueError, match="0..1") as error:
        load_image(image)
    sentence(error)


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="65535"):
        load_image(Image.new("I", (4, 4), 70000))


def test_a_mode_without_a_way_to_rgb_is_refused():
    with pytest.raises(ValueError, match="colour mode La") as error:
        load_image(Image.new("La", (4, 4)))
    sentence(error)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_pitfall_24_an_animation_gives_its_first_frame(format, tmp_path):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / "clip"
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(path, format, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as check:
        assert check.n_frames == 3
    assert same(load_image(path), frames[0])


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_every_format_of_the_list_is_read(scene, format):
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    result = load_image(file_bytes(scene.convert("L").convert("RGB"), format, **lossless.get(format, {})))
    assert result.size == scene.size and result.mode == "RGB"
    assert np.abs(np.asarray(result)[..., 1].astype(int) - np.asarray(scene.convert("L"))).max() <= 3


# --- PITFALL 29: hostile and damaged files ----------------------------------------------------------------------------


def test_pitfall_29_formats_outside_the_list_are_not_opened(scene):
    for format in ("ICO", "TGA", "PCX", "EPS", "PDF", "JPEG2000", "SGI"):
        with pytest.raises(ValueError, match="is an? .*not read; save .* as PNG|is no picture.*PNG, JPEG") as error:
            load_image(file_bytes(scene, format))
        sentence(error)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width × height pixels in a few dozen bytes."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("size", [(8193, 8192), (2**30, 2**30), (1, pictures.MAX_IMAGE_PIXELS + 1)])
def test_pitfall_29_bombs_are_refused_by_their_header(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before the size was checked"))
    with pytest.raises(ValueError, match="limit of 67,108,864") as error:
        load_image(png_header(*size))
    sentence(error)


def test_pitfall_29_the_limit_is_ours_whatever_pillow_is_set_to(scene, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # many scripts switch Pillow's own check off
    with pytest.raises(ValueError, match="20000×20000.*67,108,864"):
        load_image(png_header(20000, 20000))
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    for source in (scene, np.asarray(scene), file_bytes(scene, "GIF")):
        with pytest.raises(ValueError, match="1,199"):
            load_image(source)
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 40 * 30)
    assert same(load_image(file_bytes(scene, "BMP")), scene)


def test_pitfall_29_a_jpeg_of_too_many_scans_is_not_decoded(scene, monkeypatch):
    content = file_bytes(scene, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + content[last:-2] * 501 + content[-2:]
    assert same(load_image(content + many), load_image(content))  # what is behind the end does not count
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before the scans were counted"))
    with pytest.raises(ValueError, match="JPEG of more than 500 scans") as error:
        load_image(many)
    sentence(error)
    monkeypatch.setattr(pictures, "MAX_JPEG_SCANS", (500, 3 * 40 * 30))  # scans of larger pictures take longer
    with pytest.raises(ValueError, match="JPEG of more than 3 scans"):
        load_image(content)


def test_passwords_in_urls_are_not_shown():
    with pytest.raises(ValueError, match=r"ftp://…@example.org/a.png") as error:
        load_image("ftp://me:sec@ret@example.org/a.png")
    assert "ret@" not in str(error.value)


def test_pillows_log_stays_away_from_the_user(capfd):
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    assert not capfd.readouterr().err


def test_pillows_warnings_stay_away_from_the_user(scene, monkeypatch):
    """Where Pillow only warns of a large picture, it is loaded; the fixture above makes any warning an error."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    assert same(load_image(file_bytes(scene, "PNG")), scene)
    paletted = scene.convert("P")
    paletted.info["transparency"] = bytes(256)
    assert load_image(paletted).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_pitfall_29_truncated_files_are_errors(scene, format, tmp_path):
    content = file_bytes(scene.resize((300, 200)), format)
    path = tmp_path / "cut.picture"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match="cut.picture") as error:
            load_image(path)
        sentence(error)


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_pitfall_29_damaged_bytes_never_raise_anything_else(scene, format):
    content = file_bytes(scene, format)
    rng = np.random.default_rng(len(content))
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 400), 4):
            damaged[place] = rng.integers(256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ValueError as error:
            assert str(error).isprintable()


def test_pitfall_29_base64_has_a_cap(monkeypatch, scene):
    uri = "data:image/png;base64," + base64.b64encode(file_bytes(scene, "PNG")).decode()
    bare = uri.partition(",")[2]
    monkeypatch.setattr(sources, "MAX_BASE64_CHARS", len(bare))
    assert same(load_image(uri), scene) and same(load_image(item_source({"base64": bare})), scene)
    monkeypatch.setattr(sources, "MAX_BASE64_CHARS", len(bare) - 1)
    for source in (lambda: load_image(uri), lambda: item_source({"base64": bare})):
        with pytest.raises(ValueError, match="characters") as error:
            source()
        sentence(error)


@pytest.mark.parametrize(
    "uri, hint",
    [
        ("data:image/png,abc", "base64 data URI"),
        ("data:image/png;base64", "base64 data URI"),
        ("data:image/png;base64,***", "no valid base64"),
        ("data:image/png;base64,é", "no valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:text/plain;base64,aGVsbG8=", "no picture"),
    ],
)
def test_data_uris_that_hold_no_picture(uri, hint):
    with pytest.raises(ValueError, match=hint) as error:
        load_image(uri)
    sentence(error)


def test_missing_files_folders_and_texts_named_jpg(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png") as error:
        load_image(tmp_path / "missing.png")
    sentence(error)
    with pytest.raises(FileNotFoundError, match="missing.png"):
        load_image((tmp_path / "missing.png").as_uri())
    with pytest.raises(ValueError, match="folder") as error:
        load_image(tmp_path)
    sentence(error)
    (tmp_path / "text.jpg").write_text("I am a picture, honestly.")
    with pytest.raises(ValueError, match="text.jpg is no picture") as error:
        load_image(tmp_path / "text.jpg")
    sentence(error)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match="empty.jpg is empty") as error:
        load_image(tmp_path / "empty.jpg")
    sentence(error)
    with pytest.raises(ValueError, match="not an ordinary file") as error:
        load_image("/dev/null")
    sentence(error)


@pytest.mark.parametrize("name", ["x" * 5000, "null\0character.png", "two\nlines.png", ""])
def test_names_that_no_file_can_have(name):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_image(name)
    sentence(error)


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "s3://b/c.png", "gopher://x/", "HDFS://X/y"])
def test_pitfall_30_other_urls_are_not_read_and_the_error_says_what_to_do(url):
    with pytest.raises(ValueError, match="save .* to a file") as error:
        load_image(url)
    sentence(error)


@pytest.mark.parametrize("url", ["http://example.com/a.png", "https://example.com/a.png?x=1", "HTTPS://example.com/y"])
def test_pitfall_30_urls_are_fetched_with_limits(url, scene, monkeypatch):
    asked = []

    def open_url(*arguments):
        asked.append(arguments)
        return io.BytesIO(file_bytes(scene, "PNG"))

    monkeypatch.setattr(urls, "open_url", open_url)
    assert same(load_image(url), scene)
    assert asked == [(url, 64 * 2**20, 30)]
    monkeypatch.setattr(urls, "open_url", lambda *_: io.BytesIO(b"<html>404</html>"))
    with pytest.raises(ValueError, match="example.com/.* is an HTML page, not a picture") as error:
        load_image(url)
    sentence(error)


def test_pitfall_30_urls_of_this_machine_are_refused_unless_allowed(scene, tmp_path, monkeypatch):
    """The whole way, through the real fetcher and a real server."""
    scene.save(tmp_path / "p.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/p.png"
        monkeypatch.setattr(urls, "ALLOW_PRIVATE", False)
        with pytest.raises(ValueError) as error:
            load_image(url)
        sentence(error)
        monkeypatch.setattr(urls, "ALLOW_PRIVATE", True)
        assert same(load_image(url), scene) and same(load_image(item_source({"image_url": {"url": url}})), scene)
        server.shutdown()


def test_an_item_names_its_source_under_any_of_the_official_keys(scene):
    content = file_bytes(scene, "PNG")
    encoded = base64.b64encode(content).decode()
    for key in ("image", "image_url", "video", "video_url", "url", "path"):
        assert item_source({"type": "image", key: "p.png", "min_pixels": 5}) == "p.png"
        assert item_source({key: {"url": "https://example.com/p.png"}}) == "https://example.com/p.png"
    assert item_source({"image": scene}) is scene
    array = np.asarray(scene)
    assert item_source({"image": array, "url": None}) is array
    assert item_source({"base64": encoded}) == content
    assert item_source({"base64": f"data:image/png;base64,{encoded}"}) == f"data:image/png;base64,{encoded}"
    assert same(load_image(item_source({"base64": encoded})), scene)


@pytest.mark.parametrize(
    "item, hint",
    [
        ({}, "no picture or video"),
        ({"type": "image"}, "no picture or video"),
        ({"type": "image", "image": None}, "no picture or video"),
        ({"image": "a.png", "url": "b.png"}, r"2 times \(image, url\)"),
        ({"image_url": {}}, "holds no address"),
        ({"image_url": {"detail": "high"}}, "holds no address"),
        ({"base64": "***"}, "no valid base64"),
    ],
)
def test_items_without_a_source_or_with_two(item, hint):
    with pytest.raises(ValueError, match=hint) as error:
        item_source(item)
    sentence(error)


@pytest.mark.parametrize("url", ["file://other.host/a.png", "file:a.png", "file:////server/share/a.png", "file://"])
def test_file_urls_name_files_of_this_machine_only(url):
    with pytest.raises(ValueError, match="file:///folder") as error:
        load_image(url)
    sentence(error)
