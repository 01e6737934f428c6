"""Folders, files and weights that are no Qwen2-VL checkpoint, or not yet one: what they are, and the way out."""

from __future__ import annotations

import re
from pathlib import Path

from qwen2vl_io.files import inner_dict, read_json
from qwen2vl_io.sentences import shorten, shown

MODELS = {  # model_type: what it is, and why it is not read here
    "qwen2_5_vl": "a Qwen2.5-VL model, whose tower has windows and another norm",
    "qwen3_vl": "a Qwen3-VL model, of another architecture",
    "qwen3_vl_moe": "a Qwen3-VL model, of another architecture",
    "qwen2": "a Qwen2 model of text only, without a tower",
    "qwen2_vl_text": "the text half of a Qwen2-VL alone, without its tower: save the whole model",
    "qwen2_vl_vision": "the tower of a Qwen2-VL alone, without its decoder: save the whole model",
    "qwen2_5_vl_text": "the text half of a Qwen2.5-VL",
    "qwen2_audio": "a Qwen2-Audio model, which hears and does not see",
    "qwen2_5_omni": "a Qwen2.5-Omni model, of another architecture",
    "qwen": "a model of the first Qwen family; Qwen-VL is not Qwen2-VL",
    "colqwen2": "a ColQwen2 retriever: a Qwen2-VL with another output; use it with colpali-engine or transformers",
}
QUANTISED = "get the model without -AWQ, -GPTQ, -FP8 or -Int4 in its name, or save it unquantised with transformers"
TRAINING = ("optimizer.*", "scheduler.*", "trainer_state.json", "rng_state*", "training_args.bin", "scaler.*")
PICKLES = "holds pickles only, which can run code; load them with transformers and save_pretrained them anew"
LEFT_BY_OTHERS = (  # a pattern of files, and what a folder with such files and without our weights is
    ("global_step*", "is a checkpoint of DeepSpeed; run its zero_to_fp32.py first, with --safe_serialization"),
    ("pytorch_model_fsdp*", "is a sharded checkpoint of FSDP; run `accelerate merge-weights` on it first"),
    ("*.distcp", "is a sharded checkpoint of PyTorch; load it with transformers and save_pretrained it"),
    ("*.gguf", "holds GGUF, the format of llama.cpp; get the model's safetensors files"),
    ("consolidated*.safetensors", "holds consolidated weights only; rename that file to model.safetensors"),
    ("model.*.safetensors", "holds a variant of the weights only; rename that file to model.safetensors"),
    ("*.npz", "is a checkpoint of another framework; get the model's safetensors files"),
    ("*.onnx", "is an ONNX export; get the model's safetensors files"),
    ("*.h5", "is a checkpoint of TensorFlow; get the model's safetensors files"),
    ("*.msgpack", "is a checkpoint of Flax; get the model's safetensors files"),
    ("*.safetensors", "has its weights under another name; rename the file to model.safetensors"),
    *((pattern, PICKLES) for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")),
)
WRAPPED = (  # what a key or a parameter's name has in it, who put it there, and the way out
    (r"(^|\.)lora_|\.base_layer\.|^base_model\.model\.", "a LoRA of peft", "model = model.merge_and_unload()"),
    (r"(^|\.)modules_to_save\.|prompt_encoder|\.ia3_", "an adapter of peft", "model = model.merge_and_unload()"),
    (r"^_orig_mod\.", "torch.compile", "take model._orig_mod"),
    (r"^module\.", "DataParallel or DistributedDataParallel", "take model.module"),
    (r"_fsdp_wrapped_module|^_flat_param|_flat_param$", "FSDP", "gather the full state dict"),
    (r"parametrizations\.", "torch.nn.utils.parametrize", "remove_parametrizations from each module"),
    (
        r"\.(qweight|qzeros|g_idx|scales|absmax|quant_map|SCB|weight_scale|weight_scale_inv)\b",
        "quantisation",
        QUANTISED,
    ),
)


def refuse_other_models(content: dict) -> None:
    """A config.json of another model."""
    kind = content.get("model_type")
    if kind == "qwen2_vl":
        return
    if kind is None and ("peft_type" in content or "base_model_name_or_path" in content):
        raise ValueError("This is the configuration of a LoRA adapter; merge it into its base model first.")
    if isinstance(kind, str) and kind in MODELS:
        raise ValueError(f"config.json describes a {shown(kind)} model ({MODELS[kind]}); this is for 'qwen2_vl' only.")
    raise ValueError(f"config.json describes a {shown(kind)} model; this is for 'qwen2_vl' only.")


def refuse_quantised(content: dict) -> None:
    """A config.json that says its weights are quantised."""
    said = content.get("quantization_config") or inner_dict(content, "text_config").get("quantization_config")
    said = said or content.get("compression_config") or content.get("quantization")
    if said:
        how = said.get("quant_method") if isinstance(said, dict) else None
        with_how = f" ({shorten(str(how), 40)})" if how else ""
        raise ValueError(f"config.json asks for quantised weights{with_how}: not supported; {QUANTISED}.")


def folder_without_config(folder: Path) -> str:
    """What a folder without config.json is: the end of a sentence that begins with its name."""
    runs = sorted(folder.glob("checkpoint-*/config.json"), key=lambda file: (len(file.parent.name), file))
    if (folder / "adapter_config.json").exists() or any(folder.glob("adapter_model.*")):
        return adapter(folder)
    if runs:
        return f"is a training run with checkpoints in it; pass one of them, such as {shorten(runs[-1].parent)}"
    inner = [file.parent for file in sorted(folder.glob("*/config.json"))]
    if inner:
        return f"has no config.json, but the folder {shorten(inner[0])} in it has one; pass that"
    if any(folder.glob("*.gguf")):
        return "holds GGUF, the format of llama.cpp; get the model's safetensors files and config.json"
    if (folder / "tokenizer.json").exists():
        return "has no config.json: it holds a processor only, without a model"
    if (folder / "params.json").exists():
        return "has no config.json but a params.json, the layout of other families; get the Hub's own layout"
    return "has no config.json: it is not the folder of a checkpoint"


def adapter(folder: Path) -> str:
    """A folder of peft, and what it was trained on."""
    base = None
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except (ValueError, FileNotFoundError):
        pass
    of = f" of {shorten(base, 80)}" if isinstance(base, str) and base else ""
    return f"is a LoRA adapter{of}; merge it into its base model first, with peft's merge_and_unload(), and save that"


def folder_without_weights(folder: Path) -> str:
    """What a folder with a config.json and without weights that we read is: the end of a sentence."""
    if (folder / "adapter_config.json").exists() or any(folder.glob("adapter_model.*")):
        return adapter(folder)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:
        return "has no model.safetensors.index.json, and not all of its shards: get the files that are missing"
    training = {file for pattern in TRAINING for file in folder.glob(pattern)}
    for pattern, what in LEFT_BY_OTHERS:
        found = sorted(set(folder.glob(pattern)) - training)
        if found:
            return f"has no model.safetensors but {shorten(found[0].name, 80)}: it {what}"
    if training:
        return "has no model.safetensors, only the state of a training's optimizer: save the model, too"
    runs = sorted(folder.glob("checkpoint-*/"), key=lambda path: (len(path.name), path))
    if runs:
        return f"has no model.safetensors; pass one of the checkpoints in it, such as {shorten(runs[-1])}"
    return "has no model.safetensors and no model.safetensors.index.json: get the weights, too"


def wrapped(names) -> tuple[str, str] | None:
    """Who wrapped or changed a model whose parameters have such names, and the way out; None if nobody known."""
    for pattern, who, way_out in WRAPPED:
        if any(re.search(pattern, name) for name in names):
            return who, way_out
    return None


def whole_shards(folder: Path) -> list[str]:
    """The names of all shards in a folder whose index is lost, if all of one set are there; else nothing."""
    found = sorted(file.name for file in folder.glob("model-*-of-*.safetensors"))
    totals = {name.partition("-of-")[2] for name in found}
    if len(totals) != 1 or not re.fullmatch(r"\d{1,6}\.safetensors", *totals):
        return []
    count = int(totals.pop().partition(".")[0])
    wanted = {f"{i}" for i in range(1, count + 1)} if count <= len(found) else set()
    numbers = [name.removeprefix("model-").partition("-of-")[0].lstrip("0") for name in found]
    return found if set(numbers) == wanted and len(numbers) == len(wanted) else []


def is_git_lfs_pointer(file: Path) -> bool:
    """Whether a file is the note that git leaves in the place of a large one."""
    with open(file, "rb") as content:
        return content.read(40).startswith(b"version https://git-lfs")


def older_weights(folder: str | Path) -> list[str]:
    """The names of shards of an earlier save, which a new one replaces."""
    return [file.name for file in Path(folder).expanduser().glob("model-*-of-*.safetensors")]
