"""Scenes of the tiny world: coloured shapes and short texts, drawn with Pillow, with questions and exact answers.

A `Scene` is a description (what, where, which colour); `render` draws it, `ask` asks about it, and `make_sample` does
all of this from one seed. Everything is a pure function of its arguments: the same seed gives the same pixels and
words.

Units: positions and sizes are float pixels, x to the right and y down, (0, 0) is the top left corner of the picture;
colours are (r, g, b) in 0..255; angles are degrees. Only numpy and Pillow are needed.

Fonts come from matplotlib's bundled folder if it is installed (its files are the same everywhere, so a seed means the
same pictures everywhere), else from the system's font folders. Pillow's own font is always there. Two of matplotlib's
families are kept for the test (`fonts="test"`); where neither is found, Pillow's font stands in for them, although
training uses it, too.
"""

import importlib.util
import math
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "pink": (245, 130, 180),
    "cyan": (40, 200, 210),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ALL_PAIRS = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
# One pair for each shape, no colour twice: training still shows every shape in 9 colours and every
# colour in at least 7 shapes.
HELD_OUT_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("orange", "square"),
        ("cyan", "triangle"),
        ("blue", "star"),
        ("pink", "cross"),
        ("green", "ring"),
        ("yellow", "diamond"),
        ("black", "heart"),
    }
)
TEST_SEED = 1_000_000  # seeds from here on are never trained on

MIN_SIDE = 56  # of a picture, in pixels
MAX_SIDE = 448
MAX_ASPECT = 4  # longer side over shorter side
MAX_THINGS = 6
MAX_TEXT_LENGTH = 8
READ_BELOW = 350  # pixels: texts in pictures with a side of this or more are kept for the test
MIN_RADIUS = 9.0  # pixels; a radius is half the longer side of the bounding box
MAX_RADIUS = 60.0
RADIUS_PER_SIDE = 1 / 16  # least radius over the picture's shorter side
MIN_GAP = 2.0  # pixels between two bounding boxes
MIN_CONTRAST = 60.0  # RGB units between an object's colour and any colour of the background
TEXT_CONTRAST = 110.0  # the same for text, whose strokes are thin; less where no colour has as much
MIN_TEXT_HEIGHT = 12  # pixels, of a capital letter
MAX_TEXT_HEIGHT = 64
MAX_ROTATION = 20.0  # degrees
MAX_COLOUR_SHIFT = 20  # RGB units a channel
SUPERSAMPLING = 4  # a shape is drawn this many times larger, then averaged down

PICTURE_TASKS = ("describe", "count", "colour", "shape", "where", "what", "relation", "read")
TASKS = (*PICTURE_TASKS, "compare", "motion", "dialogue", "text")
RELATIONS = ("left of", "right of", "above", "below")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TEXT_ONLY = {
    "Who are you?": "I am a very small teaching model that knows colored shapes and short texts.",
    "What can you do?": "I can describe, count, find and compare simple shapes, and read short texts.",
}

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class Background:
    """`plain` uses one colour, `gradient` and `stripes` two, `noise` one colour ± amplitude on every channel."""

    kind: str
    colours: tuple[RGB, ...]
    angle: float = 0.0  # degrees; the direction in which a gradient or stripes change
    period: float = 16.0  # pixels; the width of a stripe, or of a grain of noise
    amplitude: int = 0  # RGB units
    seed: int = 0  # of the noise


@dataclass(frozen=True)
class Thing:
    """A shape. (cx, cy) is the centre of its bounding box `box`, `radius` half of that box's longer side."""

    shape: str
    colour: str
    cx: float
    cy: float
    radius: float
    rotation: float  # degrees
    rgb: RGB
    outline: RGB | None
    box: Box

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Text:
    """A line of text. (x, y) is where the baseline starts, `height` the height of a capital letter in pixels."""

    string: str
    colour: str
    rgb: RGB
    x: float
    y: float
    height: float
    font: str  # a key of `font_files()`
    size: int  # the font's size in pixels
    centres: tuple[tuple[float, float], ...]  # of each character
    box: Box


