"""The records of a batch: one JSON object for each line of the input, appended to a file as they come.

A record tells its line by number, and by a hash of the line's content whether that is still the line it answers. The
last record of a number is the one that counts. At the end the file is put in order: read once and replaced by a draft,
so that at every moment there is a file with all answers. Two jobs on one file would overwrite each other's records, so
a job holds the file's lock from before it reads it until it is in order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

START = b'{"line": '  # of each record


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Nobody else writes to the file meanwhile; raises ValueError if another job does so now.

    The lock is an empty file beside the answers, `.NAME.lock`. The system lets go of it when its job ends, however
    that ends.
    """
    if path is None:
        yield
        return

    target = path.resolve()  # two links to one file have one lock
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"--out {path} is being written by another job; wait for it, or name another file.") from None
    except OSError as error:
        raise ValueError(f"--out {path} cannot be locked ({error.strerror}); name a file in another folder.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # a job that has just opened it notices, and makes a new one
        lock.release()


def whole_records(path: Path) -> Iterator[tuple[dict, int]]:
    """The records of a file and their lengths in bytes, without a last one that was torn when its writer was stopped.

    Raises ValueError if anything else is in the file: it is not ours, and would be lost.
    """
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                torn = not text.endswith(b"\n") and text[: len(START)] == START[: len(text)]
                if torn:
                    return
                record = as_record(text)
                if record is None:
                    raise ValueError(
                        f"--out {path} holds other things than answers (line {number}); name another file."
                    )
                yield record, len(text)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be read ({error.strerror}); name another file.") from None


def as_record(text: bytes) -> dict | None:
    """A line of the file as a record; None if it is none."""
    try:
        record = json.loads(text)
        is_ours = isinstance(record["line"], int) and ("answer" in record or "error" in record)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if is_ours else None


def put_in_order(path: Path, numbers: set[int] | None) -> None:
    """Replace the file by one with the last record of each line, in order; `numbers`: of these lines only.

    Memory holds the places of the records, not their texts.
    """
    places = {}
    offset = 0
    for record, length in whole_records(path):
        places[record["line"]] = (offset, length)
        offset += length
    kept = sorted(places if numbers is None else places.keys() & numbers)

    target = path.resolve()  # a link stays a link
    draft = target.with_name(f".{target.name}.draft")
    draft.unlink(missing_ok=True)  # of a writer that was killed right here
    try:
        with target.open("rb") as old, draft.open("xb") as new:
            for number in kept:
                offset, length = places[number]
                old.seek(offset)
                new.write(old.read(length))
            new.flush()
            os.fsync(new.fileno())  # on the disk before it takes the old file's name
        shutil.copymode(target, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


class Answers:
    """Where the records go: the file of --out, or stdout."""

    def __init__(self, path: Path | None):
        self.path = path
        self.file = None  # opened when there is something to write
        self.waiting: dict[int, str] = {}  # what goes to stdout at the next flush, by line number
        self.answered: dict[int, str] = {}  # line number → hash of the line, where the last record is an answer
        self.seen: set[int] = set()  # numbers of all lines that have a record
        self.last = 0  # number of the last record
        self.in_order = True
        self.exists = path is not None and path.exists()
        self.size = 0  # bytes of whole records
        if self.exists:
            self.read()

    def read(self) -> None:
        """Learn what is in the file. Raises ValueError if that is not ours."""
        for record, length in whole_records(self.path):
            self.remember(record)
            self.size += length
        if self.size < self.path.stat().st_size:
            self.in_order = False  # a torn record is left to be dropped

    def remember(self, record: dict) -> None:
        """Take note of a record at the end of the file."""
        number = record["line"]
        if number <= self.last:
            self.in_order = False
        self.last = number
        self.seen.add(number)
        self.answered.pop(number, None)
        if "answer" in record:
            self.answered[number] = record.get("hash")

    def has(self, number: int, content: str) -> bool:
        """Whether a line is answered, and has the same hash as then."""
        return self.answered.get(number) == content

    def write(self, record: dict) -> None:
        """Append a record; to stdout it goes at the next flush."""
        text = json.dumps(record, ensure_ascii=False) + "\n"
        if self.path is None:
            self.waiting[record["line"]] = text
            return

        if self.file is None:
            if self.exists:
                os.truncate(self.path, self.size)  # a torn record would spoil the one behind it
            self.file = self.path.open("ab" if self.exists else "xb")
        self.file.write(text.encode())
        self.file.flush()
        self.remember(record)

    def flush(self) -> None:
        """After each window: stdout cannot be put in order later."""
        for number in sorted(self.waiting):
            print(self.waiting.pop(number), end="", flush=True)

    def close(self, numbers: set[int] | None = None) -> None:
        """Put the file in order. `numbers`: the lines that there are; once something is written, others' records go."""
        self.flush()
        wrote = self.file is not None
        if wrote:
            self.file.close()

        outdated = self.seen - numbers if wrote and numbers else set()
        if outdated or not self.in_order:
            put_in_order(self.path, numbers if wrote else None)
