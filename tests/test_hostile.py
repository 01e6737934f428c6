"""Every input of tests/hostile ends in one clear sentence or a right answer, soon and in little memory."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("only Linux tells the time and memory that one input took", allow_module_level=True)

from tests.hostile import PLANTED, ROOT, Case, Outcome, Runner, WorkerError, by_name, corpus, problems, summary


@pytest.fixture(scope="module")
def shared_runner():
    runner = Runner()
    yield runner
    runner.stop()


@pytest.fixture
def runner(shared_runner):
    """One worker for all tests. If none starts, the first test fails with the cause, and the others are skipped."""
    if shared_runner.broken:
        pytest.skip("no worker starts: the first failure says why")
    return shared_runner


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


def test_a_worker_that_died_between_two_cases_is_replaced(runner):
    runner.run("fine")
    runner.process.kill()
    runner.process.wait()
    assert problems(PLANTED["fine"], runner.run("fine")) == ["crash: the worker ended itself with -9"]
    assert not problems(PLANTED["fine"], runner.run("fine"))


# --- a worker that does not start -------------------------------------------------------------------------------------

IN_A_WORKER = "import sys\nif 'tests.hostile.worker' in sys.orig_argv:\n    "


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Plants a statement that each worker runs first of all."""

    def plant(statement: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(IN_A_WORKER + statement)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return plant


@pytest.mark.parametrize(
    ("statement", "code", "hint"),
    [
        ("sys.modules['av'] = None", 1, "ModuleNotFoundError: import of av halted"),
        ("import resource; resource.setrlimit = None", 1, "TypeError: 'NoneType' object is not callable"),  # the end
        ("import os; os._exit(3)", 3, "nothing"),
    ],
)
def test_a_worker_that_does_not_start_says_why_once(plant, statement, code, hint):
    plant(statement)
    runner = Runner()
    with pytest.raises(WorkerError) as first:
        runner.run("fine")
    assert f"ended itself with {code} before it was ready" in str(first.value) and hint in str(first.value)
    assert runner.broken and runner.process is None and not os.path.exists(runner.folder.name)

    with pytest.raises(WorkerError) as second:
        runner.run("fine")
    assert str(second.value) == "No worker starts; the first error says why."


def test_a_worker_that_does_not_get_ready_is_ended(plant, monkeypatch):
    plant("import time; print('asleep', flush=True); time.sleep(60)")
    monkeypatch.setattr("tests.hostile.runner.SECONDS_TO_START", 1)
    runner = Runner()
    with pytest.raises(WorkerError, match=r"was not ready within 1 seconds. It says:\n\nasleep$"):
        runner.run("fine")
    assert runner.process is None


def test_if_no_worker_starts_one_test_fails_with_the_cause_and_the_others_are_skipped(plant):
    plant("sys.modules['av'] = None")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "injections", "tests/test_hostile.py"]
    tests = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    cases = sum(case.kind == "injections" for case in corpus().values())
    assert re.search(rf"= 1 failed, {cases - 1} skipped, \d+ deselected in ", tests.stdout), tests.stdout
    report = tests.stdout.partition("short test summary")[0]  # which on CI servers repeats whole messages
    assert report.count("import of av halted") == 1 and "BrokenPipe" not in tests.stdout


def test_the_command_says_why_no_worker_starts(plant):
    plant("sys.modules['av'] = None")
    command = [sys.executable, "-m", "tests.hostile", "--only", "injections"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.startswith("The worker that runs the cases ended itself with 1 before it was ready. It says:")
    assert run.stderr.count("import of av halted") == 1


# --- the corpus -------------------------------------------------------------------------------------------------------


def test_the_corpus_is_large_and_the_same_each_time():
    cases = corpus()
    kinds = {case.kind for case in cases.values()}
    assert len(cases) >= 300 and all(sum(case.kind == kind for case in cases.values()) >= 25 for kind in kinds)
    listing = "from tests.hostile import corpus; print(*corpus(), sep='\\n')"
    again = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, check=True)
    assert again.stdout.decode("utf-8").splitlines() == list(cases)


def test_no_name_depends_on_how_numpy_writes_its_numbers():
    names = list(corpus())
    assert "options · fps=nan" in names and "options · fps=np.float32(nan)" in names
    with np.printoptions(legacy="1.21"):  # in which np.float32(nan) is written as nan, as it is by numpy before 2.0
        assert list(corpus.__wrapped__()) == names


def test_two_cases_of_the_same_name_are_not_taken_for_one():
    case = Case("kind", "name", str, str, "")
    with pytest.raises(AssertionError, match="two cases have the name 'kind · name'"):
        by_name([case, case])


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
