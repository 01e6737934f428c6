"""Wrong answers to the exercises of notebook 07 that people really give, and what helps them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exercises.book import Mistake
from exercises.ex07 import skeleton
from exercises.ex07.probes import EMBEDDING, HEAD, TABLE, planted, relative_of_table


def absolute() -> list:
    found = {layer: difference for layer, (difference, _) in TABLE.items()}
    largest = max(found, key=found.get)
    return [next(layer for layer in found if found[layer] > 1e-5), largest, found[largest]]


def largest_line_twice() -> list:
    found = relative_of_table()
    largest = max(found, key=found.get)
    return [largest, largest, found[largest]]


def largest_module(port: str):
    """A port whose author names the module that differs by the most."""

    def answer(config: dict) -> dict:
        found = planted(port)
        return getattr(skeleton, port)(config) | {"first": max(found, key=found.get)}

    return answer


def mended_badly(port: str, **lines):
    """A port whose author names the right module and writes other lines."""

    def answer(config: dict) -> dict:
        found = planted(port)
        first = next(module for module in found if found[module] > 1e-5)
        return getattr(skeleton, port)(config) | {"first": first} | lines

    return answer


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def released(key: str) -> str:
    """A key of transformers 5 → the released one."""
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def accounted(stored: dict, shapes: dict, rename=released, tied=torch.equal) -> tuple:
    """The right answer, were it not for the arguments: how keys are renamed, and when a head counts as tied."""
    names = [rename(key) for key in stored if not key.endswith("inv_freq")]
    renamed = {rename(key): weight for key, weight in stored.items()}
    if HEAD in renamed and HEAD not in shapes and tied(renamed[HEAD], renamed.get(EMBEDDING, renamed[HEAD])):
        names.remove(HEAD)
    good = [name for name in names if names.count(name) == 1 and shapes.get(name) == tuple(renamed[name].shape)]
    return {name: renamed[name] for name in good}, sorted({*names, *shapes} - {*good})


def without_strict(stored: dict, shapes: dict) -> tuple:
    renamed = {released(key): weight for key, weight in stored.items()}
    return {name: x for name, x in renamed.items() if shapes.get(name) == tuple(x.shape)}, []


def tied_twice(stored: dict, shapes: dict) -> tuple:
    weights, faults = accounted(stored, shapes)
    head = {HEAD: stored[HEAD]} if HEAD in stored else {}
    return weights | head, [name for name in faults if name not in head]


def tied_refused(stored: dict, shapes: dict) -> tuple:
    return accounted(stored, shapes, tied=lambda head, embedding: False)


def tied_by_name(stored: dict, shapes: dict) -> tuple:
    return accounted(stored, shapes, tied=lambda head, embedding: True)


def last_one_wins(stored: dict, shapes: dict) -> tuple:
    return accounted({released(key): weight for key, weight in stored.items()}, shapes)


def model_cut_off(stored: dict, shapes: dict) -> tuple:
    return accounted(stored, shapes, rename=lambda key: key.removeprefix("model."))


MISTAKES = {
    "7.1": (
        Mistake(
            absolute,
            "You read the differences as they stand. 0.0003 among numbers up to 120 is rounding; divide each by the "
            "largest official number first.",
        ),
        Mistake(
            largest_line_twice,
            "You named the layer with the largest difference as the first. An earlier one is above 1e-5 already, and "
            "what comes after it only passes the fault on.",
        ),
    ),
    "7.2": (
        Mistake(
            largest_module("port_a"),
            "A module that gets wrong inputs gives wrong outputs, often worse ones. The fault is before the first "
            "module that differs, not at the largest difference.",
        ),
        Mistake(
            mended_badly("port_a", theta=20.0),
            "The base 20 is that of the bundled model, and the released ones have 1,000,000. Read it from the config, "
            "or the next model is wrong again.",
        ),
        Mistake(
            mended_badly("port_a", theta=1e6),
            "1,000,000 is the base of the released models, but not of every model. Each config says its own.",
        ),
    ),
    "7.3": (
        Mistake(
            largest_module("port_b"),
            "You named a module that is worse than the first. It is so only because the fault has gone through more "
            "layers on its way there.",
        ),
        Mistake(
            mended_badly("port_b", mlp=lambda gate, up: torch.sigmoid(gate) * up),
            "The right one is the gate now, but it goes through SiLU, x·σ(x), and not through σ alone.",
        ),
        Mistake(
            mended_badly("port_b", mlp=lambda gate, up: F.gelu(gate) * up),
            "The gate goes through a GELU here. That is GeGLU; Qwen2 is trained with SwiGLU, whose gate goes through "
            "SiLU.",
        ),
    ),
    "7.4": (
        Mistake(
            largest_module("port_c"),
            "Size misleads here: the fault is small where it is made, and later blocks make it larger. Only the order "
            "tells where it is.",
        ),
        Mistake(
            mended_badly("port_c", tower_act=quick_gelu, merger_act=quick_gelu),
            "The tower is right now and the merger no longer is. Quick GELU belongs in the blocks, the exact one in "
            "the merger.",
        ),
        Mistake(
            mended_badly("port_c", tower_act=lambda x: F.gelu(x, approximate="tanh")),
            "That is the approximation by tanh, which is close to the exact GELU. Quick GELU is another function, with "
            "a sigmoid.",
        ),
    ),
    "7.5": (
        Mistake(
            without_strict,
            "You take what fits and are silent about the rest: that is strict=False. A weight that is missing stays "
            "at its random numbers, and the model runs all the same.",
        ),
        Mistake(
            tied_twice,
            "You keep lm_head.weight beside the embedding that it is. A tied matrix is stored once: written twice it "
            "takes twice the room, and the two can drift apart.",
        ),
        Mistake(
            tied_refused,
            "You call a tied lm_head.weight a fault. It is the embedding once more, so it can be left out and nothing "
            "is lost.",
        ),
        Mistake(
            tied_by_name,
            "You leave out every lm_head.weight that shapes does not have. If its numbers are not those of the "
            "embedding, the file is of an untied model, and you must say so.",
        ),
        Mistake(
            last_one_wins,
            "Two keys became one name, and the second overwrote the first unseen. Nobody knows which of the two is "
            "right, so that is a fault.",
        ),
        Mistake(
            model_cut_off,
            'You cut "model." off every key. The decoder keeps it: model.language_model.norm.weight becomes '
            "model.norm.weight.",
        ),
    ),
}
