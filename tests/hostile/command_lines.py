"""Whole command lines: exit code 2 and one line on stderr, or an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

from qwen2vl_cli import __main__ as command_line
from tests.hostile.cases import Case
from tests.hostile.checkpoints import checkpoint, edited
from tests.hostile.injections import INJECTIONS
from tests.hostile.material import clip, cut_off, picture, png
from tests.hostile.measure import STREAMS
from tests.hostile.ways_in import DAMAGED, NO_PICTURE, NO_VIDEO, fifo, file, given

PICTURE = file("a.png", picture)
GIF = file("a.gif", partial(clip, "gif"))
LOAD_THE_MODEL = "--model FILE --prompt x"


def command_lines() -> Iterator[Case]:
    yield from lines_with_pictures()
    yield from lines_with_clips()
    yield from lines_with_wrong_options()
    yield from lines_with_models()
    yield from lines_with_batches()
    yield line("", "--prompt", expect="answered", more=(INJECTIONS[0],))
    yield line("", "--image FILE", PICTURE, "answered")


def line(
    says: str, words: str, make: Callable | None = None, expect: str = "refused", more: tuple[str, ...] = ()
) -> Case:
    """A command line of these words; FILE stands for the path of the input. `more` holds words with spaces in them."""
    shown = [*words.split(), *more]
    argv = list(shown)
    if "--model" not in words:
        argv += ["--model", "tiny"]
    if "--batch" not in words and "--questions" not in words and words != LOAD_THE_MODEL:
        argv.append("--count-tokens")

    name = " ".join(repr(word)[1:-1][:40] for word in shown)
    return Case("command line", f"{name} ({says[:20]})", make or given(""), partial(command, argv), says, expect)


def command(argv: list[str], path) -> str:
    """Run a command line in this process, as if it were a refusal or an answer of a function."""
    try:
        code = command_line.main([word.replace("FILE", str(path)) for word in argv])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

    said = STREAMS[2].take()
    if code == 0:
        STREAMS[1].take()
        return said or "exit code 0"
    assert code == 2, f"exit code {code}: {said[:300]}"
    assert said.count("\n") == 1 and said.startswith("error: "), f"stderr says {said[:300]!r}"
    raise ValueError(said.removeprefix("error: ").rstrip("\n"))


def lines_with_pictures() -> Iterator[Case]:
    yield line("cut off or damaged", "--image FILE", file("a.png", lambda: cut_off(picture(), 0.5)))
    yield line(NO_PICTURE, "--image FILE", file("a.png", b"hello"))
    yield line("more pixels", "--image FILE", file("a.png", partial(png, 65535, 65535, rows=0)))
    yield line("longer than 200:1", "--image FILE", file("a.png", partial(png, 8000, 9, 1, 0)))
    yield line("not an ordinary file", "--image FILE", fifo("a.png"))
    yield line("", "--prompt @FILE", fifo("a.png"), "either")
    yield line("no file", "--image /no/such/a.png")
    yield line("is a folder", "--image /")
    yield line("no file", "--image", more=("a\0b",))
    yield line("no file", "--image", more=("a\nb\nc.png",))
    yield line("no public address", "--image http://127.0.0.1:1/a.png")
    yield line("no valid base64", "--image data:image/png;base64,????")


def lines_with_clips() -> Iterator[Case]:
    yield line(DAMAGED, "--video FILE", file("a.mp4", lambda: cut_off(clip(), 0.5)))
    yield line(NO_VIDEO, "--video FILE", file("a.mp4", b"#EXTM3U\n/etc/passwd\n"))
    yield line("no pictures", "--video FILE", file("a.mp4", partial(clip, "mp4", sound_only=True)))
    yield line("--fps", "--video FILE --fps nan", GIF)
    yield line("--nframes", f"--video FILE --nframes {2**64}", GIF)
    yield line("--fps and --nframes", "--video FILE --nframes 4 --fps 1", GIF)
    yield line("no frames from", "--video FILE --video-start 99", GIF)


def lines_with_wrong_options() -> Iterator[Case]:
    yield line("--max-pixels", "--image FILE --max-pixels 0", PICTURE)
    yield line("--max-pixels", "--image FILE --max-pixels 2**99", PICTURE)
    yield line("context of", "--image FILE --min-pixels 999999999 --max-pixels 999999999", PICTURE)
    yield line("unrecognized arguments", "--imgae a.png")
    yield line("unrecognized arguments", "", more=("--x\ny",))
    yield line("unrecognized arguments", "--" + "x" * 10_000)
    yield line("expected one argument", "--prompt x --image")
    yield line("nothing to answer", "")
    yield line("empty", "--prompt", more=("",))
    yield line("UTF-8", "--prompt \ud800")


def lines_with_models() -> Iterator[Case]:
    yield line("no such folder", "--model /no/such/model --prompt x")
    yield line("is a file", LOAD_THE_MODEL, file("a", b"x"))
    yield line("tokenizer.json|config.json", LOAD_THE_MODEL, str)  # the empty folder
    yield line("config.json", LOAD_THE_MODEL, checkpoint(config=edited(hidden_size="64")))
    out_of_the_folder = b'{"weight_map": {"a": "../a"}}'
    yield line("plain name", LOAD_THE_MODEL, checkpoint(weights=None, index=out_of_the_folder))


def lines_with_batches() -> Iterator[Case]:
    yield line("no such file|no file|cannot be read", "--batch /no/such/file.jsonl")
    yield line("is no file", "--batch /")
    yield line("is no file", "--batch /dev/zero")
    yield line("is no file", "--batch FILE", fifo("a.jsonl"))
