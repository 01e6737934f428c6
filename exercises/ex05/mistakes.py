"""Wrong answers to the exercises of notebook 05 that people really give, and what helps them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from exercises.book import Mistake
from exercises.ex05.probes import in_cells
from qwen2vl_mini import get_rope_index


def blocks(parts: list, time: Callable, resume: Callable) -> list[tuple[int, int, int]]:
    """Positions by variants of the rules: `time` of a clip's pair i, and by how much a block moves the text on."""
    rows, start = [], 0
    for part in parts:
        if isinstance(part, int):
            rows += [(start + n,) * 3 for n in range(part)]
            start += part
            continue
        t, h, w, *seconds = (1, *part) if len(part) == 2 else part
        block = [(time(i, *seconds) if i else 0, j, k) for i, j, k in product(range(t), range(h), range(w))]
        rows += [(start + i, start + j, start + k) for i, j, k in block]
        start += resume(block)
    return rows


def largest(block: list[tuple]) -> int:
    return max(map(max, block)) + 1


PROMPT = [2, (2, 3), 1, (2, 1, 2), 1]


def one_dimensional() -> list:
    return [(place, place, place) for place in range(14)]


def rows_and_columns_swapped() -> list:
    return [(t, w, h) for t, h, w in blocks(PROMPT, lambda i: i, largest)]


def from_zero_in_each_picture() -> list:
    rows = blocks(PROMPT, lambda i: i, largest)
    return [(t, h - start, w - start) for (t, h, w), start in zip(rows, [0, 0] + [2] * 6 + [0] + [6] * 4 + [0])]


def text_resumes_after_time() -> list:
    return blocks(PROMPT, lambda i: i, lambda block: block[-1][0] + 1)


def next_by(advance: Callable) -> Callable:
    """A version of 5.2 in which a picture or clip of (t, h, w) cells moves the text on by `advance(t, h, w)`."""

    def answer(parts: list) -> int:
        cells = [in_cells(part) for part in parts]
        return sum(part if isinstance(part, int) else advance(*(1, *part)[-3:]) for part in cells)

    return answer


