"""Every input of tests/hostile.py ends in one clear sentence or a right answer, soon and in little memory."""

import re
import subprocess
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("only Linux tells the time and memory that one input took", allow_module_level=True)

from tests.hostile import PLANTED, ROOT, Outcome, Runner, corpus, problems, summary


@pytest.fixture(scope="module")
def runner():
    runner = Runner()
    yield runner
    runner.stop()


@pytest.mark.parametrize("name", corpus())
def test_pitfall_29_hostile_input(runner, name):
    outcome = runner.run(name)
    assert not problems(corpus()[name], outcome), problems(corpus()[name], outcome)


# --- would a failure be noticed? --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hang", "hang"),
        ("memory", "12.. MB"),
        ("runaway", "MemoryError"),
        ("KeyError", "KeyError: 'image'"),
        ("OSError", "OSError"),
        ("UnicodeError", "UnicodeEncodeError"),
        ("crash", "crash: the worker ended itself with 3"),
        ("two lines", "more than one line"),
        ("no end", "has 1001 characters"),
        ("too short", "has 10 characters"),
        ("another problem", "does not say 'clip'"),
        ("answered", "answered with an answer"),
        ("refused", "refused: The picture is empty"),
        ("stdout", "wrote to stdout: 'hello"),
        ("stderr", "wrote to stderr: 'hello"),
        ("litter", "left behind: left-over"),
        ("open file", "left behind: .*a$"),
    ],
)
def test_a_planted_failure_is_detected(runner, name, hint):
    outcome = runner.run(name, seconds=0.5 if name == "hang" else None)
    assert len(found := problems(PLANTED[name], outcome)) == 1
    assert re.search(hint, found[0]), found


def test_after_a_hang_a_crash_and_a_fine_case_the_next_one_is_fine(runner):
    for name in ("crash", "fine", "KeyError", "fine"):
        outcome = runner.run(name)
    assert not problems(PLANTED["fine"], outcome) and outcome.answer == "an answer"


def test_the_corpus_is_large_and_the_same_each_time():
    cases = corpus()
    kinds = {case.kind for case in cases.values()}
    assert len(cases) >= 300 and all(sum(case.kind == kind for case in cases.values()) >= 25 for kind in kinds)
    listing = "from tests.hostile import corpus; print(*corpus(), sep='\\n')"
    again = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, check=True)
    assert again.stdout.decode("utf-8").splitlines() == list(cases)


def test_damage_is_the_same_each_time(tmp_path):
    for name, case in corpus().items():
        if case.kind == "damaged pictures":
            assert case.make(tmp_path) == case.make(tmp_path), name


def test_the_summary_counts_what_happened():
    refused = next(
        name for name, case in corpus().items() if re.search(case.says, "this picture is empty; no message.")
    )
    answered = next(name for name, case in corpus().items() if case.expect == "answered")
    outcomes = {
        refused: Outcome(error="ValueError", sentence="This picture is empty; no message.", seconds=2),
        answered: Outcome(answer="x", megabytes=5),
        next(name for name in corpus() if name not in (refused, answered)): Outcome(error="KeyError"),
    }
    rows = summary(outcomes)
    assert [sum(getattr(row, name) for row in rows) for name in ("refused", "answered", "failed")] == [1, 1, 1]
    assert max(row.seconds for row in rows) == 2 and max(row.megabytes for row in rows) == 5
