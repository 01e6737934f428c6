"""Questions beyond the table of tasks: what is not there, whether something is, and where a thing is, loosely named."""

from __future__ import annotations

import random
from typing import NamedTuple

from tiny_world.scenes import COLOURS, RELATIONS, SHAPES, Scene, allowed_pairs, answer_box, with_article
from tiny_world.wording import PICTURE, blur, expand, reword

THERE = (
    f"Is there {{a_thing}}{PICTURE}?",
    f"Do you see {{a_thing}}{PICTURE}?",
    f"Can you see {{a_thing}}{PICTURE}?",
    "Does the [picture|image] [show|have|contain] {a_thing}?",
    "Are there any {thing}s?",
)


class Asked(NamedTuple):
    """A task, a question and its answer."""

    task: str
    question: str
    answer: str


def ask_absent(scene: Scene, rng: random.Random) -> Asked | None:
    """Where is, which colour or shape has something that is not in the picture? "There is no red circle." """
    colours = sorted(set(COLOURS) - {thing.colour for thing in scene.things})
    shapes = sorted(set(SHAPES) - {thing.shape for thing in scene.things})
    pair = absent_pair(scene, rng)
    ways = [
        (f"Where is the {pair}?", pair),
        (f"Where is the {pair}?", pair),
        (f"Where is the {shape}?", shape) if (shape := choose(shapes, rng)) else None,
        (f"What color is the {shape}?", shape) if shape else None,
        (f"What shape is the {colour} object?", f"{colour} object") if (colour := choose(colours, rng)) else None,
        (f"Where is the {colour} object?", f"{colour} object") if colour else None,
        relation_with(scene, pair, rng),
    ]
    question, thing = rng.choice([way for way in ways if way])
    if rng.random() < 0.5:
        question = reword(question, rng)
    return Asked("absent", question, f"There is no {thing}.")


def choose(values: list[str], rng: random.Random) -> str | None:
    """Any of the values; None where there is none."""
    return rng.choice(values) if values else None


def absent_pair(scene: Scene, rng: random.Random) -> str:
    """The name of a thing that is not in the picture, mostly one of which the colour or the shape is."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    missing = [pair for pair in allowed_pairs("train") if pair not in there]
    near = [pair for pair in missing if any(pair[0] == colour or pair[1] == shape for colour, shape in there)]
    return " ".join(rng.choice(near if near and rng.random() < 0.7 else missing))


def relation_with(scene: Scene, absent: str, rng: random.Random) -> tuple[str, str] | None:
    """A relation between something absent and something that is there."""
    names = [thing.name for thing in scene.things]
    if not names:
        return None
    both = rng.sample([absent, rng.choice(names)], 2)
    return f"Is the {both[0]} {rng.choice(RELATIONS)} the {both[1]}?", absent


def ask_there(scene: Scene, rng: random.Random) -> Asked | None:
    """Whether something is in the picture."""
    present = [name for thing in scene.things for name in (thing.name, thing.shape)]
    shapes = sorted(set(SHAPES) - set(present))
    absent = absent_pair(scene, rng) if rng.random() < 0.6 or not shapes else rng.choice(shapes)
    is_there = bool(present) and rng.random() < 0.5
    thing = rng.choice(present) if is_there else absent
    pattern = rng.choice(THERE[:-1] if thing.endswith("cross") else THERE)  # whose plural is not made by an s
    question = expand(pattern, rng).format(a_thing=with_article(thing), thing=thing)
    return Asked("absent", blur(question, rng), "Yes." if is_there else "No.")


def ask_where_loosely(scene: Scene, rng: random.Random) -> Asked | None:
    """Where a thing is that is named by its shape or its colour alone, where that is enough."""
    shapes = [thing.shape for thing in scene.things]
    colours = [thing.colour for thing in scene.things]
    ways = [(thing, thing.shape) for thing in scene.things if shapes.count(thing.shape) == 1]
    ways += [(thing, f"{thing.colour} object") for thing in scene.things if colours.count(thing.colour) == 1]
    if not ways:
        return None
    thing, name = rng.choice(ways)
    question = reword(f"Where is the {name}?", rng) if rng.random() < 0.5 else f"Where is the {name}?"
    box = answer_box(thing.box, scene.width, scene.height)
    return Asked("where", question, f"<|object_ref_start|>{name}<|object_ref_end|>{box}")
