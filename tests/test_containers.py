"""What cameras and broadcasters make of containers: wrong marks, fields, encryption, pictures, odd side data."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from qwen2vl_cli import progress
from qwen2vl_io import containers, pictures
from qwen2vl_io.h264 import Bits, Fields
from qwen2vl_io.sources import opener
from qwen2vl_io.videos import load_video, open_clip, still_picture
from tests.field_coded import PACKET_SECONDS, field_coded
from tests.test_video import FAST, HEIGHT, WIDTH, clip, decoded_in_order, sentence

THEORA = Path(__file__).parent / "clips" / "theora.ogv"


def same_as_full_decoding(content: bytes, format: str, numbers=(2, 6, 20, 60), rate=30) -> None:
    """The picked frames are those of a decoder that begins at the start, whatever the container says."""
    everything = decoded_in_order(content, format)
    for number in numbers:
        video = load_video(content, nframes=number)
        frames = list(video.frames())
        assert video.total_frames == len(everything) and len(frames) == number
        chosen = [everything[round(second * rate)] for second in video.seconds]
        assert all(map(np.array_equal, frames, chosen)), number


@pytest.fixture
def passes(monkeypatch) -> list:
    """Counts how often the file is decoded."""
    real = containers.Container.decoded
    counted = []
    monkeypatch.setattr(containers.Container, "decoded", lambda *args: counted.append(args) or real(*args))
    return counted


# --- marks of key frames ----------------------------------------------------------------------------------------------


def copied(content: bytes, into: str, marks=lambda number, is_key: is_key, options=(), **changes) -> bytes:
    """The same packets in another file, with other marks of key frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/copy"
        with av.open(io.BytesIO(content)) as given, av.open(path, "w", format=into, options=dict(options)) as made:
            stream = made.add_stream_from_template(given.streams.video[0])
            packets = [packet for packet in given.demux(video=0) if packet.size]
            for number, packet in enumerate(packets):
                packet.stream = stream
                packet.is_keyframe = marks(number, packet.is_keyframe)
                made.mux(packet)
        return Path(path).read_bytes()


MARKS = {
    "every tenth": lambda number, is_key: number % 10 == 0,
    "every seventh, but not the first": lambda number, is_key: number % 7 == 3,
    "all": lambda number, is_key: True,
    "none": lambda number, is_key: False,
    "the wrong ones": lambda number, is_key: not is_key,
}
MPEG4 = ("mp4", "mpeg4", (("bf", "0"),))


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("into", ["mp4", "mov", "3gp", "matroska", "avi"])
@pytest.mark.parametrize("gop", [1000, 12])
def test_false_key_frames_of_telephones(gop, into, marks):
    format, codec, options = MPEG4
    content = copied(clip(format, codec, gop=gop, options=options), into, MARKS[marks])
    same_as_full_decoding(content, "mp4" if into == "3gp" else into)


OTHERS = {
    "h264": ("mp4", "libx264", (), ("mp4", "matroska", "mpegts")),
    "h264 open gop": ("mp4", "libx264", (("x264-params", "open-gop=1:bframes=3"),), ("mp4", "mpegts")),
    "h264 intra refresh": ("mp4", "libx264", (("x264-params", "intra-refresh=1:keyint=20"),), ("mp4", "matroska")),
    "h265": ("mp4", "libx265", (("x265-params", "log-level=none:keyint=10:open-gop=1"),), ("mp4", "matroska")),
    "mpeg2": ("mpegts", "mpeg2video", (("bf", "2"),), ("mpegts", "matroska")),
    "vp8": ("webm", "libvpx", FAST, ("webm",)),
    "vp9": ("webm", "libvpx-vp9", FAST, ("webm",)),
    "flv": ("flv", "flv", (), ("flv",)),
    "wmv2": ("asf", "wmv2", (), ("asf", "avi")),
}


@pytest.mark.parametrize("marks", ["every seventh, but not the first", "all", "none"])
@pytest.mark.parametrize("kind, into", [(kind, into) for kind, (*_, all_into) in OTHERS.items() for into in all_into])
def test_false_key_frames_of_other_containers(kind, into, marks):
    format, codec, options, _ = OTHERS[kind]
    same_as_full_decoding(copied(clip(format, codec, options=options), into, MARKS[marks]), into)


