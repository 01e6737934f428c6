"""Exercises of notebook 08: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import torch
from torch import Tensor

from exercises.book import Exercise, Probe
from exercises.values import plain
from qwen2vl_io.videos import frame_indices, smart_nframes
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLImageProcessor, get_rope_index, patchify, unpatchify

CELL = 28 * 28  # pixels of a token


# ── 8.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

FIVE = [(75, 25), (50, 20), (30, 30), (3600, 30), (9000, 30)]  # frames, and frames a second


def five_costs() -> list[tuple[int, int]]:
    numbers = [smart_nframes(total, rate) for total, rate in FIVE]
    return [(number, Qwen2VLImageProcessor().num_video_tokens(number, 560, 560)) for number in numbers]


# ── 8.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def picked_by_our_rule(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    return frame_indices(total_frames, smart_nframes(total_frames, video_fps, fps))


def random_clip(rng: random.Random) -> tuple:
    """A clip whose number of pairs does not depend on the order of multiplying and dividing; at 25 a second none "
    "does."""
    while True:
        total = rng.randint(1, 900)
        rate = rng.choice([23.976, 24.0, 25.0, 29.97, 60.0])
        fps = rng.choice([1.0, 2.0, 4.0])
        exact = Fraction(total) / Fraction(rate) * Fraction(fps) / 2  # pairs
        if abs(exact % 1 - Fraction(1, 2)) > Fraction(1, 10**6) or rate == 25.0:
            return total, rate, fps


# ── 8.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def seconds_in_the_rows(k: int, grid: tuple[int, int, int], picked: list[int], video_fps: float) -> tuple[float, float]:
    """What `patchify` does to a clip each of whose frames is filled with its own second."""
    _, h, w = grid
    seconds = torch.tensor(picked, dtype=torch.float64) / video_fps
    frames = seconds.view(-1, 1, 1, 1).expand(-1, 3, h, w)
    rows, _ = patchify(frames, patch_size=1)  # a patch is one pixel of two frames here
    first, last = rows[4 * k].view(3, 2)[0].tolist()
    return first, last


