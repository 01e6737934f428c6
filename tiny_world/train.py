"""Train the bundled checkpoint: our own Qwen2-VL, through its ordinary forward(labels=…), on scenes made as it goes.

    python -m tiny_world.train --out checkpoints/tiny --minutes 90

Stop it whenever you like; the same command goes on where it was (its state is kept beside the checkpoint, in
`<out>_training/`). The learning rate follows the minutes trained, so --minutes is all there is to set.

Four things make so small a model learn to see in so little time on two cores:
  * *training-only* linear heads. One, on the merger's output, has to name what is centred in each 28×28 cell: with the
    answers' loss alone the tower gets almost no signal until the decoder can already count and point. One on the
    decoder's second layer has to say where each cell and its object lie, in cells. The tower cannot know that (its
    rotary positions are relative, and a picture has no marked border); the decoder can, from M-RoPE's distance to
    <|vision_start|>, but what it finds in its attention it must also write down where later layers can read it. One on
    the fourth layer has to say the object's box as a share of the picture, in the digits of the answers. And the same
    head, on the fifth layer at <|box_start|>, has to say the box that is about to be written: of the object asked for;
  * Muon for the hidden matrices (AdamW for the rest), with large batches, since its step costs the same for any batch;
  * several questions a picture, since seeing it is what costs;
  * matrix products in bfloat16 where the CPU is fast in it (steps 1.5 times as fast where this was measured).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import re
import shutil
import time
from collections import defaultdict
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
    render_chat,
)
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.scenes import (
    MAX_TEXT_LENGTH,
    MIN_TEXT_HEIGHT,
    NUM_CELL_CLASSES,
    TEXT_ONLY,
    Scene,
    ask,
    cell_labels,
    make_scene,
    render,
)
from tiny_world.tokenizer import save_tokenizer

# How often each task is asked. A mean over tokens hears little of the ones with short answers: they are asked more.
TASK_WEIGHTS = {
    **{"describe": 3, "where": 7, "count": 16, "colour": 2, "shape": 1, "relation": 1, "what": 0.5, "read": 8},
    "text": 0.2,
}
TURNS = (2, 3, 3, 4)  # questions a picture, drawn for each batch
MIN_SIDE, MAX_SIDE, LARGE_SIDE = 56, 224, 448  # pixels; LARGE_SIDE instead of MAX_SIDE in …
LARGE_SHARE = 0.03  # … this share of the batches
TEXT_SHARE = 0.0  # of the pictures have a text to read
# The curriculum of reading: random strings of any length and size are not learned at all for a very long time.
LONGER_EVERY = 700  # steps: from two characters on, one more …
SMALLER_EVERY = 160  # … and the smallest one pixel less, from 30 down to 12
CELLS_PER_BATCH = 1300  # visual tokens; a batch of small pictures has more rows than one of large pictures
MAX_ROWS = 72
PLACE_WEIGHT, DIGIT_WEIGHT = 2.0, 1.0  # of the other cell heads, beside the first one and the answers
MUON_RATE, ADAMW_RATE = 8e-3, 1e-3
WARMUP_STEPS = 100
DECAY_FROM = 0.35  # of the training time; from there the rates fall to zero, with which accuracy rises most
STATE_EVERY = 3 * 60  # seconds between two copies of the training state


def tiny_config(tokenizer: Qwen2VLTokenizer) -> Qwen2VLConfig:
    """About 3.7 M parameters in the shape of Qwen2-VL."""
    ids = tokenizer.special_ids
    return Qwen2VLConfig(
        Qwen2VLTextConfig(
            vocab_size=tokenizer.bpe.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            # M-RoPE's last pairs, the slow ones, turn with the column. At the released 1e6 they would turn by about a
            # thousandth of a radian over our few columns, and "left to right" could hardly be learned.
            rope_theta=20.0,
            mrope_section=[4, 6, 6],
            max_position_embeddings=32768,
        ),
        Qwen2VLVisionConfig(depth=4, embed_dim=128, num_heads=4, hidden_size=192),
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


# ── Data: one picture size a batch, several questions a picture ─────────────────────────────────────────────────────


def pick_size(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels, not multiples of 28 as a rule; small pictures more often, never longer than 4:1."""
    largest = LARGE_SIDE if rng.random() < LARGE_SHARE else MAX_SIDE
    while True:
        width, height = (int(MIN_SIDE * (largest / MIN_SIDE) ** rng.random()) for _ in range(2))
        if max(width, height) <= 4 * min(width, height):
            return width, height


