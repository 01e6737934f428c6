"""Exercises of notebook 01, dynamic resolution. `python -m exercises check 1.1` says how you do."""

# %% imports
import torch

from qwen2vl_mini import patchify, smart_resize


# %% 1.1
def six_sizes() -> list[tuple[int, int]]:
    """The (height, width) in pixels to which six pictures are resized, with the default limits (4 and 1,280 tokens).

    1: 70×70   2: 42×42   3: 98×200   4: 720×1280   5: 2800×2800   6: 14×14   (height×width)
    Write a list of six pairs. A square root helps with number 5; nothing else needs more than your head.
    """
    raise NotImplementedError


# %% 1.2
def patch_of_row(i: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Which patch is row i of `pixel_values`? Its (frame pair, row, column), each counted from 0.

    `grid` is (t, h, w): t frame pairs, each of h rows and w columns of patches, as `patchify` gives it.
    """
    raise NotImplementedError


# %% 1.3
def pixels_of_token(k: int, grid: tuple[int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What does visual token k see? Its (left, top, right, bottom), in pixels of the picture before it was resized.

    `grid` is (1, h, w), in patches; `size` is the (height, width) of the picture as it was on the disk. Tokens are
    listed row by row. The four numbers need not be whole.
    """
    raise NotImplementedError


# %% 1.4
def largest_max_pixels(sizes: list[tuple[int, int]], tokens: int) -> int:
    """The sharpest pictures that fit: the largest of 4·784, 5·784, 6·784 … 1280·784 that can be the `max_pixels` of
    them all, so that together they cost at most `tokens` visual tokens.

    `sizes` are (height, width) in pixels. With 4·784 they always fit.
    """
    raise NotImplementedError


# %% 1.5
def size_that_breaks(max_tokens: int) -> tuple[int, int]:
    """A (height, width) that costs more than `max_tokens` visual tokens, although max_pixels = max_tokens · 784.

    `max_tokens` is at least 4 and at most 190. No side is longer than 200 times the other. Say why in a comment.
    """
    raise NotImplementedError
