"""Names of checkpoints → modules with weights, and back. A name is "tiny", a folder, or a Hub id `org/name`.

Only safetensors are read (a pickled .bin can run code), in both key layouts, in one file or in shards. All that the
headers can tell is checked before the first weight is read. Then the weights go one by one from the mapped file to
their place: there is never a second copy of the model in memory.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import timeit
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_type_hints

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import qwen2vl_io
from qwen2vl_io.options import is_number
from qwen2vl_io.sentences import shorten, shown

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)  # org/name
SHARD_NAME = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)  # no separators: it stays in its folder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_DTYPES = ("BF16", "F16", "F32", "F64")  # safetensors' names
BFLOAT16_GAIN = 1.2  # how many times faster bfloat16 must be on a CPU before "auto" gives up float32's digits
MAX_TEXT_BYTES = 32 * 2**20  # of a JSON file: the largest there is, tokenizer.json, has 11 MB
LARGEST = 10**7  # of any number in a config.json that is not in this table; no library stumbles over such numbers
LIMITS = {
    **{"num_hidden_layers": (1, 1000), "depth": (1, 1000), "mlp_ratio": (0.25, 100)},
    **{"patch_size": (1, 100), "temporal_patch_size": (1, 100), "spatial_merge_size": (1, 10)},
    **{"rms_norm_eps": (1e-20, 1), "rope_theta": (1, 1e12)},
}


def find_checkpoint(name: str | Path, weights: bool = False) -> Path:
    """The folder of a checkpoint: "tiny" (bundled), a folder, or a Hub id `org/name`, which is downloaded once.

    From the Hub come the small files, and the weights (gigabytes) with `weights=True` only. HF_HOME, HF_ENDPOINT,
    HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. Raises FileNotFoundError or ValueError.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f'A checkpoint is "tiny", a folder or a Hub id (org/name), not {shown(name)}.')
    if name == "tiny":
        return bundled_checkpoint()

    folder = Path(os.path.expanduser(name))
    try:
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except OSError:  # a name too long for the system, or a folder that is closed to us
        exists = False
    if exists:
        raise ValueError(f"{shorten(folder)} is a file; pass the folder it is in.")
    if not isinstance(name, str) or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"{shorten(repr(str(name)))}: no such folder and not a Hub id, which looks like org/name."
        )
    return download(name, ["*.json", "*.jinja", "*.txt"] + ["*.safetensors"] * weights)


def bundled_checkpoint() -> Path:
    """The folder of "tiny": beside this file in a clone, inside the package qwen2vl_io once installed."""
    homes = (Path(__file__).resolve().parent, Path(qwen2vl_io.__file__).resolve().parent)
    for home in homes:
        folder = home / "checkpoints" / "tiny"
        if (folder / "config.json").is_file():
            return folder

    raise FileNotFoundError(f"The bundled checkpoint is not in {homes[0] / 'checkpoints' / 'tiny'}: install again.")


def download(name: str, patterns: list[str]) -> Path:
    """The files of a Hub model that match, in the Hub's own cache. Every failure becomes one sentence (ValueError)."""
    import huggingface_hub  # slow to import, and only needed here
    from huggingface_hub import constants, errors

    def reason(error: BaseException) -> str:
        return shorten((str(error).strip() or type(error).__name__).splitlines()[0])

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError:  # before the next one, of whose kind it is
        problem = f"wants its terms accepted: do so at {constants.ENDPOINT}/{name}, then set HF_TOKEN to your token."
    except errors.RepositoryNotFoundError:
        problem = f"is neither a folder here nor a model at {constants.ENDPOINT}; if it is private, set HF_TOKEN."
    except errors.LocalEntryNotFoundError as error:
        why = reason(error.__cause__ or error)
        problem = f"is not in the cache, and {constants.ENDPOINT} does not send it ({why}): check the connection."
        if constants.HF_HUB_OFFLINE:
            problem = "is not (completely) in the cache, and HF_HUB_OFFLINE forbids to download it: unset it once."
    except Exception as error:  # whatever else the network, the server or the disk come up with
        problem = f"could not be downloaded ({reason(error)}); run it again, finished files are kept."
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            problem = "cannot be downloaded, because the Hub refuses your token: renew or unset HF_TOKEN."
    raise ValueError(f"{name!r} {problem}") from None


