"""A hostile input, what became of it, and what is wrong with that."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 10  # the limits of one input; memory is counted on top of what the worker held before
MEGABYTES = 1000
SENTENCE_CHARS = 600


@dataclass(frozen=True)
class Case:
    """One input. `make` gets an empty folder and returns the input; `use` hands it to the product, and is measured."""

    kind: str
    name: str
    make: Callable[[Path], object]
    use: Callable[[object], object]
    says: str  # a regular expression that a refusal has to match
    expect: str = "refused"  # or "answered", or "either"


@dataclass
class Outcome:
    """What became of a case. Where there is no `answer`, `error` and `sentence` tell why."""

    answer: str | None = None
    error: str = ""  # the type of the exception; "hang" if the worker had to be killed, "crash" if it died
    sentence: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0  # the peak, above what was held before
    stdout: str = ""
    stderr: str = ""
    leftovers: list[str] = field(default_factory=list)  # temporary files, and files that are still open


def problems(case: Case, outcome: Outcome) -> list[str]:
    """Everything that is wrong with an outcome; an empty list if all is well."""
    found = []
    if outcome.answer is None:
        found += refusal_problems(case, outcome)
    elif case.expect == "refused":
        found.append(f"answered with {outcome.answer[:200]}")

    if outcome.seconds > SECONDS:
        found.append(f"{outcome.seconds:.1f} s")
    if outcome.megabytes > MEGABYTES:
        found.append(f"{outcome.megabytes:.0f} MB")

    if outcome.stdout:
        found.append(f"wrote to stdout: {outcome.stdout[:200]!r}")
    if outcome.stderr:
        found.append(f"wrote to stderr: {outcome.stderr[:200]!r}")
    if outcome.leftovers:
        found.append(f"left behind: {', '.join(outcome.leftovers[:3])}")
    return found


def refusal_problems(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with a refusal: its type, that there is one at all, or its sentence."""
    sentence = outcome.sentence
    if outcome.error not in ("ValueError", "FileNotFoundError"):
        return [f"{outcome.error}: {sentence[:300]}"]
    if case.expect == "answered":
        return [f"refused: {sentence[:300]}"]

    found = []
    if not 20 < len(sentence) < SENTENCE_CHARS:
        found.append(f"the sentence has {len(sentence)} characters: {sentence[:100]!r}…")
    if not sentence.isprintable():
        found.append(f"the sentence is more than one line, or holds control characters: {sentence[:300]!r}")
    if not re.search(r"[.?]$", sentence) or re.match(r"\[Errno|Traceback|'.*'$", sentence):
        found.append(f"no sentence: {sentence[:300]!r}")
    if not re.search(case.says, sentence, re.IGNORECASE):
        found.append(f"the sentence does not say {case.says!r}: {sentence[:300]!r}")
    return found
