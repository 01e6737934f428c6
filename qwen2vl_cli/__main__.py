"""What `python qwen2vl_mini.py` and `qwen2vl-mini` do: the options, and one sentence for each thing that can go wrong.

Answers go to stdout, piece by piece as they are written; everything else goes to stderr. The work is done in ask.py
(one question, or a chat) and batch.py (a file of conversations). They bring PyTorch, whose import takes seconds, so
they are imported late: --help and mistakes need not wait, and Ctrl-C is quiet from the start.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path

from qwen2vl_cli.questions import questions_text
from qwen2vl_cli.terminal import came_from_debugger, is_run_by_debugger, note, open_closed_streams, sentence

# No line of --help is longer than the 80 columns of a plain terminal; %(prog)s is at most "python qwen2vl_mini.py".
USAGE = """%(prog)s [--image PATH ...] [--video PATH ...]
           [--prompt TEXT ...] [--chat | --batch FILE | --questions] [options]"""
DESCRIPTION = """Ask Qwen2-VL about pictures and clips.
The answer goes to stdout, everything else to stderr."""
EXAMPLES = """examples:
  %(prog)s --image assets/scene.png
  %(prog)s --image assets/scene.png --boxes found.png \\
      --prompt "Where is the orange heart?"
  %(prog)s --video assets/clip.mp4 --nframes 8 --count-tokens
  %(prog)s --model Qwen/Qwen2-VL-2B-Instruct \\
      --max-pixels 768*28*28 --chat --image photo.jpg
  %(prog)s --batch assets/conversations.jsonl \\
      --out answers.jsonl
"""
ORDER = """order:
  With one --prompt, the pictures and clips come before it, wherever it stands.
  With several, pictures, clips and prompts keep the order in which you give
  them; a file that is named as @photo.jpg stays where the text names it.
"""
BATCHES = """batches:
  Each line of FILE is one conversation, a list of messages as in
    [{"role": "user", "content": [{"type": "image", "image": "a.png"},
                                  {"type": "text", "text": "What is it?"}]}]
  (but on one line), or {"id": ..., "messages": [...]}. Relative paths count
  from the folder of FILE. For each line one JSON object comes out, in the same
  order: "line" and "id"; "answer", "raw" (if control tokens such as those of
  boxes were written) and "tokens"; or "error". With --out, a line that is
  answered there and was not edited since is not run again, even if the options
  differ.

exit codes:
  0 all is answered              1 some lines of a batch failed
  2 nothing could be done        130 Ctrl-C
"""
JOBS = ("chat", "batch", "questions")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flash", "flash_attention_2")
DRAWN_AS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # what --boxes can write


class InOrder(argparse.Action):
    """Collects --image, --video and --prompt in one list, in the order in which they were given."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.content = [*namespace.content, (self.dest, value)]


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        short = message if len(message) < 200 else message[:200] + "…"
        raise ValueError(f"{short}; --help lists all options.")


def number(kind: type, low: float, high: float):
    """An argparse type: a number from `low` to `high`.

    qwen2vl_io.options.is_number would bring PyTorch, for which --help and mistakes must not wait.
    """
    name = "a whole number" if kind is int else "a number"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # NaN fails every comparison
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")
        return value

    return parse


def pixels(text: str) -> int:
    """An argparse type: an area such as 200704 or 256*28*28."""
    product = re.fullmatch(r"[0-9]{1,9}(\*[0-9]{1,9}){0,3}", text)
    area = math.prod(int(factor) for factor in text.split("*")) if product else 0
    if area > 0:
        return area
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels such as 200704 or 256*28*28")