@functools.cache
def scenes(codec: str, format: str, options: tuple) -> bytes:
    """A clip in which pictures come back after a cut, so that frames behind an intra-coded one refer to before it."""
    rng = np.random.default_rng(0)
    patterns = [np.kron(rng.integers(0, 255, (16, 16, 3), np.uint8), np.ones((4, 4, 1), np.uint8)) for _ in range(6)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=30, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(60):
            picture = patterns[number // 10].copy()
            if number % 10 >= 2 and number > 10:
                picture[:, :32] = patterns[number // 10 - 1][:, :32]
            picture[:4] = 4 * number
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


CUTS = "keyint=infinite:min-keyint=1000:ref=6:scenecut=80:threads=1:bframes="
SCENES = {
    "h264": ("libx264", "matroska", (("x264-params", CUTS + "0"), ("preset", "slower"))),
    "h264 with B frames": ("libx264", "mpegts", (("x264-params", CUTS + "2"), ("preset", "slower"))),
    "h265": ("libx265", "matroska", (("x265-params", "log-level=none:keyint=500:min-keyint=500:scenecut=40:ref=4"),)),
    "mpeg2": ("mpeg2video", "mpegts", (("bf", "2"),)),
    "vp9": ("libvpx-vp9", "webm", FAST),
    "av1": ("libsvtav1", "matroska", (("preset", "12"),)),
}


@pytest.mark.parametrize("is_key", [lambda number: number % 10 == 0, lambda number: True, lambda number: number == 33])
@pytest.mark.parametrize("kind", SCENES)
def test_an_intra_coded_frame_is_no_key_frame_yet(kind, is_key, monkeypatch):
    """FFmpeg corrects some marks itself; here they are wrong behind it. I frames can lie between frames that refer."""
    codec, format, options = SCENES[kind]
    real = containers.Container.scan

    def scan(self):
        table = real(self)
        table.is_key = [is_key(number) for number in range(len(table.pts))]
        return table

    monkeypatch.setattr(containers.Container, "scan", scan)
    same_as_full_decoding(scenes(codec, format, options), format)


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("marks", ["every tenth", "none"])
def test_packets_without_times_are_counted(marks, every, monkeypatch):
    """Old files have a time at some packets only; then all is decoded, from the first on."""
    real = containers.Container.scan

    def scan(self):
        table = real(self)
        table.pts = [None if number % every == every - 1 else time for number, time in enumerate(table.pts)]
        table.is_key = [MARKS[marks](number, is_key) for number, is_key in enumerate(table.is_key)]
        return table

    monkeypatch.setattr(containers.Container, "scan", scan)
    for format, codec in (("mp4", "libx264"), ("matroska", "mpeg4"), ("vob", "mpeg2video")):
        same_as_full_decoding(clip(format, codec), format)


def test_true_key_frames_cost_one_pass(passes):
    for content in (clip(), clip("matroska", "mpeg4"), clip("mpegts", "mpeg2video", options=(("bf", "2"),))):
        video = load_video(content, nframes=6)
        passes.clear()
        assert len(list(video.frames())) == 6 and len(passes) == 1


def without_beginning(content: bytes, into: str, packets: int) -> bytes:
    """A copy that begins in the middle, as programs that cut without decoding make it."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(content)) as given, av.open(buffer, "w", format=into) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.size and number >= packets:
                packet.stream = stream
                packet.is_keyframe = number == packets or packet.is_keyframe
                made.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("into", ["matroska", "mp4"])
def test_frames_made_of_nothing_are_left_out(into):
    """Such a recording begins with differences to a frame that is not there."""
    content = clip("mp4", "mpeg4", gop=12, options=(("bf", "0"),))
    everything = decoded_in_order(content)
    video = load_video(without_beginning(content, into, 4), nframes=48)
    assert video.total_frames == 48
    assert all(map(np.array_equal, video.frames(), everything[12:]))


@pytest.mark.parametrize("keys", ["intra-refresh=1:keyint=15:bframes=0", "keyint=24:min-keyint=24:open-gop=1"])
@pytest.mark.parametrize("into", ["matroska", "mp4"])
def test_a_recording_from_the_middle_begins_where_its_decoder_does(into, keys):
    content = without_beginning(scenes("libx264", "mp4", (("x264-params", keys),)), into, 5)
    everything = {}
    with av.open(io.BytesIO(content)) as container:
        unit = float(container.streams.video[0].time_base)
        for packet in container.demux(video=0):
            with contextlib.suppress(av.InvalidDataError):
                everything |= {frame.pts: frame.to_ndarray(format="rgb24") for frame in packet.decode()}
    video = load_video(content, nframes=len(everything) // 2 * 2)
    assert 30 < len(everything) < 60 and abs(video.total_frames - len(everything)) <= 8  # leading frames are left out
    times = sorted(everything)[len(everything) - video.total_frames :]
    chosen = [everything[times[0] + round(second / unit)] for second in video.seconds]
    assert all(map(np.array_equal, video.frames(), chosen))


# --- threads, and frames that nothing depends on ----------------------------------------------------------------------

SKIPPING = {
    "b-pyramid": "bframes=3:b-adapt=0:b-pyramid=normal:keyint=24",
    "many b frames": "bframes=8:b-adapt=0:b-pyramid=none:keyint=30",
    "open gop": "bframes=4:b-adapt=0:open-gop=1:keyint=16",
    "no b frames": "bframes=0:keyint=20:min-keyint=20:scenecut=0:ref=1",
    "weighted": "bframes=3:weightp=2:weightb=1:keyint=40",
}


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
@pytest.mark.parametrize("params", SKIPPING)
def test_frames_decoded_side_by_side_are_the_same_to_the_bit(params, threads, monkeypatch, passes):
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    content = scenes("libx264", "mp4", (("x264-params", SKIPPING[params]),))
    everything = decoded_in_order(content)
    for number in (4, 6, 10, 26, 60):
        video = load_video(content, nframes=number)
        passes.clear()
        chosen = [everything[round(second * 30)] for second in video.seconds]
        assert all(map(np.array_equal, video.frames(), chosen)) and len(passes) == 1


def test_frames_that_no_other_needs_are_not_decoded(monkeypatch):
    real = containers.decode
    given = []

    def decode(context, packet):
        given.append(context.skip_frame)
        return real(context, packet)

    monkeypatch.setattr(containers, "decode", decode)
    video = load_video(clip(options=(("x264-params", "bframes=3:b-adapt=0"),)), nframes=4)
    given.clear()
    list(video.frames())
    assert given.count("NONREF") > 2 * given.count("DEFAULT") > 0


def test_closing_a_clip_while_its_threads_work_ends_at_once(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for _ in range(20):
        frames = load_video(clip(frames=600), nframes=60).frames()
        next(frames)
        frames.close()


LOGGING = """
import logging, os, sys
import av.logging
import numpy as np
from qwen2vl_io.videos import load_video
os.cpu_count = lambda: 8
logging.disable(logging.CRITICAL)
av.logging.set_level(av.logging.DEBUG)
sound = open(sys.argv[1], "rb").read()
rng = np.random.default_rng(0)
for number in range(30):
    content = bytearray(sound)
    for place in rng.integers(2000, len(content) - 9000, 60):
        content[place] = rng.integers(256)
    try:
        for count, _ in enumerate(load_video(bytes(content), nframes=100).frames()):
            if count == number:
                break
    except ValueError:
        pass
print("done")
"""


def test_threads_that_log_are_not_waited_for_in_vain(tmp_path):
    """PyAV's log needs the interpreter's lock, which who closes a decoder holds: each would wait for the other."""
    (tmp_path / "clip.mp4").write_bytes(clip(frames=600))
    command = [sys.executable, "-c", LOGGING, str(tmp_path / "clip.mp4")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent.parent)
    assert run.stdout == "done\n", run.stderr[-2000:]


@pytest.mark.parametrize(
    "size, threads", [((1920, 1080), 16), ((3840, 2160), 8), ((7680, 4320), 2), ((40000, 4000), 1)]
)
def test_pitfall_29_threads_hold_few_frames_in_memory(size, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert containers.threads_for(types.SimpleNamespace(width=size[0], height=size[1])) == threads


def test_a_damaged_frame_takes_no_other_with_it():
    """Side by side, an error can swallow the frame before it; what one decoder alone can read is read."""
    content = bytearray(clip("matroska", "mpeg4", gop=6, options=(("bf", "0"),)))
    with av.open(io.BytesIO(bytes(content))) as container:
        victim = [bytes(packet) for packet in container.demux(video=0) if packet.size][6]
    place = bytes(content).index(victim)
    content[place : place + len(victim)] = bytes(len(victim))
    sound = decoded_in_order(clip("matroska", "mpeg4", gop=6, options=(("bf", "0"),)), "matroska")
    video = load_video(bytes(content), video_end=5.5 / 30, nframes=6)
    assert all(map(np.array_equal, video.frames(), sound[:6]))
    with pytest.raises(ValueError, match="frame at 0.20 s cannot be decoded"):
        list(load_video(bytes(content), video_start=0.2, nframes=54).frames())


@pytest.mark.parametrize("format, nframes", [("mp4", 6), ("avi", 20)])
def test_the_work_is_known_before(format, nframes):
    content = clip(format, "mpeg4", gop=10, options=(("bf", "0"),))
    video = load_video(content, nframes=nframes)
    needed = set()
    for second in video.seconds:
        last = round(30 * second)
        needed |= set(range(last // 10 * 10, last + 1))
    assert video.pixels_to_decode == len(needed) * WIDTH * HEIGHT


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second_is_intra", [True, False])
@pytest.mark.parametrize("format", ["mpegts", "mp4", "matroska"])
def test_two_fields_in_two_packets_are_one_frame(format, second_is_intra):
    """AVCHD and 1080i recordings: what is on show is made of both fields."""
    content = field_coded(format, 40, second_is_intra)
    everything = decoded_in_order(content, format)
    assert len(everything) == 40
    rows = everything[1][:2, 0, 0].astype(int)
    assert (rows[0] != rows[1]) == second_is_intra, "the lines of both fields"
    same_as_full_decoding(content, format, (2, 6, 14, 40), rate=1 / (2 * PACKET_SECONDS))
    video = load_video(content)
    assert video.video_fps == pytest.approx(25, rel=0.01) and video.note == ""


@pytest.mark.parametrize("into", ["mpegts", "matroska"])
def test_two_fields_that_share_a_time_stamp(into):
    """FFmpeg gives the second of them no time; the clip is sampled by time all the same."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(field_coded("mpegts", 40, True))) as given, av.open(buffer, "w", format=into) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for number, (first, second) in enumerate(zip(packets[::2], packets[1::2])):
            both = av.Packet(bytes(first) + bytes(second))
            both.stream, both.time_base, both.is_keyframe = stream, 2 * PACKET_SECONDS, first.is_keyframe
            both.pts = both.dts = number
            made.mux(both)
    same_as_full_decoding(buffer.getvalue(), into, (2, 6, 14, 40), rate=25)
    assert not open_clip(*opener(buffer.getvalue(), "video")).counted


def test_fields_with_wrong_marks():
    for marks in MARKS.values():
        content = copied(field_coded("mp4", 40, False), "matroska", marks)
        same_as_full_decoding(content, "matroska", (2, 6, 14, 40), rate=25)


def test_frames_are_not_taken_for_fields():
    for options in ((), (("x264-params", "tff=1:keyint=12"), ("flags", "+ildct+ilme"))):
        for format in ("mp4", "mpegts"):
            content = clip(format, options=options)
            with av.open(io.BytesIO(content)) as container:
                stream = container.streams.video[0]
                fields = Fields(stream.codec_context.extradata)
                assert fields.may_be == bool(options)
                assert not any(fields.is_second(bytes(packet)) for packet in container.demux(stream) if packet.size)
            same_as_full_decoding(content, format)


def test_pitfall_29_heads_of_h264_can_be_anything():
    rng = np.random.default_rng(3)
    with av.open(io.BytesIO(field_coded("mp4", 4, True))) as container:
        sound = container.streams.video[0].codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in range(300):
        extradata = bytearray(sound)
        for place in rng.integers(0, len(extradata), number % 8):
            extradata[place] = rng.integers(256)
        fields = Fields(bytes(extradata[: rng.integers(len(extradata) + 1)] if number % 3 else extradata))
        for packet in packets:
            fields.is_second(packet[: rng.integers(40)])
            fields.is_second(rng.bytes(rng.integers(60)))
    assert not Fields(None).may_be and not Fields(b"\1" * 9).is_second(b"")
    with pytest.raises(IndexError):
        Bits(bytes(9)).golomb()


# --- Windows Media, Ogg and MPEG --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "format, codec", [("asf", "wmv1"), ("asf", "wmv2"), ("asf", "msmpeg4"), ("avi", "msmpeg4v2"), ("avi", "wmv1")]
)
def test_windows_media(format, codec):
    content = clip(format, codec)
    same_as_full_decoding(content, format)
    for share in (0.3, 0.7):
        short = content[: int(len(content) * share)]
        try:
            video = load_video(short)
            assert len(list(video.frames())) == video.num_frames
        except ValueError as error:
            assert "damaged" in str(error) and str(error).isprintable()


def test_ogg_theora():
    content = THEORA.read_bytes()
    same_as_full_decoding(content, "ogg", (2, 4, 6, 12, 24), rate=10)
    assert load_video(THEORA, video_start=1, video_end=2).seconds[0] == pytest.approx(1, abs=0.01)


def test_ogg_sound_is_no_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="only sound") as error:
        load_video(buffer.getvalue())
    sentence(error)


# --- encrypted clips --------------------------------------------------------------------------------------------------

CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "00112233445566778899aabbccddeeff",
    "encryption_kid": "0123456789abcdef0123456789abcdef",
}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("movflags", ["", "faststart", "frag_keyframe+empty_moov"])
def test_an_encrypted_mp4_is_said_to_be_encrypted(codec, movflags):
    options = {**CENC, "movflags": movflags} if movflags else CENC
    content = copied(clip(codec=codec), "mp4", options=tuple(options.items()))
    assert b"encv" in content
    with pytest.raises(ValueError, match="is encrypted") as error:
        load_video(content)
    sentence(error)


