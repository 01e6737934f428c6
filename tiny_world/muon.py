"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): steps of equal size in all directions.

The gradient of a matrix between hidden states is mostly of low rank: a few directions get nearly all of each step.
Muon takes the momentum M = U S Vᵀ and steps along U Vᵀ instead, so rare directions that matter are learned as fast.
`torch.optim.Muon` (torch 2.9) computes the same, but always in bfloat16, which most CPUs only imitate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import weights_loader

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: few steps bring singular values from 0 to 1 near 1 (0.7 to 1.2)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """U S Vᵀ (N, M) → nearly U Vᵀ by Newton-Schulz: an odd polynomial of a matrix acts on its singular values alone."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # (n, m), n ≤ m: then the products with x xᵀ are small
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1

    for _ in range(steps):  # each singular value s becomes a s + b s³ + c s⁵
        gram = x @ x.T  # (n, n)
        update = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # b x xᵀ + c (x xᵀ)²
        x = torch.addmm(x, update, x, beta=a)  # a x + update x, (n, m)

    return x.T if is_tall else x  # (N, M)


class Muon(torch.optim.Optimizer):
    """For matrices (out, in) between hidden states; embeddings, norms, biases and outputs want AdamW."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.step_of(p, group["lr"], group["weight_decay"], group["momentum"])

    def step_of(self, p: Tensor, rate: float, weight_decay: float, momentum: float) -> None:
        """Move one matrix (out, in)."""
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        mean = self.state[p]["momentum_buffer"]  # the running mean of the gradients
        mean.lerp_(p.grad, 1 - momentum)
        wanted = p.grad.lerp(mean, momentum)  # Nesterov's momentum: a look ahead

        in_half = p.device.type == "cuda" or weights_loader.cpu_is_fast_in_bfloat16()
        update = orthogonalised(wanted.bfloat16() if in_half else wanted)

        # A tall matrix (out > in) has few directions for many outputs, each of which deserves a full step.
        rate_of_shape = rate * math.sqrt(max(1, p.shape[0] / p.shape[1]))
        p.mul_(1 - rate * weight_decay)
        p.add_(update, alpha=-rate_of_shape)
