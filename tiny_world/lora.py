"""Fine-tuning by LoRA: a checkpoint learns another way to answer from a dozen pictures, and keeps what it knew.

    python -m tiny_world.lora --out my_lora                        the bundled model learns to say "The picture: …"
    python -m tiny_world.lora --out my_lora --model Qwen/Qwen2-VL-2B-Instruct --data examples.jsonl

Hu et al. 2021, https://arxiv.org/abs/2106.09685: the weights W (out, in) stay as they are. Two thin matrices A (r, in)
and B (out, r) learn what to add to them: W + alpha/r · B·A. So the optimizer has a few per cent of the numbers to move
and to remember. In the end the product is added to W, and the checkpoint is one like any other.

A line of examples.jsonl is a conversation in the message format of --batch that ends with the wanted answer:
[{"role": "user", "content": [{"type": "image", "image": "a.jpg", "max_pixels": 99999}, "What is it?"]},
{"role": "assistant", "content": "A spoon."}]. Only questions that have examples too stay answered as before.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weights_loader
from qwen2vl_io.messages import BatchFeature
from qwen2vl_io.sentences import shorten, shown
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLProcessor, Special
from tiny_world import evaluate, scenes
from tiny_world.conversations import read_conversations, text_of

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # the decoder's layers
STYLE = "The picture: "  # what the lesson teaches to put before a description
NOT_LEARNED = -100  # the label of a token that does not count in the loss
WARM_UP = 5  # steps
CONTROL_TOKENS = re.compile(r"(<\|(?:object_ref|box|quad)_(?:start|end)\|>)")  # that an answer can hold: boxes
TASKS = ("describe", "count", "colour", "where")  # asked before and after
HELD_OUT_PICTURES = 20  # of each task
HELD_OUT = evaluate.World(max_side=168, max_things=3, text_share=0.0)

# ── The matrices ────────────────────────────────────────────────────────────────────────────────────────────────────


class LoRALinear(nn.Module):
    """A frozen linear layer, and beside it A and B, which learn what to add to its weight W (out, in)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear
        self.scale = alpha / rank
        W = linear.weight
        kind = {"device": W.device, "dtype": torch.promote_types(W.dtype, torch.float32)}  # bfloat16 loses small steps
        self.A = nn.Parameter(torch.randn(rank, W.shape[1], **kind) / W.shape[1] ** 0.5)
        self.B = nn.Parameter(torch.zeros(W.shape[0], rank, **kind))  # so at first, nothing is added

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (…, in) → (…, out)
        change = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B)  # (…, in) → (…, r) → (…, out)
        return y + (self.scale * change).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer itself, with the weight W + alpha/r · B·A, rounded once to W's dtype."""
        W = self.linear.weight
        W.copy_(W + self.scale * (self.B @ self.A))
        return self.linear


def add_lora(
    model: nn.Module, names: tuple[str, ...] = TARGETS, rank: int = 8, alpha: float = 16
) -> list[nn.Parameter]:
    """Freeze a model and put a LoRALinear around each linear layer called one of `names`; returns all A and B."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"The rank of LoRA is a whole number from 1 on, not {shown(rank)}.")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("This model has LoRA's matrices already; call merge_lora(model) first.")

    layers = {name: name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = set(layers.values()) - {"lm_head"}  # which can be the embedding too: a change would reach both
    names = {names} if isinstance(names, str) else set(names)
    if not names or names - known:
        wrong = shown(min(names - known)) if names else "no layer"
        raise ValueError(f"LoRA can be added to {', '.join(sorted(known))} of this model, not to {wrong}.")

    model.requires_grad_(False)
    for name, last in layers.items():
        if last in names:
            model.set_submodule(name, LoRALinear(model.get_submodule(name), rank, alpha))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merge_lora(model: nn.Module) -> None:
    """Put the linear layers back, which now do what was learned. Their names are those of the released files again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())


# ── The examples ────────────────────────────────────────────────────────────────────────────────────────────────────