def plain_file(path: str | Path, max_bytes: float = float("inf")) -> Path:
    """The path of an ordinary file of bounded size. Others are not opened: a pipe may block, a device never ends."""
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # a name too long for the system, or a folder that is closed to us
        size = None
    if size is None:
        raise FileNotFoundError(f"{shorten(path)} is missing, or not an ordinary file: get that file too.")
    if size > max_bytes:
        raise ValueError(f"{shorten(path)} has {size:,} bytes, more than {max_bytes:,}: it cannot be what it is named.")
    return path


def read_text(path: Path) -> str:
    """The text of a small file; errors name the file."""
    try:
        return plain_file(path, MAX_TEXT_BYTES).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shorten(path)} is not valid JSON or Jinja, which are UTF-8 ({error}).") from None
    except PermissionError:
        raise ValueError(f"{shorten(path)} cannot be opened; check its permissions.") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file; errors name the file."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shorten(path)} is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shorten(path)} should hold a JSON object, not a {type(content).__name__}.")
    return content


def config_file(path: str | Path) -> Path:
    """A checkpoint's folder, or its config.json → the latter."""
    path = Path(path)
    if path.is_dir() and not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} has no config.json: it is not the folder of a checkpoint.")
    return path / "config.json" if path.is_dir() else path


def inner_dict(d: dict, name: str, file: str | Path = "config.json") -> dict:
    """The object in an object of a JSON file, empty where there is none."""
    inner = d.get(name)
    if not isinstance(inner, dict | None):
        raise ValueError(f"{shorten(file)}: {name} = {shown(inner)} should be a JSON object.")
    return inner or {}


def config_fields(kind: type, values: dict, part: str = "") -> dict:
    """The values for fields of a configuration. Each is checked: it decides how much is built, or how often."""
    chosen = {name: values[name] for name in get_type_hints(kind) if name in values}
    for name, value in chosen.items():
        number = get_type_hints(kind)[name]
        wanted = None
        if number in (int, float):
            limits = LIMITS.get(name, (0 if name.endswith("_id") else 1, LARGEST))
            if not is_number(value, number, *limits):
                wanted = f"a {'whole ' * (number is int)}number from {limits[0]} to {limits[1]}"
        elif name == "mrope_section" and value is not None:
            three = value if isinstance(value, list | tuple) and len(value) == 3 else [None]
            if not all(is_number(pairs, int, 1, LARGEST) for pairs in three):
                wanted = "three whole numbers above zero"
        if wanted:
            raise ValueError(f"config.json: {part}{name} = {shown(value)} should be {wanted}.")
    return chosen


def check_kind(content: dict, rope_type: str) -> None:
    """Refuse a config.json of another model, and what no released Qwen2-VL uses."""
    if content.get("model_type") != "qwen2_vl":
        kind = shown(content.get("model_type"))
        raise ValueError(f"config.json describes a {kind} model; this is for 'qwen2_vl' only.")
    sliding = (content | inner_dict(content, "text_config")).get("use_sliding_window")
    if rope_type not in ("default", "mrope") or sliding or content.get("quantization_config"):
        raise ValueError("config.json asks for a sliding window, quantised weights or scaled RoPE: not supported.")


def check_config(config) -> None:
    """The numbers of a Qwen2VLConfig must fit each other, or its modules cannot be built."""
    text = config.text_config
    vision = config.vision_config
    for name, whole, part in (
        ("hidden_size / num_attention_heads", text.hidden_size, text.num_attention_heads),
        ("num_attention_heads / num_key_value_heads", text.num_attention_heads, text.num_key_value_heads),
        ("vision embed_dim / (4 · num_heads)", vision.embed_dim, 4 * vision.num_heads),
    ):
        if whole % part:
            raise ValueError(f"config.json: {name} = {whole} / {part} is not a whole number.")

    pairs = text.head_dim // 2 if text.mrope_section is None else sum(text.mrope_section)  # rotary pairs of a head
    if 2 * pairs != text.head_dim:
        raise ValueError(f"config.json: mrope_section {text.mrope_section} must add up to {text.head_dim} / 2.")
    if vision.hidden_size != text.hidden_size:
        raise ValueError(f"config.json: the merger's {vision.hidden_size} channels are not {text.hidden_size}.")


