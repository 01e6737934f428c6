"""What the official `from_pretrained` takes: what counts, what asks for nothing, and the way out for the rest."""

from __future__ import annotations

import re

from qwen2vl_io.official_names import did_you_mean
from qwen2vl_io.sentences import shown

ANY = object()  # any value at all
QUANTISE = "weights are not quantised here; dtype='bfloat16' takes two bytes a parameter"
SPREAD = "a model is on one device; name it with device_map"
CONFIG = "the checkpoint's config.json decides; change that file, or build the model with Model(config)"
HUB = ("revision", "cache_dir", "token", "force_download", "local_files_only", "subfolder")
NEUTRAL = {  # for every class: the values that ask for nothing, and why others are refused
    "trust_remote_code": ((None, True, False), ""),  # no code of a checkpoint is ever run
    "use_safetensors": ((None, True), "pickles can run code; load them with transformers and save_pretrained them"),
    "resume_download": (ANY, ""),
    "mirror": ((None,), "set HF_ENDPOINT"),
    "proxies": ((None,), "set HTTPS_PROXY"),
    "variant": ((None,), "rename model.<variant>.safetensors to model.safetensors"),
    "return_unused_kwargs": ((None, False), "there are none"),
    "gguf_file": ((None,), "get the model's safetensors files"),
    "_from_auto": (ANY, ""),
    "_fast_init": (ANY, ""),
    "_from_pipeline": (ANY, ""),
    "_commit_hash": (ANY, ""),
    "user_agent": (ANY, ""),
    "adapter_kwargs": ((None,), "merge an adapter into its base model first"),
}
FOR_MODEL = {
    "low_cpu_mem_usage": ((None, True, False), ""),  # there is never a second copy of the weights
    "use_cache": ((None, True, False), ""),
    "ignore_mismatched_sizes": ((None, False), "every weight must have its shape; a new one is made by Model(config)"),
    "output_loading_info": ((None, False), "every parameter is loaded, or an error names it"),
    "strict": ((None, True), "every parameter is loaded, or an error names it"),
    "quantization_config": ((None,), QUANTISE),
    "load_in_8bit": ((None, False), QUANTISE),
    "load_in_4bit": ((None, False), QUANTISE),
    "max_memory": ((None,), SPREAD),
    "offload_folder": ((None,), SPREAD),
    "offload_state_dict": ((None, False), SPREAD),
    "offload_buffers": ((None, False), SPREAD),
    "tp_plan": ((None,), SPREAD),
    "tp_size": ((None,), SPREAD),
    "device_mesh": ((None,), SPREAD),
    "distributed_config": ((None,), SPREAD),
    "config": ((None,), CONFIG),
    "state_dict": ((None,), "load the checkpoint, then model.load_state_dict(…)"),
    "generation_config": ((None,), "set model.generation_config afterwards"),
    "key_mapping": ((None,), "the official key layouts are known"),
    "from_tf": ((None, False), "get the model's safetensors files"),
    "from_flax": ((None, False), "get the model's safetensors files"),
    "weights_only": (ANY, ""),  # no pickle is ever read
    "use_flash_attention_2": ((None, False), 'say attn_implementation="flash_attention_2"'),
    "use_kernels": ((None, False), 'say attn_implementation="flash"'),
    "experts_implementation": ((None,), "there are no experts"),
    "attn_impl": ((None,), "the official name is attn_implementation"),
    **dict.fromkeys(("min_pixels", "max_pixels", "size", "use_fast"), ((), "the processor takes it, not the model")),
}
FOR_WORDS = {
    "padding_side": ((None, "left"), "new tokens follow the prompt, so it is padded on its left"),
    "truncation_side": ((None, "right"), "prompts are not cut"),
    "add_bos_token": ((None, False), "Qwen2 has no token for the beginning"),
    "add_eos_token": ((None, False), "the template writes <|im_end|>"),
    "add_prefix_space": ((None, False), "Qwen2's BPE adds none"),
    "legacy": (ANY, ""),
    "clean_up_tokenization_spaces": (ANY, ""),
    "split_special_tokens": ((None, False), "encode(text) takes special tokens as plain text"),
    "model_max_length": ((None,), "prompts are not cut"),
    "tokenizer_type": ((None,), "the tokenizer is Qwen2's"),
    "chat_template": ((None,), "the template is Qwen2-VL's own; render another one yourself for processor(text=…)"),
    "config": ((None,), "the checkpoint's files decide"),
    "video_processor": ((None,), "it is a part of the image processor"),
    **dict.fromkeys(
        ("torch_dtype", "dtype", "device_map", "device", "attn_implementation", "low_cpu_mem_usage"),
        ((None, "auto", "cpu"), "the model takes it, not the processor; move its tensors with .to(…)"),
    ),
}
MODEL = ("dtype", "device", "torch_dtype", "device_map", "attn_implementation")
PLAIN_FOLDER = re.compile(r"[\w-][\w. -]{0,99}(/[\w-][\w. -]{0,99}){0,5}", re.ASCII)


