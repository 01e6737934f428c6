"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): steps of equal size in all directions.

The gradient of a matrix between hidden states is mostly of low rank: a few directions get nearly all of each step.
Muon takes the momentum M = U S Vᵀ and steps along U Vᵀ instead, so that directions which are rare but matter are
learned as fast. `torch.optim.Muon` (torch 2.9) computes the same, but always in bfloat16, which most CPUs only imitate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import weights_loader


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """U S Vᵀ (N, M) → nearly U Vᵀ, by products alone: an odd polynomial of X acts on its singular values alone.

    The coefficients are Jordan's: they bring every singular value from 0 to 1 near 1 (0.7 to 1.2) in few steps.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix  # (n, m), n ≤ m: the smaller product
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.T  # (n, n)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x  # s → 3.4445 s − 4.7750 s³ + 2.0315 s⁵
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """For matrices (out, in) between hidden states; embeddings, norms, biases and outputs want AdamW."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)  # of the gradients: their running mean
                momentum = self.state[p]["momentum_buffer"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                wanted = p.grad.lerp(momentum, group["momentum"])  # Nesterov's: a look ahead
                half = p.device.type == "cuda" or weights_loader.cpu_is_fast_in_bfloat16()
                update = orthogonalised(wanted.bfloat16() if half else wanted)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # a tall matrix (out > in) has few directions for many outputs, each of which deserves a full step
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))