def by_patches(parts: list) -> int:
    sizes = [part if isinstance(part, int) else (1, *part)[-3:] for part in parts]
    return sum(part if isinstance(part, int) else max(-(-part[0] // 2), part[1] // 14, part[2] // 14) for part in sizes)


def by_single_frames(parts: list) -> int:
    sizes = [part if isinstance(part, int) else (1, *part)[-3:] for part in parts]
    return sum(part if isinstance(part, int) else max(part[0], part[1] // 28, part[2] // 28) for part in sizes)


def last_frame_dropped(parts: list) -> int:
    sizes = [part if isinstance(part, int) else (2, *part)[-3:] for part in parts]
    return sum(part if isinstance(part, int) else max(part[0] // 2, part[1] // 28, part[2] // 28) for part in sizes)


def interleaved(i: int, head_dim: int, sections: list[int]) -> str:
    return "thw"[i % (head_dim // 2) % 3]


def owner(pair: int, sections: list[int]) -> str:
    return "t" if pair < sections[0] else "h" if pair < sections[0] + sections[1] else "w"


def sections_over_all_channels(i: int, head_dim: int, sections: list[int]) -> str:
    return owner(i // 2, sections)


def second_half_forgotten(i: int, head_dim: int, sections: list[int]) -> str:
    return owner(i, sections)


def chat_with(config, turns: list[dict], answers: list[int], start: Callable, lag: Callable) -> Tensor:
    """A later turn starts at place `held` + `start(deltas)`, answered ids stand at their place + `lag(deltas)`.

    `deltas` are those of the turns so far, the newest last.
    """
    lanes, held, deltas = [], 0, []
    for turn, answer in zip(turns, answers):
        position_ids, delta = get_rope_index(config, **turn)
        deltas.append(int(delta))
        lanes.append(position_ids[:, 0] + (held + start(deltas) if held else 0))
        held += position_ids.shape[2]
        lanes.append((torch.arange(held, held + answer) + lag(deltas)).expand(3, -1))
        held += answer
    return torch.cat(lanes, dim=1)


def newest(deltas: list[int]) -> int:
    return deltas[-1]


def newest_everywhere(config, turns, answers) -> Tensor:
    return chat_with(config, turns, answers, newest, newest)


def reset_to_zero(config, turns, answers) -> Tensor:
    return torch.cat([chat_with(config, [turn], [n], sum, sum) for turn, n in zip(turns, answers)], dim=1)


def cache_length(config, turns, answers) -> Tensor:
    return chat_with(config, turns, answers, lambda deltas: 0, newest)


def only_the_prompt_is_right(config, turns, answers) -> Tensor:
    return chat_with(config, turns, answers, lambda deltas: sum(deltas[:-1]), newest)


def only_the_last_turn(config, turns, answers) -> Tensor:
    return chat_with(config, turns, answers, lambda deltas: deltas[-2], newest)


def by_seconds(parts: list, time: Callable, resume: Callable = largest) -> Tensor:
    return torch.tensor(blocks(parts, time, resume)).T


def frame_index(parts, tokens_per_second) -> Tensor:
    return by_seconds(parts, lambda i, seconds: i)


def interval_cut_first(parts, tokens_per_second) -> Tensor:
    return by_seconds(parts, lambda i, seconds: i * int(seconds * tokens_per_second))


def seconds_cut_first(parts, tokens_per_second) -> Tensor:
    return by_seconds(parts, lambda i, seconds: i * int(seconds) * tokens_per_second)


def rounded_to_nearest(parts, tokens_per_second) -> Tensor:
    return by_seconds(parts, lambda i, seconds: round(i * seconds * tokens_per_second))


def resumes_by_rows_and_columns(parts, tokens_per_second) -> Tensor:
    def resume(block: list[tuple]) -> int:
        return max(max(h, w) for _, h, w in block) + 1

    return by_seconds(parts, lambda i, seconds: int(i * seconds * tokens_per_second), resume)


MISTAKES = {
    "5.1": (
        Mistake(
            one_dimensional,
            "These are places, counted from 0 to 13. Only words take a place of their own on every axis; the cells of "
            "a picture share positions.",
        ),
        Mistake(
            rows_and_columns_swapped,
            "Height and width are swapped: from a cell to its right neighbour the last number grows, the column.",
        ),
        Mistake(
            from_zero_in_each_picture,
            "Your rows and columns start at 0 in each picture. They start where the picture starts, at the next free "
            "position.",
        ),
        Mistake(
            text_resumes_after_time,
            "What follows a picture starts one after its *time* here. Its last column is further on, and the largest "
            "number on any axis counts.",
        ),
    ),
    "5.2": (
        Mistake(
            next_by(lambda t, h, w: t * h * w),
            "You counted the tokens, which is where the word stands in the sequence. Its position is smaller: a "
            "picture of 2×3 cells has six tokens and moves the text on by 3.",
        ),
        Mistake(
            next_by(lambda t, h, w: t),
            "You went on from the time of the last token + 1. Its row or its column can be larger, and the largest of "
            "the three axes counts.",
        ),
        Mistake(
            next_by(lambda t, h, w: max(h, w)),
            "You took the larger of rows and columns and left time out. A clip with more frame pairs than that reaches "
            "further. (transformers 5 does the same.)",
        ),
        Mistake(
            by_patches,
            "You counted in patches of 14 pixels. The decoder's positions are those of merged cells, 28 pixels each.",
        ),
        Mistake(
            by_single_frames,
            "You counted single frames. The tower reads them in pairs, so eight frames are four steps of time.",
        ),
        Mistake(
            last_frame_dropped,
            "You dropped the last frame of an odd number. It is repeated, so five frames are three pairs.",
        ),
    ),
    "5.3": (
        Mistake(
            interleaved,
            "You dealt the pairs out in turn: t, h, w, t, h, w. Qwen2-VL gives each axis one block of neighbouring "
            "pairs. (Qwen3-VL is the one that interleaves.)",
        ),
        Mistake(
            sections_over_all_channels,
            "You took channels 2i and 2i + 1 for a pair. The partner of channel i is i + D/2, so the sections run over "
            "half of the channels, and then once more.",
        ),
        Mistake(
            second_half_forgotten,
            "You gave the whole second half of the channels to w. It repeats the first: channel i + D/2 turns with "
            "channel i.",
        ),
    ),
    "5.4": (
        Mistake(
            newest_everywhere,
            "This still does what the code did: a later prompt is moved by its own delta. It must be moved by the "
            "deltas of all turns before it.",
        ),
        Mistake(
            reset_to_zero,
            "Every turn starts at position 0 again. The keys in the cache keep their positions, so new words would "
            "stand among the old ones.",
        ),
        Mistake(
            cache_length,
            "A later turn starts at the number of tokens in the cache. Pictures use fewer positions than tokens, so "
            "that leaves a hole.",
        ),
        Mistake(
            only_the_prompt_is_right,
            "The prompts are right now. The answers are not yet: they lag behind by all earlier turns too, not by the "
            "last prompt alone.",
        ),
        Mistake(
            only_the_last_turn,
            "You take the delta of the turn before, for the prompt, and the newest for the answer. Each belongs to one "
            "prompt; with pictures in several turns they add up.",
        ),
    ),
    "5.5": (
        Mistake(
            frame_index,
            "Your clips go on by 1 a pair, as in Qwen2-VL. Here a pair stands at its time: seconds · "
            "tokens_per_second.",
        ),
        Mistake(
            interval_cut_first,
            "You cut the step to a whole number and then multiplied. Multiply by i first, or a step of 1.5 becomes 1 "
            "and the clock runs slow.",
        ),
        Mistake(
            seconds_cut_first,
            "You cut the seconds first. All pairs within a second fall onto one position then. (transformers 4.57 did "
            "it.)",
        ),
        Mistake(
            rounded_to_nearest,
            "You rounded to the nearest number. The official code cuts down, as int() and .long() do.",
        ),
        Mistake(
            resumes_by_rows_and_columns,
            "The clips are right. The text after a long one resumes too early: time counts among the three axes as "
            "well.",
        ),
    ),
}
