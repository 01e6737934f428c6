"""Files of conversations to fine-tune on: one line on stderr and exit code 2, before any weight is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

from tests.hostile.cases import Case
from tests.hostile.material import picture
from tests.hostile.measure import STREAMS
from tests.hostile.ways_in import NO_PICTURE, fifo, file
from tiny_world import lora

ANSWER = {"role": "assistant", "content": "A spoon."}

QUESTION = {"role": "user", "content": "What is it?"}
WRONG_MESSAGES = (
    ("null", None, "list of messages"),
    ("a number", 17, "list of messages"),
    ("a list of texts", ["What is it?", "A spoon."], "a message is a dict"),
    ("messages that are a text", {"messages": "What is it?"}, "list of messages"),
    ("another format", {"image": "a.png", "prompt": "What is it?", "answer": "A spoon."}, '"messages"'),
    ("no messages", [], "by nobody"),
    ("no answer", [QUESTION], "then the assistant's answer"),
    ("only an answer", [ANSWER], "the user's question"),
    ("a question behind the answer", [QUESTION, ANSWER, QUESTION], "then the assistant's answer"),
    ("an empty answer", [QUESTION, {"role": "assistant", "content": ""}], "is not a text"),
    ("an answer that is null", [QUESTION, {"role": "assistant", "content": None}], "'content'"),
    ("an answer that is a number", [QUESTION, {"role": "assistant", "content": 4}], "a text or a list"),
    ("an answer with half a character", [QUESTION, {"role": "assistant", "content": "\ud83d"}], "half a character"),
    ("a role of 100,000 letters", [QUESTION, {"role": "x" * 100_000, "content": "A spoon."}], "by 'xxx"),
    ("a role with a line break", [QUESTION, {"role": "a\nb", "content": "A spoon."}], "by 'a"),
    ("a question of 300,000 words", [{"role": "user", "content": "cup " * 300_000}, ANSWER], "context of 32768"),
)
WRONG_ITEMS = (
    ("no such picture", {"type": "image", "image": "none.png"}, "none.png"),
    ("the file itself as a picture", {"type": "image", "image": "a.jsonl"}, NO_PICTURE),
    ("a folder as a picture", {"type": "image", "image": "."}, "folder"),
    ("a device as a picture", {"type": "image", "image": "/dev/zero"}, "not an ordinary file"),
    ("an address in this network", {"type": "image", "image": "http://127.0.0.1:1/a.png"}, "no public address"),
    ("no base64", {"type": "image", "image": "data:image/png;base64,????"}, "no valid base64"),
    ("a picture that is null", {"type": "image", "image": None}, "names no picture"),
    ("a picture that is a number", {"type": "image", "image": 3}, "no picture"),
    ("no such clip", {"type": "video", "video": "none.mp4"}, "none.mp4"),
    ("a clip of no frames", {"type": "video", "video": []}, "frame|empty"),
    ("a wrong limit", {"type": "image", "image": "a.png", "max_pixels": "many"}, "max_pixels"),
)


def lessons() -> Iterator[Case]:
    yield case("a pipe", "is no file", fifo("a.jsonl"))
    yield case("nothing", "is empty", file("a.jsonl", b""))
    yield case("blank lines only", "is empty", file("a.jsonl", b"\n \r\n\t\n"))
    yield case("a picture", "no JSON", file("a.png", picture))
    yield case("100,000 zeros", "no JSON", file("a.jsonl", bytes(100_000)))
    yield case("one conversation over many lines", "no JSON", file("a.jsonl", json.dumps([ANSWER], indent=2).encode()))
    yield case("lists 100,000 deep", "no JSON", file("a.jsonl", b"[" * 100_000))
    yield case("objects 100,000 deep", "no JSON", file("a.jsonl", b'{"messages":' * 100_000))
    yield case("a number of 10,000 digits", "no JSON", file("a.jsonl", b"[" + b"9" * 10_000 + b"]"))
    yield case("UTF-16", "no JSON", file("a.jsonl", "[\n]".encode("utf-16")))

    for name, messages, says in WRONG_MESSAGES:
        yield case(name, says, file("a.jsonl", json.dumps(messages).encode()))
    for name, item, says in WRONG_ITEMS:
        messages = [{"role": "user", "content": [item, "What is it?"]}, ANSWER]
        yield case(name, says, file("a.jsonl", json.dumps(messages).encode()))


def case(name: str, says: str, make: Callable) -> Case:
    return Case("lines to learn from", name, make, refuse, says)


def refuse(path) -> str:
    """Start a fine-tuning on the file at `path`, as if its refusal were one of a function."""
    try:
        code = lora.main(["--data", str(path), "--steps", "1"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

    said = STREAMS[2].take()
    assert code == 2, f"exit code {code}: {said[:300]}"
    assert said.count("\n") == 1 and said.startswith("error: "), f"stderr says {said[:300]!r}"
    raise ValueError(said.removeprefix("error: ").rstrip("\n"))
