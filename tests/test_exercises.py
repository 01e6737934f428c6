"""The exercises: right answers pass, blanks are blank, each known mistake is told in its own words; grading is fair."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

import qwen2vl_io.videos
import qwen2vl_mini
from exercises import book, checker, submissions, values
from exercises.__main__ import main
from exercises.book import Exercise, Mistake, Probe

REPOSITORY = Path(__file__).parent.parent
ALL = book.exercises()
each_exercise = pytest.mark.parametrize("exercise", ALL, ids=[exercise.number for exercise in ALL])


def solution(exercise: Exercise):
    return getattr(importlib.import_module(f"exercises.solutions.ex{exercise.chapter}"), exercise.function)


def mistakes_of(exercise: Exercise) -> tuple[Mistake, ...]:
    return book.part(exercise.chapter, "mistakes").MISTAKES[exercise.number]


def blank(exercise: Exercise):
    source = submissions.Source(Path("skeleton.py"), skeleton_file(exercise.chapter))
    return submissions.load(source, exercise)


def skeleton_file(chapter: str) -> str:
    return (book.FOLDER / f"ex{chapter}" / "skeleton.py").read_text(encoding="utf-8")


# ── Every exercise ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_enough():
    assert len(ALL) >= 40
    assert len({exercise.number for exercise in ALL}) == len({exercise.function for exercise in ALL}) == len(ALL)
    assert {exercise.kind for exercise in ALL} == set("PIFE")
    assert all(any(exercise.core for exercise in book.exercises(chapter)) for chapter in book.chapters())


@each_exercise
def test_the_solution_passes(exercise):
    verdict = checker.verdict(solution(exercise), exercise, seed=7)
    assert verdict.passed, verdict.message


@each_exercise
def test_the_blank_is_not_attempted(exercise):
    verdict = checker.verdict(blank(exercise), exercise)
    assert (verdict.status, verdict.message) == ("not attempted", f"{exercise.number} · not attempted.")


@each_exercise
def test_each_mistake_gets_its_own_sentence(exercise):
    assert len(mistakes_of(exercise)) >= 2
    probes = exercise.all_probes()
    for mistake in mistakes_of(exercise):
        verdict = checker.judge(exercise, probes, checker.run(mistake.function, exercise, probes))
        assert verdict.status == "failed"
        assert verdict.mistake is mistake, f"{mistake.function.__name__}: {verdict.message}"
        told = [other.sentence for each in ALL for other in mistakes_of(each) if other.sentence in verdict.message]
        assert told == [mistake.sentence]


def test_no_two_mistakes_share_a_sentence():
    sentences = [mistake.sentence for exercise in ALL for mistake in mistakes_of(exercise)]
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence) > 40 for sentence in sentences)


@each_exercise
def test_no_function_of_the_file_is_an_answer(exercise):
    """Neither under another name, which is refused unseen, nor called by a function of the student's."""
    for name, function in vars(qwen2vl_mini).items():
        if not inspect.isfunction(function) or function.__module__ != "qwen2vl_mini":
            continue
        assert checker.verdict(function, exercise, "def f(*args): ...").status == "failed"

        def wrapped(*args, function=function):
            return function(*args)

        probes = list(exercise.probes)
        assert not checker.judge(exercise, probes, checker.run(wrapped, exercise, probes)).passed, name


@each_exercise
def test_its_parts_are_complete(exercise):
    assert len(set(exercise.hints)) == 3 and all(len(hint) > 20 for hint in exercise.hints)
    assert 1 <= exercise.stars <= 3 and exercise.minutes > 0 and exercise.kind in book.KINDS
    source = submissions.Source(Path("skeleton.py"), skeleton_file(exercise.chapter)).defines(exercise)
    assert len(inspect.getdoc(blank(exercise)) or "") > 60
    assert "->" in source.split(":\n")[0] or source.startswith("class ")  # typed


# ── What is said, and in which order ────────────────────────────────────────────────────────────────────────────────

TABLE = torch.arange(6).view(2, 3)
DOUBLE = Exercise(
    number="1.2",
    title="Twice as much",
    function="patch_of_row",
    kind="I",
    stars=1,
    minutes=1,
    expected=lambda x, table: table * x,
    probes=(Probe((1, TABLE)), Probe((3, TABLE))),
    hints=("one", "two", "three"),
)


