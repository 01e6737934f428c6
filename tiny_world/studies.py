"""Three findings of the Qwen2-VL paper, in small: each is one command, a table (CSV) and a figure with error bars.

    python -m tiny_world.studies resolution    dynamic against fixed resolution, and accuracy against max_pixels
    python -m tiny_world.studies rope          M-RoPE against 1-D RoPE, on clips longer than those trained on
    python -m tiny_world.studies merger        what merging 2×2 patches into a token costs and saves

`resolution` asks the bundled checkpoint about several sets of held-out scenes, as the paper asks one trained model; its
error bars are over the sets. The other two train new decoders, each from several seeds, on the bundled checkpoint's
vision tower; their error bars are over the seeds. What is already in the table is not measured again: stop and go on as
you like, and delete the table to begin anew.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tiny_world import evaluate, scenes
from tiny_world.batches import COURSE, make_round, make_sheets
from tiny_world.help_text import fitted
from tiny_world.study_results import Results, figure
from tiny_world.study_rope import draw_rope, rope
from tiny_world.train import Trainer, initialise, rate_factor, tiny_config

CELL = 28 * 28  # pixels of one visual token


# ── Dynamic against fixed resolution ────────────────────────────────────────────────────────────────────────────────

MAX_TOKENS = (4, 9, 16, 25, 36, 64, 100, 256)  # max_pixels, in visual tokens
FIXED_TOKENS = (16, 25, 36, 49, 64, 100)


def squash(image: Image.Image, tokens: int) -> Image.Image:
    """The picture as a square of `tokens` visual tokens, whatever its shape was: the usual fixed-size input."""
    side = round(tokens**0.5) * 28
    return image.resize((side, side), Image.Resampling.BICUBIC)


def resolution(file: Path, seeds: int, samples: int, steps: int | None = None) -> Results:
    """One model, the same pictures, three ways to make them small or large. (`steps`: nothing is trained here.)"""
    results = Results(file, ("way", "limit", "task"))
    model, _ = weights_loader.load("tiny", dtype="float32")
    plans = [("dynamic", tokens) for tokens in MAX_TOKENS]
    plans += [(way, tokens) for tokens in FIXED_TOKENS for way in ("fixed area", "fixed square")]
    for seed, task in product(range(seeds), ("read", "where")):
        # Texts are in pictures of the sizes that training shows them in, boxes in pictures of all sizes.
        largest = scenes.READ_BELOW - 1 if task == "read" else scenes.MAX_SIDE
        world = evaluate.World(max_side=largest, first=scenes.TEST_SEED * (2 + seed))
        drawn = world.samples(task, samples)
        for way, tokens in plans:
            if not results.has(way=way, limit=tokens, task=task, seed=seed):
                found = ask_in_one_way(model, drawn, way, tokens)
                results.add(way=way, limit=tokens, task=task, seed=seed, **found)
    return results


def ask_in_one_way(
    model: Qwen2VLForConditionalGeneration, samples: list[scenes.Sample], way: str, tokens: int
) -> dict[str, float]:
    """Visual tokens a picture, accuracy, and IoU or character error, at one way and limit."""
    limits = {"max_pixels": tokens * CELL}
    if way != "dynamic":
        limits["min_pixels"] = tokens * CELL
    processor = Qwen2VLProcessor.from_pretrained("tiny", **limits)
    shown = samples
    if way == "fixed square":
        shown = [replace(sample, images=[squash(sample.images[0], tokens)]) for sample in samples]

    said = evaluate.answers(model, processor, shown)
    scores = [evaluate.score(sample, text) for sample, text in zip(samples, said)]
    if samples[0].task == "read":
        iou_or_error = evaluate.character_error(samples, said)
    else:
        iou_or_error = sum(overlap for _, overlap in scores) / len(samples)

    images = [sample.images[0] for sample in shown]
    cost = [processor.image_processor.num_image_tokens(image.height, image.width) for image in images]
    return {
        "tokens": round(sum(cost) / len(samples), 2),
        "accuracy": round(sum(is_right for is_right, _ in scores) / len(samples), 4),
        "iou_or_character_error": round(iou_or_error, 4),
    }


def draw_resolution(results: Results, file: Path) -> None:
    """Two panels, reading and boxes, with one line for each way."""
    drawing, axes = figure(2)
    for axis, task, title in zip(axes, ("read", "where"), ("reading, every character right", "boxes, IoU > 0.5")):
        for way, style in (("dynamic", "o-"), ("fixed area", "s--"), ("fixed square", "^:")):
            x, y, error = results.series("tokens", "accuracy", way=way, task=task)
            label = {"dynamic": "dynamic, max_pixels lowered"}.get(way, way)
            axis.errorbar(x, y, error, fmt=style, capsize=3, label=label)
        axis.set(xscale="log", ylim=(0, 1), xlabel="visual tokens a picture (mean)", title=title)
        axis.set_xticks([4, 8, 16, 32, 64, 100], ["4", "8", "16", "32", "64", "100"])
        axis.legend(fontsize=8, loc="lower right")
    drawing.savefig(file, dpi=110)


# ── The 2×2 merger ──────────────────────────────────────────────────────────────────────────────────────────────────

MERGES = (1, 2, 4)
MERGER_RECIPE = replace(
    COURSE,  # small pictures and few things, which a new decoder can learn in few steps
    tokens=10**9,  # no limit: every merger gets the same conversations, however many tokens they are
    max_rows=16,
)
MERGER_STEPS = 300  # of the new merger alone, on sheets
MERGER_TASKS = ("describe", "where", "count", "colour", "shape")
SEEN_SIDE = 448  # pixels a side of the picture with which the time to the first token is measured


def new_trainer(processor: Qwen2VLProcessor, seed: int, merge_size: int) -> Trainer:
    """A decoder with random weights and a new merger, which can learn, behind the bundled tower's frozen blocks."""
    torch.manual_seed(seed)
    config = tiny_config(processor.tokenizer, layers=6, merge_size=merge_size)
    model = Qwen2VLForConditionalGeneration(config)
    initialise(model)

    tower = weights_loader.load_model("tiny", dtype="float32", device="cpu").visual.state_dict()
    keep = {name: weight for name, weight in tower.items() if not name.startswith("merger")}
    model.visual.load_state_dict(keep, strict=False)
    for name, weight in model.visual.named_parameters():
        weight.requires_grad_(name.startswith("merger"))
    return Trainer(model, processor.tokenizer)


