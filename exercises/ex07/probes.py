"""Exercises of notebook 07: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor

import weights_loader
from exercises.book import Exercise, Probe
from exercises.ex07 import ports, skeleton
from qwen2vl_mini import Qwen2VLConfig
from tests.small_models import image, make_inputs, small_config, small_model
from weights_loader import our_name

# ── 7.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = {  # layer: max |Δ|, max |official|
    "vision block 0": (0.0003, 120.0),
    "merger": (0.0000008, 0.2),
    "decoder layer 0": (0.00006, 2.0),
    "decoder layer 1": (0.008, 40.0),
    "final norm": (0.0004, 8.0),
    "logits": (0.0006, 20.0),
}


def relative_of_table() -> dict[str, float]:
    """The relative difference of each line, rounded to the digits that the table has."""
    return {layer: float(f"{difference / largest:.2g}") for layer, (difference, largest) in TABLE.items()}


def three_readings() -> list:
    relative = relative_of_table()
    first = next(layer for layer, difference in relative.items() if difference > 1e-5)
    largest = max(relative, key=relative.get)
    return [first, largest, relative[largest]]


# ── 7.2 to 7.4 ──────────────────────────────────────────────────────────────────────────────────────────────────────

RIGHT = "the first module is named, and the mended port agrees in every module"


def as_saved(config: Qwen2VLConfig) -> dict:
    """What transformers 5 writes into config.json, as far as it describes a model."""
    text, vision = asdict(config.text_config), asdict(config.vision_config)
    rope = {"mrope_section": text.pop("mrope_section"), "rope_theta": text.pop("rope_theta")}
    text |= {"model_type": "qwen2_vl_text", "rope_parameters": rope | {"rope_type": "default", "type": "mrope"}}
    axial = {"rope_theta": 10000.0, "rope_type": "axial"}
    vision |= {"model_type": "qwen2_vl_vision", "hidden_act": "quick_gelu", "rope_parameters": axial}
    tied = text.pop("tie_word_embeddings")
    return {"model_type": "qwen2_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


BUNDLED = as_saved(Qwen2VLConfig.from_pretrained(weights_loader.find_checkpoint("tiny")))
OTHER = small_config(3, (4, 2), 16, [2, 3, 3], tied=False, theta=1e6)


@cache
def healthy(bundled: bool) -> tuple:
    """The bundled model or a random one, inputs for it, and what its modules give (as the official ones do)."""
    model = weights_loader.load_model("tiny", dtype="float32", device="cpu") if bundled else small_model(OTHER)
    inputs = make_inputs(model.config, [[15, image(12, 16), 14]])
    return model, inputs, ports.record(model, inputs)


def differences_of(lines: dict, bundled: bool) -> dict[str, float]:
    """How far each module of a port is from ours."""
    model, inputs, right = healthy(bundled)
    return ports.differences(ports.record(ports.with_lines(model, lines), inputs), right)


@cache
def planted(port: str) -> dict[str, float]:
    """What a student sees who looks at each module of the bundled model with the lines of the skeleton."""
    return differences_of(getattr(skeleton, port)(BUNDLED), True)


def reading(answer, config: dict, port: str) -> str | None:
    """What a student's port says and does, in words."""
    if answer is None:
        return None
    begun = getattr(skeleton, port)(config)
    if not isinstance(answer, dict) or answer.keys() != begun.keys():
        return "the dict has other keys than the one you began with"
    problem = problem_of_name(answer["first"], planted(port))
    if problem:
        return problem
    found = differences_of(answer, config == BUNDLED)
    still = ports.first_of(found)
    return RIGHT if still is None else f"rightly named, but the port still differs in {still}, by {found[still]:.2g}"


def problem_of_name(name, found: dict[str, float]) -> str | None:
    """What is wrong with the module that a student names, if it is not the first that differs."""
    first = ports.first_of(found)
    if name == first:
        return None
    if not name or not isinstance(name, str):
        return 'no module is named as "first" yet'
    if name not in found:
        is_layer = any(module.startswith(f"{name}.") for module in found)
        is_end = any(module.endswith(f".{name}") for module in found)
        what = "a layer: which module in it?" if is_layer else "which is no module of it"
        return f'"first" is {name!r}, ' + ("only the end of a name: write all of it" if is_end else what)
    if found[name] <= ports.SAME:
        return "the module named agrees with the official one"
    if is_record(name, found):
        return "the module named differs by more than any before it, but it is not the first that differs"
    return "the module named differs, but it is not the first that differs"


