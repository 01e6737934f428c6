"""What people do in their first three minutes: options in any order, empty texts, Ctrl-C, pipes, a debugger."""

# ruff: noqa: F811 (fixtures of another module are arguments here)

import io
import json
import math
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
from qwen2vl_cli import chat_loop, questions
from qwen2vl_cli.__main__ import make_parser
from qwen2vl_cli.chat import Chat
from qwen2vl_cli.questions import TAUGHT
from qwen2vl_io.boxes import Box, enlarge_tiny
from tests.test_command_line import (  # noqa: F401  (fixtures)
    BOX,
    ask,
    checkpoint,
    clip,
    conversations,
    loaded,
    one_sentence,
    pictures,
    script,
    start,
    type_in,
)
from tiny_world import scenes, threads
from tiny_world.scenes import COLOURS, SHAPES, TEXT_ONLY

ROOT = Path(__file__).resolve().parent.parent


def kinds(messages: list[dict]) -> list[str]:
    return [item.get("text") or item["type"] for item in messages[-1]["content"]]


# ── The order of options ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "argv, order",
    [
        ("--prompt Why? --image A", ["image", "Why?"]),
        ("--image A --prompt Why?", ["image", "Why?"]),
        ("--prompt Why? --video C", ["video", "Why?"]),
        ("--image A --prompt Why? --video C --image A", ["image", "video", "image", "Why?"]),
        ("--prompt Why? --image A --system Brief", ["image", "Why?"]),
        ("--prompt One --image A --prompt two", ["One", "image", "two"]),
        ("--prompt One --prompt two --image A", ["One", "two", "image"]),
        ("--prompt Compare:@A --image A", ["image", "Compare:@A"]),  # no blank before it: no file
    ],
)
def test_a_single_prompt_comes_last_and_several_keep_their_places(ask, pictures, clip, conversations, argv, order):
    names = {"A": pictures["a"], "C": clip}
    code, _, err = ask(*(names.get(word, word) for word in argv.split()))
    assert code == 0, err
    assert kinds(conversations[0][0]) == order


def test_a_file_named_in_the_prompt_stays_there(ask, pictures, conversations):
    ask("--prompt", f"Is @{pictures['b']} like the others?", "--image", pictures["a"])
    assert kinds(conversations[0][0]) == ["image", "Is", "image", "like the others?"]


def test_the_order_holds_for_the_first_turn_of_a_chat_and_for_stdin(ask, pictures, conversations, monkeypatch):
    type_in(monkeypatch)
    ask("--chat", "--prompt", "Why?", "--image", pictures["a"])
    type_in(monkeypatch, "From a pipe?")
    ask("--prompt", "-", "--image", pictures["a"])
    assert [kinds(messages) for messages, _ in conversations] == [["image", "Why?"], ["image", "From a pipe?"]]


# ── Texts that say nothing ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "argv, word",
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "", "--image", "A"], "empty"),
        (["--prompt", "  \t", "--image", "A"], "empty"),
        (["--prompt", "Why?", "--prompt", "", "--image", "A"], "empty"),
        (["--prompt", "\n", "--chat"], "empty"),
        (["--system", "", "--prompt", "Why?"], "system message is empty"),
        (["--system", " ", "--chat"], "system message is empty"),
        (["--prompt", "-", "--image", "A"], "stdin is empty"),
        (["--system", "-", "--prompt", "Why?"], "stdin is empty"),
        (["--system", "-", "--prompt", "-"], "only once"),
        (["--prompt", "-", "--prompt", "-"], "only once"),
        (["--model", "", "--prompt", "Why?"], "--model is empty"),
        (["--questions", "--prompt", "Why?"], "--questions and --prompt"),
        (["--questions", "--chat"], "--questions do not go together"),
        (["--questions", "--batch", "A"], "--questions do not go together"),
        (["--questions", "--json"], "--questions and --json"),
        (["--questions", "--model", "nowhere"], "no folder and no Hub id"),
    ],
)
def test_what_says_nothing_is_refused_in_one_sentence(ask, pictures, monkeypatch, argv, word):
    monkeypatch.setattr(weights_loader, "load_model", lambda *a, **k: pytest.fail("the weights were loaded"))
    type_in(monkeypatch)
    code, out, err = ask(*(pictures["a"] if item == "A" else item for item in argv))
    assert (code, out) == (2, "") and one_sentence(err) and word in err, err


