"""Hostile and odd inputs: each must end in one clear sentence or in a right answer, soon, in little memory.

    python -m tests.hostile                                runs all, prints a table by kind of input
    python -m tests.hostile --figure assets/hostile.png    and draws it

All inputs are made here, from fixed seeds. Each is a `Case` (cases.py): what makes the input, what gives it to the
product, and words that the refusal must contain. There is one file for each kind of input, and collection.py puts them
together. A worker (worker.py) runs the cases one after the other, in a process of its own, and a Runner (runner.py)
looks after it. test_hostile.py asserts what `problems` says.
"""

from tests.hostile.cases import ROOT, Case, Outcome, problems
from tests.hostile.collection import by_name, corpus
from tests.hostile.planted import PLANTED
from tests.hostile.report import Row, summary
from tests.hostile.runner import Runner, WorkerError

__all__ = [
    "PLANTED",
    "ROOT",
    "Case",
    "Outcome",
    "Row",
    "Runner",
    "WorkerError",
    "by_name",
    "corpus",
    "problems",
    "summary",
]
