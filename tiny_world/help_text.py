"""Docstrings are as wide as the code, --help is as wide as a plain terminal."""

from __future__ import annotations

import re
import textwrap

COLUMNS = 80


def fitted(docstring: str) -> str:
    """A module's docstring for --help: its paragraphs and indented commands, with no line over 80 columns."""
    paragraphs = []
    for paragraph in docstring.strip().split("\n\n"):
        lines = []
        for line in paragraph.split("\n"):
            is_item = re.match(r"\s*\*", line)
            is_command = line.startswith("    ") and not (lines and re.match(r"\s*\*", lines[-1]))
            if not lines or is_item or is_command or lines[-1].startswith("    "):
                lines.append(line.rstrip())
            else:
                lines[-1] += " " + line.strip()
        paragraphs.append("\n".join(wrapped(line) for line in lines))
    return "\n\n".join(paragraphs)


def wrapped(line: str) -> str:
    """One line → several; those after the first are indented further where the first is."""
    if len(line) <= COLUMNS:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    command, gap, meaning = line.strip().partition("   ")  # what it is for stands behind it in the docstring
    if gap:
        return f"{indent}{command}\n{indent}    {meaning.strip()}"
    return textwrap.fill(line.strip(), COLUMNS, initial_indent=indent, subsequent_indent=indent and indent + "  ")
