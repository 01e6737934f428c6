"""The process in which one answer of a stranger runs: `python -m exercises.run_one NUMBER SEED FILE RESULT MEGABYTES`.

It writes what the function answers, never whether that is right: the judge is the process that started this one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from exercises import book
from exercises.checker import Outcome, describe, run
from exercises.submissions import load, read_source
from exercises.values import encode


def limit_memory(megabytes: int) -> None:
    """At most this much more memory than now, where the system can do that (Linux)."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        pass


def main() -> None:
    number, seed, file, result, megabytes = sys.argv[1:]
    exercise = book.find(number)
    probes = exercise.all_probes(int(seed))
    source = read_source(Path(file))
    limit_memory(int(megabytes))
    try:
        outcomes = run(load(source, exercise), exercise, probes)
    except (Exception, SystemExit) as error:
        outcomes = [Outcome(error=describe(error, main))]
    content = [
        {"answer": encode(o.answer), "error": o.error, "unwritten": o.unwritten, "changed_input": o.changed_input}
        for o in outcomes
    ]
    Path(result).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