@dataclass(frozen=True)
class Scene:
    """`things` are sorted from left to right by their centres."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]
    text: Text | None = None


@dataclass
class Sample:
    """One example. `question` and `answer` are the last turn, which is judged; `turns` are all turns.

    `images` are PIL images: one picture, two for "compare", the frames of one clip for "motion", none for "text".
    `scenes` describes each of them.
    """

    task: str
    images: list[Image.Image]
    question: str
    answer: str
    scenes: list[Scene]
    seed: int
    turns: list[tuple[str, str]] = field(default_factory=list)
    beside: Image.Image | None = None  # a picture shown before the clip, which the question is not about


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


def _circle_points(count: int = 64) -> np.ndarray:
    t = np.arange(count) * (2 * math.pi / count)
    return np.stack([np.cos(t), np.sin(t)], 1)


def _star_points() -> np.ndarray:
    t = np.arange(10) * (math.pi / 5) - math.pi / 2
    return np.stack([np.cos(t), np.sin(t)], 1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]


def _heart_points(count: int = 48) -> np.ndarray:
    t = np.arange(count) * (2 * math.pi / count)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _cross_points(arm: float = 0.34) -> np.ndarray:
    a = arm
    right = [(a, 1), (a, a), (1, a), (1, -a), (a, -a), (a, -1)]
    return np.array(right + [(-x, -y) for x, y in right], dtype=float)


# The outline of each shape, (N, 2), at any scale: `outline_points` centres and scales it after the rotation.
SHAPE_POINTS = {
    "circle": _circle_points(),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float),
    "triangle": np.array([(0, -1), (1, 0.75), (-1, 0.75)], dtype=float),
    "star": _star_points(),
    "cross": _cross_points(),
    "ring": _circle_points(),
    "diamond": np.array([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], dtype=float),  # slim, so no square looks like it
    "heart": _heart_points(),
}
RING_HOLE = 0.55  # radius of the hole over radius of the ring


def outline_points(shape: str, rotation: float) -> np.ndarray:
    """(N, 2) outline, rotated by `rotation` degrees; its bounding box is centred on 0, the longer side 2 units."""
    points = SHAPE_POINTS[shape]
    if rotation and shape not in ("circle", "ring"):
        c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        points = points @ np.array([[c, s], [-s, c]])
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (2 / (high - low).max())


def shape_extent(shape: str, rotation: float) -> tuple[float, float]:
    """Half width and half height of the bounding box of a shape of radius 1."""
    x, y = outline_points(shape, rotation).max(0)
    return float(x), float(y)


def thing_at(thing: Thing, cx: float, cy: float) -> Thing:
    """The same thing with its centre moved to (cx, cy)."""
    x1, y1, x2, y2 = thing.box
    half_w, half_h = (x2 - x1) / 2, (y2 - y1) / 2
    return replace(thing, cx=cx, cy=cy, box=(cx - half_w, cy - half_h, cx + half_w, cy + half_h))


# ---------------------------------------------------------------------------------------------------------------------
# Colours and backgrounds
# ---------------------------------------------------------------------------------------------------------------------


def colour_distance(background: Background, rgb: RGB) -> float:
    """Least Euclidean distance, in RGB units, between `rgb` and any colour that the background uses."""
    p = np.array(rgb, float)
    first = np.array(background.colours[0], float)
    if background.kind == "noise":  # the nearest point of the cube first ± amplitude
        return float(np.linalg.norm(np.maximum(np.abs(p - first) - background.amplitude, 0)))
    if background.kind == "gradient":  # the nearest point of the segment from the first to the second colour
        line = np.array(background.colours[1], float) - first
        t = np.clip((p - first) @ line / max(line @ line, 1e-9), 0, 1)
        return float(np.linalg.norm(p - first - t * line))
    return min(float(np.linalg.norm(p - np.array(c, float))) for c in background.colours)


def _clip_channel(value: float) -> int:
    """A whole number from 0 to 255."""
    return min(255, max(0, round(value)))


def _jitter(rng: random.Random, rgb: RGB) -> RGB:
    """A slight change of brightness and of hue, within MAX_COLOUR_SHIFT on each channel."""
    brightness = rng.uniform(-0.6, 0.6) * MAX_COLOUR_SHIFT
    shifts = [brightness + rng.uniform(-0.4, 0.4) * MAX_COLOUR_SHIFT for _ in rgb]
    return tuple(_clip_channel(channel + shift) for channel, shift in zip(rgb, shifts))  # type: ignore[return-value]


def _background_colour(rng: random.Random) -> RGB:
    """Half of the time a tone near grey (black to white), else any colour."""
    if rng.random() < 0.5:
        grey = rng.randint(10, 255)
        return tuple(_clip_channel(grey + rng.randint(-18, 18)) for _ in range(3))  # type: ignore[return-value]
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def _draw_background(rng: random.Random) -> Background:
    kind = rng.choice(("plain", "plain", "gradient", "noise", "stripes"))
    first = _background_colour(rng)
    # The second colour stays near the first one: a background is not meant to be read as an object.
    second = tuple(_clip_channel(c + rng.randint(-70, 70)) for c in first)
    colours = (first, second) if kind in ("gradient", "stripes") else (first,)
    return Background(
        kind,
        colours,  # type: ignore[arg-type]
        angle=rng.uniform(0, 180) if kind == "gradient" else rng.choice((0.0, 45.0, 90.0, 135.0)),
        period=rng.uniform(5, 24),
        amplitude=rng.randint(8, 28) if kind == "noise" else 0,
        seed=rng.getrandbits(32),
    )


def _choose_background(rng: random.Random, colours: list[RGB]) -> Background:
    """A background at least MIN_CONTRAST (and 2 for rounding) away from all `colours`."""

    def contrast(background: Background) -> float:
        return min((colour_distance(background, rgb) for rgb in colours), default=math.inf)

    tries = []
    for _ in range(60):
        background = _draw_background(rng)
        tries.append(background)
        if contrast(background) >= MIN_CONTRAST + 2:
            return background
    plain = [Background("plain", b.colours[:1]) for b in tries] + [Background("plain", ((110, 120, 130),))]
    return max(plain, key=contrast)


def _choose_outline(rng: random.Random, rgb: RGB, background: Background) -> RGB | None:
    """Another tone of `rgb`, visible on the background, or None for no outline (half of the time)."""
    if rng.random() < 0.5:
        return None
    if sum(rgb) > 330 or (sum(rgb) > 150 and rng.random() < 0.5):
        tone = tuple(round(c * 0.6) for c in rgb)
    else:
        tone = tuple(round(c + (255 - c) * 0.4) for c in rgb)
    return tone if colour_distance(background, tone) >= MIN_CONTRAST else None  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------------------
# Fonts and text
# ---------------------------------------------------------------------------------------------------------------------

PILLOW_FAMILY = "Aileron"  # the font inside Pillow
TEST_FAMILIES = ("cmss10", "STIXGeneral")
# Text families with true capitals and digits; a folder's other fonts (symbols, mathematics, scripts) are left alone.
MATPLOTLIB_FAMILIES = ("DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "cmr10", "cmb10", "cmtt10", *TEST_FAMILIES)
SYSTEM_FAMILIES = (
    *MATPLOTLIB_FAMILIES,
    *("Liberation Sans", "Liberation Serif", "Liberation Mono", "FreeSans", "FreeSerif", "FreeMono"),
    *("Arial", "Times New Roman", "Courier New", "Georgia", "Verdana", "Noto Sans", "Noto Serif", "Roboto", "Ubuntu"),
)
SYSTEM_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "C:/Windows/Fonts")


def _has_glyphs(font: ImageFont.FreeTypeFont) -> bool:
    """Whether every character has a glyph of its own, neither blank nor the box for a missing one."""
    missing = bytes(font.getmask("\uffff"))
    masks = [bytes(font.getmask(c)) for c in CHARACTERS]
    return all(masks) and missing not in masks and len(set(masks)) > len(CHARACTERS) - 2


def _matplotlib_fonts() -> Path | None:
    """The folder of fonts that comes with matplotlib, if that is installed."""
    spec = importlib.util.find_spec("matplotlib")  # finding it is enough: importing it takes a while
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return folder if folder.is_dir() else None


@lru_cache(maxsize=1)
def font_files() -> dict[str, str]:
    """Key "family/style" → path of the font file ("" for Pillow's own font), sorted by key."""
    bundled = _matplotlib_fonts()
    folders = [bundled] if bundled else [Path(p) for p in SYSTEM_FONT_FOLDERS]
    families = MATPLOTLIB_FAMILIES if bundled else SYSTEM_FAMILIES

    files = {f"{PILLOW_FAMILY}/Regular": ""}
    for path in sorted(p for folder in folders for p in folder.rglob("*.ttf")):
        try:
            font = ImageFont.truetype(str(path), 24)
        except OSError:  # not a font that FreeType reads
            continue
        family, style = (part or "" for part in font.getname())
        key = f"{family}/{style}"
        is_upright = "Italic" not in style and "Oblique" not in style
        if family in families and is_upright and key not in files and _has_glyphs(font):
            files[key] = str(path)

    return dict(sorted(files.items()))


@lru_cache(maxsize=4)
def font_families(fonts: str) -> tuple[tuple[str, ...], ...]:
    """The font keys of each family for `fonts` = "train" or "test"; Pillow's font where there is no other."""
    if fonts not in ("train", "test"):
        raise ValueError(f'fonts must be "train" or "test", not {fonts!r}.')
    families: dict[str, list[str]] = {}
    for key in font_files():
        family = key.split("/")[0]
        if (family in TEST_FAMILIES) == (fonts == "test"):
            families.setdefault(family, []).append(key)
    return tuple(map(tuple, families.values())) or ((f"{PILLOW_FAMILY}/Regular",),)


@lru_cache(maxsize=1024)
def load_font(key: str, size: int) -> ImageFont.FreeTypeFont:
    """The font `key` of `font_files()` at `size` pixels."""
    path = font_files()[key]
    if path == "":
        return ImageFont.load_default(size)
    # Every Pillow has the basic layout, so glyphs land on the same pixels everywhere.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=64)
def _capital_height(key: str) -> float:
    """Height of a capital letter over the font's size."""
    x1, y1, x2, y2 = load_font(key, 200).getbbox("H", anchor="ls")
    return (y2 - y1) / 200


def make_text(string: str, colour: str, rgb: RGB, height: float, key: str) -> Text:
    """The text with its baseline starting at (0, 0)."""
    capital = _capital_height(key)
    smallest = math.ceil(MIN_TEXT_HEIGHT / capital)
    largest = math.floor(MAX_TEXT_HEIGHT / capital)
    size = max(smallest, min(largest, round(height / capital)))
    font = load_font(key, size)

    # The box of the ink: the font's own getbbox counts the space after the last letter.
    mask, (dx, dy) = font.getmask2(string, anchor="ls")
    x1, y1, x2, y2 = mask.getbbox()
    box = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)

    edges = [font.getlength(string[:i]) for i in range(len(string) + 1)]
    middle = (box[1] + box[3]) / 2
    centres = tuple(((left + right) / 2, middle) for left, right in zip(edges, edges[1:], strict=False))
    return Text(string, colour, rgb, 0, 0, size * capital, key, size, centres, tuple(map(float, box)))