def config_to_dict(config) -> dict:
    """The content of a config.json in the released, flat layout."""
    d = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_act": "silu"}
    d |= asdict(config)
    d |= d.pop("text_config")
    section = d.pop("mrope_section")
    if section:
        d["rope_scaling"] = {"type": "mrope", "mrope_section": list(section)}
    d["vision_config"] |= {"model_type": "qwen2_vl", "hidden_act": "quick_gelu", "in_chans": 3}
    return d


def processor_options(name: str | Path, kind: type, overrides: dict) -> dict:
    """The fields of an image processor of class `kind`: a checkpoint's, then `overrides` that are not None.

    `min_pixels` and `max_pixels` asked for hold for pictures and for frames.
    """
    known = {field.name for field in fields(kind)}
    options = {}
    folder = find_checkpoint(name)
    unknown = overrides.keys() - known
    if unknown:
        raise ValueError(f"The option {shown(min(unknown))} is unknown; known are {', '.join(sorted(known))}.")
    video_file = folder / "video_preprocessor_config.json"
    limits = ("min_pixels", "max_pixels")
    for prefix, path in (("", folder / "preprocessor_config.json"), ("video_", video_file)):
        d = read_json(path) if not prefix or path.exists() else {}
        size = inner_dict(d, "size", path)  # newer files call the two *areas* "edges"
        d = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")} | d
        names = limits if prefix else known - {"resample"}  # which in files is a number of Pillow's
        options |= {prefix + name: d[name] for name in names if d.get(name) is not None}
    given = {name: value for name, value in overrides.items() if value is not None}
    return options | {f"video_{name}": given[name] for name in limits if name in given} | given


