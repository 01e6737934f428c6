"""Videos of every kind become the right frames, at the right times, upright, one at a time; or one clear sentence."""

import base64
import builtins
import contextlib
import functools
import gc
import io
import struct
import sys
import tempfile
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from qwen2vl_io import containers, sources, urls, videos
from qwen2vl_io.videos import MAX_FRAMES, Video, frame_indices, load_video, smart_nframes

ACCENT = "é" if sys.getfilesystemencoding() == "utf-8" else "e"  # as far as names of files can have one
WIDTH, HEIGHT = 64, 48
FASTSTART = (("movflags", "faststart"),)  # the table of contents comes first, so that a file cut off has one
FAST = (("deadline", "realtime"), ("cpu-used", "8"))  # for the encoders of WebM


@functools.cache
def clip(format="mp4", codec="libx264", frames=60, rate=30, gop=10, times=None, options=(), file_options=()) -> bytes:
    """A clip in which every frame is different. `times`: when each is shown, in ms (else at a constant rate)."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/clip"
        with av.open(path, "w", format=format, options=dict(file_options)) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.gop_size, stream.options = gop, dict(options)
            if times:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(frames):
                picture = np.full((HEIGHT, WIDTH, 3), (40, 90, 200), np.uint8)
                picture[:, : number % WIDTH] = (250 - 4 * number % 256) % 256
                picture[: HEIGHT // 4, -WIDTH // 4 :] = 255, 0, 0  # top right
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = times[number] if times else number
                frame.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return Path(path).read_bytes()


@functools.cache
def sound(format="mp4") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with av.open(f"{folder}/sound", "w", format=format) as container:
            stream = container.add_stream("aac", rate=8000)
            for number in range(10):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate, frame.pts = 8000, 1024 * number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return Path(f"{folder}/sound").read_bytes()


FFMPEG_NAMES = {"mp4": "mov", "webm": "matroska", "vob": "mpeg"}
FFMPEG_NAMES |= {"mpeg1video": "mpegvideo", "mpeg2video": "mpegvideo"}


def decoded_in_order(content: bytes, format="mp4") -> list[np.ndarray]:
    """What PyAV gives without any cleverness: all frames from the first to the last."""
    with av.open(io.BytesIO(content), format=FFMPEG_NAMES.get(format, format)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def animation(format: str, frames=12, durations=100, size=(WIDTH, HEIGHT), **options) -> bytes:
    pictures = [Image.new("RGB", size, (20 * number % 256, 0, 255 - number % 256)) for number in range(frames)]
    buffer = io.BytesIO()
    lossless = {"lossless": True} if format == "WEBP" else {}
    more = {"save_all": True, "append_images": pictures[1:], "duration": durations, **lossless, **options}
    pictures[0].save(buffer, format, **more)
    return buffer.getvalue()


def sentence(error) -> str:
    """The message of an error, which has to be one printable line that ends like a sentence."""
    text = str(error.value)
    assert text.isprintable() and text.endswith((".", ")")) and len(text) < 700, text
    return text


@pytest.fixture
def decoded_frames(monkeypatch) -> list:
    """Counts the packets that are decoded: a list, one entry for each."""
    counted = []
    real = containers.Container.opened

    class Context:  # PyAV's own cannot be patched
        def __init__(self, context):
            self.context = context

        def __getattr__(self, name):
            return getattr(self.context, name)

        def decode(self, packet):
            counted.append(packet)
            return self.context.decode(packet)

    class Stream:
        def __init__(self, stream):
            self.stream, self.codec_context = stream, Context(stream.codec_context)

        def __getattr__(self, name):
            return getattr(self.stream, name)

    @contextlib.contextmanager
    def opened(self, *args):
        with real(self, *args) as (container, stream, packets):
            yield container, Stream(stream), packets

    monkeypatch.setattr(containers.Container, "opened", opened)
    return counted


# --- how many frames, and which ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "total, rate, options, expected",
    [
        (140, 29.97, {}, 10),
        (75, 25, {}, 6),
        (300, 30, {}, 20),
        (5, 30, {}, 4),
        (4, 30, {}, 4),
        (3, 30, {}, 2),
        (2, 30, {}, 2),
        (1, 30, {}, 1),
        (1, 30, {"nframes": 8}, 1),
        (18000, 30, {}, 768),
        (300, 30, {"fps": 1}, 10),
        (300, 30, {"fps": 0.01}, 4),
        (300, 30, {"fps": 1e9}, 300),
        (301, 30, {"fps": 1e9}, 300),
        (300, 30, {"fps": 1e-300}, 4),
        (300, 30, {"fps": 30}, 300),
        (300, 30, {"min_frames": 31}, 32),
        (300, 30, {"max_frames": 7}, 6),
        (300, 30, {"max_frames": 2}, 2),
        (300, 30, {"min_frames": 30, "max_frames": 8}, 8),
        (300, 30, {"fps": 0.1, "min_frames": 1}, 2),
        (300, 30, {"nframes": 2}, 2),
        (300, 30, {"nframes": 3}, 4),
        (300, 30, {"nframes": 5}, 4),  # Python rounds 2.5 to 2
        (300, 30, {"nframes": 7}, 8),
        (300, 30, {"nframes": 64, "max_frames": 8}, 64),
        (30, 30, {"nframes": 64}, 30),
        (31, 30, {"nframes": 768}, 30),
        (75, 30, {}, 4),  # 5.0 frames: 2.5 pairs round to 2
    ],
)
def test_number_of_frames(total, rate, options, expected):
    assert smart_nframes(total, rate, **options) == expected


def test_number_of_frames_is_the_official_rule_wherever_that_has_an_answer():
    def official(total, rate, fps):  # written down from its description
        low, high = 4, min(768, total) // 2 * 2
        number = min(max(total / rate * fps, low), high)
        return round(number / 2) * 2

    for total in (2, 3, 4, 5, 9, 31, 60, 75, 140, 299, 300, 1500, 1537, 40000):
        for rate in (1, 5, 23.976, 25, 29.97, 30, 60, 120):
            for fps in (0.1, 0.5, 1, 2, 3.3, 24, 60):
                assert smart_nframes(total, rate, fps) == official(total, rate, fps), (total, rate, fps)


@pytest.mark.parametrize("name", ["fps", "nframes", "min_frames", "max_frames"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -float("inf"), "2", [2], True, 10**400, 1 + 1j])
def test_absurd_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be") as error:
        smart_nframes(300, 30, **{name: value})
    sentence(error)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        load_video(clip(), **{name: value})


@pytest.mark.parametrize("options", [{"nframes": 1}, {"nframes": 2.5}, {"nframes": 769}, {"max_frames": 1}])
def test_numbers_of_frames_that_cannot_be(options):
    with pytest.raises(ValueError, match="whole number from 2 to 768") as error:
        smart_nframes(300, 30, **options)
    sentence(error)


def test_fps_and_nframes_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other") as error:
        load_video(clip(), fps=1.0, nframes=4)
    sentence(error)
    with pytest.raises(ValueError, match="no frames"):
        smart_nframes(0, 30)


def test_indices_are_torchs_linspace():
    assert frame_indices(75, 6) == [0, 15, 30, 44, 59, 74]
    for total in (1, 2, 3, 5, 7, 75, 140, 299, 300, 1000, 4097, 20000):
        for number in (1, 2, 4, 6, 10, 58, 100, 300, 766, 768):
            if number <= total:
                expected = torch.linspace(0, total - 1, number).round().long().tolist()
                assert frame_indices(total, number) == expected, (total, number)


def test_pitfall_17_at_a_constant_rate_times_and_indices_choose_the_same(monkeypatch):
    """Variable rates are sampled by time. The two rules must agree where both apply, and not where they do not."""
    by_index = {}
    for total in (3, 5, 30, 75, 301):
        for number in (2, 4, 6, 10, 74, 300):
            if number <= total:
                by_index[total, number] = videos.spread(np.arange(total) / 29.97, number).tolist()
                assert by_index[total, number] == frame_indices(total, number)
    monkeypatch.setattr(videos, "frame_indices", lambda *_: pytest.fail("not by time"))
    for (total, number), indices in by_index.items():
        seconds = np.append(np.arange(total) / 29.97, 0)[:total]
        even = np.linspace
        monkeypatch.setattr(np, "linspace", lambda a, b, n, even=even, s=seconds: even(a, b, n) + (n == len(s)) * 1e9)
        assert videos.spread(seconds, number).tolist() == indices
        monkeypatch.setattr(np, "linspace", even)


# --- files ------------------------------------------------------------------------------------------------------------

KINDS = {
    "h264": ("mp4", "libx264", ()),
    "h264 without B frames": ("mp4", "libx264", (("bf", "0"),)),
    "h264 open gop": ("mp4", "libx264", (("x264-params", "open-gop=1:bframes=3:b-pyramid=normal"),)),
    "h264 intra refresh": ("mp4", "libx264", (("x264-params", "intra-refresh=1"),)),
    "h265 open gop": ("mp4", "libx265", (("x265-params", "log-level=none:keyint=10:open-gop=1"),)),
    "mpeg4": ("mp4", "mpeg4", ()),
    "mov": ("mov", "libx264", ()),
    "matroska": ("matroska", "libx264", ()),
    "vp8": ("webm", "libvpx", FAST),
    "vp9": ("webm", "libvpx-vp9", FAST),
    "avi": ("avi", "mpeg4", ()),
    "avi with B frames": ("avi", "mpeg4", (("bf", "2"),)),
    "avi with h264, out of order": ("avi", "libx264", ()),
    "mpeg-ts": ("mpegts", "libx264", ()),
    "mpeg-ts with mpeg2": ("mpegts", "mpeg2video", (("bf", "2"),)),
    "mpeg-ps": ("mpeg", "mpeg2video", ()),
    "vob with B frames": ("vob", "mpeg2video", (("bf", "2"),)),
    "wmv": ("asf", "wmv2", ()),
    "mpeg1, pictures alone": ("mpeg1video", "mpeg1video", (("bf", "2"),)),
    "mpeg2, pictures alone": ("mpeg2video", "mpeg2video", (("bf", "2"),)),
    "flv": ("flv", "flv", ()),
    "flv with h264": ("flv", "libx264", ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_plain_decoding(kind):
    format, codec, options = KINDS[kind]
    content = clip(format, codec, options=options)
    everything = decoded_in_order(content, format)
    assert len(everything) == 60
    for number in (2, 6, 20, 60):
        video = load_video(content, nframes=number)
        frames = list(video.frames())
        indices = torch.linspace(0, 59, number).round().long().tolist()
        assert len(frames) == video.num_frames == number and video.total_frames == 60
        assert all(np.array_equal(frame, everything[index]) for frame, index in zip(frames, indices))
        assert video.seconds == pytest.approx([index / 30 for index in indices], abs=0.001)
        assert (video.width, video.height) == (WIDTH, HEIGHT) == frames[0].shape[1::-1]
        assert frames[0].dtype == np.uint8 and video.video_fps == 30 and video.note == ""


def test_defaults_options_and_a_second_look(tmp_path):
    path = tmp_path / f"a clip #1 {ACCENT}%.mp4"
    path.write_bytes(clip())
    video = load_video(path)
    assert isinstance(video, Video) and video.name == str(path) and video.num_frames == 4
    assert load_video(video) is video and load_video(video, nframes=2) is video
    first, second = list(video.frames()), list(video.frames())
    assert all(map(np.array_equal, first, second))
    assert load_video(path, fps=4).num_frames == 8
    assert load_video(path, fps=4, max_frames=6).num_frames == 6
    assert load_video(path, min_frames=12).num_frames == 12


def test_every_source_gives_the_same(tmp_path):
    path = tmp_path / f"a clip #1 {ACCENT}%.mp4"
    path.write_bytes(clip())
    expected = list(load_video(path).frames())
    encoded = base64.b64encode(clip()).decode()
    uri = f"data:video/mp4;base64,{encoded}"
    given = [str(path), path.as_uri(), clip(), bytearray(clip()), memoryview(clip()), uri]
    given.append(sources.item_source({"type": "video", "base64": encoded}))
    for source in given:
        assert all(map(np.array_equal, load_video(source).frames(), expected)), source[:50]


def test_a_url_is_fetched_once_with_the_limits_of_videos(monkeypatch):
    asked, files = [], []

    def open_url(url, max_bytes, seconds):
        asked.append((url, max_bytes, seconds))
        file = tempfile.SpooledTemporaryFile()
        files.append(file)
        file.write(clip())
        file.seek(0)
        return file

    monkeypatch.setattr(urls, "open_url", open_url)
    video = load_video("https://example.com/clip.mp4")
    gc.collect()
    for _ in range(2):
        assert all(map(np.array_equal, video.frames(), load_video(clip()).frames()))
    assert asked == [("https://example.com/clip.mp4", sources.MAX_VIDEO_BYTES, sources.VIDEO_SECONDS)]
    assert not files[0].closed
    del video
    gc.collect()
    assert files[0].closed, "nothing is left behind"


def test_pitfall_17_variable_rate_is_sampled_by_time():
    """Thirty frames in the first second, then one every second: half of the samples lie in the second half."""
    times = tuple(range(0, 990, 33)) + tuple(range(2000, 11000, 1000))
    assert len(times) == 39
    video = load_video(clip("matroska", frames=39, times=times), nframes=6)
    assert video.total_frames == 39
    assert video.seconds == pytest.approx([0, 2, 4, 6, 8, 10])
    everything = decoded_in_order(clip("matroska", frames=39, times=times), "matroska")
    chosen = [times.index(round(1000 * second)) for second in video.seconds]
    assert all(map(np.array_equal, video.frames(), (everything[index] for index in chosen)))
    # two frames a second of eleven seconds, whatever the header says of the rate
    assert load_video(clip("matroska", frames=39, times=times)).num_frames == pytest.approx(21, abs=1)


def test_pitfall_17_a_frame_that_is_nearest_twice_comes_twice():
    times = (0, 33, 66, 5000)
    video = load_video(clip("matroska", frames=4, times=times), nframes=4)
    assert video.seconds == pytest.approx([0, 0.066, 5, 5]) and len(list(video.frames())) == 4


def test_times_rounded_by_the_container_are_still_a_constant_rate():
    video = load_video(clip("matroska", rate=Fraction(30000, 1001)))
    assert video.video_fps == pytest.approx(30000 / 1001, rel=1e-4)
    assert load_video(clip("matroska", frames=140, rate=Fraction(30000, 1001))).num_frames == 10
    # 75 frames at 30 a second are exactly 2.5 pairs: measured from rounded times it would be a little more
    assert load_video(clip("matroska", frames=75)).num_frames == load_video(clip(frames=75)).num_frames == 4


@pytest.mark.parametrize(
    "start, end, first, last",
    [(0.5, 1.5, 15, 45), (None, 1, 0, 30), (1, None, 30, 59), (0, 2, 0, 59), (0.51, 0.99, 16, 29), (1.96, 2, 59, 59)],
)
def test_start_and_end_say_which_frames_count(start, end, first, last):
    everything = decoded_in_order(clip())
    video = load_video(clip(), video_start=start, video_end=end, fps=30)
    frames = list(video.frames())
    assert video.seconds[0] == pytest.approx(first / 30) and last - round(video.seconds[-1] * 30) in (0, 1)
    assert np.array_equal(frames[0], everything[first])
    indices = [first + index for index in frame_indices(last - first + 1, video.num_frames)]
    assert all(np.array_equal(frame, everything[index]) for frame, index in zip(frames, indices))
    assert len(frames) == max((last - first + 1) // 2 * 2, 1)


@pytest.mark.parametrize(
    "start, end", [(1, 1), (1.5, 1), (2.5, None), (2.5, 3), (None, 3), (None, 0), (0.001, 0.002), (1e9, 2e9)]
)
def test_a_stretch_outside_the_clip_is_refused_with_its_length(start, end):
    with pytest.raises(ValueError, match=r"2\.00 s") as error:
        load_video(clip(), video_start=start, video_end=end)
    sentence(error)


@pytest.mark.parametrize("name", ["video_start", "video_end"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", [1]])
def test_absurd_stretches_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be") as error:
        load_video(clip(), **{name: value})
    sentence(error)


def with_matrix(a, b, c, d) -> bytes:
    """A clip whose header says how to turn it, as telephones write it."""
    content = bytearray(clip())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack_from(">9i", content, matrix)[0] == 1 << 16
    turn = [round(number * 65536) for number in (a, b, 0, c, d, 0, 0, 0)]
    struct.pack_into(">9i", content, matrix, *turn, 1 << 30)
    return bytes(content)


@pytest.mark.parametrize(
    "matrix, upright",
    [
        ((1, 0, 0, 1), lambda rgb: rgb),
        ((0, 1, -1, 0), lambda rgb: np.rot90(rgb, -1)),  # a telephone held upright
        ((-1, 0, 0, -1), lambda rgb: np.rot90(rgb, 2)),
        ((0, -1, 1, 0), lambda rgb: np.rot90(rgb)),
        ((-1, 0, 0, 1), lambda rgb: rgb[:, ::-1]),
        ((1, 0, 0, -1), lambda rgb: rgb[::-1]),
        ((0, 1, 1, 0), lambda rgb: rgb.swapaxes(0, 1)),
        ((0, 0, 0, 0), lambda rgb: rgb),
    ],
)
def test_pitfall_17_rotation_of_the_header_is_applied(matrix, upright):
    video = load_video(with_matrix(*matrix))
    plain = list(load_video(clip()).frames())
    frames = list(video.frames())
    assert all(np.array_equal(frame, upright(rgb)) for frame, rgb in zip(frames, plain))
    assert frames[0].flags.c_contiguous and frames[0].shape == (video.height, video.width, 3)
    with av.open(io.BytesIO(with_matrix(*matrix)), format="mov") as container:
        rotation = next(container.decode(video=0)).rotation  # FFmpeg's reading of the same numbers
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] == 1:
        assert np.array_equal(frames[0], np.rot90(plain[0], round(rotation / 90)))


@pytest.mark.parametrize(
    "format, codec", [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("flv", "flv")]
)
def test_a_tag_that_is_not_utf_8_is_no_obstacle(format, codec):
    """Old cameras write names in the encoding of their country; here it is that of the writing program."""
    content = clip(format, codec)
    tagged = content.replace(b"Lavf", "éàüß".encode("latin-1"))
    assert tagged != content
    assert all(map(np.array_equal, load_video(tagged, nframes=60).frames(), decoded_in_order(content, format)))


def test_hidden_frames_of_vp8_are_not_counted():
    """Such a frame has a packet like any other, but only later frames refer to it."""
    content = clip("webm", "libvpx", options=FAST)
    with av.open(io.BytesIO(content), format="matroska") as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    hidden = bytearray(packets[15])
    hidden[0] &= ~0x10  # the bit that says: show it
    assert content.count(packets[15]) == 1
    content = content.replace(packets[15], bytes(hidden))
    expected = decoded_in_order(content, "matroska")
    video = load_video(content, nframes=58)
    assert len(expected) == video.total_frames == 59
    numbers = [number for number in range(60) if number != 15]
    chosen = [expected[numbers.index(round(30 * second))] for second in video.seconds]
    assert all(map(np.array_equal, video.frames(), chosen)) and len(chosen) == 58


def test_sound_is_not_a_video(tmp_path):
    with pytest.raises(ValueError, match="only sound") as error:
        load_video(sound())
    sentence(error)


def test_a_video_with_sound(tmp_path):
    path = str(tmp_path / "both.mp4")
    with av.open(path, "w") as output:
        with av.open(io.BytesIO(sound())) as voice, av.open(io.BytesIO(clip())) as pictures:
            streams = voice.streams.audio[0], pictures.streams.video[0]
            copies = [output.add_stream_from_template(stream) for stream in streams]
            for stream, copy in zip(streams, copies):
                for packet in stream.container.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        output.mux(packet)
    assert all(map(np.array_equal, load_video(path, nframes=60).frames(), decoded_in_order(clip())))


def test_pitfall_18_only_what_is_needed_is_decoded(decoded_frames):
    """Eight frames of 600 with a key frame every ten: no group without a wanted frame is decoded."""
    video = load_video(clip(frames=600, options=(("bf", "0"), ("x264-params", "scenecut=0"))), nframes=8)
    opening = len(decoded_frames)
    assert opening <= 3, "one frame, to learn its size"
    decoded_frames.clear()
    frames = list(video.frames())
    assert len(frames) == 8 and len(decoded_frames) <= 8 * 12
    everything = decoded_in_order(clip(frames=600, options=(("bf", "0"), ("x264-params", "scenecut=0"))))
    assert all(np.array_equal(frame, everything[index]) for frame, index in zip(frames, frame_indices(600, 8)))


@pytest.mark.parametrize("kind", ["h264 open gop", "h265 open gop"])
def test_pitfall_18_frames_shown_before_their_key_frame_are_found_at_once(kind, monkeypatch):
    """They build on the key frame before that one; without knowing it, all would be decoded a second time."""
    format, codec, options = KINDS[kind]
    container = videos.open_clip(*sources.opener(clip(format, codec, options=options), "video"))
    real, calls = containers.Container.decoded, []
    monkeypatch.setattr(containers.Container, "decoded", lambda *args: calls.append(args) or real(*args))
    for index in range(60):
        assert len(list(container.read(np.array([index])))) == 1
    assert len(calls) == 60


def test_pitfall_18_nothing_after_the_last_wanted_frame_is_decoded(decoded_frames):
    video = load_video(clip(frames=600), video_end=0.3, nframes=4)
    decoded_frames.clear()
    assert len(list(video.frames())) == 4 and len(decoded_frames) < 20


def test_pitfall_18_a_long_video_is_held_one_frame_at_a_time():
    """Ten minutes at 2 frames a second: 768 of 1,200 frames, of which never more than two are alive."""
    content = clip("mp4", "mpeg4", frames=1200, rate=2, gop=60)
    video = load_video(content)
    assert video.num_frames == MAX_FRAMES and video.seconds[-1] == pytest.approx(599.5)
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):  # plain arrays cannot be put into a set
        __hash__ = object.__hash__

    real = containers.Container.upright
    containers.Container.upright = lambda self, frame: real(self, frame).view(Counted)
    try:
        for frame in video.frames():
            alive.add(frame)
            most = max(most, len(alive))
    finally:
        containers.Container.upright = real
    assert most <= 2, "the one in hand, and the one before it until the loop variable moves on"


def test_pitfall_18_frames_are_not_decoded_before_they_are_asked_for(decoded_frames):
    video = load_video(clip(frames=600), nframes=60)
    decoded_frames.clear()
    frames = video.frames()
    assert not decoded_frames
    next(frames)
    assert 0 < len(decoded_frames) < 10
    frames.close()


def test_a_key_frame_that_is_none_does_not_cost_the_frame(monkeypatch):
    """When decoding from the nearest key frame does not bring the frame, it is decoded from the beginning."""
    video = load_video(clip(options=(("bf", "0"),)), nframes=6)
    expected = list(video.frames())
    real = containers.Container.decoded
    calls = []

    def decoded(self, positions, starts, fast):
        calls.append(starts.tolist())
        found = real(self, positions, starts, fast)
        return iter([next(found), next(found)]) if len(calls) == 1 else found

    monkeypatch.setattr(containers.Container, "decoded", decoded)
    assert all(map(np.array_equal, video.frames(), expected)) and len(calls) == 2
    assert set(calls[1]) == {1} and len(calls[1]) == 4


@pytest.mark.parametrize("frames, expected", [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4)])
def test_pitfall_17_very_short_clips(frames, expected):
    for format, codec in (("mp4", "libx264"), ("webm", "libvpx"), ("mpegts", "mpeg2video")):
        video = load_video(clip(format, codec, frames=frames, options=FAST if codec == "libvpx" else ()))
        assert video.num_frames == len(list(video.frames())) == expected and video.total_frames == frames


def test_pitfall_17_more_frames_than_there_are_is_said():
    for options in ({"nframes": 700}, {"fps": 1e9}, {"fps": 60}):
        video = load_video(clip(), **options)
        assert video.num_frames == 60 and "asked for" in video.note and "no more" in video.note
    assert load_video(clip(frames=1), nframes=4).num_frames == 1
    limited = load_video(clip(), fps=30, max_frames=8)
    assert limited.num_frames == 8 and "max_frames is 8" in limited.note
    assert load_video(clip(), nframes=60).note == load_video(clip(frames=3)).note == ""


# --- animations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_pitfall_24_all_frames_of_an_animation_are_a_video(format, tmp_path):
    content = animation(format)
    video = load_video(content, fps=10)
    assert video.num_frames == video.total_frames == 12 and video.video_fps == pytest.approx(10)
    assert video.seconds == pytest.approx([number / 10 for number in range(12)])
    for number, frame in enumerate(video.frames()):
        assert (frame == (20 * number, 0, 255 - number)).all() and frame.shape == (HEIGHT, WIDTH, 3)
    (tmp_path / "clip").write_bytes(content)
    assert load_video(tmp_path / "clip").num_frames == 4
    with Image.open(tmp_path / "clip") as image:
        image.seek(5)
        frames = list(load_video(image, nframes=12).frames())
        assert all(map(np.array_equal, frames, video.frames())) and image.tell() == 5, "left where it was"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_durations_of_an_animation_are_its_times(format):
    video = load_video(animation(format, durations=[1000, *[100] * 10, 1000]))  # three seconds
    assert video.seconds == pytest.approx([0, 1, 1.3, 2]), "nearest to 0, 0.67, 1.33 and 2"
    assert [frame[0, 0, 0] for frame in video.frames()] == [0, 20, 80, 220] and video.video_fps == pytest.approx(4)
    assert load_video(animation(format, durations=0), fps=10).num_frames == 12, "no duration is shown as 100 ms"


def test_an_animation_shows_white_where_it_is_transparent():
    frames = [Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (255, 0, 128)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=500)
    seen = [frame[0, 0].tolist() for frame in load_video(buffer.getvalue(), fps=2, min_frames=1).frames()]
    assert seen == [[255, 0, 0], [255, 127, 127]]
    assert load_video(buffer.getvalue()).total_frames == 3


def test_a_still_picture_is_one_frame_and_a_photograph_is_refused():
    for format in ("GIF", "PNG", "WEBP"):
        video = load_video(animation(format, frames=1))
        assert video.num_frames == video.total_frames == len(list(video.frames())) == 1
    assert load_video(Image.new("RGB", (30, 20))).num_frames == 1
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match="pass a picture as such") as error:
        load_video(buffer.getvalue())
    sentence(error)


def test_pitfall_29_animations_have_a_cap(monkeypatch):
    monkeypatch.setattr(videos, "MAX_ANIMATION", (11, 2**30))
    for limits in ((11, 2**30), (1000, 12 * WIDTH * HEIGHT - 1)):
        monkeypatch.setattr(videos, "MAX_ANIMATION", limits)
        for format in ("GIF", "WEBP", "PNG"):
            with pytest.raises(ValueError, match="more than") as error:
                load_video(animation(format))
            sentence(error)
    monkeypatch.setattr(videos, "MAX_ANIMATION", (12, 12 * WIDTH * HEIGHT))
    assert load_video(animation("GIF")).total_frames == 12


# --- lists and arrays -------------------------------------------------------------------------------------------------


def test_a_list_of_pictures_is_taken_whole(tmp_path):
    arrays = [np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8) for number in range(5)]
    Image.fromarray(arrays[0]).save(tmp_path / "0.png")
    mixed = [tmp_path / "0.png", Image.fromarray(arrays[1]), arrays[2], torch.tensor(arrays[3]).permute(2, 0, 1)]
    mixed.append(arrays[4] / 255)
    for source in (mixed, tuple(mixed), np.stack(arrays), torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)):
        before = list(source)
        video = load_video(source)
        assert video.num_frames == video.total_frames == 5 and video.video_fps is None and video.note == ""
        assert video.seconds == [0, 0.5, 1, 1.5, 2] and (video.width, video.height) == (WIDTH, HEIGHT)
        for _ in range(2):
            assert all(map(np.array_equal, video.frames(), arrays))
        assert all(a is b for a, b in zip(source, before)) or not isinstance(source, list | tuple)
    for source in (np.stack(arrays) / 255, torch.tensor(np.stack(arrays) / 255).permute(0, 3, 1, 2)):
        assert all(map(np.array_equal, load_video(source).frames(), arrays)), "fractions"


def test_frames_without_times_are_taken_whole_whatever_fps_says():
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 3), 50, np.uint8)
    tensor = torch.tensor(frames).permute(0, 3, 1, 2)
    for source in (list(frames), tensor, tensor.float()):  # whole numbers as floats are what qwen-vl-utils hands over
        assert all(map(np.array_equal, load_video(source, fps=0.5).frames(), frames))
        assert load_video(source, fps=0.5).num_frames == 5


def test_nframes_chooses_from_a_list():
    arrays = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    video = load_video(list(arrays), nframes=4)
    assert [frame[0, 0, 0] for frame in video.frames()] == [0, 3, 5, 8] and video.seconds == [0, 1.5, 2.5, 4]
    many = load_video(arrays, nframes=100)
    assert many.num_frames == 8 and "100 are asked for" in many.note


@pytest.mark.parametrize(
    "source, options, hint",
    [
        ([], {}, "empty"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "empty"),
        (torch.zeros(0, 3, 8, 8), {}, "empty"),
        (torch.full((4, 3, 8, 8), 7.5), {}, "0..1"),
        ([np.zeros((8, 8, 3), np.uint8)] * 4, {"video_start": 1}, "video_start means nothing"),
        ([np.zeros((8, 8, 3), np.uint8)] * 4, {"max_frames": 2}, "max_frames means nothing"),
        (np.zeros((769, 2, 2, 3), np.uint8), {}, "769 frames, more than 768"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], {}, "Frame 1 .* 9×8 .* 0 is 8×8"),
        ([np.zeros((8, 8, 3), np.uint8), "missing.png"], {}, "missing.png"),
        (np.zeros((4, 3, 8, 8), np.uint8), {}, "height, width, 3"),
        (torch.zeros(4, 8, 8, 3), {}, r"\(3, height, width\)"),
        (np.zeros((4, 8, 8, 3), np.int64), {}, "uint8"),
        (np.full((4, 8, 8, 3), 7.0), {}, "0..1"),
        (np.zeros((8, 8, 3), np.uint8), {}, "no video"),
        ([None], {}, "NoneType"),
        (None, {}, "NoneType is no video"),
        ({"url": "x"}, {}, "dict is no video"),
    ],
)
def test_lists_and_arrays_that_are_no_video(source, options, hint):
    with pytest.raises((ValueError, FileNotFoundError), match=hint) as error:
        list(load_video(source, **options).frames())
    sentence(error)


# --- damaged and hostile files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["faststart", "mp4", "flv"])
def test_pitfall_17_truncated_files_are_errors(kind, share, tmp_path):
    whole = {"faststart": clip(file_options=FASTSTART), "mp4": clip(), "flv": clip("flv", "flv")}[kind]
    if kind == "mp4" and share == 0.99:
        return  # only the last bytes of the table of contents, in which nothing stands
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.mp4 is cut off or damaged") as error:
        list(load_video(tmp_path / "cut.mp4").frames())
    sentence(error)


@pytest.mark.parametrize("format, codec", [("matroska", "libx264"), ("webm", "libvpx")])
def test_pitfall_17_a_stream_cut_between_frames_is_used_and_said_to_be_short(format, codec):
    content = clip(format, codec, options=FAST if codec == "libvpx" else ())
    video = load_video(content[: len(content) * 7 // 10])
    assert "it may be cut off" in video.note and len(list(video.frames())) == 4


def test_pitfall_17_a_hole_in_the_middle_is_an_error_when_the_frame_is_wanted():
    content = bytearray(clip(file_options=FASTSTART, options=(("bf", "0"),)))
    start = content.index(b"mdat") + 4
    for place in range(start + (len(content) - start) // 4, len(content)):
        content[place] = 0
    with pytest.raises(ValueError, match="cut off or damaged") as error:
        list(load_video(bytes(content), nframes=60).frames())
    assert "frame at" in sentence(error)


@pytest.mark.parametrize(
    "content, hint",
    [
        (b"", "empty"),
        (bytes(5000), "no video"),
        (b"I am a video, honestly.", "no video"),
        (b"\x47" * 5000, "damaged"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "damaged"),
        (b"\0\0\0\x01mdat" + b"\xff" * 16, "damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(1000), "damaged"),
        (b"FLV\x01\x05\0\0\0\x09" + bytes(1000), "damaged"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(1000), "damaged"),
        (b"\0\0\x01\xba" + bytes(1000), "damaged"),
        (b"GIF89a" + bytes(100), "damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(100), "damaged"),
    ],
)
def test_files_that_hold_no_video(content, hint, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="clip.mp4 is .*" + hint) as error:
        load_video(tmp_path / "clip.mp4")
    sentence(error)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4") as error:
        load_video(tmp_path / "missing.mp4")
    sentence(error)
    with pytest.raises(ValueError, match="folder; name one video") as error:
        load_video(tmp_path)
    sentence(error)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {other}\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ts"])
def test_pitfall_29_playlists_open_no_other_file(text, name, tmp_path, monkeypatch):
    """FFmpeg follows the names in them, also those of URLs: they must not get that far."""
    (tmp_path / "other.mp4").write_bytes(clip())
    (tmp_path / name).write_text(text.format(other=tmp_path / "other.mp4"))
    monkeypatch.setattr(av, "open", lambda *args, **options: pytest.fail("given to FFmpeg"))
    with pytest.raises(ValueError, match="no video") as error:
        load_video(tmp_path / name)
    sentence(error)


@pytest.mark.parametrize("format", sorted(set(videos.SIGNATURES.values()) - {"animation"}))
def test_pitfall_29_ffmpeg_is_told_the_format_and_may_open_nothing(format, monkeypatch):
    kind = {"mov": "mp4", "mpegvideo": "mpeg2video"}.get(format, format)
    codec = {"mpeg": "mpeg2video", "avi": "mpeg4", "flv": "flv", "asf": "wmv2", "mpegvideo": "mpeg2video"}.get(
        format, "libx264"
    )
    theora = Path(__file__).parent / "clips" / "theora.ogv"  # for which no encoder is here
    content, real, seen = theora.read_bytes() if format == "ogg" else clip(kind, codec), av.open, []

    def spy(file, *args, **options):
        seen.append((file, options))
        return real(file, *args, **options)

    monkeypatch.setattr(av, "open", spy)
    load_video(content)
    for file, options in seen:
        assert hasattr(file, "read") and options["format"] == format
        with pytest.raises(OSError, match="may not open other files"):
            options["io_open"]("file:///etc/passwd", 1, {})


@pytest.mark.parametrize("samples", [10**6, 5 * 10**7, 2**30, 2**32 - 1])
def test_pitfall_29_an_mp4_that_promises_more_frames_than_bytes_is_not_opened(samples, monkeypatch):
    """Four kilobytes could make FFmpeg fill three gigabytes with a table of samples that are not there."""
    content = bytearray(clip())
    struct.pack_into(">II", content, content.index(b"stsz") + 8, 1, samples)
    monkeypatch.setattr(av, "open", lambda *args, **options: pytest.fail("given to FFmpeg"))
    for hostile in (content, content.replace(b"free", b"stsz", 1), content + struct.pack(">I4s", 8, b"cmov")):
        with pytest.raises(ValueError, match="tables do not fit") as error:
            load_video(bytes(hostile))
        sentence(error)
    trun = struct.pack(">I4sI4sI4sII", 32, b"moof", 24, b"traf", 16, b"trun", 0, samples)
    with pytest.raises(ValueError, match="tables do not fit"):
        load_video(clip() + trun)


def test_fragmented_files_pass_the_check_of_tables():
    content = clip(file_options=(("movflags", "frag_keyframe+empty_moov"),))
    assert b"trun" in content
    assert all(map(np.array_equal, load_video(content, nframes=60).frames(), decoded_in_order(content)))


def test_pitfall_29_the_size_in_the_header_is_checked_before_decoding(monkeypatch, decoded_frames):
    for module in (videos, containers):
        monkeypatch.setattr(module, "MAX_FRAME_PIXELS", WIDTH * HEIGHT - 1)
    for content in (clip(), animation("GIF"), animation("PNG")):
        with pytest.raises(ValueError, match="64×48.* limit of 3,071") as error:
            load_video(content)
        sentence(error)
    assert not decoded_frames
    for module in (videos, containers):
        monkeypatch.setattr(module, "MAX_FRAME_PIXELS", WIDTH * HEIGHT)
    assert load_video(clip()).num_frames == 4


@pytest.mark.parametrize("container", ["matroska", "avi"])
def test_pitfall_29_the_search_for_the_next_frame_has_an_end(container, monkeypatch):
    content = clip(container) + bytes(2**20)
    assert load_video(content).num_frames == load_video(clip(container)).num_frames
    monkeypatch.setattr(containers, "MAX_SEARCH_BYTES", 2**19)
    with pytest.raises(ValueError, match="no frame in 524,288 bytes") as error:
        load_video(content)
    sentence(error)


def test_pitfall_29_the_file_of_an_animation_has_a_largest_size(monkeypatch):
    content = animation("GIF")
    monkeypatch.setattr(videos, "MAX_ANIMATION_BYTES", len(content))
    assert load_video(content).num_frames
    with pytest.raises(ValueError, match=f"{len(content) + 1:,} bytes, more than the limit of {len(content):,}"):
        load_video(content + b"x")


def test_pitfall_29_a_file_that_fails_while_it_is_read_is_a_sentence():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 1024:
                raise OSError(5, "Input/output error")
            return super().read(size)

    for content in (clip("matroska"), animation("GIF")):
        with pytest.raises(ValueError, match="Input/output error|Invalid data|cut off or damaged") as error:
            videos.open_clip(lambda content=content: Failing(content), "The video")
        sentence(error)


def test_an_array_may_have_any_number_of_frames_if_few_are_taken():
    frames = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (10**10, 8, 8, 3))
    assert len(list(load_video(frames, nframes=4).frames())) == 4
    with pytest.raises(ValueError, match="10000000000 frames, more than 768"):
        load_video(frames)
    with pytest.raises(ValueError, match="10000000000 frames, more than 768"):
        load_video(torch.zeros(1).expand(10**10, 3, 8, 8))


def test_pitfall_29_packets_have_a_cap(monkeypatch):
    monkeypatch.setattr(containers, "MAX_PACKETS", 60)
    assert load_video(clip()).total_frames == 60
    monkeypatch.setattr(containers, "MAX_PACKETS", 59)
    with pytest.raises(ValueError, match="more than 59 frames") as error:
        load_video(clip())
    sentence(error)


def test_compressions_outside_the_list_are_refused(monkeypatch):
    monkeypatch.setattr(containers, "CODECS", "vp9")
    with pytest.raises(ValueError, match="H.264") as error:
        load_video(clip())
    sentence(error)


@pytest.mark.parametrize(
    "format, codec", [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mpegts", "mpeg2video"), ("GIF", "")]
)
def test_pitfall_29_damaged_bytes_never_raise_anything_else(format, codec):
    options = FAST if codec == "libvpx" else ()
    content = clip(format, codec, frames=20, options=options) if codec else animation(format)
    rng = np.random.default_rng(len(content))
    for number in range(24):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) if number % 2 else min(len(content), 600), 6):
            damaged[place] = rng.integers(256)
        try:
            video = load_video(bytes(damaged))
            assert all(frame.shape == (video.height, video.width, 3) for frame in video.frames())
        except ValueError as error:
            assert type(error) is ValueError and str(error).isprintable()


def test_without_pyav_one_sentence_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def no_av(name, *args):
        if name == "av":
            raise ImportError(name)
        return real(name, *args)

    content = clip()
    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(ValueError, match="pip install av") as error:
        load_video(content)
    sentence(error)
    assert load_video(animation("GIF")).num_frames == 4, "animations need no PyAV"