def text_at(text: Text, x: int, y: int) -> Text:
    """The text with the top left corner of its box at (x, y): whole pixels, as Pillow draws text."""
    dx, dy = x - text.box[0], y - text.box[1]
    x1, y1, x2, y2 = text.box
    centres = tuple((cx + dx, cy + dy) for cx, cy in text.centres)
    return replace(text, x=text.x + dx, y=text.y + dy, centres=centres, box=(x1 + dx, y1 + dy, x2 + dx, y2 + dy))


def _place_text(
    rng: random.Random, width: int, height: int, length: int, fonts: str, smallest: float = MIN_TEXT_HEIGHT
) -> Text:
    """A random string, as tall as the draw and the picture allow; shorter than `length` in a narrow picture."""
    string = "".join(rng.choice(CHARACTERS) for _ in range(length))
    key = rng.choice(rng.choice(font_families(fonts)))
    # Squared, because small text is the common case and the hard one.
    wanted = smallest + (MAX_TEXT_HEIGHT - smallest) * rng.random() ** 2

    while True:
        text = make_text(string, "black", COLOURS["black"], wanted, key)
        w, h = text.box[2] - text.box[0], text.box[3] - text.box[1]
        if w <= width - 2 and h <= height - 2:
            x = rng.randint(1, int(width - 1 - w))
            y = rng.randint(1, int(height - 1 - h))
            return text_at(text, x, y)
        if wanted > smallest:
            wanted = max(smallest, wanted * min(0.95, (width - 2) / w, (height - 2) / h))
        else:
            string = string[:-1]