def test_an_encrypted_mp4_is_recognised_by_its_packets_too(monkeypatch):
    """The first sample entry can be plain, and those behind it encrypted."""
    monkeypatch.setattr("qwen2vl_io.videos.check_tables", lambda file, name: None)
    with pytest.raises(ValueError, match="is encrypted"):
        load_video(copied(clip(), "mp4", options=tuple(CENC.items())))


def scrambled_ts(cell: int = 188) -> bytes:
    content = clip("mpegts", options=(("qp", "1"),))
    cells = [bytearray(content[start : start + 188]) for start in range(0, len(content), 188)]
    for number, data in enumerate(cells):
        if number > 3:  # the tables stay readable
            data[3] |= 0x80
    return b"".join(bytes(cell - 188) + bytes(data) for data in cells)


def scrambled_ps() -> bytes:
    content = bytearray(clip("vob", "mpeg2video"))
    start = 0
    while (start := content.find(b"\0\0\x01\xe0", start)) >= 0:
        content[start + 6] |= 0x10
        start += 4
    return bytes(content)


def protected_asf() -> bytes:
    content = bytearray(clip("asf", "wmv2"))
    more = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e") + (28).to_bytes(8, "little") + bytes(4)
    content[16:24] = (int.from_bytes(content[16:24], "little") + 28).to_bytes(8, "little")
    content[24:28] = (int.from_bytes(content[24:28], "little") + 1).to_bytes(4, "little")
    return bytes(content[:30] + more + content[30:])


