"""Ports of Qwen2-VL with a fault in them, planted in copies of our model, and what every module of a model gives.

A port is a dict of a few lines of code, as the skeletons of 7.2 to 7.4 have them; `with_lines` puts them in our model's
places. Nothing here needs transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import qwen2vl_mini as q
from tests.small_models import relative_difference
from weights_loader import our_name

SAME = 1e-5  # relative: float32 holds 7 digits, and sums of some hundred products in another order lose one or two


def with_lines(model: nn.Module, lines: dict) -> nn.Module:
    """A copy of our model in which the lines of a port stand in the places of ours."""
    model = copy.deepcopy(model)
    text = model.config.text_config
    text.rope_theta = float(lines.get("theta", text.rope_theta))
    if lines.keys() & {"scale", "heads", "weights"}:
        model.attention = attention_of(lines)
    for module in model.modules():
        for name, replacement in REPLACED.get(type(module), ()):
            if name in lines:
                module.forward = replacement(module, lines[name])
    return model


def attention_of(lines: dict) -> Callable:
    """Attention as a port has it; what the port does not say is ours."""
    scale = lines.get("scale", lambda head_dim: head_dim**-0.5)
    heads = lines.get("heads", lambda x, group: x.repeat_interleave(group, dim=1))
    weights = lines.get("weights", lambda scores: scores.softmax(dim=-1))

    def attention(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        group = queries.shape[1] // keys.shape[1]
        scores = queries @ heads(keys, group).transpose(2, 3) * scale(queries.shape[-1])  # (B, H, Q, S)
        if causal:
            future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(scores.shape[3] - scores.shape[2] + 1)
            scores = scores.masked_fill(future, -torch.inf)
        return weights(scores) @ heads(values, group)

    return attention


def rms_norm(module: nn.Module, line: Callable) -> Callable:
    return lambda x: line(x, module.weight, module.eps)


def layer_norm(module: nn.Module, line: Callable) -> Callable:
    return lambda x: line(x, module.weight, module.bias)


def decoder_mlp(module: nn.Module, line: Callable) -> Callable:
    return lambda x: module.down_proj(line(module.gate_proj(x), module.up_proj(x)))


def tower_mlp(module: nn.Module, line: Callable) -> Callable:
    return lambda x: module.fc2(line(module.fc1(x)))


def activation(module: nn.Module, line: Callable) -> Callable:
    return line


def decoder_layer(module: nn.Module, line: Callable) -> Callable:
    def forward(x: Tensor, *rest) -> Tensor:
        x = line(x, module.self_attn(module.input_layernorm(x), *rest))
        return line(x, module.mlp(module.post_attention_layernorm(x)))

    return forward


def merger(module: nn.Module, line: Callable) -> Callable:
    return lambda x: module.mlp(line(module.ln_q(x), module.window))


# The classes whose code a port can replace: the name of the line, and how it becomes a `forward`.
REPLACED = {
    q.RMSNorm: (("norm", rms_norm),),
    q.MLP: (("mlp", decoder_mlp),),
    q.DecoderLayer: (("add", decoder_layer),),
    q.VisionMLP: (("tower_act", tower_mlp),),
    q.PatchMerger: (("windows", merger),),
    nn.LayerNorm: (("tower_norm", layer_norm),),
    nn.GELU: (("merger_act", activation),),
}


def bug_1(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.model.layers[len(model.model.layers) // 2 - 1].self_attn.v_proj.bias.data.zero_()
    return model


def bug_5(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for block in model.visual.blocks:
        block.register_forward_pre_hook(lambda _, given: (given[0], turned(given[1]), turned(given[2]), *given[3:]))
    return model


def turned(x: Tensor) -> Tensor:
    """(N, D) of the tower's angles, the two quarters of each half exchanged."""
    return x.unflatten(-1, (2, 2, -1)).flip(2).flatten(1)


def broken(model: nn.Module, bug: int | Callable, config: dict) -> nn.Module:
    """A copy of our model with a bug: 1 to 5, or a port's function (those of 7.2, 7.3 and 7.4 are bugs 2, 3 and 4)."""
    from exercises.ex07 import skeleton

    bugs = {1: bug_1, 2: skeleton.port_a, 3: skeleton.port_b, 4: skeleton.port_c, 5: bug_5}
    if callable(bug):
        return with_lines(model, bug(config))
    if bug not in bugs:
        raise ValueError(f"Bugs have the numbers 1 to 5 (or are a port of yours, a function), not {bug!r}.")
    return bugs[bug](model) if bug in (1, 5) else with_lines(model, bugs[bug](config))


@torch.no_grad()
def record(model: nn.Module, inputs: dict[str, Tensor], official: bool = False) -> dict[str, Tensor]:
    """Run a model and return what each of its innermost modules gives, by our names, in the order in which they run."""
    found, handles = {}, []
    for name, module in model.named_modules():
        name = our_name(f"{name}.").rstrip(".") if official else name
        if not list(module.children()) or name == "visual.patch_embed":
            handles.append(module.register_forward_hook(lambda *call, name=name: found.setdefault(name, call[-1])))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: x.detach().squeeze(0) for name, x in found.items() if isinstance(x, Tensor)}


def differences(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """The relative difference of each module that both models ran."""
    return {name: relative_difference(x, reference[name]) for name, x in ours.items() if name in reference}


def first_of(found: dict[str, float], bound: float = SAME) -> str | None:
    """The first module that differs."""
    return next((name for name, difference in found.items() if difference > bound), None)
