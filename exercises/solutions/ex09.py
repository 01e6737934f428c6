"""Solutions of the exercises of notebook 09."""

import math
import statistics as s

import torch
from torch import nn


def first_losses():
    return [6.24, 11.93, 1.15, 0.0]


def train(model, batches, rate):
    sgd = torch.optim.SGD(list(model.parameters()), rate)
    history = []
    for batch in batches:
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] < 1, -100)
        sgd.zero_grad()
        error = model(batch["input_ids"], targets).loss
        error.backward()
        sgd.step()
        history.append(error.item())
    return history


class Corrected(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        for weight in base.parameters():
            weight.requires_grad = False
        noise = torch.empty(rank, base.in_features)
        self.A = nn.Parameter(nn.init.kaiming_uniform_(noise, math.sqrt(5)))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + (x @ self.A.T @ self.B.T) * self.scale


def lora(base, rank, alpha):
    return Corrected(base, rank, alpha)


def is_real(ours, theirs):
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(gains) < 2:
        return gains[0], math.inf, False
    mean, error = s.mean(gains), s.stdev(gains) / math.sqrt(len(gains))
    return mean, error, abs(mean) > 2 * error
