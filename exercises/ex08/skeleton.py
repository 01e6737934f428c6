"""Exercises of notebook 08, video. `python -m exercises check 8.1` says how you do."""

# %% imports
import math

import torch
from torch import Tensor

from qwen2vl_mini import smart_resize


# %% 8.1
def five_bills() -> list[tuple[int, int]]:
    """The (frames taken, visual tokens) of five clips, under the defaults; every clip is 560×560, 20×20 cells.

    1: 75 frames at 25 a second   2: 50 at 20   3: 30 at 30   4: 3,600 at 30 (two minutes)   5: 9,000 at 30 (five)
    The defaults: 2 frames a second; a pair has 128 to 768 tokens; all pairs share 24,576, but no share is less than
    1.05 · 128. Write a list of five pairs. The square roots of 204.8 and 134.4 are about 14.3 and 11.6.
    """
    raise NotImplementedError


# %% 8.2
def frames_picked(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    """Which frames of a clip are looked at? Their numbers, from 0, in order.

    The clip has `total_frames`, `video_fps` a second; `fps` are wanted for each second. The four rules of the notebook:
    seconds · fps, at least 4 and at most 768; made even by halving, round() and doubling; never more than there are
    (of 5 frames 4, of 1 that one); spread evenly from the first frame to the last, each place rounded with round().
    Example: frames_picked(75, 25.0) is [0, 15, 30, 44, 59, 74].
    """
    raise NotImplementedError


# %% 8.3
def seconds_of_token(k: int, grid: tuple[int, int, int], picked: list[int], video_fps: float) -> tuple[float, float]:
    """When was it filmed what visual token k of a clip shows? The seconds of its first and of its last frame.

    `grid` is (t, h, w), in patches; `picked` are the numbers of the frames that were taken, counted from 0 in a film of
    `video_fps` frames a second. If their number is odd, the last one was repeated. Frame 0 is at second 0.
    """
    raise NotImplementedError


# %% 8.4
def sizes_under_budget(clips: list[tuple[int, int, int]], budget: int) -> list[tuple[int, int]]:
    """The (height, width) at which the clips of a prompt are seen, so that all cost at most `budget` tokens. Mend it.

    A clip is (frames, height, width). *Every pair of frames*, of whichever clip, may cost the same share of the
    budget, but no pair more than 768 tokens; an odd last frame costs as much as a pair. As it stands, half of the
    budget is never used, and a short clip beside a long one is far too sharp.
    """
    sizes = []
    for frames, height, width in clips:
        share = budget / len(clips) / frames  # tokens
        limit = min(768, share) * 28 * 28  # pixels
        sizes.append(smart_resize(height, width, max_pixels=limit))
    return sizes


# %% 8.5
def changed_pairs(patches: Tensor, grid: tuple[int, int, int], threshold: float) -> tuple[list[int], Tensor]:
    """Leave out what stands still: the frame pairs that are kept, and the positions (3, tokens) of their tokens.

    `patches` (t·h·w, 1176) and `grid` (t, h, w) are a clip as `patchify` gives it. Pair 0 is kept, and each pair whose
    numbers differ by more than `threshold`, in the mean of the absolute differences, from the last pair that was kept.
    Positions (whole numbers, in the order time, height, width) are those that the tokens have in the whole clip, which
    starts at position 0: what is left out must not change when the rest happens.
    """
    raise NotImplementedError