def seconds_to_first_token(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> float:
    """Time to see a large picture and begin to describe it: the median of nine."""
    sample = scenes.make_sample(scenes.TEST_SEED, "describe", SEEN_SIDE, SEEN_SIDE)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        evaluate.answers(model, processor, [sample], max_new_tokens=1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def teach_merger(trainer: Trainer, processor: Qwen2VLProcessor, seed: int) -> None:
    """Train the new merger alone to name what is in its cells, as towers are trained; then freeze it, too."""
    images = processor.image_processor
    recipe = replace(MERGER_RECIPE, sheet_cells=MERGER_RECIPE.sheet_cells * 4 // images.merge_size**2)  # same pixels
    for step in range(MERGER_STEPS):
        trainer.sheets_loss(make_sheets(step + 100_000 * seed, images, recipe)).backward()
        trainer.step(recipe.tower_factor * rate_factor(step, step / MERGER_STEPS))
    trainer.model.visual.requires_grad_(False)


def merger(file: Path, seeds: int, samples: int, steps: int) -> Results:
    """The same frozen blocks, pictures, questions and number of steps: only the patches in one token differ."""
    results = Results(file, ("merge", "task"))
    for seed, merge in product(range(seeds), MERGES):
        if results.has(merge=merge, seed=seed):
            continue
        processor = Qwen2VLProcessor.from_pretrained("tiny")
        processor.image_processor.merge_size = merge
        model, tokens = train_with_merger(merge, seed, steps, processor)
        accuracies = ask_with_merger(model, samples, processor)
        seconds = seconds_to_first_token(model, processor)
        for task, accuracy in accuracies.items():
            results.add(
                merge=merge,
                task=task,
                seed=seed,
                accuracy=accuracy,
                tokens=round(tokens, 2),
                seconds_to_first_token=round(seconds, 3),
            )
    return results


def train_with_merger(
    merge: int, seed: int, steps: int, processor: Qwen2VLProcessor
) -> tuple[Qwen2VLForConditionalGeneration, float]:
    """A new merger and a new decoder, and the mean number of visual tokens of the pictures that they were shown."""
    trainer = new_trainer(processor, seed, merge)
    teach_merger(trainer, processor, seed)
    tokens = []
    for step in range(steps):
        batch = make_round("picture", step + 100_000 * seed, processor, recipe=MERGER_RECIPE)
        tokens.append(len(batch["places"]) / len(batch["tasks"]))
        trainer.round_loss(batch).backward()
        trainer.step(rate_factor(step, step / steps))
    return trainer.model.eval(), statistics.mean(tokens)


def ask_with_merger(
    model: Qwen2VLForConditionalGeneration, samples: int, processor: Qwen2VLProcessor
) -> dict[str, float]:
    """Share of right answers by task."""
    world = evaluate.World(max_side=MERGER_RECIPE.max_side, max_things=max(MERGER_RECIPE.things), text_share=0.0)
    rows = {task: (task, world) for task in MERGER_TASKS}
    found = evaluate.evaluate(model, processor, rows, samples)
    return {task: found[task]["accuracy"] for task in MERGER_TASKS}


def draw_bars(axis, place: int, series: list[tuple[list[float], list[float], list[float]]], label: str) -> None:
    """A bar for each series of a single mean: in the group of its index, `place` bars right of the group's middle."""
    places = [group + place * 0.27 for group in range(len(series))]
    heights = [means[0] for _, means, _ in series]
    errors = [deviations[0] for _, _, deviations in series]
    axis.bar(places, heights, 0.25, yerr=errors, capsize=3, label=label)


def draw_merger(results: Results, file: Path) -> None:
    """Three panels: right answers, visual tokens, seconds to the first token."""
    drawing, axes = figure(3)
    for i, merge in enumerate(MERGES):
        series = [results.series("tokens", "accuracy", merge=merge, task=task) for task in MERGER_TASKS]
        draw_bars(axes[0], i - 1, series, label=f"{merge}×{merge} patches a token")
        for axis, column in ((axes[1], "tokens"), (axes[2], "seconds_to_first_token")):
            _, (mean,), (error,) = results.series("tokens", column, merge=merge, task="describe")
            axis.bar(i, mean, 0.6, yerr=error, capsize=3)
            label_bar(axis, i, mean, error)

    axes[0].set(ylim=(0, 1), title="right answers after the same steps")
    axes[0].set_xticks(range(len(MERGER_TASKS)), MERGER_TASKS)
    axes[0].legend(fontsize=8)
    axes[1].set(title="visual tokens a picture")
    axes[2].set(title=f"seconds to the first token,\n{SEEN_SIDE}×{SEEN_SIDE} pixels")
    for axis in axes[1:]:
        axis.set_xticks(range(len(MERGES)), [f"{merge}×{merge}" for merge in MERGES])
        axis.margins(y=0.12)
    drawing.savefig(file, dpi=110)


def label_bar(axis, place: int, mean: float, error: float) -> None:
    """Write the mean above the bar's error."""
    top = (place, mean + error)
    axis.annotate(f"{mean:.3g}", top, ha="center", va="bottom", xytext=(0, 4), textcoords="offset points")


STUDIES = {"resolution": (resolution, draw_resolution), "rope": (rope, draw_rope), "merger": (merger, draw_merger)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=fitted(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="folder of the table and the figure")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, for the error bars (default 3)")
    parser.add_argument("--samples", type=int, default=200, help="held-out scenes for each number (default 200)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each decoder (default 1000)")
    options = parser.parse_args(argv)
    if min(options.seeds, options.samples, options.steps) < 1:
        print("error: --seeds, --samples and --steps must be at least 1.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    measure, draw = STUDIES[options.study]
    table = options.out / f"study_{options.study}.csv"
    results = measure(table, options.seeds, options.samples, options.steps)
    draw(results, table.with_suffix(".png"))
    print(f"Wrote {table} and {table.with_suffix('.png')}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
