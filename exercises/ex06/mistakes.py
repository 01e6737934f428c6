"""Wrong answers to the exercises of notebook 06 that people really give, and what helps them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exercises.book import Mistake
from exercises.ex06.probes import EIGHT, eight_masks
from qwen2vl_mini import KVCache


def one_query_masked() -> list[str]:
    return ["corner" if Q == 1 < S else "square" if S == 1 else name for (Q, S, _), name in zip(EIGHT, eight_masks())]


def later_turn_as_prefill() -> list[str]:
    return ["square" if name == "corner" else name for name in eight_masks()]


def tower_is_causal() -> list[str]:
    return [name if causal else "square" for (_, _, causal), name in zip(EIGHT, eight_masks())]


def attention(q: Tensor, k: Tensor, v: Tensor, strided: bool, scale: float) -> Tensor:
    """(B, Q, two axes of heads, D); the second factor of the heads is the group, or the first if `strided`."""
    Hkv, G = k.shape[2], q.shape[2] // k.shape[2]
    q = q.unflatten(2, (G, Hkv)).transpose(2, 3) if strided else q.unflatten(2, (Hkv, G))
    weights = (torch.einsum("bqngd,bsnd->bqngs", q, k) / scale).softmax(dim=-1)
    return torch.einsum("bqngs,bsnd->bqngd", weights, v)


def strided_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, True, math.sqrt(q.shape[-1])).transpose(2, 3).flatten(2)


def groups_outermost(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, False, math.sqrt(q.shape[-1])).transpose(2, 3).flatten(2)


def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, False, 1).flatten(2)


def aligned_top_left(positions: Tensor, new: int, padding: int) -> Tensor:
    mask = torch.ones(new, positions.shape[1], dtype=torch.bool).tril()
    return mask & (torch.arange(positions.shape[1]) >= padding)


def by_position(positions: Tensor, new: int, padding: int) -> Tensor:
    time = positions[0]
    return (time <= time[-new:, None]) & (torch.arange(len(time)) >= padding)


def true_is_hidden(positions: Tensor, new: int, padding: int) -> Tensor:
    place = torch.arange(positions.shape[1])
    return (place > place[-new:, None]) | (place < padding)


def padding_is_seen(positions: Tensor, new: int, padding: int) -> Tensor:
    place = torch.arange(positions.shape[1])
    return place <= place[-new:, None]


def top_p(probabilities: Tensor, p: float, crossing: bool) -> Tensor:
    """What stays, not yet divided by its sum."""
    ordered, order = probabilities.sort(descending=True)
    reached = ordered.cumsum(dim=-1) - (ordered if crossing else 0)
    return torch.zeros_like(ordered).scatter(1, order, ordered.masked_fill(reached >= p, 0))


def crossing_id_dropped(probabilities: Tensor, p: float) -> Tensor:
    kept = top_p(probabilities, p, crossing=False)
    return kept / kept.sum(dim=-1, keepdim=True)


def not_renormalised(probabilities: Tensor, p: float) -> Tensor:
    return top_p(probabilities, p, crossing=True)


def softmax_of_probabilities(probabilities: Tensor, p: float) -> Tensor:
    return top_p(probabilities, p, crossing=True).softmax(dim=-1)


def guessed(known: list[int]) -> list[int]:
    places = [i for i in range(len(known) - 2) if known[i : i + 2] == known[-2:]]
    return known[places[-1] + 2 : places[-1] + 10] if places else []


def decoded(model, ids: Tensor, new: int, keep, forget: bool) -> list[int]:
    """Speculation in which `keep` says what of a guess stays, and the cache forgets the rest, or does not."""
    cache = KVCache(model.config.text_config, 1, 4 * ids.shape[1] + 9 * new)
    known, unread = ids[0].tolist(), ids[0].tolist()
    while len(known) < ids.shape[1] + new:
        guess = guessed(known)
        logits = model(torch.tensor([unread + guess]), cache=cache).logits[0, len(unread) - 1 :]
        known += keep(guess, logits.argmax(dim=-1).tolist())
        unread = known[-1:]
        if forget:
            cache.length = len(known) - 1
            cache.next_position[:] = cache.length
            cache.token_ids = cache.token_ids[:, : cache.length]
    return known[ids.shape[1] : ids.shape[1] + new]


def agreed(guess: list[int], chosen: list[int]) -> list[int]:
    right = next((i for i, token in enumerate(guess) if token != chosen[i]), len(guess))
    return chosen[: right + 1]


def one_by_one(model, ids: Tensor, new: int) -> list[int]:
    return decoded(model, ids, new, lambda guess, chosen: chosen[:1], True)


def rejected_ids_stay(model, ids: Tensor, new: int) -> list[int]:
    return decoded(model, ids, new, agreed, False)


def guess_is_trusted(model, ids: Tensor, new: int) -> list[int]:
    return decoded(model, ids, new, lambda guess, chosen: guess + chosen[-1:], True)


def read_again(model, ids: Tensor, new: int) -> list[int]:
    known = ids[0].tolist()
    while len(known) < ids.shape[1] + new:
        guess = guessed(known)
        logits = model(torch.tensor([known + guess])).logits[0, len(known) - 1 :]
        known += agreed(guess, logits.argmax(dim=-1).tolist())
    return known[ids.shape[1] : ids.shape[1] + new]


MISTAKES = {
    "6.1": (
        Mistake(
            one_query_masked,
            "You mask a single query. It is the last token, so nothing lies in its future, and a mask would only cost.",
        ),
        Mistake(
            later_turn_as_prefill,
            "You treat a later turn like a first pass. Its queries meet the older keys too, so their triangle stands "
            "in the corner of a wide rectangle.",
        ),
        Mistake(
            tower_is_causal,
            "You hide patches from each other. A picture has no order of reading: in the tower all see all.",
        ),
    ),
    "6.2": (
        Mistake(
            strided_groups,
            "Query head h uses key head h % Hkv here. Groups are neighbours: it is h // G, as repeat_interleave does "
            "it and repeat does not.",
        ),
        Mistake(
            groups_outermost,
            "Each head is right, but they are put down in another order. Key head first, place in the group last: "
            "otherwise o_proj reads the wrong columns.",
        ),
        Mistake(no_scale, "The scores are not divided by √D, so the softmax is far too sharp."),
    ),
    "6.3": (
        Mistake(
            aligned_top_left,
            "Your triangle begins in the upper left corner, as if the new tokens were the first. Their own keys are "
            "the last ones, so it belongs into the lower right.",
        ),
        Mistake(
            by_position,
            "You compare M-RoPE positions. All tokens of a picture share one time, so they see their own future; the "
            "mask goes by place in the sequence.",
        ),
        Mistake(
            true_is_hidden,
            "True and False are the other way round: attn_mask says where a query may look, not what is hidden.",
        ),
        Mistake(
            padding_is_seen,
            "Padding is looked at. It stands before all others, so a causal triangle alone does not hide it.",
        ),
    ),
    "6.4": (
        Mistake(
            crossing_id_dropped,
            "One fault is left: the id that crosses p is dropped, so the set does not reach p. With one very likely id "
            "nothing at all would stay.",
        ),
        Mistake(
            not_renormalised,
            "One fault is left: the right ids stay, but a row sums to less than 1. These are no probabilities yet.",
        ),
        Mistake(
            softmax_of_probabilities,
            "A softmax belongs on logits. On probabilities it flattens them, and those that were dropped come back.",
        ),
    ),
    "6.5": (
        Mistake(
            one_by_one,
            "The ids are right, but each costs a pass as before. One pass gives the logits behind every guessed id: "
            "use all that agree, not the first alone.",
        ),
        Mistake(
            rejected_ids_stay,
            "Rejected ids stay in the cache, and later tokens look at them. Set back all that it remembers of them: "
            "length, next_position and token_ids.",
        ),
        Mistake(
            guess_is_trusted,
            "Guesses are taken over without a check. Keep them only up to the first that differs from the argmax of "
            "the logits before it.",
        ),
        Mistake(
            read_again,
            "The passes are few, but each reads the whole text again. A cache keeps what is sure, so that a pass reads "
            "the last id and the guess alone.",
        ),
    ),
}