# ---------------------------------------------------------------------------------------------------------------------
# Making a scene
# ---------------------------------------------------------------------------------------------------------------------


def allowed_pairs(pairs: str) -> tuple[tuple[str, str], ...]:
    """(colour, shape) pairs for "train" (72), "held_out" (8) or "all" (80)."""
    if pairs not in ("train", "held_out", "all"):
        raise ValueError(f'pairs must be "train", "held_out" or "all", not {pairs!r}.')
    return tuple(p for p in ALL_PAIRS if pairs == "all" or (p in HELD_OUT_PAIRS) == (pairs == "held_out"))


def _pick_kinds(rng: random.Random, count: int, pairs: str, repeat: float) -> list[tuple[str, str]]:
    """`count` (colour, shape) pairs; each repeats an earlier one's colour or shape with probability `repeat`."""
    allowed = allowed_pairs(pairs)
    kinds: list[tuple[str, str]] = []
    for _ in range(count):
        choice = allowed
        if kinds and rng.random() < repeat:
            which = rng.randrange(2)  # the colour or the shape
            model = rng.choice(kinds)
            choice = [p for p in allowed if p[which] == model[which]]
        kinds.append(rng.choice(choice))
    return kinds


def _apart(a: Box, b: Box) -> bool:
    """Whether two boxes are MIN_GAP pixels apart along x or along y."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= MIN_GAP


def _smallest_radius(width: int, height: int) -> float:
    """Of a thing in a picture of this size."""
    return max(MIN_RADIUS, RADIUS_PER_SIDE * min(width, height))


def _place_thing(
    rng: random.Random,
    kind: tuple[str, str],
    width: int,
    height: int,
    radius: float,
    things: list[Thing],
    boxes: list[Box],
) -> Thing | None:
    """Try 60 places, shrinking the radius on the way; None where nothing fits."""
    colour, shape = kind
    smallest = _smallest_radius(width, height)
    step = max(2.0, width / 48)  # least distance between two centres along x, so that their order is plain to see
    rotation = rng.choice((0.0, rng.uniform(-MAX_ROTATION, MAX_ROTATION)))
    half_w, half_h = shape_extent(shape, rotation)
    rgb = _jitter(rng, COLOURS[colour])

    for attempt in range(60):
        if attempt % 6 == 5:
            radius = max(smallest, radius * 0.85)
        w, h = half_w * radius, half_h * radius
        if 2 * w + 2 > width or 2 * h + 2 > height:
            continue
        cx = rng.uniform(w + 1, width - 1 - w)
        cy = rng.uniform(h + 1, height - 1 - h)
        box = (cx - w, cy - h, cx + w, cy + h)
        is_in_order = all(abs(cx - t.cx) >= step for t in things)
        if is_in_order and all(_apart(box, other) for other in boxes):
            return Thing(shape, colour, cx, cy, radius, rotation, rgb, None, box)

    return None


def make_scene(
    rng: random.Random,
    width: int,
    height: int,
    num_things: int,
    text_length: int = 0,
    pairs: str = "train",
    fonts: str = "train",
    repeat: float = 0.3,
    kinds: list[tuple[str, str]] | None = None,
    smallest_text: float = MIN_TEXT_HEIGHT,
) -> Scene:
    """A random scene.

    Args:
        rng: source of all randomness.
        width, height: pixels, MIN_SIDE to MAX_SIDE.
        num_things: objects wanted; `len(scene.things)` says how many found a place.
        text_length: characters of text wanted, 0 for none; narrow pictures get fewer.
        pairs: "train" (without the held-out colour-shape pairs), "held_out" (only those) or "all".
        fonts: "train" or "test".
        repeat: probability that an object takes its colour or its shape from an earlier one.
        kinds: the (colour, shape) pairs to place, instead of drawing `num_things` of them.
        smallest_text: least height of a capital letter, in pixels.
    """
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise ValueError(f"A picture's sides must be {MIN_SIDE} to {MAX_SIDE} pixels, not {width}x{height}.")
    if kinds is None:
        kinds = _pick_kinds(rng, num_things, pairs, repeat)

    text = _place_text(rng, width, height, text_length, fonts, smallest_text) if text_length else None
    things = _place_things(rng, kinds, width, height, text)

    background = _choose_background(rng, [t.rgb for t in things])
    things = [replace(t, outline=_choose_outline(rng, t.rgb, background)) for t in things]
    if text:
        text = colour_text(rng, text, background)

    return Scene(width, height, background, _from_left_to_right(things), text)


def _from_left_to_right(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda t: t.cx))


def _place_things(
    rng: random.Random, kinds: list[tuple[str, str]], width: int, height: int, text: Text | None
) -> list[Thing]:
    """A thing for each (colour, shape) pair that finds a place, in a picture with a text or without."""
    smallest = _smallest_radius(width, height)
    share = 0.42 * math.sqrt(width * height / max(1, len(kinds)))  # leaves room for the others
    largest = max(smallest, min(MAX_RADIUS, min(width, height) / 2 - 2, share))

    things: list[Thing] = []
    boxes = [text.box] if text else []
    for kind in kinds:
        radius = smallest + (largest - smallest) * rng.random()
        thing = _place_thing(rng, kind, width, height, radius, things, boxes)
        if thing is not None:
            things.append(thing)
            boxes.append(thing.box)
    return things


def colour_text(rng: random.Random, text: Text, background: Background) -> Text:
    """The text in any colour with enough contrast, or, where none has it, in the one with the most."""
    tones = {name: _jitter(rng, rgb) for name, rgb in COLOURS.items()}
    clear = [name for name in tones if colour_distance(background, tones[name]) >= TEXT_CONTRAST]
    name = rng.choice(clear) if clear else max(tones, key=lambda n: colour_distance(background, tones[n]))
    return replace(text, colour=name, rgb=tones[name])


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def render_background(background: Background, width: int, height: int) -> Image.Image:
    """The background alone, RGB."""
    if background.kind == "noise":
        return _render_noise(background, width, height)
    image = Image.new("RGB", (width, height), background.colours[0])
    if background.kind == "plain":
        return image

    # How far each pixel lies along the direction in which the colour changes, (height, width).
    angle = math.radians(background.angle)
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    along = x * math.cos(angle) + y * math.sin(angle)

    # How much of the second colour each pixel has, 0 to 255.
    if background.kind == "stripes":
        mask = (np.floor(along / background.period) % 2) * 255
    else:
        mask = (along - along.min()) * (255 / np.ptp(along))
    image.paste(background.colours[1], (0, 0), Image.fromarray(mask.astype(np.uint8)))
    return image


def _render_noise(background: Background, width: int, height: int) -> Image.Image:
    """Random grains around one colour, smoothed."""
    grain = max(2, round(background.period / 2))  # pixels
    shape = (height // grain + 2, width // grain + 2, 3)
    rng = np.random.default_rng(background.seed)
    offsets = rng.integers(-background.amplitude, background.amplitude + 1, shape)
    coarse = np.clip(np.array(background.colours[0]) + offsets, 0, 255).astype(np.uint8)
    # Bilinear stays between its samples, so no pixel leaves the amplitude with which the contrast was checked.
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def _shape_mask(points: np.ndarray, hole: np.ndarray | None, size: tuple[int, int]) -> Image.Image:
    """Coverage (0..255) of each pixel by the polygon `points` less the polygon `hole`, both in pixels."""
    big = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    draw = ImageDraw.Draw(big)
    # Pillow's coordinates name pixel centres, ours the plane: hence the half pixel.
    draw.polygon((points * SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
    if hole is not None:
        draw.polygon((hole * SUPERSAMPLING - 0.5).ravel().tolist(), fill=0)
    return big.reduce(SUPERSAMPLING)


def _paint_thing(image: Image.Image, thing: Thing) -> None:
    """Draw the thing, supersampled within its own patch only."""
    left = math.floor(thing.box[0]) - 1
    top = math.floor(thing.box[1]) - 1
    size = (math.ceil(thing.box[2]) + 1 - left, math.ceil(thing.box[3]) + 1 - top)
    unit = outline_points(thing.shape, thing.rotation)  # (N, 2)
    centre = np.array([thing.cx - left, thing.cy - top])

    layers = [(thing.rgb, 0.0)]  # colour, and how far inside the thing's border, in pixels
    if thing.outline:
        border = min(3.0, max(1.2, 0.07 * thing.radius))
        layers = [(thing.outline, 0.0), (thing.rgb, border)]
    for rgb, inset in layers:
        outer = unit * (thing.radius - inset) + centre
        hole = unit * (thing.radius * RING_HOLE + inset) + centre if thing.shape == "ring" else None
        image.paste(rgb, (left, top), _shape_mask(outer, hole, size))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, `scene.width` x `scene.height`."""
    image = render_background(scene.background, scene.width, scene.height)
    for thing in scene.things:
        _paint_thing(image, thing)
    if scene.text:
        paint_text(image, scene.text)
    return image


