"""What the bundled checkpoint was taught to answer, for --questions and for the chat's greeting.

Here is nothing but words: no weights are loaded for them, and no PyTorch is imported.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

BUNDLED_NAME = "tiny"
TINY_WIDTH = 192  # hidden_size of every model that tiny_world/train.py makes
ANY_QUESTION = "This model was not taught in this tiny world: any question about pictures, clips or texts will do."
UNKNOWN = "I am a small teaching model: I can describe, count, name, find, read and compare coloured shapes."


@dataclass(frozen=True)
class Taught:
    """One task: how training asks for it, some other ways to say it, and what an answer looks like."""

    task: str
    questions: tuple[str, ...]
    others: tuple[str, ...]
    answer: str


TAUGHT = (
    Taught(
        "describe",
        ("Describe this image.",),
        ("What do you see?", "What is in this picture?", "Which shapes are there?", "describe the image"),
        'A red circle, a blue square and the text "AB12".',
    ),
    Taught(
        "count",
        ("How many circles are there?", "How many objects are there?", "How many red objects are there?"),
        ("How many shapes can you see?", "Count the red things.", "What is the number of circles?"),
        "3",
    ),
    Taught(
        "colour",
        ("What color is the star?",),
        ("What colour is the star?", "Which color does the star have?", "tell me the color of the star"),
        "Green.",
    ),
    Taught(
        "shape",
        ("What shape is the red object?",),
        ("What is the red thing?", "What kind of shape does the red object have?", "Name the red object."),
        "A star.",
    ),
    Taught(
        "where, as a box",
        ("Where is the red circle?",),
        ("Find the red circle.", "Point to the red circle.", "where can I see the red circle"),
        "red circle(120,340),(310,560)",
    ),
    Taught(
        "what is in a box",
        ("What is in the box <|box_start|>(120,340),(310,560)<|box_end|>?",),
        ("What is this? <|box_start|>(120,340),(310,560)<|box_end|>",),
        "A red circle.",
    ),
    Taught(
        "relation",
        ("Is the red circle left of the blue square?",),
        ("Is the red circle under the blue square?", "Do you see the red circle above the blue square?"),
        "Yes.",
    ),
    Taught(
        "read",
        ("Read the text.",),
        ("What does the text say?", "What is written here?", "read it"),
        "AB12",
    ),
    Taught(
        "compare two pictures",
        ("Which picture has more objects?", "Are the pictures the same?", "What is in both pictures?"),
        ("In which picture are more shapes?", "Do both pictures show the same?"),
        "Picture 1.",
    ),
    Taught(
        "watch a clip",
        ("What happens?", "Which way does the circle move?"),
        ("What is happening in this video?", "In which direction does the circle move?", "describe the clip"),
        "A red circle moves left.",
    ),
    Taught(
        "itself",
        ("Who are you?", "What can you do?"),
        ("What is your name?", "Help me."),
        "I can describe, count, find and compare simple shapes, and read short texts.",
    ),
)
GREETING = (
    "It knows coloured shapes and short texts in small drawings. Ask, for example, "
    '"Describe this image." or "Where is the red circle?"; /questions lists the rest.'
)


def is_bundled(model: str | os.PathLike | None) -> bool:
    """Whether --model means the bundled checkpoint."""
    return model is None or os.fspath(model) == BUNDLED_NAME


def is_of_the_tiny_world(model: str | os.PathLike | None) -> bool:
    """Whether --model is the bundled checkpoint or a folder of its shape, such as a lesson's own training."""
    if is_bundled(model):
        return True
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
        return config.get("text_config", config).get("hidden_size") == TINY_WIDTH
    except (OSError, ValueError, AttributeError):  # no folder, or no config of ours: other code says what is wrong
        return False


def questions_text(model: str | os.PathLike | None) -> str:
    """What --questions prints: each task with its wordings, or the sentence for models from elsewhere.

    Raises FileNotFoundError for what is neither a folder nor looks like the name of a model.
    """
    if not is_of_the_tiny_world(model):
        if not Path(model).expanduser().is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise FileNotFoundError(f"--model {model} is no folder and no Hub id, which looks like org/name.")
        return ANY_QUESTION

    lines = ["What the bundled model was taught, in any colours and shapes that it knows:"]
    for taught in TAUGHT:
        lines += ["", taught.task, *(f"  {question}" for question in taught.questions)]
        lines.append(f"  → {taught.answer}")

    lines += [
        "",
        "Colours: red, green, blue, yellow, purple, orange, pink, cyan, black, white.",
        "Shapes: circle, square, triangle, star, cross, ring, diamond, heart.",
        "It understands these wordings only: to all others it answers, too, and wrongly.",
    ]
    if not is_bundled(model):
        lines += ["", "This checkpoint is of the same world; it knows the tasks of its own training."]
    return "\n".join(lines)
