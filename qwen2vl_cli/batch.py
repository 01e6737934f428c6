"""--batch: a file of conversations → a file of answers, in batches of similar length, able to go on where it stopped.

The input is read in windows of lines, so that memory does not grow with the file. Within a window, prompts of similar
length run together. Answers are appended to --out as soon as their batch is done; when all are there, or the run is
stopped, the file is put in order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qwen2vl_cli.answers import Answers, locked
from qwen2vl_cli.ask import BUNDLED, load_model, open_checkpoint, sampling_options
from qwen2vl_cli.costs import check_length, media_of, open_media, prompt_length
from qwen2vl_cli.progress import Progress
from qwen2vl_cli.prompts import clip_options, text_of
from qwen2vl_cli.terminal import came_from_debugger, note, sentence
from qwen2vl_io.keys import OPTION_KEYS, check_line_keys
from qwen2vl_io.messages import as_messages, media_kind
from qwen2vl_io.options import call_options
from qwen2vl_io.sources import SOURCE_KEYS, is_url, item_source

BATCH_TOKENS = 16384  # of one call: prompts with their padding, and the longest answers
WINDOW_LINES = 64
WINDOW_PIXELS = 100_000_000  # of open pictures: 300 MB
WINDOW_BYTES = 64 * 2**20  # of lines: pictures may stand in them as data URIs


@dataclass
class Line:
    """One line of the input: what stands in it, and later what came of it."""

    number: int  # from 1
    text: bytes
    messages: list[dict] = field(default_factory=list)
    length: int = 0  # tokens of the prompt
    named: dict = field(default_factory=dict)  # its "id", if it has one
    options: dict = field(default_factory=dict)  # of its pictures and clips, where they do not say it themselves

    @property
    def hash(self) -> str:
        """Tells whether the line is still the one that was answered."""
        return hashlib.sha256(self.text).hexdigest()[:16]

    def record(self, **content) -> dict:
        return {"line": self.number, **self.named, **content, "hash": self.hash}


def read_lines(path: Path) -> Iterator[Line]:
    """All lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.isspace():
                    yield Line(number, text.strip())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None


def parse(line: Line, folder: Path, system: str | None) -> None:
    """Fill in `messages` and `named`; media paths become absolute. Raises ValueError."""
    content = read_json(line.text)
    if isinstance(content, dict):
        line.named = {"id": content["id"]} if "id" in content else {}
        if content.get("messages") is None:
            raise ValueError('This has no "messages"; write a list of messages, or {"id": …, "messages": [...]}.')
        content = check_line_keys(content)
        line.options = call_options({key: content[key] for key in OPTION_KEYS if key in content})
        content = content["messages"]

    line.messages = as_messages(content)
    if not line.messages:
        raise ValueError("This conversation has no messages.")
    if system and line.messages[0]["role"] != "system":
        line.messages.insert(0, {"role": "system", "content": system})

    for item in media_of(line.messages):
        kind = media_kind(item)
        source = item_source(item)
        for key in SOURCE_KEYS:
            item.pop(key, None)
        item["type"] = kind
        if isinstance(source, list):
            item[kind] = [in_folder(frame, folder) for frame in source]
        else:
            item[kind] = in_folder(source, folder)