def element(name: str, content: bytes) -> bytes:
    """An element of Matroska, with its length in eight bytes."""
    return bytes.fromhex(name) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def encrypted_webm() -> bytes:
    """As browsers play it: the track says with which key its frames are encrypted."""
    content = clip("webm", "libvpx", options=FAST, file_options=(("live", "1"),))  # so that it states no sizes
    tracks = content.rindex(bytes.fromhex("1654ae6b"))
    start = content.index(b"\xae\1" + bytes(6), tracks) + 9  # of the only track; its length stands before it
    end = start + content[start - 1]
    private = element("5033", b"\1") + element("5035", element("47e1", b"\5") + element("47e2", b"key"))
    track = element("ae", content[start:end] + element("6d80", element("6240", private)))
    return content[:tracks] + element("1654ae6b", track) + content[end:]


@pytest.mark.parametrize("make", [encrypted_webm, scrambled_ts, lambda: scrambled_ts(192), scrambled_ps, protected_asf])
def test_other_encrypted_clips_are_said_to_be_encrypted(make):
    with pytest.raises(ValueError, match="is encrypted") as error:
        load_video(make())
    sentence(error)


# --- pictures that begin like an MP4 ----------------------------------------------------------------------------------


@functools.cache
def avif(frames: int = 1) -> bytes:
    first, *rest = [Image.new("RGB", (64, 48), (30 * number, 0, 200)) for number in range(frames)]
    buffer = io.BytesIO()
    first.save(buffer, "AVIF", save_all=True, append_images=rest, duration=100)
    return buffer.getvalue()


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands


@pytest.mark.parametrize(
    "content, kind",
    [
        (avif, "AVIF"),
        (ftyp(b"heic", b"mif1", b"heic") + bytes(99), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"heic") + bytes(99), "HEIC"),
        (ftyp(b"mif1", b"avif", b"miaf") + bytes(99), "AVIF"),
        (ftyp(b"msf1", b"hevc") + bytes(99), "HEIC"),
        (ftyp(b"crx ", b"isom") + bytes(99), "camera's raw file"),
    ],
)
def test_a_picture_that_begins_like_an_mp4_is_named(content, kind, tmp_path):
    (tmp_path / "IMG_0001.mp4").write_bytes(content() if callable(content) else content)
    with pytest.raises(ValueError, match=rf"is a picture \(.*{kind}.*pass it as an image") as error:
        load_video(tmp_path / "IMG_0001.mp4")
    sentence(error)


def test_clips_are_not_taken_for_pictures():
    for brand in (b"isom", b"mp42", b"qt  ", b"3gp5", b"M4V ", b"avc1"):
        assert still_picture(ftyp(brand, b"mif1")) == ""
    assert still_picture(clip()[:1024]) == ""


@pytest.mark.skipif("AVIF" not in pictures.FORMATS, reason="AVIF is not among the formats that are read")
def test_an_animated_avif_is_a_video():
    video = load_video(avif(8), nframes=8)
    frames = [frame[0, 0, 0] for frame in video.frames()]
    assert video.total_frames == 8 and np.abs(np.array(frames, int) - 30 * np.arange(8)).max() < 20