@pytest.fixture
def mistakes(monkeypatch):
    def plus(x, table):
        return table + x

    known = (Mistake(plus, "You add instead of multiplying."),)
    monkeypatch.setitem(book.part("01", "mistakes").MISTAKES, "1.2", known)


def said(function, source=None) -> str:
    return checker.verdict(function, DOUBLE, source).message


def fails(x, table):
    return table / "a"


def changes(x, table):
    table *= x
    return table


def nothing_yet(x, table):
    raise NotImplementedError


def leaves(x, table):
    sys.exit(0)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (nothing_yet, "1.2 · not attempted."),
        (fails, "stopped with TypeError: "),
        (fails, ', in your line `return table / "a"`.'),
        (leaves, "stopped with SystemExit: 0, in your line `sys.exit(0)`."),
        (lambda x, table: None, "patch_of_row(1, tensor([[0, 1, 2], [3, 4, 5]])) gave None. Is a `return` missing?"),
        (lambda x, table: "six", "gave a text, 'six', expected a tensor"),
        (lambda x, table: [1, 2], "gave a list or tuple, [1, 2], expected a tensor"),
        (lambda x, table: table.T * x, "gave a tensor of shape (3, 2), expected (2, 3)"),
        (lambda x, table: table * float(x), "gave a tensor of torch.float32, expected torch.int64"),
        (changes, "changed its input"),
        (lambda x, table: table + x, "You add instead of multiplying."),
        (lambda x, table: table * x + (x == 3), "patch_of_row(3, tensor([[0, 1, 2], [3, 4, 5]])) is not as expected."),
        (lambda x, table: table * x, "1.2 ✓ Twice as much: right on 2 of 2 probes."),
    ],
)
def test_what_the_checker_says(mistakes, answer, sentence):
    assert sentence in said(answer)


def test_a_grid_is_drawn_beside_the_right_one(mistakes):
    lines = said(lambda x, table: table * x + (x == 3) * (table == 4)).splitlines()
    assert lines[1].split() == ["yours", "expected"]
    assert lines[2].split() == ["0", "3", "6", "0", "3", "6"]
    assert lines[3].split() == ["9", "13*", "15", "9", "12", "15"]


def test_inputs_are_given_as_copies(mistakes):
    before = TABLE.clone()
    said(changes)
    assert torch.equal(TABLE, before)


def test_a_prediction_is_for_the_head():
    exercise = book.find("1.1")
    message = checker.verdict(lambda: None, exercise, "def six_sizes():\n    return [f(1)]").message
    assert "calls something" in message
    wrong = [(56, 56), (56, 56), (112, 196), (728, 1288), (980, 1008), (56, 56)]
    message = checker.verdict(lambda: wrong, exercise, "def six_sizes():\n    return []").message
    assert "5 of 6 are right; 5 is not." in message and "980" not in message  # the right ones are not told


def test_blocked_functions_refuse_under_any_name():
    resize = qwen2vl_mini.smart_resize
    with checker.blocked(("smart_resize",)):
        with pytest.raises(checker.Blocked):
            resize(70, 70)
    assert resize(70, 70) == (56, 56)
    pick = qwen2vl_io.videos.frame_indices
    with checker.blocked(("smart_resize", "qwen2vl_io.videos:frame_indices")):
        with pytest.raises(checker.Blocked):
            pick(75, 6)
    assert pick(75, 6) == [0, 15, 30, 44, 59, 74]


def test_check_in_a_notebook(capsys):
    checker.check(len)
    assert "No exercise asks for a function called len" in capsys.readouterr().out
    checker.hint("1.2", 3)
    assert capsys.readouterr().out.startswith("1.2, hint 3 of 3: ")
    checker.hint("1.2", 4)
    assert capsys.readouterr().out == "Hints have the levels 1, 2 and 3, not 4.\n"
    checker.hint("0.1")
    assert "There is no exercise '0.1'" in capsys.readouterr().out


