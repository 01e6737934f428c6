"""How much is in memory at once: a large photograph, a long clip."""

import subprocess
import sys
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from qwen2vl_io import videos
from qwen2vl_mini import Qwen2VLImageProcessor

ROOT = Path(__file__).parent.parent
MEASURED = """
import resource, sys
sys.path.insert(0, {root!r})
from qwen2vl_cli.__main__ import main

code = main(["--image", {photo!r}, "--prompt", "Describe this image.", "--max-new-tokens", "4"])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {unit})
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells the peak in another way")
def test_a_photograph_of_12_megapixels_stays_under_two_and_a_half_gigabytes(tmp_path):
    """Attention maps of its 61,000 patches would take 15 GB a head; pixel limits and kernels prevent that."""
    noise = np.random.default_rng(0).integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(tmp_path / "photo.jpg")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    script = MEASURED.format(root=str(ROOT), photo=str(tmp_path / "photo.jpg"), unit=unit)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak = int(run.stdout.split("peak ")[1])
    assert 50e6 < peak < 2.5e9


def write_clip(path: Path, seconds: int, rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 48
        for i in range(seconds * rate):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 256, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_a_clip_of_ten_minutes_is_never_in_memory(tmp_path, monkeypatch):
    """Of its 2,400 frames 768 are looked at, and no more than two pairs of them are there at a time."""
    write_clip(tmp_path / "long.mp4", seconds=600, rate=4)
    alive, most, seen = set(), 0, 0
    decode = videos.Video.frames

    def watched(video):
        nonlocal most, seen
        for frame in decode(video):
            key, seen = id(frame), seen + 1
            alive.add(key)
            weakref.finalize(frame, alive.discard, key)
            most = max(most, len(alive))
            yield frame
            del frame

    monkeypatch.setattr(videos.Video, "frames", watched)
    processor = Qwen2VLImageProcessor(video_min_pixels=4 * 784)
    patches, grid = processor.media_patches({"video": str(tmp_path / "long.mp4")})
    assert seen == 768 and grid == (384, 4, 4) and len(patches) == 384 * 16
    assert most <= 4