# --- side data that PyAV does not know --------------------------------------------------------------------------------


class Unknown:
    """A frame with side data that is newer than PyAV."""

    def __init__(self, rotation: int) -> None:
        self.rotation = rotation

    @property
    def side_data(self):
        raise ValueError("29 is not a valid Type")


@pytest.mark.parametrize("turn", [0, 90, 180, -90, 270, -180])
def test_unknown_side_data_leaves_the_rotation(turn):
    swap, flip_x, flip_y = containers.display_matrix(Unknown(turn))
    picture = np.arange(8).reshape(2, 4)
    upright = picture.swapaxes(0, 1) if swap else picture
    upright = upright[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    assert np.array_equal(upright, np.rot90(picture, turn // 90))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["avi", "matroska", "mov"])
def test_motion_jpeg_with_exif(format, orientation):
    """FFmpeg hands its EXIF over as side data, of a type that PyAV has no name for."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255, 0, 0
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(6):
            jpeg = io.BytesIO()
            Image.fromarray(picture).save(jpeg, "JPEG", exif=exif)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    video = load_video(buffer.getvalue(), nframes=6)
    frames = list(video.frames())
    assert len(frames) == 6 and all(frame.shape == (video.height, video.width, 3) for frame in frames)
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        rotation = next(container.decode(video=0)).rotation
    turned = np.rot90(picture, round(rotation / 90))
    assert frames[0].shape == turned.shape and np.abs(frames[0].astype(int) - turned).mean() < 12


# --- progress ---------------------------------------------------------------------------------------------------------


def test_the_command_line_says_how_long_it_may_take(monkeypatch, capsys):
    clip_read = load_video(clip(), nframes=6)
    expected = list(clip_read.frames())
    assert all(map(np.array_equal, progress.watched(clip_read).frames(), expected))
    assert capsys.readouterr().err == "", "nothing to say about what takes no time"

    monkeypatch.setattr(progress, "PIXELS_A_SECOND", clip_read.pixels_to_decode / 20)
    assert all(map(np.array_equal, progress.watched(clip_read).frames(), expected))
    assert capsys.readouterr().err == f"{clip_read.name}: reading 6 frames may take about 20 seconds.\n"
    monkeypatch.setattr(progress, "PIXELS_A_SECOND", clip_read.pixels_to_decode / 600)
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1)
    list(progress.watched(clip_read).frames())
    lines = capsys.readouterr().err.splitlines()
    assert "about 10 minutes" in lines[0] and "1 of 6 frames, about " in lines[1] and len(lines) == 7


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    made = []
    real = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda *args, **options: made.append(options) or real(*args, **options))
    assert len(list(progress.watched(load_video(clip(), nframes=6)).frames())) == 6
    assert made[0]["total"] == 6 and not made[0]["disable"] and not made[0]["leave"]