ANSWERS = [
    *(None, True, 3, 2.5, float("inf"), "text", (1, 2), [1, [2.0]], {"a": (1,), 2: None}),
    *(torch.arange(6).view(2, 3), torch.rand(3), torch.tensor([True, False]), [torch.ones(2)]),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_answers_travel(answer):
    arrived = values.decode(json.loads(json.dumps(values.encode(answer))))
    assert values.equal(arrived, answer)
    assert values.type_name(arrived) == values.type_name(answer)


def test_what_is_equal():
    nan = torch.tensor([1.0, float("nan")])
    assert not values.equal(1, True) and not values.equal(1.0, 1) and not values.equal("1", 1)
    assert values.equal([1, 2], (1, 2)) and not values.equal([1, 2], [1, 2, 3])
    assert values.equal(1.0 + 1e-8, 1.0, 1e-6) and not values.equal(1.1, 1.0, 1e-6)
    assert not values.equal(nan, torch.ones(2)) and not values.equal(torch.ones(2), nan)
    assert values.equal(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]))
    assert values.equal(torch.ones(2).double(), torch.ones(2))  # the precision is free


# ── The folder work/ ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "WORK", tmp_path / "work")
    monkeypatch.setattr(submissions.start, "__defaults__", (tmp_path / "work",))
    return tmp_path / "work"


def with_answers(text: str, *functions: str) -> str:
    """A skeleton's text, with some functions added at its end."""
    return text + "\n\n" + "\n\n".join(functions)


PATCH_OF_ROW = inspect.getsource(solution(book.find("1.2")))


