"""What `python qwen2vl_mini.py` and `qwen2vl-mini` do: answer a question, count its tokens, or chat.

Answers go to stdout, piece by piece as they are written; all else goes to stderr. What a user can get wrong ends in one
sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F

import weights_loader
from media_loader import draw_boxes, load_image, parse_boxes
from qwen2vl_mini import ATTENTION_NAMES, KVCache, Qwen2VLConfig, Qwen2VLProcessor, Special, get_rope_index

EXAMPLES = """examples:
  %(prog)s --image assets/scene.png
  %(prog)s --image assets/scene.png --prompt "Where is the red circle?" --boxes found.png
  %(prog)s --model Qwen/Qwen2-VL-2B-Instruct --max-pixels 768*28*28 --chat --image photo.jpg
"""
DEFAULT_PROMPT = "Describe this image."
BUNDLED = (
    "The bundled 3 M teaching model knows coloured shapes in small drawings and nothing else; "
    "the real one: --model Qwen/Qwen2-VL-2B-Instruct"
)
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
DRAWN_AS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # what --boxes can write
CHAT_HELP = """/image PATH  add a picture to the next turn    /tokens  how full the context is
/clear       forget everything                 /exit    leave (or Ctrl-D); Ctrl-C cuts an answer short"""

# ── Options ───────────────────────────────────────────────────────────────────────────────────────────────────────


class InOrder(argparse.Action):
    """Collects --image and --prompt in one list, in the order in which they were given."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.content = [*namespace.content, (self.dest, value)]


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message}; --help lists all options.")


def number(kind: type, low: float, high: float):
    """An argparse type: a number from `low` to `high`."""

    def parse(text: str):
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:  # so written, NaN is refused too
                return value
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")

    return parse


def pixels(text: str) -> int:
    """An argparse type: an area such as 200704 or 256*28*28."""
    if re.fullmatch(r"[0-9]{1,9}(\*[0-9]{1,9}){0,3}", text) and (area := math.prod(map(int, text.split("*")))):
        return area
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels such as 200704 or 256*28*28")


def make_parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).name
    parser = Parser(
        prog=f"python {script}" if script == "qwen2vl_mini.py" else "qwen2vl-mini",
        usage="%(prog)s [--image PATH ...] [--prompt TEXT ...] [--chat] [options]",
        description="Ask Qwen2-VL about pictures. The answer goes to stdout, everything else to stderr.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(content=[])
    in_order = {"action": InOrder, "default": argparse.SUPPRESS}
    add = parser.add_argument_group("what to ask").add_argument
    add("--image", metavar="PATH", **in_order, help="a picture; may be repeated, pictures and prompts keep their order")
    add("--prompt", metavar="TEXT", **in_order, help=f'"-" reads stdin (default with a picture: "{DEFAULT_PROMPT}")')
    add("--system", metavar="TEXT", help="a system message in place of the usual one")
    add("--add-vision-id", action="store_true", help='write "Picture 1: " and so on before the pictures')
    add("--chat", action="store_true", help="a conversation: turns are kept, /help lists its commands")
    add = parser.add_argument_group("the model").add_argument
    add("--model", metavar="NAME", help='"tiny" (bundled, the default), a folder, or a Hub id org/name')
    add("--dtype", choices=["auto", *weights_loader.DTYPES], default="auto")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default auto)")
    add("--attn", choices=list(ATTENTION_NAMES), default="sdpa", help="attention kernels (default sdpa)")
    add("--min-pixels", metavar="AREA", type=pixels, help="of a picture, as 3136 or 4*28*28; smaller ones are enlarged")
    add("--max-pixels", metavar="AREA", type=pixels, help="larger ones are shrunk; 28*28 pixels cost one token")
    add = parser.add_argument_group("the answer").add_argument
    add("--max-new-tokens", metavar="N", type=number(int, 1, 10**6), default=256, help="its longest (default 256)")
    add("--temperature", metavar="X", type=number(float, 0, 100), help="0: always the likeliest token")
    add("--top-p", metavar="X", type=number(float, 1e-6, 1), help="choose among the likeliest with this share")
    add("--top-k", metavar="N", type=number(int, 0, 10**6), help="choose among so many (0: all)")
    add("--repetition-penalty", metavar="X", type=number(float, 0.01, 100), help="1 changes nothing")
    add("--seed", metavar="N", type=number(int, 0, 2**63 - 1), help="makes sampling repeatable")
    add = parser.add_argument_group("the output").add_argument
    add("--boxes", metavar="FILE", type=Path, help="draw the boxes of the answer on the last picture")
    add("--json", action="store_true", help="one JSON object in place of the text")
    add("--count-tokens", action="store_true", help="only say what the prompt costs; loads no weights")
    add("--verbose", action="store_true", help="settings, sizes and times on stderr")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return parser


