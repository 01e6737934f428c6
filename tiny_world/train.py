"""Train the bundled checkpoint from random weights: our own Qwen2-VL, on scenes made during training.

    python -m tiny_world.train --out checkpoints/tiny --minutes 240      the whole world
    python -m tiny_world.train --out small --minutes 10 --course         a small world, for a lesson

Stop it whenever you like: the same command goes on where it stopped (the training state is kept beside the checkpoint,
in `<out>_training/`). The learning rate follows the minutes trained, so --minutes is all there is to set.

As in the paper, the vision tower learns first, alone (there from captions, here from naming what is in each cell of
crowded sheets). Then it is frozen, as in the paper's last stage, and the decoder learns from conversations about
pictures, pairs of pictures and clips. Four things let so small a model learn to see in so little time on two cores:
  * *training-only* linear heads, which read off what must be known where: see heads.py;
  * Muon for the hidden matrices (AdamW for the rest): see muon.py;
  * several questions about each picture, since seeing it costs most, and conversations of nearly equal length in a
    round, since padding costs, too;
  * matrix products in bfloat16 where the CPU is fast in it (steps 1.5 times as fast where this was measured).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weights_loader
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLTextConfig,
    Qwen2VLTokenizer,
    Qwen2VLVisionConfig,
    sdpa_attention,
)
from tiny_world.batches import COURSE, FULL, Recipe, Rounds, sheet_targets
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.heads import DecoderHeads, TowerHeads
from tiny_world.help_text import fitted
from tiny_world.muon import Muon
from tiny_world.scenes import COLOURS, MAX_TEXT_LENGTH, SHAPES
from tiny_world.threads import Pace, choose_threads, stage_name
from tiny_world.tokenizer import save_tokenizer

ROUNDS_PER_STEP = 2
ANSWER_WEIGHT = 3.0  # of the answers' loss, relative to those of the heads
MUON_RATE = 6e-3
ADAMW_RATE = 1e-3
WARMUP_STEPS = 100
DECAY_FROM = 0.2  # of each stage's time: from there on the rates fall to zero, during which accuracy rises most
SMOOTHING = 0.1  # the share of a colour's (or shape's) target probability that is spread over all colours (or shapes)
HEADS_FIRST = 150  # steps of a training that starts from a checkpoint, in which only the new heads learn
STATE_EVERY = 3 * 60  # seconds between two copies of the training state

TASKS = (*FULL.tasks, "compare", "motion", "text", "absent", "unknown")
LOSSES = (  # their names in the table
    *("answers", "names", "edges", "characters", "places", "first", "sizes", "moves", "changes", "matches", "partners"),
    *("found", "known", "rest", "left", "coming", "counts", "events", "pairs", "beside", "relations"),
)


def tiny_config(tokenizer: Qwen2VLTokenizer, layers: int = 8, merge_size: int = 2) -> Qwen2VLConfig:
    """About 4.6 M parameters (of eight layers) in the shape of Qwen2-VL."""
    ids = tokenizer.special_ids
    return Qwen2VLConfig(
        Qwen2VLTextConfig(
            vocab_size=tokenizer.bpe.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            # M-RoPE's last and slowest pairs turn with the column. At the released theta of 1e6 they would turn by
            # about a thousandth of a radian over our few columns, and "left to right" could hardly be learned.
            rope_theta=20.0,
            mrope_section=[4, 6, 6],
            max_position_embeddings=32768,
        ),
        Qwen2VLVisionConfig(depth=4, embed_dim=128, num_heads=4, hidden_size=192, spatial_merge_size=merge_size),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def initialise(model: nn.Module) -> None:
    """Small normal weights, zero biases; the patch embedding keeps PyTorch's own, which suits pixels."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.reset_parameters()
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ── One step ────────────────────────────────────────────────────────────────────────────────────────────────────────


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention in float32 among products in bfloat16, whose backward pass on a CPU is many times slower."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention(q.float(), k.float(), v.float(), causal)


def mixed_precision(in_half: bool):
    """Matrix products in bfloat16 if `in_half`, all else in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=in_half)


def make_optimizers(model: nn.Module, heads: nn.Module) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms, biases and the heads."""
    hidden, others = [], []
    for name, p in model.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            hidden.append(p)
        else:
            others.append(p)
    others += heads.parameters()

    muon = Muon(hidden, lr=MUON_RATE, weight_decay=0.02)
    adamw = torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return muon, adamw


