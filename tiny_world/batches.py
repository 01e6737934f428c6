"""Batches for training: pictures and clips, conversations about them, and what the training-only heads must know.

A *sheet* is a picture crowded with letters or shapes, for the vision tower alone: every visual token has something to
say. A *round* is a set of conversations, each about one picture, two pictures or a clip, filled with questions up to
nearly the same number of tokens, so that little of it is padding. A seed gives the same batch always.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, Special, render_chat
from tiny_world import scenes
from tiny_world.scenes import CHARACTERS, COLOURS, MAX_TEXT_LENGTH, SHAPES, Scene, Text, Thing

SLOTS = 5  # characters that one cell can hold, from left to right
NEAR = 0.12  # of a cell: what is centred so near a border may count as centred beyond it
NAMES = {name: i for i, name in enumerate((*SHAPES, *COLOURS))}

Size = tuple[int, int]  # rows, columns of cells
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 as shares of the picture's width and height


@dataclass(frozen=True)
class Recipe:
    """What is trained on, and how. `tasks` says how often each is asked about one picture, where it fits."""

    # again and again; pictures with nothing but a text keep the decoder reading
    rounds: tuple[str, ...] = ("picture", "read", "clip", "pair", "picture", "clip", "picture", "pair")
    tasks: Mapping[str, float] = field(
        default_factory=lambda: {
            **{"describe": 3, "where": 3, "count": 3, "colour": 1.5, "shape": 1, "relation": 3, "what": 1, "read": 5}
        }
    )
    things: tuple[int, ...] = (1, 2, 3, 3, 4, 4, 5, 5, 6, 6)  # objects in a picture, drawn evenly
    max_side: int = scenes.MAX_SIDE // 2  # pixels, small sides more often; but up to twice that, evenly, in …
    large_share: float = 0.5  # … this share of the rounds
    frames: tuple[int, ...] = (4, 5, 6, 7, 8)  # of a clip, drawn evenly
    text_share: float = 0.35  # of the pictures have a text to read
    longer_every: int = 900  # rounds: texts of two characters at first, then of one more
    tower_share: float = 0.4  # of the time the tower learns alone; then it is frozen
    tower_factor: float = 1.0  # of the rates, for the tower
    sheet_cells: int = 1300  # visual tokens of a batch of sheets
    tokens: int = 3000  # of one round, the padding included
    max_rows: int = 32


FULL = Recipe()
COURSE = Recipe(  # small enough for a lesson
    rounds=("picture",),
    tasks={"describe": 3, "where": 3, "count": 2, "colour": 2, "shape": 1},
    things=(1, 2, 2, 3),
    max_side=112,
    large_share=0.0,
    text_share=0.0,
    tower_share=0.45,  # it knows colours in half a minute, but shapes are slow
    tower_factor=3.0,  # from random weights, it learns faster so, and in smaller steps
    sheet_cells=400,
    tokens=1500,
)


# ── What is in each cell of 28×28 pixels (of the resized picture) ───────────────────────────────────────────────────


def share_box(box: tuple, picture: Scene) -> Box:
    width, height = picture.width, picture.height
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def cell_of(x: float, y: float, picture: Scene, size: Size) -> int:
    """Index of the cell in which the point (x, y) in pixels lies."""
    rows, cols = size
    row, col = int(y / picture.height * rows), int(x / picture.width * cols)
    return min(rows - 1, max(0, row)) * cols + min(cols - 1, max(0, col))


def grid_of(images: Qwen2VLImageProcessor, height: int, width: int) -> Size:
    """Rows and columns of visual tokens of a picture resized to (height, width)."""
    side = images.patch_size * images.merge_size
    return height // side, width // side


def near_cells(at: float, count: int) -> list[int]:
    """The rows (or columns) of `count` as whose a centre may count: that in which it lies (`at`, in cells), first."""
    own = min(count - 1, max(0, int(at)))
    return [own, *(i for i in (own - 1, own + 1) if 0 <= i < count and i - NEAR < at < i + 1 + NEAR)]


def name_targets(picture: Scene, size: Size, claims: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(cells, 18), 0 or 1: whether a shape, or a thing of a colour, is centred in the cell; and (cells, 4), the box of
    that thing in cells, from the cell's own top left corner, NaN without any.

    Pairs have no class of their own: a tower that names pairs would learn that the held-out ones never occur.

    On which side of a border a centre lies can be hard to see, and of two cells that are both in doubt, both may name
    the thing, or neither: the decoder would count two, or none. So with `claims`, the logits that a tower now gives to
    the names (cells, 18), a thing near a border belongs to the cell that claims it most.
    """
    rows, cols = size
    names, edges = torch.zeros(rows * cols, len(NAMES)), torch.full((rows * cols, 4), torch.nan)
    taken = {cell_of(thing.cx, thing.cy, picture, size) for thing in picture.things}
    for thing in picture.things:
        cell, name = cell_of(thing.cx, thing.cy, picture, size), [NAMES[thing.shape], NAMES[thing.colour]]
        if claims is not None:
            near_rows = near_cells(thing.cy / picture.height * rows, rows)
            near = [row * cols + col for row in near_rows for col in near_cells(thing.cx / picture.width * cols, cols)]
            free = [c for c in near if c == cell or c not in taken]
            cell = max(free, key=lambda c: claims[c, name].sum().item())
        names[cell, name] = 1
        x1, y1, x2, y2 = share_box(thing.box, picture)
        row, col = divmod(cell, cols)
        edges[cell] = torch.tensor([x1 * cols - col, y1 * rows - row, x2 * cols - col, y2 * rows - row])
    return names, edges


