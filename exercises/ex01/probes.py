"""Exercises of notebook 01: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random

import torch

from exercises.book import Exercise, Probe
from qwen2vl_mini import patchify, smart_resize

CELL = 28 * 28  # pixels of a token


# ── 1.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SIX = [(70, 70), (42, 42), (98, 200), (720, 1280), (2800, 2800), (14, 14)]


def six_targets() -> list[tuple[int, int]]:
    return [smart_resize(height, width) for height, width in SIX]


# ── 1.2 and 1.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def coordinates_in_order(t: int, h: int, w: int) -> list[tuple[int, int, int]]:
    """What `patchify` does to a "picture" whose pixel at row y, column x of frame t has the colours (t, y, x)."""
    axes = torch.arange(t), torch.arange(h), torch.arange(w)
    frames = torch.cartesian_prod(*axes).view(t, h, w, 3).movedim(3, 1)  # (T, 3, h, w)
    rows, _ = patchify(frames, patch_size=1, temporal_patch_size=1)  # a patch is one pixel here
    return [tuple(row) for row in rows.tolist()]


def patch_in_order(i: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    return coordinates_in_order(*grid)[i]


def random_row(rng: random.Random) -> tuple:
    grid = (rng.randint(1, 3), 2 * rng.randint(1, 5), 2 * rng.randint(1, 5))
    return rng.randrange(grid[0] * grid[1] * grid[2]), grid


def box_in_original(k: int, grid: tuple[int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    _, h, w = grid
    four = coordinates_in_order(*grid)[4 * k : 4 * k + 4]  # the patches that the merger joins
    (_, first_row, first_column), (_, last_row, last_column) = four[0], four[3]
    down, across = size[0] / h, size[1] / w  # original pixels that a patch covers
    return first_column * across, first_row * down, (last_column + 1) * across, (last_row + 1) * down


def random_token(rng: random.Random) -> tuple:
    _, (_, h, w) = random_row(rng)
    return rng.randrange(h * w // 4), (1, h, w), (rng.randint(28, 2000), rng.randint(28, 2000))


# ── 1.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cost(sizes: list[tuple[int, int]], max_tokens: int) -> int:
    """Visual tokens of pictures under one limit."""
    targets = [smart_resize(height, width, max_pixels=max_tokens * CELL) for height, width in sizes]
    return sum(height * width // CELL for height, width in targets)


def by_trying_all(sizes: list[tuple[int, int]], tokens: int) -> int:
    return max(limit for limit in range(4, 1281) if cost(sizes, limit) <= tokens) * CELL


def random_pictures(rng: random.Random) -> tuple:
    sizes = [(rng.randint(60, 1500), rng.randint(60, 1500)) for _ in range(rng.randint(1, 4))]
    return sizes, rng.randint(16 * len(sizes), 600)


# ── 1.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def how_it_ends(size: tuple[int, int], max_tokens: int) -> str:
    """What a size does under a limit, in words."""
    try:
        height, width = size
        new_height, new_width = smart_resize(height, width, max_pixels=max_tokens * CELL)
    except (TypeError, ValueError) as error:
        return f"refused: {error}"
    tokens = new_height * new_width // CELL
    if tokens > max_tokens:
        return "it breaks the limit"
    starts_above = max(1, round(height / 28)) * max(1, round(width / 28)) > max_tokens
    return f"{tokens} tokens, within the limit" + (", although it starts above" if starts_above else "")


EXERCISES = (
    Exercise(
        number="1.1",
        title="Six target sizes",
        function="six_sizes",
        kind="P",
        stars=1,
        minutes=5,
        expected=six_targets,
        probes=(Probe((), "70 and 14 tell the roundings apart"),),
        hints=(
            "Divide each side by 28, round, multiply by 28. Then look at the area: is it within the two limits?",
            "round(2.5) is 2 and round(1.5) is 2: Python goes to the even neighbour. No side becomes 0.",
            "2800×2800 must become at most 1,280 tokens, and √1280 is about 35.8. 14×14 must become at least 4 tokens.",
        ),
    ),
    Exercise(
        number="1.2",
        title="Which patch is row i?",
        function="patch_of_row",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=patch_in_order,
        probes=(
            Probe((0, (1, 2, 2))),
            Probe((1, (1, 4, 4)), "column first"),
            Probe((2, (1, 4, 4)), "raster order"),
            Probe((6, (1, 2, 6)), "windows across a wide picture"),
            Probe((17, (1, 6, 4)), "windows down a high picture"),
            Probe((13, (2, 2, 4)), "frame pair forgotten"),
        ),
        random_probe=random_row,
        hints=(
            "Draw a grid of 4×4 patches and number them as the figure of the notebook does: 0 and 1 are "
            "neighbours, and so are 0 and 2. What are the coordinates of 2?",
            "Take the number apart from the inside out: column in the window (2), row in the window (2), window "
            "across (w / 2), window down (h / 2), frame pair.",
            "Four times divmod: i, column_in = divmod(i, 2), and so on. A row is 2 · window down + row in the window.",
        ),
    ),
    Exercise(
        number="1.3",
        title="What a token sees",
        function="pixels_of_token",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=box_in_original,
        probes=(
            Probe((0, (1, 4, 4), (56, 56)), "14 pixels"),
            Probe((1, (1, 4, 6), (56, 84)), "x and y swapped"),
            Probe((3, (1, 4, 4), (70, 70)), "coordinates of the resized picture"),
            Probe((5, (1, 4, 6), (100, 150))),
        ),
        random_probe=random_token,
        tolerance=1e-6,
        hints=(
            "The picture was stretched to h·14 by w·14 pixels. How many original pixels does a token cover, down and "
            "across?",
            "A token is two patches high: there are h / 2 rows of tokens, which cover the whole original height.",
            "row, column = divmod(k, w // 2); a token is size[0] / (h / 2) high and size[1] / (w / 2) wide.",
        ),
    ),
    Exercise(
        number="1.4",
        title="The sharpest pictures that fit",
        function="largest_max_pixels",
        kind="I",
        stars=2,
        minutes=20,
        expected=by_trying_all,
        probes=(
            Probe(([(280, 280)], 50), "patches for tokens"),
            Probe(([(1000, 1000), (56, 56)], 200), "an equal share each"),
            Probe(([(720, 1280), (1280, 720), (300, 300)], 1000)),
            Probe(([(56, 56), (84, 84)], 500), "all fit at their own size"),
        ),
        random_probe=random_pictures,
        hints=(
            "smart_resize(height, width, max_pixels=…) gives the size; its area divided by 784 is its tokens.",
            "A larger limit never makes a picture cheaper. Small pictures leave room for large ones.",
            "So try the limits one by one, or halve the range until two limits are left of which only one fits.",
        ),
    ),
    Exercise(
        number="1.5",
        title="Break the limit",
        function="size_that_breaks",
        kind="E",
        stars=3,
        minutes=20,
        expected=lambda max_tokens: "it breaks the limit",
        view=how_it_ends,
        probes=(
            Probe((4,)),
            Probe((16,)),
            Probe((64,)),
            Probe((128,)),
            Probe((190,)),
        ),
        hints=(
            "Shrinking scales both sides by the same number, and then rounds each down. Which side cannot get smaller?",
            "No side falls below 28. So take a picture that is one token high: only its width shrinks, by the square "
            "root of what would be needed.",
            "28 pixels high and 28·m wide costs √(m · max_tokens) tokens, rounded down, if m is larger than "
            "max_tokens. The longest shape allowed is m = 200.",
        ),
    ),
)
