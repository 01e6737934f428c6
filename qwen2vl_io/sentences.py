"""Values, names and causes as an error message shows them: on one line, of bounded length, without passwords."""

from __future__ import annotations

import re
from pathlib import Path


def shorten(text: str | Path, longest: int = 200) -> str:
    """A path or URL as an error message can show it: one line, of bounded length, without passwords."""
    text = str(text) if len(str(text)) < 20_000 else str(text)[:10_000] + str(text)[-10_000:]
    text = re.sub("(://)[^/?#]*@", r"\1…@", text)
    text = "".join(c if c.isprintable() else "?" for c in text) or '""'
    return text if len(text) <= longest else text[: longest - 20] + "…" + text[-19:]


def shown(value) -> str:
    """A value in an error message: short, on one line."""
    if isinstance(value, int) and abs(value) > 10**100:
        return "a huge number"  # Python refuses to write out the largest
    return shorten(repr(value), 60)


def damaged(name: str, error: Exception | str) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{name} is cut off or damaged ({shorten(reason).rstrip('.')}); get it again."
