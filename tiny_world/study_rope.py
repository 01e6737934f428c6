"""M-RoPE against 1-D RoPE on clips longer than those trained on: who fails there, and at which positions.

    python -m tiny_world.studies rope

The one question is "Which way does it move?", about clips of 84×84 pixels with one or two things, of which one moves.
Each movement is drawn as 16 stills at even distances. A clip of 2n frames shows n of them, each for two frames, from
the first to the last. So every movement comes in every length, forwards and backwards, and no visual token (of two
frames, here alike) shows it by itself: stills must be compared, and which of them comes first must be known.

The bundled tower is frozen and sees each pair of frames apart. So every still is seen once, and all decoders learn from
the same visual tokens, in the same order. They differ in their positions, or in the lengths that they learn from.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLTokenizer
from tiny_world import scenes
from tiny_world.batches import render_all, what_changed
from tiny_world.study_results import Results, figure
from tiny_world.train import Trainer, initialise, mixed_precision, rate_factor, tiny_config

SIDE = 84  # pixels
ROWS = COLS = SIDE // 28  # of visual tokens
STILLS = 16  # of a movement
MOVEMENTS = 3000  # to learn from, each forwards and backwards
QUESTION = "Which way does it move?"
OPPOSITES = {"down": "up", "left": "right", "right": "left", "up": "down"}
ANSWERS = tuple(OPPOSITES)

LAYERS = 3
CLIPS = 32  # of a training step, all of one length
ASKED_AT_ONCE = 200  # held-out clips
LOOK_EVERY = 100  # steps between two looks at held-out clips of the trained lengths
FLAT = 0.02  # a curve is flat from the step after which it stays this near to its end
TEST_FRAMES = (4, 6, 8, 12, 16, 24, 32)


# ── Positions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Way:
    """Where the tokens of a clip stand, and the lengths of the clips to learn from."""

    theta: float = 20.0
    one_axis: bool = False  # 1-D RoPE: the running number of the token, on all three axes
    time_step: float = 1.0  # positions from one pair of frames to the next
    fitted: bool = False  # the last pair of frames stands where that of 8 frames does, however many there are
    time_last: bool = False  # time has the four slowest pairs of channels, not the four fastest
    frames: tuple[int, ...] = (4, 6, 8)
    apart: int = 0  # in training, the question stands up to so many positions further on than it has to

    @property
    def longest(self) -> int:
        """Pairs of frames in the longest clip to learn from."""
        return max(self.frames) // 2


WAYS = {
    "M-RoPE, theta 20": Way(),
    "M-RoPE, theta 1000": Way(1000.0),
    "M-RoPE, theta 10000": Way(10_000.0),
    "1-D RoPE, theta 20": Way(one_axis=True),
    "1-D RoPE, theta 1000": Way(1000.0, one_axis=True),
    "1-D RoPE, theta 10000": Way(10_000.0, one_axis=True),
    "M-RoPE, time steps of 1/4": Way(time_step=0.25),
    "M-RoPE, time fitted": Way(fitted=True),
    "M-RoPE, time in the slowest pairs": Way(time_last=True),
    "M-RoPE, 4 to 16 frames": Way(frames=(4, 6, 8, 12, 16)),
    # Apart by up to what 32 frames have more than 8: then the first still is no further off in the test.
    "M-RoPE, question apart": Way(apart=12),
    "1-D RoPE, question apart": Way(one_axis=True, apart=12 * ROWS * COLS),
}

# How a trained decoder is asked about longer clips. Squeezed (position interpolation): the clip's positions fill the
# range that was trained on, and the question follows at once. The others squeeze a part only, to find what does the
# harm: the clip far in time is squeezed in height and width alone, where it is the question that would stand further
# away; or conversely; or only the question stands as far away, on all axes, as behind a clip that is not squeezed.
AS_TRAINED, SQUEEZED = "as trained", "squeezed"
FAR_TIME, FAR_SIDES, FAR_QUESTION = "far in time only", "far in height and width only", "question far only"

BASE = "M-RoPE, theta 20"
LOOKED_INTO = (BASE, "M-RoPE, question apart")


def readings_of(name: str) -> tuple[str, ...]:
    """The positions to ask the decoders of a way with, in the test."""
    if WAYS[name].fitted:
        return (AS_TRAINED,)  # nothing is left to squeeze
    if name in LOOKED_INTO:
        return (AS_TRAINED, SQUEEZED, FAR_TIME, FAR_SIDES, FAR_QUESTION)
    return (AS_TRAINED, SQUEEZED)


def positions_of(way: Way, pairs: int, words: int, reading: str = AS_TRAINED) -> Tensor:
    """(3, S) of <|vision_start|>, a clip of so many pairs of frames, and `words` tokens after it."""
    if way.one_axis:
        return line_positions(way, pairs, words, reading)

    step = (4 - 1) / (pairs - 1) if way.fitted else way.time_step
    short = step * min(1.0, (way.longest - 1) / (pairs - 1))
    clip_step = step if reading in (AS_TRAINED, FAR_TIME) else short
    t_step = step if reading in (AS_TRAINED, FAR_TIME, FAR_QUESTION) else short
    side_step = step if reading in (AS_TRAINED, FAR_SIDES, FAR_QUESTION) else short

    t = torch.arange(pairs).repeat_interleave(ROWS * COLS) * clip_step
    h = torch.arange(ROWS).repeat_interleave(COLS).repeat(pairs)
    w = torch.arange(COLS).repeat(pairs * ROWS)
    clip = 1 + torch.stack([t, h, w])  # (3, cells)

    # The question resumes one further than the furthest cell; on which axis that is, the clip's length decides.
    ends = [max(step * (pairs - 1), ROWS - 1, COLS - 1) for step in (t_step, side_step, side_step)]
    question = 2 + torch.tensor(ends)[:, None] + torch.arange(words)  # (3, words)
    axes = torch.cat([torch.zeros(3, 1), clip, question], dim=1)
    return axes[[1, 2, 0]] if way.time_last else axes


def line_positions(way: Way, pairs: int, words: int, reading: str) -> Tensor:
    """`positions_of` for 1-D RoPE."""
    cells = pairs * ROWS * COLS
    step = min(1.0, way.longest / pairs) if reading == SQUEEZED else 1.0
    clip = 1 + step * torch.arange(cells)
    question = 1 + step * cells + torch.arange(words)
    return torch.cat([torch.zeros(1), clip, question]).expand(3, -1)


# ── Movements ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Movements:
    """Visual tokens (movements, STILLS, cells, C) and directions (movements), indices of ANSWERS."""

    seen: Tensor
    directions: Tensor

    def clips(self, which: Tensor, backwards: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, cells of all pairs, C) and answers (B) of the movements `which`, some `backwards` (B)."""
        stills = (torch.arange(pairs) * (STILLS - 1) / (pairs - 1)).round().long()  # (pairs), 0 to STILLS - 1
        shown = torch.where(backwards[:, None], stills.flip(0), stills)  # (B, pairs)
        opposite = torch.tensor([ANSWERS.index(OPPOSITES[answer]) for answer in ANSWERS])
        directions = self.directions[which]
        answers = torch.where(backwards, opposite[directions], directions)
        return self.seen[which[:, None], shown].flatten(1, 2), answers


