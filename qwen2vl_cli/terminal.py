"""What the command line says on stderr: notes and one sentence for each error."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def sentence(error: Exception) -> str:
    """One line for the user."""
    text = " ".join(str(error).split())
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's is the latter
    if memory or "can't allocate memory" in text:
        return "error: Out of memory; lower --max-pixels or --max-new-tokens, or take a smaller --model."
    if isinstance(error, ValueError | OSError) and text:
        return f"error: {text}"
    return f"unexpected error: {type(error).__name__}: {text} (run with --debug for the traceback)"
