"""Measure a checkpoint on held-out scenes of the tiny world, through the ordinary processor and greedy generation.

    python -m tiny_world.evaluate                     the bundled checkpoint, 500 scenes a task
    python -m tiny_world.evaluate --tasks all         also what it was not, or not yet, trained to do
    python -m tiny_world.evaluate --model FOLDER --tasks describe where --samples 100 --json

An answer is right if it is the expected one to the letter; a box is right if its overlap (IoU) is above one half. Read
texts are also scored by their character error rate: edits needed, over characters to be read. Seeds and fonts are never
those of training; `--pairs held_out` asks about colour–shape pairs, `--min-side 350 --max-side 448` about sizes that
training leaves out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys

import weights_loader
from media_loader import parse_boxes
from tiny_world.scenes import TASKS as ALL_TASKS
from tiny_world.scenes import TEST_SEED, Sample, make_sample, messages

TASKS = ("describe", "count", "colour", "shape", "where", "relation")  # of the bundled checkpoint
MIN_SIDE = 56  # pixels
MAX_CHARS = 5  # of a text to be read
BATCH = 25  # scenes answered in one call


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


def held_out_samples(
    task: str, count: int, max_side: int, max_things: int, pairs: str, min_side: int = MIN_SIDE
) -> list[Sample]:
    """Scenes from seeds that training never uses, each of its own size, sides `min_side` to `max_side` pixels."""
    samples = []
    for seed in range(TEST_SEED, TEST_SEED + count):
        rng = random.Random(seed)
        width, height = 0, 1
        while max(width, height) > 4 * min(width, height):
            width, height = rng.randint(min_side, max_side), rng.randint(min_side, max_side)
        options = {"max_things": max_things, "max_chars": MAX_CHARS, "text_share": 0.0, "fonts": "test", "pairs": pairs}
        samples.append(make_sample(seed, task, width, height, **options))
    return samples


def answers(model, processor, samples: list[Sample], max_new_tokens: int = 120) -> list[str]:
    """What the model says to each sample, control tokens of boxes kept, the end mark removed."""
    # Neighbours in length share a batch, so that little of it is padding.
    order = sorted(range(len(samples)), key=lambda i: sum(image.width * image.height for image in samples[i].images))
    said = [""] * len(samples)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
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


def evaluate(
    model, processor, tasks, count: int, max_side: int, max_things: int, pairs: str, min_side=MIN_SIDE, report=None
) -> dict:
    """Scores by task: n, accuracy with its interval, mean IoU of boxes, character error, three wrong answers."""
    results = {}
    for task in tasks:
        samples = held_out_samples(task, count, max_side, max_things, pairs, min_side)
        said = answers(model, processor, samples)
        scores = [score(sample, text) for sample, text in zip(samples, said)]
        right = sum(ok for ok, _ in scores)
        results[task] = {"n": count, "accuracy": right / count, "interval": wilson(right, count)}
        if task == "where":
            results[task]["mean_iou"] = sum(overlap for _, overlap in scores) / count
        if task == "read":
            errors = sum(edits(text, sample.answer) for sample, text in zip(samples, said))
            results[task]["character_error"] = errors / sum(len(sample.answer) for sample in samples)
        wrong = [(s.seed, s.question, s.answer, text) for s, text, (ok, _) in zip(samples, said, scores) if not ok]
        results[task]["wrong"] = [dict(zip(("seed", "question", "wanted", "said"), case)) for case in wrong[:3]]
        if report:
            report(task, results[task])
    return results


def print_row(task: str, result: dict) -> None:
    low, high = result["interval"]
    extra = f"   mean IoU {result['mean_iou']:.3f}" if "mean_iou" in result else ""
    extra += f"   character error {result['character_error']:.1%}" if "character_error" in result else ""
    print(f"{task:<10}{result['n']:>6}{result['accuracy']:>10.1%}   [{low:.1%}, {high:.1%}]{extra}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help='folder, Hub id, or "tiny" (default)')
    choices = ("all", *ALL_TASKS)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=choices, metavar="TASK", help=", ".join(choices))
    parser.add_argument("--samples", type=int, default=500, help="scenes a task (default 500)")
    parser.add_argument("--min-side", type=int, default=MIN_SIDE, help="shortest side in pixels (default 56)")
    parser.add_argument("--max-side", type=int, default=224, help="longest side of a picture in pixels (default 224)")
    parser.add_argument("--max-things", type=int, default=4, help="most objects in a picture (default 4)")
    parser.add_argument("--pairs", default="train", choices=("train", "all", "held_out"), help="colour-shape pairs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(argv)
    try:
        if options.samples < 1:
            raise ValueError("--samples must be at least 1.")
        if not MIN_SIDE <= options.min_side <= options.max_side:
            raise ValueError(f"--min-side must be from {MIN_SIDE} to --max-side ({options.max_side}).")
        model, processor = weights_loader.load(options.model, dtype="float32")  # the same answers on every CPU
        if not options.json:
            print(f"{'task':<10}{'n':>6}{'right':>10}   95 % interval")
        limits = options.samples, options.max_side, options.max_things, options.pairs, options.min_side
        report = None if options.json else print_row
        results = evaluate(model, processor, ALL_TASKS if "all" in options.tasks else options.tasks, *limits, report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
