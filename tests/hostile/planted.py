"""Planted cases: one for everything that a worker has to notice, and a fine one."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.hostile.cases import Case
from tests.hostile.ways_in import file, given


def hang(seconds: float) -> None:
    time.sleep(seconds)


def eat(megabytes: int) -> str:
    bytearray(megabytes * 10**6)  # if it is too much, this raises a plain MemoryError, numpy one of its own
    return str(np.ones(megabytes * 10**6 // 8).sum())


def break_off(error: BaseException) -> None:
    raise error


def write_to_stderr(text: str) -> int:
    return os.write(2, text.encode())


def litter(folder: str) -> str:
    Path(tempfile.gettempdir(), "left-over").write_bytes(b"x")
    return "done"


HELD: list = []


def keep_open(path: str) -> str:
    HELD.append(open(path, "rb"))
    return "done"


ANOTHER_PROBLEM = ValueError("The picture is empty; get it again.")

PLANTED = {
    case.name: case
    for case in (
        Case("planted", "hang", given(60), hang, ""),
        Case("planted", "memory", given(1200), eat, "", "answered"),
        Case("planted", "runaway", given(10**6), eat, "", "answered"),
        Case("planted", "KeyError", given(KeyError("image")), break_off, ""),
        Case("planted", "OSError", given(OSError(5, "Input/output error")), break_off, ""),
        Case("planted", "UnicodeError", given("\ud800"), str.encode, ""),
        Case("planted", "crash", given(3), os._exit, ""),
        Case("planted", "two lines", given(ValueError("One line.\nAnd the image again.")), break_off, "image"),
        Case("planted", "no end", given(ValueError("x" * 1000 + ".")), break_off, "x"),
        Case("planted", "too short", given(ValueError("bad value.")), break_off, "bad"),
        Case("planted", "another problem", given(ANOTHER_PROBLEM), break_off, "clip"),
        Case("planted", "answered", given("an answer"), str, ""),
        Case("planted", "refused", given(ANOTHER_PROBLEM), break_off, "", "answered"),
        Case("planted", "stdout", given("hello"), print, "", "answered"),
        Case("planted", "stderr", given("hello"), write_to_stderr, "", "answered"),
        Case("planted", "litter", given(""), litter, "", "answered"),
        Case("planted", "open file", file("a", b"x"), keep_open, "", "answered"),
        Case("planted", "fine", given("an answer"), str, "", "answered"),
    )
}