def paint_text(image: Image.Image, text: Text) -> None:
    """Draw the text at its place."""
    font = load_font(text.font, text.size)
    ImageDraw.Draw(image).text((text.x, text.y), text.string, fill=text.rgb, font=font, anchor="ls")


# ---------------------------------------------------------------------------------------------------------------------
# Questions and answers
# ---------------------------------------------------------------------------------------------------------------------


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def with_article(noun: str) -> str:
    """`red circle` → `a red circle`, `orange star` → `an orange star`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalise(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def description(things: tuple[Thing, ...] | list[Thing], text: Text | None = None) -> str:
    """`A red circle, a blue square and the text "AB12".`: objects in the order given, the text last."""
    parts = [with_article(t.name) for t in things]
    if text:
        parts.append(f'the text "{text.string}"')
    if len(parts) > 1:
        parts = [", ".join(parts[:-1]), parts[-1]]
    return capitalise(" and ".join(parts)) + "."


def answer_box(box: Box, width: int, height: int) -> str:
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>` with integers 0 to 1000 of the picture's width and height."""
    x1, x2 = (min(1000, max(0, round(x / width * 1000))) for x in box[0::2])
    y1, y2 = (min(1000, max(0, round(y / height * 1000))) for y in box[1::2])
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def _alone(values: list[str]) -> list[int]:
    """Indices of the values that occur once."""
    return [i for i, v in enumerate(values) if values.count(v) == 1]


