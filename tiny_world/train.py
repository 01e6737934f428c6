"""Train the bundled checkpoint from random weights: our own Qwen2-VL, on scenes made as it goes.

    python -m tiny_world.train --out checkpoints/tiny --minutes 240      all of it
    python -m tiny_world.train --out small --minutes 10 --course         a small world, for a lesson

Stop it whenever you like; the same command goes on where it was (its state is kept beside the checkpoint, in
`<out>_training/`). The learning rate follows the minutes trained, so --minutes is all there is to set.

As in the paper, the vision tower learns first, alone (there from captions, here from naming what is in each cell of
crowded sheets). Then it is frozen, as in the paper's last stage, and the decoder learns from conversations about
pictures, pairs of pictures and clips. What makes so small a model learn to see in so little time on two cores:
  * *training-only* linear heads, which read off what must be known where: see heads.py;
  * Muon for the hidden matrices (AdamW for the rest): see muon.py;
  * several questions a picture, since seeing it is what costs, and conversations of nearly equal length in a round,
    since padding costs as well;
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
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qwen2vl_mini
import weights_loader
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLTextConfig,
    Qwen2VLTokenizer,
    Qwen2VLVisionConfig,
)
from tiny_world.batches import COURSE, FULL, Recipe, Rounds, sheet_targets
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.heads import DecoderHeads, TowerHeads
from tiny_world.muon import Muon
from tiny_world.scenes import COLOURS, SHAPES
from tiny_world.tokenizer import save_tokenizer

ROUNDS_PER_STEP = 2
ANSWER_WEIGHT = 3.0  # of the answers' loss, beside those of the heads
MUON_RATE, ADAMW_RATE = 6e-3, 1e-3
WARMUP_STEPS = 100
DECAY_FROM = 0.2  # of each stage's time; from there the rates fall to zero, with which accuracy rises most
SMOOTHING = 0.1  # of the probability asked of a colour or shape, this much is spread over all colours or all shapes
STATE_EVERY = 3 * 60  # seconds between two copies of the training state

TASKS = (*FULL.tasks, "compare", "motion", "text")
LOSSES = (
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
            # M-RoPE's last pairs, the slow ones, turn with the column. At the released 1e6 they would turn by about a
            # thousandth of a radian over our few columns, and "left to right" could hardly be learned.
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
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(
                module.weight, std=0.02 if isinstance(module, nn.Embedding) else module.weight.shape[1] ** -0.5
            )
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


# ── One step ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def attention_in_float32():
    """Among bfloat16 products, too: on a CPU the backward pass of a bfloat16 attention call is many times slower."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *how, **named) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return usual(q.float(), k.float(), v.float(), *how, **named)

    usual, qwen2vl_mini.attend = qwen2vl_mini.attend, attend
    try:
        yield
    finally:
        qwen2vl_mini.attend = usual


