"""How far a batch or the reading of a clip is, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from qwen2vl_io.sentences import shorten
from qwen2vl_io.videos import Video

QUIET_SECONDS = 20  # between two lines about the progress, where stderr is no terminal
SLOW_SECONDS = 5  # what takes less needs no word
PIXELS_A_SECOND = 3e8  # of H.264 that two cores decode; only a first guess


class Progress:
    """A bar if stderr is a terminal, else a line now and then."""

    def __init__(self, total: int, done: int):
        self.total = total
        self.done = done
        self.skipped = done  # answered in an earlier run
        self.failed = 0
        self.began = time.monotonic()
        self.shown = self.began
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=self.text(),
            bar_format="|{bar:30}| {desc}",
            delay=1,  # or it would be drawn here already, before the first show()
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def step(self, failed: bool = False) -> None:
        self.done += 1
        self.failed += failed

    def show(self) -> None:
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.n = self.done
            self.bar.set_description_str(self.text())
        elif now - self.shown > QUIET_SECONDS:
            self.shown = now
            self.note(self.text())

    def text(self) -> str:
        answered = self.done - self.skipped - self.failed  # failures take no time, so they tell nothing about the rest
        failed = f", {self.failed} failed" if self.failed else ""
        left = ""
        if answered:
            seconds = (time.monotonic() - self.began) / answered * (self.total - self.done)
            left = f", about {tqdm.format_interval(seconds)} left"
        return f"{self.done} of {self.total} lines{failed}{left}"

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(text, file=sys.stderr)

    def hide(self) -> None:
        """Make room for what others write; the next show() draws the bar again."""
        self.bar.clear()

    def close(self) -> None:
        self.hide()
        self.bar.close()


def watched_clips(content: list[dict]) -> list[dict]:
    """The content of a message with its media open; reading its clips will be watched."""
    return [item | {"video": watched(item["video"])} if item["type"] == "video" else item for item in content]


def watched(clip: Video) -> Video:
    """The same clip. When its frames are read and that takes long, stderr says beforehand how long, then how far."""
    return replace(clip, decoder=lambda: shown_frames(clip))


def shown_frames(clip: Video) -> Iterator[np.ndarray]:
    name = shorten(clip.name, 60)
    began = shown = time.monotonic()
    seconds = clip.pixels_to_decode / PIXELS_A_SECOND
    if seconds >= SLOW_SECONDS:
        about = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
        tqdm.write(f"{name}: reading {clip.num_frames} frames may take about {about}.", file=sys.stderr)

    bar = tqdm(
        clip.frames(),
        total=clip.num_frames,
        desc=f"reading {name}",
        unit=" frames",
        delay=1,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        for number, frame in enumerate(bar):
            yield frame
            now = time.monotonic()
            if bar.disable and now - shown > QUIET_SECONDS:
                shown = now
                left = tqdm.format_interval((now - began) / (number + 1) * (clip.num_frames - number - 1))
                tqdm.write(f"{name}: {number + 1} of {clip.num_frames} frames, about {left} left", file=sys.stderr)
