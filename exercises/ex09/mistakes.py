"""Wrong answers to the exercises of notebook 09 that people really give, and what helps them."""

from __future__ import annotations

import math
import statistics

import torch
from torch import nn

from exercises.book import Mistake


def base_two() -> list[float]:
    return [9.0, round(math.log2(151936), 2), round(math.log2(10) / 2, 2), 0.0]


def the_released_vocabulary() -> list[float]:
    return [11.93, 11.93, 1.15, 0.0]


def sum_over_tokens() -> list[float]:
    return [6.24, 11.93, 2.3, 0.0]


def trained(model: nn.Module, batches: list[dict], rate: float, forget: bool, hide: bool) -> list[float]:
    """Gradient descent with one of the two faults left in."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for batch in batches:
        ids = batch["input_ids"]
        loss = model(ids, torch.where(batch["attention_mask"] == 0, -100, ids) if hide else ids).loss
        if forget:
            model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gradients_kept(model, batches, rate) -> list[float]:
    return trained(model, batches, rate, forget=False, hide=True)


def padding_learned(model, batches, rate) -> list[float]:
    return trained(model, batches, rate, forget=True, hide=False)


class Wrapped(nn.Module):
    """A linear layer with a correction, in the variants that go wrong."""

    def __init__(self, base: nn.Linear, rank: int, factor: float, random_a: bool, frozen: bool):
        super().__init__()
        self.base, self.factor = base.requires_grad_(not frozen), factor
        start = torch.randn(rank, base.in_features) if random_a else torch.zeros(rank, base.in_features)
        self.A = nn.Parameter(start)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + self.factor * nn.functional.linear(nn.functional.linear(x, self.A), self.B)


def both_zero(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    return Wrapped(base, rank, alpha / rank, random_a=False, frozen=True)


def base_moves(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    return Wrapped(base, rank, alpha / rank, random_a=True, frozen=False)


def scaled_twice(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    return Wrapped(base, rank, (alpha / rank) ** 2, random_a=True, frozen=True)


def never_divided(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    return Wrapped(base, rank, alpha, random_a=True, frozen=True)


def one_run(ours: list[float], theirs: list[float]) -> tuple:
    return ours[0] - theirs[0], math.inf, ours[0] != theirs[0]


def pairs(ours: list[float], theirs: list[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs)]


def deviation_for_error(ours: list[float], theirs: list[float]) -> tuple:
    differences = pairs(ours, theirs)
    spread = statistics.stdev(differences) if len(differences) > 1 else math.inf
    mean = statistics.mean(differences)
    return mean, spread, abs(mean) > 2 * spread


def not_in_pairs(ours: list[float], theirs: list[float]) -> tuple:
    mean = statistics.mean(ours) - statistics.mean(theirs)
    if len(ours) == 1:
        return mean, math.inf, False
    error = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(ours))
    return mean, error, abs(mean) > 2 * error


MISTAKES = {
    "9.1": (
        Mistake(base_two, "These are bits, logarithms to base 2. The loss is in nats: −ln of the probability."),
        Mistake(
            the_released_vocabulary,
            "You took the released vocabulary for the bundled model too. It has 512 ids, and ln 512 is much less.",
        ),
        Mistake(
            sum_over_tokens,
            "Number 3 is the sum over the answer. The loss is the mean over its two tokens, of which "
            "one costs nothing.",
        ),
    ),
    "9.2": (
        Mistake(
            gradients_kept,
            "The padding is mended, but the gradients of earlier batches are still there: backward() adds to them.",
        ),
        Mistake(
            padding_learned,
            "The gradients are mended, but the model still learns to write padding. Labels of padding must be −100.",
        ),
    ),
    "9.3": (
        Mistake(
            both_zero,
            "A and B are both zero. The gradient of each contains the other, so neither will ever move.",
        ),
        Mistake(base_moves, "The base can still learn. Freeze it, or the correction is not all that changes."),
        Mistake(scaled_twice, "The scale alpha / rank is applied twice, perhaps once in B and once in forward."),
        Mistake(
            never_divided,
            "You scale by alpha alone. Divided by the rank, a change of the rank does not change the "
            "size of the steps.",
        ),
    ),
    "9.4": (
        Mistake(
            one_run,
            "You compare one run with one run. Without a second there is no way to say how much a run varies.",
        ),
        Mistake(
            deviation_for_error,
            "That is the standard deviation of one run's difference. The mean of n runs varies less, by √n.",
        ),
        Mistake(
            not_in_pairs,
            "You compare the two lists as if their runs had nothing in common. Runs of one seed rise "
            "and fall together; "
            "the difference of each pair takes that away.",
        ),
    ),
}
