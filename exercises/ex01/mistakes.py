"""Wrong answers to the exercises of notebook 01 that people really give, and what helps them."""

from __future__ import annotations

import math

from exercises.book import Mistake
from exercises.ex01.probes import CELL, SIX
from qwen2vl_mini import MAX_PIXELS, MIN_PIXELS, smart_resize


def resized(height: int, width: int, factor: int, half: float) -> tuple[int, int]:
    """The three rules with another factor, or with halves that are rounded up."""
    sides = [max(factor, rounded(side / factor, half) * factor) for side in (height, width)]
    area = sides[0] * sides[1]
    if area > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / (height * width))
        return tuple(math.floor(side * scale / factor) * factor for side in (height, width))
    if area < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (height * width))
        return tuple(math.ceil(side * scale / factor) * factor for side in (height, width))
    return tuple(sides)


def rounded(number: float, half: float) -> int:
    return math.floor(number + half) if half else round(number)


def halves_up() -> list:
    return [resized(height, width, 28, 0.5) for height, width in SIX]


def multiples_of_14() -> list:
    return [resized(height, width, 14, 0.0) for height, width in SIX]


def raster_order(i: int, grid: tuple) -> tuple:
    _, h, w = grid
    return i // (h * w), i // w % h, i % w


def column_first(i: int, grid: tuple) -> tuple:
    _, h, w = grid
    window, inside = divmod(i % (h * w), 4)
    return i // (h * w), window // (w // 2) * 2 + inside % 2, window % (w // 2) * 2 + inside // 2


def no_frame_pairs(i: int, grid: tuple) -> tuple:
    window, inside = divmod(i, 4)
    across = grid[2] // 2
    return 0, window // across * 2 + inside // 2, window % across * 2 + inside % 2


def resized_coordinates(k: int, grid: tuple, size: tuple) -> tuple:
    row, column = divmod(k, grid[2] // 2)
    return 28.0 * column, 28.0 * row, 28.0 * column + 28, 28.0 * row + 28


def patches_for_tokens(k: int, grid: tuple, size: tuple) -> tuple:
    row, column = divmod(k, grid[2])
    high, wide = size[0] / grid[1], size[1] / grid[2]
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high


def x_and_y_swapped(k: int, grid: tuple, size: tuple) -> tuple:
    row, column = divmod(k, grid[2] // 2)
    high, wide = 2 * size[0] / grid[1], 2 * size[1] / grid[2]
    return row * high, column * wide, (row + 1) * high, (column + 1) * wide


def largest(sizes: list, fits) -> int:
    return max((limit for limit in range(4, 1281) if fits(limit)), default=4) * CELL


def counts_patches(sizes: list, tokens: int) -> int:
    def patches(limit: int) -> int:
        targets = [smart_resize(*size, max_pixels=limit * CELL) for size in sizes]
        return sum(height * width // 14**2 for height, width in targets)

    return largest(sizes, lambda limit: patches(limit) <= tokens)


def equal_shares(sizes: list, tokens: int) -> int:
    return min(1280, tokens // len(sizes)) * CELL


def only_starts_above(max_tokens: int) -> tuple:
    return 56, 28 * max_tokens


def too_long(max_tokens: int) -> tuple:
    return 28, 28 * 250


MISTAKES = {
    "1.1": (
        Mistake(
            halves_up,
            "You rounded 2.5 up to 3. Python's round() goes to the even neighbour, 2, so 70 becomes 56, not 84.",
        ),
        Mistake(
            multiples_of_14,
            "These are multiples of 14. A patch has 14 pixels a side, but the merger joins 2×2 patches, so each side "
            "must be a multiple of 28.",
        ),
    ),
    "1.2": (
        Mistake(
            raster_order,
            "Your rows run across the whole picture. Rows are listed window by window, so that the merger can join "
            "four neighbours by a reshape.",
        ),
        Mistake(
            column_first,
            "Inside a window you go down first. The second patch of a window is the right neighbour of the first.",
        ),
        Mistake(
            no_frame_pairs,
            "You count on through the frame pairs as if they were one high picture. After h·w rows the next pair "
            "begins at row 0.",
        ),
    ),
    "1.3": (
        Mistake(
            resized_coordinates,
            "These are pixels of the resized picture, 28 a token. A box that you draw on the original must be "
            "scaled back: one token covers more or fewer of its pixels.",
        ),
        Mistake(
            patches_for_tokens,
            "That is the box of patch k, 14 pixels a side after resizing. A token is 2×2 patches.",
        ),
        Mistake(
            x_and_y_swapped, "x and y are swapped: left and right go with the column, top and bottom with the row."
        ),
    ),
    "1.4": (
        Mistake(
            counts_patches,
            "You counted patches of 14×14 pixels. The decoder reads tokens, of which each is four patches.",
        ),
        Mistake(
            equal_shares,
            "You gave every picture the same share. max_pixels is a limit for each: a small picture leaves the rest of "
            "its share to the others.",
        ),
    ),
    "1.5": (
        Mistake(
            only_starts_above,
            "This size only starts above the limit; after shrinking it is within. Look for a side that cannot shrink.",
        ),
        Mistake(too_long, "A shape longer than 200:1 is refused, so it costs nothing at all."),
    ),
}
