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
import csv
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tiny_world import evaluate, scenes
from tiny_world.batches import COURSE, FULL, Recipe, make_round, make_sheets
from tiny_world.train import Trainer, initialise, rate_factor, tiny_config

CELL = 28 * 28  # pixels of one visual token
Row = dict[str, str | float]


class Results:
    """The table: rows are added as they come, and known ones are not measured again."""

    def __init__(self, file: Path, keys: tuple[str, ...]):
        self.file = file
        self.keys = keys  # columns that name a setting; rows that differ in others are repetitions of it
        self.rows: list[Row] = []
        if file.exists():
            with file.open(newline="") as lines:
                self.rows = list(csv.DictReader(lines))

    def has(self, **keys) -> bool:
        """Whether there is a row with these values."""
        return any(all(row[key] == str(keys[key]) for key in keys) for row in self.rows)

    def add(self, **row) -> None:
        """Append a row, to the file too, and print it."""
        self.rows.append({key: str(value) for key, value in row.items()})
        with self.file.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, row)
            if lines.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def series(self, x: str, y: str, **where) -> tuple[list[float], list[float], list[float]]:
        """Means of x, means of y and standard deviations of y: one of each for every setting whose rows fit `where`."""
        groups = defaultdict(list)
        for row in self.rows:
            if all(row[key] == str(value) for key, value in where.items()):
                setting = tuple(row[key] for key in self.keys)
                groups[setting].append((float(row[x]), float(row[y])))

        points = []
        for pairs in groups.values():
            xs, ys = zip(*pairs)
            deviation = statistics.stdev(ys) if len(ys) > 1 else 0.0
            points.append((statistics.mean(xs), statistics.mean(ys), deviation))
        points.sort()
        return [x for x, _, _ in points], [y for _, y, _ in points], [deviation for _, _, deviation in points]


def figure(columns: int):
    """A drawing, and its axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, columns, figsize=(4.6 * columns, 3.7), constrained_layout=True)
    for axis in axes:
        axis.grid(alpha=0.3)
    return drawing, axes


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


# ── New decoders ────────────────────────────────────────────────────────────────────────────────────────────────────


def new_trainer(processor: Qwen2VLProcessor, seed: int, merge_size: int | None = None, theta: float = 20.0) -> Trainer:
    """A decoder with random weights behind the bundled tower, which is frozen; or, with a `merge_size`, behind the
    tower's frozen blocks and a new merger, which can learn."""
    torch.manual_seed(seed)
    config = tiny_config(processor.tokenizer, layers=6, merge_size=merge_size or 2)
    config.text_config.rope_theta = theta
    model = Qwen2VLForConditionalGeneration(config)
    initialise(model)

    tower = weights_loader.load_model("tiny", dtype="float32", device="cpu").visual.state_dict()
    keep = {name: weight for name, weight in tower.items() if merge_size is None or not name.startswith("merger")}
    model.visual.load_state_dict(keep, strict=False)
    for name, weight in model.visual.named_parameters():
        weight.requires_grad_(merge_size is not None and name.startswith("merger"))
    return Trainer(model, processor.tokenizer)


def run_steps(trainer: Trainer, steps: int, make: Callable[[int], tuple[dict, dict]]) -> list[float]:
    """Train on `make(0)`, `make(1)` …, each a batch and more inputs; the seconds of each step, without `make`."""
    seconds = []
    for step in range(steps):
        batch, inputs = make(step)
        start = time.perf_counter()
        trainer.round_loss(batch, **inputs).backward()
        trainer.step(rate_factor(step, step / steps))
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def shares_right(trainer: Trainer, batches: Iterable[tuple[dict, dict]]) -> dict[str, float]:
    """Share of answers right in every token, by task.

    Each token is given the right ones before it, so the answer is right if and only if greedy generation's is.
    """
    sums, counts = defaultdict(float), defaultdict(int)

    def record(name: str, value: float, count: int = 1) -> None:
        sums[name] += value * count
        counts[name] += count

    trainer.record = record
    for batch, inputs in batches:
        trainer.round_loss(batch, **inputs)
    trainer.record = lambda name, value, count=1: None
    return {name: sums[name] / counts[name] for name in sums}


# ── M-RoPE against 1-D RoPE ─────────────────────────────────────────────────────────────────────────────────────────

# With theta 20 the slowest pair of channels has turned once after 104 positions: plenty for rows, columns and frames,
# but few for a running number of tokens. So 1-D RoPE gets a second try, in which that pair never turns once in a clip.
WAYS = {"M-RoPE": 20.0, "1-D RoPE": 20.0, "1-D RoPE, theta 1000": 1000.0}
TRAINED_FRAMES = (4, 6, 8)
MORE_FRAMES = (12, 16, 24, 32)
ROPE_RECIPE = replace(
    FULL,
    tasks={"describe": 2, "relation": 3, "count": 1},
    things=(1, 2, 3),
    max_side=140,
    large_share=0.0,
    text_share=0.0,
    tokens=2500,
)


def positions(way: str, batch: dict) -> dict:
    """More inputs for the model: 1-D RoPE is M-RoPE with the same running number on all three axes."""
    if way == "M-RoPE":
        return {}
    rows, length = batch["inputs"]["input_ids"].shape
    return {"position_ids": torch.arange(length).expand(3, rows, length)}


