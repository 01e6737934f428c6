"""Is an answer right, and if not, what helps? One sentence or two, in the order in which they help.

Not attempted → an exception, with the student's own line → None → the type → shape or dtype → a changed input → a
mistake that is known → the smallest probe that fails, expected beside got.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pkgutil import resolve_name

import torch

from exercises import book
from exercises.book import Exercise, Mistake, Probe
from exercises.values import decode, encode, equal, plain, shown, side_by_side, type_problem


@dataclass
class Outcome:
    """What a function did with one probe: its answer, or the sentence about its exception."""

    answer: object = None
    error: str | None = None
    unwritten: bool = False  # it raised NotImplementedError, as skeletons do
    changed_input: bool = False


@dataclass
class Verdict:
    """`status`: "passed", "failed" or "not attempted"."""

    status: str
    message: str
    mistake: Mistake | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        return self.status == "passed"


# ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Blocked(Exception):
    """An answer called a function that does the exercise's work."""


def refuse(*args, **kwargs):
    """Stands in for a blocked function; its code runs in the other's module, so it imports what it needs."""
    raise __import__("exercises.checker", fromlist=["Blocked"]).Blocked


@contextmanager
def blocked(names: tuple[str, ...]) -> Iterator[None]:
    """While this lasts, these functions refuse to run, under whatever name they were imported.

    They are of qwen2vl_mini ("smart_resize", "KVCache.append") or of the module named ("qwen2vl_io.videos:cut").
    """
    functions = [resolve_name(name if ":" in name else f"qwen2vl_mini:{name}") for name in names]
    kept = [function.__code__ for function in functions]
    try:
        for function in functions:
            function.__code__ = refuse.__code__
        yield
    finally:
        for function, code in zip(functions, kept):
            function.__code__ = code


def run(function: Callable, exercise: Exercise, probes: list[Probe]) -> list[Outcome]:
    """Each probe's outcome; the first exception ends it, since it is what will be told."""
    outcomes = []
    for probe in probes:
        outcome = run_one(function, exercise, probe)
        outcomes.append(outcome)
        if outcome.error:
            break
    return outcomes


def run_one(function: Callable, exercise: Exercise, probe: Probe) -> Outcome:
    """One call, on copies of the arguments."""
    given = copy.deepcopy(probe.args)
    torch.manual_seed(0)
    try:
        with blocked(exercise.blocked):
            answer = function(*given)
        changed = is_changed(list(given), list(probe.args))
    except NotImplementedError as error:
        return Outcome(error=describe(error, function), unwritten=True)
    except Blocked:
        names = " or ".join(name.split(":")[-1] for name in exercise.blocked)
        return Outcome(error=f"calls {names}, which does this exercise's work: write it yourself.")
    except (Exception, SystemExit) as error:
        return Outcome(error=describe(error, function))
    if answer is None:
        return Outcome(None)
    try:
        return Outcome(plain(exercise.view(answer, *copy.deepcopy(probe.args))), changed_input=changed)
    except (Exception, SystemExit) as error:
        said = describe(error, function)
        own = ", in your line" in said  # the view ran code of the answer, such as a module's forward
        return Outcome(error=said if own else f"gave {shown(answer)}, which is not what is asked for: it {said}")


def is_changed(given: list, original: list) -> bool:
    """Whether a call changed its arguments, as far as they can be compared: an object is not even equal to its copy."""
    pairs = [(plain(a), plain(b)) for a, b in zip(given, original)]
    return any(not equal(a, b) and equal(copy.deepcopy(b), b) for a, b in pairs)


def describe(error: BaseException, function: Callable) -> str:
    """An exception in one sentence, with the last line of the student's own code."""
    code = getattr(function, "__code__", None)
    own_file = code.co_filename if code else None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own_file]
    where = f", in your line `{frames[-1].line}`" if frames and frames[-1].line else ""
    text = " ".join(str(error).split())
    what = type(error).__name__ + (f": {text}" if text else "")
    what = what if len(what) <= 300 else what[:299] + "…"
    return f"stopped with {what}{where}".rstrip(".") + "."


# ── Judging ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(code: str) -> ast.Module:
    """The syntax tree. SyntaxError, too, for what Python cannot take at all: null bytes, a nesting without end."""
    try:
        return ast.parse(code)
    except (RecursionError, MemoryError):
        raise SyntaxError("it is nested too deeply") from None
    except ValueError as error:
        raise SyntaxError(str(error)) from None


def definitions(code: str, tree: ast.Module) -> dict[str, str]:
    """The functions and classes of a code by their names; of two with one name the last counts, as in Python."""
    nodes = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.get_source_segment(code, node) for node in nodes}


def without_docstrings(source: str) -> str | None:
    """The code alone, as its syntax tree; None if it cannot be read."""
    try:
        tree = parse(textwrap.dedent(source))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        return ast.dump(tree)
    except (SyntaxError, RecursionError):
        return None


