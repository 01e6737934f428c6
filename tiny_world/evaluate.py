"""Measure a checkpoint on held-out scenes of the tiny world, through the ordinary processor and greedy generation.

    python -m tiny_world.evaluate                     the bundled checkpoint, 500 scenes a row
    python -m tiny_world.evaluate --model FOLDER --tasks describe where --samples 100 --json
    python -m tiny_world.evaluate --max-side 112 --max-things 3         small pictures only, such as a course's

An answer is right if it is the expected one to the letter; a box is right if its overlap (IoU) is above one half. Read
texts are also scored by their character error rate: edits needed, over characters to be read. Seeds and fonts are never
those of training. Colour-shape pairs that training leaves out, and pictures larger than those it reads texts in, have
rows of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass, replace

import weights_loader
from media_loader import parse_boxes
from tiny_world.scenes import (
    MAX_SIDE,
    MAX_THINGS,
    MIN_SIDE,
    READ_BELOW,
    TASKS,
    TEST_SEED,
    Sample,
    make_sample,
    messages,
)

BATCH_PIXELS = 25 * 224 * 224  # of pictures answered in one call


@dataclass(frozen=True)
class World:
    """Which held-out scenes to ask about: sides in pixels, objects and characters at most, colour-shape pairs."""

    min_side: int = MIN_SIDE
    max_side: int = MAX_SIDE
    max_things: int = MAX_THINGS
    max_chars: int = 5  # of a text to be read
    text_share: float = 0.15  # of the pictures described carry a text
    pairs: str = "train"
    first: int = TEST_SEED  # seed of the first scene

    def samples(self, task: str, count: int) -> list[Sample]:
        """Scenes from seeds that training never uses, each of its own size."""
        samples = []
        for seed in range(self.first, self.first + count):
            rng = random.Random(seed)
            width, height = 0, 1
            while max(width, height) > 4 * min(width, height):
                width, height = (rng.randint(self.min_side, self.max_side) for _ in range(2))
            options = {"text_share": self.text_share if task == "describe" else 0.0, "fonts": "test"}
            options |= {"max_things": self.max_things, "max_chars": self.max_chars, "pairs": self.pairs}
            samples.append(make_sample(seed, task, width, height, **options))
        return samples


READ_WORLD = World(max_side=READ_BELOW - 1)  # larger pictures, whose texts training does not show, have their own row
UNSEEN_TASKS = ("describe", "colour", "shape", "where")


def rows_of(tasks: list[str]) -> dict[str, tuple[str, World]]:
    """The rows of the table: name → task and scenes."""
    rows = {task: (task, READ_WORLD if task == "read" else World()) for task in tasks}
    if "read" in tasks:
        rows["read, larger pictures"] = ("read", World(min_side=READ_BELOW))
    unseen = World(pairs="held_out", text_share=0.0)
    return rows | {f"{task}, unseen pairs": (task, unseen) for task in UNSEEN_TASKS if task in tasks}


def iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a share."""
    z, share = 1.96, right / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)