def rate_factor(step: int, progress: float) -> float:
    """What the rates are multiplied by: warm-up by steps, then 1, then to zero over the rest of the time (`progress`
    is its share, 0 to 1).

    The fall is 1 - sqrt (Hägele et al. 2024): soon low, and low for long, since nothing is precise while the rates are
    high.
    """
    fallen = min(1.0, max(0.0, (progress - DECAY_FROM) / (1 - DECAY_FROM)))
    return min(1.0, (step + 1) / WARMUP_STEPS, 1 - math.sqrt(fallen))


def name_groups(tokenizer: Qwen2VLTokenizer) -> list[Tensor]:
    """Tokens of the colours within an answer, of the colours at its beginning ("Green."), and of the shapes."""
    words = (
        [f" {name}" for name in COLOURS],
        [name.capitalize() for name in COLOURS],
        [f" {name}" for name in SHAPES],
    )
    return [torch.tensor([tokenizer.encode(word) for word in group]).flatten() for group in words]


def answer_loss(logits: Tensor, ids: Tensor, answers: Tensor, groups: Iterable[Tensor] = ()) -> Tensor:
    """Cross-entropy of the answers' tokens: logits (B, S, V), ids (B, S), and the number of each token's answer in its
    row, answers (B, S), -1 for none.

    A mean over tokens would give a count, which is one token, little weight beside a description of thirty; a mean over
    answers would give little weight to each word. So an answer of n tokens weighs as much as the square root of n.

    The names of `name_groups` are smoothed (Szegedy et al. 2015) over their group. No star is ever blue in training, so
    without smoothing every step would make "star" mean a little more "not blue", whatever the picture shows.
    """
    learned = answers[:, 1:] >= 0  # (B, S-1), true for T tokens
    wanted = ids[:, 1:][learned]  # (T)
    log_p = logits[:, :-1][learned].log_softmax(-1)  # (T, V)
    losses = F.nll_loss(log_p, wanted, reduction="none")  # (T)

    for group in groups:
        named = torch.isin(wanted, group)  # (T), true for n of them
        spread = -log_p[named][:, group].mean(1)  # (n): least when all names of the group are equally likely
        losses[named] = (1 - SMOOTHING) * losses[named] + SMOOTHING * spread

    number = torch.arange(len(ids))[:, None] * (answers.max() + 1) + answers[:, 1:]  # (B, S-1): no two answers alike
    lengths = torch.bincount(number[learned])  # tokens of each answer
    weights = lengths[number[learned]] ** -0.5  # (T)
    return (losses * weights).sum() / weights.sum()


def exact_by_task(logits: Tensor, ids: Tensor, answers: Tensor, tasks: list[list[str]]) -> dict[str, list[bool]]:
    """For each answer, by task, whether every one of its tokens was the likeliest (given those before it)."""
    wrong = (logits[:, :-1].argmax(-1) != ids[:, 1:]) & (answers[:, 1:] >= 0)  # (B, S-1)
    result = defaultdict(list)
    for row, row_tasks in enumerate(tasks):
        failed = set(answers[row, 1:][wrong[row]].tolist())
        for number, task in enumerate(row_tasks):
            result[task].append(number not in failed)
    return result


# ── Files: the checkpoint, the training state, the curves ───────────────────────────────────────────────────────────


def start_folder(folder: Path) -> Qwen2VLProcessor:
    """Write everything of a checkpoint but the weights: tokenizer, template, picture limits, generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)

    limits = Qwen2VLImageProcessor(min_pixels=4 * 784, max_pixels=256 * 784, video_min_pixels=4 * 784)
    files = {
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": weights_loader.processor_to_dict(limits),
        "video_preprocessor_config.json": weights_loader.processor_to_dict(limits, video=True),
        "generation_config.json": generation_settings(Qwen2VLTokenizer(folder / "tokenizer.json")),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    return Qwen2VLProcessor.from_pretrained(folder)


def generation_settings(tokenizer: Qwen2VLTokenizer) -> dict:
    """The content of generation_config.json: those of the released checkpoints, which amount to greedy generation."""
    ids = tokenizer.special_ids
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
    }


def draw_curves(table: Path, picture: Path) -> None:
    """What a reader can use: the loss of the answers, what the tower sees, and the share of right answers by task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with table.open() as file:
        lines = list(csv.DictReader(file))
    minutes = [float(line["minutes"]) for line in lines]

    figure, axes = plt.subplots(1, 3, figsize=(15, 5), width_ratios=(2, 2, 3), constrained_layout=True)
    tasks = [task for task in TASKS if task not in ("where", "text")]  # hardly ever right, or wrong, to the last letter
    for axis, names in zip(axes, (("answers",), ("characters right", "things right"), tasks)):
        for i, name in enumerate(names):
            values = [float(line.get(name) or "nan") for line in lines]  # a gap where it was not trained
            style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}  # there are ten colours
            axis.plot(minutes, values, **style, linewidth=0.6, alpha=0.3)
            axis.plot(minutes, smooth(values), **style, linewidth=1.6, label=name.removesuffix(" right"))
        label_curves(axis)
        axis.grid(alpha=0.3)
        axis.set(xlabel="minutes", xlim=(0, max(minutes)))

    axes[0].set(ylim=(0, None), title="Loss of the answers")
    axes[1].set(ylim=(0, 1), title="The tower alone: what can be read off it")
    axes[2].set(ylim=(0, 1), title="Share of right answers, new scenes")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def smooth(values: list[float], window: int = 7) -> list[float]:
    """Means of neighbours; what is NaN stays so, and counts for none."""
    result = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - window // 2) : i + window // 2 + 1] if not math.isnan(v)]
        result.append(value if math.isnan(value) else sum(near) / len(near))
    return result