def make_optimizers(model: nn.Module, head: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms, biases and the heads."""
    muon, adamw = [], []
    for name, p in itertools.chain(model.named_parameters(), head.named_parameters(prefix="head")):
        is_hidden = p.ndim == 2 and "embed" not in name and not name.startswith("head")
        (muon if is_hidden else adamw).append(p)
    return [
        Muon(muon, lr=MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(adamw, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, progress: float) -> float:
    """Warm-up by steps, then constant, then to zero over the rest of the time (`progress` 0 to 1).

    As 1 - sqrt (Hägele et al. 2024): soon low, and low for long, since nothing is precise while the rates are high.
    """
    fallen = min(1.0, max(0.0, (progress - DECAY_FROM) / (1 - DECAY_FROM)))
    return min(1.0, (step + 1) / WARMUP_STEPS, 1 - math.sqrt(fallen))


def name_groups(tokenizer: Qwen2VLTokenizer) -> list[Tensor]:
    """Tokens of the colours within an answer, of those at its beginning ("Green."), and of the shapes."""
    words = [f" {name}" for name in COLOURS], [name.capitalize() for name in COLOURS], [f" {name}" for name in SHAPES]
    return [torch.tensor([tokenizer.encode(word) for word in group]).flatten() for group in words]


def answer_loss(logits: Tensor, ids: Tensor, answers: Tensor, groups: Iterable[Tensor] = ()) -> Tensor:
    """Cross-entropy of the answers' tokens: logits (B, S, V), ids (B, S), answers (B, S) their number, -1 for none.

    A mean over tokens would hear little of a count, which is one token, beside a description of thirty; a mean over
    answers would hear little of each word. So an answer of n tokens weighs as much as the square root of n.

    The names of `name_groups` are smoothed (Szegedy et al. 2015) over their group. No star is ever blue in training,
    and without it every step would make "star" mean a little more "not blue", whatever the picture shows.
    """
    learned = answers[:, 1:] >= 0
    wanted, log_p = ids[:, 1:][learned], logits[:, :-1][learned].log_softmax(-1)  # (T), (T, V)
    losses = F.nll_loss(log_p, wanted, reduction="none")  # (T)
    for group in groups:
        named = torch.isin(wanted, group)  # (T), true for n of them
        spread = -log_p[named][:, group].mean(1)  # (n): least when all names of the group are equally likely
        losses[named] = (1 - SMOOTHING) * losses[named] + SMOOTHING * spread
    which = torch.arange(len(ids))[:, None] * (answers.max() + 1) + answers[:, 1:]
    lengths = torch.bincount(which[learned])  # tokens of each answer
    weights = lengths[which[learned]] ** -0.5
    return (losses * weights).sum() / weights.sum()


def exact_by_task(logits: Tensor, ids: Tensor, answers: Tensor, tasks: list[list[str]]) -> dict[str, list[bool]]:
    """For each answer, whether every token of it was the likeliest one (given the ones before it)."""
    wrong = (logits[:, :-1].argmax(-1) != ids[:, 1:]) & (answers[:, 1:] >= 0)
    result = defaultdict(list)
    for row, row_tasks in enumerate(tasks):
        failed = set(answers[row, 1:][wrong[row]].tolist())
        for number, task in enumerate(row_tasks):
            result[task].append(number not in failed)
    return result


# ── Files: the checkpoint, the training state, the curves ───────────────────────────────────────────────────────────


def start_folder(folder: Path) -> Qwen2VLProcessor:
    """Everything of a checkpoint but the weights: tokenizer, template, picture limits, generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    tokenizer = Qwen2VLTokenizer(folder / "tokenizer.json")
    ids = tokenizer.special_ids
    limits = Qwen2VLImageProcessor(min_pixels=4 * 784, max_pixels=256 * 784, video_min_pixels=4 * 784)
    files = {
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": weights_loader.processor_to_dict(limits),
        "video_preprocessor_config.json": weights_loader.processor_to_dict(limits, video=True),
        "generation_config.json": {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "temperature": 0.01,
            "top_p": 0.001,
            "top_k": 1,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Qwen2VLProcessor.from_pretrained(folder)


def draw_curves(table: Path, picture: Path) -> None:
    """The losses and the share of right answers over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with table.open() as file:
        lines = list(csv.DictReader(file))
    minutes = [float(line["minutes"]) for line in lines]
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), constrained_layout=True)
    for axis, names in zip(axes, (LOSSES, ("characters right", "things right"), TASKS)):
        for i, name in enumerate(names):
            values = [float(line.get(name) or "nan") for line in lines]  # a gap where it was not trained
            if name in ("where", "text") or all(map(math.isnan, values)):
                continue  # no box is right to the last of its digits
            style = ("-", "--", ":")[i // 10]  # there are ten colours
            axis.plot(minutes, values, style, label=name.removesuffix(" right"), linewidth=1)
    axes[0].set(yscale="log", xlabel="minutes", title="Losses: answers, and what the heads read off")
    axes[1].set(ylim=(0, 1), xlabel="minutes", title="Read off the tower rightly: new pictures")
    axes[2].set(ylim=(0, 1), xlabel="minutes", title="Share of right answers: new scenes")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    figure.savefig(picture, dpi=110)
    plt.close(figure)


class Table:
    """Means since the last line, and the CSV file of all lines."""

    def __init__(self, file: Path):
        self.file, self.sums, self.counts = file, defaultdict(float), defaultdict(int)

    def add(self, name: str, value: float, count: int = 1) -> None:
        if not math.isnan(value):
            self.sums[name] += value * count
            self.counts[name] += count

    def write(self, start: dict) -> None:
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
        record=lambda name, value, count=1: None,
    ):
        self.model, self.record = model, record  # record is told each loss and each share of right answers
        self.groups = name_groups(tokenizer)
        self.tower_heads, self.heads = TowerHeads(model.config.text_config.hidden_size), DecoderHeads(model)
        self.muon, self.adamw = make_optimizers(model, nn.ModuleList([self.tower_heads, self.heads]))
        self.in_half = weights_loader.cpu_is_fast_in_bfloat16()

    def parts(self) -> dict:
        """All that has a state."""
        return {name: getattr(self, name) for name in ("model", "tower_heads", "heads", "muon", "adamw")}

    def sheets_loss(self, batch: dict) -> Tensor:
        """Of the tower alone, on `batches.make_sheets`: of the visual tokens that the merger puts out."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_half), attention_in_float32():
            seen = self.model.visual(batch["pixel_values"], batch["image_grid_thw"])  # (M, C)
        names, edges, slots = sheet_targets(batch["sheets"], batch["size"], *self.tower_heads.claims(seen))
        for name, share in zip(("characters right", "things right"), self.tower_heads.right(seen, names, slots)):
            self.record(name, share)
        return self.total(self.tower_heads(seen, names, edges, slots))

    def round_loss(self, batch: dict, **inputs) -> Tensor:
        """Of the decoder, on `batches.make_round`; `inputs` for the model's forward(), beside the batch's."""
        ids, answers, config = batch["inputs"]["input_ids"], batch["answers"], self.model.config
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_half), attention_in_float32():
            logits = self.model(**batch["inputs"], **inputs).logits.float()
        is_visual = (ids == config.image_token_id) | (ids == config.video_token_id)
        for task, right in exact_by_task(logits.detach(), ids, answers, batch["tasks"]).items():
            self.record(task, sum(right) / len(right), len(right))
        answers_loss = answer_loss(logits, ids, answers, self.groups)
        self.record("answers", answers_loss.item())
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


def train(
    folder: Path,
    minutes: float,
    recipe: Recipe = FULL,
    start_from: str | None = None,
    max_steps: int | None = None,
    log_every: int = 50,
) -> None:
    """Train until `minutes` (or `max_steps`) have been spent in all; goes on from the state beside `folder`, if any.

    A new training starts from the weights of the checkpoint `start_from`, or else from random ones.
    """
    work = folder.with_name(folder.name + "_training")
    work.mkdir(parents=True, exist_ok=True)
    processor = start_folder(work / "checkpoint")
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(tiny_config(processor.tokenizer))
    model.generation_config = json.loads((work / "checkpoint" / "generation_config.json").read_text())
    initialise(model)
    if start_from:
        model.load_state_dict(weights_loader.load_model(start_from, dtype="float32", device="cpu").state_dict())
    state_file, table = work / "state.pt", Table(work / "training.csv")
    trainer = Trainer(model, processor.tokenizer, table.add)
    state = {"tower_steps": 0, "steps": 0, "samples": 0, "spent": 0.0}  # spent: seconds of training in all runs
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        state = {key: saved[key] for key in state}
        for name, part in trainer.parts().items():
            part.load_state_dict(saved[name])
        print(f"Going on at step {state['steps']}, after {state['spent'] / 60:.1f} minutes.", flush=True)
    elif table.file.exists():
        table.file.unlink()

    def save_state() -> None:
        torch.save(state | {name: part.state_dict() for name, part in trainer.parts().items()}, work / "state.tmp")
        os.replace(work / "state.tmp", state_file)

    def log() -> None:
        start = {"step": state["tower_steps"] + state["steps"], "minutes": round(state["spent"] / 60, 2)}
        table.write(start | {"conversations": state["samples"]})

    last = last_saved = time.monotonic()
    seconds, tower_seconds = minutes * 60, minutes * 60 * recipe.tower_share
    for count, begin, end in (("tower_steps", 0, tower_seconds), ("steps", tower_seconds, seconds)):
        alone = count == "tower_steps"  # the tower
        if state["spent"] >= end or (alone and state["steps"]):
            continue
        model.visual.requires_grad_(alone)
        rounds = Rounds(work / "checkpoint", state[count] * (1 if alone else ROUNDS_PER_STEP), alone, recipe)
        # On two cores the background is no gain: each product's two threads wait for the one that it has interrupted.
        ahead = {"num_workers": 1, "prefetch_factor": 4} if torch.get_num_threads() > 2 else {}
        loader = iter(torch.utils.data.DataLoader(rounds, batch_size=None, **ahead))
        while state["spent"] < end and state[count] != max_steps:
            if alone:
                trainer.sheets_loss(next(loader)).backward()
            else:
                for batch in itertools.islice(loader, ROUNDS_PER_STEP):
                    (trainer.round_loss(batch) / ROUNDS_PER_STEP).backward()
                    state["samples"] += len(batch["tasks"])
            factor = rate_factor(state[count], (state["spent"] - begin) / (end - begin))
            trainer.step(factor * recipe.tower_factor if alone else factor)
            state[count] += 1
            now = time.monotonic()
            state["spent"], last = state["spent"] + now - last, now
            if state[count] % log_every == 0:
                log()
            if now - last_saved > STATE_EVERY:
                save_state()
                last_saved = now
        del loader
    if table.sums:
        log()
    save_state()
    weights_loader.save(model.to(torch.bfloat16), processor, folder)  # the dtype of the released files
    shutil.copy(table.file, folder / "training.csv")
    draw_curves(table.file, folder / "training.png")
    print(
        f"Wrote {folder} after {state['tower_steps']} steps of the tower and {state['steps']} of all, "
        f"{state['samples']} conversations, {state['spent'] / 60:.1f} minutes."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"), help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=240, help="training time in all, over every run (default 240)")
    parser.add_argument("--start-from", metavar="NAME", help="a checkpoint of this shape to start from, such as tiny")
    parser.add_argument("--course", action="store_true", help="small pictures, one to three objects, five tasks only")
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, COURSE if arguments.course else FULL, arguments.start_from)


if __name__ == "__main__":
    main()
