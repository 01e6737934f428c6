"""Three findings of the Qwen2-VL paper, in small: each one command, a table (CSV) and a figure with error bars.

    python -m tiny_world.studies resolution    dynamic against fixed resolution, and accuracy against max_pixels
    python -m tiny_world.studies rope          M-RoPE against 1-D RoPE, on clips longer than those trained on
    python -m tiny_world.studies merger        what merging 2×2 patches into a token costs and saves

`resolution` asks the bundled checkpoint about several sets of held-out scenes, as the paper asks one trained model; its
error bars are over the sets. The other two train decoders anew, each from several seeds, on the bundled checkpoint's
vision tower; their error bars are over the seeds. What is already in the table is not done again: stop and go on as you
like, and delete the table to begin anew.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tiny_world import evaluate, scenes
from tiny_world.batches import COURSE, FULL, make_round, make_sheets
from tiny_world.train import Trainer, initialise, rate_factor, tiny_config

CELL = 28 * 28  # pixels of one visual token
Row = dict[str, str | float]


class Results:
    """The table: rows are added as they come, and known ones are not measured again."""

    def __init__(self, file: Path, keys: tuple[str, ...]):
        self.file, self.keys = file, keys
        self.rows: list[Row] = []
        if file.exists():
            with file.open(newline="") as lines:
                self.rows = list(csv.DictReader(lines))

    def has(self, **keys) -> bool:
        return any(all(row[key] == str(keys[key]) for key in keys) for row in self.rows)

    def add(self, **row) -> None:
        self.rows.append({key: str(value) for key, value in row.items()})
        with self.file.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, row)
            if lines.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def series(self, x: str, y: str, **where) -> tuple[list[float], list[float], list[float]]:
        """Of the rows that fit `where`: the mean of x, and mean and standard deviation of y, for each setting."""
        groups = defaultdict(list)
        for row in self.rows:
            if all(row[key] == str(value) for key, value in where.items()):
                groups[tuple(row[key] for key in self.keys)].append((float(row[x]), float(row[y])))
        points = []
        for pairs in groups.values():
            xs, ys = zip(*pairs)
            points.append((statistics.mean(xs), statistics.mean(ys), statistics.stdev(ys) if len(ys) > 1 else 0.0))
        return tuple(map(list, zip(*sorted(points)))) if points else ([], [], [])


def figure(columns: int):
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
    for seed in range(seeds):
        for task in ("read", "where"):
            # texts have sides below 350 pixels, as in training; boxes are asked for in all sizes
            largest = 349 if task == "read" else scenes.MAX_SIDE
            world = evaluate.World(max_side=largest, first=scenes.TEST_SEED * (2 + seed))
            drawn = world.samples(task, samples)
            for way, tokens in plans:
                if results.has(way=way, limit=tokens, task=task, seed=seed):
                    continue
                limits = {"max_pixels": tokens * CELL} | ({} if way == "dynamic" else {"min_pixels": tokens * CELL})
                processor = Qwen2VLProcessor.from_pretrained("tiny", **limits)
                shown = drawn
                if way == "fixed square":
                    shown = [replace(sample, images=[squash(sample.images[0], tokens)]) for sample in drawn]
                said = evaluate.answers(model, processor, shown)
                right = [evaluate.score(sample, text) for sample, text in zip(drawn, said)]
                cost = [
                    processor.image_processor.num_image_tokens(s.images[0].height, s.images[0].width) for s in shown
                ]
                extra = sum(overlap or 0.0 for _, overlap in right) / samples  # IoU, or …
                if task == "read":
                    errors = sum(evaluate.edits(text, sample.answer) for sample, text in zip(drawn, said))
                    extra = errors / sum(len(sample.answer) for sample in drawn)  # … the character error
                results.add(
                    way=way,
                    limit=tokens,
                    task=task,
                    seed=seed,
                    tokens=round(sum(cost) / samples, 2),
                    accuracy=round(sum(ok for ok, _ in right) / samples, 4),
                    iou_or_character_error=round(extra, 4),
                )
    return results


def draw_resolution(results: Results, file: Path) -> None:
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


# ── Decoders trained anew ───────────────────────────────────────────────────────────────────────────────────────────


def new_trainer(processor: Qwen2VLProcessor, seed: int, merge_size: int | None = None, theta: float = 20.0) -> Trainer:
    """A decoder with random weights behind the bundled tower, frozen; or, with a `merge_size`, behind its frozen blocks
    and a new merger, which can learn."""
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
    """Train on `make(0)`, `make(1)` … ((batch, more inputs) each); returns the seconds of each step, without `make`."""
    seconds = []
    for step in range(steps):
        batch, inputs = make(step)
        start = time.perf_counter()
        trainer.round_loss(batch, **inputs).backward()
        trainer.step(rate_factor(step, step / steps))
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def shares_right(trainer: Trainer, batches: Iterator[tuple[dict, dict]]) -> dict[str, float]:
    """Share of answers right in every token, by task (each token given the right ones before it: as greedy does)."""
    right = defaultdict(list)
    trainer.record = lambda name, value, count=1: right[name].append((value * count, count))
    for batch, inputs in batches:
        trainer.round_loss(batch, **inputs)
    trainer.record = lambda name, value, count=1: None
    return {name: sum(v for v, _ in pairs) / sum(n for _, n in pairs) for name, pairs in right.items()}


# ── M-RoPE against 1-D RoPE ─────────────────────────────────────────────────────────────────────────────────────────

# With theta 20 the slowest pair comes round after 126 positions: plenty for rows, columns and frames, but few for a
# running number of tokens. So 1-D RoPE has a second try, with which nothing comes round within a clip.
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
    """1-D RoPE is M-RoPE with the same running number in all three places."""
    if way == "M-RoPE":
        return {}
    rows, length = batch["inputs"]["input_ids"].shape
    return {"position_ids": torch.arange(length).expand(3, rows, length)}


def rope(file: Path, seeds: int, samples: int, steps: int) -> Results:
    """The same decoder, data and number of steps, but for the positions."""
    results = Results(file, ("way", "task", "frames"))
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    for seed in range(seeds):
        for way, theta in WAYS.items():
            if results.has(way=way, seed=seed):
                continue
            trainer = new_trainer(processor, seed, theta=theta)

            def make(step: int, way=way, seed=seed) -> tuple[dict, dict]:
                kind = "picture" if step % 3 == 0 else "clip"
                batch = make_round(kind, step + 100_000 * seed, processor, recipe=ROPE_RECIPE)
                return batch, positions(way, batch)

            seconds = run_steps(trainer, steps, make)
            found = {}
            for frames in (*TRAINED_FRAMES, *MORE_FRAMES):
                rounds = held_out_rounds("clip", samples, seed, processor, replace(ROPE_RECIPE, frames=(frames,)))
                share = shares_right(trainer, ((batch, positions(way, batch)) for batch in rounds))
                found["motion", frames] = share["motion"]
            rounds = held_out_rounds("picture", samples, seed, processor, ROPE_RECIPE)
            share = shares_right(trainer, ((batch, positions(way, batch)) for batch in rounds))
            found |= {(task, 1): share[task] for task in ("describe", "relation")}
            for (task, frames), value in found.items():
                results.add(
                    way=way, task=task, frames=frames, seed=seed, accuracy=round(value, 4), seconds=round(sum(seconds))
                )
    return results


def held_out_rounds(kind: str, samples: int, seed: int, processor: Qwen2VLProcessor, recipe) -> Iterator[dict]:
    """Rounds of at least `samples` conversations from seeds that training never uses."""
    done, number = 0, scenes.TEST_SEED * (2 + seed)
    while done < samples:
        batch = make_round(kind, number, processor, recipe=recipe)
        done, number = done + len(batch["tasks"]), number + 1
        yield batch


def draw_rope(results: Results, file: Path) -> None:
    drawing, axes = figure(2)
    for way, style in zip(WAYS, ("o-", "s--", "^:")):
        axes[0].errorbar(*results.series("frames", "accuracy", way=way, task="motion"), fmt=style, capsize=3, label=way)
    axes[0].axvspan(TRAINED_FRAMES[0], TRAINED_FRAMES[-1], color="grey", alpha=0.15, label="trained on")
    axes[0].set(ylim=(0, 1), xlabel="frames of the clip", title="clips: what moves, which way")
    tasks = ("describe", "relation")
    for i, way in enumerate(WAYS):
        bars = [results.series("frames", "accuracy", way=way, task=task) for task in tasks]
        places = [k + (i - 1) * 0.27 for k in range(len(tasks))]
        heights, errors = [bar[1][0] for bar in bars], [bar[2][0] for bar in bars]
        axes[1].bar(places, heights, 0.25, yerr=errors, capsize=3, label=way)
    axes[1].set(ylim=(0, 1), title="single pictures")
    axes[1].set_xticks(range(len(tasks)), ["describe, left to right", "left of, above …"])
    for axis, where in zip(axes, ("lower left", "upper right")):
        axis.legend(fontsize=8, loc=where)
    drawing.savefig(file, dpi=110)


# ── The 2×2 merger ──────────────────────────────────────────────────────────────────────────────────────────────────

MERGES = (1, 2, 4)
MERGER_RECIPE = replace(
    COURSE,  # small pictures and few things: what a new decoder learns of in so few steps
    tokens=10**9,  # the same conversations for all, however many tokens they are
    max_rows=16,
)
MERGER_STEPS = 300  # of the new merger alone, on sheets; they are short
MERGER_TASKS = ("describe", "where", "count", "colour", "shape")
SEEN_SIDE = 448  # pixels a side of the picture with which the time to the first token is measured


def seconds_to_first_token(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> float:
    """Median of nine: see a large picture and begin to describe it."""
    sample = scenes.make_sample(scenes.TEST_SEED, "describe", SEEN_SIDE, SEEN_SIDE)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        evaluate.answers(model, processor, [sample], max_new_tokens=1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def teach_merger(trainer: Trainer, processor: Qwen2VLProcessor, seed: int) -> None:
    """The new merger learns alone to name what is in its cells, as towers do in training; then it is frozen, too."""
    images = processor.image_processor
    recipe = replace(MERGER_RECIPE, sheet_cells=MERGER_RECIPE.sheet_cells * 4 // images.merge_size**2)  # same pixels
    for step in range(MERGER_STEPS):
        trainer.sheets_loss(make_sheets(step + 100_000 * seed, images, recipe)).backward()
        trainer.step(recipe.tower_factor * rate_factor(step, step / MERGER_STEPS))
    trainer.model.visual.requires_grad_(False)


def merger(file: Path, seeds: int, samples: int, steps: int) -> Results:
    """The same frozen blocks, pictures, questions and number of steps, but for how many patches one token holds."""
    results = Results(file, ("merge", "task"))
    for seed in range(seeds):
        for merge in MERGES:
            if results.has(merge=merge, seed=seed):
                continue
            processor = Qwen2VLProcessor.from_pretrained("tiny")
            processor.image_processor.merge_size = merge
            trainer = new_trainer(processor, seed, merge)
            teach_merger(trainer, processor, seed)
            tokens = []

            def make(step: int, seed=seed, processor=processor, tokens=tokens) -> tuple[dict, dict]:
                batch = make_round("picture", step + 100_000 * seed, processor, recipe=MERGER_RECIPE)
                tokens.append(len(batch["places"]) / len(batch["tasks"]))
                return batch, {}

            run_steps(trainer, steps, make)
            model = trainer.model.eval()
            world = evaluate.World(
                max_side=MERGER_RECIPE.max_side, max_things=max(MERGER_RECIPE.things), text_share=0.0
            )
            found = evaluate.evaluate(model, processor, {task: (task, world) for task in MERGER_TASKS}, samples)
            seconds = seconds_to_first_token(model, processor)
            for task in MERGER_TASKS:
                results.add(
                    merge=merge,
                    task=task,
                    seed=seed,
                    accuracy=found[task]["accuracy"],
                    tokens=round(statistics.mean(tokens), 2),
                    seconds_to_first_token=round(seconds, 3),
                )
    return results


def draw_merger(results: Results, file: Path) -> None:
    drawing, axes = figure(3)
    for i, merge in enumerate(MERGES):
        bars = [results.series("tokens", "accuracy", merge=merge, task=task) for task in MERGER_TASKS]
        places = [k + (i - 1) * 0.27 for k in range(len(bars))]
        heights, errors = [bar[1][0] for bar in bars], [bar[2][0] for bar in bars]
        axes[0].bar(places, heights, 0.25, yerr=errors, capsize=3, label=f"{merge}×{merge} patches a token")
        for axis, column in ((axes[1], "tokens"), (axes[2], "seconds_to_first_token")):
            (mean,), (error,) = results.series("tokens", column, merge=merge, task="describe")[1:]
            axis.bar(i, mean, 0.6, yerr=error, capsize=3)
            axis.annotate(
                f"{mean:.3g}", (i, mean + error), ha="center", va="bottom", xytext=(0, 4), textcoords="offset points"
            )
    axes[0].set(ylim=(0, 1), title="right answers after the same steps")
    axes[0].set_xticks(range(len(MERGER_TASKS)), MERGER_TASKS)
    axes[0].legend(fontsize=8)
    seen = f"seconds to the first token,\n{SEEN_SIDE}×{SEEN_SIDE} pixels"
    for axis, title in ((axes[1], "visual tokens a picture"), (axes[2], seen)):
        axis.set(title=title)
        axis.set_xticks(range(len(MERGES)), [f"{merge}×{merge}" for merge in MERGES])
        axis.margins(y=0.12)
    drawing.savefig(file, dpi=110)


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