def processor_to_dict(image_processor, video: bool = False) -> dict:
    """The content of a preprocessor_config.json, or of a video_preprocessor_config.json."""
    d = {name: value for name, value in asdict(image_processor).items() if name != "resample"}
    frames = {name.removeprefix("video_"): d.pop(name) for name in list(d) if name.startswith("video_")}
    if not video:
        return {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"} | d
    size = {"shortest_edge": frames["min_pixels"], "longest_edge": frames["max_pixels"]}
    frames = {"min_pixels": frames["min_pixels"], "max_pixels": frames["max_pixels"], "size": size}
    return {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2VLProcessor"} | d | frames


def read_tokenizer(file: str | Path) -> tokenizers.Tokenizer:
    """A tokenizer.json, whose vocabulary and merges are all that BPE needs."""
    file = plain_file(file, MAX_TEXT_BYTES)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{file} is not a readable tokenizer.json ({error}).") from None


def read_chat_template(folder: Path) -> str | None:
    """A checkpoint's chat template (Jinja), from the newest of the three places where one may be; None without one."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        if (file := folder / name).exists():
            template = read_text(file) if file.suffix == ".jinja" else read_json(file).get("chat_template")
            if not isinstance(template, str | None):
                raise ValueError(f"{shorten(file)}: chat_template = {shown(template)} should be a text.")
            if template:
                return template
    return None


def read_generation_config(path: Path) -> dict:
    """What a generation_config.json says, without the nulls in it; what we use of it is checked."""
    content = {name: value for name, value in read_json(path).items() if value is not None}
    whole = ("eos_token_id", "pad_token_id", "top_k")
    others = ("temperature", "top_p", "repetition_penalty")
    for name in content.keys() & {*whole, *others}:
        value = content[name]
        kind = int if name in whole else float
        values = value if name == "eos_token_id" and isinstance(value, list) else [value]
        if not all(is_number(one, kind, 0, LARGEST) for one in values):
            wanted = f"a {'whole ' * (kind is int)}number from 0 to {LARGEST}"
            raise ValueError(f"{shorten(path)}: {name} = {shown(value)} should be {wanted}.")
    return content


class StoredTensor(NamedTuple):
    """Where a weight lies."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """A view of the mapped file. It is mapped anew for each weight, so that the last one's pages are given back."""
        with safe_open(self.file, "pt") as content:
            return content.get_tensor(self.key)


def our_name(key: str) -> str:
    """A file's key → our module's name, which is the released key. Newer files have longer ones, shortened here."""
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", key))


def some_of(names) -> str:
    """The first few names, and how many there are."""
    names = [shorten(name, 80) for name in sorted(names)]
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def list_shards(folder: Path) -> dict[str, set[str] | None]:
    """The weight files of a folder, each with the keys that the index promises (None: no index). Opens none of them."""
    index = folder / INDEX
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    if not index.exists():
        way_out = "load other formats, such as pytorch_model.bin, with transformers and save_pretrained them anew"
        raise FileNotFoundError(f"{folder} has no {WEIGHTS} and no {INDEX}; {way_out}.")
    weight_map = read_json(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map, the table that says which key is in which file.")
    shards: dict[str, set[str] | None] = {}
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise ValueError(
                f"{index} puts {shorten(key)} into {shown(shard)}, which is not the plain name of a .safetensors file."
            )
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"{index} puts {shorten(key)} into {shard}, which is missing: get that file too.")
        shards.setdefault(shard, set()).add(key)
    return shards


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Our names of all stored weights → where they lie. Reads the headers only, and trusts none of them."""
    found: dict[str, StoredTensor] = {}
    for shard, promised in list_shards(folder).items():
        file = plain_file(folder / shard)
        try:
            with safe_open(file, "pt") as content:  # refuses headers over 100 MB and offsets that do not fit the file
                slices = {key: content.get_slice(key) for key in content.keys()}
                headers = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({shorten(error)}); download or copy it again."
            ) from None
        if promised is not None and promised != headers.keys():
            raise ValueError(f"{folder / INDEX} and {shard} disagree about {some_of(promised ^ headers.keys())}.")
        for key, (shape, dtype) in headers.items():
            name = our_name(key)
            if name.endswith("rotary_emb.inv_freq"):  # old files store the rotary frequencies, which we compute
                continue
            if name in found:
                both = f"{shorten(found[name].key)} and as {shorten(key)}"
                raise ValueError(f"{folder} holds {shorten(name)} twice, as {both}; delete one.")
            if dtype not in STORED_DTYPES:
                raise ValueError(
                    f"{file} stores {shorten(key)} as {dtype}; only {', '.join(STORED_DTYPES)} can be loaded."
                )
            found[name] = StoredTensor(file, key, shape)
    return found


def check_complete(model: nn.Module, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Every parameter exactly once, in its shape: nothing stays at random values and nothing is left over."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = expected.keys() - stored.keys()
    if missing:
        raise ValueError(f"{folder} lacks {some_of(missing)}: these are not the weights that config.json describes.")
    unexpected = stored.keys() - expected.keys()
    if unexpected:
        keys = some_of(stored[name].key for name in unexpected)
        raise ValueError(f"{folder} holds {keys}, for which the model in config.json has no place.")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{folder}: {stored[name].key} has shape {stored[name].shape}, but config.json says {shape}."
            )


def is_tied(config_says: bool, stored: dict[str, StoredTensor], folder: Path) -> bool:
    """Is the output matrix the input embedding? The weights decide; where config.json says otherwise, we say so."""
    if HEAD not in stored:
        if not config_says:
            logger.warning(f"{folder} has no {HEAD}: the embedding takes its place, though config.json says untied.")
        return True
    if config_says and EMBEDDING in stored:
        head = stored[HEAD].read()
        embedding = stored[EMBEDDING].read()
        if head.dtype == embedding.dtype and torch.equal(head, embedding):
            return True
        logger.warning(f"{folder} has a {HEAD} of its own, which is used, though config.json says tied.")
    return False


def choose_device(device: str | torch.device) -> torch.device:
    """'auto' is the first of cuda, mps and cpu that is there; any other name is checked."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(kind for kind, usable in there.items() if usable))
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in there:
        raise ValueError(f"device={device!r} is unknown; choose 'auto', 'cpu', 'cuda', 'cuda:1' (and so on) or 'mps'.")
    if not there[chosen.type] or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"PyTorch sees no {chosen} here; choose device='auto' or 'cpu'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 where the device is fast in it, else float32. Never float16: Qwen2-VL overflows in it."""
    if dtype == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere was the first
        else:  # Apple's GPUs differ between chips and systems, so there bfloat16 is for the user to ask for
            fast = device.type == "cpu" and cpu_is_fast_in_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    chosen = DTYPES.get(dtype, dtype)
    if chosen not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r} is unknown; choose 'auto', {', '.join(map(repr, DTYPES))}.")
    return chosen


@functools.cache
def cpu_bfloat16() -> tuple[bool, str]:
    """Whether this CPU multiplies bfloat16 faster than float32, and how that is known.

    It goes by what the CPU has, so that a busy machine decides as an idle one does. Only where PyTorch cannot tell is
    a matrix product timed.
    """
    units = ("amx_bf16", "avx512_bf16")
    found = cpu_features()
    if found is None:
        gain = bfloat16_gain()
        return gain > BFLOAT16_GAIN, f"a bfloat16 product took 1/{gain:.1f} of the time of a float32 one"

    has = [unit for unit in units if found.get(unit)]
    return bool(has), f"the CPU has {has[0]}" if has else f"the CPU has neither {' nor '.join(units)}"


def cpu_features() -> dict | None:
    """What PyTorch knows of this x86 CPU's instructions, by name; None on other CPUs, whose names say less."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if hasattr(torch.cpu, "get_capabilities"):  # of newer releases of PyTorch
        return dict(torch.cpu.get_capabilities())
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return dict.fromkeys(words, True)


def bfloat16_gain() -> float:
    """How many times faster than in float32 a matrix product is in bfloat16; trying takes some 20 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the units are each core's own, and one thread does not wait for other programs

    def best_seconds(dtype: torch.dtype) -> float:
        x = torch.ones(64, 1024, dtype=dtype)
        weight = torch.ones(1024, 1024, dtype=dtype)
        return min(timeit.repeat(lambda: nn.functional.linear(x, weight), number=1, repeat=5))  # the first warms up

    try:
        return best_seconds(torch.float32) / best_seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether "auto" takes bfloat16 on this CPU."""
    return cpu_bfloat16()[0]


# ── Weights → modules ───────────────────────────────────────────────────────────────────────────────────────────────


def classes():
    """The module whose classes `load` and `load_model` default to."""
    import qwen2vl_mini  # late, because qwen2vl_mini imports this module

    return qwen2vl_mini


def placement(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: str | torch.device | None = None,
    torch_dtype: str | torch.dtype | None = None,
) -> tuple[torch.device, torch.dtype]:
    """Where weights go and in which dtype; `device_map` and `torch_dtype` are the official names of the two."""
    chosen = choose_device(device if device_map is None else device_map)
    return chosen, choose_dtype(dtype if torch_dtype is None else torch_dtype, chosen)


def put_weights(model: nn.Module, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model on the meta device its weights, one by one, and its `generation_config`.

    Every parameter is found exactly once and in its shape, which is checked before the first weight is read.
    """
    stored = list_tensors(folder)
    tied = tie_head(model, stored, folder)
    check_complete(model, stored, folder)
    if hasattr(model, "generation_config") and (folder / "generation_config.json").exists():
        model.generation_config = read_generation_config(folder / "generation_config.json")

    try:
        for path, where in stored.items():
            weight = nn.Parameter(where.read().to(device=device, dtype=dtype, copy=True))
            module, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(module), leaf, weight)
    except RuntimeError as error:  # out of memory; only CUDA has a class of its own for that
        if "allocate" not in str(error):
            raise
        size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize / 1e9
        what = f"the {size:.1f} GB of weights in {folder}, as {dtype}".replace("torch.", "")
        raise ValueError(f"{device} has not enough free memory for {what}.") from None

    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight


