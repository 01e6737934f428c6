"""--batch: answers as for single prompts, in order, once each, whatever happens to the lines or to the run."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import qwen2vl_mini
import weights_loader
from qwen2vl_cli import answers, batch, chat, progress
from qwen2vl_cli.__main__ import main
from qwen2vl_cli.batch import Answers, Line, batches, windows
from qwen2vl_cli.progress import Progress
from qwen2vl_mini import Qwen2VLForConditionalGeneration
from tests.test_command_line import CONTEXT, make_checkpoint, make_clip, make_pictures, one_sentence

BOX = "<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(100,250),(500,750)<|box_end|>"
SMALL = {"nframes": 4, "min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28}  # a clip of 12 tokens


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with pictures a.png (20 tokens), b.png (15) and a clip, in which nobody stands."""
    make_pictures(tmp_path)
    make_clip(tmp_path / "clip.mp4")
    return tmp_path


@pytest.fixture
def run(checkpoint, folder, capsys):
    """run(lines, options …) writes in.jsonl and runs it → exit code, records on stdout or in --out, stderr."""

    def call(lines: list | None, *options: str) -> tuple[int, list[dict], str]:
        if lines is not None:
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
            (folder / "in.jsonl").write_text(text, encoding="utf-8")
        fixed = ["--model", checkpoint, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6"]
        code = main([*fixed, "--batch", str(folder / "in.jsonl"), *options])
        out, err = capsys.readouterr()
        path = folder / "out.jsonl"
        text = path.read_text(encoding="utf-8") if "--out" in options and path.exists() else out
        return code, [json.loads(line) for line in text.splitlines()] if code != 2 else [], err

    return call


@pytest.fixture
def batch_sizes(monkeypatch) -> list[int]:
    """How many rows each call of generate had."""
    seen, generate = [], Qwen2VLForConditionalGeneration.generate

    def spy(self, input_ids, **options):
        seen.append(len(input_ids))
        return generate(self, input_ids, **options)

    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "generate", spy)
    return seen


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


IMAGE, CLIP = {"type": "image", "image": "a.png"}, {"type": "video", "video": "clip.mp4", **SMALL}
MIXED = [
    [user("Hello, how are you?")],
    {"id": "one picture", "messages": [user(IMAGE, {"type": "text", "text": "What is it?"})]},
    [user({"type": "image_url", "image_url": {"url": "b.png"}}, IMAGE, "Compare.")],
    [user(CLIP, IMAGE, "What happens?"), {"role": "assistant", "content": "A circle moves."}, user("Where?")],
    {"messages": [user({"video": ["a.png", "same_size.png"]}, "And?")], "id": {"any": "thing"}},
]


def alone(checkpoint: str, folder: Path, messages: list[dict], **options) -> tuple[str, int]:
    """The answer of the library to one conversation, and the tokens of its prompt."""
    model, processor = weights_loader.load(checkpoint, dtype="float32", device="cpu")
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, **options
    )
    ids = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True), inputs["input_ids"].shape[1]


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mixed_lines_are_answered_together_as_each_alone(run, checkpoint, folder, batch_sizes, monkeypatch):
    code, records, err = run(MIXED)
    assert code == 0 and batch_sizes == [5], err
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5]
    assert [record.get("id") for record in records] == [None, "one picture", None, None, {"any": "thing"}]
    assert err == "5 of 5 lines are answered.\n"
    monkeypatch.chdir(folder)  # where the relative paths count from
    for line, record in zip(MIXED, records):
        messages = line["messages"] if isinstance(line, dict) else line
        answer, tokens = alone(checkpoint, folder, messages)
        assert (record["answer"], record["tokens"]) == (answer, {"prompt": tokens, "answer": 6})
        assert record["cut_off"] is True and "raw" not in record


def test_answers_do_not_depend_on_the_batches(run, batch_sizes):
    one_by_one = run(MIXED, "--batch-tokens", "1")
    assert batch_sizes == [1] * 5
    assert one_by_one == run(MIXED)


def test_options_hold_for_each_line(run, checkpoint, folder, monkeypatch):
    system = {"role": "system", "content": "Be brief."}
    lines = [MIXED[1]["messages"], [system, user("Hello")], [user({"type": "video", "video": "clip.mp4"}, "And?")]]
    options = ["--system", "Be long.", "--add-vision-id", "--max-pixels", "6*28*28", "--min-pixels", "4*28*28"]
    code, records, _ = run(lines, *options, "--nframes", "4")
    monkeypatch.chdir(folder)
    lines = [[{"role": "system", "content": "Be long."}, *lines[0]], lines[1], lines[2]]
    lines[2] = [{"role": "system", "content": "Be long."}, *lines[2]]
    limits = {"min_pixels": 4 * 784, "max_pixels": 6 * 784, "add_vision_id": True, "nframes": 4}
    for line, record in zip(lines, records):
        answer, tokens = alone(checkpoint, folder, line, **limits)
        assert (record["answer"], record["tokens"]["prompt"]) == (answer, tokens)


