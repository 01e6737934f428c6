"""Paths that lead nowhere, to devices, pipes and sockets, or that only look like paths."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.material import picture
from tests.hostile.ways_in import BOTH, NO_PICTURE, fifo, file, given, see_picture

ODD_PATHS = {  # name: path, what the refusal says
    "no such file": ("/no/such/folder/a.png", "no file .*a.png"),
    "an empty name": ("", "no file|folder"),
    "a space": (" ", "no file"),
    "a null character": ("a\0b.png", r"no file a\?b.png"),
    "a name of 100,000 letters": ("a" * 100_000, "no file"),
    "a path of 5,000 folders": ("a/" * 5000 + "b.png", "no file"),
    "a line break": ("a\nb\n.png", r"no file a\?b"),
    "terminal codes": ("\x1b[31mred\x1b[0m.png", "no file .{,3}31mred"),
    "right-to-left marks": ("\u202egnp.a", "no file"),
    "half a character": ("\ud800.png", "no file"),
    "a folder": ("/", "is a folder"),
    "a device that never ends": ("/dev/zero", "not an ordinary file"),
    "a device that blocks": ("/dev/tty", "not an ordinary file|no file"),
    "the worker's own memory": ("/proc/self/mem", "cut off or damaged|no video|cannot be opened|no picture"),
    "a file URL of another host": ("file://example.org/a.png", "file on this machine"),
    "a file URL of nothing": ("file://", "file on this machine"),
    "a file URL with a null": ("file:///a%00b", "no file"),
    "a file URL to a device": ("file:///dev/zero", "not an ordinary file"),
    "a file URL with two roots": ("file:////etc/passwd", "file on this machine"),
    "another scheme": ("ftp://example.org/a.png", "only http, https and file"),
    "a scheme of a player": ("concat:/etc/passwd|/etc/hosts", "no file"),
    "a subfile of a player": ("subfile,,start,0,end,9,,:/etc/passwd", "no file"),
    "a pipe of a player": ("pipe:0", "no file"),
    "a glob": ("/etc/*.png", "no file"),
    "a variable": ("$HOME/a.png", "no file"),
    "a command": ("|id", "no file"),
    "a file of the system": ("/etc/passwd", "no picture, or|no video that"),
}


def paths() -> Iterator[Case]:
    kind = "paths"
    for name, (path, says) in ODD_PATHS.items():
        for what, use in BOTH:
            yield Case(kind, f"{name}, {what}", given(path), use, says)

    for what, use in BOTH:
        yield Case(kind, f"a pipe nobody writes to, {what}", fifo("a.png"), use, "not an ordinary file")
        yield Case(kind, f"a link to itself, {what}", link("link.png"), use, "no file")
        yield Case(kind, f"a link to nothing, {what}", link("missing"), use, "no file")
        yield Case(kind, f"a link to a device, {what}", link("/dev/zero"), use, "not an ordinary file")
        yield Case(kind, f"a socket, {what}", unix_socket, use, "not an ordinary file")

    yield Case(kind, "a file without permissions", locked, see_picture, "permission", "either")  # root may read it
    yield Case(kind, "a name of bytes", lambda folder: os.fsencode(umlauts(folder)), see_picture, NO_PICTURE)
    yield Case(kind, "a Path", lambda folder: Path(umlauts(folder)), see_picture, "", "answered")


def link(target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "link.png").symlink_to(target)
        return str(folder / "link.png")

    return make


def locked(folder: Path) -> str:
    path = file("locked.png", picture)(folder)
    os.chmod(path, 0)
    return path


umlauts = file("ä ö.png", picture)


def unix_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    return str(folder / "s")
