"""Solutions of the exercises of notebook 07."""

import torch
from torch.nn import functional

import exercises.ex07.skeleton as skeleton


def three_readings():
    return ["decoder layer 0", "decoder layer 1", 2e-4]


def port_a(config):
    rope = config["text_config"]["rope_parameters"]
    first = "model.layers.0.self_attn.o_proj"
    return {**skeleton.port_a(config), "first": first, "theta": rope["rope_theta"]}


def port_b(config):
    first = "model.layers.0.mlp.down_proj"
    return {**skeleton.port_b(config), "first": first, "mlp": lambda g, u: u * functional.silu(g)}


def port_c(config):
    first = "visual.blocks.0.mlp.fc2"
    return {**skeleton.port_c(config), "first": first, "tower_act": lambda x: x * (1.702 * x).sigmoid()}


def to_released(stored, shapes):
    weights, faults = {}, set()
    for key in sorted(stored):
        if key.endswith("rotary_emb.inv_freq"):
            continue
        name = key
        for long, short in {"model.visual.": "visual.", "model.language_model.": "model."}.items():
            if key.startswith(long):
                name = short + key[len(long) :]
        if name in weights:
            faults.add(name)
        weights[name] = stored[key]

    head, table = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    if "lm_head.weight" not in shapes and head is not None and table is not None:
        if torch.equal(head, table):
            del weights["lm_head.weight"]
    for name in {*weights, *shapes}:
        if name not in weights or name not in shapes or weights[name].shape != shapes[name]:
            faults.add(name)
    return {n: x for n, x in weights.items() if n not in faults}, sorted(faults)
