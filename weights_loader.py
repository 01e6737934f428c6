"""Names of checkpoints → modules with weights, and back. A name is "tiny", a folder, or a Hub id `org/name`.

Only safetensors are read (a pickled .bin can run code), in both key layouts, in one file or in shards. All that the
headers can tell is checked before the first weight is read. Then the weights go one by one from the mapped file to
their place: there is never a second copy of the model in memory.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import re
import timeit
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import qwen2vl_io
from qwen2vl_io import foreign, official_processor, official_tokenizer, savable
from qwen2vl_io.files import folder_to_write, plain_file, read_json, write_files
from qwen2vl_io.generation_config import GenerationConfig
from qwen2vl_io.official_loading import FOR_WORDS, HUB, model_options, one_device, take_hub_options
from qwen2vl_io.official_names import did_you_mean
from qwen2vl_io.official_processor import processor_to_dict, read_chat_template  # noqa: F401  (known from here)
from qwen2vl_io.options import is_number, renamed
from qwen2vl_io.savable import DTYPES, EMBEDDING, HEAD, INDEX, WEIGHTS, some_of
from qwen2vl_io.sentences import shorten, shown

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)  # org/name
SHARD_NAME = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)  # no separators: it stays in its folder
STORED_DTYPES = ("BF16", "F16", "F32", "F64")  # safetensors' names
BFLOAT16_GAIN = 1.2  # how many times faster bfloat16 must be on a CPU before "auto" gives up float32's digits


def find_checkpoint(name: str | Path, weights: bool = False, subfolder: str | None = None, **hub) -> Path:
    """The folder of a checkpoint: "tiny" (bundled), a folder, or a Hub id `org/name`, which is downloaded once.

    From the Hub come the small files, and the weights (gigabytes) with `weights=True` only. HF_HOME, HF_ENDPOINT,
    HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. `hub`: `revision`, `cache_dir`, `token`,
    `force_download` and `local_files_only`, for a Hub id. Raises FileNotFoundError or ValueError.
    """
    if subfolder:
        inner = find_checkpoint(name, weights, **hub, inside=subfolder) / subfolder
        if not inner.is_dir():
            raise FileNotFoundError(f"{shorten(repr(str(name)))} has no folder {shown(subfolder)} in it.")
        return inner
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
        kind = " of llama.cpp; get the model's safetensors files and" if folder.suffix.lower() == ".gguf" else ";"
        raise ValueError(f"{shorten(folder)} is a file{kind} pass the folder it is in.")
    if not isinstance(name, str) or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"{shorten(repr(str(name)))}: no such folder and not a Hub id, which looks like org/name."
        )
    inside = hub.pop("inside", None)
    patterns = ["*.json", "*.jinja", "*.txt"] + ["*.safetensors"] * weights
    return download(name, [f"{inside}/{pattern}" if inside else pattern for pattern in patterns], **hub)


def bundled_checkpoint() -> Path:
    """The folder of "tiny": beside this file in a clone, inside the package qwen2vl_io once installed."""
    homes = (Path(__file__).resolve().parent, Path(qwen2vl_io.__file__).resolve().parent)
    for home in homes:
        folder = home / "checkpoints" / "tiny"
        if (folder / "config.json").is_file():
            return folder

    raise FileNotFoundError(f"The bundled checkpoint is not in {homes[0] / 'checkpoints' / 'tiny'}: install again.")


def download(name: str, patterns: list[str], **hub) -> Path:
    """The files of a Hub model that match, in the Hub's own cache. Every failure becomes one sentence (ValueError).

    `hub`: further options of huggingface_hub's `snapshot_download`.
    """
    import huggingface_hub  # slow to import, and only needed here
    from huggingface_hub import constants, errors

    def reason(error: BaseException) -> str:
        return shorten((str(error).strip() or type(error).__name__).splitlines()[0])

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **hub))
    except errors.GatedRepoError:  # before the next one, of whose kind it is
        problem = f"wants its terms accepted: do so at {constants.ENDPOINT}/{name}, then set HF_TOKEN to your token."
    except errors.RevisionNotFoundError:
        problem = f"has no revision {shown(hub.get('revision'))}: name one of its branches, tags or commits."
    except errors.RepositoryNotFoundError:
        problem = f"is neither a folder here nor a model at {constants.ENDPOINT}; if it is private, set HF_TOKEN."
    except errors.LocalEntryNotFoundError as error:
        why = reason(error.__cause__ or error)
        problem = f"is not in the cache, and {constants.ENDPOINT} does not send it ({why}): check the connection."
        if hub.get("local_files_only"):
            problem = "is not (completely) in the cache, and local_files_only forbids a download: leave it out once."
        elif constants.HF_HUB_OFFLINE:
            problem = "is not (completely) in the cache, and HF_HUB_OFFLINE forbids to download it: unset it once."
    except Exception as error:  # whatever else the network, the server or the disk come up with
        problem = f"could not be downloaded ({reason(error)}); run it again, finished files are kept."
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            problem = "cannot be downloaded, because the Hub refuses your token: renew or unset HF_TOKEN."
    raise ValueError(f"{name!r} {problem}") from None


def config_file(path: str | Path) -> Path:
    """A checkpoint's folder, or its config.json → the latter."""
    path = Path(path)
    if path.is_dir() and not (path / "config.json").exists():
        raise FileNotFoundError(f"{shorten(path)} {foreign.folder_without_config(path)}.")
    return path / "config.json" if path.is_dir() else path


