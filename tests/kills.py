"""Kill a batch again and again, and see that nothing is lost, doubled or out of order: `python -m tests.kills`.

A job of many short conversations is killed with SIGKILL, at random moments of its life and (every fifth time) in the
moment in which the answers are put in order; then it is started again, until it has ended by itself. After each kill,
every record that was whole before must still be there. In the end each line has one record, in order.

    python -m tests.kills --kills 50 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = 60
QUESTIONS = ("Who are you?", "What can you do?")


def write_conversations(path: Path) -> None:
    """LINES conversations without pictures, which the bundled model answers at once."""
    lines = [{"id": i, "messages": [{"role": "user", "content": QUESTIONS[i % 2]}]} for i in range(LINES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def start(folder: Path, ordering_takes: float) -> subprocess.Popen:
    """A job that answers a few lines at a time. `ordering_takes` seconds are slept between draft and replacement."""
    slow = "import os, time; real = os.replace\n"
    slow += f"os.replace = lambda *paths: (time.sleep({ordering_takes}), real(*paths))\n"
    words = ["--batch", str(folder / "in.jsonl"), "--out", str(folder / "out.jsonl"), "--batch-tokens", "400"]
    words += ["--max-new-tokens", "30", "--device", "cpu", "--dtype", "float32"]
    code = slow + f"import sys; from qwen2vl_cli.__main__ import main; sys.exit(main({words!r}))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def whole_records(path: Path) -> list[dict]:
    """The records of a file, without a last one that is torn."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def kill_at(job: subprocess.Popen, folder: Path, rng: random.Random, in_ordering: bool, longest: float) -> bool:
    """Kill the job at a random moment, or while the answers are put in order; False if it has ended before."""
    deadline = time.monotonic() + (60 if in_ordering else rng.uniform(0.2, longest))
    draft = folder / ".out.jsonl.draft"
    while job.poll() is None:
        if time.monotonic() > deadline or (in_ordering and draft.exists()):
            job.send_signal(signal.SIGKILL)
            job.wait()
            return True
        time.sleep(0.002)
    return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many jobs are killed (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)

    killed = finished = in_ordering = problems = 0
    longest = 8.0  # seconds until a kill, at most; follows what a whole job takes
    while killed < options.kills:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            out = folder / "out.jsonl"
            write_conversations(folder / "in.jsonl")
            before: list[dict] = []
            while True:
                wants_ordering = killed % 5 == 4
                began = time.monotonic()
                job = start(folder, 0.5 if wants_ordering else 0.0)
                was_killed = killed < options.kills and kill_at(job, folder, rng, wants_ordering, longest)
                if not was_killed:
                    _, err = job.communicate()
                    longest = time.monotonic() - began
                after = whole_records(out)
                lost = [record for record in before if record not in after]
                if lost:
                    problems += 1
                    print(f"kill {killed}: {len(lost)} records were lost")
                before = after
                if not was_killed:
                    break
                killed += 1
                in_ordering += wants_ordering

            finished += 1
            numbers = [record["line"] for record in after]
            left = sorted(path.name for path in folder.iterdir())
            is_right = (
                job.returncode == 0 and numbers == list(range(1, LINES + 1)) and left == ["in.jsonl", "out.jsonl"]
            )
            if not is_right or any("answer" not in record for record in after):
                problems += 1
                print(f"a job ended with code {job.returncode}, lines {numbers}, files {left}: {err.decode()[-300:]}")

    print(
        f"{killed} kills, {in_ordering} of them while the answers were put in order, "
        f"{finished} jobs brought to their end: {problems} problems."
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
