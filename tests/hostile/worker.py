"""The worker: a process that takes names of cases from a connection and sends outcomes back.

It is a process of its own so that an input that hangs, crashes or fills the memory does not take the tests with it.
Runner starts it, as `python -m tests.hostile.worker DESCRIPTOR`, and keeps what it prints until it is ready.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from qwen2vl_cli import __main__ as command_line
from tests.hostile.cases import Case, Outcome
from tests.hostile.checkpoints import sound_checkpoint
from tests.hostile.collection import corpus
from tests.hostile.material import CONTAINERS, clip, picture
from tests.hostile.measure import STREAMS, Stream, clock, forget_peak, memory, open_files
from tests.hostile.planted import PLANTED
from tests.hostile.server import server
from tests.hostile.ways_in import see_clip, see_picture

RUNAWAY_BYTES = 4 * 2**30  # of address space above the start: a runaway case fails before the machine suffers


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    cases = corpus() | PLANTED
    warm_up()
    limit_memory()
    clear(tempfile.gettempdir())  # what was left there by imports

    # from here on, output belongs to a case
    for number in (1, 2):
        STREAMS[number] = Stream(number)
    gc.collect()
    gc.freeze()  # all of this will stay, and need not be looked through after each case

    connection.send("ready")
    while name := connection.recv():
        connection.send(run_case(cases[name]))


def warm_up() -> None:
    """Do once what would be charged to the first case that needs it: late imports, caches, codecs, the server."""
    torch.set_num_threads(1)
    warnings.simplefilter("default")
    server()
    sound_checkpoint()
    for container in CONTAINERS:
        see_clip(clip(container))
    see_picture(picture())
    code = command_line.main(["--model", "tiny", "--prompt", "x", "--count-tokens"])
    assert code == 0, f"a sound command line ends with exit code {code}"


def limit_memory() -> None:
    limit = int(memory("VmSize") * 1e6) + RUNAWAY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_case(case: Case) -> Outcome:
    """Make the input of a case in a folder of its own, use it, and look for what it left behind."""
    outcome = Outcome()
    scratch = Path(tempfile.mkdtemp(dir=Path(tempfile.gettempdir()).parent))
    try:
        measure(case, case.make(scratch), outcome)
        outcome.leftovers = leftovers(scratch)
    finally:
        for path in scratch.rglob("*"):
            with contextlib.suppress(OSError):
                path.chmod(0o700)
        shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def measure(case: Case, made, outcome: Outcome) -> None:
    """Hand the input to the product; answer or error, time, memory and output go into the outcome."""
    for stream in STREAMS.values():
        stream.take()

    before = forget_peak()
    began = clock()
    try:
        outcome.answer = str(case.use(made))
    except BaseException as error:  # also sys.exit, and the panics of Rust
        outcome.error = type(error).__name__
        with contextlib.suppress(Exception):
            outcome.sentence = str(error)
        error.__traceback__ = None  # whose frames hold what the case held
    outcome.seconds = clock() - began
    outcome.megabytes = max(0.0, memory("VmHWM") - before)

    sys.stdout.flush()
    sys.stderr.flush()
    outcome.stdout = STREAMS[1].take()
    outcome.stderr = STREAMS[2].take()


def leftovers(scratch: Path) -> list[str]:
    """Temporary files, which are removed here, and files that are still open."""
    files = sorted(os.listdir(tempfile.gettempdir()))
    clear(tempfile.gettempdir())
    still_open = open_files(scratch)
    if still_open and not files:
        gc.collect()  # they may only hang in a cycle that Python has not collected yet
        still_open = open_files(scratch)
    return files + still_open


def clear(folder: str) -> None:
    for name in os.listdir(folder):
        path = Path(folder, name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    main()