def draw_movement(seed: int) -> tuple[list[scenes.Scene], int]:
    """The stills of a movement, and its direction."""
    rng = random.Random(f"movement/{seed}")
    while True:
        clip = scenes.make_clip(rng, SIDE, SIDE, STILLS, 2, "train")
        if clip is None:
            continue
        event, _ = what_changed(clip[0])
        if event in ANSWERS:
            return clip[0], ANSWERS.index(event)


@torch.no_grad()
def see_movements(first: int, count: int, processor: Qwen2VLProcessor) -> Movements:
    """The movements of `count` seeds, as the bundled tower sees them."""
    tower = weights_loader.load_model("tiny", dtype="float32", device="cpu").visual
    seen, directions = [], []
    for seed in range(first, first + count):
        stills, direction = draw_movement(seed)
        pictures = [processor.image_processor.patches_of([image], (SIDE, SIDE)) for image in render_all(stills)]
        grids = torch.tensor([grid for _, grid in pictures])
        with mixed_precision(weights_loader.cpu_is_fast_in_bfloat16()):
            tokens = tower(torch.cat([patches for patches, _ in pictures]), grids)  # (STILLS · cells, C)
        seen.append(tokens.view(STILLS, ROWS * COLS, -1).bfloat16())
        directions.append(direction)
    return Movements(torch.stack(seen), torch.tensor(directions))


# ── Decoders ────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_decoder(way: Way, seed: int, tokenizer: Qwen2VLTokenizer) -> Trainer:
    """A small decoder with random weights, the same for every way; its tower is not used."""
    torch.manual_seed(seed)
    config = tiny_config(tokenizer, layers=LAYERS)
    text = config.text_config
    text.intermediate_size = 256
    text.rope_theta = way.theta
    if way.time_last:
        text.mrope_section = text.mrope_section[1:] + text.mrope_section[:1]
    model = Qwen2VLForConditionalGeneration(config)
    initialise(model)
    model.visual.requires_grad_(False)
    return Trainer(model, tokenizer)