def take_hub_options(asked: dict, more: dict[str, tuple]) -> tuple[dict, dict]:
    """The options of a `from_pretrained` → (those of the Hub, checked; the rest, without what asks for nothing).

    `more`: what the class takes besides: the values of each that ask for nothing, and why it takes no others.
    """
    hub = {}
    rest = {}
    for name, value in asked.items():
        name = "token" if name == "use_auth_token" else name
        if name in HUB:
            if value not in (None, False, "") or name == "token":
                hub[name] = value
        elif name in NEUTRAL or name in more:
            allowed, reason = more[name] if name in more else NEUTRAL[name]
            if allowed is not ANY and not is_one_of(value, allowed):
                raise ValueError(f"from_pretrained({name}={shown(value)}) is not supported: {reason}.")
        else:
            rest[name] = value
    check_hub(hub)
    return {name: value for name, value in hub.items() if value is not None}, rest


def is_one_of(value, allowed: tuple) -> bool:
    """Whether a value is in a tuple, where 1 is not True."""
    return any(value is one or (type(value) is type(one) and value == one) for one in allowed)


def check_hub(hub: dict) -> None:
    """The options that go to the Hub's client, which would answer a wrong type with a traceback."""
    for name, kinds, wanted in (
        ("revision", str, "a branch, tag or commit"),
        ("token", (str, bool), "your token, or True for the stored one"),
        ("force_download", bool, "True or False"),
        ("local_files_only", bool, "True or False"),
        ("subfolder", str, "the name of a folder in the checkpoint"),
    ):
        if hub.get(name) is not None and not isinstance(hub[name], kinds):
            raise ValueError(f"from_pretrained({name}={shown(hub[name])}) should be {wanted}.")
    folder = hub.get("subfolder")
    if folder is not None and not PLAIN_FOLDER.fullmatch(folder.rstrip("/")):
        raise ValueError(f"from_pretrained(subfolder={shown(folder)}) should be the plain name of a folder.")


def model_options(asked: dict) -> tuple[dict, dict]:
    """The options of a model's `from_pretrained` → (those of the Hub, where the weights go). Raises ValueError."""
    hub, rest = take_hub_options(asked, FOR_MODEL)
    for name in rest:
        if name not in MODEL:
            raise ValueError(f"from_pretrained has no option {shown(name)}; {did_you_mean(name, [*MODEL, *HUB])}")
    return hub, rest


def one_device(device_map):
    """The one device that an official `device_map` means: a name, a number, or a dict of modules."""
    if isinstance(device_map, dict):
        places = {str(place): place for place in device_map.values()}
        if len(places) != 1:
            raise ValueError(f"device_map={shown(device_map)} is not supported: {SPREAD}='cuda:0', say.")
        device_map = next(iter(places.values()))
    if isinstance(device_map, int) and not isinstance(device_map, bool) and 0 <= device_map < 1000:
        return f"cuda:{device_map}"
    if isinstance(device_map, str) and device_map in ("balanced", "balanced_low_0", "sequential"):
        return "auto"  # of one device, all of it
    return device_map
