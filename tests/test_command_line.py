"""The command line as its users meet it: answers, counts, chats, and one sentence for each thing that can go wrong."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import qwen2vl_mini
import weights_loader
from qwen2vl_cli import __main__ as command_line
from qwen2vl_cli.__main__ import main
from qwen2vl_cli.chat import Chat, what_is_new
from qwen2vl_cli.chat_loop import COMMANDS
from qwen2vl_cli.prompts import with_files
from qwen2vl_io import urls, videos
from qwen2vl_mini import (
    ATTENTION,
    KVCache,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    get_rope_index,
)
from tests.small_models import small_model
from tiny_world.train import start_folder

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 2048  # tokens
BOX = "<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(100,250),(500,750)<|box_end|>"

# ── A small random checkpoint, pictures, and ways to run ──────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """Random weights in a real checkpoint's files. Left to itself the model never ends and writes no control tokens."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make_checkpoint(folder: Path) -> str:
    processor = start_folder(folder)
    model = small_model(vocab_size=processor.tokenizer.bpe.get_vocab_size(), context=CONTEXT, tied=False)
    with torch.no_grad():
        model.lm_head.weight[list(processor.tokenizer.special_ids.values())] = 0
    model.generation_config = json.loads((folder / "generation_config.json").read_text())
    weights_loader.save(model, processor, folder)
    return str(folder)