def ask_several(scene: Scene, wanted: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Up to `wanted` turns (task, question, answer) about a scene: the costly part, seeing it, is paid once."""
    turns = []
    tasks, weights = zip(*TASK_WEIGHTS.items())
    for attempt in range(1000):
        task = rng.choices(tasks, weights)[0]
        turn = rng.choice(list(TEXT_ONLY.items())) if task == "text" else ask(scene, task, rng)
        if turn and turn[0] not in [question for _, question, _ in turns]:
            turns.append((task, *turn))
        if len(turns) == wanted or (turns and attempt > 20):  # of an empty picture there is little to ask
            break
    return turns


def encode_chat(
    tokenizer: Qwen2VLTokenizer, turns: list[tuple[str, str, str]], cells: int, trusted: bool = False
) -> tuple[list, list]:
    """Ids and labels of one conversation about one picture: only the answers, with their <|im_end|>, are learned.

    A box in a question is plain text to our processor and control tokens to the official one, or if `trusted`.
    """
    conversation = []
    for _, question, answer in turns:
        picture = [{"type": "image"}] if not conversation and cells else []
        conversation.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        conversation.append({"role": "assistant", "content": answer})
    ids, labels, answering = [], [], False
    for piece in render_chat(conversation):
        # answers hold real control tokens (boxes)
        new = tokenizer.encode(tokenizer.split(piece) if answering or trusted else [piece])
        new *= cells if piece == "<|image_pad|>" else 1
        ids += new
        labels += new if answering else [-100] * len(new)
        answering = piece == "assistant\n" or (answering and piece != "<|im_end|>")
    return ids, labels


def cell_places(scene: Scene, rows: int, cols: int) -> Tensor:
    """(rows · cols, 10): each cell's column and row; the box of its object in cells; and as a share of the picture.

    The first six are in units of 8 cells, so that all are about 0 to 1. Where no object is centred, boxes are NaN.
    """
    places = torch.full((rows, cols, 10), torch.nan)
    places[:, :, 0], places[:, :, 1] = torch.arange(cols) / 8, torch.arange(rows)[:, None] / 8
    for thing in scene.things:
        row, col = int(thing.cy / scene.height * rows), int(thing.cx / scene.width * cols)
        share = torch.tensor(thing.box) / torch.tensor([scene.width, scene.height] * 2)
        places[row, col, 2:6] = share * torch.tensor([cols, rows] * 2) / 8
        places[row, col, 6:] = share
    return places.flatten(0, 1)


def draw_scene(rng: random.Random, width: int, height: int, step: int) -> Scene:
    """A picture to ask about; what there is to read becomes longer and smaller as training goes on."""
    things = rng.choice((1, 2, 3, 4, 2, 3, 4, 5))
    if rng.random() >= TEXT_SHARE:
        return make_scene(rng, width, height, things, repeat=rng.choice((0.3, 0.8)))
    length = rng.randint(1, min(MAX_TEXT_LENGTH, 2 + step // LONGER_EVERY))
    smallest = max(MIN_TEXT_HEIGHT, 30 - step / SMALLER_EVERY)
    return make_scene(rng, width, height, rng.choice((0, 0, things)), length, smallest_text=smallest)


def make_batch(seed: int, tokenizer: Qwen2VLTokenizer, images: Qwen2VLImageProcessor) -> dict:
    """The tensors of step `seed`, the targets of the cell heads, and which task each row's answers belong to."""
    rng = random.Random(seed)
    width, height = pick_size(rng)
    cells = images.num_image_tokens(height, width)
    new_height, new_width = images.target_size(height, width)
    wanted = rng.choice(TURNS)  # the same in all rows, so that little of the batch is padding
    rows, pixels, grids, tasks, names, places, points = [], [], [], [], [], [], []
    box_start = tokenizer.special_ids["<|box_start|>"]
    for _ in range(min(MAX_ROWS, CELLS_PER_BATCH // cells)):
        scene = draw_scene(rng, width, height, seed)
        turns = ask_several(scene, wanted, rng)
        rows.append(encode_chat(tokenizer, turns, cells, trusted=rng.random() < 0.5))
        boxes = [[int(x) / 1000 for x in re.findall(r"\d+", answer)] for task, _, answer in turns if task == "where"]
        starts = [i for i, label in enumerate(rows[-1][1]) if label == box_start]
        points += [[len(rows) - 1, start, *box] for start, box in zip(starts, boxes, strict=True)]
        tasks.append([task for task, *_ in turns])
        patches, grid = images.patches_of([render(scene)], (new_height, new_width))
        pixels.append(patches)
        grids.append(grid)
        names.append(torch.from_numpy(cell_labels(scene, new_height // 28, new_width // 28)))
        places.append(cell_places(scene, new_height // 28, new_width // 28))
    longest = max(len(ids) for ids, _ in rows)
    return {
        # padding on the right needs no mask: it lies in the future of every real token
        "input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows]),  # (B, S)
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),  # (B, S)
        "pixel_values": torch.cat(pixels),  # (N, 1176)
        "image_grid_thw": torch.tensor(grids),  # (B, 3)
        "cell_names": torch.cat(names),  # (M, classes)
        "cell_places": torch.cat(places),  # (M, 10)
        "points": torch.tensor(points).reshape(-1, 6),  # of each <|box_start|>: row, place in it, the box as shares
        "tasks": tasks,
    }


class Batches(torch.utils.data.IterableDataset):
    """Endless batches, each from its own seed; made in a background process while the model learns."""

    def __init__(self, folder: Path, first_seed: int):
        self.folder, self.first_seed = folder, first_seed

    def __iter__(self):
        torch.set_num_threads(1)
        processor = Qwen2VLProcessor.from_pretrained(self.folder)
        for seed in itertools.count(self.first_seed):
            yield make_batch(seed, processor.tokenizer, processor.image_processor)


# ── One step ────────────────────────────────────────────────────────────────────────────────────────────────────────


class CellHeads(nn.Module):
    """Name and place what each visual token stands for. They exist in training only and are never saved."""

    def __init__(self, model: Qwen2VLForConditionalGeneration):
        super().__init__()
        width = model.config.text_config.hidden_size
        self.names = nn.Linear(width, NUM_CELL_CLASSES)
        nn.init.constant_(self.names.bias, -5.0)  # nearly every class is absent from nearly every cell
        self.places = nn.Linear(width, 6)
        self.shares = nn.Linear(width, 4)
        self.digits = nn.Linear(width, 4 * (11 + 10))  # hundreds 0 to 10 and tens 0 to 9 of four coordinates
        model.visual.merger.register_forward_hook(lambda *call: setattr(self, "seen", call[-1]))  # (M, C)
        model.model.layers[1].register_forward_hook(lambda *call: setattr(self, "second", call[-1]))  # (B, S, C)
        model.model.layers[3].register_forward_hook(lambda *call: setattr(self, "fourth", call[-1]))  # (B, S, C)
        model.model.layers[4].register_forward_hook(lambda *call: setattr(self, "fifth", call[-1]))  # (B, S, C)

    def digit_loss(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Cross-entropy of the first two of three digits: states (n, C), boxes (n, 4) as shares of the picture."""
        thousandths = (boxes * 1000).round().clamp(0, 1000).long()  # (n, 4)
        hundreds, tens = self.digits(states).view(-1, 4, 21).split([11, 10], dim=-1)
        loss = F.cross_entropy(hundreds.flatten(0, 1), thousandths.flatten() // 100)
        return loss + F.cross_entropy(tens.flatten(0, 1), thousandths.flatten() // 10 % 10)

    def point_loss(self, points: Tensor) -> Tensor:
        """How far the fifth layer is from knowing, at each <|box_start|>, the whole box that is to be written."""
        if not len(points):
            return points.sum()
        rows, starts = points[:, :2].long().T
        states = F.layer_norm(self.fifth[rows, starts], self.fifth.shape[-1:])  # (points, C)
        distance = (self.shares(states) - points[:, 2:]).abs().mean(0).sum()
        return PLACE_WEIGHT * distance + DIGIT_WEIGHT * self.digit_loss(states, points[:, 2:])

    def loss(self, is_image: Tensor, names: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of names (binary cross-entropy a cell) and places (distance); and of digits (cross-entropy an object)."""
        loss = F.binary_cross_entropy_with_logits(self.names(self.seen.float()), names, reduction="sum") / len(names)
        width = self.second.shape[-1:]
        second, fourth = (F.layer_norm(x[is_image], width) for x in (self.second, self.fourth))  # states grow; (M, C)
        has_object = ~places[:, -1].isnan()
        if not has_object.any():
            return loss + PLACE_WEIGHT * (self.places(second)[:, :2] - places[:, :2]).abs().mean(0).sum(), loss * 0
        error = torch.cat([self.places(second), self.shares(fourth)], dim=1) - places  # (M, 10), NaN without object
        return loss + PLACE_WEIGHT * error.abs().nanmean(0).sum(), DIGIT_WEIGHT * self.digit_loss(
            fourth[has_object], places[has_object, 6:]
        )


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
    """Muon for the matrices between hidden states, AdamW for embeddings, norms, biases and the cell heads."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    hidden_ids = {id(p) for p in hidden}
    rest = [p for p in itertools.chain(model.parameters(), head.parameters()) if id(p) not in hidden_ids]
    return [
        torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, progress: float) -> float:
    """Warm-up by steps, then constant, then linearly to zero over the rest of the time (`progress` 0 to 1)."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


def exact_by_task(logits: Tensor, labels: Tensor, tasks: list[list[str]]) -> dict[str, list[bool]]:
    """For each answer, whether every token of it was the likeliest one (given the ones before it)."""
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:]).tolist()
    learned = (labels[:, 1:] != -100).tolist()
    result = defaultdict(list)
    for row_right, row_learned, row_tasks in zip(right, learned, tasks):
        runs = [
            list(run)
            for is_answer, run in itertools.groupby(range(len(row_learned)), row_learned.__getitem__)
            if is_answer
        ]
        for task, run in zip(row_tasks, runs, strict=True):
            result[task].append(all(row_right[i] for i in run))
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
    """The loss and the share of right answers over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with table.open() as file:
        lines = list(csv.DictReader(file))
    minutes = [float(line["minutes"]) for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    labels = {"loss": "answers (nats a token)", "cell_loss": "cells: names and places"}
    labels |= {"digit_loss": "cells: digits", "point_loss": "boxes about to be written"}
    for name, label in labels.items():
        points = [(m, float(line[name])) for m, line in zip(minutes, lines) if line[name]]
        left.plot(*zip(*points), label=label) if points else None
    for task in TASK_WEIGHTS:
        if task == "where":  # no box is right to the last of its digits
            continue
        points = [(m, float(line[task])) for m, line in zip(minutes, lines) if line[task]]
        right.plot(*zip(*points), label=task) if points else None
    left.set(yscale="log", xlabel="minutes", title="Training loss")
    right.set(ylim=(0, 1), xlabel="minutes", title="Share of right answers, new scenes")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left")
    figure.savefig(picture, dpi=110)


def train(
    folder: Path, minutes: float, max_steps: int | None = None, start_from: str | None = None, log_every: int = 50
) -> None:
    """Train until `minutes` (or `max_steps`) have been spent in all; goes on from the state beside `folder`, if any.

    A new training starts from the weights of the checkpoint `start_from`, or else from random ones.
    """
    if not hasattr(torch.optim, "Muon"):
        raise SystemExit("Training needs torch.optim.Muon (torch 2.9 or newer).")
    work = folder.with_name(folder.name + "_training")
    work.mkdir(parents=True, exist_ok=True)
    processor = start_folder(work / "checkpoint")
    torch.manual_seed(0)
    in_half = weights_loader.cpu_is_fast_in_bfloat16()
    model = Qwen2VLForConditionalGeneration(tiny_config(processor.tokenizer))
    model.generation_config = json.loads((work / "checkpoint" / "generation_config.json").read_text())
    initialise(model)
    if start_from:
        model.load_state_dict(weights_loader.load_model(start_from, dtype="float32", device="cpu").state_dict())
    head = CellHeads(model)
    optimizers = make_optimizers(model, head)
    step, samples, spent = 0, 0, 0.0  # spent: seconds of training in all runs
    state_file, table = work / "state.pt", work / "training.csv"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step, samples, spent = state["step"], state["samples"], state["spent"]
        for part, saved in zip((model, head, *optimizers), state["parts"], strict=True):
            part.load_state_dict(saved)
        print(f"Going on at step {step}, after {spent / 60:.1f} minutes.", flush=True)
    elif table.exists():
        table.unlink()

    def save_state() -> None:
        parts = [part.state_dict() for part in (model, head, *optimizers)]
        torch.save({"step": step, "samples": samples, "spent": spent, "parts": parts}, work / "state.tmp")
        os.replace(work / "state.tmp", state_file)

    loader = iter(torch.utils.data.DataLoader(Batches(work / "checkpoint", step), batch_size=None, num_workers=1))
    columns = ["step", "minutes", "samples", "loss", "cell_loss", "digit_loss", "point_loss", *TASK_WEIGHTS]
    losses, exact, last, last_saved = [], defaultdict(list), time.monotonic(), time.monotonic()
    while spent < minutes * 60 and step != max_steps:
        batch = next(loader)
        names, places, points, tasks = (batch.pop(key) for key in ("cell_names", "cell_places", "points", "tasks"))
        factor = rate_factor(step, spent / (minutes * 60))
        for optimizer, rate in zip(optimizers, (MUON_RATE, ADAMW_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=in_half), attention_in_float32():
            output = model(**batch)
        cell_loss, digit_loss = head.loss(batch["input_ids"] == model.config.image_token_id, names, places)
        point_loss = head.point_loss(points)
        (output.loss + cell_loss + digit_loss + point_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, samples = step + 1, samples + len(tasks)
        losses.append((output.loss.item(), cell_loss.item(), digit_loss.item(), point_loss.item()))
        for task, results in exact_by_task(output.logits.detach(), batch["labels"], tasks).items():
            exact[task] += results
        now = time.monotonic()
        spent, last = spent + now - last, now
        if step % log_every == 0:
            means = [sum(column) / len(losses) for column in zip(*losses)]
            shares = [round(sum(exact[t]) / len(exact[t]), 4) if exact[t] else "" for t in TASK_WEIGHTS]
            line = [step, round(spent / 60, 2), samples, *(round(mean, 4) for mean in means), *shares]
            with table.open("a", newline="") as file:
                writer = csv.writer(file)
                if file.tell() == 0:
                    writer.writerow(columns)
                writer.writerow(line)
            print("  ".join(f"{name} {value}" for name, value in zip(columns, line)), flush=True)
            losses, exact = [], defaultdict(list)
        if now - last_saved > STATE_EVERY:
            save_state()
            last_saved = now
    save_state()
    weights_loader.save(model.to(torch.bfloat16), processor, folder)  # the dtype of the released files
    shutil.copy(table, folder / "training.csv")
    draw_curves(table, folder / "training.png")
    print(f"Wrote {folder} after {step} steps, {samples} pictures, {spent / 60:.1f} minutes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"), help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=90, help="training time in all, over every run (default 90)")
    parser.add_argument("--start-from", metavar="NAME", help="a checkpoint of this shape to start from, such as tiny")
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, start_from=arguments.start_from)


if __name__ == "__main__":
    main()
