"""Wrong answers to the exercises of notebook 04 that people really give, and what helps them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from exercises.book import Mistake
from qwen2vl_mini import patchify, unpatchify, vision_angles

# ── 4.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shapes(patches: int = 56, picture: int = 24, pair: int = 16, tokens: int = 14) -> dict:
    return {
        "pixel_values": (56, 1176),
        "embedded": (patches, 1280),
        "cos": (patches, 80),
        "tokens": (tokens, 1536),
        "scores_picture": (16, picture, picture),
        "scores_pair": (16, pair, pair),
        "merger_rows": (tokens, 5120),
    }


def merger_first() -> dict:
    return shapes(patches=14, picture=6, pair=4)


def columns_588() -> dict:
    return shapes() | {"pixel_values": (56, 588)}


def all_see_all() -> dict:
    return shapes(picture=56, pair=56)


def frames_not_paired() -> dict:
    return shapes(patches=88, tokens=22) | {"pixel_values": (88, 1176)}


def angles_for_channels() -> dict:
    return shapes() | {"cos": (56, 40)}


# ── 4.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def time_before_colour(kernel: Tensor) -> Tensor:
    channels, _, frames = kernel.shape[:3]
    return kernel.reshape(channels, frames, -1).sum(1).T


def transposed(kernel: Tensor) -> Tensor:
    return kernel.sum(2).flatten(1)


def averaged(kernel: Tensor) -> Tensor:
    return kernel.mean(2).flatten(1).T


def first_frame_only(kernel: Tensor) -> Tensor:
    return kernel[:, :, 0].flatten(1).T


# ── 4.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_turn(lengths: list[int], parts: tuple, attention: Callable) -> Tensor:
    """Segments one after the other."""
    pieces = zip(*(part.split(lengths) for part in parts))
    return torch.cat([attention(*piece) for piece in pieces])


def per_picture(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    return in_turn([math.prod(grid) for grid in grids], (q, k, v), attention)


def large_mask(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return attention(q, k, v, owner[:, None] != owner)


def still_leaks(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    counts = Counter(h * w for t, h, w in grids for _ in range(t))
    return in_turn([length for length, count in counts.items() for _ in range(count)], (q, k, v), attention)


def sorted_by_length(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    outputs, first = [], 0
    for length, run in groupby(sorted(h * w for t, h, w in grids for _ in range(t))):
        count = len(list(run))
        last = first + count * length
        parts = [x[first:last].reshape(count, length, -1) for x in (q, k, v)]
        outputs.append(attention(*parts).flatten(0, 1))
        first = last
    return torch.cat(outputs)


# ── 4.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def turned(coordinates: Tensor, head_dim: int) -> Tensor:
    """Angles of coordinates (N, 2)."""
    pairs = head_dim // 4
    frequencies = 10000.0 ** -(torch.arange(pairs) / pairs)
    return (coordinates[:, :, None] * frequencies).flatten(1)


def raster(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    rows, columns = torch.arange(top, top + h), torch.arange(left, left + w)
    return turned(torch.cartesian_prod(rows, columns), head_dim)


def no_offset(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    return vision_angles([[1, h, w]], head_dim, 2, "cpu")


def laid_out(top: int, left: int, h: int, w: int) -> Tensor:
    """The coordinates of a picture that holds the crop, (1, 2, rows, columns)."""
    height, width = top + h + (top + h) % 2, left + w + (left + w) % 2
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(1, height, width, 2).movedim(3, 1)


def columns_before_rows(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    crop = laid_out(top, left, h, w)[:, :, top : top + h, left : left + w]
    return turned(patchify(crop, 1, 1)[0].flip(1), head_dim)


def order_of_the_picture(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    listed = patchify(laid_out(top, left, h, w), 1, 1)[0]
    row, column = listed.T
    inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    return turned(listed[inside], head_dim)


# ── 4.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def windows_of(grids: list[tuple], side: int, patches_joined: bool = False, pairs_joined: bool = False) -> list[Tensor]:
    """The rows of each window; `side` counts tokens, or patches if they are not joined to tokens."""
    members, first = [], 0
    for t, h, w in grids:
        place = unpatchify(torch.arange(first, first + t * h * w)[:, None], (t, h, w), 1, 1)[:, 0]  # (t, h, w)
        step = side if patches_joined else 2 * side
        for frames in [place] if pairs_joined else place.split(1):
            strips = [strip for strip in frames.split(step, dim=1)]
            members += [square.flatten() for strip in strips for square in strip.split(step, dim=2)]
        first += t * h * w
    return [rows.sort().values for rows in members]


def put_back(members: list[Tensor], q: Tensor, k: Tensor, v: Tensor, attention: Callable) -> Tensor:
    answer = torch.empty_like(v)
    for rows in members:
        answer[rows] = attention(q[rows], k[rows], v[rows])
    return answer


def edges_padded(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    answer = torch.empty_like(v)
    for rows in windows_of(grids, window):
        padding = (0, 0, 0, 4 * window**2 - len(rows))
        answer[rows] = attention(*(F.pad(x[rows], padding) for x in (q, k, v)))[: len(rows)]
    return answer


def order_kept(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    return torch.cat([attention(q[rows], k[rows], v[rows]) for rows in windows_of(grids, window)])


def patches_for_tokens(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    return put_back(windows_of(grids, window, patches_joined=True), q, k, v, attention)


def through_time(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    return put_back(windows_of(grids, window, pairs_joined=True), q, k, v, attention)


def no_windows(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    return in_turn([h * w for t, h, w in grids for _ in range(t)], (q, k, v), attention)


MISTAKES = {
    "4.1": (
        Mistake(
            merger_first,
            "You let the merger join patches before the blocks. All blocks work on patches, and the merger is the "
            "last step.",
        ),
        Mistake(
            columns_588,
            "588 = 3·14·14 are the numbers of one frame. A row holds two frames, 1176 numbers, even for a still "
            "picture.",
        ),
        Mistake(
            all_see_all,
            "These scores are of all 56 patches with one another. A patch sees its own picture, or its own pair of "
            "frames, and nothing else.",
        ),
        Mistake(
            frames_not_paired,
            "You counted the patches of all four frames. Two frames share a patch, so the clip has two frame pairs, "
            "not four.",
        ),
        Mistake(
            angles_for_channels,
            "40 is the number of angles. Cosines are tiled: the second half of a head's 80 channels gets the same 40 "
            "once more.",
        ),
    ),
    "4.2": (
        Mistake(
            time_before_colour,
            "You cut the flattened kernel into frames first, as if time stood before colour. The kernel is (C, 3, "
            "frames, P, P): the two numbers to add belong to the same colour.",
        ),
        Mistake(
            transposed,
            "The numbers are right and the matrix is transposed: it has a row for each channel. `rows @ M` wants a "
            "column for each.",
        ),
        Mistake(
            averaged,
            "You averaged the two frames' weights. The embedding is a sum over both frames, so the weights are added.",
        ),
        Mistake(
            first_frame_only,
            "These are the first frame's weights alone. The second frame shows the same pixels, but its weights are "
            "others, and count as well.",
        ),
    ),
    "4.3": (
        Mistake(
            per_picture,
            "You cut per picture: t·h·w patches. In a clip each *frame pair* is a segment of its own, h·w patches "
            "long; the tower never looks from one into another.",
        ),
        Mistake(
            large_mask,
            "The numbers are right, but every patch is scored with every other, and the mask hides most of it: "
            "with ten pictures of one size, nine tenths of the work. Call `attention` on each segment.",
        ),
        Mistake(
            still_leaks,
            "The leak is still there: where segments of equal length are not neighbours, you cut slices of the wrong "
            "lengths. Lengths must stay in the order of the pictures.",
        ),
        Mistake(
            sorted_by_length,
            "You sorted the lengths, but the rows of q, k and v still stand in the order of the pictures, so the "
            "slices cut through them.",
        ),
    ),
    "4.4": (
        Mistake(
            raster,
            "Your angles go row by row through the crop. `patchify` lists patches window by window, and so must their "
            "angles be.",
        ),
        Mistake(
            no_offset,
            "Your crop begins at 0, as if it were a picture of its own. Add `top` to its rows and `left` to its "
            "columns.",
        ),
        Mistake(
            columns_before_rows,
            "Rows and columns are swapped: the first half of the angles turns with the row, the second with the "
            "column.",
        ),
        Mistake(
            order_of_the_picture,
            "You took the picture's angles in the picture's order. A crop at an odd row or column has its own 2×2 "
            "windows, which lie across those of the picture.",
        ),
    ),
    "4.5": (
        Mistake(
            edges_padded,
            "You padded the windows at the edge. A padded key of zeros has the score 0, not −∞, and takes its share "
            "of the softmax: let edge windows be smaller.",
        ),
        Mistake(
            order_kept,
            "Your rows come out window after window. Whoever called you needs them where they were: write each "
            "window's result into the rows it came from.",
        ),
        Mistake(
            patches_for_tokens,
            "Your windows have `window` patches a side. They are counted in tokens, 2×2 patches each: twice as many.",
        ),
        Mistake(
            through_time,
            "Your windows reach through all frame pairs of a clip. Each frame pair has windows of its own.",
        ),
        Mistake(
            no_windows,
            "You cut frame pairs, but no windows: that is the full attention of 4.3. Qwen2.5-VL keeps it for four of "
            "its 32 blocks only.",
        ),
    ),
}