def own_source(function: Callable) -> str | None:
    """The source of a student's function, where Python still has it."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return None


def is_skeleton(source: str | None, exercise: Exercise) -> bool:
    """Whether the code is still the one that the exercise begins with."""
    if source is None:
        return False
    skeleton = book.skeleton(exercise)
    blank = definitions(skeleton, parse(skeleton))[exercise.function]
    return without_docstrings(source) == without_docstrings(blank)


def calls_something(source: str | None) -> bool:
    """Whether there is a call in the code."""
    try:
        tree = parse(textwrap.dedent(source or ""))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def call_text(exercise: Exercise, probe: Probe) -> str:
    """The call as a student would write it."""
    return probe.shown or f"{exercise.function}({', '.join(map(shown, probe.args))})"


def known_mistakes(exercise: Exercise) -> Iterator[tuple[Mistake, list]]:
    """Each recognised mistake, and what it answers on the chosen probes.

    In a handout the code of the mistakes is missing, and their answers are stored beside.
    """
    stored = book.FOLDER / f"ex{exercise.chapter}" / "mistakes.json"
    if stored.exists():
        for entry in json.loads(stored.read_text(encoding="utf-8")).get(exercise.number, []):
            yield Mistake(refuse, entry["sentence"]), [decode(answer) for answer in entry["answers"]]
        return
    for mistake in book.part(exercise.chapter, "mistakes").MISTAKES.get(exercise.number, ()):
        yield mistake, mistake_answers(mistake, exercise)


def mistake_answers(mistake: Mistake, exercise: Exercise) -> list:
    """What a wrong version answers on the chosen probes."""
    outcomes = [run_one(mistake.function, exercise, probe) for probe in exercise.probes]
    broken = [outcome.error for outcome in outcomes if outcome.error]
    if broken:
        raise RuntimeError(f"A mistake of {exercise.number} raises instead of answering: {broken[0]}")
    return [outcome.answer for outcome in outcomes]


def stored_mistakes(chapter: str) -> str:
    """The content of a handout's mistakes.json."""
    content = {}
    for exercise in book.exercises(chapter):
        found = known_mistakes(exercise)
        content[exercise.number] = [
            {"sentence": mistake.sentence, "answers": [encode(answer) for answer in answers]}
            for mistake, answers in found
        ]
    return json.dumps(content, ensure_ascii=False)


def right_answers(exercise: Exercise, probes: list[Probe]) -> list:
    """The expected view of each probe."""
    answers = []
    for probe in probes:
        torch.manual_seed(0)
        answers.append(plain(exercise.expected(*copy.deepcopy(probe.args))))
    return answers


def judge(exercise: Exercise, probes: list[Probe], outcomes: list[Outcome]) -> Verdict:
    """What to say about the outcomes of `run`; `probes` begin with the chosen ones."""
    last, last_probe = outcomes[-1], probes[len(outcomes) - 1]
    if last.unwritten:
        return not_attempted(exercise)
    if last.error:
        return failed(exercise, f"{call_text(exercise, last_probe)} {last.error}")
    for probe, outcome in zip(probes, outcomes):
        if outcome.answer is None:
            return failed(exercise, f"{call_text(exercise, probe)} gave None. Is a `return` missing?")

    expected = right_answers(exercise, probes)
    answers = [outcome.answer for outcome in outcomes]
    mistake = recognised(exercise, answers, expected)
    if mistake is None:
        for probe, answer, right in zip(probes, answers, expected):
            problem = type_problem(answer, right)
            if problem:
                return failed(exercise, f"{call_text(exercise, probe)} {problem}.")
    for probe, outcome in zip(probes, outcomes):
        if outcome.changed_input:
            text = "changed its input: whoever called it still needs it. Work on a copy."
            return failed(exercise, f"{call_text(exercise, probe)} {text}")

    wrong = [i for i, (a, b) in enumerate(zip(answers, expected)) if not equal(a, b, exercise.tolerance)]
    if wrong:
        return wrong_answer(exercise, probes[wrong[0]], answers[wrong[0]], expected[wrong[0]], mistake)
    return Verdict("passed", f"{exercise.number} ✓ {exercise.title}: right on {len(probes)} of {len(probes)} probes.")


def recognised(exercise: Exercise, answers: list, expected: list) -> Mistake | None:
    """The mistake with which the answers agree on every chosen probe, if they are wrong and there is one."""
    chosen = len(exercise.probes)
    if all(equal(a, b, exercise.tolerance) for a, b in zip(answers[:chosen], expected)):
        return None
    for mistake, theirs in known_mistakes(exercise):
        if all(equal(a, b, exercise.tolerance) for a, b in zip(answers[:chosen], theirs)):
            return mistake
    return None


