"""Limits of an area in pixels: who set them, which of two gives way, and sizes that keep to them.

A limit comes from this package, from a checkpoint's files, or from a user. The first two are marked as `Default`: they
give way where they contradict what a user sets. Two limits that a user set contradict each other only with an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from qwen2vl_io.sentences import shown

MAX_RATIO = 200  # of a picture: its longer side / its shorter side
MAX_AREA = 2**26  # pixels of a resized picture, more than twice as many as fit the context
SIZE_NAMES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}  # the official names; areas, not edges
SIZE_NAMES |= {"min_pixels": "min_pixels", "max_pixels": "max_pixels"}  # as the first releases wrote them


class Default(int):
    """A limit that no user asked for. It counts like any number, and gives way to what a user sets."""


def as_defaults(settings: dict) -> dict:
    """Settings of a checkpoint's file, in which all limits are marked as ones that no user asked for."""
    return {name: Default(x) if name.endswith("_pixels") and type(x) is int else x for name, x in settings.items()}


def is_set(limit) -> bool:
    """Whether a user asked for this limit."""
    return not isinstance(limit, Default)


def agreed(low: float, high: float) -> tuple[float, float]:
    """The smallest and the largest area, of which the default gives way if they contradict each other."""
    low = max(low, 1, key=float) if low < 1 else low  # 0: no minimum
    if low <= high:
        return low, high
    if is_set(high) and not is_set(low):
        return Default(high), high
    if is_set(low) and not is_set(high):
        return low, Default(low)
    raise ValueError(f"min_pixels ({shown(low)}) is larger than max_pixels ({shown(high)}); swap or lower it.")


def checked(height: float, width: float, low: float, high: float) -> tuple[float, float]:
    """The limits of a picture's area once they agree; the picture itself is checked before it is resized."""
    if min(height, width) < 1:
        raise ValueError(f"A picture of {width}×{height} pixels has nothing in it.")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"A picture of {width}×{height} pixels is longer than {MAX_RATIO}:1; crop it first.")
    return agreed(low, high)


def checked_size(height: int, width: int) -> tuple[int, int]:
    """The size to which a picture would be resized, in pixels."""
    if height * width > MAX_AREA:
        raise ValueError(f"{width}×{height} pixels do not fit a context of tokens; lower min_ and max_pixels.")
    return height, width


def scaled(height: int, width: int, cell: int, area: float, rounding: Callable) -> tuple[int, int]:
    """The size in whole cells whose area is next to `area`: below it (math.floor) or above it (math.ceil).

    A strip that is one cell wide already gets shorter, if that is the only way to stay below.
    """
    scale = math.sqrt(area / (height * width)) / cell
    most = max(1, int(area // cell**2)) if rounding is math.floor else math.inf
    return tuple(min(max(1, rounding(side * scale)), most) * cell for side in (height, width))


def resized(resize: Callable, height: int, width: int, cell: int, low: float, high: float) -> tuple[int, int]:
    """The size of a picture by the rule `resize` (smart_resize), within the limits that a user set.

    The rule rounds to whole cells, and can pass one limit for the sake of the other. Where that other is a default, the
    nearest size that keeps to the user's own limit is taken. In all other cases the rule's answer stands, which is the
    official one to the pixel: where a user set both, or where it passes a limit for another reason (a strip of 500×30
    pixels cannot be narrower than one cell).
    """
    size = resize(height, width, cell, low, high)
    area = size[0] * size[1]
    if area > high and is_set(high) and not is_set(low):
        free = resize(height, width, cell, Default(1), high)
        return scaled(height, width, cell, high, math.floor) if free[0] * free[1] <= high else size
    if area < low and is_set(low) and not is_set(high):
        return checked_size(*scaled(height, width, cell, low, math.ceil))
    return size


def of_frame(low: float, high: float, total: float, pairs: int) -> float:
    """The largest area of a clip's frames: its share of the clip's budget, and at most `high`.

    qwen-vl-utils never lets the share fall below 1.05 · low, which can break the budget, and lets an explicit `high`
    replace the budget. Between defaults that floor stands here, too. Whatever a user sets holds for the whole clip:
    `high` beside the budget, and a budget without any floor. transformers has a budget only if it is asked for one, and
    then this rule with the floor. An odd last frame is repeated, so it costs as much as a pair and counts as one.
    """
    share = total / pairs
    floor = int(1.05 * low)  # 5 % are room for rounding up to whole cells
    if not is_set(high):
        high = Default(max(high, floor))
    if is_set(total):
        if low > share and is_set(low):
            raise ValueError(
                f"{pairs} pairs of frames of min_pixels ({low}) are more than total_pixels ({total}); "
                "take fewer frames (nframes) or change one of the limits."
            )
        return min(high, share)
    limit = min(high, max(share, floor))
    is_users = is_set(high) and (limit >= high or not is_set(low))
    return limit if is_users else Default(limit)


def within(size: tuple[int, int], total: float, pairs: int) -> tuple[int, int]:
    """The size of a clip's frames, if all of them together keep to a budget that a user set."""
    height, width = size
    if is_set(total) and pairs * height * width > total:
        raise ValueError(
            f"{pairs} pairs of frames of {width}×{height} pixels are more than total_pixels ({total}); "
            "raise it or take fewer frames (nframes)."
        )
    return size


def own_size(size: tuple[int, int], cell: int, low: float, high: float) -> tuple[int, int]:
    """`resized_height` and `resized_width` → the nearest size in whole cells. Only a user's own limits hold for it."""
    height, width = size
    checked(height, width, 1, 1)
    for name, limit, is_past in (
        ("min_pixels", low, height * width < low),
        ("max_pixels", high, height * width > high),
    ):
        if is_past and is_set(limit):
            raise ValueError(
                f"resized_height ({height}) and resized_width ({width}) contradict {name} ({shown(limit)}), which is "
                "set, too; leave one of them out."
            )
    rounded = tuple(max(1, round(side / cell)) * cell for side in size)
    if is_set(high) and rounded[0] * rounded[1] > high:
        return checked_size(*scaled(height, width, cell, high, math.floor))
    if is_set(low) and rounded[0] * rounded[1] < low:
        return checked_size(*scaled(height, width, cell, low, math.ceil))
    return checked_size(*rounded)


def of_size(size) -> dict:
    """The official option `size`, whose "edges" are areas → the limits under our names."""
    try:
        content = dict(size) if isinstance(size, Mapping) else dict(vars(size))
    except TypeError:
        content = {"": size}
    content = {name: value for name, value in content.items() if value is not None}
    if not content.keys() <= SIZE_NAMES.keys():
        way_out = "; resized_height and resized_width set the sides" if content.keys() & {"height", "width"} else ""
        raise ValueError(
            f"size={shown(size)} is not supported: it is {{'shortest_edge': pixels, 'longest_edge': pixels}}, two "
            f"areas{way_out}."
        )
    found: dict = {}
    for name, value in content.items():
        if found.setdefault(SIZE_NAMES[name], value) != value:
            raise ValueError(f"size={shown(size)} says {SIZE_NAMES[name]} twice; give one of the two.")
    return found