def check_options(args: argparse.Namespace) -> None:
    """What argparse cannot see: options that do not go together, and a --boxes that cannot be written in the end."""
    pictures = [value for kind, value in args.content if kind == "image"]
    if not args.content and not args.chat:
        raise ValueError("There is nothing to answer; give --image, --prompt or --chat.")
    for name in ("boxes", "json", "count_tokens"):
        if args.chat and getattr(args, name):
            raise ValueError(f"--chat and --{name.replace('_', '-')} do not go together; drop one.")
    if args.min_pixels and args.max_pixels and args.min_pixels > args.max_pixels:
        raise ValueError(f"--min-pixels {args.min_pixels} is larger than --max-pixels {args.max_pixels}; swap them.")
    if path := args.boxes:
        if not pictures:
            raise ValueError("--boxes needs a picture to draw on; add --image.")
        if path.suffix.lower() not in DRAWN_AS:
            raise ValueError(f"--boxes {path}: the name must end in one of {', '.join(DRAWN_AS)}.")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"--boxes {path} cannot be written; name a file in an existing folder of yours.")
        if any(path.resolve() == Path(picture).resolve() for picture in pictures):
            raise ValueError(f"--boxes {path} would overwrite the picture itself; choose another name.")


# ── Prompts, pictures and what they cost ──────────────────────────────────────────────────────────────────────────


def text_of(text: str) -> str:
    """The text as it is; "-" stands for all of stdin."""
    try:
        text = sys.stdin.read().rstrip("\n") if text == "-" else text
        text.encode()
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text; convert it first.") from None
    return text


def measure(name: str, picture, processor: Qwen2VLProcessor, context: int) -> dict:
    """Sizes in pixels and cost in tokens of a picture, before anything is done with it. Raises ValueError."""
    height, width = processor.image_processor.target_size(picture.height, picture.width)
    tokens = processor.image_processor.num_image_tokens(picture.height, picture.width)
    if tokens >= context:  # said here, since even resizing to such a size can fill the memory
        raise ValueError(f"{name} would take {tokens} tokens of a context of {context}; lower --max-pixels.")
    sizes = {"width": picture.width, "height": picture.height, "resized_width": width, "resized_height": height}
    return {"file": name, **sizes, "tokens": tokens}


def in_words(picture: dict) -> str:
    return "{file}: {width}×{height} → {resized_width}×{resized_height} pixels, {tokens} tokens".format(**picture)


def read_content(args: argparse.Namespace, processor: Qwen2VLProcessor, context: int) -> tuple[list[dict], list[dict]]:
    """The command line's pictures and prompts → the content of a message, and the measures of its pictures."""
    content, pictures = [], []
    for kind, value in args.content:
        if kind == "image":
            content.append({"type": "image", "image": load_image(value)})
            pictures.append(measure(value, content[-1]["image"], processor, context))
        else:
            content.append({"type": "text", "text": text_of(value)})
    texts = [item["text"] for item in content if item["type"] == "text"]
    if pictures and not texts and not args.chat:
        content.append({"type": "text", "text": DEFAULT_PROMPT})
    if texts and not pictures and not "".join(texts).strip():
        raise ValueError("The prompt is empty; write a question or add --image.")
    return content, pictures


