"""Exercises of notebook 09: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from exercises.book import Exercise, Probe

# ── 9.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def losses_by_torch() -> list[float]:
    """What torch's own cross-entropy says of logits that are all equal, or all but certain."""
    entropy = nn.functional.cross_entropy
    unknown = [entropy(torch.zeros(1, ids), torch.tensor([0])).item() for ids in (512, 151936)]
    certain = entropy(torch.tensor([[100.0, 0.0]]), torch.tensor([0])).item()
    colour = entropy(torch.zeros(1, 10), torch.tensor([3])).item()
    return [round(loss, 2) for loss in (*unknown, (colour + certain) / 2, certain)]


# ── 9.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class OneNumber(nn.Module):
    """A "model" with a single parameter w; its loss is the mean of (w − label)² over the labels that count."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        counted = labels[labels != -100].float()
        return SimpleNamespace(loss=(self.w - counted).square().mean())


def batch_of(*rows: list[int]) -> dict:
    """Ids padded on the left with 9, and the mask."""
    longest = max(map(len, rows))
    ids = [[9] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def losses_by_hand(model: OneNumber, batches: list[dict], rate: float) -> list[float]:
    """The same in plain arithmetic: the gradient of the mean of (w − x)² is 2·(w − the mean of x)."""
    w, found = 0.0, []
    for batch in batches:
        ids = [i for i, real in zip(batch["input_ids"].flatten().tolist(), batch["attention_mask"].flatten()) if real]
        found.append(sum((w - i) ** 2 for i in ids) / len(ids))
        w -= rate * 2 * (w - sum(ids) / len(ids))
    return found


def random_training(rng: random.Random) -> tuple:
    def row() -> list[int]:
        return [rng.randint(0, 8) for _ in range(rng.randint(1, 5))]

    return OneNumber(), [batch_of(row(), row()) for _ in range(rng.randint(2, 4))], rng.choice([0.05, 0.1, 0.25])


# ── 9.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def facts_about(module: nn.Module, base: nn.Linear, rank: int, alpha: float) -> dict:
    """What can be seen of a LoRA module from outside."""
    x = torch.randn(5, base.in_features, generator=torch.Generator().manual_seed(1))
    shapes = {name: tuple(getattr(module, name, torch.zeros(0)).shape) for name in "AB"}
    if shapes != {"A": (rank, base.in_features), "B": (base.out_features, rank)}:
        return {"shapes of A and B": str(shapes)}
    same = bool(torch.allclose(module(x), base(x), atol=1e-6))
    learns = sorted({name.split(".")[-1] for name, value in module.named_parameters() if value.requires_grad})
    module(x).square().sum().backward()
    moves = any(value.grad is not None and bool(value.grad.any()) for value in (module.A, module.B))
    return {
        "shapes of A and B": "right",
        "answers as the base at first": same,
        "what can learn": ", ".join(learns),
        "the first step changes something": moves,
        "scale": scale_of(module, base, x),
    }


@torch.no_grad()
def scale_of(module: nn.Module, base: nn.Linear, x: Tensor) -> float:
    """The factor in front of B(A(x)), measured with other numbers in A and B."""
    generator = torch.Generator().manual_seed(2)
    module.A.normal_(generator=generator)
    module.B.normal_(generator=generator)
    correction = module(x) - base(x)
    return round(float(correction.norm() / (x @ module.A.T @ module.B.T).norm()), 3)


def facts_expected(base: nn.Linear, rank: int, alpha: float) -> dict:
    return {
        "shapes of A and B": "right",
        "answers as the base at first": True,
        "what can learn": "A, B",
        "the first step changes something": True,
        "scale": round(alpha / rank, 3),
    }


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs)


# ── 9.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_tensors(ours: list[float], theirs: list[float]) -> tuple[float, float, bool]:
    pairs = torch.tensor([ours, theirs], dtype=torch.float64)  # (2, runs)
    gain = pairs[0] - pairs[1]
    if gain.numel() == 1:
        return gain.item(), float("inf"), False
    error = gain.std(unbiased=True) / gain.numel() ** 0.5
    return gain.mean().item(), error.item(), bool(gain.mean().abs() > 2 * error)


def random_runs(rng: random.Random) -> tuple:
    count = rng.randint(2, 6)
    theirs = [round(rng.uniform(0.3, 0.8), 3) for _ in range(count)]
    ours = [round(value + rng.gauss(0.03, 0.03), 3) for value in theirs]
    return ours, theirs


EXERCISES = (
    Exercise(
        number="9.1",
        title="Losses before you run anything",
        function="first_losses",
        kind="P",
        stars=1,
        minutes=10,
        expected=losses_by_torch,
        tolerance=0.002,
        probes=(Probe((), "the vocabulary, the logarithm, the mean over tokens"),),
        hints=(
            "A loss is −ln of the probability that the right token got, in the mean over the tokens that count.",
            "With V ids equally likely the right one gets 1 / V. For V = 512, −ln(1 / 512) = 9 · ln "
            "2, and ln 2 is 0.693.",
            "Number 3: one token costs ln 10 = 2.30, the other nothing. The loss is the mean of the two.",
        ),
    ),
    Exercise(
        number="9.2",
        title="A loop that learns badly",
        function="train",
        kind="F",
        stars=2,
        minutes=20,
        core=True,
        expected=losses_by_hand,
        tolerance=1e-4,  # float32 here, float64 there, over a few steps
        probes=(
            Probe(
                (OneNumber(), [batch_of([1, 2]), batch_of([1, 2]), batch_of([3])], 0.1),
                "gradients kept",
                shown="train(one number, three batches with the ids 1 2, then 1 2, then 3, rate=0.1)",
            ),
            Probe(
                (OneNumber(), [batch_of([4]), batch_of([1, 2, 3], [2])], 0.1),
                "padding learned",
                shown="train(one number, batches with the ids 4, then 1 2 3 and a padded 2, rate=0.1)",
            ),
        ),
        random_probe=random_training,
        hints=(
            "There are two faults. Train on the same batch again and again: does the loss fall as it should?",
            "backward() adds to the gradients that are there. And which labels belong to padding?",
            "optimizer.zero_grad() before backward(); labels where the attention mask is 0 become −100.",
        ),
    ),
    Exercise(
        number="9.3",
        title="LoRA",
        function="lora",
        kind="E",
        stars=3,
        minutes=45,
        expected=facts_expected,
        view=facts_about,
        tolerance=1e-3,
        probes=(
            Probe((linear(4, 4), 2, 2.0), "a scale of 1"),
            Probe((linear(6, 4), 2, 8.0), "a scale of 4"),
            Probe((linear(8, 10), 4, 2.0), "a scale of 1/2"),
        ),
        hints=(
            "Which of A and B may be zero at the start, so that the product is zero and a gradient still arrives?",
            "The gradient of A contains B, and that of B contains A. If both are zero, nothing ever moves.",
            "A random (as nn.Linear's), B zero; base.requires_grad_(False); base(x) + alpha / rank · x Aᵀ Bᵀ.",
        ),
    ),
    Exercise(
        number="9.4",
        title="Is the difference real?",
        function="is_real",
        kind="I",
        stars=2,
        minutes=30,
        expected=by_tensors,
        tolerance=1e-6,
        probes=(
            Probe(([0.5], [0.4]), "one run"),
            Probe(([0.5, 0.6], [0.4, 0.4]), "n − 1, not n"),
            Probe(([0.52, 0.61, 0.71], [0.5, 0.6, 0.69]), "pairs that move together"),
            Probe(([0.9, 0.2, 0.6, 0.5], [0.5, 0.5, 0.5, 0.5]), "one lucky run"),
        ),
        random_probe=random_runs,
        hints=(
            "Take the difference of each pair first. What is left of what the two runs of a seed have in common?",
            "The standard deviation of n differences (divide by n − 1) says how much one run varies. "
            "The mean of n runs "
            "varies less.",
            "The standard error is the standard deviation divided by √n. Compare |mean| with two of these.",
        ),
    ),
)