@renamed(pretrained_model_name_or_path="name")
def load_config(cls: type, name: str | Path, **asked):
    """A configuration of class `cls` from a checkpoint ("tiny", a folder, its config.json, or a Hub id).

    Its values among `asked` win over the file's.
    """
    hub, changes = take_hub_options(asked, {"attn_implementation": ((None, "eager", "sdpa", "flash"), "ask the model")})
    is_file = isinstance(name, str | os.PathLike) and str(name).endswith(".json") and Path(name).is_file()
    config = cls.from_dict(read_json(config_file(name if is_file else find_checkpoint(name, **hub))))
    config.update(changes)
    return config


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
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^(model\.)?language_model\.", "model.", key))


def list_shards(folder: Path) -> dict[str, set[str] | None]:
    """The weight files of a folder, each with the keys that the index promises (None: no index). Opens none of them."""
    index = folder / INDEX
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    if not index.exists():
        shards = foreign.whole_shards(folder)  # all of them, but the index is lost: the headers say all it did
        if shards:
            return dict.fromkeys(shards)
        raise FileNotFoundError(f"{shorten(folder)} {foreign.folder_without_weights(folder)}.")
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
            pointer = foreign.is_git_lfs_pointer(file)
            way_out = "it is git's note of one: run `git lfs pull`" if pointer else "download or copy it again"
            raise ValueError(f"{file} is not a whole safetensors file ({shorten(error)}); {way_out}.") from None
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
                only = f"only {', '.join(STORED_DTYPES)} can be loaded: {foreign.QUANTISED}"
                raise ValueError(f"{file} stores {shorten(key)} as {dtype}; {only}.")
            found[name] = StoredTensor(file, key, shape)
    return found