# ── stdin and stdout as shells hand them over ─────────────────────────────────────────────────────────────────────


def run_with(checkpoint: str, redirection: str, *argv: str) -> subprocess.CompletedProcess:
    """The program in a shell, with what `redirection` does to its streams."""
    words = [sys.executable, "-m", "qwen2vl_cli", "--model", checkpoint, "--max-new-tokens", "3", *argv]
    command = " ".join(f"'{word}'" for word in words) + " " + redirection
    return subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


in_a_shell = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


@in_a_shell
@pytest.mark.parametrize("redirection, is_told", [("<question", True), ("<empty", False), ("</dev/null", False)])
def test_a_piped_question_that_is_not_read_is_told(checkpoint, pictures, tmp_path, redirection, is_told):
    (tmp_path / "question").write_text("What is it?\n")
    (tmp_path / "empty").touch()
    redirection = redirection.replace("<question", f"<{tmp_path}/question").replace("<empty", f"<{tmp_path}/empty")
    done = run_with(checkpoint, redirection, "--image", pictures["a"], "--count-tokens")
    assert done.returncode == 0 and ("--prompt - takes it" in done.stderr) == is_told


@in_a_shell
def test_bytes_that_wait_in_a_pipe_are_counted_and_left_there(checkpoint, pictures):
    words = ("--model", checkpoint, "--image", pictures["a"], "--count-tokens")
    with start("-m", "qwen2vl_cli", *words) as process:
        out, err = process.communicate("What is it?\n", timeout=300)
    assert process.returncode == 0 and one_sentence(err) and "not read" in err
    with start("-m", "qwen2vl_cli", *words, "--prompt", "-") as process:
        out, err = process.communicate("What is it?\n", timeout=300)
    assert (process.returncode, err) == (0, "")


@in_a_shell
@pytest.mark.parametrize(
    "redirection, argv, code, word",
    [
        ("<&-", ["--chat"], 2, "stdin, which is closed"),
        ("<&-", ["--prompt", "-"], 2, "stdin is closed"),
        ("</dev/null", ["--chat"], 0, "stdin ended before a question"),
    ],
)
def test_a_stdin_that_gives_nothing_is_told(checkpoint, redirection, argv, code, word):
    done = run_with(checkpoint, redirection, *argv)
    assert (done.returncode, done.stdout) == (code, "") and one_sentence(done.stderr) and word in done.stderr


