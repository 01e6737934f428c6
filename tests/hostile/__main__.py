"""Runs all hostile and odd inputs, and prints a table of how they ended."""

from __future__ import annotations

import argparse
import re
import sys

import tests.hostile
from tests.hostile.cases import Outcome, problems
from tests.hostile.collection import corpus
from tests.hostile.report import draw, summary, table
from tests.hostile.runner import Runner, WorkerError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=tests.hostile.__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE", help="draw the results")
    parser.add_argument("--only", metavar="REGEX", default="", help="run cases with this in their name, and show each")
    args = parser.parse_args()

    names = [name for name in corpus() if re.search(args.only, name)]
    try:
        outcomes = run(names, show_each=bool(args.only))
    except WorkerError as error:
        sys.exit(str(error))

    rows = summary(outcomes)
    failed = sum(row.failed for row in rows)
    print(f"\n{table(rows)}")
    print(f"{len(names)} inputs, {failed} failed")
    if args.figure:
        draw(rows, args.figure)
    return 1 if failed else 0


def run(names: list[str], show_each: bool) -> dict[str, Outcome]:
    """The outcomes of these cases; failures are printed, or each of them."""
    outcomes = {}
    runner = Runner()
    try:
        for number, name in enumerate(names, 1):
            outcome = outcomes[name] = runner.run(name)
            wrong = problems(corpus()[name], outcome)
            if show_each or wrong:
                print(described(name, outcome, wrong))
            elif sys.stderr.isatty():
                print(f"\r{number}/{len(names)}", end="", file=sys.stderr, flush=True)
    finally:
        runner.stop()
    return outcomes


def described(name: str, outcome: Outcome, wrong: list[str]) -> str:
    said = "; ".join(wrong) or outcome.answer or outcome.sentence
    return f"{'FAILED  ' if wrong else ''}{name} ({outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB): {said}"


if __name__ == "__main__":
    sys.exit(main())
