"""Exercises from the command line.

python -m exercises start               copy notebooks and skeletons to work/, where your answers live
python -m exercises next                the next exercise, with its statement
python -m exercises check 1.2           is work/exercises/ex01.py (or your notebook in work/) right?
python -m exercises hint 1.2 [2]        a hint; there are three levels
python -m exercises all                 how far you are
python -m exercises handout DIR [01-03] what an instructor gives out
python -m exercises grade SUBMISSION    what an instructor does with what comes back
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

from exercises import book
from exercises.book import Exercise


def read_chapters(text: str) -> tuple[str, ...]:
    """ "01-03", "2" or "01,04-06" → the chapters' numbers."""
    chosen = set()
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d\d?)\s*(?:-\s*(\d\d?)\s*)?", piece)
        if not found:
            raise ValueError(f"{text!r} names no chapters; write 01-03 or 02 or 01,04.")
        first, last = int(found[1]), int(found[2] or found[1])
        chosen |= {f"{number:02}" for number in range(first, last + 1)}
    known = set(book.chapters())
    if not chosen & known or chosen - known:
        raise ValueError(f"There are the chapters {', '.join(sorted(known))}, not all of {text!r}.")
    return tuple(sorted(chosen))


def statement(exercise: Exercise) -> str:
    """What an exercise asks: the text of its skeleton."""
    place = f"work/exercises/ex{exercise.chapter}.py"
    return f"{exercise.heading()}\n\n{textwrap.indent(book.skeleton(exercise), '    ')}\n\nWrite it in {place}."


def verdicts(exercises: tuple[Exercise, ...]):
    """Each exercise, and how the answer in work/ does."""
    from exercises import checker, submissions

    if not submissions.WORK.exists():
        raise ValueError("There is no folder work/ yet; `python -m exercises start` makes it.")
    sources, problems = submissions.sources_in(submissions.WORK)
    for problem in problems:
        print(problem, file=sys.stderr)
    for exercise in exercises:
        source = submissions.find_answer(exercise, sources)
        if source is None:
            yield exercise, checker.not_attempted(exercise)
            continue
        early = checker.before_running(None, exercise, source.defines(exercise))
        yield exercise, early or run_here(exercise, source)


def run_here(exercise: Exercise, source):
    """The verdict on an answer that runs in this process."""
    from exercises import checker, submissions

    try:
        function = submissions.load(source, exercise)
    except (Exception, SystemExit) as error:
        return checker.failed(exercise, f"{source.path.name} {checker.describe(error, run_here)}")
    return checker.verdict(function, exercise, source.defines(exercise))


def start(options) -> int:
    from exercises import submissions

    print("\n".join(submissions.start()))
    print("Your answers live in work/. `python -m exercises next` says how to begin.")
    return 0


def next_(options) -> int:
    for exercise, verdict in verdicts(book.exercises()):
        if not verdict.passed:
            print(statement(exercise))
            if verdict.status == "failed":
                print(f"\nSo far: {verdict.message}")
            return 0
    print("All exercises are done.")
    return 0


def check(options) -> int:
    for _, verdict in verdicts((book.find(options.number),)):
        print(verdict.message)
    return 0 if verdict.passed else 1


def hint(options) -> int:
    from exercises.checker import hint_text

    print(hint_text(book.find(options.number), options.level))
    return 0


def all_(options) -> int:
    marks = {"passed": "✓", "failed": "✗", "not attempted": "·"}
    done = 0
    for exercise, verdict in verdicts(book.exercises()):
        print(f"{marks[verdict.status]} {exercise.heading()}")
        done += verdict.passed
    print(f"{done} of {len(book.exercises())} done.")
    return 0


def handout(options) -> int:
    from exercises.handout import handout

    chosen = read_chapters(options.chapters) if options.chapters else book.chapters()
    files = handout(options.folder, chosen)
    print(f"Wrote {files} files with the chapters {', '.join(chosen)} to {options.folder}.")
    return 0


def grade(options) -> int:
    from exercises.grading import grade

    chosen = read_chapters(options.only) if options.only else book.chapters()
    exercises = [exercise for chapter in chosen for exercise in book.exercises(chapter)]
    if options.core:
        exercises = [exercise for exercise in exercises if exercise.core]
    if min(options.seconds, options.megabytes) < 1:
        raise ValueError("--seconds and --megabytes must be at least 1.")
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise ValueError(f"--json {options.json} is no place for a file; name one in a folder that exists.")
    results = grade(options.submission, exercises, options.seed, options.seconds, options.megabytes)
    for test in results["tests"]:
        print(f"{test['score']}/{test['max_score']}  {test['output']}")
    print(results["output"])
    if options.json:
        options.json.write_text(json.dumps(results, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0 if all(test["status"] == "passed" for test in results["tests"]) else 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m exercises", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("start").set_defaults(run=start)
    commands.add_parser("next").set_defaults(run=next_)
    commands.add_parser("all").set_defaults(run=all_)

    checks = commands.add_parser("check")
    checks.add_argument("number")
    checks.set_defaults(run=check)

    hints = commands.add_parser("hint")
    hints.add_argument("number")
    hints.add_argument("level", nargs="?", type=int, default=1)
    hints.set_defaults(run=hint)

    handouts = commands.add_parser("handout")
    handouts.add_argument("folder", type=Path)
    handouts.add_argument("chapters", nargs="?", help="such as 01-03; all if left out")
    handouts.set_defaults(run=handout)

    grades = commands.add_parser("grade")
    grades.add_argument("submission", type=Path, help="a folder, a notebook or a module")
    grades.add_argument("--seed", type=int, default=0, help="changes the random probes")
    grades.add_argument("--json", type=Path, help="write Gradescope's results to this file")
    grades.add_argument("--only", help="chapters, such as 01-03")
    grades.add_argument("--core", action="store_true", help="only the core exercises (●)")
    grades.add_argument("--seconds", type=int, default=60, help="limit for each exercise (default 60)")
    grades.add_argument("--megabytes", type=int, default=2000, help="memory for each exercise (default 2000)")
    grades.set_defaults(run=grade)
    return top


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