def check_complete(model: nn.Module, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Every parameter exactly once, in its shape: nothing stays at random values and nothing is left over."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = expected.keys() - stored.keys()
    changed = foreign.wrapped([stored[name].key for name in stored.keys() - expected.keys()])
    if changed:
        raise ValueError(f"{folder} holds weights under the names of {changed[0]}: {changed[1]}, and save that.")
    if missing and "layers.0.input_layernorm.weight" in stored:
        raise ValueError(f"{folder} holds the text half of a model alone, without its tower: save the whole model.")
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


def is_tied(config, stored: dict[str, StoredTensor], folder: Path) -> bool:
    """Is the output matrix the input embedding? The weights decide; where config.json says otherwise, we say so."""
    config_says = config.text_config.tie_word_embeddings
    if HEAD not in stored:
        if not config_says and config.rest.get("architectures") == ["Qwen2VLModel"]:
            raise ValueError(f"{folder} holds a bare Qwen2VLModel without its output matrix: load it as that class.")
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


def choose_device(device) -> torch.device:
    """'auto' is the first of cuda, mps and cpu that is there; any other name is checked."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = one_device(device)
    if isinstance(device, str) and device == "auto":
        return torch.device(next(kind for kind, usable in there.items() if usable))
    try:
        chosen = torch.device(device) if isinstance(device, str | torch.device) else None
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in there:
        raise ValueError(
            f"device={shown(device)} is unknown; choose 'auto', 'cpu', 'cuda', 'cuda:1' (and so on) or 'mps'."
        )
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
    chosen = DTYPES.get(dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise ValueError(f"dtype={shown(dtype)} is unknown; choose 'auto', {', '.join(map(repr, DTYPES))}.")
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


class LoadingPlan(NamedTuple):
    """What is loaded, and how."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    attention: str


def plan_loading(name: str | Path, asked: dict) -> LoadingPlan:
    """The plan for a model's `from_pretrained`; `device_map` and `torch_dtype` are the official names of two options.

    Raises ValueError or FileNotFoundError.
    """
    hub, asked = model_options(asked)
    attention = asked.pop("attn_implementation", None)
    device, dtype = placement(**asked)
    folder = find_checkpoint(name, weights=True, **hub)
    return LoadingPlan(folder, device, dtype, "sdpa" if attention is None else attention)


def placement(device="auto", dtype="auto", device_map=None, torch_dtype=None) -> tuple[torch.device, torch.dtype]:
    """Where weights go and in which dtype; `device_map` and `torch_dtype` are the official names of the two."""
    for ours, official, name in ((device, device_map, "device_map"), (dtype, torch_dtype, "torch_dtype")):
        if official is not None and ours not in (None, "auto") and str(official) != str(ours):
            raise ValueError(f"{name}={shown(official)} and {shown(ours)} are two words for one thing; give one.")
    chosen = choose_device(next((one for one in (device_map, device) if one is not None), "auto"))
    return chosen, choose_dtype(next((one for one in (torch_dtype, dtype) if one is not None), "auto"), chosen)


def put_weights(model: nn.Module, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model on the meta device its weights, one by one, and its `generation_config`.

    Every parameter is found exactly once and in its shape, which is checked before the first weight is read.
    """
    stored = list_tensors(folder)
    tied = tie_head(model, stored, folder)
    check_complete(model, stored, folder)
    if hasattr(model, "generation_config") and (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_file(folder / "generation_config.json")

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
    text_config.tie_word_embeddings = is_tied(model.config, stored, folder)
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
    attn_implementation: str | None = None,
    **options,
):
    """(model, processor) of a checkpoint; options such as `max_pixels` win over what the checkpoint says.

    The Hub's options (`revision`, `cache_dir`, `token` …) hold for both.
    """
    hub, image_options = take_hub_options(options, {})
    folder = find_checkpoint(name, weights=True, **hub)
    model = load_model(folder, dtype=dtype, device=device, attn_implementation=attn_implementation)
    processor = classes().Qwen2VLProcessor.from_pretrained(folder, **image_options)
    check_partners(model.config, processor, folder)
    return model, processor


def processor_options(name: str | Path, kind: type, overrides: dict) -> dict:
    """The fields of an image processor of class `kind`: a checkpoint's, then `overrides` that are not None."""
    hub, overrides = take_hub_options(overrides, {})
    return official_processor.processor_options(find_checkpoint(name, **hub), kind, overrides)


def find_words(name: str | Path, asked: dict) -> tuple[Path, dict]:
    """A processor's checkpoint, and what was asked of its image processor among the options of `from_pretrained`."""
    hub, image_options = take_hub_options(asked, FOR_WORDS)
    return find_checkpoint(name, **hub), image_options


@renamed(pretrained_model_name_or_path="name")
def load_tokenizer(cls: type, name: str | Path, **asked):
    """A tokenizer of class `cls` from a checkpoint's folder, "tiny" or a Hub id, with its chat template."""
    folder, unknown = find_words(name, asked)
    for option in unknown.keys() - {"use_fast"}:  # it is the one of the library tokenizers either way
        raise ValueError(f"from_pretrained has no option {shown(option)}; {did_you_mean(option, [*FOR_WORDS, *HUB])}")
    tokenizer = cls(folder / "tokenizer.json")
    tokenizer.chat_template = read_chat_template(folder)
    return tokenizer


def check_partners(config, processor, where: str | Path) -> None:
    """Model and processor must mean the same by an id, or pictures are lost without a word."""
    tokens = processor.tokenizer.special_ids
    for token, name in (("<|image_pad|>", "image_token_id"), ("<|video_pad|>", "video_token_id")):
        if tokens[token] != getattr(config, name):
            both = f"{token} is {tokens[token]} in the tokenizer and {getattr(config, name)} in the model's config"
            raise ValueError(f"{shorten(where)}: {both}; they do not belong together.")
    if len(processor.tokenizer) > config.text_config.vocab_size:
        both = f"{len(processor.tokenizer)} tokens, the embedding {config.text_config.vocab_size} rows"
        raise ValueError(f"{shorten(where)}: the tokenizer has {both}; they do not belong together.")


# ── Modules → files ─────────────────────────────────────────────────────────────────────────────────────────────────


def save(model: nn.Module, processor, folder: str | Path, max_shard_bytes: float = 5e9) -> None:
    """Write a checkpoint in the layout of the released ones, which transformers reads too; `processor` may be None.

    What could not be loaded again is not written (ValueError). All is written under temporary names first: a crash
    while writing leaves the folder as it was.
    """
    check_savable(model)
    folder = folder_to_write(folder)
    if not is_number(max_shard_bytes, float, 1, float("inf")):
        raise ValueError(f"max_shard_bytes = {shown(max_shard_bytes)} should be a number of bytes.")
    if processor is not None:
        check_partners(model.config, processor, folder)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}  # a tied one once, as the embedding
    savable.say_what_changes(model, weights, folder)

    shards, index = savable.in_shards(weights, max_shard_bytes)
    files = {"config.json": config_to_save(model, HEAD not in weights)} | index
    if getattr(model, "generation_config", None):
        files["generation_config.json"] = dict(model.generation_config)
    stale = [WEIGHTS, INDEX, "generation_config.json", *foreign.older_weights(folder)]
    if processor is not None:
        files |= official_processor.processor_files(processor)
        stale += official_processor.OLDER_PROCESSOR_FILES
    write_files(folder, files, shards, stale)


def save_model(model: nn.Module, save_directory: str | Path, **asked) -> None:
    """The official `model.save_pretrained(folder)`: weights, config.json and generation_config.json, no processor."""
    size = savable.max_shard_bytes(asked)
    save(model, None, save_directory, size)


def config_to_save(model: nn.Module, tied: bool) -> dict:
    """The content of config.json: with what is true of this model now."""
    d = {name: value for name, value in model.config.to_dict().items() if name != "dtype"}
    if hasattr(model, "lm_head"):
        return d | {"tie_word_embeddings": tied, "torch_dtype": savable.name_of(model.dtype)}
    return d | {"architectures": ["Qwen2VLModel"], "torch_dtype": savable.name_of(model.dtype)}


def check_savable(model: nn.Module) -> None:
    """A model that `load` could not give back is not saved."""
    ours = classes()
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    savable.check_parameters(model, parameters, isinstance(model, ours.Qwen2VLModel))
    kind = ours.Qwen2VLForConditionalGeneration if hasattr(model, "lm_head") else ours.Qwen2VLModel
    config = ours.Qwen2VLConfig.from_dict(model.config.to_dict())
    if HEAD in parameters:
        config.text_config.tie_word_embeddings = False
    with torch.device("meta"):
        expected = {name: tuple(one.shape) for name, one in kind(config).named_parameters()}
    savable.check_as_config_says(model, parameters, expected)


def tokenizer_config(processor) -> dict:
    """The content of a processor's tokenizer_config.json."""
    return official_tokenizer.tokenizer_config(processor.tokenizer, processor.chat_template)


def apply_chat_template(tokenizer, conversation, tokenize: bool = True, return_dict: bool = True, **asked):
    """The official method of a tokenizer: as the processor's, for messages without pictures.

    Without `return_tensors` the ids come as lists. Raises ValueError for pictures, which only the processor reads.
    """
    ours = classes()
    processor = ours.Qwen2VLProcessor(ours.Qwen2VLImageProcessor(), tokenizer, tokenizer.chat_template)
    many, single = ours.messages.as_conversations(conversation)
    if tokenize and ours.messages.media_items(many):
        raise ValueError("A tokenizer reads no pictures; use processor.apply_chat_template for this conversation.")
    tensors = asked.pop("return_tensors", None)
    prompts = processor.apply_chat_template(conversation, **asked)
    if not tokenize:
        return prompts
    padding = asked.get("padding", False)
    rows = [ours.render_chat(chat, asked.get("add_generation_prompt", False)) for chat in many]
    rows = [tokenizer.encode(pieces) for pieces in rows]
    answer = tokenizer.assemble(rows, single, tensors, {"padding": padding})
    return answer if return_dict else answer["input_ids"]
