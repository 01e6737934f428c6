"""Which models can be saved, in how many files, and what saving them changes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from qwen2vl_io.foreign import wrapped
from qwen2vl_io.official_loading import ANY, is_one_of
from qwen2vl_io.official_names import did_you_mean
from qwen2vl_io.options import is_number
from qwen2vl_io.sentences import shorten, shown

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)(i?)B\s*", re.IGNORECASE | re.ASCII)
SAVING = {  # what the official save_pretrained takes: the values that ask for nothing, and why others are refused
    "safe_serialization": ((None, True), "only safetensors are written; a pickle can run code"),
    "is_main_process": ((None, True), "call it in the main process only"),
    "push_to_hub": ((None, False), "save, then `hf upload org/name folder`"),
    "variant": ((None,), "files have the released names"),
    "state_dict": ((None,), "the model's own weights are written"),
    "save_original_format": ((None, True), "files have the released keys"),
    "save_peft_format": (ANY, ""),
    "save_function": (ANY, ""),
    "token": (ANY, ""),
}


def max_shard_bytes(asked: dict) -> float:
    """The size of a file that the official save_pretrained was asked for; its other options are checked."""
    for name, value in asked.items():
        if name != "max_shard_size" and name not in SAVING:
            hint = did_you_mean(name, [*SAVING, "max_shard_size"])
            raise ValueError(f"save_pretrained has no option {shown(name)}; {hint}")
        allowed, reason = SAVING.get(name, (ANY, ""))
        if allowed is not ANY and not is_one_of(value, allowed):
            raise ValueError(f"save_pretrained({name}={shown(value)}) is not supported: {reason}.")
    return as_bytes(asked.get("max_shard_size", "5GB"))


def as_bytes(size) -> float:
    """A size in bytes, or as transformers writes it: "5GB", "200MB", "1GiB"."""
    parts = SIZE.fullmatch(size) if isinstance(size, str) else None
    if parts:
        number, unit, binary = parts.groups()
        size = float(number) * (1024 if binary else 1000) ** (" KMGT".index(unit.upper() or " "))
    if not is_number(size, float, 1, 1e15):
        raise ValueError(f"max_shard_size={shown(size)} should be a size such as '5GB', or a number of bytes.")
    return size


def in_shards(weights: dict[str, Tensor], max_bytes: float) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict]]:
    """Weights → the files that they fill, none larger than asked for if it can be, and the index if there are several.

    Both by their names; the index is {} for a single file.
    """
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights.items():
        if shards[-1] and sum(other.nbytes for other in shards[-1].values()) + weight.nbytes > max_bytes:
            shards.append({})
        shards[-1][name] = weight
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}, {}

    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    total = sum(weight.nbytes for weight in weights.values())
    weight_map = {key: name for name, shard in zip(names, shards) for key in shard}
    return dict(zip(names, shards)), {INDEX: {"metadata": {"total_size": total}, "weight_map": weight_map}}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def some_of(names) -> str:
    """The first few names, and how many there are."""
    names = [shorten(name, 80) for name in sorted(names)]
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def say_what_changes(model: nn.Module, weights: dict[str, Tensor], folder: str | Path) -> None:
    """A line of the log for what loading the saved checkpoint would not give back as it was."""
    found = sorted({name_of(weight.dtype) for weight in weights.values()})
    said = model.config.rest.get("torch_dtype") or model.config.rest.get("dtype")
    if len(found) > 1:
        logger.warning(f"{shorten(folder)}: weights in {' and '.join(found)}; loading gives all of them one dtype.")
    elif said in DTYPES and said != found[0]:
        wider = torch.finfo(DTYPES[said]).bits < torch.finfo(getattr(torch, found[0])).bits
        effect = "larger and no more exact" if wider else "with fewer digits"
        way_out = f"model.to(torch.{said}) before saving keeps it"
        logger.warning(f"{shorten(folder)} is saved in {found[0]}, {effect} than the {said} it came in; {way_out}.")


def check_parameters(model, parameters: dict[str, Tensor], is_ours: bool) -> None:
    """Parameters must be a model's own, of a kind that is loaded, and have numbers."""
    changed = wrapped(parameters)
    if changed:
        raise ValueError(f"This model is changed by {changed[0]} and could not be loaded: {changed[1]}, then save.")
    if not is_ours:
        kind = type(model).__name__
        raise ValueError(f"save takes a Qwen2VLForConditionalGeneration, not a {kind}: save the model in it.")
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ValueError(f"{shorten(name)} has no numbers yet (it is on the meta device): load weights first.")
        if parameter.dtype not in (*DTYPES.values(), torch.float64):
            kinds = ", ".join(DTYPES)
            raise ValueError(f"{shorten(name)} is in {name_of(parameter.dtype)}, which cannot be loaded; save {kinds}.")


def check_as_config_says(model: nn.Module, parameters: dict[str, Tensor], expected: dict[str, tuple]) -> None:
    """The parameters must be those that the model's config describes, since `load` builds the model from it."""
    beyond = parameters.keys() - expected.keys() - {HEAD}
    beyond |= model.state_dict().keys() - expected.keys() - {HEAD}  # buffers that belong to the weights
    missing = expected.keys() - parameters.keys() - {HEAD}
    layers = len(model.model.layers) if hasattr(model.model, "layers") else 0
    if layers != model.config.text_config.num_hidden_layers and (missing or beyond):
        way_out = f"set model.config.text_config.num_hidden_layers = {layers} first"
        said = model.config.text_config.num_hidden_layers
        raise ValueError(f"The model has {layers} layers, and its config says {said}; {way_out}.")
    if missing or beyond:
        what = f"lacks {some_of(missing)}" if missing else f"holds {some_of(beyond)}"
        raise ValueError(f"The model {what}, other than its config says: it could not be loaded; change it back.")
    for name, shape in expected.items():
        found = tuple(parameters[name].shape) if name in parameters else shape
        if name in (EMBEDDING, HEAD) and found != shape:
            way_out = f"set model.config.text_config.vocab_size = {found[0]}, and give lm_head as many rows"
            if name == HEAD:
                way_out = "give it as many, or tie it: model.lm_head.weight = model.model.embed_tokens.weight"
            raise ValueError(f"{name} has {found[0]} rows, and the config says {shape[0]}; {way_out}.")
        if found != shape:
            raise ValueError(f"{shorten(name)} has shape {found}, but the model's config says {shape}; change one.")