def print_costs(prompt_tokens: int, pictures: list[dict], context: int, as_json: bool) -> None:
    """--count-tokens: the tokens of each picture, of the text, and of all."""
    text_tokens = prompt_tokens - sum(picture["tokens"] for picture in pictures)
    if as_json:
        counts = {"text_tokens": text_tokens, "total_tokens": prompt_tokens, "context": context}
        return print(json.dumps({"pictures": pictures, **counts}, ensure_ascii=False))
    for picture in pictures:
        print(in_words(picture))
    print(f"text and the chat's own markers: {text_tokens} tokens")
    print(f"total: {prompt_tokens} tokens, {prompt_tokens / context:.1%} of the context of {context}")


# ── Conversations ─────────────────────────────────────────────────────────────────────────────────────────────────


class Spoken:
    """A control token that the *model* wrote: `render_chat` turns all else that is said into plain text, by str()."""

    def __init__(self, token: str):
        self.token = Special(token)

    def __str__(self) -> str:
        return self.token


class Listener:
    """Stands in for the tokenizer in `model.stream`, to learn which ids were written and when the first one came."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.first = tokenizer, [], None

    def decode(self, ids: list[int], **options) -> str:
        self.ids, self.first = ids, self.first or time.perf_counter()
        return self.tokenizer.decode(ids, **options)


def cut_cache(cache: KVCache, length: int, next_position) -> None:
    """Keep the first `length` tokens of the cache; `next_position` (1, 1) is the M-RoPE position after them."""
    cache.length, cache.token_ids, cache.next_position = length, cache.token_ids[:, :length], next_position


def what_is_new(prompt: dict, cache: KVCache, config: Qwen2VLConfig) -> dict:
    """Cut the cache back to what it shares with the prompt (B = 1); return the inputs of what is left to read.

    The border never lies inside a picture, whose tokens are read together.
    """
    ids, grids = prompt["input_ids"], prompt.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
    most = min(cache.token_ids.shape[1], ids.shape[1] - 1)  # one token at least must be read, to get the next one
    shared = int((cache.token_ids[0, :most].cpu() == ids[0, :most]).long().cumprod(0).sum())
    places = (ids[0] == config.image_token_id).nonzero()[:, 0]  # of all visual tokens
    ends = (grids.prod(1) // config.vision_config.spatial_merge_size**2).cumsum(0)  # visual tokens up to each picture
    pictures = int((ends <= (places < shared).sum()).sum())  # that are shared as a whole
    if pictures < len(grids):
        shared = min(shared, int(places[ends[pictures - 1] if pictures else 0]))
    _, delta = get_rope_index(config, ids[:, :shared], grids[:pictures])
    cut_cache(cache, shared, (shared + delta).to(cache.token_ids.device))
    new = {"input_ids": ids[:, shared:]}
    if pictures < len(grids):
        rows = int(grids[:pictures].prod(1).sum())
        new |= {"pixel_values": prompt["pixel_values"][rows:], "image_grid_thw": grids[pictures:]}
    return new


class Chat:
    """A conversation. Its KV cache lives on from turn to turn, so that each turn reads only what is new.

    A turn that fails leaves the conversation as it was; one that is interrupted counts as far as it came.
    `report` tells of the last turn: the ids it wrote, its tokens and its seconds.
    """

    def __init__(self, model, processor, system=None, add_vision_id=False, max_new_tokens: int = 256, **sampling):
        self.model, self.processor, self.system, self.add_vision_id = model, processor, system, add_vision_id
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        ends = model.generation_config.get("eos_token_id", [])
        self.ends = [ends] if isinstance(ends, int) else ends
        self.clear()

    def clear(self) -> None:
        """Forget all turns."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.cache = KVCache(self.model.config.text_config, 1, 0, self.model.device, self.model.dtype)
        self.report: dict = {}

    def tokens(self) -> int:
        """How many tokens of the context are in use."""
        return self.cache.length

    def say(self, text: str, images: tuple | list = ()) -> Iterator[str]:
        """One turn, pictures first; yields the answer in pieces."""
        return self.turn([*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}])

    def turn(self, content: list[dict]) -> Iterator[str]:
        """One turn with the content of a message, in its order; yields the answer in pieces."""
        began = time.perf_counter()
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True, add_vision_id=self.add_vision_id
        )
        length = prompt["input_ids"].shape[1]
        new = what_is_new(prompt, self.cache, self.model.config)
        kept, position = self.cache.length, self.cache.next_position
        # all the room that this turn can need; a cache that grows by itself doubles
        room = min(length + self.max_new_tokens, self.model.config.text_config.max_position_embeddings)
        self.cache.data = F.pad(self.cache.data, (0, 0, 0, max(0, room - self.cache.data.shape[4])))
        listener, started, counts = Listener(self.processor.tokenizer), time.perf_counter(), False
        try:
            new = {name: tensor.to(self.model.device) for name, tensor in new.items()}
            options = {"max_new_tokens": self.max_new_tokens, "past_key_values": self.cache, **self.sampling}
            yield from self.model.stream(listener, **new, **options)
            counts = True
        except (GeneratorExit, KeyboardInterrupt):
            counts = bool(listener.ids)
            raise
        finally:
            if counts:
                self.messages = [*messages, {"role": "assistant", "content": self.spoken(listener.ids)}]
                decode, written = time.perf_counter() - listener.first, len(listener.ids)
                self.report = {
                    "ids": listener.ids,
                    "tokens": {"prompt": length, "read": length - kept, "answer": written},
                    "seconds": {"prepare": started - began, "prefill": listener.first - started, "decode": decode},
                    "tokens_per_second": (written - 1) / max(decode, 1e-9),  # the prefill gives the first one
                    "cut_off": listener.ids[-1] not in self.ends,
                }
            else:
                cut_cache(self.cache, kept, position)

    def spoken(self, ids: list[int]) -> list[dict]:
        """The ids of an answer → the content of its message, in which the markers of boxes stay control tokens."""
        tokenizer, texts = self.processor.tokenizer, []
        names = {i: name for name, i in tokenizer.special_ids.items()}
        if ids[-1] in self.ends:
            ids = ids[:-1]  # the template writes it
        for special, run in groupby(ids, names.__contains__):
            run = list(run)
            texts += [Spoken(names[i]) for i in run] if special else [tokenizer.decode(run)]
        return [{"type": "text", "text": text} for text in texts]


