"""What an exercise is, and where its parts are.

A chapter `exNN` is a folder with three files:
  skeleton.py   what a student gets: one cell (`# %% 1.2`) for each exercise, statement and types in the docstring
  probes.py     EXERCISES: title, right answers, the inputs that are tried, hints
  mistakes.py   MISTAKES: the wrong versions that people really write, each with the sentence that helps
Solutions stand apart, in `exercises/solutions/exNN.py`; nothing but the tests reads them.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = {"P": "predict by hand", "I": "the inverse", "F": "find the fault", "E": "extend"}


def as_it_is(answer, *args):
    """The view of most exercises: the answer itself is compared."""
    return answer


@dataclass(frozen=True)
class Probe:
    """One input that is tried; `why` names what it tells apart, `shown` replaces the text of the call."""

    args: tuple
    why: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Mistake:
    """A wrong version that people really write, and the sentence that helps whoever wrote it."""

    function: Callable
    sentence: str


@dataclass(frozen=True)
class Exercise:
    """One exercise; `function` is the name that a student's answer has.

    `expected(*args)` gives the right answer from qwen2vl_mini, transformers or stored arrays, never from a solution.
    Where many answers are right, or where the answer is an object, `view(answer, *args)` says what of it is compared.
    `probes` begin with the smallest; `random_probe(rng)` makes the arguments of further ones. `tolerance` is relative
    to the largest number of the right answer. While an answer runs, the functions named in `blocked` refuse to:
    those of qwen2vl_mini, or with a module's name in front ("qwen2vl_io.videos:cut").
    """

    number: str
    title: str
    function: str
    kind: str
    stars: int
    minutes: int
    expected: Callable
    probes: tuple[Probe, ...]
    hints: tuple[str, str, str]
    core: bool = False
    random_probe: Callable[[random.Random], tuple] | None = None
    view: Callable = as_it_is
    tolerance: float = 0.0
    blocked: tuple[str, ...] = ()

    @property
    def chapter(self) -> str:
        """The number of its notebook, in two digits."""
        return f"{int(self.number.split('.')[0]):02}"

    @property
    def by_hand(self) -> bool:
        """Whether numbers are asked for, and no code."""
        return self.kind == "P"

    def heading(self) -> str:
        """Number, title, and what it takes."""
        core = " ●" if self.core else ""
        stars = "★" * self.stars
        return f"{self.number}{core} · {self.title} · {stars} · {self.minutes} minutes · {KINDS[self.kind]}"

    def all_probes(self, seed: int = 0, more: int = 20) -> list[Probe]:
        """The chosen probes, and `more` random ones that follow from the seed."""
        probes = list(self.probes)
        if self.random_probe is not None:
            rng = random.Random(f"{self.number} {seed}")
            probes += [Probe(self.random_probe(rng)) for _ in range(more)]
        return probes


@cache
def chapters() -> tuple[str, ...]:
    """The chapters that are here, "01" to "09"."""
    return tuple(sorted(path.parent.name[2:] for path in FOLDER.glob("ex[0-9][0-9]/probes.py")))


def part(chapter: str, name: str):
    """A module of a chapter: its probes, its mistakes."""
    return importlib.import_module(f"exercises.ex{chapter}.{name}")


@cache
def exercises(chapter: str | None = None) -> tuple[Exercise, ...]:
    """The exercises of a chapter, or of all."""
    if chapter is None:
        return tuple(exercise for each in chapters() for exercise in exercises(each))
    return tuple(part(chapter, "probes").EXERCISES)


def find(number: str) -> Exercise:
    """The exercise with this number."""
    for exercise in exercises():
        if exercise.number == number:
            return exercise
    known = ", ".join(exercise.number for exercise in exercises())
    raise ValueError(f"There is no exercise {number!r}; there are {known}.")


def find_by_function(name: str) -> Exercise:
    """The exercise that asks for a function of this name."""
    for exercise in exercises():
        if exercise.function == name:
            return exercise
    raise ValueError(f"No exercise asks for a function called {name}; check(…) goes by the name in the skeleton.")


@cache
def skeleton_cells(chapter: str) -> dict[str, str]:
    """The cells of a skeleton by the exercise's number; "imports" is the first."""
    text = (FOLDER / f"ex{chapter}" / "skeleton.py").read_text(encoding="utf-8")
    pieces = re.split(r"^# %% (.+)$", text, flags=re.MULTILINE)
    return {name.strip(): code.strip() for name, code in zip(pieces[1::2], pieces[2::2])}


def skeleton(exercise: Exercise) -> str:
    """The code that a student starts from."""
    return skeleton_cells(exercise.chapter)[exercise.number]