@in_a_shell
@pytest.mark.parametrize("redirection", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error_and_nothing_lands_in_the_other(checkpoint, redirection):
    done = run_with(checkpoint, redirection + " </dev/null", "--prompt", "Hello")
    assert done.returncode == 0 and "error" not in done.stderr and "Cut off" not in done.stdout


# ── A chat at a terminal ──────────────────────────────────────────────────────────────────────────────────────────


class Keyboard(io.StringIO):
    """Lines typed by hand; KeyboardInterrupt among them is Ctrl-C."""

    def __init__(self, *lines):
        super().__init__()
        self.lines = iter(lines)

    def isatty(self):
        return True

    def readline(self, *_):
        line = next(self.lines, "")
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line and line + "\n"


def test_ctrl_c_at_the_prompt_keeps_the_conversation(ask, monkeypatch, conversations, script):
    script("One.", "Two.")
    monkeypatch.setattr(
        sys, "stdin", Keyboard("First.", KeyboardInterrupt, KeyboardInterrupt, "Second.", KeyboardInterrupt)
    )
    code, out, err = ask("--chat")
    assert (code, out) == (0, "One.\nTwo.\n")
    assert err.count("Ctrl-D or /exit leaves") == 3
    assert [len(messages) for messages, _ in conversations] == [1, 3]


def test_ctrl_c_while_a_file_is_opened_drops_the_line_only(ask, monkeypatch, pictures, script):
    script("One.")
    original = chat_loop.open_media

    def interrupted(items, *rest):
        if items and items[0]["type"] == "image":
            raise KeyboardInterrupt
        return original(items, *rest)

    monkeypatch.setattr(chat_loop, "open_media", interrupted)
    monkeypatch.setattr(sys, "stdin", Keyboard(f"/image {pictures['a']}", "Hello."))
    code, out, err = ask("--chat")
    assert (code, out) == (0, "One.\n") and "the conversation goes on" in err


def test_ctrl_c_before_the_first_word_says_that_the_turn_is_dropped(ask, monkeypatch, conversations, script):
    script("One.")
    written = qwen2vl_mini.choose
    calls = iter(range(100))

    def choose(*args):
        if next(calls) == 0:
            raise KeyboardInterrupt
        return written(*args)

    monkeypatch.setattr(qwen2vl_mini, "choose", choose)
    monkeypatch.setattr(sys, "stdin", Keyboard("First.", "Second."))
    code, out, err = ask("--chat")
    assert code == 0 and out.strip() == "One." and "this turn is dropped" in err
    assert len(conversations[-1][0]) == 1


@pytest.mark.parametrize("word", ["quit", "exit", "Bye", "EXIT", "quit()", "bye.", "/quit", "/bye"])
def test_words_that_leave_a_chat(ask, monkeypatch, conversations, word):
    type_in(monkeypatch, word, "never read")
    code, out, err = ask("--chat")
    assert (code, out, conversations) == (0, "", [])
    assert ("put a space before it" in err) != word.startswith("/")


def test_a_space_makes_them_text(ask, monkeypatch, conversations, script):
    script("One.", "Two.")
    type_in(monkeypatch, " quit", "How do I quit?")
    assert ask("--chat")[1] == "One.\nTwo.\n"
    assert [kinds(messages) for messages, _ in conversations] == [["quit"], ["How do I quit?"]]


def test_clear_keeps_what_the_command_line_gave(ask, monkeypatch, conversations, pictures, clip, script):
    script("One.", "Two.", "Three.")
    lines = [f"/image {pictures['b']}", "More?", "/clear", "Again?", "/clear", "And now?"]
    type_in(monkeypatch, *lines)
    code, out, err = ask("--chat", "--image", pictures["a"], "--video", clip, "--nframes", "4")
    assert (code, out) == (0, "One.\nTwo.\nThree.\n"), err
    expected = [["image", "video", "image", "More?"], ["image", "video", "Again?"], ["image", "video", "And now?"]]
    assert [kinds(messages) for messages, _ in conversations] == expected
    assert all(messages[0]["content"][0]["source"] == pictures["a"] for messages, _ in conversations)
    assert err.count(f"begins with {pictures['a']}, {clip} again") == 2


def test_the_greeting_is_for_the_bundled_model(ask, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Keyboard("/questions"))
    err = ask("--chat")[2]
    assert questions.GREETING not in err and questions.ANY_QUESTION in err and "/questions" in err

    find = weights_loader.find_checkpoint
    monkeypatch.setattr(weights_loader, "find_checkpoint", lambda n, *a, **k: find(checkpoint if n == "tiny" else n))
    monkeypatch.setattr(sys, "stdin", Keyboard("/questions"))
    err = ask("--chat", "--model", "tiny")[2]
    assert questions.GREETING in err and "Where is the red circle?" in err


# ── --questions ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_questions_of_the_bundled_model_need_no_torch():
    code = "import sys; from qwen2vl_cli.__main__ import main; main(['--questions']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    *lines, has_torch = done.stdout.splitlines()
    assert (has_torch, done.stderr) == ("False", "")
    assert max(map(len, lines)) <= 80
    for taught in TAUGHT:
        assert all(f"  {question}" in lines for question in taught.questions)


def test_every_task_of_training_is_listed_in_its_own_words():
    """The questions that scenes really bring, with their names taken out, are those of the list, and no others."""
    names = rf"(?:{'|'.join(COLOURS)})|(?:{'|'.join(shape + '(?:es|s)?' for shape in SHAPES)})"
    blank = lambda text: re.sub(r"\b(left of|right of|above|below)\b", "~", re.sub(rf"\b(?:{names})\b", "_", text))  # noqa: E731
    blank_box = lambda text: re.sub(r"\(\d+,\d+\)", "()", blank(text))  # noqa: E731
    asked = {blank_box(question) for question in TEXT_ONLY}
    for task in scenes.TASKS:
        for seed in range(40):
            asked.add(blank_box(scenes.make_sample(seed, task, 160, 160, max_things=3).question))
    listed = {blank_box(question) for taught in TAUGHT for question in taught.questions}
    assert asked == listed


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-2B-Instruct", "checkpoint"])
def test_other_models_take_any_question(checkpoint, capsys, name):
    from qwen2vl_cli.__main__ import main

    assert main(["--questions", "--model", checkpoint if name == "checkpoint" else name]) == 0
    out, err = capsys.readouterr()
    assert out == questions.ANY_QUESTION + "\n" and err == ""


# ── --help, a debugger, boxes on tiny pictures ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prog", ["qwen2vl_mini.py", "qwen2vl-mini"])
def test_help_fits_a_standard_terminal(monkeypatch, capsys, prog):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [prog])
    text = make_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert "comes before it" in text or "come before it" in text  # the order of a single prompt
    from qwen2vl_cli.__main__ import main

    assert main([]) == 2
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 80


