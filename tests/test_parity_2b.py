"""The real 2B shape against the official implementation, from a checkpoint on the disk in the released layout.

Random weights, bfloat16 in two shards, read as float32 by both. Each model has a process of its own, so that the memory
holds one of them at a time. A miniature of the same runs in the normal suite; the real one with `-m slow`: 14 GB of
memory, 5 GB of disk and some minutes; it prints what it found.
"""

import multiprocessing
import os
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import weights_loader
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tests.layer_debugger import compare_records, first_difference, record, stages, table
from tests.small_models import image, make_inputs, randomise, small_config

CONFIGS = {
    "miniature": small_config(layers=3, heads=(6, 1), head_dim=32, section=[4, 6, 6], vision=(3, 80, 4)),
    "2b": Qwen2VLConfig(),
}
PROMPT = [[4, image(20, 30), 16]]  # 280×420 pixels: 150 visual tokens


def alone(function, *arguments):
    """Run in a process of its own, whose memory is free afterwards; (result, seconds, peak memory in GB)."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measured, function, *arguments).result()


def measured(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def write_checkpoint(shape: str, folder: Path) -> int:
    """A random checkpoint in bfloat16 and two shards; returns its number of parameters."""
    with torch.device("meta"):  # or torch would fill 9 GB with its own random numbers first
        model = Qwen2VLForConditionalGeneration(CONFIGS[shape]).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight  # to_empty has untied them
    randomise(model)
    size = sum(parameter.nbytes for parameter in model.parameters())
    weights_loader.save(model, None, folder, max_shard_bytes=0.6 * size)
    assert len(list(folder.glob("*.safetensors"))) == 2
    return sum(parameter.numel() for parameter in model.parameters())


def run(which: str, shape: str, folder: Path, activations: Path) -> None:
    """Load the checkpoint as float32 and save every layer's output for the same prompt."""
    torch.set_num_threads(os.cpu_count() if shape == "2b" else 1)
    if which == "official":
        from tests.official import load_official

        model = load_official(folder)
    else:
        model = weights_loader.load_model(folder, dtype="float32", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = make_inputs(CONFIGS[shape], PROMPT)
    save_file({name: x.contiguous() for name, x in record(model, inputs).items()}, activations)


@pytest.mark.parametrize("shape", ["miniature", pytest.param("2b", marks=pytest.mark.slow)])
def test_a_released_shape_agrees_from_disk(shape, tmp_path, capsys):
    folder, files = tmp_path / "checkpoint", {which: tmp_path / which for which in ("official", "ours")}
    report = []
    try:
        count, seconds, peak = alone(write_checkpoint, shape, folder)
        report.append(f"{shape}: {count:,} parameters, written in {seconds:.0f} s, peak {peak:.1f} GB")
        for which, file in files.items():
            _, seconds, peak = alone(run, which, shape, folder, file)
            report.append(f"{which}: loaded and run in {seconds:.0f} s, peak {peak:.1f} GB")
        rows = []
        with safe_open(files["ours"], "pt") as ours, safe_open(files["official"], "pt") as official:
            assert set(ours.keys()) == set(official.keys())
            with torch.device("meta"):
                names = list(stages(Qwen2VLForConditionalGeneration(CONFIGS[shape])))  # in their order
            assert set(names) == set(ours.keys())
            for name in names:  # one layer at a time: all of them are half a gigabyte
                rows += compare_records({name: ours.get_tensor(name)}, {name: official.get_tensor(name)})
            best, expected = (file.get_tensor("logits").argmax(-1) for file in (ours, official))
    finally:
        shutil.rmtree(tmp_path)  # 5 GB: pytest would keep the last three runs
    report.append(f"places with the same most likely id: {(best == expected).float().mean():.1%}")
    with capsys.disabled() if shape == "2b" else nullcontext():
        print("\n" + "\n".join([*report, table(rows, 1e-5)]))
    assert first_difference(rows, 1e-5) is None
