"""Batches for training: pictures and clips, conversations about them, and targets for the training-only heads.

A *sheet* is a picture crowded with letters or shapes, for the vision tower alone: every visual token has something to
say. A *round* is a set of conversations, each about one picture, two pictures or a clip. Each conversation is filled
with questions up to nearly the same number of tokens, so little of a round is padding. The same seed gives the same
batch.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLTokenizer, Special, render_chat
from tiny_world import scenes
from tiny_world.free import Asked, ask_absent, ask_there, ask_where_loosely
from tiny_world.scenes import (
    CHARACTERS,
    COLOURS,
    MAX_TEXT_LENGTH,
    READ_BELOW,
    RELATIONS,
    SHAPES,
    Background,
    Scene,
    Text,
    Thing,
)
from tiny_world.unknown import ask_unknown
from tiny_world.wording import UNKNOWN, reword

SLOTS = 5  # characters that one cell can hold, from left to right
NEAR = 0.12  # of a cell: a centre this near a border may count as lying beyond it
NAMES = {name: i for i, name in enumerate((*SHAPES, *COLOURS))}

Size = tuple[int, int]  # rows, columns of cells
Shares = tuple[float, float, float, float]  # a box x1, y1, x2, y2 as shares of the picture's width and height


@dataclass(frozen=True)
class Recipe:
    """What the model is trained on, and how."""

    # The kinds of rounds, one after the other and again from the start. Pictures with nothing but a text ("read") keep
    # the decoder reading; "mixed" is a picture beside a clip, "talk" neither.
    rounds: tuple[str, ...] = (
        *("picture", "pair", "clip", "read", "picture", "mixed", "pair"),
        *("picture", "clip", "read", "picture", "pair", "talk"),
    )
    # How often each task is asked about one picture, relative to the others, where it fits.
    tasks: Mapping[str, float] = field(
        default_factory=lambda: dict(describe=4, where=2.5, count=4, colour=1, shape=1, relation=1.5, what=1, read=5)
    )
    things: tuple[int, ...] = (1, 2, 3, 3, 4, 4, 5, 5, 6, 6)  # objects in a picture, drawn evenly
    max_side: int = scenes.MAX_SIDE // 2  # pixels, small sides drawn more often
    large_share: float = 0.5  # of the rounds have sides up to twice max_side, drawn evenly
    frames: tuple[int, ...] = (4, 5, 6, 7, 8)  # of a clip, drawn evenly
    text_share: float = 0.35  # of the pictures have a text to read
    free_share: float = 0.55  # of the questions are asked in other than the fixed words
    odd_share: float = 0.26  # of the questions are about what is not there, or not known
    first_length: int = 2  # most characters of a text at first
    longer_every: int = 900  # rounds after which texts become one character longer
    tower_share: float = 0.4  # of the time the tower learns alone; then it is frozen
    rate: float = 1.0  # multiplies all learning rates
    tower_factor: float = 1.0  # multiplies the tower's learning rates
    sheet_cells: int = 1300  # visual tokens of a batch of sheets
    tokens: int = 3000  # of one round, padding included
    max_rows: int = 32  # conversations of one round


FULL = Recipe()
COURSE = Recipe(  # small enough for a lesson
    rounds=("picture",),
    tasks={"describe": 3, "where": 3, "count": 2, "colour": 2, "shape": 1},
    things=(1, 2, 2, 3),
    max_side=112,
    large_share=0.0,
    text_share=0.0,
    free_share=0.0,
    odd_share=0.0,
    tower_share=0.45,  # the tower knows colours in half a minute, but shapes take longer
    tower_factor=3.0,  # from random weights, the tower learns faster so, and in smaller batches
    sheet_cells=400,
    tokens=1500,
)


# ── What is in each cell of 28×28 pixels (of the resized picture) ───────────────────────────────────────────────────


def share_box(box: tuple, picture: Scene) -> Shares:
    """A box in pixels as shares of the picture's width and height."""
    width, height = picture.width, picture.height
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def cell_of(x: float, y: float, picture: Scene, size: Size) -> int:
    """Index of the cell in which the point (x, y) in pixels lies."""
    rows, cols = size
    row = int(y / picture.height * rows)
    col = int(x / picture.width * cols)
    return min(rows - 1, max(0, row)) * cols + min(cols - 1, max(0, col))


def cell_of_thing(thing: Thing, picture: Scene, size: Size) -> int:
    """Index of the cell in which the thing's centre lies."""
    return cell_of(thing.cx, thing.cy, picture, size)


def grid_of(images: Qwen2VLImageProcessor, height: int, width: int) -> Size:
    """Rows and columns of visual tokens of a picture resized to (height, width)."""
    side = images.patch_size * images.merge_size
    return height // side, width // side


def near_cells(at: float, count: int) -> list[int]:
    """Rows (or columns) among `count` to which a centre at `at`, in cells, may belong: first the one it lies in."""
    own = min(count - 1, max(0, int(at)))
    return [own, *(i for i in (own - 1, own + 1) if 0 <= i < count and i - NEAR < at < i + 1 + NEAR)]


