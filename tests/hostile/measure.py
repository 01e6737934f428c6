"""What one input costs and leaves behind in this process: time, memory, output and open files. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from pathlib import Path


class Stream:
    """stdout or stderr of this process, led into a file: that also catches what libraries written in C print."""

    def __init__(self, number: int):
        self.file = tempfile.TemporaryFile()
        os.dup2(self.file.fileno(), number)

    def take(self) -> str:
        """What was written since the last time."""
        self.file.seek(0)
        text = self.file.read().decode(errors="replace")
        self.file.seek(0)
        self.file.truncate()
        return text


STREAMS: dict[int, Stream] = {}  # the worker's, by number: 1 for stdout, 2 for stderr


def memory(field: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" the peak since `forget_peak`, "VmSize" of address space."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def forget_peak() -> float:
    """Return free memory to the system and begin a new peak; returns the megabytes held now.

    Linux can reset the peak of a process, so it is exact for each case, however short. (getrusage only knows the peak
    since the process began, and sampling misses what happens between samples.)
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def clock(process: int | str = "self") -> float:
    """Seconds, less those for which the process was ready to run while others had the processor.

    So a case takes as long on a busy machine as on an idle one, and one that sleeps or waits is still caught.
    """
    waited = 0
    with contextlib.suppress(OSError, IndexError, ValueError):
        waited = int(Path(f"/proc/{process}/schedstat").read_text().split()[1])  # nanoseconds
    return time.perf_counter() - waited / 1e9


def open_files(folder: Path) -> list[str]:
    """The open files that a case is to blame for: temporary ones, and those in its folder."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(link))

    streams = {os.readlink(f"/proc/self/fd/{stream.file.fileno()}") for stream in STREAMS.values()}
    ours = (tempfile.gettempdir(), str(folder))
    return [link for link in links if link.startswith(ours) and link not in streams]