@pytest.mark.parametrize(
    "module", ["tiny_world.train", "tiny_world.studies", "tiny_world.evaluate", "tests.layer_debugger"]
)
def test_help_of_the_modules_fits_too(module):
    environment = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", ["q", "n q", "restart q"])
def test_leaving_pdb_is_no_error(checkpoint, words):
    """At a breakpoint deep in the model: behind it stand all our handlers."""
    place = first_line_of(qwen2vl_mini.get_rope_index)
    typed = "\n".join([f"b qwen2vl_mini.py:{place}", "c", *words.split(), ""])
    argv = ["-m", "pdb", "qwen2vl_mini.py", "--model", checkpoint, "--max-new-tokens", "3", "--prompt", "Hello"]
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, input=typed, capture_output=True, text=True, encoding="utf-8"
    )
    said = done.stdout + done.stderr
    assert "Breakpoint 1" in said and "unexpected error" not in said and "Traceback" not in said
    assert "BdbQuit" not in said and "(run with --debug" not in said


def first_line_of(function) -> int:
    """The first line that runs when a function is called."""
    code = function.__code__
    return min(line for *_, line in code.co_lines() if line and line > code.co_firstlineno)


@pytest.mark.parametrize("job", ["--prompt", "--chat"])
def test_leaving_a_breakpoint_in_the_code_is_quiet(ask, monkeypatch, job):
    """quit and restart of a breakpoint() raise these; code in between may have wrapped them in an error of its own."""
    import bdb
    import pdb

    for raised in (bdb.BdbQuit(), pdb.Restart()):
        for wrapped in (False, True):

            def stop(*args, raised=raised, wrapped=wrapped):
                if not wrapped:
                    raise raised
                try:
                    raise raised
                except Exception as error:
                    raise ValueError("The picture is damaged; get it again.") from error

            monkeypatch.setattr(qwen2vl_mini, "choose", stop)
            type_in(monkeypatch, "Hello.", "Again.")
            code, out, err = ask("--chat") if job == "--chat" else ask("--prompt", "Hello.")
            assert (code, out, err) == (130, "", "")