def random_token(rng: random.Random) -> tuple:
    pairs = rng.randint(1, 5)
    grid = (pairs, 2 * rng.randint(1, 4), 2 * rng.randint(1, 4))
    picked = sorted(rng.sample(range(300), 2 * pairs - rng.randint(0, 1)))
    return rng.randrange(grid[0] * grid[1] * grid[2] // 4), grid, picked, rng.choice([24.0, 25.0, 30.0])


# ── 8.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sizes_by_our_rule(clips: list[tuple[int, int, int]], budget: int) -> list[tuple[int, int]]:
    """All clips as one clip, whose frames are the pairs of all: that is how the file shares a budget."""
    processor = Qwen2VLImageProcessor(min_pixels=4 * CELL, video_min_pixels=4 * CELL)
    frames = sum(2 * math.ceil(clip[0] / 2) for clip in clips)
    return [processor.frame_size(frames, *clip[1:], total_pixels=budget * CELL) for clip in clips]


def is_on_the_edge(clips: list[tuple[int, int, int]], budget: int) -> bool:
    """Whether a side would be a whole number of cells exactly, so that the last bit decides."""
    share = min(Fraction(768), Fraction(budget, sum(math.ceil(clip[0] / 2) for clip in clips)))
    squares = [share * Fraction(*sides) for _, h, w in clips for sides in ((h, w), (w, h))]
    return any(square.denominator == 1 and math.isqrt(square.numerator) ** 2 == square for square in squares)


def random_clips(rng: random.Random) -> tuple:
    while True:
        clips = [(rng.randint(2, 60), rng.randint(100, 1500), rng.randint(100, 1500)) for _ in range(rng.randint(1, 3))]
        budget = rng.randint(30, 900) * sum(clip[0] for clip in clips) // 2
        if not is_on_the_edge(clips, budget):
            return clips, budget


# ── 8.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_clip(levels: list[list[float]], height: int = 28, width: int = 28) -> tuple[Tensor, tuple[int, int, int]]:
    """A clip of one texture: levels[i] are added to the left and to the right half of both frames of pair i."""
    frames = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    frames = frames.repeat(2 * len(levels), 1, 1, 1)
    for number in range(len(frames)):
        left, right = levels[number // 2]
        frames[number, :, :, : width // 2] += left
        frames[number, :, :, width // 2 :] += right
    return patchify(frames)


def by_frames(patches: Tensor, grid: tuple[int, int, int], threshold: float) -> list[int]:
    """The pairs that are kept, told from the frames themselves."""
    pairs = unpatchify(patches, grid).unflatten(0, (grid[0], 2)).double()
    kept = [0]
    for i in range(1, grid[0]):
        if (pairs[i] - pairs[kept[-1]]).abs().mean() > threshold:
            kept.append(i)
    return kept


def in_words(pairs: list[int], positions: Tensor) -> dict:
    """An answer to 8.5, one axis after the other."""
    time, height, width = torch.as_tensor(positions).long().tolist()
    return {"pairs": list(pairs), "time": time, "height": height, "width": width}


def kept_view(answer, patches: Tensor, grid: tuple[int, int, int], threshold: float) -> dict | None:
    if answer is None:
        return None
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise TypeError("two things are asked for, the pairs and the positions")
    pairs, positions = plain(list(answer[0])), torch.as_tensor(answer[1])
    if not all(isinstance(pair, int) or getattr(pair, "ndim", 1) == 0 for pair in pairs):
        raise TypeError("the pairs are a list of their numbers, counted from 0")
    if positions.ndim != 2 or len(positions) != 3:
        raise TypeError(f"the positions have the shape {tuple(positions.shape)}, not (3, tokens)")
    return in_words([int(pair) for pair in pairs], positions)


def kept_by_our_rule(patches: Tensor, grid: tuple[int, int, int], threshold: float) -> dict:
    t, h, w = grid
    config = Qwen2VLConfig()
    ids = torch.full((1, t * h * w // 4), config.video_token_id)
    positions, _ = get_rope_index(config, ids, video_grid_thw=torch.tensor([grid]))  # (3, 1, tokens)
    pairs = by_frames(patches, grid, threshold)
    return in_words(pairs, positions[:, 0].unflatten(1, (t, -1))[:, pairs].flatten(1))


def still_probe(levels: list[list[float]], threshold: float, why: str, height: int = 28, width: int = 28) -> Probe:
    patches, grid = a_clip(levels, height, width)
    text = " ".join("/".join(f"{level:g}" for level in sorted(set(pair))) for pair in levels)
    shown = f"changed_pairs(a clip with the grid {grid} whose pairs are brighter by {text}, {grid}, {threshold})"
    return Probe((patches, grid, threshold), why, shown)


def random_film(rng: random.Random) -> tuple:
    levels = [[0.2 * rng.randint(0, 4)] * 2 for _ in range(rng.randint(1, 6))]  # neighbours of 0.2 are within 0.3
    return *a_clip(levels, 28 * rng.randint(1, 2), 28 * rng.randint(1, 3)), 0.3


EXERCISES = (
    Exercise(
        number="8.1",
        title="Five bills",
        function="five_bills",
        kind="P",
        stars=1,
        minutes=5,
        expected=five_costs,
        probes=(Probe((), "pairs, the even neighbour, at least 4 frames, the budget, its floor"),),
        hints=(
            "Seconds times two are the frames, but at least 4, and an even number. Two frames cost what one picture "
            "does.",
            "2.5 seconds are 5 frames or 2.5 pairs, and round(2.5) is 2. Then share 24,576 tokens among the pairs: is "
            "a share less than the 400 that a pair costs at its own size?",
            "120 pairs get 204.8 tokens each: 14×14 cells, since both sides are rounded down. 300 pairs would get "
            "81.9, but no share is less than 134.4: 11×11 cells.",
        ),
    ),
    Exercise(
        number="8.2",
        title="Which frames?",
        function="frames_picked",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=picked_by_our_rule,
        probes=(
            Probe((1, 30.0), "a single frame"),
            Probe((3, 30.0), "more than there are"),
            Probe((5, 30.0), "an odd number of frames"),
            Probe((30, 30.0), "at least 4"),
            Probe((50, 20.0), "2.5 pairs"),
            Probe((70, 20.0), "3.5 pairs"),
            Probe((75, 25.0), "a stride, the last frame, places cut off"),
            Probe((100, 25.0, 1.0), "another fps"),
            Probe((12_000, 25.0), "at most 768"),
        ),
        random_probe=random_clip,
        blocked=("qwen2vl_io.videos:smart_nframes", "qwen2vl_io.videos:frame_indices", "qwen2vl_io.videos:spread"),
        hints=(
            "First how many, then which. How many: four steps, in the order of the rules.",
            "n places from 0 to total − 1 have n − 1 gaps between them. How wide is a gap?",
            "Place i is round(i · (total − 1) / (n − 1)); n = 1 needs a line of its own.",
        ),
    ),
    Exercise(
        number="8.3",
        title="When was that?",
        function="seconds_of_token",
        kind="I",
        stars=2,
        minutes=15,
        expected=seconds_in_the_rows,
        tolerance=1e-6,
        probes=(
            Probe((0, (1, 2, 2), [0, 30], 30.0)),
            Probe((1, (2, 2, 2), [0, 15, 30, 44], 25.0), "a pair as one frame, half a second taken for granted"),
            Probe((5, (3, 4, 4), [0, 15, 30, 44, 59, 74], 25.0), "patches for tokens"),
            Probe((17, (3, 4, 6), [0, 10, 20, 30, 40], 20.0), "an odd number of frames"),
        ),
        random_probe=random_token,
        hints=(
            "In three steps: token → pair → frames → seconds.",
            "A pair of frames has h · w patches, and four of them are one token. Pair p shows two of the picked "
            "frames.",
            "Pair p shows picked[2p] and picked[2p + 1]; where the second is missing, the first was repeated. A "
            "frame's second is its number divided by video_fps.",
        ),
    ),
    Exercise(
        number="8.4",
        title="A budget shared wrongly",
        function="sizes_under_budget",
        kind="F",
        stars=2,
        minutes=20,
        expected=sizes_by_our_rule,
        probes=(
            Probe(([(4, 560, 560)], 420), "frames for pairs"),
            Probe(([(5, 560, 840)], 1000), "an odd last frame"),
            Probe(([(2, 1400, 1000)], 5000), "at most 768"),
            Probe(([(4, 560, 560), (40, 560, 560)], 4000), "the same for each clip"),
            Probe(([(8, 84, 112), (9, 720, 1280)], 2000), "a clip that needs little"),
        ),
        random_probe=random_clips,
        hints=(
            "There are two faults. Try one clip of 4 frames first: how much of the budget do its tokens use?",
            "What is the budget to be divided by, if every pair of every clip gets the same?",
            "Count the pairs of all clips before the loop, (frames + 1) // 2 of each; the share is budget / pairs, "
            "for all.",
        ),
    ),
    Exercise(
        number="8.5",
        title="Leave out what stands still",
        function="changed_pairs",
        kind="E",
        stars=3,
        minutes=30,
        expected=kept_by_our_rule,
        view=kept_view,
        probes=(
            still_probe([[0, 0], [0, 0]], 0.1, "nothing happens"),
            still_probe([[0, 0], [0, 0], [0.5, 0.5]], 0.1, "positions renumbered"),
            still_probe([[0, 0], [0.06, 0.06], [0.12, 0.12], [0.18, 0.18]], 0.1, "a slow change"),
            still_probe([[0, 0], [-0.5, 0.5]], 0.1, "differences cancel"),
            still_probe([[0, 0], [0, 0], [0.4, 0], [0.4, 0]], 0.1, "positions of patches", 28, 84),
        ),
        random_probe=random_film,
        hints=(
            "patches.view(t, -1) has a line for each pair: all its numbers. Compare lines.",
            "Compare with the last line that you kept, not with the one before: a slow change must not go unseen for "
            "ever.",
            "A token of pair p, row i and column j of cells has the position (p, i, j), whichever pairs are left out; "
            "there are h / 2 rows and w / 2 columns. torch.cartesian_prod(kept, rows, columns).T lists them in order.",
        ),
    ),
)