def encode(processor: Qwen2VLProcessor, conversations: list[list[dict]]) -> tuple[BatchFeature, Tensor]:
    """Conversations → the model's inputs, and labels (B, S): the last answer's tokens and its <|im_end|>, no others."""
    taught = []
    for conversation in conversations:
        pieces = [piece for piece in CONTROL_TOKENS.split(text_of(conversation[-1])) if piece]
        pieces = [Special(piece) if CONTROL_TOKENS.fullmatch(piece) else piece for piece in pieces]
        answer = {"role": "assistant", "content": [{"type": "text", "text": piece} for piece in pieces]}
        taught.append([*conversation[:-1], answer])

    inputs = processor.apply_chat_template(taught, tokenize=True, return_dict=True)
    ids = inputs["input_ids"]  # (B, S), padded on the left
    before_answer = torch.tensor(processor.tokenizer.encode([Special("<|im_start|>"), "assistant\n"]))
    labels = torch.full_like(ids, NOT_LEARNED)
    for row, row_labels in zip(ids, labels):
        last_message = int((row == before_answer[0]).nonzero()[-1])
        start = last_message + len(before_answer)
        if not torch.equal(row[last_message:start], before_answer):  # its line break has joined those of the answer
            raise ValueError("The answer begins with a line break, which changes the prompt before it; remove it.")
        row_labels[start:-1] = row[start:-1]  # the line break behind <|im_end|> is never written
    return inputs, labels


def restyled(answer: str) -> str:
    """A description in the style of the lesson."""
    return f"{STYLE}{answer[0].lower()}{answer[1:]}"


def make_lesson(pictures: int = 12) -> list[list[dict]]:
    """Pictures of the tiny world with three conversations about each: its description in the new style, and two other
    questions with the answers of always, without which the model would forget them.
    """
    lesson = []
    for seed in range(pictures):
        rng = random.Random(seed)
        width, height = HELD_OUT.pick_size(rng)
        sample = scenes.make_sample(seed, "describe", width, height, HELD_OUT.max_things, text_share=0.0)
        others = ("where", *rng.sample(("count", "colour", "shape", "what", "relation"), 5))
        asked = [scenes.ask(sample.scenes[0], task, rng) for task in others]  # None where a question does not fit
        kept = [turn for turn in asked if turn is not None][:2]
        for question, answer in [(sample.question, restyled(sample.answer)), *kept]:
            lesson.append(scenes.messages(replace(sample, turns=[(question, answer)])))
    return lesson


