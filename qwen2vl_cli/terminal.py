"""The three streams of the command line: notes and one sentence for each error on stderr, and what waits on stdin."""

from __future__ import annotations

import os
import stat
import struct
import sys


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


def open_closed_streams() -> None:
    """Where a caller has closed stdout or stderr, what would be written there goes nowhere (and not into the other)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def came_from_debugger(error: BaseException | None) -> bool:
    """Whether the reader typed `quit` or `restart` into pdb, whose exceptions are no errors of ours.

    Code that was being stepped through may have taken it for a failure of its own, and raised another one.
    """
    while error is not None:
        if type(error).__module__ in ("bdb", "pdb"):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_run_by_debugger() -> bool:
    """Whether a debugger started this program (`python -m pdb qwen2vl_mini.py`): its own code is then below ours."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "bdb":
            return True
        frame = frame.f_back
    return False


def has_unread_stdin() -> bool:
    """Whether a file or pipe on stdin has text. Nothing is read: it may belong to a loop of the shell around us."""
    try:
        number = sys.stdin.fileno()
        status = os.fstat(number)
        if stat.S_ISREG(status.st_mode):
            return os.lseek(number, 0, os.SEEK_CUR) < status.st_size
        return stat.S_ISFIFO(status.st_mode) and bytes_in_pipe(number) > 0
    except (AttributeError, ImportError, OSError, ValueError):  # closed, no real file, or no such call on this system
        return False


def bytes_in_pipe(number: int) -> int:
    """How many bytes a pipe holds; an empty pipe that is still open has none, and one that has ended likewise."""
    import fcntl
    import termios

    return struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, bytes(4)))[0]
