"""What people type first: texts that say nothing, jobs that exclude each other, models that are not there."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.cases import Case
from tests.hostile.command_lines import PICTURE, line


def first_minutes() -> Iterator[Case]:
    for blank in ("", " ", "\t\n", "\u00a0", "\u3000"):
        yield line("The prompt is empty", "--image FILE --prompt", PICTURE, more=(blank,))
        yield line("system message is empty", "--image FILE --system", PICTURE, more=(blank,))
    yield line("The prompt is empty", "--prompt Why? --image FILE --prompt", PICTURE, more=("",))
    yield line("only once", "--image FILE --prompt - --prompt -", PICTURE)
    yield line("only once", "--image FILE --system - --prompt -", PICTURE)
    yield line("", "--prompt Why? --image FILE", PICTURE, "answered")
    yield line("", "--prompt Why? --image FILE --prompt Really?", PICTURE, "answered")

    for words in ("--chat", "--prompt x", "--image FILE", "--batch FILE", "--json"):
        yield line("do not go together", f"--questions {words}", PICTURE)
    yield line("no folder and no Hub id", "--questions --model /no/such/model")
    yield line("no folder and no Hub id", "--questions --model a/b/c")