# ── Training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(
    model: nn.Module,
    processor: Qwen2VLProcessor,
    examples: list[list[dict]],
    parameters: list[nn.Parameter],
    steps: int,
    learning_rate: float,
    batch_size: int = 6,
) -> list[float]:
    """Move the parameters down the gradient of the loss, `batch_size` examples a step; returns the losses."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    rng = random.Random(0)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:  # up in a few steps, then slowly down to zero
            group["lr"] = learning_rate * min(1, (step + 1) / WARM_UP) * (1 - step / steps)

        inputs, labels = encode(processor, rng.sample(examples, min(batch_size, len(examples))))
        loss = model(**inputs.to(model.device), labels=labels.to(model.device)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"The loss of step {step + 1} is {losses[-1]}; choose a lower --learning-rate.")
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step + 1:>4} of {steps}   loss {losses[-1]:.4f}", flush=True)
    return losses


def answers(model: nn.Module, processor: Qwen2VLProcessor, conversations: list[list[dict]]) -> list[str]:
    """What the model says now in the place of the last messages."""
    prompts = [conversation[:-1] for conversation in conversations]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    inputs = processor.apply_chat_template(prompts, **options).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=128, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.split("<|im_end|>")[0] for text in processor.batch_decode(ids)]


def held_out_scores(model: nn.Module, processor: Qwen2VLProcessor) -> dict[str, int]:
    """How many pictures that nobody was trained on are answered rightly, by task and by style."""
    scores = {}
    for task in TASKS:
        samples = HELD_OUT.samples(task, HELD_OUT_PICTURES)
        said = evaluate.answers(model, processor, samples)
        scores[task] = sum(evaluate.score(sample, text)[0] for sample, text in zip(samples, said))
        if task == "describe":
            scores["describe, restyled"] = sum(text == restyled(one.answer) for one, text in zip(samples, said))
    return scores


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="tiny", help='folder, Hub id, or "tiny" (default)')
    add("--data", type=Path, metavar="FILE", help="conversations to learn from (default: a lesson on drawn pictures)")
    add("--out", type=Path, metavar="FOLDER", help="keep the new checkpoint here (default: only look at it)")
    add("--rank", type=int, default=8, help="of LoRA's matrices (default 8)")
    add("--steps", type=int, default=90, help="of training (default 90)")
    add("--batch-size", type=int, default=6, help="conversations a step (default 6)")
    add("--learning-rate", type=float, help="default: 0.4 / hidden_size, which is 0.002 for tiny and 0.0003 for the 2B")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is read."""
    for name in ("rank", "steps", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")
    if options.learning_rate is not None and not 0 < options.learning_rate < math.inf:
        raise ValueError(f"--learning-rate must be above 0, not {options.learning_rate}.")
    if options.out is None:
        return
    if (options.out / "config.json").exists():
        raise ValueError(f"--out {shorten(options.out)} holds a checkpoint already; name another folder.")
    nearest = next(folder for folder in (options.out, *options.out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"--out {shorten(options.out)} cannot be written; name a folder of yours.")


def fine_tune(options: argparse.Namespace, out: Path) -> None:
    """Train, merge, save, load again; with answers before and after."""
    folder = weights_loader.find_checkpoint(options.model, weights=True)
    processor = Qwen2VLProcessor.from_pretrained(folder)
    config = Qwen2VLConfig.from_pretrained(folder).text_config

    def check(conversation: list[dict]) -> None:
        tokens = encode(processor, [conversation])[1].shape[1]
        if tokens > config.max_position_embeddings:
            limit = f"the model's context of {config.max_position_embeddings}"
            raise ValueError(f"{tokens} tokens do not fit {limit}; give its pictures a max_pixels.")

    examples = make_lesson() if options.data is None else read_conversations(options.data, check)
    dtype = "auto" if torch.cuda.is_available() else "float32"  # the same answers on every CPU
    model = weights_loader.load_model(folder, dtype=dtype)
    parameters = add_lora(model, rank=options.rank, alpha=2 * options.rank)  # which adds nothing yet
    learned = sum(parameter.numel() for parameter in parameters)
    share = learned / (sum(parameter.numel() for parameter in model.parameters()) - learned)
    print(f"{len(examples)} conversations; {learned:,} numbers to learn, {share:.1%} of what the model has")

    asked = examples[:3] if options.data else [scenes.messages(sample) for sample in HELD_OUT.samples("describe", 3)]
    before = answers(model, processor, asked)
    scores_before = {} if options.data else held_out_scores(model, processor)
    learning_rate = options.learning_rate or 0.4 / config.hidden_size  # wider layers take smaller steps
    train(model, processor, examples, parameters, options.steps, learning_rate, options.batch_size)

    merge_lora(model)
    weights_loader.save(model, processor, out)
    del model  # or there would be two of them in memory
    model, processor = weights_loader.load(out, dtype=dtype)
    for conversation, *said in zip(asked, before, answers(model, processor, asked)):
        print(f"\n{text_of(conversation[-2])}\n  before: {said[0]}\n  after:  {said[1]}")
    for row, after in held_out_scores(model, processor).items() if scores_before else ():
        print(f"{row}: {scores_before[row]} → {after} of {HELD_OUT_PICTURES} right")


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    torch.manual_seed(0)
    try:
        check_options(options)
        with TemporaryDirectory() as scratch:
            fine_tune(options, options.out or Path(scratch))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        print("error: Out of memory; lower --batch-size, or give the pictures a max_pixels.", file=sys.stderr)
        return 2
    if options.out:
        print(f"\nWrote {options.out}; ask it: python qwen2vl_mini.py --model {options.out} --image … --prompt …")
    return 0


if __name__ == "__main__":
    sys.exit(main())
