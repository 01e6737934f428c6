"""Measure a checkpoint on held-out scenes of the tiny world, through the
ordinary processor and greedy generation.

    python -m tiny_world.evaluate
        the bundled checkpoint, 500 scenes a row
    python -m tiny_world.evaluate --model FOLDER --tasks describe where --json
    python -m tiny_world.evaluate --max-side 112 --max-things 3
        small pictures only, such as a course's

An answer is right if it is the expected one to the letter; a box is right if
its overlap (IoU) is above one half. Texts that are read are also scored by
their character error rate: edits needed, over characters to be read. Seeds and
fonts are never those of training. Colour-shape pairs that training leaves out
have rows of their own, and so have texts in pictures larger than those in which
training shows texts, questions in words that training does not use ("free
wording"), clips beside a picture, what is absent, and what the model does not
know.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass, replace

from tqdm import tqdm

import weights_loader
from qwen2vl_io.boxes import parse_boxes
from tiny_world.free import absent_pair
from tiny_world.scenes import (
    MAX_ASPECT,
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
from tiny_world.unknown import ask_unknown
from tiny_world.wording import UNKNOWN, reword

BATCH_PIXELS = 25 * 224 * 224  # of pictures answered in one call


@dataclass(frozen=True)
class World:
    """Which held-out scenes to ask about."""

    min_side: int = MIN_SIDE  # pixels
    max_side: int = MAX_SIDE
    max_things: int = MAX_THINGS  # most objects in a picture
    max_chars: int = 5  # most characters of a text
    text_share: float = 0.15  # of the pictures to be described carry a text
    pairs: str = "train"  # of colour and shape, as in `scenes.allowed_pairs`
    is_free: bool = False  # ask in words that training does not use
    has_picture: bool = False  # show a picture beside the clip
    first: int = TEST_SEED  # seed of the first scene

    def samples(self, task: str, count: int) -> list[Sample]:
        """Scenes from seeds that training never uses, each of its own size."""
        samples = []
        for seed in range(self.first, self.first + count):
            rng = random.Random(f"{task}/{seed}")
            sample = self.draw("describe" if task in ODD_TASKS else task, seed)
            if task in ODD_TASKS:
                sample = odd_sample(task, sample, rng)
            elif self.is_free:
                question = reword(sample.question, rng, for_test=True)
                sample = replace(sample, question=question, turns=[*sample.turns[:-1], (question, sample.answer)])
            if self.has_picture:
                sample = replace(sample, beside=self.draw("describe", seed).images[0])
            samples.append(sample)
        return samples

    def draw(self, task: str, seed: int) -> Sample:
        """The scene of a seed."""
        width, height = self.pick_size(random.Random(seed))
        return make_sample(
            seed,
            task,
            width,
            height,
            max_things=self.max_things,
            max_chars=self.max_chars,
            text_share=self.text_share if task == "describe" else 0.0,
            fonts="test",
            pairs=self.pairs,
        )

    def pick_size(self, rng: random.Random) -> tuple[int, int]:
        """Width and height in pixels, drawn evenly, never longer than 4:1."""
        while True:
            width = rng.randint(self.min_side, self.max_side)
            height = rng.randint(self.min_side, self.max_side)
            if max(width, height) <= MAX_ASPECT * min(width, height):
                return width, height


def odd_sample(task: str, sample: Sample, rng: random.Random) -> Sample:
    """A question about what is not in the picture ("absent"), or one that the model does not know ("unknown"): half of
    these are asked without any picture."""
    question, answer = ask_unknown(rng, for_test=True), UNKNOWN
    images = sample.images if rng.random() < 0.5 else []
    if task == "absent":
        name = absent_pair(sample.scenes[0], rng)
        question, answer = f"Where is the {name}?", f"There is no {name}."
        images = sample.images
    asked = {"question": question, "answer": answer, "turns": [(question, answer)]}
    return replace(sample, task=task, images=images, **asked)


ODD_TASKS = ("absent", "unknown")
READ_WORLD = World(max_side=READ_BELOW - 1)  # larger pictures, whose texts training does not show, have their own row
UNSEEN_TASKS = ("describe", "colour", "shape", "where")


def rows_of(tasks: list[str]) -> dict[str, tuple[str, World]]:
    """The rows of the table: name → task, and the scenes that it is asked about."""
    rows = {task: (task, READ_WORLD if task == "read" else World()) for task in tasks}
    if "read" in tasks:
        rows["read, larger pictures"] = ("read", World(min_side=READ_BELOW))
    if "motion" in tasks:
        rows["motion, beside a picture"] = ("motion", World(has_picture=True))
    unseen = World(pairs="held_out", text_share=0.0)
    rows |= {f"{task}, unseen pairs": (task, unseen) for task in UNSEEN_TASKS if task in tasks}
    free = {task: replace(rows[task][1], is_free=True) for task in tasks if task not in ODD_TASKS}
    return rows | {f"{task}, free wording": (task, world) for task, world in free.items()}


def iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a share."""
    z = 1.96  # standard deviations
    share = right / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)


