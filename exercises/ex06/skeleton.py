"""Exercises of notebook 06, decoder and generation. `python -m exercises check 6.1` says how you do."""

# %% imports
import torch
from torch import Tensor

from qwen2vl_mini import KVCache


# %% 6.1
def masks_needed() -> list[str]:
    """Which mask does each of these eight attentions need? Write a list of eight names.

    "none": nothing is hidden · "square": as many queries as keys, and the future is hidden ·
    "corner": the queries stand behind older keys, and a corner at the right end is hidden
    1: a prompt of 7 words, first pass · 2: the next word alone, behind these 7
    3: 5 words of a second turn, behind 9 in the cache · 4: a prompt of one word, first pass
    5: 24 patches of one picture, in the tower · 6: 2 words, 64 visual tokens, 3 words, first pass
    7: a turn with a picture, 70 tokens behind 100 · 8: without a cache, all 8 words anew
    """
    raise NotImplementedError


# %% 6.2
def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of H query heads to Hkv heads of keys and values, without a copy of k or v.

    q (B, Q, H, D), k and v (B, S, Hkv, D) → (B, Q, H·D), the heads side by side as `o_proj` wants
    them. Query head h uses key head h // G, where G = H / Hkv. Nothing is hidden: every query sees
    all S keys. A tensor with more numbers than k is refused, as is F.scaled_dot_product_attention.
    """
    raise NotImplementedError


# %% 6.3
def may_look(positions: Tensor, new: int, padding: int) -> Tensor:
    """Where may each of the `new` last tokens look? (new, S) of bool, True = allowed, as in SDPA.

    `positions` (3, S) are the M-RoPE positions of all S tokens of a row, those in the cache first.
    The first `padding` tokens are padding: nothing looks at them, and they look at nothing. Not all
    that is given is needed. Two new words behind two old ones:
    [[True, True, True, False], [True, True, True, True]]
    """
    raise NotImplementedError


# %% 6.4
def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Top-p on probabilities (B, V): the smallest set of the likeliest ids that together reach p.

    The others become 0. The result is drawn from, so each row must sum to 1. This version has two
    faults: find and mend them. [[0.5, 0.3, 0.2]] with p = 0.7 should give [[0.625, 0.375, 0]].
    """
    ordered, order = probabilities.sort(descending=True)
    reached = ordered.cumsum(dim=-1)
    ordered = ordered.masked_fill(reached > p, 0)
    return torch.zeros_like(probabilities).scatter(1, order, ordered)


# %% 6.5
def speculate(model, ids: Tensor, new: int) -> list[int]:
    """The `new` ids that greedy decoding writes behind `ids` (1, S), in at most new / 2 passes.

    Guess: if the last two ids stood side by side before, then what followed them there, up to 8
    ids, may follow again. One pass, `model(more, cache=cache).logits` (1, Q, V), reads the last id
    and the guess, and checks all of it. Keep what agrees with the argmax, then the argmax itself.
    There is no picture, and no end token: return just `new` ids. An empty cache with enough room:
    KVCache(model.config.text_config, rows=1, capacity=ids.shape[1] + new + 8)
    """
    raise NotImplementedError