def read_json(text: bytes):
    """What a line says. Raises ValueError."""
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # halves of characters ("\\ud800") are no text
    except UnicodeError:
        raise ValueError("This is no UTF-8 text; convert it first.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"This is no JSON ({error.msg} at character {error.pos + 1}).") from None
    except (ValueError, RecursionError):
        raise ValueError("This JSON is nested too deeply, or has a number of thousands of digits.") from None
    return content


def in_force(clips: dict, own: dict) -> dict:
    """The options of a line's pictures and clips: those of the command, of which its own take the places."""
    rates = ("fps", "nframes")
    kept = {key: value for key, value in clips.items() if not (key in rates and own.keys() & set(rates))}
    return kept | own


def in_folder(source, folder: Path):
    """A relative path → the same, from `folder`; everything else stays unchanged."""
    return os.path.join(folder, source) if isinstance(source, str) and source and not is_url(source) else source


def windows(lines: Iterator[Line], prepare: Callable[[Line], int | None]) -> Iterator[list[Line]]:
    """Groups of neighbouring lines that are prepared and can be in memory together.

    `prepare` returns the pixels that a line keeps open, or None if it cannot be answered.
    """
    window: list[Line] = []
    seen = 0  # lines, good or bad
    pixels = 0
    for line in lines:
        seen += 1
        cost = prepare(line)
        if cost is not None:
            window.append(line)
            pixels += cost

        size = sum(len(line.text) for line in window)
        if seen == WINDOW_LINES or pixels > WINDOW_PIXELS or size > WINDOW_BYTES:
            yield window
            window = []
            seen = 0
            pixels = 0
    yield window


def batches(window: list[Line], batch_tokens: int, max_new_tokens: int) -> Iterator[list[Line]]:
    """A window → batches of similar length, longest first, each of at most `batch_tokens` with padding and answers.

    A prompt for which that is too little runs alone.
    """
    batch: list[Line] = []
    for line in sorted(window, key=lambda line: (-line.length, line.number)):
        if batch and (batch[0].length + max_new_tokens) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch


class Job:
    """One run of --batch. The weights are loaded when the first batch is ready for them."""

    def __init__(self, args: argparse.Namespace, answers: Answers, total: int, done: int):
        self.args = args
        self.answers = answers
        self.progress = Progress(total, done)
        self.system = text_of(args.system) if args.system else None
        self.folder = args.batch.resolve().parent  # relative paths count from here
        self.clips = clip_options(args)
        self.processor, self.context = open_checkpoint(args)
        self.model = None

    def run(self, lines: Iterator[Line]) -> None:
        batch_tokens = self.args.batch_tokens or BATCH_TOKENS
        for window in windows(lines, self.prepare):
            for batch in batches(window, batch_tokens, self.args.max_new_tokens):
                self.answer(batch)
                for line in batch:
                    line.messages = []  # its pictures are not needed any more
            self.progress.hide()
            self.answers.flush()

    def prepare(self, line: Line) -> int | None:
        """Check a line and open its media, for `windows`. A bad one is reported and skipped."""
        try:
            parse(line, self.folder, self.system)
            options = in_force(self.clips, line.options)
            for message in line.messages:
                if not isinstance(message["content"], str):
                    message["content"] = open_media(message["content"], self.processor, self.context, options)
            line.length = prompt_length(line.messages, self.processor, self.args.add_vision_id)
            check_length(line.messages, line.length, self.args.max_new_tokens, self.context)
        except Exception as error:
            self.fail(line, error)
            return None

        measures = [item["measured"] for item in media_of(line.messages)]
        return sum(measured["width"] * measured["height"] for measured in measures if "frames" not in measured)

    def fail(self, line: Line, error: Exception) -> None:
        if self.args.debug or came_from_debugger(error):
            raise error

        text = sentence(error)
        self.progress.note(f"line {line.number}: {text}")
        self.answers.write(line.record(error=text.removeprefix("error: ")))
        self.progress.step(failed=True)
        self.progress.show()

    def answer(self, batch: list[Line]) -> None:
        """Run one batch; if that fails, its lines one by one."""
        if self.model is None:
            self.progress.hide()
            self.model = load_model(self.args)[0]
        self.progress.show()

        failure = None
        try:
            records = self.generate(batch)
        except Exception as error:
            if came_from_debugger(error):
                raise
            failure = error.with_traceback(None)  # which would hold on to the memory that is missing

        if failure is None:
            for record in records:
                self.answers.write(record)
                self.progress.step()
            self.progress.show()
        elif len(batch) == 1:
            self.fail(batch[0], failure)
        else:
            self.progress.note(f"A batch of {len(batch)} lines failed ({sentence(failure)}); now one by one.")
            for line in batch:
                self.answer([line])

    def generate(self, batch: list[Line]) -> list[dict]:
        """The records of lines that run together."""
        inputs = self.processor.apply_chat_template(
            [line.messages for line in batch],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            add_vision_id=self.args.add_vision_id,
        )
        prompt_length = inputs["input_ids"].shape[1]
        options = {"max_new_tokens": self.args.max_new_tokens, **sampling_options(self.args)}
        ids = self.model.generate(**inputs.to(self.model.device), **options)
        return [self.make_record(line, row) for line, row in zip(batch, ids[:, prompt_length:].tolist())]

    def make_record(self, line: Line, ids: list[int]) -> dict:
        """The record of one answer: its ids, and padding behind its end."""
        ends = set(self.model.end_token_ids())
        end = next((place for place, i in enumerate(ids) if i in ends), None)
        answer = self.processor.decode(ids[:end], skip_special_tokens=True)
        raw = self.processor.decode(ids[:end], skip_special_tokens=False)

        content = {"answer": answer}
        if raw != answer:
            content["raw"] = raw
        if end is None:
            content["cut_off"] = True
        content["tokens"] = {"prompt": line.length, "answer": len(ids) if end is None else end + 1}
        return line.record(**content)


def run(args: argparse.Namespace) -> int:
    """Answer the lines of --batch; returns 0 if all of them are answered now, else 1. Raises ValueError."""
    check_files(args.batch, args.out)
    with locked(args.out):
        return run_alone(args)


def run_alone(args: argparse.Namespace) -> int:
    """`run`, while no other job writes to --out."""
    numbers = {line.number for line in read_lines(args.batch)}
    if not numbers:
        raise ValueError(f"{args.batch} is empty; write a conversation on each line.")

    answers = Answers(args.out)
    done = count_answered(args.batch, answers)
    job = Job(args, answers, len(numbers), done)
    if args.model is None:
        note(BUNDLED)
    if done:
        note(f"{done} of {len(numbers)} lines are answered in {args.out} already.")

    progress = job.progress
    complete = False
    try:
        job.run(line for line in read_lines(args.batch) if not answers.has(line.number, line.hash))
        complete = True
    except KeyboardInterrupt:
        resume = f" {args.out} has what was answered; the same command goes on from there." if args.out else ""
        progress.note("Stopped." + resume)
        raise
    finally:
        progress.close()
        answers.close(numbers if complete else None)

    failed = f", {progress.failed} failed" if progress.failed else ""
    note(f"{progress.done - progress.failed} of {progress.total} lines are answered{failed}.")
    return 1 if progress.failed else 0


def check_files(path: Path, out: Path | None) -> None:
    """Whether --batch can be read and --out written. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"--batch {path} is no file; name one with a conversation on each line.")
    if out is None:
        return

    is_other_thing = out.exists() and not out.is_file()
    if is_other_thing or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written; name a file in an existing folder of yours.")
    if out.exists() and out.samefile(path):
        raise ValueError(f"--out {out} would overwrite the conversations themselves; choose another name.")


def count_answered(path: Path, answers: Answers) -> int:
    """How many lines of the input need not run again. Raises ValueError if the answers belong to another input."""
    if not answers.answered:
        return 0
    done = sum(answers.has(line.number, line.hash) for line in read_lines(path))
    if not done and len(answers.answered) > 1:  # a single one may be of a line that was edited
        raise ValueError(
            f"--out {answers.path} holds the answers to other conversations than {path}; name another file."
        )
    return done