def make_parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).name
    parser = Parser(
        prog=f"python {script}" if script == "qwen2vl_mini.py" else "qwen2vl-mini",
        usage=USAGE,
        description=DESCRIPTION,
        epilog="\n".join((EXAMPLES, ORDER, BATCHES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(content=[])
    for add_group in (add_questions, add_media_options, add_model_options, add_answer_options, add_output_options):
        add_group(parser)
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return parser


def add_questions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to ask").add_argument
    in_order = {"action": InOrder, "default": argparse.SUPPRESS}
    add("--image", metavar="PATH", **in_order, help="a picture: a path, http(s) URL or data URI; may be repeated")
    add("--video", metavar="PATH", **in_order, help="a clip, likewise")
    add(
        "--prompt",
        metavar="TEXT",
        **in_order,
        help='@photo.jpg or @"my clip.mp4" in it puts that file there; "-" reads stdin, as it is. Without one: '
        '"Describe this image.", with a clip "Describe this video." (the bundled model: "What happens?")',
    )
    add("--system", metavar="TEXT", help="a system message in place of the usual one")
    add("--add-vision-id", action="store_true", help='write "Picture 1: ", "Video 1: " and so on before them')
    add("--chat", action="store_true", help="a conversation: turns are kept, /help lists its commands")
    add("--questions", action="store_true", help="only list what the bundled model was taught to answer")
    add("--batch", metavar="FILE", type=Path, help="answer a file of conversations, one JSON list a line: see below")
    add("--out", metavar="FILE", type=Path, help="where --batch writes (default stdout); an unfinished one is resumed")
    together = number(int, 1, 10**7)
    add("--batch-tokens", metavar="N", type=together, help="run together, answers included (default 16384)")


def add_media_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("pictures and clips").add_argument
    seconds = number(float, 0, 10**7)
    add("--min-pixels", metavar="AREA", type=pixels, help="of a picture or frame, as 3136 or 4*28*28; enlarges")
    add("--max-pixels", metavar="AREA", type=pixels, help="shrinks; 28*28 pixels of a picture cost one token")
    add("--fps", metavar="X", type=number(float, 0.001, 1000), help="frames to take from a second (default 2)")
    add("--nframes", metavar="N", type=number(int, 2, 768), help="or from the whole clip; 2 frames cost one picture")
    add("--video-start", metavar="SECONDS", type=seconds, help="leave out what comes before")
    add("--video-end", metavar="SECONDS", type=seconds, help="leave out what comes after")
    add("--allow-private-urls", action="store_true", help="let URLs lead into this machine and its own network")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add("--model", metavar="NAME", help='"tiny" (bundled, the default), a folder, or a Hub id org/name')
    add("--dtype", choices=DTYPES, default="auto")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default auto)")
    add("--attn", choices=ATTENTION, default="sdpa", help="attention kernels (default sdpa)")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the answer").add_argument
    add("--max-new-tokens", metavar="N", type=number(int, 1, 10**6), default=256, help="its longest (default 256)")
    add("--temperature", metavar="X", type=number(float, 0, 100), help="0: always the likeliest token")
    add("--top-p", metavar="X", type=number(float, 1e-6, 1), help="choose among the likeliest with this share")
    add("--top-k", metavar="N", type=number(int, 0, 10**6), help="choose among the N likeliest (0: all)")
    add("--repetition-penalty", metavar="X", type=number(float, 0.01, 100), help="1 changes nothing")
    add("--seed", metavar="N", type=number(int, 0, 2**63 - 1), help="makes sampling repeatable")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the output").add_argument
    add("--boxes", metavar="FILE", type=Path, help="draw the boxes of the answer on the last picture")
    add("--json", action="store_true", help="one JSON object in place of the text")
    add("--count-tokens", action="store_true", help="only say what the prompt costs; loads no weights")
    add("--verbose", action="store_true", help="settings, sizes and times on stderr")


def check_options(args: argparse.Namespace) -> None:
    """What argparse cannot see: options that do not go together, and files that could not be written in the end."""
    check_job(args)
    check_texts(args)

    if args.min_pixels and args.max_pixels and args.min_pixels > args.max_pixels:
        raise ValueError(f"--min-pixels {args.min_pixels} is larger than --max-pixels {args.max_pixels}; swap them.")
    if args.fps and args.nframes:
        raise ValueError("--fps and --nframes both say how many frames to take; drop one.")

    start = args.video_start
    end = args.video_end
    if start is not None and end is not None and start >= end:
        raise ValueError(f"--video-start {start:g} is not before --video-end {end:g}; swap them.")

    if args.boxes:
        check_boxes_file(args.boxes, [value for kind, value in args.content if kind == "image"])


def check_job(args: argparse.Namespace) -> None:
    """Whether it is clear what to do: one question, or one of JOBS. Raises ValueError."""
    jobs = [job for job in JOBS if getattr(args, job)]
    if not args.content and not jobs:
        raise ValueError("There is nothing to answer; give --image, --video, --prompt, --chat or --batch.")

    for job in jobs:
        for name in (*JOBS, "boxes", "json", "count_tokens"):
            if getattr(args, name) and name != job:
                raise ValueError(f"--{job} and --{name.replace('_', '-')} do not go together; drop one.")

    for job in ("batch", "questions"):
        if getattr(args, job) and args.content:
            raise ValueError(f"--{job} and --{args.content[0][0]} do not go together; drop one.")
    if not args.batch and (args.out or args.batch_tokens):
        raise ValueError("--out and --batch-tokens belong to --batch; add it, or drop them.")


def check_texts(args: argparse.Namespace) -> None:
    """Whether every text that was given says something; what stands on stdin is looked at when it is read."""
    prompts = [value for kind, value in args.content if kind == "prompt"]
    for text in prompts:
        if not text.strip():
            raise ValueError("The prompt is empty; write a question, or leave --prompt out for the usual one.")
    if args.system is not None and not args.system.strip():
        raise ValueError("The system message is empty; write one, or leave --system out for the usual one.")
    if args.model is not None and not args.model.strip():
        raise ValueError('--model is empty; name one, or leave --model out for "tiny".')
    if [args.system, *prompts].count("-") > 1:
        raise ValueError('"-" stands for stdin, which can be read only once; write the other text out.')


def check_boxes_file(path: Path, pictures: list[str]) -> None:
    """Whether --boxes can be written, and is none of the pictures. Raises ValueError."""
    if not pictures:
        raise ValueError("--boxes needs a picture to draw on; add --image.")
    if path.suffix.lower() not in DRAWN_AS:
        raise ValueError(f"--boxes {path}: the name must end in one of {', '.join(DRAWN_AS)}.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--boxes {path} cannot be written; name a file in an existing folder of yours.")
    if any(path.resolve() == Path(picture).resolve() for picture in pictures):
        raise ValueError(f"--boxes {path} would overwrite the picture itself; choose another name.")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit code."""
    check_options(args)
    if args.questions:
        print(questions_text(args.model), flush=True)
        return 0

    from qwen2vl_cli import ask, batch  # not at the top of this file: see there

    return batch.run(args) if args.batch else ask.run(args)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1, 2 (see --help), 130 after Ctrl-C, 141 if nobody listens."""
    argv = sys.argv[1:] if argv is None else argv
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?"

    try:
        return run_flushed(argv)
    except SystemExit as stop:  # argparse, after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        note("")
        return 130
    except BrokenPipeError:  # whoever read our answer has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 141
    except Exception as error:
        quits = came_from_debugger(error)
        if "--debug" in argv or (quits and is_run_by_debugger()):
            raise
        if quits:  # of a breakpoint() in the code: nobody is there who would understand the exception
            return 130
        note(sentence(error))
        return 2


def run_flushed(argv: list[str]) -> int:
    """Run the command line; when this returns or raises, stdout has left the process."""
    parser = make_parser()
    if not argv:
        note(parser.format_usage() + EXAMPLES % {"prog": parser.prog} + "--help lists all options.")
        return 2

    try:
        return run(parser.parse_args(argv))
    finally:
        sys.stdout.flush()  # a reader that has gone is no error here; at Python's exit it would be one


if __name__ == "__main__":
    sys.exit(main())