def edits(said: str, wanted: str) -> int:
    """Levenshtein distance: how many characters must be put in, taken out or exchanged."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def answers(model, processor, samples: list[Sample], max_new_tokens: int = 120) -> list[str]:
    """What the model says to each sample, control tokens of boxes kept, the end mark removed."""
    # Neighbours in length share a batch, so that little of it is padding.
    sizes = [sum(image.width * image.height for image in sample.images) + 1 for sample in samples]
    order, batches = sorted(range(len(samples)), key=sizes.__getitem__), []
    for i in order:
        if not batches or sizes[i] * (len(batches[-1]) + 1) > BATCH_PIXELS or len(batches[-1]) == 40:
            batches.append([])
        batches[-1].append(i)
    said = [""] * len(samples)
    for rows in batches:
        inputs = processor.apply_chat_template(
            [messages(samples[i], with_answer=False) for i in rows],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for i, text in zip(rows, processor.batch_decode(ids[:, inputs.input_ids.shape[1] :])):
            said[i] = text.split("<|im_end|>")[0]
    return said


def score(sample: Sample, said: str) -> tuple[bool, float | None]:
    """Whether an answer is right and, for a box, its IoU."""
    if "<|box_start|>" not in sample.answer:
        return said == sample.answer, None
    size = sample.scenes[0].width, sample.scenes[0].height
    wanted, found = parse_boxes(sample.answer, *size)[0], parse_boxes(said, *size)
    corners = [(box.x1, box.y1, box.x2, box.y2) for box in (wanted, *found[:1])]
    overlap = iou(*corners) if found else 0.0
    return overlap > 0.5, overlap


def evaluate(model, processor, rows: dict[str, tuple[str, World]], count: int, report=None) -> dict:
    """Scores by row: n, accuracy with its interval, mean IoU of boxes, character error, three wrong answers."""
    results = {}
    for row, (task, world) in rows.items():
        samples = world.samples(task, count)
        said = answers(model, processor, samples)
        scores = [score(sample, text) for sample, text in zip(samples, said)]
        right = sum(ok for ok, _ in scores)
        results[row] = {"n": count, "accuracy": right / count, "interval": wilson(right, count)}
        if task == "where":
            results[row]["mean_iou"] = sum(overlap for _, overlap in scores) / count
        if task == "read":
            errors = sum(edits(text, sample.answer) for sample, text in zip(samples, said))
            results[row]["character_error"] = errors / sum(len(sample.answer) for sample in samples)
        wrong = [(s.seed, s.question, s.answer, text) for s, text, (ok, _) in zip(samples, said, scores) if not ok]
        results[row]["wrong"] = [dict(zip(("seed", "question", "wanted", "said"), case)) for case in wrong[:3]]
        if report:
            report(row, results[row])
    return results


def print_row(row: str, result: dict) -> None:
    low, high = result["interval"]
    extra = f"   mean IoU {result['mean_iou']:.3f}" if "mean_iou" in result else ""
    extra += f"   character error {result['character_error']:.1%}" if "character_error" in result else ""
    print(f"{row:<24}{result['n']:>6}{result['accuracy']:>10.1%}   [{low:.1%}, {high:.1%}]{extra}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help='folder, Hub id, or "tiny" (default)')
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--samples", type=int, default=500, help="scenes a row (default 500)")
    parser.add_argument("--min-side", type=int, help=f"shortest side in pixels (default {MIN_SIDE})")
    parser.add_argument("--max-side", type=int, help=f"longest side in pixels (default {MAX_SIDE}; to be read in: 349)")
    parser.add_argument("--max-things", type=int, help=f"most objects in a picture (default {MAX_THINGS})")
    parser.add_argument("--pairs", choices=("train", "all", "held_out"), help="colour-shape pairs (default train)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(argv)
    try:
        if options.samples < 1:
            raise ValueError("--samples must be at least 1.")
        if options.max_things is not None and not 1 <= options.max_things <= MAX_THINGS:
            raise ValueError(f"--max-things must be 1 to {MAX_THINGS}.")
        rows = rows_of(options.tasks)
        names = ("min_side", "max_side", "max_things", "pairs")
        asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        if asked:  # one kind of scene: no rows for what is left out of the training
            rows = {task: (task, replace(rows[task][1], **asked)) for task in options.tasks}
        for _, world in rows.values():
            if not MIN_SIDE <= world.min_side <= world.max_side <= MAX_SIDE:
                raise ValueError(f"Sides must be {MIN_SIDE} to {MAX_SIDE} pixels, --min-side not above --max-side.")
        model, processor = weights_loader.load(options.model, dtype="float32")  # the same answers on every CPU
        if not options.json:
            print(f"{'':<24}{'n':>6}{'right':>10}   95 % interval")
        results = evaluate(model, processor, rows, options.samples, None if options.json else print_row)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