def test_start_next_check_all(work, capsys):
    assert main(["next"]) == 2
    assert capsys.readouterr().err == ("error: There is no folder work/ yet; `python -m exercises start` makes it.\n")
    assert main(["start"]) == 0
    assert (work / "exercises" / "ex01.py").read_text(encoding="utf-8") == skeleton_file("01")
    assert len(list((work / "notebooks").glob("*.ipynb"))) == len(book.chapters())
    capsys.readouterr()

    assert main(["next"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1.1 · Six target sizes") and "def six_sizes()" in out
    assert main(["check", "1.2"]) == 1
    assert capsys.readouterr().out == "1.2 · not attempted.\n"

    answers = work / "exercises" / "ex01.py"
    answers.write_text(with_answers(skeleton_file("01"), PATCH_OF_ROW), encoding="utf-8")
    assert main(["check", "1.2"]) == 0
    assert main(["start"]) == 0  # what is there stays
    assert "kept     work/exercises/ex01.py" in capsys.readouterr().out
    assert PATCH_OF_ROW in answers.read_text(encoding="utf-8")
    assert main(["all"]) == 0
    out = capsys.readouterr().out
    assert "✓ 1.2" in out and "· 1.1" in out and f"1 of {len(ALL)} done." in out


def test_an_answer_in_the_notebook_counts_too(work, capsys):
    main(["start"])
    path = next((work / "notebooks").glob("01*.ipynb"))
    content = nbformat.read(path, as_version=4)
    cell = next(cell for cell in content.cells if "exercise-1.2" in cell.metadata.get("tags", []))
    cell.source = "%time\n" + PATCH_OF_ROW
    nbformat.write(content, path)
    capsys.readouterr()
    assert main(["check", "1.2"]) == 0


def test_a_cell_that_is_not_python_costs_its_own_answer_only(work, capsys):
    main(["start"])
    path = next((work / "notebooks").glob("01*.ipynb"))
    content = nbformat.read(path, as_version=4)
    for cell in content.cells:
        if "exercise-1.2" in cell.metadata.get("tags", []):
            cell.source = PATCH_OF_ROW
        if "exercise-1.3" in cell.metadata.get("tags", []):
            cell.source = "def pixels_of_token(k, grid, size)\n    return"
    nbformat.write(content, path)
    capsys.readouterr()
    assert main(["check", "1.2"]) == 0
    assert "is not Python: expected ':'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def patch_of_row(i, grid)\n", "cannot be read as Python in line 1"),
        ("import nothing_of_that_name\ndef patch_of_row(i, grid):\n    return 1\n", "stopped with ModuleNotFound"),
        ("\x00", "cannot be read as Python"),
    ],
)
def test_a_broken_file_is_one_sentence(work, capsys, text, sentence):
    main(["start"])
    (work / "exercises" / "ex01.py").write_text(text, encoding="utf-8")
    for path in (work / "notebooks").glob("01*"):
        path.unlink()
    capsys.readouterr()
    assert main(["check", "1.2"]) == 1
    captured = capsys.readouterr()
    assert sentence in captured.out + captured.err and "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "77"], "There is no exercise '77'; there are 1.1, "),
        (["hint", "1.2", "9"], "Hints have the levels 1, 2 and 3, not 9."),
        (["grade", "nowhere"], "nowhere does not exist; give a folder, a notebook or a module with answers."),
        (["grade", "pyproject.toml"], "is neither a notebook (.ipynb) nor a module (.py)."),
        (["grade", "tests", "--only", "x"], "'x' names no chapters"),
        (["grade", "tests", "--only", "88"], "There are the chapters 01"),
        (["grade", "tests", "--seconds", "0"], "--seconds and --megabytes must be at least 1."),
        (["grade", "tests", "--only", "1-3000000"], "'1-3000000' names no chapters"),
        (["grade", "tests", "--json", "nowhere/at/all.json"], "is no place for a file"),
        (["handout", "tests"], "tests is not empty; give a new folder"),
        (["handout", "README.md"], "README.md is a file; give a new folder."),
    ],
)
def test_bad_arguments_are_one_sentence(work, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(REPOSITORY)
    work.mkdir()
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


# ── Handing out ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout") / "course"
    assert main(["handout", str(folder)]) == 0
    return folder


def test_a_handout_holds_no_solution(handed_out):
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in handed_out.rglob("*") if path.is_file()]
    lines = {line.strip() for text in texts for line in text.splitlines()}
    whole = "\n".join(texts)
    for file in (book.FOLDER / "solutions").glob("ex*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if len(line.strip()) >= 30:
                assert line.strip() not in lines and line.strip() not in whole, f"{file.name}: {line.strip()}"
    assert not list(handed_out.rglob("solutions")) and not list(handed_out.rglob("mistakes.py"))


def test_a_handout_checks_as_well(handed_out):
    """Without the solutions and the code of the mistakes; every mistake is still recognised."""
    script = f"""
import importlib, sys
from exercises import book, checker
assert book.__file__.startswith({str(handed_out)!r}), book.__file__
sys.path.append({str(REPOSITORY)!r})
count = 0
for exercise in book.exercises():
    path = {str(REPOSITORY)!r} + f"/exercises/ex{{exercise.chapter}}/mistakes.py"
    code = open(path, encoding="utf-8").read()
    space = {{"__name__": "mistakes"}}
    exec(compile(code, path, "exec"), space)
    probes = exercise.all_probes()
    for mistake in space["MISTAKES"][exercise.number]:
        verdict = checker.judge(exercise, probes, checker.run(mistake.function, exercise, probes))
        assert verdict.mistake and verdict.mistake.sentence == mistake.sentence, (exercise.number, verdict.message)
        count += 1
print(count)
"""
    environment = os.environ | {"PYTHONPATH": str(handed_out)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=handed_out, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == sum(len(mistakes_of(exercise)) for exercise in ALL)


def test_a_handout_has_all_that_its_notebooks_import(handed_out):
    """In a folder of its own, every import of the notebooks and of `python -m tests.environment` finds its file."""
    found = set()
    for notebook in (handed_out / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(notebook, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found |= set(re.findall(r"^(?:from|import) ((?:tests|notebooks|tiny_world|qwen2vl\w*)[\w.]*)", code, re.M))
    names = sorted(found | {"notebooks.play", "tests.official", "tests.layer_debugger", "tests.environment"})
    script = f"import importlib\nfor name in {names}:\n    print(importlib.import_module(name).__file__)"
    environment = os.environ | {"PYTHONPATH": str(handed_out)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=handed_out, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(handed_out)) for line in done.stdout.splitlines()), done.stdout


def test_some_chapters_only(tmp_path):
    assert main(["handout", str(tmp_path / "some"), "01"]) == 0
    assert [path.name for path in (tmp_path / "some" / "exercises").glob("ex*")] == ["ex01"]
    assert [path.name[:2] for path in (tmp_path / "some" / "notebooks").glob("*.ipynb")] == ["01"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "some")}
    for command in (["start"], ["check", "1.1"]):
        done = subprocess.run(
            [sys.executable, "-m", "exercises", *command],
            cwd=tmp_path / "some",
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
    assert (done.returncode, done.stdout) == (1, "1.1 · not attempted.\n")


# ── The instructor's page ───────────────────────────────────────────────────────────────────────────────────────────

PAGE = (book.FOLDER / "README.md").read_text(encoding="utf-8")


@each_exercise
def test_the_page_lists_each_exercise(exercise):
    core = " ●" if exercise.core else ""
    stars = "★" * exercise.stars
    row = f"| {exercise.number}{core} | {exercise.title} | {exercise.kind} | {stars} | {exercise.minutes} |"
    (line,) = [line for line in PAGE.splitlines() if line.startswith(row)]
    assert line.count(" · ") == len(mistakes_of(exercise)) - 1


def test_the_page_has_the_hours():
    assert f"Nine notebooks and {len(ALL)} exercises" in PAGE
    total = sum(exercise.minutes for exercise in ALL)
    core = sum(exercise.minutes for exercise in ALL if exercise.core)
    assert f" | {total} | {core} |" in PAGE
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (book.FOLDER / link).exists(), link


def test_the_commands_of_the_page_exist():
    for line in re.findall(r"^python -m exercises (\S+)(.*)$", PAGE, re.M):
        done = subprocess.run(
            [sys.executable, "-m", "exercises", line[0], "--help"], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0
        for option in re.findall(r"--[a-z]+", line[1]):
            assert option in done.stdout


# ── Grading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def grade(submission: Path, folder: Path, *more: str) -> dict:
    file = folder / "results.json"
    code = main(["grade", str(submission), "--json", str(file), *more])
    results = json.loads(file.read_text(encoding="utf-8"))
    for test in results["tests"]:
        assert set(test) == {"name", "score", "max_score", "status", "output"}
        assert test["status"] in ("passed", "failed") and 0 <= test["score"] <= test["max_score"]
    assert code == (0 if all(test["status"] == "passed" for test in results["tests"]) else 1)
    return results


def score(results: dict) -> int:
    return sum(test["score"] for test in results["tests"])


def test_a_module_and_a_notebook_get_the_same_for_every_seed(tmp_path):
    solutions = (book.FOLDER / "solutions" / "ex01.py").read_text(encoding="utf-8")
    folder = tmp_path / "handed_in"
    folder.mkdir()
    (folder / "ex01.py").write_text(solutions.replace("def size_that_breaks", "def forgotten"), encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell((folder / "ex01.py").read_text("utf-8"))])
    nbformat.write(notebook, tmp_path / "answers.ipynb")
    for seed in ("1", "2", "3"):
        for place in (folder, tmp_path / "answers.ipynb"):
            results = grade(place, tmp_path, "--only", "01", "--seed", seed, "--seconds", "300")
            assert [test["status"] for test in results["tests"]] == ["passed"] * 4 + ["failed"]
            assert score(results) == 1 + 2 + 2 + 2


HOSTILE = {
    "an endless loop": "    while True: pass",
    "the end of the process": "    import os; os._exit(0)",
    "sys.exit": "    import sys; sys.exit(0)",
    "a memory hog": "    return [bytearray(2**28) for _ in range(100)]",
    "a forged result": """
    import json, os, sys
    sizes = [[56, 56]] * 6
    fake = [{"answer": True, "error": None, "unwritten": False, "changed_input": False, "status": "passed"}] * 26
    for place in (sys.argv[-2], "results.json", "/autograder/results/results.json"):
        try:
            open(place, "w").write(json.dumps(fake))
        except OSError:
            pass
    os._exit(0)""",
    "a deep answer": """
    answer = []
    for _ in range(100000):
        answer = [answer]
    return answer""",
    "an object": "    return open(__file__) if False else object()",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_who_does_not_play_fair_scores_nothing(tmp_path, body):
    folder = tmp_path / "handed_in"
    folder.mkdir()
    answers = "\n\n".join([f"def patch_of_row(i, grid):\n{body}\n", inspect.getsource(solution(book.find("1.3")))])
    (folder / "answers.py").write_text(answers, encoding="utf-8")
    results = grade(folder, tmp_path, "--only", "01", "--seconds", "30", "--megabytes", "500")
    assert [test["score"] for test in results["tests"]] == [0, 0, 2, 0, 0]  # the honest answer beside it counts
    assert "1.2 ✗" in results["tests"][1]["output"]


@pytest.mark.parametrize(
    "line",
    [
        "from exercises.ex01.probes import patch_in_order",
        "from exercises.solutions.ex01 import patch_of_row as theirs",
        "import exercises.book",
    ],
)
def test_the_checkers_own_answers_score_nothing(tmp_path, line):
    name = line.split()[-1].split(".")[-1]
    text = f"{line}\ndef patch_of_row(i, grid):\n    return {name}(i, grid)\n"
    (tmp_path / "answers.py").write_text(text, encoding="utf-8")
    results = grade(tmp_path / "answers.py", tmp_path, "--only", "01")
    assert results["tests"][1]["score"] == 0
    assert results["tests"][1]["output"] == "1.2 ✗ answers.py imports the checker's own answers."


def test_solutions_may_be_handed_in():
    for file in sorted((book.FOLDER / "solutions").glob("ex*.py")):
        assert not submissions.read_source(file).reads_the_checker(), file.name


def test_a_submission_that_cannot_be_read_is_graded_all_the_same(tmp_path):
    folder = tmp_path / "handed_in"
    folder.mkdir()
    (folder / "ex01.py").write_text("def patch_of_row(:\n", encoding="utf-8")
    (folder / "more.ipynb").write_text("{}", encoding="utf-8")
    results = grade(folder, tmp_path, "--only", "01")
    assert score(results) == 0
    assert "cannot be read as Python in line 1" in results["output"] and "is not a notebook" in results["output"]


TOO_DEEP = {
    "a long sum": "x = " + " + ".join(["1"] * 3000),
    "many signs": "x = " + "-" * 50_000 + "1",
    "many brackets": "x = " + "(" * 50_000,
    "many attributes": "x = a" + ".b" * 5000,
    "a null byte": "x = 1\0",
}


@pytest.mark.parametrize("code", TOO_DEEP.values(), ids=TOO_DEEP)
def test_code_that_python_cannot_take_does_not_end_grading(tmp_path, code):
    """The other file counts, and so do the other cells of a notebook."""
    folder = tmp_path / "handed_in"
    folder.mkdir()
    (folder / "a.py").write_text(code, encoding="utf-8")
    cells = [code, "x = {[1]: 2}", inspect.getsource(solution(book.find("1.2")))]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "b.ipynb")
    sources, problems = submissions.sources_in(folder)
    assert [source.path.name for source in sources] == ["b.ipynb"]
    assert len(problems) == 2 and "a.py cannot be read as Python" in problems[0] and "code cell 1" in problems[1]
    assert sources[0].defines(book.find("1.2"))


def test_an_answer_that_is_deep_but_can_be_read_is_no_skeleton():
    source = "def patch_of_row(i, grid):\n    return " + " + ".join(["1"] * 900)
    assert not checker.is_skeleton(source, book.find("1.2"))


@each_exercise
def test_none_and_nonsense_are_told_as_such(exercise):
    """In every exercise, also where the checker looks at an answer in a way of its own."""
    probes = list(exercise.probes)

    def forgets(*args):
        return None

    message = checker.judge(exercise, probes, checker.run(forgets, exercise, probes)).message
    assert "gave None. Is a `return` missing?" in message

    class Strange:
        def __repr__(self):
            return "<strange>"

    def strange(*args):
        return Strange()

    message = checker.judge(exercise, probes, checker.run(strange, exercise, probes)).message
    assert message.startswith(f"{exercise.number} ✗ ") and "✓" not in message


def test_gradescope_runs_it(tmp_path):
    """The two scripts beside the instructor's page, in a folder like Gradescope's."""
    scripts = book.FOLDER / "gradescope"
    for name in ("submission", "results", "source"):
        (tmp_path / name).mkdir()
    shutil.copyfile(scripts / "run_autograder", tmp_path / "run_autograder")
    (tmp_path / "submission" / "ex01.py").write_text(PATCH_OF_ROW, encoding="utf-8")
    environment = os.environ | {
        "AUTOGRADER": str(tmp_path),
        "COURSE": str(REPOSITORY),
        "CHAPTERS": "01",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", str(tmp_path / "run_autograder")], env=environment, capture_output=True, text=True)
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr  # Gradescope wants 0 whatever the score
    assert score(results) == 2
    assert subprocess.run(["bash", "-n", str(scripts / "setup.sh")]).returncode == 0