def label_curves(axis, gap: float = 0.045) -> None:
    """Write the name of each thick curve beside its last point, `gap` of the height apart at least; no legend."""
    curves = [line for line in axis.lines if not line.get_label().startswith("_")]
    ends = {}  # curve → its last point
    for curve in curves:
        points = [(x, y) for x, y in zip(*curve.get_data()) if not math.isnan(y)]
        if points:
            ends[curve] = points[-1]

    if len(ends) == 1:  # the title says what it is
        return
    place = math.inf  # of the last label, from above, as a share of the height
    for curve, (x, y) in sorted(ends.items(), key=lambda entry: -entry[1][1]):
        place = min(y, place - gap)
        axis.annotate(
            f"{curve.get_label()} {y:.0%}",
            (x, y),
            (1.03, place),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            color=curve.get_color(),
            arrowprops={"arrowstyle": "-", "color": curve.get_color(), "linewidth": 0.7, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


class Table:
    """Means since the last line, and the CSV file of all lines."""

    def __init__(self, file: Path):
        self.file = file
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Take the mean of `count` values into account."""
        if not math.isnan(value):
            self.sums[name] += value * count
            self.counts[name] += count

    def write(self, start: dict) -> None:
        """Append and print a line that begins with `start`; then the means begin anew."""
        columns = [*start, *LOSSES, "characters right", "things right", *TASKS]
        means = {name: round(self.sums[name] / count, 4) for name, count in self.counts.items()}
        line = start | means

        with self.file.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(line)
        print("  ".join(f"{name} {line[name]}" for name in columns if name in line), flush=True)

        self.sums.clear()
        self.counts.clear()


class Trainer:
    """A model with its heads and optimizers: losses of a batch, and steps down their gradient."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        tokenizer: Qwen2VLTokenizer,
        record: Callable[..., None] = lambda name, value, count=1: None,
    ):
        self.model = model
        self.model.attention = attention_in_float32
        self.record = record  # is told each loss, and each share of right answers with their count
        self.groups = name_groups(tokenizer)
        self.tower_heads = TowerHeads(model.config.text_config.hidden_size)
        self.heads = DecoderHeads(model)
        self.muon, self.adamw = make_optimizers(model, nn.ModuleList([self.tower_heads, self.heads]))
        self.in_half = weights_loader.cpu_is_fast_in_bfloat16()

    def parts(self) -> dict:
        """Everything that has a state."""
        return {name: getattr(self, name) for name in ("model", "tower_heads", "heads", "muon", "adamw")}

    def sheets_loss(self, batch: dict) -> Tensor:
        """The tower's loss on `batches.make_sheets`: what its heads read off the visual tokens."""
        with mixed_precision(self.in_half):
            seen = self.model.visual(batch["pixel_values"], batch["image_grid_thw"], self.model.attention)  # (M, C)
        names, edges, slots = sheet_targets(batch["sheets"], batch["size"], *self.tower_heads.claims(seen))
        characters_right, things_right = self.tower_heads.right(seen, names, slots)
        self.record("characters right", characters_right)
        self.record("things right", things_right)
        return self.total(self.tower_heads(seen, names, edges, slots))

    def round_loss(self, batch: dict, **inputs) -> Tensor:
        """The decoder's loss on `batches.make_round`; `inputs` go to the model's forward(), beside the batch's own."""
        ids, answers = batch["inputs"]["input_ids"], batch["answers"]  # (B, S) each
        with mixed_precision(self.in_half):
            logits = self.model(**batch["inputs"], **inputs).logits.float()  # (B, S, V)

        for task, right in exact_by_task(logits.detach(), ids, answers, batch["tasks"]).items():
            self.record(task, sum(right) / len(right), len(right))
        answers_loss = answer_loss(logits, ids, answers, self.groups)
        self.record("answers", answers_loss.item())

        if "size" not in batch:  # a round without targets for the heads
            return ANSWER_WEIGHT * answers_loss
        config = self.model.config
        is_visual = (ids == config.image_token_id) | (ids == config.video_token_id)  # (B, S)
        return ANSWER_WEIGHT * answers_loss + self.total(self.heads(is_visual, batch))

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Their sum; each is recorded."""
        for name, loss in losses.items():
            self.record(name, loss.item())
        return sum(losses.values())

    def step(self, factor: float) -> None:
        """One step of both optimizers with their rates times `factor`."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in ((self.muon, MUON_RATE), (self.adamw, ADAMW_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()


# ── A training, from the first run to the checkpoint ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """A part of the training: the tower alone on sheets, or the decoder on conversations. Times are in seconds, counted
    over all stages."""

    is_tower: bool
    begin: float
    end: float


def stages_of(recipe: Recipe, minutes: float) -> list[Stage]:
    """The tower's stage, then the decoder's."""
    seconds = minutes * 60
    tower_seconds = seconds * recipe.tower_share
    return [Stage(True, 0, tower_seconds), Stage(False, tower_seconds, seconds)]


@dataclass
class Progress:
    """What has been done so far, in all runs."""

    tower_steps: int = 0
    steps: int = 0  # of the decoder
    samples: int = 0  # conversations
    spent: float = 0.0  # seconds

    def steps_of(self, stage: Stage) -> int:
        return self.tower_steps if stage.is_tower else self.steps

    def count_step(self, stage: Stage, seconds: float) -> None:
        if stage.is_tower:
            self.tower_steps += 1
        else:
            self.steps += 1
        self.spent += seconds


def new_model(processor: Qwen2VLProcessor, start_from: str | None) -> Qwen2VLForConditionalGeneration:
    """With the weights of the checkpoint `start_from`, or else with random ones, always the same."""
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(tiny_config(processor.tokenizer))
    model.generation_config = generation_settings(processor.tokenizer)
    initialise(model)
    if start_from is not None:
        model.load_state_dict(weights_loader.load_model(start_from, dtype="float32", device="cpu").state_dict())
    return model


class Training:
    """A training whose state is kept in a folder, so that another run can go on with it."""

    def __init__(self, work: Path, recipe: Recipe, start_from: str | None = None):
        work.mkdir(parents=True, exist_ok=True)
        self.recipe = recipe
        self.start = work / "checkpoint"  # everything but the weights
        self.state_file = work / "state.pt"
        self.table = Table(work / "training.csv")
        self.processor = start_folder(self.start)
        self.trainer = Trainer(new_model(self.processor, start_from), self.processor.tokenizer, self.table.add)
        self.progress = Progress()
        self.heads_first = HEADS_FIRST if start_from is not None else 0  # steps in which the model rests
        self.resume()
        self.last_step = time.monotonic()  # when it ended
        self.last_saved = self.last_step

    def resume(self) -> None:
        """Go on from the state in the folder; without one, begin a new table."""
        if not self.state_file.exists():
            self.table.file.unlink(missing_ok=True)
            return
        saved = torch.load(self.state_file, weights_only=True)
        self.progress = Progress(**{field.name: saved[field.name] for field in fields(Progress)})
        for name, part in self.trainer.parts().items():
            part.load_state_dict(saved[name])
        print(f"Going on at step {self.progress.steps}, after {self.progress.spent / 60:.1f} minutes.", flush=True)

    def save(self) -> None:
        """Write the state under another name first: a crash while writing leaves the last one."""
        parts = {name: part.state_dict() for name, part in self.trainer.parts().items()}
        temporary = self.state_file.with_suffix(".tmp")
        torch.save(asdict(self.progress) | parts, temporary)
        os.replace(temporary, self.state_file)
        self.last_saved = self.last_step

    def log(self) -> None:
        """Write a line of the table."""
        step = self.progress.tower_steps + self.progress.steps
        minutes = round(self.progress.spent / 60, 2)
        self.table.write({"step": step, "minutes": minutes, "conversations": self.progress.samples})

    def batches_from(self, stage: Stage) -> Iterator[dict]:
        """Endless batches of a stage, from the first one that has not been trained on."""
        done = self.progress.tower_steps if stage.is_tower else self.progress.steps * ROUNDS_PER_STEP
        batches = Rounds(self.start, done, stage.is_tower, self.recipe)
        # On two cores a background process is no gain: each product's two threads wait for the one it has interrupted.
        ahead = {"num_workers": 1, "prefetch_factor": 4} if torch.get_num_threads() > 2 else {}
        return iter(torch.utils.data.DataLoader(batches, batch_size=None, **ahead))

    def run(self, stage: Stage, max_steps: int | None, log_every: int) -> None:
        """Train until the stage's time is over, or it has had `max_steps`."""
        progress = self.progress
        self.trainer.model.visual.requires_grad_(stage.is_tower)
        batches = self.batches_from(stage)
        pace = Pace(stage_name(self.recipe is COURSE, stage.is_tower))

        while progress.spent < stage.end and progress.steps_of(stage) != max_steps:
            self.step(stage, batches)

            now = time.monotonic()
            progress.count_step(stage, now - self.last_step)
            self.last_step = now
            pace.count()

            if progress.steps_of(stage) % log_every == 0:
                self.log()
            if now - self.last_saved > STATE_EVERY:
                self.save()

    def step(self, stage: Stage, batches: Iterator[dict]) -> None:
        """One step on the next batch of sheets, or on the next rounds."""
        rests = not stage.is_tower and self.progress.steps < self.heads_first
        self.trainer.model.model.requires_grad_(not rests)
        if stage.is_tower:
            self.trainer.sheets_loss(next(batches)).backward()
        else:
            for batch in itertools.islice(batches, ROUNDS_PER_STEP):
                loss = self.trainer.round_loss(batch) / ROUNDS_PER_STEP
                if loss.requires_grad:  # not where only the heads learn and the round has nothing for them
                    loss.backward()
                self.progress.samples += len(batch["tasks"])

        share = (self.progress.spent - stage.begin) / (stage.end - stage.begin)
        factor = self.recipe.rate * rate_factor(self.progress.steps_of(stage) - self.heads_first, share)
        if rests:
            factor = 1.0
        if stage.is_tower:
            factor *= self.recipe.tower_factor
        self.trainer.step(factor)

    def save_checkpoint(self, folder: Path) -> None:
        """Write the model with its curves, for good."""
        model = self.trainer.model.to(torch.bfloat16)  # the dtype of the released files
        weights_loader.save(model, self.processor, folder)
        shutil.copy(self.table.file, folder / "training.csv")
        draw_curves(self.table.file, folder / "training.png")


def train(
    folder: Path,
    minutes: float,
    recipe: Recipe = FULL,
    start_from: str | None = None,
    max_steps: int | None = None,
    log_every: int = 50,
) -> None:
    """Train until `minutes` (or `max_steps` a stage) have been spent in all; goes on from the state beside `folder`.

    A new training starts from the weights of the checkpoint `start_from`, or else from random ones.
    """
    training = Training(folder.with_name(folder.name + "_training"), recipe, start_from)
    progress = training.progress
    for stage in stages_of(recipe, minutes):
        is_over = progress.spent >= stage.end or (stage.is_tower and progress.steps > 0)
        if not is_over:
            training.run(stage, max_steps, log_every)

    if training.table.sums:
        training.log()
    training.save()
    training.save_checkpoint(folder)
    print(
        f"Wrote {folder} after {progress.tower_steps} steps of the tower and {progress.steps} of all, "
        f"{progress.samples} conversations, {progress.spent / 60:.1f} minutes."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=fitted(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"), help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=240, help="training time in all, over every run (default 240)")
    parser.add_argument("--start-from", metavar="NAME", help="a checkpoint of this shape to start from, such as tiny")
    parser.add_argument("--decoder-only", action="store_true", help="with --start-from: its tower stays as it is")
    parser.add_argument(
        "--rate", type=float, default=1.0, metavar="X", help="multiplies the learning rates (default 1)"
    )
    parser.add_argument("--course", action="store_true", help="small pictures, one to three objects, five tasks only")
    arguments = parser.parse_args()
    if arguments.decoder_only and arguments.start_from is None:
        parser.error("--decoder-only needs a tower that has learned already; add --start-from.")

    choose_threads()
    recipe = replace(COURSE if arguments.course else FULL, rate=arguments.rate)
    if arguments.decoder_only:
        recipe = replace(recipe, tower_share=0.0, first_length=MAX_TEXT_LENGTH)
    train(arguments.out, arguments.minutes, recipe, arguments.start_from)


if __name__ == "__main__":
    main()