def chat_loop(chat: Chat, content: list[dict], args: argparse.Namespace, context: int) -> None:
    """Turns and commands from stdin until it ends. `content` is what the command line gave to begin with."""
    by_hand = sys.stdin.isatty()
    if by_hand:
        note(CHAT_HELP)
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and a history)
    ready = any(item["type"] == "text" for item in content)  # the first turn needs no line of input
    answering = False
    while True:
        try:
            line = "" if ready else input("> " if by_hand and sys.stdout.isatty() else "")
            command, _, path = line.partition(" ") if line.startswith("/") else ("", "", "")
            if command == "/image":
                image = load_image(path.strip().strip("'\""))
                note(in_words(measure(path.strip(), image, chat.processor, context)))
                content.append({"type": "image", "image": image})
            elif command == "/clear":
                chat.clear()
                content = []
                note("All is forgotten.")
            elif command == "/tokens":
                note(f"{chat.tokens()} of {context} tokens are in use ({chat.tokens() / context:.1%}).")
            elif command == "/help":
                note(CHAT_HELP)
            elif command in ("/exit", "/quit"):
                return
            elif command:
                note(f"error: {command} is no command; /help lists them, and a space before the slash makes it text.")
            elif ready or line.strip():
                turn = content if ready else [*content, {"type": "text", "text": line.strip()}]
                content, ready, answering = [], False, True
                answer(chat, turn, args)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not (by_hand and answering):
                raise
            note("\n(Cut short.)")  # only this answer was meant
        except Exception as error:
            if args.debug or isinstance(error, BrokenPipeError):
                raise
            note(sentence(error) + " (This turn is dropped; the conversation goes on.)" * answering)
        answering = False


