"""What the command line says on stderr: notes, one sentence for each error, progress."""

from __future__ import annotations

import sys
import time


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def sentence(error: Exception) -> str:
    """One line for the user."""
    text = " ".join(str(error).split())
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's is the latter
    if memory or "can't allocate memory" in text:
        return "error: Out of memory; lower --max-pixels or --max-new-tokens, or take a smaller --model."
    if isinstance(error, ValueError | OSError) and text:
        return f"error: {text}"
    return f"unexpected error: {type(error).__name__}: {text} (run with --debug for the traceback)"


BAR = 30  # characters
QUIET_SECONDS = 20  # between two lines about the progress, where stderr is no terminal


class Progress:
    """How far we are, on stderr: a bar if that is a terminal, else a line now and then."""

    def __init__(self, total: int, done: int):
        self.total, self.done, self.skipped, self.failed = total, done, done, 0
        self.terminal, self.began, self.shown = sys.stderr.isatty(), time.monotonic(), time.monotonic()

    def step(self, failed: bool = False) -> None:
        self.done, self.failed = self.done + 1, self.failed + failed

    def show(self) -> None:
        now = time.monotonic()
        if self.terminal or now - self.shown > QUIET_SECONDS:
            self.shown = now
            text = f"\r{self.bar()}\x1b[K" if self.terminal else f"{self.text()}\n"
            print(text, end="", file=sys.stderr, flush=True)

    def text(self) -> str:
        seconds, fresh = time.monotonic() - self.began, self.done - self.skipped - self.failed
        left = f", about {clock(seconds / fresh * (self.total - self.done))} left" if fresh else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.total} lines{failed}{left}"

    def bar(self) -> str:
        full = BAR * self.done // max(self.total, 1)
        return f"[{'#' * full}{'.' * (BAR - full)}] {self.text()}"

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        note(("\r\x1b[K" if self.terminal else "") + text)

    def close(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