@pytest.fixture(scope="session")
def loaded(checkpoint):
    return weights_loader.load(checkpoint, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> dict[str, str]:
    """Paths: `a` and `same_size` have 20 tokens, `b` has 15."""
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def make_pictures(folder: Path) -> dict[str, str]:
    for name, size, colour in (("a", (150, 112), "red"), ("same_size", (150, 112), "blue"), ("b", (84, 140), "green")):
        picture = Image.new("RGB", size, "white")
        ImageDraw.Draw(picture).ellipse((10, 20, 70, 90), fill=colour)
        picture.save(folder / f"{name}.png")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    """Three seconds, 12 frames of 84×56 pixels, of which 6 are sampled."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def make_clip(path: Path, frames: int = 12, colour: str = "red") -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for i in range(frames):
            picture = Image.new("RGB", (84, 56), "white")
            ImageDraw.Draw(picture).ellipse((5 * i, 10, 5 * i + 20, 40), fill=colour)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture
def ask(checkpoint, capsys):
    """Call main in this process with the small checkpoint → exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        argv = argv if "--model" in argv else ("--model", checkpoint, *argv)
        code = main(["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6", *argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def script(monkeypatch, loaded):
    """script(text, …): the model is run as ever, but writes these answers, one after the other."""

    def play(*answers: str) -> None:
        tokenizer = loaded[1].tokenizer
        ids = iter([i for text in answers for i in tokenizer.encode(tokenizer.split(text + "<|im_end|>"))])
        monkeypatch.setattr(qwen2vl_mini, "choose", lambda logits, *rest: torch.tensor([next(ids)]))

    return play


@pytest.fixture
def conversations(monkeypatch) -> list[tuple[list, torch.Tensor]]:
    """All conversations that are rendered, with the ids that come out."""
    seen, original = [], Qwen2VLProcessor.apply_chat_template

    def spy(self, conversation, *args, **options):
        result = original(self, conversation, *args, **options)
        if not isinstance(result, str):  # its length alone was asked for
            seen.append((conversation, result["input_ids"] if isinstance(result, dict) else result))
        return result

    monkeypatch.setattr(Qwen2VLProcessor, "apply_chat_template", spy)
    return seen


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Loading weights fails the test, and is not taken for a user's error."""
    monkeypatch.setattr(weights_loader, "load_model", lambda *a, **k: pytest.fail("the weights were loaded"))


def type_in(monkeypatch, *lines: str, by_hand: bool = False) -> None:
    stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    stdin.isatty = lambda: by_hand
    monkeypatch.setattr(sys, "stdin", stdin)


def start(*argv: str, **options) -> subprocess.Popen:
    """The real thing, as a user starts it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"PYTHONIOENCODING": "utf-8"}
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command = [sys.executable, *argv, "--dtype", "float32", "--device", "cpu"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, encoding="utf-8", **pipes | options)


def one_sentence(err: str) -> bool:
    return err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answer_goes_to_stdout_and_all_else_to_stderr(ask, pictures, script):
    script("A red circle.")
    assert ask("--image", pictures["a"]) == (0, "A red circle.\n", "")
    script("A red circle.")
    code, out, err = ask("--image", pictures["a"], "--verbose")
    assert (code, out) == (0, "A red circle.\n")
    for part in (
        "float32",
        "cpu",
        "sdpa",
        "max_new_tokens 6",
        "temperature 0.0",
        "150×112 → 140×112 pixels, 20 tokens",
    ):
        assert part in err
    assert f"code      {qwen2vl_mini.__file__}\n" in err  # which of several copies is in use
    for stage in ("load", "prepare", "prefill", "decode"):
        assert re.search(rf"^{stage} +\d+\.\d\d s", err, re.MULTILINE), stage
    assert re.search(r"decode .* for 5 tokens, \d+\.\d tokens/s", err)


@pytest.mark.parametrize(
    "fast, reason, dtype",
    [(True, "the CPU has avx512_bf16", "bfloat16"), (False, "the CPU has neither amx_bf16 nor avx512_bf16", "float32")],
)
def test_verbose_says_why_auto_chose_a_dtype_on_a_cpu(ask, monkeypatch, fast, reason, dtype):
    monkeypatch.setattr(weights_loader, "cpu_bfloat16", lambda: (fast, reason))
    code, _, err = ask("--prompt", "Hello", "--dtype", "auto", "--verbose")
    lines = err.splitlines()
    assert code == 0 and f"dtype {dtype}," in lines[0] and lines[0].startswith("settings  ")
    assert lines[1] == f"dtype     {dtype}, because {reason}"
    assert "because" not in ask("--prompt", "Hello", "--dtype", "float32", "--verbose")[2]
    assert "because" not in ask("--prompt", "Hello", "--dtype", "auto")[2]


def test_same_as_the_library(ask, loaded, pictures):
    model, processor = loaded
    content = [{"type": "image", "image": pictures["a"]}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    ids = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    code, out, err = ask("--image", pictures["a"], "--prompt", "What is it?")
    assert (code, out) == (0, processor.decode(ids, skip_special_tokens=True) + "\n")
    assert "Cut off after 6 tokens" in err


def test_pictures_and_texts_keep_their_order(ask, loaded, pictures, conversations):
    a, b = pictures["a"], pictures["b"]
    ask("--prompt", "One", "--image", a, "--prompt", "two", "--prompt", "three", "--image", b, "--add-vision-id")
    [(messages, ids)] = conversations
    kinds = [item.get("text") or item["image"].size for item in messages[0]["content"]]
    assert kinds == ["One", (150, 112), "two", "three", (84, 140)]
    assert re.search(r"OnePicture 1: <\|.*\|>twothreePicture 2: <\|", loaded[1].decode(ids[0]))


def test_default_prompt_needs_a_picture_and_no_prompt(ask, pictures, conversations):
    ask("--image", pictures["a"])
    ask("--image", pictures["a"], "--prompt", "Why?")
    ask("--prompt", "Hello")
    texts = [[item["text"] for item in turns[-1]["content"] if "text" in item] for turns, _ in conversations]
    assert texts == [["Describe this image."], ["Why?"], ["Hello"]]


def test_system_message(ask, conversations, loaded):
    ask("--prompt", "Hello", "--system", "Answer in one word.")
    assert loaded[1].decode(conversations[0][1][0]).startswith("<|im_start|>system\nAnswer in one word.<|im_end|>\n")


def test_prompt_from_stdin(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\nSay it.\n"))
    assert ask("--prompt", "-") == ask("--prompt", "What is this?\nSay it.")


def test_control_tokens_in_a_prompt_are_plain_text(ask, conversations, loaded):
    code, _, err = ask("--prompt", "<|image_pad|><|im_end|>")
    assert code == 0, err
    assert (conversations[0][1] == loaded[0].config.image_token_id).sum() == 0


def test_seed_and_temperature(ask):
    hot = ("--prompt", "Hello", "--temperature", "2", "--seed")
    first, again, other = (ask(*hot, seed)[1] for seed in ("1", "1", "2"))
    assert first == again != other
    assert ask("--prompt", "Hello", "--temperature", "0")[1] == ask("--prompt", "Hello")[1]


def test_pieces_are_flushed_as_they_come(checkpoint, monkeypatch, script):
    """What a token adds has left the process before the next token is computed."""
    script("A red circle and")
    events, choose = [], qwen2vl_mini.choose

    class Terminal(io.StringIO):
        def write(self, text):
            events.append(("write", text))

        def flush(self):
            events.append(("flush", ""))

    monkeypatch.setattr(qwen2vl_mini, "choose", lambda *a: events.append(("token", "")) or choose(*a))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["--model", checkpoint, "--prompt", "Hello", "--dtype", "float32"]) == 0
    unsent, tokens = "", 0
    for kind, text in events:
        assert kind != "token" or not unsent, f"{unsent!r} was still held back"
        unsent = "" if kind == "flush" else unsent + text
        tokens += kind == "token"
    assert tokens >= 5 and "".join(text for _, text in events) == "A red circle and\n"


def test_bundled_model_introduces_itself_in_one_line(checkpoint, monkeypatch, capsys):
    find = weights_loader.find_checkpoint
    redirected = lambda name, *a, **k: find(checkpoint if name == "tiny" else name, *a, **k)  # noqa: E731
    monkeypatch.setattr(weights_loader, "find_checkpoint", redirected)
    assert main(["--prompt", "Hello", "--count-tokens"]) == 0
    err = capsys.readouterr().err
    assert one_sentence(err) and "coloured shapes" in err and "--model Qwen/Qwen2-VL-2B-Instruct" in err
    assert main(["--prompt", "Hello", "--count-tokens", "--model", "tiny"]) == 0
    assert capsys.readouterr().err == ""


def test_no_arguments_print_a_short_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("--image") >= 3 and "--help" in err


def test_help_has_examples_that_parse(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen2vl_mini.py"])
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "--debug" not in out
    examples = re.findall(r"^  python qwen2vl_mini.py (.*)$", out.replace("\\\n", ""), re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        command_line.make_parser().parse_args(re.sub(r'"[^"]*"', "text", example).split())


# ── Clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────

LARGE = ("--min-pixels", "128*28*28")  # whatever the checkpoint says
CLIP_IN_WORDS = "6 of 12 frames (0.00 to 2.75 s, every 0.55 s), 84×56 → 392×280 pixels, 420 tokens"


def test_clip_is_described_before_it_is_read(ask, clip, script, conversations):
    script("It moves.")
    code, out, err = ask("--video", clip, *LARGE, "--verbose")
    assert (code, out) == (0, "It moves.\n"), err
    assert re.search(rf"^clip +{re.escape(clip)}: {re.escape(CLIP_IN_WORDS)}$", err, re.MULTILINE), err
    [(messages, _)] = conversations
    assert messages[0]["content"][-1] == {"type": "text", "text": "Describe this video."}


def test_count_of_a_clip_is_what_is_read_and_decodes_nothing(ask, clip, pictures, no_decoding, monkeypatch):
    argv = ("--image", pictures["a"], "--video", clip, "--prompt", "And?", "--add-vision-id", *LARGE, "--json")
    code, out, err = ask(*argv, "--count-tokens")
    counted = json.loads(out)
    monkeypatch.undo()
    answered = json.loads(ask(*argv)[1])
    assert counted["total_tokens"] == answered["tokens"]["prompt"]
    assert counted["videos"] == answered["videos"] and counted["pictures"] == answered["pictures"]
    [video] = counted["videos"]
    assert video["seconds"] == [0.0, 0.5, 1.0, 1.75, 2.25, 2.75] and video["file"] == clip
    assert (video["frames"], video["total_frames"], video["video_fps"], video["tokens"]) == (6, 12, 4.0, 420)
    assert CLIP_IN_WORDS in ask(*argv[:-1], "--count-tokens")[1]


@pytest.fixture
def no_decoding(monkeypatch) -> None:
    """Decoding the frames of a clip fails the test."""
    monkeypatch.setattr(videos.Video, "frames", lambda self: pytest.fail("frames were decoded"))


@pytest.mark.parametrize(
    "options, seconds",
    [
        ("--nframes 4", [0.0, 1.0, 1.75, 2.75]),
        ("--fps 4", [i / 4 for i in range(12)]),
        ("--video-start 1 --video-end 2 --fps 4", [1.0, 1.25, 1.75, 2.0]),
    ],
)
def test_clips_are_sampled_as_asked(ask, clip, options, seconds):
    code, out, err = ask("--video", clip, *options.split(), "--count-tokens", "--json")
    assert code == 0, err
    assert json.loads(out)["videos"][0]["seconds"] == seconds


def test_pixel_limits_hold_for_frames(ask, clip):
    argv = ("--video", clip, "--min-pixels", "4*28*28", "--max-pixels", "8*28*28", "--count-tokens", "--json")
    assert json.loads(ask(*argv)[1])["videos"][0]["tokens"] == 3 * 2 * 3


def test_clips_pictures_and_texts_keep_their_order(ask, loaded, clip, pictures, conversations):
    ask(*f"--prompt One --video {clip} --image {pictures['a']} --prompt two --video {clip} --add-vision-id".split())
    [(_, ids)] = conversations
    text = re.sub(r"(<\|(image|video)_pad\|>)+", r"\1", loaded[1].decode(ids[0]))
    assert (
        "OneVideo 1: <|vision_start|><|video_pad|><|vision_end|>Picture 1: <|vision_start|><|image_pad|><|vision_end|>"
        "twoVideo 2: <|vision_start|><|video_pad|><|vision_end|>" in text
    )


def test_bundled_model_is_asked_what_it_knows(checkpoint, clip, pictures, monkeypatch, conversations):
    find = weights_loader.find_checkpoint
    redirected = lambda name, *a, **k: find(checkpoint if name == "tiny" else name, *a, **k)  # noqa: E731
    monkeypatch.setattr(weights_loader, "find_checkpoint", redirected)
    for media in (["--video", clip], ["--image", pictures["a"]], ["--image", pictures["a"], "--video", clip]):
        assert main([*media, "--max-new-tokens", "1", "--dtype", "float32", "--device", "cpu"]) == 0
    texts = [messages[0]["content"][-1]["text"] for messages, _ in conversations]
    assert texts == ["What happens?", "Describe this image.", "What happens?"]


def test_prompt_beyond_the_context_is_refused_with_the_numbers(ask, clip, no_decoding, no_weights):
    code, out, err = ask(*["--video", clip] * 5, *LARGE, "--prompt", "Hello")
    assert (code, out) == (2, "") and one_sentence(err)
    assert "2100 of them clips" in err and str(CONTEXT) in err and "--nframes or --fps or --max-pixels" in err
    code, out, err = ask(*["--video", clip] * 5, *LARGE, "--prompt", "Hello", "--count-tokens")
    assert code == 2 and one_sentence(err) and "lower" in err
    assert out.count("420 tokens") == 5 and "of the context of 2048" in out  # the count is said all the same


def test_private_addresses_only_when_allowed(ask, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(urls, "ALLOW_PRIVATE", False)  # also puts it back afterwards
    handler = partial(QuietHandler, directory=str(Path(pictures["a"]).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        code, out, err = ask("--image", url, "--count-tokens")
        assert (code, out) == (2, "") and one_sentence(err)
        code, out, err = ask("--image", url, "--count-tokens", "--allow-private-urls")
        server.shutdown()
    assert code == 0 and f"{url}: 150×112 → 140×112 pixels, 20 tokens" in out


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


# ── Files named in a prompt ───────────────────────────────────────────────────────────────────────────────────────


def test_files_named_in_a_text_take_their_places(clip, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for source, name in (
        (pictures["a"], "a.png"),
        (pictures["b"], "my b.png"),
        (clip, "clip.mp4"),
        (clip, "not_by_name"),
    ):
        shutil.copy(source, name)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save("still.gif")
    (tmp_path / "folder").mkdir()
    image, video = (lambda name: {"type": "image", "image": name}), (lambda name: {"type": "video", "video": name})

    def text(content):
        return {"type": "text", "text": content}

    for prompt, items in [
        ("@a.png What is it?", [image("a.png"), text("What is it?")]),
        (
            "Compare @a.png with @clip.mp4.",
            [text("Compare"), image("a.png"), text("with"), video("clip.mp4"), text(".")],
        ),
        ('See @"my b.png"? (@a.png)', [text("See"), image("my b.png"), text("? ("), image("a.png"), text(")")]),
        ("@not_by_name @moving.gif @still.gif", [video("not_by_name"), video("moving.gif"), image("still.gif")]),
        ('  a@b.org, @someone, @folder @ @"" x@a.png ', [text('  a@b.org, @someone, @folder @ @"" x@a.png ')]),
        ("", [text("")]),
    ]:
        assert with_files(prompt) == items, prompt
    assert capsys.readouterr().err == ""
    assert with_files("What is @aa.png?") == [text("What is @aa.png?")]
    assert capsys.readouterr().err == "There is no file aa.png, so @aa.png stays text.\n"  # a slip of the finger


def test_files_named_in_prompts_are_attached(ask, pictures, clip, conversations, monkeypatch):
    code, _, err = ask("--prompt", f"@{pictures['a']} and @{clip}", "--nframes", "4")
    assert code == 0, err
    [(messages, _)] = conversations
    assert [item["type"] for item in messages[0]["content"]] == ["image", "text", "video"]
    assert messages[0]["content"][2]["measured"]["frames"] == 4
    type_in(monkeypatch, f"What is @{pictures['a']}")  # somebody else's words may come through a pipe
    assert ask("--prompt", "-")[0] == 0
    assert [item["type"] for item in conversations[1][0][0]["content"]] == ["text"]


# ── Counting, boxes, JSON ─────────────────────────────────────────────────────────────────────────────────────────


def test_count_tokens_needs_no_weights(ask, checkpoint, pictures, tmp_path, no_weights):
    folder = tmp_path / "without weights"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    argv = ("--model", str(folder), "--count-tokens", "--image", pictures["a"], "--image", pictures["b"])
    code, out, err = ask(*argv)
    assert (code, err) == (0, "")
    assert "a.png: 150×112 → 140×112 pixels, 20 tokens" in out and "b.png: 84×140 → 84×140 pixels, 15 tokens" in out
    counts = json.loads(ask(*argv, "--json")[1])
    assert [picture["tokens"] for picture in counts["pictures"]] == [20, 15]
    assert counts["total_tokens"] == counts["text_tokens"] + 35 and counts["context"] == CONTEXT
    assert f"total: {counts['total_tokens']} tokens" in out and f"{counts['total_tokens'] / CONTEXT:.1%}" in out


def test_count_is_what_an_answer_really_reads(ask, pictures):
    argv = ("--image", pictures["a"], "--prompt", "And?", "--image", pictures["b"], "--system", "Be brief.", "--json")
    counted, answered = json.loads(ask(*argv, "--count-tokens")[1]), json.loads(ask(*argv)[1])
    assert counted["total_tokens"] == answered["tokens"]["prompt"]
    assert counted["pictures"] == answered["pictures"]


@pytest.mark.parametrize("option, tokens", [("--max-pixels=4*28*28", 2), ("--min-pixels=50000", 70)])
def test_pixel_limits_hold(ask, pictures, option, tokens):
    code, out, _ = ask("--image", pictures["a"], option, "--count-tokens", "--json")
    assert json.loads(out)["pictures"][0]["tokens"] == tokens


def test_json_is_one_object_with_everything(ask, pictures, script, loaded):
    script(BOX)
    code, out, err = ask("--image", pictures["a"], "--json", "--seed", "3", "--max-new-tokens", "64")
    report = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert report["answer"] == "red circle(100,250),(500,750)" and report["raw"] == BOX + "<|im_end|>"
    assert report["boxes"] == [{"name": "red circle", "x1": 15.0, "y1": 28.0, "x2": 75.0, "y2": 84.0}]
    sizes = {"width": 150, "height": 112, "resized_width": 140, "resized_height": 112, "tokens": 20}
    assert report["pictures"] == [{"file": pictures["a"], **sizes}]
    written = len(loaded[1].tokenizer.encode(loaded[1].tokenizer.split(report["raw"])))
    assert report["tokens"]["answer"] == written and report["tokens"]["context"] == CONTEXT
    assert report["cut_off"] is False and report["tokens_per_second"] > 0
    assert report["seconds"].keys() == {"load", "prepare", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    settings = {"dtype": "float32", "device": "cpu", "attention": "sdpa", "max_new_tokens": 64, "seed": 3}
    assert report["settings"].items() >= {**settings, "do_sample": False, "repetition_penalty": 1.0}.items()


def test_boxes_are_readable_told_in_pixels_and_drawn(ask, pictures, script, tmp_path):
    script(BOX)
    target = tmp_path / "found.png"
    argv = ("--image", pictures["b"], "--image", pictures["a"], "--boxes", str(target), "--max-new-tokens", "64")
    code, out, err = ask(*argv)
    assert (code, out) == (0, "red circle(100,250),(500,750)\n")
    assert "red circle: (15, 28) to (75, 84) pixels" in err and f"Wrote {target}" in err
    with Image.open(target) as drawn, Image.open(pictures["a"]) as original:  # the last picture
        assert drawn.size == original.size and drawn.tobytes() != original.tobytes()


def test_answer_without_boxes_says_so(ask, pictures, script, tmp_path):
    script("No.")
    code, out, err = ask("--image", pictures["a"], "--boxes", str(tmp_path / "found.png"))
    assert (code, out) == (0, "No.\n") and one_sentence(err) and "no box" in err
    assert not (tmp_path / "found.png").exists()


# ── What users get wrong ──────────────────────────────────────────────────────────────────────────────────────────


def spoil(folder: Path, source: str, what: str) -> str:
    """A copy of the checkpoint that is broken in one way."""
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    if what == "missing key":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "index outside":
        weights.rename(folder.parent / "evil.safetensors")
        index = {"weight_map": {"model.norm.weight": "../evil.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "no template":
        (folder / "chat_template.json").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    elif what == "broken config":
        (folder / "config.json").write_text("{")
    else:
        (folder / what).unlink()
    return str(folder)


def make_bad_files(folder: Path, good: str) -> None:
    (folder / "folder.png").mkdir()
    make_clip(folder / "clip.mp4")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:600])
    (folder / "text.mp4").write_text("This is no clip.\n" * 100)
    (folder / "text.jpg").write_text("This is no picture.\n" * 100)
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(Path(good).read_bytes()[:-200])
    Image.new("RGB", (3000, 10)).save(folder / "long.png")
    Image.new("RGB", (2000, 2000)).save(folder / "large.png")
    shutil.copy(good, folder / "good.png")


# Name, arguments (run in a folder with the files above), and a word that the sentence must have.
BAD_INPUT = [
    ("no such picture", "--image nowhere.png", "nowhere.png"),
    ("folder as picture", "--image folder.png", "folder"),
    ("text as picture", "--image text.jpg", "no picture"),
    ("empty picture", "--image empty.png", "empty"),
    ("truncated picture", "--image cut.png", "cut off"),
    ("URL of this machine", "--image http://127.0.0.1:9/a.png", "127.0.0.1"),
    ("ratio 300:1", "--image long.png", "200:1"),
    ("min above max", "--image good.png --min-pixels 9000 --max-pixels 8000", "larger than"),
    ("min above the checkpoint's max", "--image good.png --min-pixels 9000*28*28", "lower --min-pixels"),
    ("picture beyond the context", "--image large.png --max-pixels 5000*28*28", "--max-pixels"),
    ("prompts beyond the context", "--image good.png --prompt " + "many_words_" * 900, str(CONTEXT)),
    ("answer beyond the context", "--prompt Hello --max-new-tokens 2048", str(CONTEXT)),
    ("unknown model", "--prompt Hello --model nothing", "nothing"),
    ("model not in the cache", "--prompt Hello --model nobody/nothing", "nobody/nothing"),
    ("file as model", "--prompt Hello --model text.jpg", "is a file"),
    ("bad dtype", "--prompt Hello --dtype int3", "--dtype"),
    ("bad device", "--prompt Hello --device toaster", "toaster"),
    ("absent device", "--prompt Hello --device cuda:77", "cuda:77"),
    ("bad attention", "--prompt Hello --attn magic", "--attn"),
    ("negative length", "--prompt Hello --max-new-tokens -5", "-5"),
    ("length zero", "--prompt Hello --max-new-tokens 0", "--max-new-tokens"),
    ("length not whole", "--prompt Hello --max-new-tokens 2.5", "2.5"),
    ("negative temperature", "--prompt Hello --temperature -1", "--temperature"),
    ("temperature NaN", "--prompt Hello --temperature nan", "nan"),
    ("top-p above one", "--prompt Hello --top-p 1.5", "--top-p"),
    ("negative top-k", "--prompt Hello --top-k -1", "--top-k"),
    ("negative seed", "--prompt Hello --seed -1", "--seed"),
    ("seed of 65 bits", "--prompt Hello --seed 36893488147419103232", "--seed"),
    ("penalty zero", "--prompt Hello --repetition-penalty 0", "--repetition-penalty"),
    ("negative pixels", "--image good.png --max-pixels -784", "-784"),
    ("pixels zero", "--image good.png --max-pixels 0*28", "0*28"),
    ("pixels as code", "--image good.png --max-pixels 2**40", "2**40"),
    ("boxes without a picture", "--prompt Hello --boxes out.png", "--image"),
    ("boxes in no folder", "--image good.png --boxes nowhere/out.png", "nowhere"),
    ("boxes onto a folder", "--image good.png --boxes folder.png", "folder.png"),
    ("boxes in an unknown format", "--image good.png --boxes out.doc", ".png"),
    ("boxes over the picture", "--image good.png --boxes ./good.png", "overwrite"),
    ("nothing asked", "--verbose", "--prompt"),
    ("empty prompt", "--prompt=", "empty"),
    ("prompt that is no text", "--prompt \udcff", "UTF-8"),
    ("unknown option", "--prompt Hello --colour red", "--colour"),
    ("option without value", "--prompt", "--prompt"),
    ("no such clip", "--video nowhere.mp4", "nowhere.mp4"),
    ("text as clip", "--video text.mp4", "text.mp4"),
    ("truncated clip", "--video cut.mp4", "cut.mp4"),
    ("folder as clip", "--video folder.png", "folder"),
    ("clip as picture", "--image clip.mp4", "is a video (MP4 or MOV)"),
    ("clip as data URI", "--video data:video/mp4;base64,AAAA", "data URI"),
    ("clip beyond the context", "--video clip.mp4 --min-pixels 1000*28*28 --max-pixels 1100*28*28", "--nframes"),
    ("clip with fps and nframes", "--video clip.mp4 --fps 1 --nframes 4", "--nframes"),
    ("fps zero", "--video clip.mp4 --fps 0", "--fps"),
    ("one frame", "--video clip.mp4 --nframes 1", "--nframes"),
    ("clip from its end to its start", "--video clip.mp4 --video-start 2 --video-end 1", "--video-start"),
    ("nothing in the cut", "--video clip.mp4 --video-start 77", "77"),
    ("clip options without a clip", "--image good.png --fps 1", "--video"),
    ("boxes on a clip", "--video clip.mp4 --boxes out.png", "--image"),
    ("text attached", "--prompt @text.jpg", "text.jpg"),
    ("chat in JSON", "--chat --json", "--json"),
    ("chat with boxes", "--chat --image good.png --boxes out.png", "--boxes"),
]


@pytest.mark.parametrize("argv, word", [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_is_one_sentence(ask, pictures, tmp_path, monkeypatch, argv, word):
    make_bad_files(tmp_path, pictures["a"])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = ask(*argv.split(" "))
    assert (code, out) == (2, "") and one_sentence(err), err
    assert err.startswith("error: ") and word in err
    assert sorted(tmp_path.iterdir()) == before


BAD_CHECKPOINTS = [
    ("missing key", "model.norm.weight"),
    ("cut weights", "safetensors"),
    ("index outside", "../evil.safetensors"),
    ("no template", "chat template"),
    ("broken config", "config.json"),
    ("config.json", "config.json"),
    ("tokenizer.json", "tokenizer.json"),
    ("preprocessor_config.json", "preprocessor_config.json"),
    ("model.safetensors", "model.safetensors"),
]


@pytest.mark.parametrize("what, word", BAD_CHECKPOINTS, ids=[what for what, _ in BAD_CHECKPOINTS])
def test_bad_checkpoint_is_one_sentence(ask, checkpoint, tmp_path, what, word):
    code, out, err = ask("--prompt", "Hello", "--model", spoil(tmp_path / "model", checkpoint, what))
    assert (code, out) == (2, "") and one_sentence(err), err
    assert err.startswith("error: ") and word in err


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, *_ in BAD_INPUT
        if "picture" in n or "clip" in n or "boxes" in n or "pixels" in n or "min" in n or "ratio" in n
    ],
)
def test_cheap_checks_come_before_the_weights(ask, pictures, tmp_path, monkeypatch, no_weights, name):
    make_bad_files(tmp_path, pictures["a"])
    monkeypatch.chdir(tmp_path)
    [argv] = [argv for n, argv, _ in BAD_INPUT if n == name]
    assert ask(*argv.split(" "))[0] == 2


def test_unexpected_errors_are_one_sentence_too(ask, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(weights_loader, "load_model", fail)
    code, out, err = ask("--prompt", "Hello")
    assert (code, out, err) == (
        *(2, ""),
        "unexpected error: RuntimeError: boom and more (run with --debug for the traceback)\n",
    )
    with pytest.raises(RuntimeError):
        ask("--prompt", "Hello", "--debug")


def test_out_of_memory_says_what_to_lower(ask, monkeypatch):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")

    monkeypatch.setattr(qwen2vl_mini, "choose", fail)
    code, _, err = ask("--prompt", "Hello")
    assert code == 2 and one_sentence(err) and "--max-pixels" in err


def test_ctrl_c_ends_quietly(ask, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(qwen2vl_mini, "choose", interrupt)
    code, _, err = ask("--prompt", "Hello")
    assert code == 130 and err.strip() == ""


# ── Conversations that keep their cache ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def chat(loaded) -> Chat:
    return Chat(*loaded, max_new_tokens=8)


@pytest.fixture
def logits(monkeypatch) -> list[torch.Tensor]:
    """The logits behind each token that is chosen, in order."""
    seen, choose = [], qwen2vl_mini.choose

    def spy(scores, *rest):
        seen.append(scores.clone())
        return choose(scores, *rest)

    monkeypatch.setattr(qwen2vl_mini, "choose", spy)
    return seen


def anew(messages: list[dict]) -> list[dict]:
    """The conversation with its media as the user named them: nothing opened, no patches."""
    sources = [[dict(item) for item in message["content"]] for message in messages]
    for item in (item for content in sources for item in content if "source" in item):
        item[item["type"]] = item.pop("source")
        del item["measured"], item["patches"]
    return [{**message, "content": content} for message, content in zip(messages, sources)]


def fresh(loaded, messages: list[dict], logits: list, add_vision_id=False) -> tuple[list[int], torch.Tensor]:
    """The answer to a conversation without any cache from before: ids, and the logits (tokens, V) behind them."""
    model, processor = loaded
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, add_vision_id=add_vision_id
    )
    logits.clear()
    ids = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, torch.cat(logits)


def assert_as_fresh(loaded, chat: Chat, logits: list, text: str, images=(), content=None) -> None:
    """Say something; the answer must be the one of a model that reads the whole conversation anew."""
    logits.clear()
    pieces = "".join(chat.turn(content) if content else chat.say(text, images))
    ids, scores = chat.report["ids"], torch.cat(logits)
    expected_ids, expected_scores = fresh(loaded, anew(chat.messages[:-1]), logits, chat.add_vision_id)
    assert ids == expected_ids
    assert pieces == loaded[1].decode(ids, skip_special_tokens=True)
    torch.testing.assert_close(scores, expected_scores, atol=1e-3, rtol=0)


def test_later_turns_equal_fresh_ones(loaded, chat, logits, pictures, monkeypatch):
    read, forward = [], Qwen2VLForConditionalGeneration.forward

    def spy(self, input_ids, *args, **options):
        read.append((input_ids.shape[1], len(options.get("pixel_values", ()))))
        return forward(self, input_ids, *args, **options)

    before: list[int] = []  # all ids that the cache has seen
    for text, images in [
        ("Hello.", ()),
        ("What is it?", [pictures["a"]]),
        ("And these?", [pictures["b"]] * 2),
        ("So?", ()),
    ]:
        monkeypatch.setattr(Qwen2VLForConditionalGeneration, "forward", spy)
        read.clear()
        assert_as_fresh(loaded, chat, logits, text, images)
        ids = loaded[1].apply_chat_template(chat.messages[:-1], tokenize=True, add_generation_prompt=True)[0].tolist()
        shared = next(i for i in range(len(ids)) if i >= len(before) or ids[i] != before[i])
        assert read[0] == (len(ids) - shared, {0: 0, 1: 80, 2: 120}[len(images)])  # new tokens, rows of new patches
        assert read[1][0] == 1 and read[8][0] == len(ids)  # read[8] is the prefill of the fresh answer
        assert chat.report["tokens"] == {"prompt": len(ids), "read": len(ids) - shared, "answer": 8}
        before = chat.cache.token_ids[0].tolist()


SMALL = {"nframes": 4, "min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28}  # 2 pairs of frames, 6 tokens each


@pytest.mark.parametrize("add_vision_id", [False, True])
def test_pictures_and_clips_over_three_turns(loaded, logits, pictures, clip, tmp_path, monkeypatch, add_vision_id):
    """Answers equal those without a cache, and each file is decoded once, in its own turn."""
    chat = Chat(*loaded, max_new_tokens=8, add_vision_id=add_vision_id)
    other = make_clip(tmp_path / "other.mp4", frames=8, colour="blue")
    image, text = {"type": "image", "image": pictures["a"]}, {"type": "text", "text": "And?"}
    video, second = ({"type": "video", "video": path, **SMALL} for path in (clip, other))
    prepared, media_patches, before = [], Qwen2VLImageProcessor.media_patches, 0
    for content in ([image, video, text], [video, text, second, image], [text, second, text]):
        with monkeypatch.context() as patch:
            spy = lambda self, item, **k: prepared.append(item["source"]) or media_patches(self, item, **k)  # noqa: E731
            patch.setattr(loaded[1], "media_patches", partial(spy, loaded[1].image_processor))
            patch.setattr(Qwen2VLImageProcessor, "media_patches", lambda *a, **k: pytest.fail("a second decoding"))
            prepared.clear()
            prompt, messages = chat.prepare(content)
            assert prepared == [
                item["image" if item["type"] == "image" else "video"] for item in content if item != text
            ]
        assert_as_fresh(loaded, chat, logits, "", content=messages[-1]["content"])
        tokens = chat.report["tokens"]
        assert tokens["read"] <= tokens["prompt"] - before  # nothing of the turns before, except their answers
        before = tokens["prompt"]


def test_decoding_is_not_done_twice(loaded, chat, clip, monkeypatch):
    decoded, frames = [], videos.Video.frames
    monkeypatch.setattr(videos.Video, "frames", lambda self: decoded.append(self.name) or frames(self))
    list(chat.turn([{"type": "video", "video": clip, **SMALL}, {"type": "text", "text": "And?"}]))
    list(chat.say("And now?"))
    list(chat.say("And then?"))
    assert len(decoded) == 1


def test_only_the_new_turn_is_read(loaded, chat, script, pictures):
    script("A red circle.", "Yes.")
    list(chat.say("What is it?", [pictures["a"]]))
    first = chat.tokens()
    list(chat.say("Is it?"))
    new = "<|im_end|>\n<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.report["tokens"]["read"] == len(loaded[1].tokenizer.encode(loaded[1].tokenizer.split(new)))
    assert chat.tokens() == chat.report["tokens"]["prompt"] + chat.report["tokens"]["answer"] - 1 > first


def test_a_long_later_turn_finds_room_in_the_cache(loaded, chat, logits, pictures):
    """A first turn of few tokens, then pictures of many times as many."""
    assert_as_fresh(loaded, chat, logits, "Hi.")
    assert_as_fresh(loaded, chat, logits, "And these?", [pictures["a"]] * 12)


def test_boxes_that_were_written_stay_control_tokens(loaded, chat, script, pictures):
    script(BOX, "Yes.")
    chat.max_new_tokens = 64
    list(chat.say("Where is it?", [pictures["a"]]))
    list(chat.say("Sure?"))
    prompt = chat.cache.token_ids[0, : chat.report["tokens"]["prompt"]].tolist()
    assert BOX + "<|im_end|>\n<|im_start|>user\nSure?" in loaded[1].decode(prompt)
    assert loaded[1].tokenizer.special_ids["<|box_start|>"] in prompt
    assert chat.report["tokens"]["read"] < 20  # so the cache was of use


def test_letters_that_look_like_control_tokens_stay_letters(loaded, chat, monkeypatch):
    """A model may be talked into spelling <|image_pad|>; that is no picture in the next turn."""
    ids = iter([*loaded[1].tokenizer.encode("<|image_pad|>"), *loaded[1].tokenizer.encode("ok")] + [1] * 8)
    monkeypatch.setattr(qwen2vl_mini, "choose", lambda *a: torch.tensor([next(ids)]))
    chat.max_new_tokens = len(loaded[1].tokenizer.encode("<|image_pad|>"))
    assert "".join(chat.say("Spell it.")) == "<|image_pad|>"
    chat.max_new_tokens = 2
    list(chat.say("Thanks."))
    assert (chat.cache.token_ids == loaded[0].config.image_token_id).sum() == 0


def test_two_chats_on_one_model_do_not_mix(loaded, logits, pictures):
    left, right = Chat(*loaded, max_new_tokens=8), Chat(*loaded, max_new_tokens=8)
    assert_as_fresh(loaded, left, logits, "What is it?", [pictures["a"]])
    assert_as_fresh(loaded, right, logits, "What is it?", [pictures["same_size"]])
    assert_as_fresh(loaded, left, logits, "Sure?")
    assert_as_fresh(loaded, right, logits, "Sure?")


def test_clear_forgets_the_picture_too(loaded, chat, logits, pictures):
    """The next conversation has the very same ids, but another picture."""
    assert_as_fresh(loaded, chat, logits, "What is it?", [pictures["a"]])
    chat.clear()
    assert chat.tokens() == 0 and chat.messages == []
    assert_as_fresh(loaded, chat, logits, "What is it?", [pictures["same_size"]])


@pytest.mark.parametrize("when", [0, 3])
def test_failed_turn_leaves_the_conversation_as_it_was(loaded, chat, logits, pictures, monkeypatch, when):
    """Also its picture must be forgotten: the next turn has the same ids with another picture of that size."""
    assert_as_fresh(loaded, chat, logits, "Hello.")
    messages, tokens, choose = chat.messages, chat.tokens(), qwen2vl_mini.choose
    calls = iter(range(100))

    def fail(*args):
        if next(calls) == when:
            raise ValueError("The logits are not finite.")
        return choose(*args)

    monkeypatch.setattr(qwen2vl_mini, "choose", fail)
    with pytest.raises(ValueError):
        list(chat.say("What is it?", [pictures["a"]]))
    monkeypatch.setattr(qwen2vl_mini, "choose", choose)
    assert chat.messages is messages and chat.tokens() <= tokens
    assert_as_fresh(loaded, chat, logits, "What is it?", [pictures["same_size"]])


def test_refused_turns_leave_the_conversation_as_it_was(loaded, chat, logits):
    assert_as_fresh(loaded, chat, logits, "Hello.")
    for text, images in [("What is it?", ["nowhere.png"]), ("many words " * 2000, ())]:
        with pytest.raises((ValueError, FileNotFoundError)):
            list(chat.say(text, images))
    assert len(chat.messages) == 2
    assert_as_fresh(loaded, chat, logits, "And now?")


def test_interrupted_answer_counts_as_far_as_it_came(loaded, chat, logits, pictures):
    pieces = chat.say("What is it?", [pictures["a"]])
    next(pieces), next(pieces)
    pieces.close()
    assert len(chat.report["ids"]) == 2 and len(chat.messages) == 2 and chat.report["cut_off"]
    assert_as_fresh(loaded, chat, logits, "Go on.", [pictures["b"]])


def test_border_never_lies_inside_a_picture_or_clip(loaded, pictures, clip):
    """Whatever is in the cache: media are read whole, and the next position is the one that follows what is kept."""
    model, processor = loaded
    a, b = ({"type": "image", "image": pictures[name]} for name in "ab")
    content = [a, {"type": "video", "video": clip, **SMALL}, b, {"type": "text", "text": "So?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    ids = prompt["input_ids"]
    kinds = {"image": model.config.image_token_id, "video": model.config.video_token_id}
    is_picture = torch.isin(ids[0], torch.tensor(list(kinds.values()))).tolist()
    positions, _ = get_rope_index(model.config, ids, prompt["image_grid_thw"], prompt["video_grid_thw"])
    for cached in range(ids.shape[1] + 3):
        cache = KVCache(model.config.text_config, 1, 8)
        cache.token_ids = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)[:, :cached]
        new = what_is_new(prompt, cache, model.config)
        kept = cache.length
        assert (
            kept
            == cache.token_ids.shape[1]
            == ids.shape[1] - new["input_ids"].shape[1]
            <= min(cached, ids.shape[1] - 1)
        )
        assert not (kept and is_picture[kept - 1] and is_picture[kept])
        assert kept == min(cached, ids.shape[1] - 1) or is_picture[cached]  # and no more is read anew than it takes
        after = positions[:, 0, :kept].max() + 1 if kept else 0
        assert cache.next_position.tolist() == [[after]]
        for (kind, token_id), pixels in zip(kinds.items(), ("pixel_values", "pixel_values_videos")):
            rows = int((ids[0, kept:] == token_id).sum()) * 4
            assert len(new.get(pixels, ())) == rows == sum(g.prod() for g in new.get(f"{kind}_grid_thw", ()))
            assert not rows or torch.equal(new[pixels], prompt[pixels][-rows:])


# ── The chat loop ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_chat_keeps_turns_and_takes_pictures(ask, pictures, monkeypatch, conversations, script):
    script("Hello.", "A red circle.", "Yes.", "Again.")
    lines = ["Hi.", "/tokens", f"/image {pictures['a']}", "What is it?", "", " /path is text"]
    lines += [f"/image {pictures['b']}", "/clear", "Hi."]
    type_in(monkeypatch, *lines, "/tokens", "/help", "/exit", "never read")
    code, out, err = ask("--chat", "--system", "Be brief.")
    assert (code, out) == (0, "Hello.\nA red circle.\nYes.\nAgain.\n")
    assert [len(messages) for messages, _ in conversations] == [2, 4, 6, 2]
    assert all(messages[0] == {"role": "system", "content": "Be brief."} for messages, _ in conversations)
    kinds = [[item["type"] for item in messages[-1]["content"]] for messages, _ in conversations]
    assert kinds == [["text"], ["image", "text"], ["text"], ["text"]]
    assert "150×112 → 140×112 pixels, 20 tokens" in err and "/image PATH" in err
    assert re.search(rf"^\d+ of {CONTEXT} tokens are in use \(\d\.\d%\)\.$", err, re.MULTILINE)


def test_chat_survives_what_goes_wrong(ask, pictures, monkeypatch, conversations, script, tmp_path):
    make_bad_files(tmp_path, pictures["a"])
    monkeypatch.chdir(tmp_path)
    script("One.", "Two.")
    bad = ["/image nowhere.png", "/image text.jpg", "/image long.png", "/image", "/nonsense", "many words " * 2000]
    type_in(monkeypatch, "First.", *bad, "Second.")
    code, out, err = ask("--chat")
    assert (code, out) == (0, "One.\nTwo.\n")
    assert len(err.splitlines()) == len(bad) and err.count("error: ") == len(bad) and "Traceback" not in err
    assert err.count("This turn is dropped") == 1 and "dropped" in err.splitlines()[-1]
    assert len(conversations[-1][0]) == 3  # the first turn, its answer, the second turn


def test_chat_starts_with_what_the_command_line_gives(ask, pictures, monkeypatch, conversations, script):
    script("A red circle.", "Yes.", "Two.")
    type_in(monkeypatch, "Sure?")
    assert ask("--chat", "--image", pictures["a"], "--prompt", "What is it?")[1] == "A red circle.\nYes.\n"
    type_in(monkeypatch, "How many?")
    assert ask("--chat", "--image", pictures["a"])[1] == "Two.\n"
    kinds = [[item["type"] for item in messages[-1]["content"]] for messages, _ in conversations]
    assert kinds == [["image", "text"], ["text"], ["image", "text"]]


def test_chat_takes_clips_and_files_in_the_line(ask, pictures, clip, monkeypatch, conversations, script):
    script("It moves.", "A red circle.", "Two.")
    lines = [f"/video {clip}", "What happens?", f"@{pictures['a']}", f"And here? @{clip}.", "@someone me@home.org"]
    type_in(monkeypatch, *lines)
    code, out, err = ask("--chat", "--nframes", "4")
    assert (code, out) == (0, "It moves.\nA red circle.\nTwo.\n"), err
    kinds = [[item["type"] for item in messages[-1]["content"]] for messages, _ in conversations]
    assert kinds == [["video", "text"], ["image", "text", "video", "text"], ["text"]]
    assert err.count("4 of 12 frames") == 2 and err.count("150×112") == 1
    assert conversations[2][0][-1]["content"][0]["text"] == "@someone me@home.org"


def test_help_of_a_chat_lists_each_command_once(ask, monkeypatch):
    type_in(monkeypatch, "/help", "/quit", "never read")
    code, out, err = ask("--chat")
    assert (code, out) == (0, "")
    assert re.findall(r"^/\w+", err, re.MULTILINE) == list(COMMANDS) and '@"my clip.mp4"' in err
    for words in ("PATH", "FILE", "Ctrl-D", "Ctrl-C", "JSON messages", "forget everything", "how full the context is"):
        assert words in err


def test_paths_in_a_chat_may_be_quoted_or_start_at_home(ask, pictures, monkeypatch, conversations, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copy(pictures["a"], tmp_path / "my a.png")
    type_in(monkeypatch, "/image ~/my a.png", "/image '~/my a.png'", f'/image   "{tmp_path}/my a.png"  ', "And?")
    code, _, err = ask("--chat")
    assert code == 0 and "error" not in err
    assert [item["type"] for item in conversations[-1][0][-1]["content"]] == ["image"] * 3 + ["text"]


def test_a_refused_line_keeps_what_was_attached(ask, pictures, monkeypatch, conversations, script, tmp_path):
    make_bad_files(tmp_path, pictures["a"])
    monkeypatch.chdir(tmp_path)
    script("One.")
    type_in(monkeypatch, "/image good.png", "What is @cut.png?", "/video cut.mp4", "What is it?")
    code, out, err = ask("--chat")
    assert (code, out) == (0, "One.\n") and err.count("error: ") == 2
    assert [item["type"] for item in conversations[-1][0][-1]["content"]] == ["image", "text"]


def test_saved_conversation_can_be_read_again(
    ask, loaded, pictures, clip, monkeypatch, conversations, script, tmp_path
):
    """By apply_chat_template, and from any folder; and no file is ever written over."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(pictures["a"], "a.png")
    (tmp_path / "mine.txt").write_text("precious")
    script("A circle.", "Yes.")
    lines = ["/save early.json", f"@a.png @{clip} What is it?", "Sure, é?"]
    lines += ["/save mine.txt", "/save nowhere/talk.json", "/save", "/save 'my talk.json'"]
    type_in(monkeypatch, *lines)
    code, _, err = ask("--chat", "--nframes", "4", "--system", "Be brief.")
    assert code == 0 and err.count("error: ") == 4 and "Wrote my talk.json." in err and "Traceback" not in err
    assert (tmp_path / "mine.txt").read_text() == "precious" and not (tmp_path / "early.json").exists()
    [line] = (tmp_path / "my talk.json").read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[1]["content"][0] == {"type": "image", "image": str(tmp_path / "a.png")}
    assert messages[1]["content"][1] == {"type": "video", "video": clip, "nframes": 4}
    monkeypatch.chdir("/")
    ids = loaded[1].apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)
    assert torch.equal(ids, conversations[1][1])


@pytest.mark.parametrize("by_hand", [True, False])
def test_ctrl_c_in_a_chat(ask, monkeypatch, loaded, by_hand):
    """At a terminal it cuts the answer short and the chat goes on; in a pipe it ends the program."""
    end = loaded[1].tokenizer.special_ids["<|im_end|>"]
    ids = iter([*loaded[1].tokenizer.encode("A red"), KeyboardInterrupt, *loaded[1].tokenizer.encode("Yes."), end])

    def choose(*args):
        if (chosen := next(ids)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return torch.tensor([chosen])

    monkeypatch.setattr(qwen2vl_mini, "choose", choose)
    type_in(monkeypatch, "What is it?", "Sure?", by_hand=by_hand)
    code, out, err = ask("--chat")
    assert (code, out) == ((0, "A redYes.\n") if by_hand else (130, "A red")) and "Traceback" not in err


# ── The real thing ────────────────────────────────────────────────────────────────────────────────────────────────


def test_options_are_those_of_the_model_without_importing_it():
    assert command_line.DTYPES == ("auto", *weights_loader.DTYPES)
    assert command_line.ATTENTION == tuple(ATTENTION)
    code = "import sys; from qwen2vl_cli.__main__ import main; main(['--fps', '-1']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n" and one_sentence(done.stderr)


@pytest.mark.skipif(os.name == "nt", reason="os.kill sends no Ctrl-C on Windows")
def test_ctrl_c_while_torch_is_imported(tmp_path):
    """A stand-in for torch that gets the signal in the middle of its import."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nx = 1\n")
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever a shell set
    code += (
        "sys.path.insert(0, sys.argv[1]); from qwen2vl_cli.__main__ import main; sys.exit(main(['--prompt', 'Hello']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\n")


def test_run_as_a_program(checkpoint, pictures):
    process = start(
        "qwen2vl_mini.py", "--model", checkpoint, "--image", pictures["a"], "--max-new-tokens", "6", "--verbose"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.endswith("\n") and "tokens" not in out
    assert "20 tokens" in err and "Cut off" in err and "Traceback" not in err


def test_error_as_a_program():
    process = start("qwen2vl_mini.py", "--image", "nowhere.png")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "") and one_sentence(err)


def test_chat_as_a_program_until_ctrl_c(checkpoint):
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (what a shell runs behind "&" is deaf)
    words = ("-m", "qwen2vl_cli", "--model", checkpoint, "--chat", "--max-new-tokens", "6")
    process = start(*words, preexec_fn=None if os.name == "nt" else listen)
    process.stdin.write("Hello\n/tokens\n")
    process.stdin.flush()
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert "Cut off" in lines[0] and "tokens are in use" in lines[1]
    process.send_signal(signal.SIGINT)  # it waits for the next line
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip() == "" and out.count("\n") >= 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("option", ["--verbose", "--count-tokens"])  # an answer is flushed in pieces, a count is not
def test_reader_that_goes_away_is_no_error(checkpoint, option):
    words = ("--model", checkpoint, "--prompt", "Hello", "--max-new-tokens", "99", option)
    with start("-m", "qwen2vl_cli", *words) as process:  # closes the pipes that are left
        process.stdout.close()
        assert "BrokenPipe" not in process.stderr.read()
        assert process.wait(timeout=300) == 141