def test_sampling_is_repeatable_and_differs(run):
    hot = ("--temperature", "2", "--seed")
    assert run(MIXED[:2], *hot, "1") == run(MIXED[:2], *hot, "1") != run(MIXED[:2], *hot, "2")


def test_control_tokens_are_kept_in_raw_only(run, monkeypatch, checkpoint):
    """And an answer ends where its row ends, not where the longest of the batch does."""
    tokenizer = weights_loader.load(checkpoint, dtype="float32", device="cpu")[1].tokenizer
    rows = [tokenizer.encode(tokenizer.split(text + "<|im_end|>")) for text in (BOX, "No.")]
    steps = iter(torch.tensor([[row[min(i, len(row) - 1)] for row in rows] for i in range(len(rows[0]))]))
    monkeypatch.setattr(qwen2vl_mini, "choose", lambda *a: next(steps))
    code, records, _ = run([[user("Where is it? Tell me.")], [user("Is it?")]], "--max-new-tokens", "64")
    assert code == 0
    assert records[0]["answer"] == "red circle(100,250),(500,750)" and records[0]["raw"] == BOX
    assert records[0]["tokens"]["answer"] == len(rows[0]) and "cut_off" not in records[0]
    assert records[1]["answer"] == "No." and records[1].keys() == {"line", "answer", "tokens", "hash"}


def test_saved_chats_are_batches(run, folder):
    (folder / "deeper").mkdir()
    item = chat.saved_item({"type": "image", "source": os.path.relpath(folder / "a.png")})
    (folder / "in.jsonl").write_text(json.dumps([user(item, "What is it?")]) + "\n")
    assert run(None)[1][0]["answer"] == run([[user(IMAGE, "What is it?")]])[1][0]["answer"]


# ── Bad lines, bad batches ────────────────────────────────────────────────────────────────────────────────────────

BAD_LINES = [
    ("no JSON", "{'role': 'user'}", "JSON"),
    ("half a line", '[{"role": "user", "con', "JSON"),
    ("too deep", "[" * 100_000, "nested"),
    ("huge number", "[" + "1" * 5000 + "]", "digits"),
    ("half a character", [user("\ud800")], "UTF-8"),
    ("a number", 7, "list of messages"),
    ("a string", '"Hello"', "list of messages"),
    ("no messages", [], "no messages"),
    ("object without messages", {"id": 3}, "messages"),
    ("messages of numbers", [1, 2], "message"),
    ("no role", [{"content": "Hello"}], "role"),
    ("no content", [{"role": "user"}], "content"),
    ("content a number", [{"role": "user", "content": 5}], "content"),
    ("item a number", [user(5)], "item"),
    ("picture without a source", [user({"type": "image"})], "picture"),
    ("picture a number", [user({"type": "image", "image": 5})], "picture"),
    ("missing picture", [user({"type": "image", "image": "nowhere.png"})], "nowhere.png"),
    ("folder as picture", [user({"type": "image", "image": "."})], "folder"),
    ("missing clip", [user({"type": "video", "video": "nowhere.mp4"})], "nowhere.mp4"),
    ("fps and nframes", [user({"type": "video", "video": "clip.mp4", "fps": 1, "nframes": 4})], "fps"),
    ("fps a word", [user({"type": "video", "video": "clip.mp4", "fps": "fast"})], "fps"),
    ("private URL", [user({"type": "image", "image": "http://127.0.0.1:9/a.png"})], "127.0.0.1"),
    ("beyond the context", [user("many words " * CONTEXT)], str(CONTEXT)),
    ("one half of the sizes", [user({**IMAGE, "resized_height": 56})], "resized_width"),
]


def test_bad_lines_are_reported_and_skipped(run, batch_sizes):
    good = [user("Hello")]
    lines = [good, *(line for _, line, _ in BAD_LINES), "", good]
    code, records, err = run(lines)
    assert code == 1 and batch_sizes == [2]
    notes = err.splitlines()
    assert notes.pop() == f"2 of {len(BAD_LINES) + 2} lines are answered, {len(BAD_LINES)} failed."
    assert len(notes) == len(BAD_LINES) == len(records) - 2
    for number, (name, _, word), record, line in zip(range(2, 99), BAD_LINES, records[1:], notes):
        assert record["line"] == number and word in record["error"], (name, record)
        assert line == f"line {number}: error: {record['error']}", name
    assert records[0]["answer"] == records[-1]["answer"] and records[-1]["line"] == len(lines)