# ── Running ───────────────────────────────────────────────────────────────────────────────────────────────────────


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def answer(chat: Chat, content: list[dict], args: argparse.Namespace) -> None:
    """One turn: the answer to stdout as it comes (not with --json), and to stderr what is to say about it."""
    with closing(chat.turn(content)) as pieces:
        for piece in pieces:
            if not args.json:
                print(piece, end="", flush=True)
    if not args.json:
        print(flush=True)
        if chat.report["cut_off"]:
            note(f"(Cut off after {args.max_new_tokens} tokens; --max-new-tokens allows more.)")
    if args.verbose:
        tokens, seconds, speed = (chat.report[key] for key in ("tokens", "seconds", "tokens_per_second"))
        note(f"prepare   {seconds['prepare']:.2f} s to make inputs of pictures and text")
        note(f"prefill   {seconds['prefill']:.2f} s to read {tokens['read']} of {tokens['prompt']} prompt tokens")
        note(f"decode    {seconds['decode']:.2f} s for {tokens['answer']} tokens, {speed:.1f} tokens/s")


def run(args: argparse.Namespace) -> None:
    """All that can be checked is checked before the weights are loaded."""
    check_options(args)
    name, system = args.model or "tiny", text_of(args.system) if args.system else None
    folder = weights_loader.find_checkpoint(name)
    processor = Qwen2VLProcessor.from_pretrained(folder, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    context = Qwen2VLConfig.from_pretrained(folder).text_config.max_position_embeddings
    content, pictures = read_content(args, processor, context)
    if args.model is None:
        note(BUNDLED)
    if args.count_tokens:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": content}]
        ids = processor.apply_chat_template(messages, True, True, args.add_vision_id)
        return print_costs(ids.shape[1], pictures, context, args.json)

    began = time.perf_counter()
    model = weights_loader.load_model(name, dtype=args.dtype, device=args.device, attn_implementation=args.attn)
    load_seconds = time.perf_counter() - began
    sampling = {key: getattr(args, key) for key in SAMPLING}
    settings = {"model": name, "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    settings |= {"attention": model.attn_implementation, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    settings |= model.sampling_settings(**sampling)
    if args.verbose:
        note("settings  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
        note(f"load      {load_seconds:.2f} s")
    for picture in pictures if args.verbose or args.chat else ():
        note(f"picture   {in_words(picture)}")
    chat = Chat(model, processor, system, args.add_vision_id, args.max_new_tokens, seed=args.seed, **sampling)
    if args.chat:
        return chat_loop(chat, content, args, context)
    answer(chat, content, args)

    raw = processor.decode(chat.report["ids"])
    boxes = parse_boxes(raw, pictures[-1]["width"], pictures[-1]["height"]) if pictures else []
    for box in boxes:
        note(f"box       {box.name}: ({box.x1:.0f}, {box.y1:.0f}) to ({box.x2:.0f}, {box.y2:.0f}) pixels")
    if args.boxes and boxes:
        draw_boxes([item["image"] for item in content if item["type"] == "image"][-1], boxes).save(args.boxes)
        note(f"Wrote {args.boxes}.")
    elif args.boxes:
        note(f"The answer has no box, so {args.boxes} was not written.")
    if args.json:
        text = processor.decode(chat.report.pop("ids"), skip_special_tokens=True)
        report = {"answer": text, "raw": raw, "boxes": [asdict(box) for box in boxes], "pictures": pictures}
        report |= chat.report | {"settings": settings}
        report["tokens"]["context"], report["seconds"]["load"] = context, load_seconds
        print(json.dumps(report, ensure_ascii=False), flush=True)


def sentence(error: Exception) -> str:
    """One line for the user."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "error: Out of memory; lower --max-pixels or --max-new-tokens, or take a smaller --model."
    if isinstance(error, ValueError | OSError) and text:
        return f"error: {text}"
    return f"unexpected error: {type(error).__name__}: {text} (run with --debug for the traceback)"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C, 141 if nobody listens."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?"
    try:
        parser = make_parser()
        if not argv:
            note(parser.format_usage() + EXAMPLES % {"prog": parser.prog} + "--help lists all options.")
            return 2
        try:
            run(parser.parse_args(argv))
        finally:
            sys.stdout.flush()  # here a reader that has gone is still no error; at Python's exit it is
    except SystemExit as stop:  # argparse, after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        note("")
        return 130
    except BrokenPipeError:  # whoever read our answer has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 141
    except Exception as error:
        if "--debug" in argv:
            raise
        note(sentence(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
