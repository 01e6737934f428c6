"""Exercises of notebook 09, train your own. `python -m exercises check 9.1` says how you do."""

# %% imports
import math

import torch
from torch import nn


# %% 9.1
def first_losses() -> list[float]:
    """Four losses in nats, rounded to two decimals, before anything is learned or after all is. You may use ln.

    1: the bundled model's shape (512 ids in the vocabulary) with random weights, all ids equally likely
    2: the same for the 2B model (151,936 ids)
    3: an answer of two tokens, `Pink.` and <|im_end|>: the model knows that a colour comes, but not which of ten;
       it is certain of the second token
    4: every token of every answer certain, and right
    Write a list of four numbers.
    """
    raise NotImplementedError


# %% 9.2
def train(model: nn.Module, batches: list[dict], rate: float) -> list[float]:
    """One step of gradient descent for each batch; returns the loss of each step. It learns, but badly: mend it.

    A batch has `input_ids` and `attention_mask`, (B, S) each; the mask is 0 where the padding is.
    `model(input_ids, labels).loss` counts every label but −100. Labels are the ids; padding must not count.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for batch in batches:
        labels = batch["input_ids"].clone()
        loss = model(batch["input_ids"], labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% 9.3
def lora(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    """`base` with a low-rank correction that can learn: x ↦ base(x) + alpha / rank · B(A(x)), Hu et al. 2021.

    The module has parameters `A` (rank, in_features) and `B` (out_features, rank). At first it answers as `base` does,
    and its first step of training must change something; only `A` and `B` ever change.
    """
    raise NotImplementedError


# %% 9.4
def is_real(ours: list[float], theirs: list[float]) -> tuple[float, float, bool]:
    """Is one way of training better? (mean difference, its standard error, whether it is more than two of these).

    `ours[i]` and `theirs[i]` are results of run i: the same seed, so the same data and the same first weights. Take the
    difference of each pair. With a single run there is no error to be had: return (difference, math.inf, False).
    """
    raise NotImplementedError