def wrong_answer(exercise: Exercise, probe: Probe, got, expected, mistake: Mistake | None) -> Verdict:
    """The probe that failed, expected beside got, and the sentence of a known mistake."""
    helps = f" {mistake.sentence}" if mistake else ""
    if exercise.by_hand:
        return failed(exercise, which_are_wrong(got, expected, exercise.tolerance) + helps, mistake)
    drawn = side_by_side(got, expected)
    if drawn:
        return failed(exercise, f"{call_text(exercise, probe)} is not as expected.{helps}", mistake, drawn)
    text = f"{call_text(exercise, probe)} gave {shown(got)}, expected {shown(expected)}."
    if exercise.view is not book.as_it_is and isinstance(expected, str):
        text = f"{call_text(exercise, probe)}: {got}; wanted: {expected}."
    elif isinstance(expected, dict):
        text = f"{call_text(exercise, probe)}: {first_difference(got, expected, exercise.tolerance)}."
    elif shown(got) == shown(expected):
        text = f"{call_text(exercise, probe)} gave other numbers than expected ({furthest(got, expected)})."
    return failed(exercise, text + helps, mistake)


def first_difference(got: dict, expected: dict, tolerance: float) -> str:
    """The first entry in which two dicts differ."""
    missing = object()
    for key, right in expected.items():
        theirs = got.get(key, missing)
        if theirs is missing:
            return f"nothing for {key!r}, expected {shown(right)}"
        if not equal(theirs, right, tolerance):
            return f"{key}: {shown(theirs)}, expected {shown(right)}"
    return f"more than is asked for: {', '.join(map(repr, got.keys() - expected.keys()))}"


def furthest(got, expected) -> str:
    """How far two answers that look alike are from each other."""
    if isinstance(expected, torch.Tensor):
        difference = (got.double() - expected.double()).abs()
        place = tuple(torch.unravel_index(difference.argmax(), difference.shape))
        where = ", ".join(str(int(i)) for i in place)
        return f"the largest difference is {float(difference.max()):.3g}, at [{where}]"
    return "they differ in what is too long to show"


def which_are_wrong(got, expected, tolerance: float) -> str:
    """Which of several predictions are wrong, without the right ones."""
    if isinstance(expected, dict):
        wrong = [str(key) for key in expected if not equal(got.get(key), expected[key], tolerance)]
        total = len(expected)
    elif isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            return f"Your answer has {len(got)} entries, {len(expected)} are asked for."
        wrong = [str(i + 1) for i, (a, b) in enumerate(zip(got, expected)) if not equal(a, b, tolerance)]
        total = len(expected)
    else:
        return "That is not it."
    numbers = wrong[0] if len(wrong) == 1 else ", ".join(wrong[:-1]) + " and " + wrong[-1]
    verb = "is" if len(wrong) == 1 else "are"
    return f"{total - len(wrong)} of {total} are right; {numbers} {verb} not."


def not_attempted(exercise: Exercise) -> Verdict:
    return Verdict("not attempted", f"{exercise.number} · not attempted.")


def failed(exercise: Exercise, text: str, mistake: Mistake | None = None, below: str = "") -> Verdict:
    message = f'{exercise.number} ✗ {text} hint("{exercise.number}") for more.'
    return Verdict("failed", f"{message}\n{below}".rstrip(), mistake)


def verdict(function: Callable, exercise: Exercise, source: str | None = None, seed: int = 0) -> Verdict:
    """The whole check of a function, in this process."""
    source = source or own_source(function)
    early = before_running(function, exercise, source)
    if early:
        return early
    probes = exercise.all_probes(seed)
    return judge(exercise, probes, run(function, exercise, probes))


def before_running(function: Callable | None, exercise: Exercise, source: str | None) -> Verdict | None:
    """What can be said without running anything."""
    if is_skeleton(source, exercise):
        return not_attempted(exercise)
    home = (getattr(function, "__module__", None) or "").split(".")[0]
    if home in ("qwen2vl_mini", "qwen2vl_io", "weights_loader", "transformers", "torch"):
        return failed(exercise, f"{exercise.function} is a function of {home} under another name: write your own.")
    if exercise.by_hand and calls_something(source):
        return failed(exercise, f"{exercise.function} calls something. This one is for your head: return the numbers.")
    return None


# ── In a notebook ───────────────────────────────────────────────────────────────────────────────────────────────────


def check(function: Callable) -> None:
    """Say whether a function of your notebook answers its exercise; it is found by its name."""
    try:
        exercise = book.find_by_function(getattr(function, "__name__", str(function)))
    except ValueError as error:
        print(error)
        return
    print(verdict(function, exercise).message)


def hint(number: str, level: int = 1) -> None:
    """Print the first, second or third hint of an exercise."""
    try:
        print(hint_text(book.find(str(number)), level))
    except ValueError as error:
        print(error)


def hint_text(exercise: Exercise, level: int) -> str:
    """A hint, and how to get the next."""
    if level not in (1, 2, 3):
        raise ValueError(f"Hints have the levels 1, 2 and 3, not {level}.")
    more = f'\nhint("{exercise.number}", {level + 1}) says more.' if level < 3 else ""
    return f"{exercise.number}, hint {level} of 3: {exercise.hints[level - 1]}{more}"