def test_positions_are_never_asked_for_without_tokens(loaded, pictures, monkeypatch):
    """Whoever steps through get_rope_index meets a prompt at the first stop."""
    from qwen2vl_cli import chat

    lengths = []
    original = qwen2vl_mini.get_rope_index

    def spy(config, input_ids, *rest):
        lengths.append(input_ids.shape[1])
        return original(config, input_ids, *rest)

    monkeypatch.setattr(qwen2vl_mini, "get_rope_index", spy)
    monkeypatch.setattr(chat, "get_rope_index", spy)
    talk = Chat(*loaded, max_new_tokens=3)
    list(talk.say("What is it?", [pictures["a"]]))
    list(talk.say("And now?"))
    assert lengths and all(lengths)


@pytest.mark.parametrize(
    "size, factor", [((56, 56), 5), ((111, 60), 5), ((60, 111), 5), ((112, 112), 1), ((20, 900), 1), ((1, 60), 23)]
)
def test_tiny_pictures_are_enlarged_before_boxes_are_drawn(size, factor):
    picture = Image.new("RGB", size, "white")
    picture.putpixel((0, size[1] - 1), (255, 0, 0))
    large, [box], found = enlarge_tiny(picture, [Box("it", 1, 2, 3, 4)])
    assert found == factor and large.size == (size[0] * factor, size[1] * factor)
    assert box == Box("it", factor, 2 * factor, 3 * factor, 4 * factor)
    assert dict((colour, count) for count, colour in large.getcolors()) == {  # no colour between: squares, no blur
        (255, 0, 0): factor**2,
        (255, 255, 255): (size[0] * size[1] - 1) * factor**2,
    }


def test_the_command_line_enlarges_and_says_so(ask, script, tmp_path):
    Image.new("RGB", (60, 56), "white").save(tmp_path / "small.png")
    script(BOX)
    argv = ("--image", str(tmp_path / "small.png"), "--boxes", str(tmp_path / "found.png"), "--max-new-tokens", "64")
    code, _, err = ask(*argv)
    assert code == 0 and "red circle: (6, 14) to (30, 42) pixels" in err  # of the picture itself
    assert "5 times as large" in err
    with Image.open(tmp_path / "found.png") as drawn:
        assert drawn.size == (300, 280)


# ── Files that the README and --help name ─────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not (ROOT / "checkpoints/tiny").exists(), reason="no bundled checkpoint")
def test_the_batch_of_the_readme_runs(capsys, tmp_path):
    from qwen2vl_cli.__main__ import main

    out = tmp_path / "answers.jsonl"
    argv = ["--batch", str(ROOT / "assets/conversations.jsonl"), "--out", str(out), "--dtype", "float32"]
    assert main([*argv, "--device", "cpu"]) == 0
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 4 and all(record["answer"] and "error" not in record for record in records)
    lines = (ROOT / "assets/conversations.jsonl").read_text(encoding="utf-8")
    assert '"image"' in lines and '"video"' in lines and '"assistant"' in lines


def test_fps_changes_what_is_seen_of_the_long_clip(capsys):
    from qwen2vl_cli.__main__ import main

    counts = []
    for fps in ("1", "2"):
        argv = [
            "--model",
            "tiny",
            "--video",
            str(ROOT / "assets/long_clip.mp4"),
            "--fps",
            fps,
            "--count-tokens",
            "--json",
        ]
        assert main(argv) == 0
        [video] = json.loads(capsys.readouterr().out)["videos"]
        counts.append((video["frames"], video["tokens"]))
    assert counts[0][0] * 2 == counts[1][0] and counts[0][1] * 2 == counts[1][1]
    assert (ROOT / "assets/long_clip.mp4").stat().st_size < 15_000