def test_bytes_that_are_no_text_are_one_bad_line(run, folder):
    (folder / "in.jsonl").write_bytes(json.dumps([user("Hello")]).encode() + b'\n[{"role": "\xff\xfe"}]\n')
    code, records, _ = run(None)
    assert code == 1 and "answer" in records[0] and "UTF-8" in records[1]["error"]


def test_patches_cannot_be_smuggled_in(run):
    """`patches` in an item is how a chat keeps what it has decoded; from a file it is nothing but a key."""
    plain, forged = ([user({**IMAGE, **extra}, "What is it?")] for extra in ({}, {"patches": [[], [1, 2, 2]]}))
    forged[0]["content"][0] |= {"measured": {"tokens": 1}}
    code, records, _ = run([plain, forged])
    assert code == 0 and records[0]["answer"] == records[1]["answer"]


def test_failing_batch_is_run_line_by_line(run, monkeypatch, batch_sizes):
    """As when memory runs out. The one that fails alone too is reported, the others are answered."""
    generate = Qwen2VLForConditionalGeneration.generate  # the spy's

    def fail(self, input_ids, **options):
        if len(input_ids) > 1 or "pixel_values_videos" in options:
            batch_sizes.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generate(self, input_ids, **options)

    expected = run(MIXED)[1]
    batch_sizes.clear()
    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "generate", fail)
    code, records, err = run(MIXED)
    assert code == 1 and sorted(batch_sizes) == [1, 1, 1, 1, 1, 5]
    assert "Out of memory" in records[3]["error"] and "line 4: error: Out of memory" in err and "one by one" in err
    assert [r for r in records if "answer" in r] == [expected[i] for i in (0, 1, 2)]  # line 5 is a clip as well


# ── Going on where it stopped ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answered(monkeypatch) -> list[int]:
    """The lines that are run."""
    seen, generate = [], batch.Job.generate

    def spy(self, batch):
        seen.extend(line.number for line in batch)
        return generate(self, batch)

    monkeypatch.setattr(batch.Job, "generate", spy)
    return seen


@pytest.fixture
def out(folder) -> tuple[str, str]:
    return "--out", str(folder / "out.jsonl")


def test_answered_lines_are_not_run_again(run, out, answered, monkeypatch):
    first = run(MIXED, *out)
    assert first[0] == 0 and sorted(answered) == [1, 2, 3, 4, 5] and first[1] == run(MIXED)[1]
    monkeypatch.setattr(weights_loader, "load_model", lambda *a, **k: pytest.fail("the weights were loaded"))
    code, records, err = run(MIXED, *out)
    assert (code, records) == (0, first[1]) and "5 of 5 lines are answered in" in err


def test_edited_new_and_failed_lines_are_run(run, out, answered):
    lines = [[user(f"Hello {i}")] for i in range(4)] + [[user({"type": "image", "image": "later.png"})]]
    assert run(lines, *out)[0] == 1
    answered.clear()
    Image.new("RGB", (56, 56)).save(Path(out[1]).parent / "later.png")
    lines = [*lines[:1], [user("Edited")], *lines[2:], [user("New")]]
    code, records, _ = run(lines, *out)
    assert code == 0 and sorted(answered) == [2, 5, 6]
    assert records == run(lines)[1]  # in order, with one record a line
    code, records, _ = run(lines[:3], *out)  # lines that are gone leave nothing behind once something is written
    assert code == 0


@pytest.mark.parametrize("torn", [b'{"line": 3, "answer": "A gr', b'{"li', b'{"line": 3, "answer": "A"}'])
def test_torn_last_line_is_repaired(run, out, answered, torn):
    expected = run(MIXED, *out)[1]
    content = Path(out[1]).read_bytes().splitlines(keepends=True)
    Path(out[1]).write_bytes(b"".join(content[:2]) + torn)
    answered.clear()
    assert run(MIXED, *out)[:2] == (0, expected) and sorted(answered) == [3, 4, 5]


