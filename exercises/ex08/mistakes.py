"""Wrong answers to the exercises of notebook 08 that people really give, and what helps them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exercises.book import Mistake
from qwen2vl_mini import smart_resize

# ── 8.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def frames_not_paired() -> list:
    return [(6, 2400), (4, 1600), (4, 1600), (240, 240 * 121), (600, 600 * 121)]


def half_a_pair_up() -> list:
    return [(6, 1200), (6, 1200), (4, 800), (240, 23520), (600, 36300)]


def no_least_number() -> list:
    return [(6, 1200), (4, 800), (2, 400), (240, 23520), (600, 36300)]


def budget_without_floor() -> list:
    return [(6, 1200), (4, 800), (4, 800), (240, 23520), (600, 300 * 81)]


def no_budget() -> list:
    return [(6, 1200), (4, 800), (4, 800), (240, 48000), (600, 120000)]


# ── 8.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def spread_out(total: int, number: int) -> list[int]:
    gap = (total - 1) / max(1, number - 1)
    return [round(gap * place) for place in range(number)]


def how_many(total: int, video_fps: float, fps: float, least: float = 4, most: float = 768) -> int:
    number = 2 * round(min(max(total / video_fps * fps, least), most) / 2)
    return min(number, total // 2 * 2 or total)


def fixed_stride(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    return list(range(0, total_frames, max(1, int(video_fps / fps))))


def odd_count(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    number = min(max(round(total_frames / video_fps * fps), 4), 768, total_frames)
    return spread_out(total_frames, number)


def last_frame_missed(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    number = how_many(total_frames, video_fps, fps)
    return [int(place * total_frames / number) for place in range(number)]


def places_cut_off(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    number = how_many(total_frames, video_fps, fps)
    return [place * (total_frames - 1) // max(1, number - 1) for place in range(number)]


def halves_up(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    wanted = min(max(total_frames / video_fps * fps, 4), 768)
    number = min(2 * math.floor(wanted / 2 + 0.5), total_frames // 2 * 2 or total_frames)
    return spread_out(total_frames, number)


def count_cut_off(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    wanted = min(max(total_frames / video_fps * fps, 4), 768)
    number = min(2 * math.floor(wanted / 2), total_frames // 2 * 2 or total_frames)
    return spread_out(total_frames, number)


def no_minimum(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    return spread_out(total_frames, max(1, how_many(total_frames, video_fps, fps, least=1)))


def no_maximum(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    return spread_out(total_frames, how_many(total_frames, video_fps, fps, most=math.inf))


def more_than_there_are(total_frames: int, video_fps: float, fps: float = 2.0) -> list[int]:
    wanted = min(max(total_frames / video_fps * fps, 4), 768)
    return spread_out(total_frames, 2 * round(wanted / 2))


# ── 8.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def frames_of(pair: int, picked: list[int]) -> tuple[int, int]:
    last = len(picked) - 1
    return picked[min(2 * pair, last)], picked[min(2 * pair + 1, last)]


def pair_as_one_frame(k: int, grid: tuple, picked: list, video_fps: float) -> tuple:
    second = picked[k // (grid[1] * grid[2] // 4)] / video_fps
    return second, second


def overlapping_pairs(k: int, grid: tuple, picked: list, video_fps: float) -> tuple:
    pair = k // (grid[1] * grid[2] // 4)
    return picked[pair] / video_fps, picked[min(pair + 1, len(picked) - 1)] / video_fps


def patches_for_tokens(k: int, grid: tuple, picked: list, video_fps: float) -> tuple:
    first, last = frames_of(k // (grid[1] * grid[2]), picked)
    return first / video_fps, last / video_fps


def half_a_second_each(k: int, grid: tuple, picked: list, video_fps: float) -> tuple:
    pair = k // (grid[1] * grid[2] // 4)
    return 2 * pair / 2, (2 * pair + 1) / 2


def frame_numbers(k: int, grid: tuple, picked: list, video_fps: float) -> tuple:
    first, last = frames_of(k // (grid[1] * grid[2] // 4), picked)
    return float(first), float(last)


# ── 8.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def resized(clips: list, shares: list[float], most: float = 768) -> list[tuple]:
    return [smart_resize(*clip[1:], max_pixels=784 * min(most, share)) for clip, share in zip(clips, shares)]


def still_frames(clips: list, budget: int) -> list[tuple]:
    share = budget / sum(frames for frames, _, _ in clips)
    return resized(clips, [share] * len(clips))


def still_the_same_for_each_clip(clips: list, budget: int) -> list[tuple]:
    return resized(clips, [budget / len(clips) / ((frames + 1) // 2) for frames, _, _ in clips])


def doubled(clips: list, budget: int) -> list[tuple]:
    share = 2 * budget / sum(frames for frames, _, _ in clips)
    return resized(clips, [share] * len(clips))


def last_frame_free(clips: list, budget: int) -> list[tuple]:
    share = budget / sum(frames // 2 for frames, _, _ in clips)
    return resized(clips, [share] * len(clips))


def cap_lost(clips: list, budget: int) -> list[tuple]:
    share = budget / sum((frames + 1) // 2 for frames, _, _ in clips)
    return resized(clips, [share] * len(clips), most=math.inf)


# ── 8.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def kept_pairs(patches: Tensor, t: int, threshold: float, absolute: bool = True, previous: bool = False) -> list[int]:
    lines, kept = patches.view(t, -1), [0]
    for i in range(1, t):
        difference = lines[i] - lines[i - 1 if previous else kept[-1]]
        if (difference.abs() if absolute else difference).mean().abs() > threshold:
            kept.append(i)
    return kept


def placed(times: list[int], h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.tensor(times), torch.arange(h), torch.arange(w)).T


def renumbered(patches: Tensor, grid: tuple, threshold: float) -> tuple:
    kept = kept_pairs(patches, grid[0], threshold)
    return kept, placed(list(range(len(kept))), grid[1] // 2, grid[2] // 2)


def against_the_one_before(patches: Tensor, grid: tuple, threshold: float) -> tuple:
    kept = kept_pairs(patches, grid[0], threshold, previous=True)
    return kept, placed(kept, grid[1] // 2, grid[2] // 2)


def differences_cancel(patches: Tensor, grid: tuple, threshold: float) -> tuple:
    kept = kept_pairs(patches, grid[0], threshold, absolute=False)
    return kept, placed(kept, grid[1] // 2, grid[2] // 2)


def a_position_for_each_patch(patches: Tensor, grid: tuple, threshold: float) -> tuple:
    kept = kept_pairs(patches, grid[0], threshold)
    return kept, placed(kept, grid[1], grid[2])


def time_in_frames(patches: Tensor, grid: tuple, threshold: float) -> tuple:
    kept = kept_pairs(patches, grid[0], threshold)
    return kept, placed([2 * pair for pair in kept], grid[1] // 2, grid[2] // 2)


MISTAKES = {
    "8.1": (
        Mistake(
            frames_not_paired,
            "You paid for every frame. Two frames go into one patch, so a pair costs what one picture costs, and it "
            "is the pairs that share the budget.",
        ),
        Mistake(
            half_a_pair_up,
            "Five frames are 2.5 pairs, and you made them three. round(2.5) is 2, the even neighbour: 4 frames.",
        ),
        Mistake(no_least_number, "A clip of one second would give two frames, but at least four are taken."),
        Mistake(
            budget_without_floor,
            "You cut the frames of the five minutes down to their share of the budget. No share is less than 1.05 · "
            "128 tokens, so a long clip costs more than the budget.",
        ),
        Mistake(
            no_budget,
            "You left every frame at its own size. The pairs of a clip share 24,576 tokens, so the frames of a long "
            "one get smaller.",
        ),
    ),
    "8.2": (
        Mistake(
            fixed_stride,
            "You walk through the clip with a fixed stride. The number of frames comes first, an even one; then they "
            "are spread from the first to the last, and the gap between them is seldom a whole number.",
        ),
        Mistake(
            odd_count,
            "Your number of frames can be odd. Frames go in pairs: halve the number, round, double.",
        ),
        Mistake(
            last_frame_missed,
            "You never reach the last frame, and neither does transformers' own rule. n places have n − 1 gaps between "
            "them, so divide total − 1 by n − 1.",
        ),
        Mistake(
            places_cut_off,
            "You cut off the fraction of each place, so most frames come too early. Round to the nearest frame: 44.4 "
            "is 44, but 14.8 is 15.",
        ),
        Mistake(
            halves_up,
            "You round half a pair up. Python's round() goes to the even neighbour: 5 frames are 2.5 pairs, so 2, so "
            "4.",
        ),
        Mistake(
            count_cut_off,
            "You round the number of pairs down. It goes to the nearest: 7 frames are 3.5 pairs, so 4, so 8.",
        ),
        Mistake(no_minimum, "A short clip gets too few frames from you: at least 4, if there are that many."),
        Mistake(no_maximum, "A long clip gets too many frames from you: 768 are the most."),
        Mistake(
            more_than_there_are,
            "You pick some frames twice, because you ask for more than there are. Of three frames two are taken.",
        ),
    ),
    "8.3": (
        Mistake(
            pair_as_one_frame,
            "You took the pair for one frame: pair p shows two of the picked frames, the numbers 2p and 2p + 1.",
        ),
        Mistake(
            overlapping_pairs,
            "Your pairs overlap, like a window that moves by one frame. Each picked frame belongs to one pair only.",
        ),
        Mistake(
            patches_for_tokens,
            "You counted h · w tokens for a pair. Those are its patches; four of them are one token.",
        ),
        Mistake(
            half_a_second_each,
            "You took it for granted that frames are half a second apart. They are spread from the first to the last, "
            "so the gap is what it comes to: look their numbers up in `picked`.",
        ),
        Mistake(frame_numbers, "These are numbers of frames, not seconds. A film shows video_fps of them in a second."),
    ),
    "8.4": (
        Mistake(
            still_frames,
            "The clips are mended, but you still share among frames. Two frames cost what one picture does, so half "
            "of the budget is left.",
        ),
        Mistake(
            still_the_same_for_each_clip,
            "The pairs are mended, but every clip still gets the same. Then a pair of a short clip may cost far more "
            "than one of a long clip.",
        ),
        Mistake(
            doubled,
            "You doubled the share of a frame, which is right for even numbers only. A last odd frame costs as much "
            "as a pair, so a clip of 5 frames is three pairs.",
        ),
        Mistake(
            last_frame_free,
            "You left a last odd frame out of the count. It is repeated and costs as much as a pair, so the budget "
            "breaks.",
        ),
        Mistake(cap_lost, "The share is right, but a pair may cost 768 tokens at most, however much budget there is."),
    ),
    "8.5": (
        Mistake(
            renumbered,
            "You numbered the kept pairs anew. To the model all then happens without a pause; a token keeps the "
            "position that it has in the whole clip.",
        ),
        Mistake(
            against_the_one_before,
            "You compare with the pair before, which may have been left out. A slow change then never shows; compare "
            "with the last pair that you kept.",
        ),
        Mistake(
            differences_cancel,
            "Your differences cancel: what gets brighter on one side makes up for what gets darker on the other. Take "
            "their absolute values before the mean.",
        ),
        Mistake(
            a_position_for_each_patch,
            "You gave a position to every patch. The decoder sees tokens, of 2×2 patches: h / 2 rows, w / 2 columns.",
        ),
        Mistake(
            time_in_frames,
            "You counted time in frames. A token spans two of them, and its position on the time axis counts pairs.",
        ),
    ),
}