def test_examples_of_help_name_files_that_are_there(capsys):
    text = make_parser().format_help()
    named = re.findall(r"(?:--image|--video|--batch) (assets/\S+)", text)
    assert len(named) >= 4 and all((ROOT / name).is_file() for name in named)


# ── Threads and pace of a training ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("all_of_them, chosen", [(20.0, 4), (10.0, 1), (1.0, 1)])
def test_the_faster_number_of_threads_is_taken(monkeypatch, capsys, all_of_them, chosen):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    measured = []

    def measure(count, seconds):
        measured.append(count)
        return 10.0 if count == 1 else all_of_them

    assert threads.choose_threads(measure) == chosen == set_to[-1]
    assert measured[:4] == [1, 4, 1, 4]  # by turns, so that a passing load meets both
    assert f"Threads: {chosen} of 4" in capsys.readouterr().err


@pytest.mark.parametrize("available, asked", [(1, None), (4, "2")])
def test_threads_that_the_user_chose_stay(monkeypatch, available, asked):
    monkeypatch.setattr(torch, "get_num_threads", lambda: available)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: pytest.fail("set"))
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads.choose_threads(lambda *a: pytest.fail("measured")) == available


def test_a_measurement_is_of_real_products():
    before = torch.get_num_threads()
    try:
        speed = threads.products_a_second(1, 0.01)
    finally:
        torch.set_num_threads(before)
    assert speed > 0 and math.isfinite(speed)


@pytest.mark.parametrize("factor, warns", [(1.0, False), (0.5, False), (0.3, True), (0.01, True)])
def test_the_pace_is_told_once_and_warns_when_far_below(capsys, factor, warns):
    for stage, usual in threads.REFERENCE.items():
        now = [0.0]
        pace = threads.Pace(stage, lambda now=now: now[0])
        for _ in range(200):
            now[0] += 1 / (usual * factor)
            pace.count()
        err = capsys.readouterr().err
        assert err.count("steps a second") == 1 and ("--minutes" in err) == warns


def test_every_stage_has_a_reference():
    names = {threads.stage_name(is_course, is_tower) for is_course in (True, False) for is_tower in (True, False)}
    assert names == set(threads.REFERENCE)


def test_an_evaluation_shows_how_far_it_is(monkeypatch, loaded):
    from tiny_world import evaluate

    class Bar:
        seen: list = []

        def __init__(self, total, **options):
            Bar.seen.append(total)

        def update(self, count):
            Bar.seen.append(count)

        def close(self):
            Bar.seen.append("closed")

    monkeypatch.setattr(evaluate, "tqdm", Bar)
    samples = evaluate.World(max_side=90, max_things=1).samples("count", 3)
    said = evaluate.answers(*loaded, samples, max_new_tokens=1)
    total, *updates, closed = Bar.seen
    assert (total, sum(updates), closed, len(said)) == (3, 3, "closed", 3)


# ── The curves of a training ──────────────────────────────────────────────────────────────────────────────────────


def test_the_curves_show_what_a_reader_can_use_with_names_beside_them(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    from tiny_world import train

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    train.draw_curves(ROOT / "checkpoints/tiny/training.csv", tmp_path / "curves.png")
    [figure] = figures
    loss, tower, right = figure.axes
    named = [[line.get_label() for line in axis.lines if not line.get_label().startswith("_")] for axis in figure.axes]
    assert named[0] == ["answers"] and named[1] == ["characters", "things"]
    assert {"describe", "count", "read"} <= set(named[2]) and loss.get_legend() is None
    styles = [(line.get_color(), line.get_linestyle()) for line in right.lines if not line.get_label().startswith("_")]
    assert len(set(styles)) == len(styles)  # no two curves look alike
    heights = sorted(text.xyann[1] for text in right.texts)
    assert len(heights) >= 9 and all(b - a > 0.04 for a, b in zip(heights, heights[1:]))  # no name over another
