"""A file of conversations to learn from, one a line, in the message format of --batch; bad lines are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from qwen2vl_io.messages import as_messages, media_items, media_kind
from qwen2vl_io.sentences import shorten, shown
from qwen2vl_io.sources import SOURCE_KEYS, is_url, item_source


def read_conversations(path: Path, check: Callable[[list[dict]], None]) -> list[list[dict]]:
    """The conversations of a file, each of which ends with the assistant's answer.

    `check` may refuse one more of them by a ValueError. Raises ValueError, which names the line.
    """
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else None
    except OSError as error:
        raise ValueError(f"--data {shorten(path)} cannot be read ({error.strerror}); check its permissions.") from None
    if lines is None:
        raise ValueError(f"--data {shorten(path)} is no file; name one with a conversation on each line.")

    conversations = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            conversation = read_conversation(line, path.resolve().parent)
            check(conversation)
        except (ValueError, OSError) as error:
            raise ValueError(f"{shorten(path)}, line {number}: {error}") from None
        conversations.append(conversation)
    if not conversations:
        raise ValueError(f"--data {shorten(path)} is empty; write a conversation on each line.")
    return conversations


def read_conversation(line: bytes, folder: Path) -> list[dict]:
    """A line → messages that end with an answer; the paths of pictures and clips count from `folder`."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # also what is no UTF-8, nested too deeply, or a number of 10,000 digits
        raise ValueError("This is no JSON; write a list of messages.") from None
    if isinstance(content, dict):  # {"id": …, "messages": [...]}, as --batch has it
        if "messages" not in content:
            raise ValueError('This has no "messages"; write a list of messages, or {"messages": [...]}.')
        content = content["messages"]

    messages = as_messages(content)
    check_answer(messages)
    for item in media_items([messages]):
        kind = media_kind(item)
        source = item_source(item)
        for key in SOURCE_KEYS:
            item.pop(key, None)
        if isinstance(source, list):
            item[kind] = [in_folder(frame, folder) for frame in source]
        else:
            item[kind] = in_folder(source, folder)
    return messages


def check_answer(messages: list[dict]) -> None:
    """There must be something to learn: an answer in words, to a question."""
    roles = [message["role"] for message in messages]
    if "user" not in roles or roles[-1] != "assistant":
        said_by = shown(roles[-1]) if roles else "nobody"
        raise ValueError(f"The last message is by {said_by}; write the user's question, then the assistant's answer.")
    if media_items([messages[-1:]]) or not text_of(messages[-1]).strip():
        raise ValueError("The assistant's last message is not a text; write there what the model should learn to say.")


def text_of(message: dict) -> str:
    """The words of a message."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(item.get("text", "") for item in content)


def in_folder(source, folder: Path):
    """A relative path → the same, from `folder`; everything else stays unchanged."""
    return os.path.join(folder, source) if isinstance(source, str) and source and not is_url(source) else source