def _ask_count(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """The three wordings in equal shares; about one question in ten is about something absent."""
    wording = rng.choice(("shape", "colour", "objects"))
    if wording == "objects":
        return ("How many objects are there?", str(len(scene.things))) if scene.things else None
    values = [getattr(t, wording) for t in scene.things]
    absent = [v for v in (SHAPES if wording == "shape" else COLOURS) if v not in values]
    if not values or (absent and rng.random() < 0.15):
        asked = rng.choice(absent)
    else:  # the answer is drawn first, then what it is true of: otherwise nearly every answer is 1
        counts = sorted({values.count(v) for v in values})
        number = rng.choice(counts)
        asked = rng.choice(sorted({v for v in values if values.count(v) == number}))
    words = plural(asked) if wording == "shape" else f"{asked} objects"
    return f"How many {words} are there?", str(values.count(asked))


def _ask_colour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    unique = _alone([t.shape for t in scene.things])
    if not unique:
        return None
    thing = scene.things[rng.choice(unique)]
    return f"What color is the {thing.shape}?", capitalise(thing.colour) + "."


def _ask_shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    unique = _alone([t.colour for t in scene.things])
    if not unique:
        return None
    thing = scene.things[rng.choice(unique)]
    return f"What shape is the {thing.colour} object?", capitalise(with_article(thing.shape)) + "."


def _ask_where(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    unique = _alone([t.name for t in scene.things])
    if not unique:
        return None
    thing = scene.things[rng.choice(unique)]
    box = answer_box(thing.box, scene.width, scene.height)
    return f"Where is the {thing.name}?", f"<|object_ref_start|>{thing.name}<|object_ref_end|>{box}"


def _ask_what(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    return f"What is in the box {answer_box(thing.box, scene.width, scene.height)}?", description([thing])


def _ask_relation(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """Only about things whose centres differ clearly: by 8 % of the picture's side and at least 6 pixels."""
    unique = [scene.things[i] for i in _alone([t.name for t in scene.things])]
    clear = []  # both things, the two relations, and whether the first of these holds
    for a, b in permutations(unique, 2):
        dx, dy = b.cx - a.cx, b.cy - a.cy
        if abs(dx) >= max(6, 0.08 * scene.width):
            clear.append((a, b, RELATIONS[:2], dx > 0))
        if abs(dy) >= max(6, 0.08 * scene.height):
            clear.append((a, b, RELATIONS[2:], dy > 0))
    if not clear:
        return None
    a, b, words, first_holds = rng.choice(clear)
    which = rng.randrange(2)
    answer = "Yes." if first_holds == (which == 0) else "No."
    return f"Is the {a.name} {words[which]} the {b.name}?", answer


def ask(scene: Scene, task: str, rng: random.Random) -> tuple[str, str] | None:
    """(question, answer) of a task about one picture, or None where the task does not fit the scene.

    `task` is one of PICTURE_TASKS or "text"; `ask_compare` and `ask_motion` take two pictures and a clip.
    """
    if task == "describe":
        fits = scene.things or scene.text
        return ("Describe this image.", description(scene.things, scene.text)) if fits else None
    if task == "read":
        return ("Read the text.", scene.text.string) if scene.text else None
    if task == "text":
        return rng.choice(sorted(TEXT_ONLY.items()))
    askers = {
        "count": _ask_count,
        "colour": _ask_colour,
        "shape": _ask_shape,
        "where": _ask_where,
        "what": _ask_what,
        "relation": _ask_relation,
    }
    if task not in askers:
        raise ValueError(f"ask() knows the tasks {', '.join(PICTURE_TASKS)} and text, not {task!r}.")
    return askers[task](scene, rng)


def matched_things(first: Scene, second: Scene) -> dict[int, int]:
    """Things of the same colour and shape in two pictures, each matched once: index in the first → in the second."""
    matched: dict[int, int] = {}
    for i, thing in enumerate(first.things):
        for k, other in enumerate(second.things):
            if other.name == thing.name and k not in matched.values():
                matched[i] = k
                break
    return matched


def common_things(first: Scene, second: Scene) -> list[Thing]:
    """The things of the first scene that the second has, too (by colour and shape), each matched once."""
    return [first.things[i] for i in matched_things(first, second)]


def ask_compare(first: Scene, second: Scene, question: str) -> tuple[str, str] | None:
    """The answer to one of the three questions about two pictures; None where they have nothing in common."""
    if question == "Which picture has more objects?":
        a, b = len(first.things), len(second.things)
        return question, "Neither." if a == b else "Picture 1." if a > b else "Picture 2."
    if question == "Are the pictures the same?":
        return question, "Yes." if first == second else "No."
    if question == "What is in both pictures?":
        common = common_things(first, second)
        return (question, description(common)) if common else None
    raise ValueError(f"Not a question about two pictures: {question!r}.")


COMPARE_QUESTIONS = ("Which picture has more objects?", "Are the pictures the same?", "What is in both pictures?")


# ---------------------------------------------------------------------------------------------------------------------
# Two pictures, clips
# ---------------------------------------------------------------------------------------------------------------------


def _recolour(rng: random.Random, scene: Scene, thing: Thing, pairs: str) -> Thing | None:
    """The thing in another colour that stands out from the background, or None where there is none."""
    colours = [c for c, s in allowed_pairs(pairs) if s == thing.shape and c != thing.colour]
    if pairs == "held_out":  # a shape has one held-out colour, so the new colour comes from the rest
        colours = [c for c in COLOURS if c != thing.colour]
    tones = [(c, _jitter(rng, COLOURS[c])) for c in colours]
    tones = [(c, rgb) for c, rgb in tones if colour_distance(scene.background, rgb) >= MIN_CONTRAST + 2]
    if not tones:
        return None
    colour, rgb = rng.choice(tones)
    return replace(thing, colour=colour, rgb=rgb, outline=None)


def _with_things(scene: Scene, things: list[Thing]) -> Scene:
    return replace(scene, things=_from_left_to_right(things))


def make_pair(
    rng: random.Random, width: int, height: int, question: str, max_things: int, pairs: str
) -> tuple[Scene, Scene] | None:
    """Two scenes for one of COMPARE_QUESTIONS, with its answers in fair shares; None where a draw fails."""
    first = make_scene(rng, width, height, rng.randint(1, max_things), pairs=pairs)
    if not first.things:
        return None

    if question == "Which picture has more objects?":
        return first, make_scene(rng, width, height, rng.randint(1, max_things), pairs=pairs)
    if question == "What is in both pictures?":
        shared = rng.sample(first.things, rng.randint(1, min(2, len(first.things))))
        others = _pick_kinds(rng, rng.randint(0, max(0, max_things - len(shared))), pairs, 0.3)
        kinds = [(t.colour, t.shape) for t in shared] + others
        rng.shuffle(kinds)
        return first, make_scene(rng, width, height, len(kinds), kinds=kinds)

    # Are the pictures the same?
    change = rng.choice(("same", "same", "recolour", "fresh"))
    if change == "same":
        return first, first
    if change == "fresh":
        return first, make_scene(rng, width, height, rng.randint(1, max_things), pairs=pairs)
    thing = rng.choice(first.things)
    other = _recolour(rng, first, thing, pairs)
    if other is None:
        return None
    return first, _with_things(first, [other if t is thing else t for t in first.things])


def _free_way(scene: Scene, thing: Thing, direction: str) -> float:
    """Pixels that the thing can move in a direction before it comes near the border or another thing."""
    dx, _ = DIRECTIONS[direction]
    x1, y1, x2, y2 = thing.box
    way = {"left": x1, "right": scene.width - x2, "up": y1, "down": scene.height - y2}[direction] - 1
    for other in scene.things:
        if other is thing:
            continue
        a1, b1, a2, b2 = other.box
        if dx:
            is_in_the_way = y1 - b2 < MIN_GAP and b1 - y2 < MIN_GAP
        else:
            is_in_the_way = x1 - a2 < MIN_GAP and a1 - x2 < MIN_GAP
        gap = {"left": x1 - a2, "right": a1 - x2, "up": y1 - b2, "down": b1 - y2}[direction]
        if is_in_the_way and gap >= 0:
            way = min(way, gap - MIN_GAP)
    return way


def make_clip(
    rng: random.Random, width: int, height: int, frames: int, max_things: int, pairs: str
) -> tuple[list[Scene], str, str] | None:
    """A scene in which one thing changes over `frames` frames: (scenes, question, answer); None where a draw fails."""
    event = rng.choice(("move", "move", "move", "appear", "disappear", "turn"))
    direction = rng.choice(sorted(DIRECTIONS))
    for _ in range(100):  # draws for the same event: otherwise events that seldom fit would be rare
        scene = make_scene(rng, width, height, rng.randint(1, max_things), pairs=pairs)
        clip = _film(rng, scene, event, direction, frames, pairs) if scene.things else None
        if clip:
            return clip
    return None


def _film(
    rng: random.Random, scene: Scene, event: str, direction: str, frames: int, pairs: str
) -> tuple[list[Scene], str, str] | None:
    """`make_clip` for a given scene and event; None where the thing drawn has no room to move or no other colour."""
    thing = rng.choice(scene.things)
    if event == "move":
        return _film_move(rng, scene, thing, direction, frames)

    rest = [t for t in scene.things if t is not thing]
    name = capitalise(with_article(thing.name))
    switch = rng.randint(1, frames - 1)  # the first frame after the change
    if event == "turn":
        other = _recolour(rng, scene, thing, pairs)
        if other is None:
            return None
        before, after = [*rest, thing], [*rest, other]
        answer = f"{name} turns {other.colour}."
    else:
        before, after = [*rest, thing], rest
        if event == "appear":
            before, after = after, before
        answer = f"{name} {event}s."

    scenes = [_with_things(scene, before if i < switch else after) for i in range(frames)]
    return scenes, "What happens?", answer


def _film_move(
    rng: random.Random, scene: Scene, thing: Thing, direction: str, frames: int
) -> tuple[list[Scene], str, str] | None:
    """`_film` for a thing that moves steadily."""
    dx, dy = DIRECTIONS[direction]
    free = _free_way(scene, thing, direction)
    least = max(14.0, 0.2 * (scene.width if dx else scene.height))
    if free < least:
        return None

    rest = [t for t in scene.things if t is not thing]
    step = rng.uniform(least, free) / (frames - 1)
    places = [thing_at(thing, thing.cx + dx * step * i, thing.cy + dy * step * i) for i in range(frames)]
    scenes = [_with_things(scene, [*rest, place]) for place in places]

    is_alone = all(t.shape != thing.shape for t in rest)
    if is_alone and rng.random() < 0.5:
        return scenes, f"Which way does the {thing.shape} move?", capitalise(direction) + "."
    name = capitalise(with_article(thing.name))
    return scenes, "What happens?", f"{name} moves {direction}."


# ---------------------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------------------


def _dialogue(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Two or three turns about one picture, no question twice."""
    turns: list[tuple[str, str]] = []
    wanted = rng.randint(2, 3)
    for _ in range(20):
        turn = ask(scene, rng.choice(PICTURE_TASKS), rng)
        if turn and turn[0] not in [q for q, _ in turns]:
            turns.append(turn)
        if len(turns) == wanted:
            break
    return turns


class SampleOptions(NamedTuple):
    """What `make_sample` is asked for. The order matters: the seed of the random numbers is made from it."""

    task: str
    width: int
    height: int
    max_things: int
    max_chars: int
    text_share: float
    frames: int | None
    fonts: str
    pairs: str


Drawn = tuple[list[Scene], list[tuple[str, str]]]  # scenes, turns


def _try_sample(rng: random.Random, options: SampleOptions) -> Drawn | None:
    """One draw; None where the task does not fit what was drawn."""
    if options.task == "compare":
        return _try_pair(rng, options)
    if options.task == "motion":
        return _try_clip(rng, options)
    if options.task == "text":
        return [], [rng.choice(sorted(TEXT_ONLY.items()))]
    return _try_picture(rng, options)


def _try_pair(rng: random.Random, options: SampleOptions) -> Drawn | None:
    question = rng.choice(COMPARE_QUESTIONS)
    pair = make_pair(rng, options.width, options.height, question, options.max_things, options.pairs)
    turn = ask_compare(*pair, question) if pair else None
    return (list(pair), [turn]) if turn else None


def _try_clip(rng: random.Random, options: SampleOptions) -> Drawn | None:
    frames = options.frames or rng.randint(4, 8)
    clip = make_clip(rng, options.width, options.height, frames, options.max_things, options.pairs)
    if clip is None:
        return None
    scenes, question, answer = clip
    return scenes, [(question, answer)]


def _try_picture(rng: random.Random, options: SampleOptions) -> Drawn | None:
    task = options.task
    with_text = task == "read" or rng.random() < options.text_share
    length = rng.randint(1, options.max_chars) if with_text else 0
    count = _pick_count(rng, task, with_text, options.max_things)
    repeat = 0.8 if task == "count" else 0.3
    scene = make_scene(rng, options.width, options.height, count, length, options.pairs, options.fonts, repeat)

    if task == "dialogue":
        turns = _dialogue(rng, scene)
        return ([scene], turns) if len(turns) > 1 else None
    turn = ask(scene, task, rng)
    return ([scene], [turn]) if turn else None


def _pick_count(rng: random.Random, task: str, with_text: bool, most: int) -> int:
    """How many objects a picture for this task should have: at least two for a relation, none at all only with text."""
    if task == "read":
        return 0 if rng.random() < 0.6 else rng.randint(1, min(2, most))
    if task == "describe" and with_text:
        return rng.randint(0, most)
    least = 2 if task == "relation" else 1
    return rng.randint(least, max(least, most))


def make_sample(
    seed: int,
    task: str,
    width: int,
    height: int,
    max_things: int = 4,
    max_chars: int = 4,
    text_share: float = 0.15,
    frames: int | None = None,
    fonts: str = "train",
    pairs: str = "train",
) -> Sample:
    """The sample of a seed: pictures, question and answer, the same for the same arguments.

    Args:
        seed: below TEST_SEED for training, from there on for the test.
        task: one of TASKS.
        width, height: pixels, of each picture.
        max_things: most objects in a picture (1 to 6).
        max_chars: most characters of text (1 to 8), drawn evenly.
        text_share: share of the pictures of other tasks than "read" that carry a text.
        frames: number of frames of a clip (4 to 8), drawn evenly if None.
        fonts, pairs: as in `make_scene`.

    Raises:
        ValueError: for an unknown task, or sizes and limits outside the tiny world.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; the tasks are {', '.join(TASKS)}.")
    if not (1 <= max_things <= MAX_THINGS and 1 <= max_chars <= MAX_TEXT_LENGTH):
        raise ValueError(f"max_things must be 1 to {MAX_THINGS} and max_chars 1 to {MAX_TEXT_LENGTH}.")

    options = SampleOptions(task, width, height, max_things, max_chars, text_share, frames, fonts, pairs)
    rng = random.Random("/".join(map(str, (seed, *options))))
    for _ in range(1000):
        drawn = _try_sample(rng, options)
        if drawn is not None:
            scenes, turns = drawn
            return Sample(task, [render(s) for s in scenes], *turns[-1], scenes, seed, turns)
    raise ValueError(f"No {task} sample fits a picture of {width}x{height} pixels with {max_things} objects at most.")


def messages(sample: Sample, with_answer: bool = True) -> list[dict]:
    """The sample as chat messages, pictures before the first question; without the last answer for a test."""
    pictures: list[dict] = [{"type": "image", "image": image} for image in sample.images]
    if sample.task == "motion":
        pictures = [{"type": "video", "video": list(sample.images)}]
    if sample.beside is not None:
        pictures = [{"type": "image", "image": sample.beside}, *pictures]

    chat: list[dict] = []
    for question, answer in sample.turns:
        shown = pictures if not chat else []
        chat.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return chat if with_answer else chat[:-1]
