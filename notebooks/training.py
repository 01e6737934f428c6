"""The training of notebook 09: a new decoder of two layers learns to talk about one or two things in a small picture.

    python -m notebooks.training      records the longer runs that the notebook draws, to notebooks/training.csv

It stands behind the bundled vision tower, which is frozen. Everything that makes training fast is left out;
`tiny_world/train.py` has it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

import weights_loader
from qwen2vl_mini import BatchFeature, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tiny_world.scenes import TEST_SEED, make_sample
from tiny_world.train import initialise, tiny_config

ROWS = 32  # conversations in a batch
TABLE = Path(__file__).parent / "training.csv"
STEPS, EVERY, SEEDS = 400, 50, 4  # of the recorded runs


@dataclass(frozen=True)
class Lesson:
    """What is learned from: tasks in turn, pictures of `side`² pixels with up to `things` things."""

    tasks: tuple[str, ...] = ("colour", "shape")
    side: int = 56
    things: int = 1
    all_tokens: bool = False  # learn to write the prompt, too


SHORT = Lesson()
LONG = Lesson(("describe",), side=84, things=2)
ARMS = {"answers only": LONG, "all tokens": replace(LONG, all_tokens=True)}


@cache
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


def new_model(seed: int, layers: int = 2) -> Qwen2VLForConditionalGeneration:
    """A decoder with random weights behind the bundled vision tower, which does not learn."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(tiny_config(processor().tokenizer, layers))
    initialise(model)
    model.visual.load_state_dict(weights_loader.load_model("tiny", dtype="float32", device="cpu").visual.state_dict())
    model.visual.requires_grad_(False)
    return model


def conversation(sample, with_answer: bool) -> list[dict]:
    """A picture, the question, and the answer."""
    content = [{"type": "image", "image": sample.images[0]}, {"type": "text", "text": sample.question}]
    answer = [{"role": "assistant", "content": sample.answer}] if with_answer else []
    return [{"role": "user", "content": content}, *answer]


def samples(lesson: Lesson, first: int, count: int) -> list:
    """Pictures with questions and answers, from the seeds `first`, `first` + 1 and so on."""
    task, side = lesson.tasks, lesson.side
    rows = range(count)
    return [make_sample(first + i, task[i % len(task)], side, side, lesson.things, text_share=0) for i in rows]


def training_batch(lesson: Lesson, step: int, seed: int = 0) -> BatchFeature:
    """The batch of a step: the model's inputs, and labels (B, S) in which the answers count, or all tokens."""
    drawn = samples(lesson, 100_000 * seed + ROWS * step, ROWS)
    conversations = [conversation(sample, with_answer=True) for sample in drawn]
    inputs = processor().apply_chat_template(conversations, tokenize=True, return_dict=True)
    is_padding = inputs["attention_mask"] == 0  # (B, S)
    everything = inputs["input_ids"].masked_fill(is_padding, -100)
    inputs["labels"] = everything if lesson.all_tokens else answer_labels(inputs["input_ids"])
    return inputs


def answer_labels(input_ids: torch.Tensor) -> torch.Tensor:
    """The ids (B, S) where the last message of each row answers, <|im_end|> included, and −100 elsewhere."""
    begins = processor().tokenizer.special_ids["<|im_start|>"]
    place = torch.arange(input_ids.shape[1])  # (S,)
    last_start = (place * (input_ids == begins)).amax(dim=1, keepdim=True)  # (B, 1)
    # The answer stands behind <|im_start|>, "assistant" and a newline; after its <|im_end|> there is one newline more.
    answer = (place > last_start + 2) & (place < input_ids.shape[1] - 1)  # (B, S)
    return torch.where(answer, input_ids, -100)


def share_right(model: Qwen2VLForConditionalGeneration, lesson: Lesson = SHORT, count: int = 200) -> float:
    """The share of right answers to questions that training never asks."""
    asked = samples(lesson, TEST_SEED * 2, count)
    said = answers(model, asked)
    return sum(text == sample.answer for text, sample in zip(said, asked)) / count


@torch.no_grad()
def answers(model: Qwen2VLForConditionalGeneration, asked: list) -> list[str]:
    """What a model says to samples, by greedy generation."""
    conversations = [conversation(sample, with_answer=False) for sample in asked]
    inputs = processor().apply_chat_template(conversations, add_generation_prompt=True, tokenize=True, return_dict=True)
    end = processor().tokenizer.special_ids["<|im_end|>"]
    ids = model.generate(**inputs, max_new_tokens=16, eos_token_id=end)
    return processor().batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def train(
    model: Qwen2VLForConditionalGeneration, steps: int, lesson: Lesson = SHORT, seed: int = 0, rate: float = 2e-3
) -> Iterator[float]:
    """Yield the loss of each step of AdamW; the rate rises over the first twenty."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20)
        loss = model(**training_batch(lesson, step, seed)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        yield loss.item()


def record() -> None:
    """Train both arms from several seeds, and write losses and shares of right answers to the table."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arm", "seed", "step", "loss", "right"])
        for seed in range(SEEDS):
            for arm, lesson in ARMS.items():
                model = new_model(seed)
                for step, loss in enumerate(train(model, STEPS, lesson, seed), 1):
                    if step % EVERY == 0:
                        row = [arm, seed, step, f"{loss:.4f}", f"{share_right(model, lesson):.3f}"]
                        table.writerow(row)
                        file.flush()
                        print(*row, flush=True)


if __name__ == "__main__":
    record()