def tie_head(model: nn.Module, stored: dict[str, StoredTensor], folder: Path) -> bool:
    """Tie or untie the output matrix as the stored weights have it; returns whether it is tied.

    A head that the model does not need (it has none, or a tied one) is taken off the list of stored weights.
    """
    if not hasattr(model, "lm_head"):
        stored.pop(HEAD, None)
        return False

    text_config = model.config.text_config
    text_config.tie_word_embeddings = is_tied(text_config.tie_word_embeddings, stored, folder)
    embedding = model.model.embed_tokens.weight
    if text_config.tie_word_embeddings:
        model.lm_head.weight = embedding
        stored.pop(HEAD, None)
    else:
        model.lm_head.weight = nn.Parameter(torch.empty_like(embedding))
    return text_config.tie_word_embeddings


def load_model(name: str | Path, model_class: type | None = None, **options) -> nn.Module:
    """A model with a checkpoint's weights, in `eval()` mode; `model_class` defaults to Qwen2VLForConditionalGeneration.

    `options`: `dtype` "auto" is bfloat16 where that is fast, else float32; `device` "auto" is cuda, mps or cpu;
    `torch_dtype` and `device_map` are the official names of the two; `attn_implementation`. Raises ValueError or
    FileNotFoundError.
    """
    model_class = model_class or classes().Qwen2VLForConditionalGeneration
    return model_class.from_pretrained(name, **options)