def character_targets(
    picture: Scene, texts: list[Text], size: Size, claims: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(cells, SLOTS), the characters centred in each cell from left to right, 0 for none, else 1 and up; and
    (cells), how many characters of its text come before a cell's first one, -1 without any.

    `claims` as in `name_targets`, here the log-probabilities of the characters (cells, SLOTS, 37): near a border
    between two rows a whole text belongs to one of them.
    """
    rows, cols = size
    slots = torch.zeros(rows * cols, SLOTS, dtype=torch.long)
    first = torch.full((len(slots),), -1)
    used = [0] * len(slots)
    for text in texts:
        kinds = [CHARACTERS.index(character) + 1 for character in text.string]
        places = [divmod(cell_of(x, y, picture, size), cols) for x, y in text.centres]  # row and column of each
        if claims is not None:
            likeliest = claims.amax(1).view(rows, cols, -1)  # (rows, cols, 37): of each character, in whichever slot
            rated = {
                row: sum(likeliest[row, col, kind].item() for (_, col), kind in zip(places, kinds))
                for row in near_cells(text.centres[0][1] / picture.height * rows, rows)
            }
            row = max(rated, key=rated.get)
            for i, (x, _) in enumerate(text.centres):
                near = near_cells(x / picture.width * cols, cols)
                if kinds[i] in kinds[max(0, i - 1) : i] + kinds[i + 1 : i + 2]:
                    near = near[:1]  # beside its like: a cell that has the one does not thereby claim the other
                col = max(near, key=lambda c: likeliest[row, c, kinds[i]].item())
                places[i] = row, max(col, places[i - 1][1] if i else 0)  # they stay in their order
        for i, (row, col) in enumerate(places):
            cell = row * cols + col
            if used[cell] == 0:
                first[cell] = min(i, MAX_TEXT_LENGTH - 1)
            if used[cell] < SLOTS:
                slots[cell, used[cell]] = kinds[i]
                used[cell] += 1
    return slots, first


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
    image, texts = scenes.render(scene), []
    draw = ImageDraw.Draw(image)
    y = rng.randint(1, 20)
    while True:
        key = rng.choice(rng.choice(scenes.font_families("train")))
        tall = scenes.MIN_TEXT_HEIGHT + min(height - 20, 52) * rng.random() ** 2
        string = "".join(rng.choices(CHARACTERS, k=2 + int(width / tall)))
        text = scenes.make_text(string, "black", COLOURS["black"], tall, key)
        left, top, right, bottom = text.box
        if y + bottom - top > height - 1:
            break
        x = rng.randint(1, 30)
        fitting = sum(1 for cx, _ in text.centres if cx - left + x + tall / 2 < width)
        text = scenes.text_at(scenes.make_text(string[: max(1, fitting)], "black", COLOURS["black"], tall, key), x, y)
        text = scenes.colour_text(rng, text, scene.background)
        draw.text((text.x, text.y), text.string, fill=text.rgb, font=scenes.load_font(key, text.size), anchor="ls")
        texts.append(text)
        y += int(bottom - top) + rng.randint(2, 14)
    return scene, texts, image


def make_sheets(seed: int, images: Qwen2VLImageProcessor, recipe: Recipe = FULL) -> dict:
    """Sheets of one size: patches (N, 1176), grid (sheets, 3), what is on each and how many cells each has."""
    rng = random.Random(f"sheets/{seed}")
    width, height = (rng.randint(84, 336) for _ in range(2))
    new_height, new_width = images.target_size(height, width)
    size = grid_of(images, new_height, new_width)
    sheets, patches, grids = [], [], []
    for _ in range(max(1, recipe.sheet_cells // (size[0] * size[1]))):
        scene, texts, image = draw_sheet(rng, width, height, letters=recipe.text_share > 0)
        pixels, grid = images.patches_of([image], (new_height, new_width))
        sheets.append((scene, texts))
        patches.append(pixels)
        grids.append(grid)
    return {
        "pixel_values": torch.cat(patches),
        "image_grid_thw": torch.tensor(grids),
        "sheets": sheets,
        "size": size,
    }


def sheet_targets(
    sheets: list[tuple[Scene, list[Text]]], size: Size, names: Tensor, characters: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Names (M, 18), edges (M, 4) and slots (M, SLOTS) of all cells of `make_sheets`, given what a tower now claims:
    logits of the names (M, 18) and log-probabilities of the characters (M, SLOTS, 37)."""
    parts, claims = [], zip(sheets, names.chunk(len(sheets)), characters.chunk(len(sheets)))
    for (scene, texts), its_names, its_characters in claims:
        slots, _ = character_targets(scene, texts, size, its_characters)
        parts.append((*name_targets(scene, size, its_names), slots))
    return tuple(map(torch.cat, zip(*parts)))


# ── Conversations: what is asked, and where its objects are ─────────────────────────────────────────────────────────

TEXT_ONLY_SHARE = 0.02  # of the turns about one picture are about the model itself
TURN_TOKENS = 110  # of text in one conversation, after the system message
EVENTS = (*scenes.DIRECTIONS, "appears", "disappears", "turns")
RELATIONS = ("left of", "right of", "above", "below")
READ_BELOW = 350  # pixels: texts in larger pictures are kept for the test

MENTION = rf"the (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object)\b"


@dataclass(frozen=True)
class Mark:
    """What must be known when so many characters of a text have been read: the box of the thing just named or, if it is
    `coming`, of the one to be named now; and, of a list, how many will be named after it (-1: not a list)."""

    place: int
    box: Box
    coming: bool = False
    left: int = -1


@dataclass(frozen=True)
class Digit:
    """What is still to be written of a coordinate, so many characters into an answer: 0.473 before 473, then 0.73.

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
    # of "relation": 1 or 0, whether the second thing named is further right than the first, and further down; and the
    # relation asked for, one of RELATIONS
    beside: tuple[int, int, int] | None = None


def mark_turn(task: str, question: str, answer: str, picture: Scene, listed: list[Thing]) -> Turn:
    """A turn with its marks: each thing that the question names if there is only one, each thing before it is named.

    `listed` are the things of the answer in its order, in the scene `picture`.
    """
    turn, asked = Turn(task, question, answer), []
    for match in re.finditer(MENTION, question):
        colour, shape = match.groups()
        fitting = [t for t in picture.things if colour in (None, t.colour) and shape in ("object", t.shape)]
        if len(fitting) == 1:
            turn.question_marks.append(Mark(match.end(), share_box(fitting[0].box, picture)))
            asked.append(fitting[0])
    if task == "relation":
        relation = next(i for i, words in enumerate(RELATIONS) if words in question)
        turn.beside = int(asked[1].cx > asked[0].cx), int(asked[1].cy > asked[0].cy), relation
    if task == "where":
        start = re.search(r"<\|box_start\|>", answer).end()
        numbers = list(re.finditer(r"\d+", answer))
        turn.answer_marks.append(Mark(start, tuple(int(number[0]) / 1000 for number in numbers)))
        for number in numbers:
            turn.answer_marks.append(Digit(number.start(), int(number[0]) / 1000))
            if len(number[0]) > 2:  # the last digit is finer than a pixel
                turn.answer_marks.append(Digit(number.start() + 1, int(number[0][1:]) / 100))
    elif task == "colour":
        turn.answer_marks.append(Mark(0, turn.question_marks[0].box))
    elif task == "shape":
        box = share_box(listed[0].box, picture)
        turn.answer_marks += [Mark(place, box, coming=True) for place in (0, answer.index(" "))]
    else:
        items = list(re.finditer(r"\b[Aa]n? (\w+) (\w+)", answer))
        left = len(items) + ("text" in answer)
        for match, thing in zip(items, listed):
            box, left = share_box(thing.box, picture), left - 1
            # at the sign before the article, at the article, and at the colour, from which the shape follows
            places = max(0, match.start() - 1), match.start(1) - 1, match.end(1)
            turn.answer_marks += [Mark(place, box, coming=True) for place in places]
            turn.answer_marks.append(Mark(match.end(2), box, left=left))
    if task in ("read", "describe") and picture.text:
        begin = answer.index(picture.text.string) if task == "read" else answer.index('"') + 1
        for i, (x, y) in enumerate(picture.text.centres):
            turn.answer_marks.append(Mark(begin + i, share_box((x, y, x, y), picture), coming=True))
    return turn


def picture_turn(scene: Scene, rng: random.Random, weights: Mapping[str, float]) -> Turn | None:
    """A question about one picture, None where the task drawn does not fit it."""
    task = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if rng.random() < TEXT_ONLY_SHARE:
        return Turn("text", *rng.choice(sorted(scenes.TEXT_ONLY.items())))
    turn = scenes.ask(scene, task, rng)
    if turn is None:
        return None
    listed = list(scene.things)
    if task == "what":
        listed = [t for t in scene.things if scenes.answer_box(t.box, scene.width, scene.height) in turn[0]]
    if task == "shape":
        colour = turn[0].split()[-2]
        listed = [t for t in scene.things if t.colour == colour]
    return mark_turn(task, *turn, scene, listed)


def pair_targets(first: Scene, second: Scene) -> list[int]:
    """The second picture has fewer, as many or more things (0, 1, 2), and whether it is the same (0, 1)."""
    a, b = len(first.things), len(second.things)
    return [0 if b < a else 1 if b == a else 2, int(first == second)]


def pair_turns(first: Scene, second: Scene, made_for: str, rng: random.Random) -> list[Turn]:
    """Questions about two pictures, in any order: the one they were made for, since only its answers come in fair
    shares, and sometimes the other ones."""
    questions = [q for q in scenes.COMPARE_QUESTIONS if q == made_for or rng.random() < 0.3]
    turns = [scenes.ask_compare(first, second, question) for question in questions]
    common = [second.things[i] for i in scenes.matched_things(first, second).values()]
    turns = [
        mark_turn("compare", *turn, second, common if turn[0].startswith("What") else []) for turn in turns if turn
    ]
    return rng.sample(turns, len(turns))


def what_changed(clip: list[Scene]) -> tuple[str, Thing]:
    """The event of a clip (one of EVENTS) and its thing, as it is last seen (where it turns: as it was first)."""
    before = [t for t in clip[0].things if t not in clip[-1].things]
    after = [t for t in clip[-1].things if t not in clip[0].things]
    if not before or not after:
        return ("appears", after[0]) if after else ("disappears", before[0])
    old, new = before[0], after[0]
    if old.colour != new.colour:
        return "turns", old
    dx, dy = new.cx - old.cx, new.cy - old.cy
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("up" if dy < 0 else "down"), new


def clip_turns(clip: list[Scene], question: str, answer: str, rng: random.Random) -> list[Turn]:
    """Of a moving thing both questions, in any order, if it is the only one of its shape."""
    event, thing = what_changed(clip)
    turns = [(question, answer)]
    if event in scenes.DIRECTIONS:
        name, shape = scenes.capitalise(scenes.with_article(thing.name)), thing.shape
        turns = [("What happens?", f"{name} moves {event}.")]
        if [t.shape for t in clip[0].things].count(shape) == 1:
            turns += [(f"Which way does the {shape} move?", scenes.capitalise(event) + ".")]
    last = replace(clip[-1], things=tuple(t for t in clip[-1].things if t.name != thing.name) + (thing,))
    turns = [mark_turn("motion", *turn, last, [thing]) for turn in turns]
    return rng.sample(turns, len(turns))


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_turns(
    processor: Qwen2VLProcessor, turns: list[Turn], media: list[str], cells: list[int], trusted: bool = False
) -> tuple[list[int], list[int], list[tuple[int, Mark | Digit]], list[int], list[int]]:
    """One conversation → ids; the number of its answer for each id to be learned, else -1; the marks and their places;
    where the pictures (or the clip) of `cells` visual tokens end; and the place before each answer.

    Only answers, with their <|im_end|>, are learned. A box in a question is plain text to our processor and control
    tokens to the official one, or if `trusted`.
    """
    tokenizer, conversation, marked = processor.tokenizer, [], []
    for i, turn in enumerate(turns):
        items = [{"type": kind} for kind in media] if i == 0 else []
        conversation.append({"role": "user", "content": [*items, {"type": "text", "text": turn.question}]})
        conversation.append({"role": "assistant", "content": turn.answer})
        marked += [(turn.question, turn.question_marks), (turn.answer, turn.answer_marks)]
    opening = "assistant\n"  # the template's, before each answer
    ids, owner, known, ends, begins, answer, sizes = [], [], [], [], [], -1, iter(cells)
    # Neighbouring texts are joined, since BPE may merge across their border; their marks move along.
    pieces: list[tuple[str, list]] = []
    for piece in render_chat(conversation):
        marks = []
        if marked and not isinstance(piece, Special) and piece == marked[0][0]:
            marks = marked.pop(0)[1]
        if pieces and not isinstance(piece, Special) and not isinstance(pieces[-1][0], Special):
            text, old = pieces.pop()
            pieces.append((text + piece, old + [replace(mark, place=len(text) + mark.place) for mark in marks]))
        else:
            pieces.append((piece, marks))
    speaking = False
    for piece, marks in pieces:
        text = not isinstance(piece, Special)
        if text and piece.startswith(opening):  # when asked, the model is given this much: so it is encoded apart
            ids += tokenizer.encode(opening)
            answer, speaking = answer + 1, True
            begins.append(len(ids) - 1)
            owner += [-1] * (len(ids) - len(owner))
            piece = piece[len(opening) :]
            marks = [replace(mark, place=mark.place - len(opening)) for mark in marks]
        at, done = len(ids), 0  # `done` characters of this piece are encoded
        parts = tokenizer.split(piece) if text and (speaking or trusted) else [piece]
        for part in parts:
            if isinstance(part, Special):
                spans, new = [(0, len(part))], [tokenizer.special_ids[part]]
            else:
                encoding = tokenizer.bpe.encode(part, add_special_tokens=False)
                spans, new = encoding.offsets, encoding.ids
            for mark in marks:
                if mark.place == 0 and done == 0:  # before the answer's first token: at the one that predicts it
                    known.append((at - 1, mark))
                # else at the token in which the character just read, number `place`, lies
                known += [(len(ids) + i, mark) for i, (a, b) in enumerate(spans) if a < mark.place - done <= b]
            if part in ("<|image_pad|>", "<|video_pad|>") and isinstance(part, Special):
                new = new * next(sizes)
            if part == "<|vision_end|>" and isinstance(part, Special):
                ends.append(len(ids))
            ids += new
            done += len(part)
        owner += [answer if speaking else -1] * (len(ids) - len(owner))
        speaking = speaking and piece != "<|im_end|>"
    return ids, owner, known, ends, begins


# ── Rounds: a set of conversations of one kind, with all that is to be known ────────────────────────────────────────


def pick_size(rng: random.Random, largest: int, evenly: bool = False) -> tuple[int, int]:
    """Width and height in pixels, small ones more often unless `evenly`, never longer than 4:1."""
    least = scenes.MIN_SIDE
    while True:
        if evenly:
            width, height = (rng.randint(least, largest) for _ in range(2))
        else:
            width, height = (int(least * (largest / least) ** rng.random()) for _ in range(2))
        if max(width, height) <= scenes.MAX_ASPECT * min(width, height):
            return width, height


def draw_scene(rng: random.Random, width: int, height: int, longest: int, recipe: Recipe = FULL) -> Scene:
    """A picture to ask about, with a text of at most `longest` characters in some."""
    things = rng.choice(recipe.things)
    if rng.random() >= recipe.text_share or max(width, height) >= READ_BELOW:
        return scenes.make_scene(rng, width, height, things, repeat=rng.choice((0.3, 0.8)))
    return scenes.make_scene(rng, width, height, rng.choice((0, 0, things)), rng.randint(1, longest))


def turns_of_picture(
    scene: Scene, processor: Qwen2VLProcessor, rng: random.Random, recipe: Recipe = FULL
) -> list[Turn]:
    """Different questions about one picture until TURN_TOKENS are full: the costly part, seeing it, is paid once."""
    turns, room = [], TURN_TOKENS
    for _ in range(25):
        turn = picture_turn(scene, rng, recipe.tasks)
        if turn is None or turn.question in [t.question for t in turns]:
            continue
        needed = len(processor.tokenizer.encode(processor.tokenizer.split(turn.question + turn.answer))) + 9
        if needed <= room or not turns:
            turns.append(turn)
            room -= needed
        if room < 14:
            break
    return turns or [Turn("text", *sorted(scenes.TEXT_ONLY.items())[0])]


def cell_targets(
    picture: Scene, size: Size, later: Scene | None = None, earlier: Scene | None = None, before: Scene | None = None
) -> dict[str, Tensor]:
    """What each cell must know of a picture, alone or after the picture `before`, or of a pair of frames (`picture`,
    `later`), after the frame `earlier` if they are not the first. Numbers that do not apply are NaN or -1.

    places (cells, 6): its column and row, and the box of its object in cells, all over 8. moves (cells, 2): how far its
    object has come, in cells over 4, since `earlier`. changes (cells): what has happened in it since then (or since
    `picture`), 0 for nothing, else 1 and up for one of EVENTS. matches (cells): whether its object is in `before`, too,
    0 or 1; partners (cells, 2): if so, the column and row of its centre there, in cells over 8.
    """
    rows, cols = size
    moves = torch.full((rows * cols, 2), torch.nan)
    matches, partners = torch.full((rows * cols,), -1), torch.full((rows * cols, 2), torch.nan)
    cell = torch.tensor([picture.width / cols, picture.height / rows])  # pixels
    # the column and row of each cell, (cells, 2)
    corners = torch.stack([torch.arange(cols).repeat(rows), torch.arange(rows).repeat_interleave(cols)], dim=1)
    last = later or picture
    names, edges = name_targets(last, size)
    for thing in last.things:
        same = [t for t in (earlier.things if earlier else ()) if t.name == thing.name]
        if len(same) == 1 and [t.name for t in last.things].count(thing.name) == 1:
            way = torch.tensor([thing.cx - same[0].cx, thing.cy - same[0].cy])
            moves[cell_of(thing.cx, thing.cy, picture, size)] = way / cell / 4
    changes = torch.full((rows * cols,), 0 if later else -1)
    if (earlier or picture).things != last.things:
        event, thing = what_changed([earlier or picture, last])
        changes[cell_of(thing.cx, thing.cy, picture, size)] = 1 + EVENTS.index(event)
    if before:
        matches[names.any(1)] = 0
        for i, k in scenes.matched_things(before, picture).items():
            here, there = picture.things[k], before.things[i]
            matches[cell_of(here.cx, here.cy, picture, size)] = 1
            partners[cell_of(here.cx, here.cy, picture, size)] = torch.tensor([there.cx, there.cy]) / cell / 8
    return {
        "first": character_targets(picture, [picture.text] if picture.text else [], size)[1],
        "places": torch.cat([corners, corners.repeat(1, 2) + edges], dim=1) / 8,
        "moves": moves,
        "changes": changes,
        "matches": matches,
        "partners": partners,
    }


def count_targets(picture: Scene) -> list[int]:
    """How many of each shape, of each colour, and in all."""
    names = [name for thing in picture.things for name in (thing.shape, thing.colour)]
    return [min(6, names.count(name)) for name in NAMES] + [min(6, len(picture.things))]


def make_round(
    kind: str, seed: int, processor: Qwen2VLProcessor, longest: int = MAX_TEXT_LENGTH, recipe: Recipe = FULL
) -> dict:
    """Conversations about pictures, texts to be read, pairs of pictures, or clips, as tensors."""
    rng = random.Random(f"{kind}/{seed}")
    images = processor.image_processor
    is_large = rng.random() < recipe.large_share
    largest = recipe.max_side * 2 if is_large else recipe.max_side
    if kind == "read":
        largest = min(largest, READ_BELOW - 1)
    width, height = pick_size(rng, largest, evenly=is_large)
    frames = rng.choice(recipe.frames) if kind == "clip" else 1
    # the frames of a clip are resampled as clips are, which is not quite as pictures are
    resample, target = None, images.target_size(height, width)
    if kind == "clip":
        resample, target = "torch", images.frame_size(frames, height, width)
    size = grid_of(images, *target)
    media = {"picture": ["image"], "read": ["image"], "pair": ["image", "image"], "clip": ["video"]}[kind]
    cells = [size[0] * size[1] * -(-frames // 2)] * len(media)
    rows, parts, patches, grids = [], [], [], []
    counts, events, pairs, tasks, known, digits, beside, all_ends = [], [], [], [], [], [], [], []
    most = recipe.max_rows * (2 if kind == "read" else 1)
    turn_tokens = {"picture": TURN_TOKENS, "read": 35, "pair": 75, "clip": 60}[kind]
    most = max(1, min(most, recipe.tokens // (sum(cells) + turn_tokens + 20)))
    while len(rows) < most:
        if kind == "picture":
            shown = [draw_scene(rng, width, height, longest, recipe)]
            turns = turns_of_picture(shown[0], processor, rng, recipe)
        elif kind == "read":
            shown = [scenes.make_scene(rng, width, height, rng.choice((0, 0, 1)), rng.randint(1, longest))]
            turns = [mark_turn("read", *scenes.ask(shown[0], "read", rng), shown[0], [])]
        elif kind == "pair":
            made_for = rng.choice(scenes.COMPARE_QUESTIONS)
            pair = scenes.make_pair(rng, width, height, made_for, max(recipe.things), "train")
            if not pair or not pair[1].things:
                continue
            shown, turns = list(pair), pair_turns(*pair, made_for, rng)
            if not turns:
                continue  # nothing in common, and that was all that was asked
        else:
            clip = scenes.make_clip(rng, width, height, frames, max(recipe.things), "train")
            if not clip:
                width, height = pick_size(rng, recipe.max_side)  # nothing moves in so small a picture
                target = images.frame_size(frames, height, width)
                size = grid_of(images, *target)
                cells = [size[0] * size[1] * -(-frames // 2)]
                continue
            shown, turns = clip[0], clip_turns(*clip, rng)
        ids, owner, marks, ends, begins = encode_turns(processor, turns, media, cells, trusted=rng.random() < 0.5)
        row = len(rows)
        rows.append((ids, owner))
        tasks.append([turn.task for turn in turns])
        all_ends += [[row, end] for end in ends]
        digits += [[row, place, mark.rest] for place, mark in marks if isinstance(mark, Digit)]
        marks = [(place, mark) for place, mark in marks if isinstance(mark, Mark)]
        known += [[row, place, *mark.box, mark.coming, mark.left] for place, mark in marks]
        beside += [[row, place, *turn.beside] for place, turn in zip(begins, turns, strict=True) if turn.beside]
        drawn = {id(scene): scene for scene in shown}  # frames that do not change are drawn once
        drawn = {key: scenes.render(scene) for key, scene in drawn.items()}
        if kind == "clip":
            pixels, grid = images.patches_of([drawn[id(scene)] for scene in shown], target, resample)
            patches.append(pixels)
            grids.append(grid)
            twos = [shown[i : i + 2] for i in range(0, frames, 2)]
            for i, two in enumerate(twos):
                parts.append(cell_targets(two[0], size, two[-1], twos[i - 1][-1] if i else None))
            event, thing = what_changed(shown)
            now = [t for t in shown[-1].things if t not in shown[0].things] or [thing]
            colours = list(COLOURS)
            events.append(
                [row, ends[0], EVENTS.index(event), SHAPES.index(thing.shape)]
                + [colours.index(thing.colour), colours.index(now[0].colour)]
            )
        else:
            for i, (scene, end) in enumerate(zip(shown, ends, strict=True)):
                pixels, grid = images.patches_of([drawn[id(scene)]], target, resample)
                patches.append(pixels)
                grids.append(grid)
                parts.append(cell_targets(scene, size, before=shown[0] if i else None))
                counts.append([row, end, *count_targets(scene)])
            if kind == "pair":
                pairs.append([row, ends[1], *pair_targets(*shown)])
    longest_row = max(len(ids) for ids, _ in rows)
    pad = processor.tokenizer.pad_token_id
    suffix = "_videos" if kind == "clip" else ""
    targets = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return {
        "inputs": {
            # padding on the right needs no mask: it lies in the future of every real token
            "input_ids": torch.tensor([ids + [pad] * (longest_row - len(ids)) for ids, _ in rows]),  # (B, S)
            f"pixel_values{suffix}": torch.cat(patches),  # (N, 1176)
            "video_grid_thw" if suffix else "image_grid_thw": torch.tensor(grids),  # (B, 3)
        },
        "size": size,  # of all pictures, in cells
        "ends": torch.tensor(all_ends),  # row, place
        "answers": torch.tensor([owner + [-1] * (longest_row - len(owner)) for _, owner in rows]),  # (B, S)
        "known": torch.tensor(known).reshape(-1, 8),  # row, place, box in shares, whether it is coming, how many left
        "digits": torch.tensor(digits).reshape(-1, 3),  # row, place, what remains of a coordinate
        "beside": torch.tensor(beside, dtype=torch.long).reshape(
            -1, 5
        ),  # row, place, further right, further down, relation
        "counts": torch.tensor(counts, dtype=torch.long).reshape(-1, 2 + len(NAMES) + 1),
        "events": torch.tensor(events, dtype=torch.long).reshape(-1, 6),
        "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 4),
        **targets,
        "tasks": tasks,
    }


class Rounds(torch.utils.data.IterableDataset):
    """Endless sheets, or rounds of conversations, each from its own seed."""

    def __init__(self, folder: Path, first: int, sheets: bool, recipe: Recipe = FULL):
        self.folder, self.first, self.sheets, self.recipe = folder, first, sheets, recipe

    def __iter__(self):
        if torch.utils.data.get_worker_info():
            torch.set_num_threads(1)
        processor, recipe = Qwen2VLProcessor.from_pretrained(self.folder), self.recipe
        for seed in itertools.count(self.first):
            if self.sheets:
                yield make_sheets(seed, processor.image_processor, recipe)
            else:
                kind = recipe.rounds[seed % len(recipe.rounds)]
                yield make_round(kind, seed, processor, min(MAX_TEXT_LENGTH, 2 + seed // recipe.longer_every), recipe)