class Asker:
    """Puts the question, after clips, to decoders."""

    def __init__(self, tokenizer: Qwen2VLTokenizer):
        self.tokenizer = tokenizer
        ids = tokenizer.special_ids
        self.before = torch.tensor([ids["<|vision_start|>"]])
        self.after = torch.tensor([ids["<|vision_end|>"], *tokenizer.encode(QUESTION)])
        # The first token of each answer tells it from the others.
        self.answers = torch.tensor([tokenizer.encode(answer.capitalize())[0] for answer in ANSWERS])

    def scores(self, trainer: Trainer, seen: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) of the answer, after clips `seen` (B, cells, C), at `positions` (3, B, S)."""
        model = trainer.model
        B = len(seen)
        with mixed_precision(trainer.in_half):
            before = model.model.embed_tokens(self.before).expand(B, -1, -1)  # (B, 1, C)
            after = model.model.embed_tokens(self.after).expand(B, -1, -1)  # (B, words, C)
            x = torch.cat([before, seen.to(before.dtype), after], dim=1)  # (B, S, C)
            x = model.model(x, positions, None, [0], model.attention)
            return model.lm_head(x[:, -1]).float()

    @torch.no_grad()
    def share_right(self, trainer: Trainer, way: Way, held_out: Movements, frames: int, reading: str) -> float:
        """Of all movements, forwards and backwards, as clips of so many frames: how often the likeliest of the four
        answers is right."""
        pairs = frames // 2
        positions = positions_of(way, pairs, len(self.after), reading)
        right = 0
        for which in torch.arange(len(held_out.directions)).split(ASKED_AT_ONCE):
            for backwards in (False, True):
                seen, answers = held_out.clips(which, torch.full((len(which),), backwards), pairs)
                scores = self.scores(trainer, seen, positions[:, None].expand(-1, len(which), -1))
                right += (scores[:, self.answers].argmax(-1) == answers).sum().item()
        return right / (2 * len(held_out.directions))


def train_steps(
    trainer: Trainer, way: Way, seed: int, steps: int, movements: Movements, asker: Asker
) -> Iterator[tuple[int, float]]:
    """Train, and yield each step with its seconds. The same seed draws the same clips for every way of one length."""
    clips = torch.Generator().manual_seed(seed)
    places = torch.Generator().manual_seed(seed)  # apart, so that they leave the clips as they are
    words = len(asker.after)
    for step in range(steps):
        start = time.perf_counter()
        pairs = way.frames[torch.randint(len(way.frames), (), generator=clips)] // 2
        which = torch.randint(len(movements.directions), (CLIPS,), generator=clips)
        backwards = torch.randint(2, (CLIPS,), generator=clips).bool()
        seen, answers = movements.clips(which, backwards, pairs)

        positions = positions_of(way, pairs, words)[:, None].repeat(1, CLIPS, 1)  # (3, B, S)
        positions[..., -words:] += torch.randint(way.apart + 1, (CLIPS, 1), generator=places)
        scores = asker.scores(trainer, seen, positions)
        F.cross_entropy(scores, asker.answers[answers]).backward()
        trainer.step(rate_factor(step, step / steps))
        yield step + 1, time.perf_counter() - start


# ── The study ───────────────────────────────────────────────────────────────────────────────────────────────────────


def rope(file: Path, seeds: int, samples: int, steps: int) -> Results:
    """Every decoder once with each seed; the table has its looks during training, too (reading "in training")."""
    results = Results(file, ("way", "reading", "frames", "step"))
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    asker = Asker(processor.tokenizer)
    movements = held_out = None
    for seed, name in itertools.product(range(seeds), WAYS):
        if results.has(way=name, seed=seed):
            continue
        if movements is None:
            movements = see_movements(0, MOVEMENTS, processor)
            held_out = see_movements(scenes.TEST_SEED, samples, processor)
        for row in measure(name, seed, steps, movements, held_out, asker):
            results.add(way=name, seed=seed, **row)
    return results


def measure(
    name: str, seed: int, steps: int, movements: Movements, held_out: Movements, asker: Asker
) -> list[dict[str, str | float]]:
    """Train a decoder and ask it; the rows of the table."""
    way = WAYS[name]
    trainer = new_decoder(way, seed, asker.tokenizer)
    looks: dict[int, float] = {}
    spent = 0.0
    for step, seconds in train_steps(trainer, way, seed, steps, movements, asker):
        spent += seconds
        if step % LOOK_EVERY == 0 or step == steps:
            shares = [asker.share_right(trainer, way, held_out, frames, AS_TRAINED) for frames in way.frames]
            looks[step] = sum(shares) / len(shares)

    shown = f"{way.frames[0]} to {way.frames[-1]}"
    rest = {"flat_from": flat_from(looks), "seconds": round(spent)}
    rows = []
    for step, share in looks.items():
        rows.append(dict(reading="in training", frames=shown, step=step, accuracy=round(share, 4), **rest))
    for reading in readings_of(name):
        for frames in TEST_FRAMES:
            if reading != AS_TRAINED and frames // 2 <= way.longest:
                continue  # there is nothing to squeeze
            share = asker.share_right(trainer, way, held_out, frames, reading)
            rows.append(dict(reading=reading, frames=frames, step=steps, accuracy=round(share, 4), **rest))
    return rows


def flat_from(looks: dict[int, float]) -> int:
    """The first step from which on no look is further than FLAT from the last one."""
    *_, last = looks.values()
    far = [step for step, share in looks.items() if abs(share - last) > FLAT]
    return min(step for step in looks if not far or step > far[-1])


# ── The figure ──────────────────────────────────────────────────────────────────────────────────────────────────────

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"

STYLES = {
    "M-RoPE, theta 20": (BLUE, "o-"),
    "M-RoPE, theta 1000": (SKY, "s-"),
    "M-RoPE, theta 10000": (GREEN, "^-"),
    "1-D RoPE, theta 20": (RED, "o--"),
    "1-D RoPE, theta 1000": (ORANGE, "s--"),
    "1-D RoPE, theta 10000": (PINK, "^--"),
    "M-RoPE, time steps of 1/4": (SKY, "d-"),
    "M-RoPE, time fitted": (GREEN, "v-"),
    "M-RoPE, time in the slowest pairs": (BLACK, "x:"),
    "M-RoPE, 4 to 16 frames": (PINK, "p-."),
    "M-RoPE, question apart": (ORANGE, "D-."),
    "1-D RoPE, question apart": (RED, "P--"),
}
READING_STYLES = {
    AS_TRAINED: (BLUE, "o-"),
    FAR_SIDES: (RED, "v--"),
    FAR_TIME: (ORANGE, "s-."),
    FAR_QUESTION: (PINK, "D--"),
    SQUEEZED: (GREEN, "^:"),
}


def draw_rope(results: Results, file: Path) -> None:
    """Four panels: kinds and thetas, what else was changed, one way asked with other positions, and the training."""
    drawing, axes = figure(2, rows=2)
    by_theta, by_change, by_reading, by_step = axes
    for name, way in WAYS.items():
        colour, style = STYLES[name]
        is_plain = way == Way(way.theta, way.one_axis)
        if is_plain:
            draw_series(by_theta, results, "frames", colour, style, name, way=name, reading=AS_TRAINED)
        if not is_plain or name == BASE:
            draw_series(by_change, results, "frames", colour, style, name, way=name, reading=AS_TRAINED)
        draw_series(by_step, results, "step", colour, style, None, way=name, reading="in training")
    for reading, (colour, style) in READING_STYLES.items():
        draw_series(by_reading, results, "frames", colour, style, reading, way=BASE, reading=reading)
    other = "1-D RoPE, theta 20"
    draw_series(by_reading, results, "frames", BLACK, "x:", f"{SQUEEZED}: {other}", way=other, reading=SQUEEZED)
    by_reading.set_title(f"{BASE}, asked in five ways")
    by_theta.set_title("M-RoPE and 1-D RoPE")
    by_change.set_title("M-RoPE changed")
    by_step.set(title="During training: held-out clips of trained lengths", xlabel="step", ylabel="right answers")

    for axis in (by_theta, by_change, by_reading):
        axis.axvspan(4, 8, color="grey", alpha=0.15)
        axis.axhline(0.25, color="grey", linewidth=1, linestyle=":")
        axis.set(xscale="log", xlabel="frames of the clip (grey: trained on)", ylabel="right answers")
        axis.set_xticks(TEST_FRAMES, map(str, TEST_FRAMES))
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=7.5, loc="lower left")
    for axis in axes:
        axis.set_ylim(-0.02, 1.03)
    drawing.savefig(file, dpi=110)


def draw_series(axis, results: Results, x: str, colour: str, style: str, label: str | None, **where: str) -> None:
    """A line of means over the seeds, with error bars."""
    means = results.series(x, "accuracy", **where)
    axis.errorbar(*means, fmt=style, color=colour, capsize=3, linewidth=1.5, markersize=5, label=label)