def is_record(name: str, found: dict[str, float]) -> bool:
    """Whether no module that runs earlier differs by as much."""
    earlier = list(found)[: list(found).index(name)]
    return all(found[module] < found[name] for module in earlier)


def mended(number: str, title: str, port: str, hints: tuple[str, str, str]) -> Exercise:
    """The three exercises differ in the port only."""
    return Exercise(
        number=number,
        title=title,
        function=port,
        kind="F",
        stars=2,
        minutes=15,
        core=True,
        expected=lambda config: RIGHT,
        view=lambda answer, config: reading(answer, config, port),
        probes=(
            Probe((BUNDLED,), "the bundled model", f"{port}(config)"),
            Probe((as_saved(OTHER),), "what suits one model only", f"{port}(config of another model)"),
        ),
        hints=hints,
    )


# ── 7.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def nested(key: str) -> str:
    """A released key → that of transformers 5."""
    if key.startswith("visual."):
        return f"model.{key}"
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def by_our_loader(stored: dict[str, Tensor], shapes: dict[str, tuple]) -> tuple[dict, list]:
    names = Counter(our_name(key) for key in stored if not key.endswith("rotary_emb.inv_freq"))
    last = {our_name(key): weight for key, weight in stored.items()}
    if HEAD not in shapes and HEAD in names and EMBEDDING in names and torch.equal(last[HEAD], last[EMBEDDING]):
        del names[HEAD]
    good = {name for name, times in names.items() if times == 1 and shapes.get(name) == tuple(last[name].shape)}
    return {name: last[name] for name in good}, sorted((names.keys() | shapes.keys()) - good)


def in_words(answer, stored: dict[str, Tensor], shapes: dict[str, tuple]) -> str | None:
    """The names of the weights, with a remark where one holds other numbers, and the faults."""
    if answer is None:
        return None
    if not isinstance(answer, tuple) or not isinstance(answer[0], dict) or len(answer) != 2:
        return "not a dict of weights and a list of faults"
    weights, faults = answer
    right, _ = by_our_loader(stored, shapes)
    other = {name for name in weights.keys() & right.keys() if not torch.equal(weights[name], right[name])}
    names = [f"{name} (with other numbers)" if name in other else str(name) for name in sorted(weights)]
    return f"weights {', '.join(names) or 'none'}; faults {', '.join(map(str, faults)) or 'none'}"


def words_of_loader(stored: dict[str, Tensor], shapes: dict[str, tuple]) -> str:
    return in_words(by_our_loader(stored, shapes), stored, shapes)


def weights_of(*keys: str) -> dict[str, Tensor]:
    """A small matrix for each key, each with its own numbers."""
    return {key: torch.full((2, 3), float(i)) + torch.eye(2, 3) for i, key in enumerate(keys, 1)}


def shapes_of(*keys: str) -> dict[str, tuple]:
    return dict.fromkeys(keys, (2, 3))


NORM, FC1 = "model.norm.weight", "visual.blocks.0.mlp.fc1.weight"
BOTH = (EMBEDDING, FC1)
TIED = weights_of(*map(nested, BOTH))
TIED[HEAD] = TIED[nested(EMBEDDING)].clone()
INVERSE = "model.language_model.rotary_emb.inv_freq"


def random_files(rng: random.Random) -> tuple:
    """A file of up to eight weights with up to three faults in it."""
    layer, block = rng.randrange(80), rng.randrange(32)
    names = [EMBEDDING, NORM, HEAD, FC1, f"model.layers.{layer}.mlp.up_proj.weight", "visual.merger.ln_q.bias"]
    names += [f"model.layers.{layer}.self_attn.q_proj.bias", f"visual.blocks.{block}.attn.qkv.weight"]
    shapes = {name: (rng.randint(1, 3), rng.randint(1, 3)) for name in names}
    stored = {nested(name): torch.tensor([[rng.random()]]).expand(shape).clone() for name, shape in shapes.items()}
    if rng.random() < 0.5:  # tied
        del shapes[HEAD]
        stored[HEAD] = stored[nested(EMBEDDING)] + rng.choice([0, 0, 1])
    for name in rng.sample(sorted(shapes.keys() - {HEAD, EMBEDDING}), rng.randint(0, 3)):
        fault = rng.choice(["missing", "shape", "twice", "no place"])
        if fault == "missing":
            del stored[nested(name)]
        elif fault == "shape":
            stored[nested(name)] = stored[nested(name)].new_zeros(4, 4)
        elif fault == "twice":
            stored[name] = stored[nested(name)].clone()
        else:
            del shapes[name]
    return stored, shapes


