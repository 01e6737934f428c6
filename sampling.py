"""How the next token is chosen from the logits. Nothing in it is particular to Qwen2-VL.

Official: GenerationMixin in transformers' generation/utils.py and the warpers of generation/logits_process.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEUTRAL = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def sampling_settings(generation_config: dict, **asked) -> dict:
    """The settings in force: what is asked for (not None), else the checkpoint's, else neutral values.

    Who names a temperature, top_p or top_k wants to sample. Then the checkpoint's values for the three are left out:
    the released generation_config.json has top_k 1, which makes any temperature do nothing. Raises ValueError.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if any(name in asked for name in ("temperature", "top_p", "top_k")):
        asked.setdefault("do_sample", asked.get("temperature") != 0)
    kept = ("repetition_penalty",) if asked.get("do_sample") else tuple(NEUTRAL)
    settings = NEUTRAL | {name: value for name, value in generation_config.items() if name in kept} | asked
    if settings["temperature"] < 0 or not 0 < settings["top_p"] <= 1 or settings["top_k"] < 0:
        raise ValueError("Sampling needs temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0.")
    if settings["repetition_penalty"] <= 0:
        raise ValueError("repetition_penalty must be above 0 (1 changes nothing).")
    if settings["temperature"] < 1e-5 or settings["top_k"] == 1 or not settings["do_sample"]:
        settings |= {"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 1}  # all of these mean: greedy
    return settings


def choose(logits: Tensor, seen: Tensor, settings: dict, generator: torch.Generator | None = None) -> Tensor:
    """The next id of each row, (B,), from its logits (B, V), given the ids `seen` so far (B, S), the prompt's too."""
    if (penalty := settings["repetition_penalty"]) != 1:
        old = logits.gather(1, seen)
        logits = logits.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))
    if not settings["do_sample"]:
        return logits.argmax(-1)
    logits = logits / settings["temperature"]
    if 0 < settings["top_k"] < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(settings["top_k"]).values[:, -1:], -torch.inf)
    if settings["top_p"] < 1:  # keep the smallest set of likeliest ids that together reach top_p
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        drop = probabilities.cumsum(-1) - probabilities >= settings["top_p"]  # what came before was already enough
        logits = logits.masked_fill(drop.gather(1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
