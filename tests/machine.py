"""What the model runs on here: device, dtype, attention kernel, memory and disk. For `python -m tests.environment`.

Each check of CHECKS is a function of a device and a dtype, and yields (state, item, detail).
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants
from torch.utils._python_dispatch import TorchDispatchMode

import weights_loader
from qwen2vl_io.options import flash_problem
from qwen2vl_mini import sdpa_attention

RELEASED = {"2B": 2_208_985_600, "7B": 8_291_375_616}  # parameters
STORED_BYTES = 2  # of a parameter in the released files, which are in bfloat16
ROOM = 2e9  # bytes beside the weights; of the 2B shape with a prompt of 172 tokens, 1.5e9 were measured
CALLS = {  # of attention in the 2B shape: heads, heads of keys, queries, head_dim
    "vision tower": (16, 16, 64, 80),
    "prompt": (12, 2, 64, 128),
    "next token": (12, 2, 1, 128),
}
Found = Iterator[tuple[str, str, str]]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def check_device(device: torch.device, dtype: torch.dtype) -> Found:
    """The device that "auto" takes. A GPU is optional, but people who have one want to know why it is not used."""
    if device.type == "cuda":
        yield "OK", "device", f"{device}: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    elif device.type == "mps":
        yield "OK", "device", "mps: Apple's GPU"
    else:
        yield "OK", "device", f"cpu, threads: {torch.get_num_threads()}"
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        driver = "; nvidia-smi is there, so see pytorch.org/get-started" if shutil.which("nvidia-smi") else ""
        yield "note", "GPU", f"none is needed; PyTorch, built {built}, sees none{driver}"


def check_dtype(device: torch.device, dtype: torch.dtype) -> Found:
    """The dtype that "auto" takes, and why."""
    if device.type == "cuda":
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        why = f"the GPU has compute capability {capability}, and bfloat16 is fast from 8.0 on"
    elif device.type == "mps":
        why = "the speed of bfloat16 differs between Apple's chips (--dtype bfloat16 takes it)"
    else:
        why = weights_loader.cpu_bfloat16()[1]
    yield "OK", "dtype", f"{name_of(dtype)}, because {why}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Kernel(TorchDispatchMode):
    """Sees which operation PyTorch makes of an attention call."""

    name = "math"  # stays, if it is none of its own but products and a softmax

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = re.search(r"_scaled_dot_product_(\w+)", str(operation))
        self.name = found.group(1) if found else self.name
        return operation(*args, **(kwargs or {}))


def attention_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The kernel that runs for each kind of attention call."""
    kernels = {}
    for call, (heads, key_heads, queries, width) in CALLS.items():
        q = torch.ones(1, heads, queries, width, device=device, dtype=dtype)
        k = torch.ones(1, key_heads, 64, width, device=device, dtype=dtype)
        with torch.no_grad(), Kernel() as kernel:
            sdpa_attention(q, k, k, causal=call == "prompt")
        kernels[call] = kernel.name
    return kernels


def check_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """Any kernel is right; the flash kernel is the fast one."""
    kernels = attention_kernels(device, dtype)
    if all(kernel.startswith("flash") for kernel in kernels.values()):
        yield "OK", "attention", f"PyTorch's {kernels['prompt']} ran for {', '.join(kernels)}"
        return

    ran = ", ".join(f"{kernel} for {call}" for call, kernel in kernels.items())
    why = flash_problem(device.type, dtype, head_dim=80) or "PyTorch chose so"
    yield "note", "attention", f"not flash everywhere, but {ran}: {why}"


def memory_size(device: torch.device) -> tuple[float | None, str]:
    """Bytes that are free on the device, else those that it has, and which of the two. None: Python cannot tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "free"

    sizes = {}
    try:
        sizes["in all"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        words = Path("/proc/meminfo").read_text(encoding="ascii").split()
        sizes["free"] = int(words[words.index("MemAvailable:") + 1]) * 1024
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, and only Linux has meminfo
        pass

    word = "free" if "free" in sizes else "in all"
    return min([*container_limits(), sizes[word]]) if sizes else None, word


def container_limits(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The bytes that a container may use, in version 2 or 1 of Linux's control groups; empty without a limit."""
    files = [folder / "memory.max", folder / "memory" / "memory.limit_in_bytes"]
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def fit(item: str, needed: float, what: str, size: float | None, where: str) -> tuple[str, str, str]:
    """Whether a released model fits in `size` bytes; not to fit is no failure."""
    if size is None:
        return "note", item, f"{what}; Python cannot tell here what is free"
    state, verdict = ("OK", "fits") if needed <= size else ("note", "too large")
    return state, item, f"{verdict}: {what}; {gigabytes(size)} {where}"


def check_memory(device: torch.device, dtype: torch.dtype) -> Found:
    """Whether the released models fit in memory: the weights in this dtype, and room to work."""
    size, word = memory_size(device)
    for name, parameters in RELEASED.items():
        weights = parameters * dtype.itemsize
        what = f"{gigabytes(weights)} of weights in {name_of(dtype)} + {gigabytes(ROOM)} of room"
        yield fit(f"{name} in memory", weights + ROOM, what, size, f"{word} on {device}")


def check_disk(device: torch.device, dtype: torch.dtype) -> Found:
    """Room for the downloads in the Hub's cache, or in the nearest folder above it that is already there."""
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    for name, parameters in RELEASED.items():
        size = parameters * STORED_BYTES
        shown = str(cache).replace(str(Path.home()), "~", 1)
        yield fit(f"{name} on disk", size, f"{gigabytes(size)}, once", free, f"free for {shown}")


CHECKS = (check_device, check_dtype, check_attention, check_memory, check_disk)