def edits(said: str, wanted: str) -> int:
    """Levenshtein distance: how many characters must be inserted, deleted or replaced."""
    row = list(range(len(wanted) + 1))  # distances of the beginnings of `wanted` to what has been read of `said`
    for i, a in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def answers(model, processor, samples: list[Sample], max_new_tokens: int = 120) -> list[str]:
    """What the model says to each sample, control tokens of boxes kept, the end mark removed."""
    said = [""] * len(samples)
    # longest first, so that the bar's estimate errs on the safe side; where stderr is no terminal there is no bar
    bar = tqdm(total=len(samples), unit=" scenes", leave=False, disable=None)
    for rows in reversed(batches_of(samples)):
        inputs = processor.apply_chat_template(
            [messages(samples[i], with_answer=False) for i in rows],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = processor.batch_decode(ids[:, inputs.input_ids.shape[1] :])
        for i, text in zip(rows, texts):
            said[i] = text.split("<|im_end|>")[0]
        bar.update(len(rows))
    bar.close()
    return said


def batches_of(samples: list[Sample]) -> list[list[int]]:
    """Indices of the samples answered together: neighbours in length, so that little of a batch is padding."""
    sizes = [sum(image.width * image.height for image in sample.images) + 1 for sample in samples]
    batches: list[list[int]] = []
    for i in sorted(range(len(samples)), key=sizes.__getitem__):
        is_full = not batches or len(batches[-1]) == 40 or sizes[i] * (len(batches[-1]) + 1) > BATCH_PIXELS
        if is_full:
            batches.append([])
        batches[-1].append(i)
    return batches


def score(sample: Sample, said: str) -> tuple[bool, float | None]:
    """Whether an answer is right and, for a box, its IoU."""
    if "<|box_start|>" not in sample.answer:
        return said == sample.answer, None

    width, height = sample.scenes[0].width, sample.scenes[0].height
    wanted = parse_boxes(sample.answer, width, height)
    found = parse_boxes(said, width, height)
    if not found:
        return False, 0.0
    a, b = [(box.x1, box.y1, box.x2, box.y2) for box in (wanted[0], found[0])]
    overlap = iou(a, b)
    return overlap > 0.5, overlap


def evaluate(model, processor, rows: dict[str, tuple[str, World]], count: int, report=None) -> dict:
    """Scores by row: see `summary`. `report` is called with each row's name and scores."""
    results = {}
    for row, (task, world) in rows.items():
        samples = world.samples(task, count)
        results[row] = summary(task, samples, answers(model, processor, samples))
        if report is not None:
            report(row, results[row])
    return results


def summary(task: str, samples: list[Sample], said: list[str]) -> dict:
    """n, accuracy with its interval, mean IoU of boxes, character error of texts, three wrong answers."""
    scores = [score(sample, text) for sample, text in zip(samples, said)]
    right = sum(is_right for is_right, _ in scores)
    result = {"n": len(samples), "accuracy": right / len(samples), "interval": wilson(right, len(samples))}
    if task == "where":
        result["mean_iou"] = sum(overlap for _, overlap in scores) / len(samples)
    if task == "read":
        result["character_error"] = character_error(samples, said)

    wrong = []
    for sample, text, (is_right, _) in zip(samples, said, scores):
        if not is_right:
            case = {"seed": sample.seed, "question": sample.question, "wanted": sample.answer, "said": text}
            wrong.append(case)
    result["wrong"] = wrong[:3]
    return result


def character_error(samples: list[Sample], said: list[str]) -> float:
    """Edits needed, over characters to be read."""
    errors = sum(edits(text, sample.answer) for sample, text in zip(samples, said))
    return errors / sum(len(sample.answer) for sample in samples)


def print_row(row: str, result: dict) -> None:
    """A line of the table."""
    low, high = result["interval"]
    extra = f"   mean IoU {result['mean_iou']:.3f}" if "mean_iou" in result else ""
    extra += f"   character error {result['character_error']:.1%}" if "character_error" in result else ""
    print(f"{row:<26}{result['n']:>6}{result['accuracy']:>10.1%}   [{low:.1%}, {high:.1%}]{extra}", flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help='folder, Hub id, or "tiny" (default)')
    known = (*TASKS, *ODD_TASKS)
    parser.add_argument("--tasks", nargs="+", default=known, choices=known, metavar="TASK", help=", ".join(known))
    parser.add_argument("--samples", type=int, default=500, help="scenes a row (default 500)")
    parser.add_argument("--min-side", type=int, help=f"shortest side in pixels (default {MIN_SIDE})")
    parser.add_argument(
        "--max-side", type=int, help=f"longest side in pixels (default {MAX_SIDE}; of texts {READ_BELOW - 1})"
    )
    parser.add_argument("--max-things", type=int, help=f"most objects in a picture (default {MAX_THINGS})")
    parser.add_argument("--pairs", choices=("train", "all", "held_out"), help="colour-shape pairs (default train)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return parser


def rows_asked_for(options: argparse.Namespace) -> dict[str, tuple[str, World]]:
    """The rows of the table for these options; ValueError where they make no sense."""
    if options.samples < 1:
        raise ValueError("--samples must be at least 1.")
    if options.max_things is not None and not 1 <= options.max_things <= MAX_THINGS:
        raise ValueError(f"--max-things must be 1 to {MAX_THINGS}.")

    rows = rows_of(options.tasks)
    names = ("min_side", "max_side", "max_things", "pairs")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if asked:  # one kind of scene: no rows for what training leaves out
        rows = {task: (task, replace(rows[task][1], **asked)) for task in options.tasks}

    for _, world in rows.values():
        if not MIN_SIDE <= world.min_side <= world.max_side <= MAX_SIDE:
            raise ValueError(f"Sides must be {MIN_SIDE} to {MAX_SIDE} pixels, --min-side not above --max-side.")
    return rows


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    try:
        rows = rows_asked_for(options)
        model, processor = weights_loader.load(options.model, dtype="float32")  # the same answers on every CPU
        if not options.json:
            print(f"{'':<26}{'n':>6}{'right':>10}   95 % interval")
        results = evaluate(model, processor, rows, options.samples, None if options.json else print_row)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