def test_finished_file_out_of_order_is_put_in_order(run, out, answered, monkeypatch):
    """As after a kill between the last answer and the ordering; of two records of a line, the last one counts."""
    expected = run(MIXED, *out)[1]
    content = Path(out[1]).read_bytes().splitlines(keepends=True)
    Path(out[1]).write_bytes(content[1] + b'{"line": 1, "error": "Out of memory."}\n' + b"".join(reversed(content)))
    draft = Path(out[1]).with_name(".out.jsonl.draft")
    draft.write_bytes(b'{"line": 1, "ans')  # left by a kill during the ordering
    answered.clear()
    monkeypatch.setattr(weights_loader, "load_model", lambda *a, **k: pytest.fail("the weights were loaded"))
    assert run(MIXED, *out)[:2] == (0, expected) and answered == []
    assert not draft.exists()


def test_ordering_that_fails_loses_nothing(run, out, monkeypatch):
    lines = [[user("Hello " * i)] for i in range(1, 5)]

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert run(lines, "--batch-tokens", "1", *out)[0] == 2
    numbers = [json.loads(line)["line"] for line in Path(out[1]).read_text(encoding="utf-8").splitlines()]
    assert numbers == [4, 3, 2, 1] and not list(Path(out[1]).parent.glob(".*"))
    assert [record["line"] for record in run(lines, *out)[1]] == [1, 2, 3, 4]


@pytest.mark.parametrize("with_out", [True, False])
def test_ctrl_c_loses_only_the_batch_in_work(run, out, answered, monkeypatch, with_out):
    generate, lines = batch.Job.generate, [[user("Hello " * i)] for i in range(1, 8)]

    def interrupt(self, batch):
        if batch[0].number == 3:
            raise KeyboardInterrupt
        return generate(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(batch.Job, "generate", interrupt)
        code, records, err = run(lines, "--batch-tokens", "1", *(out if with_out else ()))
    assert code == 130 and "Traceback" not in err and "Stopped." in err
    assert [record["line"] for record in records] == [4, 5, 6, 7]  # long ones came first; even so they are in order
    if with_out:
        answered.clear()
        assert run(lines, "--batch-tokens", "1", *out)[:2] == (0, run(lines)[1])
        assert sorted(answered[:3]) == [1, 2, 3]


def test_what_is_answered_is_in_the_file_before_the_next_batch(run, out, monkeypatch):
    """So that even a power failure costs one batch."""
    seen, generate = [], batch.Job.generate
    spy = lambda self, batch: seen.append(len(Answers(Path(out[1])).answered)) or generate(self, batch)  # noqa: E731
    monkeypatch.setattr(batch.Job, "generate", spy)
    run([[user(f"Hello {i}")] for i in range(4)], "--batch-tokens", "1", *out)
    assert seen == [0, 1, 2, 3]


FOREIGN = {
    "text": b"My notes\n",
    "text without an end": b"My notes",
    "other JSON": b'{"name": "x"}\n',
    "a list": b"[1, 2]\n",
    "answers and notes": b'{"line": 1, "answer": "A", "hash": "x"}\nMy notes\n',
    "answers to other questions": b'{"line": 1, "answer": "A", "hash": "x"}\n{"line": 2, "answer": "B", "hash": "y"}\n',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_is_not_ours_is_left_alone(run, out, content):
    Path(out[1]).write_bytes(content)
    code, _, err = run(MIXED, *out)
    assert code == 2 and one_sentence(err) and "name another file" in err
    assert Path(out[1]).read_bytes() == content


def test_links_and_permissions_stay(run, out, folder):
    target = folder / "real.jsonl"
    target.write_bytes(b'{"line": 2, "answer": "old", "hash": "old"}\n')
    target.chmod(0o640)
    Path(out[1]).symlink_to(target)
    code, records, err = run(MIXED, *out)
    assert code == 0, err
    assert [r["line"] for r in records] == [1, 2, 3, 4, 5] and records[1]["answer"] != "old"
    assert Path(out[1]).is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in folder.glob("[!.]*.jsonl*")} == {"in.jsonl", "out.jsonl", "real.jsonl"}


@pytest.mark.parametrize("name", ["out.jsonl", "link.jsonl", "sub/../out.jsonl"])
def test_a_second_job_on_the_same_file_is_refused(run, out, folder, name):
    """Whatever the file is called; the first job's answers stay, and afterwards the file is free."""
    (folder / "sub").mkdir()
    (folder / "link.jsonl").symlink_to(folder / "out.jsonl")
    with answers.locked(Path(out[1])):
        code, _, err = run(MIXED, "--out", str(folder / name))
        assert code == 2 and one_sentence(err) and "another job" in err
        assert not Path(out[1]).exists()
    code, records, _ = run(MIXED, *out)
    assert code == 0 and [record["line"] for record in records] == [1, 2, 3, 4, 5]


def test_a_file_that_cannot_be_locked_is_one_sentence(run, out, monkeypatch):
    def no_lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(answers.FileLock, "acquire", no_lock)
    code, _, err = run(MIXED, *out)
    assert code == 2 and one_sentence(err) and "cannot be locked" in err


def test_a_job_that_was_killed_leaves_no_lock_behind(checkpoint, folder, run, out):
    script = "from pathlib import Path; import os, sys; from qwen2vl_cli.answers import locked\n"
    script += "with locked(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script, out[1]], cwd=Path(__file__).parent.parent)
    assert killed.returncode == -9
    assert run(MIXED, *out)[0] == 0


# ── What cannot be used at all ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options, word",
    [
        ("--batch nowhere.jsonl", "nowhere.jsonl"),
        ("--batch .", "no file"),
        ("--batch empty.jsonl", "empty"),
        ("--batch blank.jsonl", "empty"),
        ("--batch in.jsonl --out in.jsonl", "overwrite"),
        ("--batch in.jsonl --out nowhere/out.jsonl", "--out"),
        ("--batch in.jsonl --out .", "--out"),
        ("--batch in.jsonl --image a.png", "--image"),
        ("--batch in.jsonl --chat", "--chat"),
        ("--batch in.jsonl --json", "--json"),
        ("--batch in.jsonl --count-tokens", "--count-tokens"),
        ("--batch in.jsonl --boxes out.png", "--boxes"),
        ("--batch in.jsonl --batch-tokens 0", "--batch-tokens"),
        ("--batch in.jsonl --model nothing --out out.jsonl", "nothing"),
        ("--batch in.jsonl --device cuda:77 --out out.jsonl", "cuda:77"),
        ("--image a.png --out out.jsonl", "--batch"),
    ],
)
def test_a_batch_that_cannot_start_is_one_sentence(checkpoint, folder, monkeypatch, capsys, options, word):
    monkeypatch.chdir(folder)
    (folder / "in.jsonl").write_text(json.dumps(MIXED[0]) + "\n")
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n \n")
    before = sorted(folder.iterdir())
    options = options.split() if "--model" in options else ["--model", checkpoint, *options.split()]
    code = main(options)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and one_sentence(err) and word in err, err
    assert sorted(folder.iterdir()) == before


# ── Parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_windows_bound_what_is_in_memory(monkeypatch):
    lines = [Line(number, b"x") for number in range(1, 151)]
    sizes = [len(window) for window in windows(iter(lines), lambda line: 0)]
    assert sizes == [64, 64, 22]
    large = lambda line: batch.WINDOW_PIXELS // 3  # noqa: E731
    assert [len(window) for window in windows(iter(lines[:10]), large)] == [4, 4, 2]
    assert [len(w) for w in windows(iter(lines), lambda line: None)] == [0, 0, 0]  # bad lines are no reason to wait
    seen = []
    first = next(windows(iter(lines), lambda line: seen.append(line) or 0))
    assert seen == first  # nothing is read ahead


def test_batches_are_of_similar_length_and_bounded():
    lengths = [10, 500, 12, 480, 11, 5000, 490, 13]
    lines = [Line(number, b"", length=length) for number, length in enumerate(lengths)]
    made = [[line.length for line in batch] for batch in batches(lines, 1530, 10)]
    assert made == [[5000], [500, 490, 480], [13, 12, 11, 10]]


def test_progress_is_rare_where_there_is_no_terminal(monkeypatch, capsys):
    shown = Progress(4, done=1)
    for _ in range(3):
        shown.step()
        shown.show()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1)
    shown.show()
    assert capsys.readouterr().err.startswith("4 of 4 lines, about 00:00 left\n")


def test_progress_is_a_bar_at_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = Progress(4, done=0)
    shown.step(failed=True)
    assert "left" not in shown.text()  # a failure takes no time, so it tells nothing about the rest
    shown.step()
    assert capsys.readouterr().err == ""
    shown.show()
    bar = capsys.readouterr().err
    assert bar.startswith("\r|" + "█" * 15 + " " * 15 + "| 2 of 4 lines, 1 failed, about 00:0") and "\n" not in bar
    shown.note("line 2: error: …")
    cleared, blank, text, again = re.split(r"[\r\n]+", capsys.readouterr().err)[-4:]
    assert blank.strip() == "" and text == "line 2: error: …"  # a note does not mix with the bar
    assert again.startswith("|█")  # which comes back below it
    shown.close()
    assert re.fullmatch(r"\r +\r", capsys.readouterr().err)  # nothing is left of it