def rope(file: Path, seeds: int, samples: int, steps: int) -> Results:
    """The same decoder, data and number of steps: only the positions differ."""
    results = Results(file, ("way", "task", "frames"))
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    for seed, way in product(range(seeds), WAYS):
        if results.has(way=way, seed=seed):
            continue
        trainer, seconds = train_with_positions(way, seed, steps, processor)
        found = ask_with_positions(trainer, way, seed, samples, processor)
        for (task, frames), share in found.items():
            results.add(way=way, task=task, frames=frames, seed=seed, accuracy=round(share, 4), seconds=round(seconds))
    return results


def train_with_positions(way: str, seed: int, steps: int, processor: Qwen2VLProcessor) -> tuple[Trainer, float]:
    """A new decoder, and the seconds that its steps took."""

    def make(step: int) -> tuple[dict, dict]:
        kind = "picture" if step % 3 == 0 else "clip"
        batch = make_round(kind, step + 100_000 * seed, processor, recipe=ROPE_RECIPE)
        return batch, positions(way, batch)

    trainer = new_trainer(processor, seed, theta=WAYS[way])
    seconds = run_steps(trainer, steps, make)
    return trainer, sum(seconds)


def ask_with_positions(
    trainer: Trainer, way: str, seed: int, samples: int, processor: Qwen2VLProcessor
) -> dict[tuple[str, int], float]:
    """Share of right answers by task and number of frames."""

    def shares(kind: str, recipe: Recipe) -> dict[str, float]:
        rounds = held_out_rounds(kind, samples, seed, processor, recipe)
        return shares_right(trainer, ((batch, positions(way, batch)) for batch in rounds))

    found = {}
    for frames in (*TRAINED_FRAMES, *MORE_FRAMES):
        found["motion", frames] = shares("clip", replace(ROPE_RECIPE, frames=(frames,)))["motion"]
    of_pictures = shares("picture", ROPE_RECIPE)
    for task in ("describe", "relation"):
        found[task, 1] = of_pictures[task]
    return found


def held_out_rounds(kind: str, samples: int, seed: int, processor: Qwen2VLProcessor, recipe: Recipe) -> Iterator[dict]:
    """Rounds of at least `samples` conversations in all, from seeds that training never uses."""
    done = 0
    for number in itertools.count(scenes.TEST_SEED * (2 + seed)):
        if done >= samples:
            return
        batch = make_round(kind, number, processor, recipe=recipe)
        done += len(batch["tasks"])
        yield batch


def draw_bars(axis, place: int, series: list[tuple[list[float], list[float], list[float]]], label: str) -> None:
    """A bar for each series of a single mean: in the group of its index, `place` bars right of the group's middle."""
    places = [group + place * 0.27 for group in range(len(series))]
    heights = [means[0] for _, means, _ in series]
    errors = [deviations[0] for _, _, deviations in series]
    axis.bar(places, heights, 0.25, yerr=errors, capsize=3, label=label)


def draw_rope(results: Results, file: Path) -> None:
    """Two panels: clips by their number of frames, and single pictures."""
    drawing, axes = figure(2)
    for way, style in zip(WAYS, ("o-", "s--", "^:")):
        axes[0].errorbar(*results.series("frames", "accuracy", way=way, task="motion"), fmt=style, capsize=3, label=way)
    axes[0].axvspan(TRAINED_FRAMES[0], TRAINED_FRAMES[-1], color="grey", alpha=0.15, label="trained on")
    axes[0].set(ylim=(0, 1), xlabel="frames of the clip", title="clips: what moves, which way")

    tasks = ("describe", "relation")
    for i, way in enumerate(WAYS):
        series = [results.series("frames", "accuracy", way=way, task=task) for task in tasks]
        draw_bars(axes[1], i - 1, series, label=way)
    axes[1].set(ylim=(0, 1), title="single pictures")
    axes[1].set_xticks(range(len(tasks)), ["describe, left to right", "left of, above …"])
    for axis, where in zip(axes, ("lower left", "upper right")):
        axis.legend(fontsize=8, loc=where)
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
    tokens = []

    def make(step: int) -> tuple[dict, dict]:
        batch = make_round("picture", step + 100_000 * seed, processor, recipe=MERGER_RECIPE)
        tokens.append(len(batch["places"]) / len(batch["tasks"]))
        return batch, {}

    trainer = new_trainer(processor, seed, merge)
    teach_merger(trainer, processor, seed)
    run_steps(trainer, steps, make)
    return trainer.model.eval(), statistics.mean(tokens)


def ask_with_merger(
    model: Qwen2VLForConditionalGeneration, samples: int, processor: Qwen2VLProcessor
) -> dict[str, float]:
    """Share of right answers by task."""
    world = evaluate.World(max_side=MERGER_RECIPE.max_side, max_things=max(MERGER_RECIPE.things), text_share=0.0)
    rows = {task: (task, world) for task in MERGER_TASKS}
    found = evaluate.evaluate(model, processor, rows, samples)
    return {task: found[task]["accuracy"] for task in MERGER_TASKS}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="folder of the table and the figure")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, for the error bars (default 3)")
    parser.add_argument("--samples", type=int, default=200, help="held-out scenes for each number (default 200)")
    parser.add_argument("--steps", type=int, default=500, help="training steps of each decoder (default 500)")
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
