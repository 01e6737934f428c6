"""How far a batch is, on stderr."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

QUIET_SECONDS = 20  # between two lines about the progress, where stderr is no terminal


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