def load(
    name: str | Path = "tiny",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str = "sdpa",
    **image_options,
):
    """(model, processor) of a checkpoint; `image_options` such as `max_pixels` win over what the checkpoint says."""
    folder = find_checkpoint(name, weights=True)
    model = load_model(folder, dtype=dtype, device=device, attn_implementation=attn_implementation)
    return model, classes().Qwen2VLProcessor.from_pretrained(folder, **image_options)


# ── Modules → files ─────────────────────────────────────────────────────────────────────────────────────────────────


def save(model: nn.Module, processor, folder: str | Path, max_shard_bytes: float = 5e9) -> None:
    """Write a checkpoint in the layout of the released ones, which transformers reads too; `processor` may be None.

    All is written under temporary names first: a crash while writing leaves the folder as it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(model.named_parameters())  # lists a tied weight once, as the embedding
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights.items():
        if shards[-1] and sum(other.nbytes for other in shards[-1].values()) + weight.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = weight.detach()
    names = [WEIGHTS]
    dtype = str(model.dtype).removeprefix("torch.")
    files = {"config.json": model.config.to_dict() | {"tie_word_embeddings": HEAD not in weights, "torch_dtype": dtype}}
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        total = sum(weight.nbytes for weight in weights.values())
        weight_map = {key: name for name, shard in zip(names, shards) for key in shard}
        files[INDEX] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    generation_config = getattr(model, "generation_config", None)
    if generation_config:
        files["generation_config.json"] = generation_config
    if processor is not None:
        files["preprocessor_config.json"] = processor_to_dict(processor.image_processor)
        files["video_preprocessor_config.json"] = processor_to_dict(processor.image_processor, video=True)
        files["tokenizer.json"] = json.loads(processor.tokenizer.bpe.to_str())
        files["tokenizer_config.json"] = tokenizer_config(processor)
        if processor.chat_template is not None:
            files["chat_template.json"] = {"chat_template": processor.chat_template}
    with TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        for name, shard in zip(names, shards):
            contiguous = {key: weight.contiguous() for key, weight in shard.items()}
            save_file(contiguous, Path(temporary, name), metadata={"format": "pt"})  # transformers insists on this
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            Path(temporary, name).write_text(text, encoding="utf-8")
        stale = {WEIGHTS, INDEX, *(file.name for file in folder.glob("model-*-of-*.safetensors"))} - {*names, *files}
        for name in (*names, *reversed(files)):  # config.json last: with it the folder becomes a checkpoint
            Path(temporary, name).chmod(0o644)  # safetensors makes its files private
            os.replace(Path(temporary, name), folder / name)
        for name in stale:  # of an earlier save in another number of shards
            (folder / name).unlink(missing_ok=True)


def tokenizer_config(processor) -> dict:
    """The content of tokenizer_config.json, which tells transformers' AutoTokenizer what kind tokenizer.json is."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = sorted(processor.tokenizer.bpe.get_added_tokens_decoder().items())
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(i): {flag: getattr(token, flag) for flag in flags} for i, token in added},
        "additional_special_tokens": [token.content for _, token in added if token.special],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": processor.chat_template,
    }