def name_targets(picture: Scene, size: Size, claims: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What is centred in each cell: its names (cells, 18), 0 or 1, one for each shape and each colour; and its box
    (cells, 4) in cells, from the cell's own top left corner, NaN where there is no thing.

    Pairs of colour and shape have no class of their own: a tower that names pairs would learn that the held-out ones
    never occur.

    On which side of a border a centre lies can be hard to see. Where two cells are both in doubt, both may name the
    thing, or neither, and the decoder would count two, or none. So with `claims`, the logits (cells, 18) that a tower
    now gives to the names, a thing near a border belongs to the cell that claims it most.
    """
    rows, cols = size
    names = torch.zeros(rows * cols, len(NAMES))
    edges = torch.full((rows * cols, 4), torch.nan)
    taken = {cell_of_thing(thing, picture, size) for thing in picture.things}

    for thing in picture.things:
        kinds = [NAMES[thing.shape], NAMES[thing.colour]]
        cell = cell_of_thing(thing, picture, size)
        if claims is not None:
            cell = claimed_cell(thing, picture, size, taken, claims[:, kinds].sum(1))
        names[cell, kinds] = 1
        x1, y1, x2, y2 = share_box(thing.box, picture)
        row, col = divmod(cell, cols)
        edges[cell] = torch.tensor([x1 * cols - col, y1 * rows - row, x2 * cols - col, y2 * rows - row])

    return names, edges


def claimed_cell(thing: Thing, picture: Scene, size: Size, taken: set[int], claims: Tensor) -> int:
    """Of the cells that a thing may belong to, the one with the highest claim (cells) and no other thing in it."""
    rows, cols = size
    own = cell_of_thing(thing, picture, size)
    near_rows = near_cells(thing.cy / picture.height * rows, rows)
    near_cols = near_cells(thing.cx / picture.width * cols, cols)
    near = [row * cols + col for row in near_rows for col in near_cols]
    free = [cell for cell in near if cell == own or cell not in taken]
    return max(free, key=lambda cell: claims[cell].item())


def character_targets(
    picture: Scene, texts: list[Text], size: Size, claims: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The characters centred in each cell from left to right (cells, SLOTS), 0 for none, else 1 and up; and how many
    characters of its text come before a cell's first one (cells), -1 where there is none.

    `claims` as in `name_targets`, here the log-probabilities of the characters (cells, SLOTS, 37).
    """
    rows, cols = size
    slots = torch.zeros(rows * cols, SLOTS, dtype=torch.long)
    first = torch.full((len(slots),), -1)
    used = [0] * len(slots)  # slots of each cell

    for text in texts:
        kinds = [CHARACTERS.index(character) + 1 for character in text.string]
        cells = [cell_of(x, y, picture, size) for x, y in text.centres]
        if claims is not None:
            cells = claimed_cells(text, kinds, picture, size, claims)
        for i, cell in enumerate(cells):
            if used[cell] == 0:
                first[cell] = min(i, MAX_TEXT_LENGTH - 1)
            if used[cell] < SLOTS:
                slots[cell, used[cell]] = kinds[i]
                used[cell] += 1

    return slots, first


def claimed_cells(text: Text, kinds: list[int], picture: Scene, size: Size, claims: Tensor) -> list[int]:
    """The cell of each character, by the claims (cells, SLOTS, 37) of those that it may belong to.

    Near a border between two rows, a whole text belongs to one of them. Characters stay in their order.
    """
    rows, cols = size
    likeliest = claims.amax(1).view(rows, cols, -1)  # (rows, cols, 37): of each character, in whichever slot
    row = claimed_row(text, kinds, picture, likeliest)
    col = 0
    cells = []
    for i, (x, _) in enumerate(text.centres):
        near = near_cells(x / picture.width * cols, cols)
        neighbours = kinds[max(0, i - 1) : i] + kinds[i + 1 : i + 2]
        if kinds[i] in neighbours:
            near = near[:1]  # a cell that has the one does not thereby claim the other
        claimed = likeliest[row, :, kinds[i]].tolist()  # of each column
        col = max(col, max(near, key=claimed.__getitem__))
        cells.append(row * cols + col)
    return cells


def claimed_row(text: Text, kinds: list[int], picture: Scene, likeliest: Tensor) -> int:
    """Of the rows that a text may belong to, the one that claims its characters most; `likeliest` (rows, cols, 37)."""
    rows, cols = likeliest.shape[:2]
    middle = text.centres[0][1]
    columns = [cell_of(x, y, picture, (rows, cols)) % cols for x, y in text.centres]
    claimed = {}
    for row in near_cells(middle / picture.height * rows, rows):
        claimed[row] = sum(likeliest[row, col, kind].item() for col, kind in zip(columns, kinds))
    return max(claimed, key=claimed.get)


# ── Sheets, for the tower alone ─────────────────────────────────────────────────────────────────────────────────────


def draw_sheet(
    rng: random.Random, width: int, height: int, letters: bool = True
) -> tuple[Scene, list[Text], Image.Image]:
    """A picture full of lines of letters and digits, or of many shapes, or (a tenth) an ordinary scene."""
    kind = rng.random() if letters else 0.2
    if kind < 0.1:
        scene = scenes.make_scene(rng, width, height, rng.randint(0, 5), rng.randint(1, MAX_TEXT_LENGTH))
        return scene, [scene.text], scenes.render(scene)
    if kind < 0.35:
        scene = scenes.make_scene(rng, width, height, min(40, 2 + width * height // rng.randint(2000, 5000)))
        return scene, [], scenes.render(scene)

    scene = scenes.make_scene(rng, width, height, 0)
    texts = lines_of_letters(rng, width, height, scene.background)
    image = scenes.render(scene)
    for text in texts:
        scenes.paint_text(image, text)
    return scene, texts, image


def lines_of_letters(rng: random.Random, width: int, height: int, background: Background) -> list[Text]:
    """Lines of random characters, from the top of the picture to its bottom."""
    texts = []
    y = rng.randint(1, 20)
    while True:
        key = rng.choice(rng.choice(scenes.font_families("train")))
        tall = scenes.MIN_TEXT_HEIGHT + min(height - 20, 52) * rng.random() ** 2
        string = "".join(rng.choices(CHARACTERS, k=2 + int(width / tall)))
        line = scenes.make_text(string, "black", COLOURS["black"], tall, key)
        left, top, _, bottom = line.box
        if y + bottom - top > height - 1:
            return texts

        x = rng.randint(1, 30)
        fitting = sum(1 for cx, _ in line.centres if cx - left + x + tall / 2 < width)
        line = scenes.make_text(string[: max(1, fitting)], "black", COLOURS["black"], tall, key)
        texts.append(scenes.colour_text(rng, scenes.text_at(line, x, y), background))
        y += int(bottom - top) + rng.randint(2, 14)


def make_sheets(seed: int, images: Qwen2VLImageProcessor, recipe: Recipe = FULL) -> dict:
    """Sheets of one size: patches (N, 1176), grid (sheets, 3), what is on each, and their rows and columns of cells."""
    rng = random.Random(f"sheets/{seed}")
    width = rng.randint(84, 336)
    height = rng.randint(84, 336)
    target = images.target_size(height, width)
    rows, cols = grid_of(images, *target)

    sheets, patches, grids = [], [], []
    for _ in range(max(1, recipe.sheet_cells // (rows * cols))):
        scene, texts, image = draw_sheet(rng, width, height, letters=recipe.text_share > 0)
        pixels, grid = images.patches_of([image], target)
        sheets.append((scene, texts))
        patches.append(pixels)
        grids.append(grid)

    return {
        "pixel_values": torch.cat(patches),
        "image_grid_thw": torch.tensor(grids),
        "sheets": sheets,
        "size": (rows, cols),
    }


def sheet_targets(
    sheets: list[tuple[Scene, list[Text]]], size: Size, names: Tensor, characters: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Names (M, 18), edges (M, 4) and slots (M, SLOTS) of all cells of `make_sheets`, given a tower's present claims:
    logits of the names (M, 18) and log-probabilities of the characters (M, SLOTS, 37)."""
    name_claims = names.chunk(len(sheets))
    character_claims = characters.chunk(len(sheets))
    names_of, edges_of, slots_of = [], [], []  # each sheet
    for i, (scene, texts) in enumerate(sheets):
        its_names, its_edges = name_targets(scene, size, name_claims[i])
        its_slots, _ = character_targets(scene, texts, size, character_claims[i])
        names_of.append(its_names)
        edges_of.append(its_edges)
        slots_of.append(its_slots)
    return torch.cat(names_of), torch.cat(edges_of), torch.cat(slots_of)


# ── Conversations: what is asked, and where its objects are ─────────────────────────────────────────────────────────

TEXT_ONLY_SHARE = 0.02  # of the turns about one picture are about the model itself
TURN_TOKENS = 110  # of text in one conversation, after the system message
EVENTS = (*scenes.DIRECTIONS, "appears", "disappears", "turns")

MENTION = re.compile(
    rf"\b(?:the|an?) (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object|thing|shape|figure|one)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Mark:
    """The box that must be known once `place` characters of a text have been read: that of the thing just named, or,
    if it is `coming`, of the thing to be named next. In a list, `left` things are named after it (-1: not a list)."""

    place: int
    box: Shares
    coming: bool = False
    left: int = -1


@dataclass(frozen=True)
class Digit:
    """What is still to be written of a coordinate once `place` characters of an answer have been written: of 473, it is
    0.473 before the 4, then 0.73.

    Ten times that, rounded down, is the next digit (but for the first one of a number below 100: 0.047 before 47).
    """

    place: int
    rest: float


@dataclass
class Turn:
    """A question and its answer, each with its marks."""

    task: str
    question: str
    answer: str
    question_marks: list[Mark] = field(default_factory=list)
    answer_marks: list[Mark | Digit] = field(default_factory=list)
    # Of the task "relation": whether the second thing named is further right than the first, and further down (1 or 0
    # each), and which of RELATIONS is asked for.
    beside: tuple[int, int, int] | None = None


def mark_turn(task: str, question: str, answer: str, picture: Scene, listed: list[Thing]) -> Turn:
    """A turn with its marks: one after each mention of a single thing in the question, and those of the answer.

    `listed` are the things that the answer names, in its order, in the scene `picture`.
    """
    turn = Turn(task, question, answer)

    asked = things_mentioned(question, picture)
    turn.question_marks = [Mark(place, share_box(thing.box, picture)) for place, thing in asked]
    if task == "relation":
        (_, first), (_, second) = asked[:2]
        relation = next(i for i, words in enumerate(RELATIONS) if words in question)
        turn.beside = int(second.cx > first.cx), int(second.cy > first.cy), relation

    if task == "where":
        turn.answer_marks = box_marks(answer)
    elif task == "colour":
        turn.answer_marks = [Mark(0, turn.question_marks[0].box)]
    elif task == "shape":
        box = share_box(listed[0].box, picture)
        turn.answer_marks = [Mark(place, box, coming=True) for place in (0, answer.index(" "))]
    else:
        turn.answer_marks = list_marks(answer, picture, listed)
    if task in ("read", "describe") and picture.text:
        turn.answer_marks += text_marks(answer, picture, quoted=task == "describe")

    return turn


def things_mentioned(question: str, picture: Scene) -> list[tuple[int, Thing]]:
    """Each thing that the question names unmistakably, with the place in the question where its name ends."""
    found = []
    for match in MENTION.finditer(question):
        colour, shape = (name and name.lower() for name in match.groups())
        is_any = shape not in SHAPES
        fitting = [t for t in picture.things if colour in (None, t.colour) and (is_any or shape == t.shape)]
        if len(fitting) == 1:
            found.append((match.end(), fitting[0]))
    return found


def box_marks(answer: str) -> list[Mark | Digit]:
    """Of an answer with a box: the box where it opens, and what remains of each coordinate before its digits."""
    start = re.search(r"<\|box_start\|>", answer).end()
    numbers = list(re.finditer(r"\d+", answer))
    marks: list[Mark | Digit] = [Mark(start, tuple(int(number[0]) / 1000 for number in numbers))]
    for number in numbers:
        marks.append(Digit(number.start(), int(number[0]) / 1000))
        if len(number[0]) > 2:  # the last digit is finer than a pixel
            marks.append(Digit(number.start() + 1, int(number[0][1:]) / 100))
    return marks


def list_marks(answer: str, picture: Scene, listed: list[Thing]) -> list[Mark]:
    """Of an answer that lists things: each thing's box before it is named and after."""
    items = list(re.finditer(r"\b[Aa]n? (\w+) (\w+)", answer))
    left = len(items) + ("text" in answer)
    marks = []
    for match, thing in zip(items, listed):
        box = share_box(thing.box, picture)
        left -= 1
        # Before the article, before the colour, and before the shape.
        places = max(0, match.start() - 1), match.start(1) - 1, match.end(1)
        marks += [Mark(place, box, coming=True) for place in places]
        marks.append(Mark(match.end(2), box, left=left))
    return marks


def text_marks(answer: str, picture: Scene, quoted: bool) -> list[Mark]:
    """Of an answer that spells the picture's text: before each character, the point where it is centred, as a box."""
    begin = answer.index('"') + 1 if quoted else answer.index(picture.text.string)
    marks = []
    for i, (x, y) in enumerate(picture.text.centres):
        marks.append(Mark(begin + i, share_box((x, y, x, y), picture), coming=True))
    return marks


def freely(turn: Turn, picture: Scene, rng: random.Random, share: float) -> Turn:
    """The turn, in a `share` of the cases with its question in other words. (Without a share, no number is drawn.)"""
    if share == 0 or rng.random() >= share:
        return turn
    question = reword(turn.question, rng)
    marks = [Mark(place, share_box(thing.box, picture)) for place, thing in things_mentioned(question, picture)]
    return replace(turn, question=question, question_marks=marks)


def odd_turn(scene: Scene, rng: random.Random) -> Turn | None:
    """A question about something that is not there, or may not be, or that the model does not know."""
    asker = rng.choice((ask_absent, ask_absent, ask_there, ask_where_loosely, None, None))
    if asker is None:
        return Turn("unknown", ask_unknown(rng), UNKNOWN)
    asked = asker(scene, rng)
    return marked_odd_turn(asked, scene) if asked else None


def marked_odd_turn(asked: Asked, scene: Scene) -> Turn:
    """With the marks of what is named, and of its box."""
    named = [Mark(place, share_box(thing.box, scene)) for place, thing in things_mentioned(asked.question, scene)]
    boxes = box_marks(asked.answer) if "<|box_start|>" in asked.answer else []
    return Turn(asked.task, asked.question, asked.answer, named, boxes)


def picture_turn(
    scene: Scene, rng: random.Random, weights: Mapping[str, float], free_share: float = 0.0, odd_share: float = 0.0
) -> Turn | None:
    """A question about one picture, None where the task drawn does not fit it."""
    if odd_share and rng.random() < odd_share:
        return odd_turn(scene, rng)
    task = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if rng.random() < TEXT_ONLY_SHARE:
        return freely(Turn("text", *rng.choice(sorted(scenes.TEXT_ONLY.items()))), scene, rng, free_share)
    turn = scenes.ask(scene, task, rng)
    if turn is None:
        return None

    question, answer = turn
    listed = list(scene.things)
    if task == "what":
        listed = [t for t in scene.things if scenes.answer_box(t.box, scene.width, scene.height) in question]
    if task == "shape":
        colour = question.split()[-2]
        listed = [t for t in scene.things if t.colour == colour]
    return freely(mark_turn(task, question, answer, scene, listed), scene, rng, free_share)


def pair_targets(first: Scene, second: Scene) -> list[int]:
    """Whether the second picture has fewer, as many or more things (0, 1, 2), and whether it is the same (0, 1)."""
    a, b = len(first.things), len(second.things)
    compared = 0 if b < a else 1 if b == a else 2
    return [compared, int(first == second)]


def pair_turns(first: Scene, second: Scene, made_for: str, rng: random.Random, free_share: float = 0.0) -> list[Turn]:
    """Questions about two pictures, in any order: `made_for` always, since the pictures were made to have its answers
    in fair shares, and sometimes the others."""
    questions = [q for q in scenes.COMPARE_QUESTIONS if q == made_for or rng.random() < 0.3]
    common = [second.things[i] for i in scenes.matched_things(first, second).values()]
    turns = []
    for question in questions:
        turn = scenes.ask_compare(first, second, question)
        if turn is not None:
            listed = common if question.startswith("What") else []
            turns.append(freely(mark_turn("compare", *turn, second, listed), second, rng, free_share))
    return rng.sample(turns, len(turns))


def what_changed(clip: list[Scene]) -> tuple[str, Thing]:
    """The event of a clip (one of EVENTS) and its thing as last seen; of one that turns, as first seen."""
    before = [t for t in clip[0].things if t not in clip[-1].things]
    after = [t for t in clip[-1].things if t not in clip[0].things]
    if not before:
        return "appears", after[0]
    if not after:
        return "disappears", before[0]

    old, new = before[0], after[0]
    if old.colour != new.colour:
        return "turns", old
    dx, dy = new.cx - old.cx, new.cy - old.cy
    if abs(dx) > abs(dy):
        return ("left" if dx < 0 else "right"), new
    return ("up" if dy < 0 else "down"), new


def clip_turns(
    clip: list[Scene], question: str, answer: str, rng: random.Random, free_share: float = 0.0
) -> list[Turn]:
    """The clip's own question; of a moving thing that is the only one of its shape, both questions, in any order."""
    event, thing = what_changed(clip)
    turns = [(question, answer)]
    if event in scenes.DIRECTIONS:
        name = scenes.capitalise(scenes.with_article(thing.name))
        turns = [("What happens?", f"{name} moves {event}.")]
        if [t.shape for t in clip[0].things].count(thing.shape) == 1:
            turns.append((f"Which way does the {thing.shape} move?", scenes.capitalise(event) + "."))

    others = tuple(t for t in clip[-1].things if t.name != thing.name)
    last = replace(clip[-1], things=(*others, thing))
    marked = [freely(mark_turn("motion", *turn, last, [thing]), last, rng, free_share) for turn in turns]
    return rng.sample(marked, len(marked))


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENING = "assistant\n"  # the chat template's, before each answer


@dataclass
class Conversation:
    """The tokens of one conversation, and what must be known at which of them."""

    ids: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # the number of each token's answer; -1: it is not learned
    marks: list[tuple[int, Mark | Digit]] = field(default_factory=list)  # with the place of their token
    ends: list[int] = field(default_factory=list)  # places of <|vision_end|>, one for each picture or clip
    begins: list[int] = field(default_factory=list)  # the place before each answer


def encode_turns(
    processor: Qwen2VLProcessor, turns: list[Turn], media: list[str], cells: list[int], trusted: bool = False
) -> Conversation:
    """One conversation about pictures (or a clip), the kinds `media`, of `cells` visual tokens each.

    Only answers, with their <|im_end|>, are learned. A box in a question is plain text to our processor, but control
    tokens to the official one: if `trusted`, here too.
    """
    messages, marked = [], []
    for i, turn in enumerate(turns):
        items = [{"type": kind} for kind in media] if i == 0 else []
        messages.append({"role": "user", "content": [*items, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": turn.answer})
        marked += [(turn.question, turn.question_marks), (turn.answer, turn.answer_marks)]

    writer = ConversationWriter(processor.tokenizer, cells, trusted)
    for piece, marks in join_texts(render_chat(messages), marked):
        writer.write(piece, marks)
    return writer.conversation


def join_texts(pieces: Iterable[str], marked: list[tuple[str, list]]) -> list[tuple[str, list]]:
    """Pieces of a rendered chat with their marks, neighbouring texts joined: BPE may merge across their border.

    `marked` are the texts that have marks, in the order in which they come.
    """
    waiting = list(marked)
    joined: list[tuple[str, list]] = []
    for piece in pieces:
        if isinstance(piece, Special):
            joined.append((piece, []))
            continue

        marks = []
        if waiting and piece == waiting[0][0]:
            _, marks = waiting.pop(0)
        if joined and not isinstance(joined[-1][0], Special):
            text, earlier = joined.pop()
            joined.append((text + piece, earlier + moved(marks, len(text))))
        else:
            joined.append((piece, marks))
    return joined


def moved(marks: list, by: int) -> list:
    """The marks `by` characters further on."""
    return [replace(mark, place=mark.place + by) for mark in marks]


class ConversationWriter:
    """Encodes a conversation piece by piece."""

    def __init__(self, tokenizer: Qwen2VLTokenizer, cells: list[int], trusted: bool):
        self.tokenizer = tokenizer
        self.cells = iter(cells)  # visual tokens of each picture (or clip)
        self.trusted = trusted
        self.conversation = Conversation()
        self.in_answer = False

    def write(self, piece: str, marks: list) -> None:
        """Append a special token, or a text with its marks."""
        is_text = not isinstance(piece, Special)
        if is_text and piece.startswith(OPENING):
            self.open_answer()
            piece = piece[len(OPENING) :]
            marks = moved(marks, -len(OPENING))

        # Before the first token of an answer, the token that must know is the one that predicts it.
        last = len(self.conversation.ids) - 1
        self.conversation.marks += [(last, mark) for mark in marks if mark.place == 0]
        has_specials = is_text and (self.in_answer or self.trusted)
        for part in self.tokenizer.split(piece) if has_specials else [piece]:
            self.write_part(part, marks)
            marks = moved(marks, -len(part))

        if piece == "<|im_end|>":  # which is still learned
            self.in_answer = False

    def open_answer(self) -> None:
        """Append the opening, encoded apart from the answer: this much the model is given when it is asked."""
        self.append(self.tokenizer.encode(OPENING))
        self.conversation.begins.append(len(self.conversation.ids) - 1)
        self.in_answer = True

    def write_part(self, part: str, marks: list) -> None:
        """Append a text without special tokens, or one special token."""
        if isinstance(part, Special):
            ids, spans = [self.tokenizer.special_ids[part]], [(0, len(part))]
        else:
            encoding = self.tokenizer.bpe.encode(part, add_special_tokens=False)
            ids, spans = encoding.ids, encoding.offsets

        # A mark stands at the token with the character just read.
        at = len(self.conversation.ids)
        for mark in marks:
            places = [at + i for i, (begin, end) in enumerate(spans) if begin < mark.place <= end]
            self.conversation.marks += [(place, mark) for place in places]

        if isinstance(part, Special) and part in ("<|image_pad|>", "<|video_pad|>"):
            ids = ids * next(self.cells)
        if isinstance(part, Special) and part == "<|vision_end|>":
            self.conversation.ends.append(at)
        self.append(ids)

    def append(self, ids: list[int]) -> None:
        """Append tokens, learned if they belong to an answer."""
        answer = len(self.conversation.begins) - 1 if self.in_answer else -1
        self.conversation.ids += ids
        self.conversation.answers += [answer] * len(ids)


# ── Rounds: a set of conversations of one kind, with their targets ──────────────────────────────────────────────────


def pick_size(rng: random.Random, largest: int, evenly: bool = False) -> tuple[int, int]:
    """Width and height in pixels, small ones more often unless `evenly`, never longer than 4:1."""
    least = scenes.MIN_SIDE
    while True:
        if evenly:
            width = rng.randint(least, largest)
            height = rng.randint(least, largest)
        else:
            width = int(least * (largest / least) ** rng.random())
            height = int(least * (largest / least) ** rng.random())
        if max(width, height) <= scenes.MAX_ASPECT * min(width, height):
            return width, height


def draw_scene(rng: random.Random, width: int, height: int, longest: int, recipe: Recipe = FULL) -> Scene:
    """A picture to ask about, some with a text of at most `longest` characters."""
    things = rng.choice(recipe.things)
    if rng.random() >= recipe.text_share or max(width, height) >= READ_BELOW:
        return scenes.make_scene(rng, width, height, things, repeat=rng.choice((0.3, 0.8)))
    return scenes.make_scene(rng, width, height, rng.choice((0, 0, things)), rng.randint(1, longest))


def turns_of_picture(
    scene: Scene, processor: Qwen2VLProcessor, rng: random.Random, recipe: Recipe = FULL
) -> list[Turn]:
    """Different questions about one picture until TURN_TOKENS are full: the costly part, seeing it, is paid once."""
    tokenizer = processor.tokenizer
    turns: list[Turn] = []
    room = TURN_TOKENS
    for _ in range(25):
        turn = picture_turn(scene, rng, recipe.tasks, recipe.free_share, recipe.odd_share)
        if turn is None or turn.question in [t.question for t in turns]:
            continue
        needed = len(tokenizer.encode(tokenizer.split(turn.question + turn.answer))) + 9  # of the template
        if needed <= room or not turns:
            turns.append(turn)
            room -= needed
        if room < 14:  # no turn is as short
            break
    return turns or [Turn("text", *sorted(scenes.TEXT_ONLY.items())[0])]


def cell_targets(
    picture: Scene, size: Size, later: Scene | None = None, earlier: Scene | None = None, before: Scene | None = None
) -> dict[str, Tensor]:
    """What each cell must know of a picture, alone or after the picture `before`, or of a pair of frames (`picture`,
    `later`), after the frame `earlier` if they are not the first. Numbers that do not apply are NaN or -1.

    first (cells): of a text, how many characters come before the cell's first one. places (cells, 6): the cell's column
    and row, and the box of its object in cells, all over 8. moves (cells, 2): how far its object has come since
    `earlier`, in cells over 4. changes (cells): what has happened in it since then (or since `picture`), 0 for nothing,
    else 1 and up for one of EVENTS. matches (cells): whether its object is in `before`, too, 0 or 1. partners
    (cells, 2): if so, the column and row of the object's centre there, in cells over 8.
    """
    rows, cols = size
    last = later or picture
    _, edges = name_targets(last, size)
    texts = [picture.text] if picture.text else []
    _, first = character_targets(picture, texts, size)
    # The column and row of each cell, (cells, 2).
    corners = torch.stack([torch.arange(cols).repeat(rows), torch.arange(rows).repeat_interleave(cols)], dim=1)
    matches, partners = match_targets(picture, size, before)
    return {
        "first": first,
        "places": torch.cat([corners, corners.repeat(1, 2) + edges], dim=1) / 8,
        "moves": move_targets(last, size, earlier),
        "changes": change_targets(last, size, earlier or picture, is_clip=later is not None),
        "matches": matches,
        "partners": partners,
    }


def pixels_of_cell(picture: Scene, size: Size) -> Tensor:
    """Width and height of a cell in pixels, (2)."""
    rows, cols = size
    return torch.tensor([picture.width / cols, picture.height / rows])


def move_targets(frame: Scene, size: Size, earlier: Scene | None) -> Tensor:
    """`moves` of `cell_targets`: of each thing that can be told from the others by its name."""
    rows, cols = size
    moves = torch.full((rows * cols, 2), torch.nan)
    names = [t.name for t in frame.things]
    for thing in frame.things:
        same = [t for t in (earlier.things if earlier else ()) if t.name == thing.name]
        if len(same) == 1 and names.count(thing.name) == 1:
            way = torch.tensor([thing.cx - same[0].cx, thing.cy - same[0].cy])
            moves[cell_of_thing(thing, frame, size)] = way / pixels_of_cell(frame, size) / 4
    return moves


def change_targets(frame: Scene, size: Size, earlier: Scene, is_clip: bool) -> Tensor:
    """`changes` of `cell_targets`."""
    rows, cols = size
    changes = torch.full((rows * cols,), 0 if is_clip else -1)
    if earlier.things != frame.things:
        event, thing = what_changed([earlier, frame])
        changes[cell_of_thing(thing, frame, size)] = 1 + EVENTS.index(event)
    return changes


def match_targets(picture: Scene, size: Size, before: Scene | None) -> tuple[Tensor, Tensor]:
    """`matches` and `partners` of `cell_targets`."""
    rows, cols = size
    matches = torch.full((rows * cols,), -1)
    partners = torch.full((rows * cols, 2), torch.nan)
    if before is None:
        return matches, partners

    for thing in picture.things:
        matches[cell_of_thing(thing, picture, size)] = 0
    for i, k in scenes.matched_things(before, picture).items():
        there = before.things[i]
        cell = cell_of_thing(picture.things[k], picture, size)
        matches[cell] = 1
        partners[cell] = torch.tensor([there.cx, there.cy]) / pixels_of_cell(picture, size) / 8
    return matches, partners


def count_targets(picture: Scene) -> list[int]:
    """How many things of each shape, of each colour, and in all."""
    names = [name for thing in picture.things for name in (thing.shape, thing.colour)]
    return [min(6, names.count(name)) for name in NAMES] + [min(6, len(picture.things))]


def event_targets(clip: list[Scene]) -> list[int]:
    """The event of a clip, and its thing's shape, colour, and colour in the end."""
    colours = list(COLOURS)
    event, thing = what_changed(clip)
    now = [t for t in clip[-1].things if t not in clip[0].things] or [thing]
    return [
        EVENTS.index(event),
        SHAPES.index(thing.shape),
        colours.index(thing.colour),
        colours.index(now[0].colour),
    ]


@dataclass(frozen=True)
class Canvas:
    """What all pictures of a round have in common."""

    width: int  # pixels, as drawn
    height: int
    frames: int  # of a clip; 1 for a picture
    target: tuple[int, int]  # height and width in pixels, as the model sees it
    size: Size  # rows and columns of cells

    @property
    def cells(self) -> int:
        """Visual tokens of a picture or a clip, of which two frames share their tokens."""
        return self.size[0] * self.size[1] * -(-self.frames // 2)


def make_canvas(images: Qwen2VLImageProcessor, kind: str, width: int, height: int, frames: int) -> Canvas:
    """The canvas of pictures drawn at (width, height) in a round of this kind."""
    target = images.frame_size(frames, height, width) if kind == "clip" else images.target_size(height, width)
    return Canvas(width, height, frames, target, grid_of(images, *target))


def pick_canvas(images: Qwen2VLImageProcessor, kind: str, rng: random.Random, recipe: Recipe) -> Canvas:
    """A random canvas for a round of this kind."""
    is_large = rng.random() < recipe.large_share
    largest = recipe.max_side * 2 if is_large else recipe.max_side
    if kind == "read":
        largest = min(largest, READ_BELOW - 1)
    width, height = pick_size(rng, largest, evenly=is_large)
    frames = rng.choice(recipe.frames) if kind == "clip" else 1
    return make_canvas(images, kind, width, height, frames)


MEDIA = {"picture": ["image"], "read": ["image"], "pair": ["image", "image"], "clip": ["video"]}
TURNS_LENGTH = {"picture": TURN_TOKENS, "read": 35, "pair": 75, "clip": 60}  # tokens of text, about


def rows_that_fit(kind: str, canvas: Canvas, recipe: Recipe) -> int:
    """How many conversations of this kind a round has room for."""
    most = recipe.max_rows * 2 if kind == "read" else recipe.max_rows
    tokens_each = canvas.cells * len(MEDIA[kind]) + TURNS_LENGTH[kind] + 20  # of the system message
    return max(1, min(most, recipe.tokens // tokens_each))


Drawn = tuple[list[Scene], list[Turn]]  # pictures (or the frames of a clip), and what is asked about them


def draw_picture(
    rng: random.Random, canvas: Canvas, longest: int, processor: Qwen2VLProcessor, recipe: Recipe
) -> Drawn:
    """One picture, with or without a text, and several questions about it."""
    scene = draw_scene(rng, canvas.width, canvas.height, longest, recipe)
    return [scene], turns_of_picture(scene, processor, rng, recipe)


def draw_read(rng: random.Random, canvas: Canvas, longest: int, recipe: Recipe) -> Drawn:
    """A picture with a text to be read, and one thing at most."""
    scene = scenes.make_scene(rng, canvas.width, canvas.height, rng.choice((0, 0, 1)), rng.randint(1, longest))
    turn = mark_turn("read", *scenes.ask(scene, "read", rng), scene, [])
    return [scene], [freely(turn, scene, rng, recipe.free_share)]


def draw_pair(rng: random.Random, canvas: Canvas, recipe: Recipe) -> Drawn | None:
    """Two pictures and questions about both; None where the draw fails, or where nothing can be asked."""
    made_for = rng.choice(scenes.COMPARE_QUESTIONS)
    pair = scenes.make_pair(rng, canvas.width, canvas.height, made_for, max(recipe.things), "train")
    if not pair or not pair[1].things:
        return None
    turns = pair_turns(*pair, made_for, rng, recipe.free_share)
    return (list(pair), turns) if turns else None


def draw_clip(rng: random.Random, canvas: Canvas, recipe: Recipe) -> Drawn | None:
    """A clip and questions about it; None where nothing can move in so small a picture."""
    clip = scenes.make_clip(rng, canvas.width, canvas.height, canvas.frames, max(recipe.things), "train")
    if clip is None:
        return None
    frames, question, answer = clip
    return frames, clip_turns(frames, question, answer, rng, recipe.free_share)


def render_all(shown: list[Scene]) -> list[Image.Image]:
    """The pictures of scenes; equal ones, such as frames in which nothing changes, are drawn once."""
    images = {scene: scenes.render(scene) for scene in set(shown)}
    return [images[scene] for scene in shown]


def padded_rows(rows: list[list[int]], filler: int) -> Tensor:
    """Lists of different lengths → (B, S), filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


class RoundBuilder:
    """Collects the conversations of one round, their pictures and their targets."""

    def __init__(self, kind: str, processor: Qwen2VLProcessor):
        self.kind = kind
        self.processor = processor
        self.conversations: list[Conversation] = []
        self.tasks: list[list[str]] = []
        self.patches: list[Tensor] = []  # (N, 1176) of each picture or clip
        self.grids: list[list[int]] = []
        self.cells: list[dict[str, Tensor]] = []  # `cell_targets` of each picture or pair of frames
        # Each of the following is a list of targets: row, place, and what must be known there.
        self.ends: list[list] = []
        self.known: list[list] = []
        self.digits: list[list] = []
        self.beside: list[list] = []
        self.counts: list[list] = []
        self.events: list[list] = []
        self.pairs: list[list] = []

    def add(self, conversation: Conversation, turns: list[Turn], shown: list[Scene], canvas: Canvas) -> None:
        """Append a conversation with the scenes that it shows."""
        row = len(self.conversations)
        self.conversations.append(conversation)
        self.tasks.append([turn.task for turn in turns])
        self.ends += [[row, end] for end in conversation.ends]
        self.add_marks(row, conversation, turns)
        if self.kind == "clip":
            self.add_clip(row, conversation.ends[0], shown, canvas)
        else:
            self.add_pictures(row, conversation.ends, shown, canvas)

    def add_marks(self, row: int, conversation: Conversation, turns: list[Turn]) -> None:
        """Targets at words."""
        for place, mark in conversation.marks:
            if isinstance(mark, Digit):
                self.digits.append([row, place, mark.rest])
            else:
                self.known.append([row, place, *mark.box, mark.coming, mark.left])
        for place, turn in zip(conversation.begins, turns, strict=True):
            if turn.beside:
                self.beside.append([row, place, *turn.beside])

    def add_clip(self, row: int, end: int, frames: list[Scene], canvas: Canvas) -> None:
        """Patches and targets of a clip."""
        # Frames of a clip are resampled as by torch, pictures as by Pillow.
        pixels, grid = self.processor.image_processor.patches_of(render_all(frames), canvas.target, "torch")
        self.patches.append(pixels)
        self.grids.append(grid)

        earlier = None
        for i in range(0, len(frames), 2):  # two frames share their tokens; an odd last one is doubled
            last = frames[min(i + 1, len(frames) - 1)]
            self.cells.append(cell_targets(frames[i], canvas.size, later=last, earlier=earlier))
            earlier = last
        self.events.append([row, end, *event_targets(frames)])

    def add_pictures(self, row: int, ends: list[int], shown: list[Scene], canvas: Canvas) -> None:
        """Patches and targets of a picture, or of two."""
        images = render_all(shown)
        for i, (scene, end) in enumerate(zip(shown, ends, strict=True)):
            pixels, grid = self.processor.image_processor.patches_of([images[i]], canvas.target)
            self.patches.append(pixels)
            self.grids.append(grid)
            self.cells.append(cell_targets(scene, canvas.size, before=shown[0] if i else None))
            self.counts.append([row, end, *count_targets(scene)])
        if self.kind == "pair":
            self.pairs.append([row, ends[1], *pair_targets(*shown)])

    def batch(self, size: Size) -> dict:
        """All of it as tensors; `size` in cells is that of each picture."""
        return {
            "inputs": self.inputs(),
            "size": size,
            "ends": torch.tensor(self.ends),  # row, place
            "answers": padded_rows([c.answers for c in self.conversations], -1),  # (B, S)
            # row, place, box in shares, whether it is coming, how many are left
            "known": torch.tensor(self.known).reshape(-1, 8),
            "digits": torch.tensor(self.digits).reshape(-1, 3),  # row, place, what remains of a coordinate
            # row, place, whether further right, whether further down, relation
            "beside": torch.tensor(self.beside, dtype=torch.long).reshape(-1, 5),
            "counts": torch.tensor(self.counts, dtype=torch.long).reshape(-1, 2 + len(NAMES) + 1),
            "events": torch.tensor(self.events, dtype=torch.long).reshape(-1, 6),
            "pairs": torch.tensor(self.pairs, dtype=torch.long).reshape(-1, 4),
            **{key: torch.cat([part[key] for part in self.cells]) for key in self.cells[0]},
            "tasks": self.tasks,
        }

    def inputs(self) -> dict[str, Tensor]:
        """The model's inputs. Padding on the right needs no mask: it lies in the future of every real token."""
        ids = padded_rows([c.ids for c in self.conversations], self.processor.tokenizer.pad_token_id)  # (B, S)
        patches = torch.cat(self.patches)  # (N, 1176)
        grids = torch.tensor(self.grids)  # (pictures or clips, 3)
        if self.kind == "clip":
            return {"input_ids": ids, "pixel_values_videos": patches, "video_grid_thw": grids}
        return {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grids}


def make_round(
    kind: str, seed: int, processor: Qwen2VLProcessor, longest: int = MAX_TEXT_LENGTH, recipe: Recipe = FULL
) -> dict:
    """Conversations about pictures, texts to be read, pairs of pictures, or clips, as tensors."""
    rng = random.Random(f"{kind}/{seed}")
    images = processor.image_processor
    canvas = pick_canvas(images, kind, rng, recipe)
    rows = rows_that_fit(kind, canvas, recipe)

    builder = RoundBuilder(kind, processor)
    while len(builder.conversations) < rows:
        if kind == "picture":
            drawn = draw_picture(rng, canvas, longest, processor, recipe)
        elif kind == "read":
            drawn = draw_read(rng, canvas, longest, recipe)
        elif kind == "pair":
            drawn = draw_pair(rng, canvas, recipe)
        else:
            drawn = draw_clip(rng, canvas, recipe)
        if drawn is None:
            if kind == "clip":
                canvas = make_canvas(images, kind, *pick_size(rng, recipe.max_side), canvas.frames)
            continue

        shown, turns = drawn
        cells = [canvas.cells] * len(MEDIA[kind])
        conversation = encode_turns(processor, turns, MEDIA[kind], cells, trusted=rng.random() < 0.5)
        builder.add(conversation, turns, shown, canvas)

    return builder.batch(canvas.size)


# ── Rounds without targets for the heads: a picture beside a clip, and no picture at all ────────────────────────────


def answers_round(conversations: list[Conversation], turns: list[list[Turn]], pad: int, media: dict) -> dict:
    """A round of which only the answers are learned; `media` are the model's inputs besides the ids."""
    return {
        "inputs": {"input_ids": padded_rows([c.ids for c in conversations], pad), **media},
        "answers": padded_rows([c.answers for c in conversations], -1),
        "tasks": [[turn.task for turn in row] for row in turns],
    }


def make_mixed_round(seed: int, processor: Qwen2VLProcessor, recipe: Recipe = FULL) -> dict:
    """Conversations about a picture and a clip, in either order.

    "What happens?" is about the clip then, and "Describe this image." about the picture.
    """
    rng = random.Random(f"mixed/{seed}")
    images = processor.image_processor
    small = replace(recipe, large_share=0.2)
    still = pick_canvas(images, "picture", rng, small)
    moving = pick_canvas(images, "clip", rng, small)
    room = recipe.tokens // (still.cells + moving.cells + TURNS_LENGTH["clip"] + 30)
    rows = max(1, min(recipe.max_rows, room))

    conversations, all_turns = [], []
    parts = {"image": [], "video": []}  # patches and grid of each
    while len(conversations) < rows:
        drawn = draw_clip(rng, moving, recipe)
        if drawn is None:
            moving = make_canvas(images, "clip", *pick_size(rng, recipe.max_side), moving.frames)
            continue
        frames, turns = drawn
        scene = scenes.make_scene(rng, still.width, still.height, rng.choice(recipe.things))
        turns = turns[: rng.randint(1, 2)]
        if scene.things and rng.random() < 0.5:
            turns.insert(rng.randint(0, len(turns)), describe_turn(scene, rng))

        order = rng.sample([("image", still.cells), ("video", moving.cells)], 2)
        kinds, cells = zip(*order)
        conversations.append(encode_turns(processor, turns, list(kinds), list(cells)))
        all_turns.append(turns)
        parts["image"].append(images.patches_of(render_all([scene]), still.target))
        parts["video"].append(images.patches_of(render_all(frames), moving.target, "torch"))

    media = {}
    for kind, pixels_name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        media[pixels_name] = torch.cat([patches for patches, _ in parts[kind]])
        media[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in parts[kind]])
    return answers_round(conversations, all_turns, processor.tokenizer.pad_token_id, media)


def describe_turn(scene: Scene, rng: random.Random) -> Turn:
    """A description of the picture that stands beside a clip, asked for in words that cannot mean the clip."""
    question, answer = scenes.ask(scene, "describe", rng)
    others = (
        "Describe the image.",
        "describe this picture",
        "What is in the picture?",
        "What do you see in the image?",
    )
    return Turn("describe", question if rng.random() < 0.5 else rng.choice(others), answer)


def make_talk_round(seed: int, processor: Qwen2VLProcessor, recipe: Recipe = FULL) -> dict:
    """Conversations without any picture: who the model is, what it can do, and all that it does not know."""
    rng = random.Random(f"talk/{seed}")
    nothing = scenes.make_scene(rng, scenes.MIN_SIDE, scenes.MIN_SIDE, 0)
    conversations, all_turns = [], []
    for _ in range(24):
        turns = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            turn = Turn("text", *rng.choice(sorted(scenes.TEXT_ONLY.items())))
            is_known = rng.random() < 0.35
            turns.append(
                freely(turn, nothing, rng, recipe.free_share)
                if is_known
                else Turn("unknown", ask_unknown(rng), UNKNOWN)
            )
        conversations.append(encode_turns(processor, turns, [], []))
        all_turns.append(turns)
    return answers_round(conversations, all_turns, processor.tokenizer.pad_token_id, {})


class Rounds(torch.utils.data.IterableDataset):
    """Endless sheets, or rounds of conversations, each from its own seed."""

    def __init__(self, folder: Path, first: int, sheets: bool, recipe: Recipe = FULL):
        self.folder = folder  # of the processor
        self.first = first  # seed
        self.sheets = sheets
        self.recipe = recipe

    def __iter__(self):
        if torch.utils.data.get_worker_info():
            torch.set_num_threads(1)
        processor = Qwen2VLProcessor.from_pretrained(self.folder)
        for seed in itertools.count(self.first):
            if self.sheets:
                yield make_sheets(seed, processor.image_processor, self.recipe)
            else:
                kind = self.recipe.rounds[seed % len(self.recipe.rounds)]
                longest = min(MAX_TEXT_LENGTH, self.recipe.first_length + seed // self.recipe.longer_every)
                if kind == "mixed":
                    yield make_mixed_round(seed, processor, self.recipe)
                elif kind == "talk":
                    yield make_talk_round(seed, processor, self.recipe)
                else:
                    yield make_round(kind, seed, processor, longest, self.recipe)