FILES = (
    Probe((weights_of(nested(FC1)), shapes_of(FC1)), "the tower's prefix", "to_released(the tower's)"),
    Probe((weights_of(*map(nested, BOTH)), shapes_of(*BOTH)), "the decoder's prefix", "to_released(both)"),
    Probe((TIED, shapes_of(*BOTH)), "tied matrix twice", "to_released(tied)"),
    Probe((TIED | {HEAD: torch.ones(2, 3)}, shapes_of(*BOTH)), "tied by name only", "to_released(a head of its own)"),
    Probe((TIED, shapes_of(*BOTH, HEAD)), "not tied", "to_released(not tied)"),
    Probe((weights_of(nested(FC1), INVERSE), shapes_of(FC1)), "computed", "to_released(with inv_freq)"),
    Probe((weights_of(nested(FC1)), shapes_of(*BOTH)), "strict=False: missing", "to_released(one missing)"),
    Probe((weights_of(*map(nested, BOTH)), shapes_of(FC1)), "strict=False: no place", "to_released(too many)"),
    Probe((weights_of(nested(NORM), NORM), shapes_of(NORM)), "twice", "to_released(one under both keys)"),
    Probe((weights_of(nested(NORM)), {NORM: (3, 2)}), "strict=False: shape", "to_released(of another shape)"),
)

EXERCISES = (
    Exercise(
        number="7.1",
        title="Read a table",
        function="three_readings",
        kind="P",
        stars=1,
        minutes=5,
        expected=three_readings,
        probes=(Probe((), "absolute and relative name other layers"),),
        hints=(
            "Divide each difference by the largest official number of its line.",
            "0.0003 of 120 is 0.0000025, which is below 1e-5: vision block 0 agrees. Go on like that.",
            "The relative differences are 2.5e-6, 4e-6, 3e-5, and three that you work out. The first above 1e-5 comes "
            "before the largest.",
        ),
    ),
    mended(
        "7.2",
        "Port A",
        "port_a",
        (
            "play.compare(2) shows the layer, play.inside(2, layer) its modules in their order. Which agree?",
            "q_proj, k_proj and v_proj agree and o_proj does not. Between them lie the turning of queries and keys, "
            "the scale, the sharing of heads and the softmax: all four lines. Try each: does it give what ours does?",
            "Print each line for this config. A `.get` with a default never complains, wherever the number has gone. "
            "Where is it in the config?",
        ),
    ),
    mended(
        "7.3",
        "Port B",
        "port_b",
        (
            "play.compare(3), then play.inside(3, layer). Which modules of the first layer that differs still agree?",
            "What goes into the first module that differs is made by one line, from what the two before it give.",
            "play.show(qwen2vl_mini.MLP): one of the two goes through SiLU. Which?",
        ),
    ),
    mended(
        "7.4",
        "Port C",
        "port_c",
        (
            "The difference is small, and there from the first block on. play.inside(4, layer) shows its modules.",
            "The line between the last module that agrees and the first that differs is it. Two lines of the port are "
            "the same function, written in two ways. Should they be?",
            "The config says hidden_act quick_gelu for the blocks of the tower. Section 6 of our file has its formula. "
            "The merger is not meant.",
        ),
    ),
    Exercise(
        number="7.5",
        title="Every weight exactly once",
        function="to_released",
        kind="E",
        stars=3,
        minutes=30,
        expected=words_of_loader,
        view=in_words,
        probes=FILES,
        random_probe=random_files,
        blocked=("weights_loader.our_name",),
        hints=(
            "First rename all keys, and count how often each new name comes. Then decide about each name that is in "
            "the file or in shapes.",
            "model.visual.… → visual.…, model.language_model.… → model.…, lm_head.weight stays. Change the beginning "
            "of a key only.",
            "A name is good if it came once, is in shapes, and has that shape. Faults are all other names of both, but "
            "for inv_freq, and lm_head.weight where shapes lacks it and torch.equal says that it is the embedding.",
        ),
    ),
)
