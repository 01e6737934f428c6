"""Grade what a student handed in, and write Gradescope's results.json (any CI can use the exit code).

Each answer runs in a process of its own, with limits of time and memory. That process says what the function answers;
whether it is right is decided here. So an endless loop, `sys.exit(0)` or a forged file of results score nothing. It is
no prison: answers run with the grader's rights, so let them run in a container, as Gradescope does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exercises.book import Exercise
from exercises.checker import Outcome, Verdict, before_running, judge
from exercises.submissions import REPOSITORY, Source, find_answer, sources_in
from exercises.values import decode

LARGEST_RESULT = 10_000_000  # bytes


def grade(place: Path, exercises: list[Exercise], seed: int, seconds: int, megabytes: int) -> dict:
    """Gradescope's results: one test for each exercise, a point for each star."""
    sources, problems = sources_in(place)
    plans = [plan(exercise, sources) for exercise in exercises]

    def outcomes_of(exercise: Exercise, found: Source | Verdict) -> list[Outcome] | str | None:
        return run_apart(exercise, found, seed, seconds, megabytes) if isinstance(found, Source) else None

    # Threads wait for the processes and do nothing else: Python 3.11 cannot parse code in several at once.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(outcomes_of, exercises, plans))

    verdicts = [conclude(*row, seed) for row in zip(exercises, plans, outcomes)]
    tests = [as_test(exercise, verdict) for exercise, verdict in zip(exercises, verdicts)]
    output = " ".join(problems) or f"{sum(test['status'] == 'passed' for test in tests)} of {len(tests)} passed."
    return {"output": output, "tests": tests}


def as_test(exercise: Exercise, verdict: Verdict) -> dict:
    """An entry of Gradescope's list."""
    return {
        "name": f"{exercise.number} {exercise.title}",
        "score": exercise.stars if verdict.passed else 0,
        "max_score": exercise.stars,
        "status": "passed" if verdict.passed else "failed",
        "output": verdict.message,
    }


def plan(exercise: Exercise, sources: list[Source]) -> Source | Verdict:
    """The file whose answer is to run, or the verdict where none needs to."""
    source = find_answer(exercise, sources)
    if source is None:
        return Verdict("not attempted", f"{exercise.number} · not attempted: no function {exercise.function}.")
    early = before_running(None, exercise, source.defines(exercise))
    if early:
        return early
    if source.reads_the_checker():
        return Verdict("failed", f"{exercise.number} ✗ {source.path.name} imports the checker's own answers.")
    return source


def conclude(exercise: Exercise, found: Source | Verdict, outcomes: list[Outcome] | str | None, seed: int) -> Verdict:
    """The verdict on an answer that ran, or did not."""
    if isinstance(found, Verdict):
        return found
    if isinstance(outcomes, str):
        return Verdict("failed", f"{exercise.number} ✗ {exercise.function} {outcomes}")
    return judge(exercise, exercise.all_probes(seed), outcomes)


def run_apart(exercise: Exercise, source: Source, seed: int, seconds: int, megabytes: int) -> list[Outcome] | str:
    """The outcomes of an answer that ran in a process of its own, or the sentence that says why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcomes.json"
        arguments = [exercise.number, seed, source.path.resolve(), result, megabytes]
        command = [sys.executable, "-m", "exercises.run_one", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds} seconds. Is there an endless loop?"
        finally:
            stop(process)
        if not result.is_file():
            return f"ended its process before it answered (exit code {process.returncode})."
        return read_outcomes(result, len(exercise.all_probes(seed)))


def stop(process: subprocess.Popen) -> None:
    """End a process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # AttributeError: Windows
        process.kill()
    process.wait()


def read_outcomes(result: Path, most: int) -> list[Outcome] | str:
    """What the process wrote, or a sentence if that makes no sense."""
    try:
        if result.stat().st_size > LARGEST_RESULT:
            return "gave answers that are too large."
        content = json.loads(result.read_text(encoding="utf-8"))
        outcomes = []
        for entry in content:
            error = entry["error"] if entry["error"] is None else str(entry["error"])
            flags = bool(entry["unwritten"]), bool(entry["changed_input"])
            outcomes.append(Outcome(decode(entry["answer"]), error, *flags))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "gave no readable answers."
    complete = len(outcomes) == most or (outcomes and outcomes[-1].error and len(outcomes) < most)
    return outcomes if complete else "did not answer every probe."
