"""Exercises of notebook 05, M-RoPE. `python -m exercises check 5.1` says how you do."""

# %% imports
import torch
from torch import Tensor

from qwen2vl_mini import Qwen2VLConfig, get_rope_index


# %% 5.1
def position_table() -> list[tuple[int, int, int]]:
    """The positions (t, h, w) of the 14 tokens of this prompt, the first word at (0, 0, 0), by hand:

    2 words · a picture of 2×3 cells (2 rows, 3 columns) · 1 word · a clip of 2×1×2 cells (2 pairs of frames, each of
    1 row and 2 columns) · 1 word. Write a list of 14 triples.
    """
    raise NotImplementedError


# %% 5.2
def where_text_resumes(parts: list[int | tuple[int, ...]]) -> int:
    """The position of the next word after a prompt that is given in words and *pixels*; the first word is at 0.

    A part is a number of words (the markers around pictures counted), the (height, width) of a picture in pixels, or
    the (frames, height, width) of a clip. Heights and widths are multiples of 28 already.
    where_text_resumes([3]) is 3; where_text_resumes([3, (28, 28)]) is 4. get_rope_index is not at hand: count.
    """
    raise NotImplementedError


# %% 5.3
def axis_of_channel(i: int, head_dim: int, sections: list[int]) -> str:
    """Which position turns channel i of a query or key: "t", "h" or "w"?

    A head has `head_dim` channels; `sections` is the config's `mrope_section`, the pairs of t, h and w. The released
    models have head_dim 128 and [16, 24, 24], the bundled one has 32 and [4, 6, 6].
    """
    raise NotImplementedError


# %% 5.4
def chat_positions(config: Qwen2VLConfig, turns: list[dict], answers: list[int]) -> Tensor:
    """Positions (3, S) of a whole chat of one row, read through a cache: a prompt at once, its answer id by id.

    `turns[i]` are the new ids of a turn with their grids, such as play.as_prompt("1 word, 2x2, 1 word") gives;
    `answers[i]` is how many ids the model answers. A first turn is right, a second is not: mend it.
    """
    lanes, held = [], 0  # held: tokens in the cache
    for turn, answer in zip(turns, answers):
        position_ids, delta = get_rope_index(config, **turn)  # (3, 1, Q), (1, 1)
        if held > 0:
            position_ids = position_ids + held + delta
        lanes.append(position_ids[:, 0])
        held += position_ids.shape[2]
        for _ in range(answer):
            lanes.append((held + delta).expand(3, 1))
            held += 1
    return torch.cat(lanes, dim=1)


# %% 5.5
def positions_by_seconds(parts: list[int | tuple], tokens_per_second: int) -> Tensor:
    """Positions (3, S) as Qwen2.5-VL numbers them: time goes by seconds, and the rest as in Qwen2-VL.

    A part is a number of words, a picture of (h, w) cells, or a clip (t, h, w, seconds): t pairs of frames of h×w
    cells, a new pair every so many seconds. Pair i stands i · seconds · tokens_per_second after the first, cut down
    to a whole number. At 2 a second, a pair each 0.75 s: 0, 1, 3, 4 … Text resumes after the largest on any axis.
    """
    raise NotImplementedError
