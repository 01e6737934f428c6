"""Runs cases in a worker, which is ended when one hangs, and replaced when it died."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hostile.cases import ROOT, SECONDS, Outcome
from tests.hostile.measure import clock

SECONDS_TO_START = 120
SECONDS_TO_MAKE = 5  # on top of a case's own: making the input is not what is measured


class WorkerError(RuntimeError):
    """No case can run, because no worker starts."""


class Runner:
    """Runs cases in a worker; the first case starts it."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self.process = None
        self.connection = None
        self.folder = None
        self.broken = False  # once a worker did not start, none of the next ones would

    def run(self, name: str, seconds: float | None = None) -> Outcome:
        """The outcome of one case, which may take `seconds`."""
        seconds = seconds or self.seconds
        if self.process is None:
            self.start()
        try:
            outcome = self.wait_for(name, seconds + SECONDS_TO_MAKE)
        except (EOFError, OSError):
            return Outcome(error="crash", sentence=f"the worker ended itself with {self.stop()}")

        if outcome is None:
            self.stop()
            return Outcome(error="hang", sentence="the worker had to be ended", seconds=seconds)
        return outcome

    def wait_for(self, name: str, seconds: float) -> Outcome | None:
        """Let the worker run a case; None if it takes longer than that."""
        process = self.process.pid
        began = clock(process)
        self.connection.send(name)
        while clock(process) < began + seconds:
            if self.connection.poll(0.5):
                return self.connection.recv()
        return None

    def start(self) -> None:
        """Start a worker; WorkerError says why it does not start. Only the first one does so at length."""
        if self.broken:
            raise WorkerError("No worker starts; the first error says why.")
        self.folder = tempfile.TemporaryDirectory(prefix="hostile-")
        temporary = Path(self.folder.name, "tmp")
        temporary.mkdir()
        log = Path(self.folder.name, "log")

        self.connection, theirs = multiprocessing.Pipe()
        with theirs, log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.worker", str(theirs.fileno())],
                cwd=ROOT,
                env=environment(temporary),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

        trouble = self.trouble_at_the_start()
        if trouble:
            self.broken = True
            said = log.read_text(errors="replace").strip() or "nothing"
            self.stop()
            raise WorkerError(f"The worker that runs the cases {trouble}. It says:\n\n{said}")

    def trouble_at_the_start(self) -> str:
        try:
            if not self.connection.poll(SECONDS_TO_START):
                return f"was not ready within {SECONDS_TO_START} seconds"
            self.connection.recv()
        except (EOFError, OSError):
            return f"ended itself with {self.process.wait()} before it was ready"
        return ""

    def stop(self) -> int | None:
        """End the worker, if there is one; returns its exit code."""
        if self.process is None:
            return None
        self.process.kill()
        code = self.process.wait()
        self.process = None
        self.connection.close()
        self.folder.cleanup()
        return code


def environment(temporary: Path) -> dict[str, str]:
    """The variables of the worker: no network, a folder for temporary files, the usual rules for addresses."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary), "COLUMNS": "200"}
    variables.pop("QWEN2VL_ALLOW_PRIVATE_URLS", None)
    return variables
