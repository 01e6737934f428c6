"""One question, or a chat: pictures and clips are measured before they cost anything, and nothing is read twice."""

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

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

import url_fetcher
import weights_loader
from checks import MEDIA_OPTIONS, item_options, media_kind
from command_line import note, sentence
from media_loader import FORMATS, draw_boxes, item_source, load_image, load_video, parse_boxes, shorten
from qwen2vl_mini import (
    KVCache,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Special,
    get_rope_index,
    render_chat,
)

PICTURE_PROMPT = "Describe this image."
VIDEO_PROMPT, BUNDLED_VIDEO_PROMPT = "Describe this video.", "What happens?"  # the latter is what "tiny" was taught
BUNDLED = (
    "The bundled 4.6 M teaching model knows coloured shapes in small drawings and nothing else; "
    "the real one: --model Qwen/Qwen2-VL-2B-Instruct"
)
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
CLIPS = ("fps", "nframes", "video_start", "video_end")
MENTION = re.compile(r'(?<![^\s(])@(?:"([^"\n]+)"|(\S+))')  # not the @ of an e-mail address
MEDIA_NAME = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|mp4|mov|mkv|webm|avi|m4v)$", re.IGNORECASE)
CHAT_HELP = """/image PATH  add a picture to the next turn    /tokens     how full the context is
/video PATH  add a clip                        /save FILE  write the conversation as JSON messages
/clear       forget everything                 /exit       leave (or Ctrl-D); Ctrl-C cuts an answer short
@photo.jpg or @"my clip.mp4" inside a line puts that file there."""

# ── Pictures and clips: what they are and what they cost ──────────────────────────────────────────────────────────


def is_url(source: str) -> bool:
    return re.match("(?:https?|file|data):", source, re.IGNORECASE) is not None


def open_item(item: dict, processor: Qwen2VLProcessor, context: int, clips: dict | None = None) -> dict:
    """A media item of a message → the same with its picture decoded or its clip open (its frames are not decoded yet).

    `clips`: how to sample a clip whose item does not say it. What comes back has two keys more: `source`, and
    `measured`, which is the sizes in pixels and the cost in tokens. Raises ValueError or FileNotFoundError.
    """
    kind, source, images = media_kind(item), item_source(item), processor.image_processor
    # the frames of a list have no times, and are taken as they are
    size, limits, total, sampling = item_options(item, {} if isinstance(source, list | tuple) else clips or {})
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else f"The {kind}"
    name = shorten(name, 60) if name[:5].lower() == "data:" else name
    if kind == "image":
        thing, about, sampling, total = load_image(source), {}, {}, None
        height, width = images.target_size(*(size or (thing.height, thing.width)), **limits)
    else:
        thing = load_video(source, **sampling)
        about = {"frames": thing.num_frames, "total_frames": thing.total_frames, "video_fps": thing.video_fps}
        about |= {"seconds": [round(second, 3) for second in thing.seconds]}
        about |= {"note": thing.note} if thing.note else {}
        frame = thing.num_frames, thing.height, thing.width
        height, width = (
            images.target_size(*size, **limits) if size else images.frame_size(*frame, **limits, total_pixels=total)
        )
    pairs = math.ceil(about.get("frames", 1) / images.temporal_patch_size)
    tokens = pairs * height * width // (images.patch_size * images.merge_size) ** 2
    if tokens >= context:  # said here, since even resizing to such a size can fill the memory
        lower = "--max-pixels" if kind == "image" else "--nframes, --fps or --max-pixels"
        raise ValueError(f"{name} would take {tokens} tokens of a context of {context}; lower {lower}.")
    sizes = {"width": thing.width, "height": thing.height, "resized_width": width, "resized_height": height}
    measured = {"file": name, **sizes, **about, "tokens": tokens}
    options = limits | sampling | {"total_pixels": total}
    options |= {"resized_height": size[0], "resized_width": size[1]} if size else {}
    options = {key: value for key, value in options.items() if value is not None}
    return {"type": kind, kind: thing, "source": source, **options, "measured": measured}


def open_media(items: list[dict], *how) -> list[dict]:
    """The content of a message with its media open; `how` as for `open_item`."""
    return [open_item(item, *how) if media_kind(item) else item for item in items]


def in_words(measured: dict) -> str:
    """One line about a picture or clip."""
    frames, m, hint = "", measured, f" ({measured['note']})" if "note" in measured else ""
    if times := m.get("seconds"):
        spacing = f", every {(times[-1] - times[0]) / (len(times) - 1):.2f} s" if len(times) > 1 else ""
        frames = f"{len(times)} of {m['total_frames']} frames ({times[0]:.2f} to {times[-1]:.2f} s{spacing}), "
    sizes = f"{m['width']}×{m['height']} → {m['resized_width']}×{m['resized_height']} pixels"
    return f"{m['file']}: {frames}{sizes}, {m['tokens']} tokens{hint}"


def media_of(messages: list[dict]) -> list[dict]:
    """All media items of a conversation, in order."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [item for content in lists for item in content if media_kind(item)]


def prompt_length(messages: list[dict], processor: Qwen2VLProcessor, add_vision_id: bool) -> int:
    """The tokens of a conversation whose media are open, generation prompt included; no pixel is touched."""
    processor.apply_chat_template(messages, add_generation_prompt=True)  # complains where there is no template
    ids = processor.tokenizer.encode(render_chat(messages, True, add_vision_id))
    return len(ids) + sum(item["measured"]["tokens"] - 1 for item in media_of(messages))  # each has one placeholder


def check_length(messages: list[dict], length: int, max_new_tokens: int, context: int) -> None:
    """Refuse, with the numbers and what to lower, a prompt that does not fit the context with its answer."""
    if length + max_new_tokens <= context:
        return
    costs = {"image": 0, "video": 0}
    for item in media_of(messages):
        costs[media_kind(item)] += item["measured"]["tokens"]
    parts = [f"{cost} of them {name}" for name, cost in zip(("pictures", "clips"), costs.values()) if cost]
    lower = ["--nframes", "--fps"] * bool(costs["video"]) + ["--max-pixels"] * any(costs.values())
    lower += ["--max-new-tokens"] * (length < context)
    way_out = f"lower {' or '.join(lower)}" if lower else "shorten the text"
    prompt = f"The prompt of {length} tokens{''.join(f', {part}' for part in parts)}"
    both = f", and an answer of up to {max_new_tokens} do" if max_new_tokens else " does"
    raise ValueError(f"{prompt}{both} not fit the model's context of {context}; {way_out}.")


# ── Prompts from the command line and the keyboard ────────────────────────────────────────────────────────────────


def text_of(text: str) -> str:
    """The text as it is; "-" stands for all of stdin."""
    try:
        text = sys.stdin.read().rstrip("\n") if text == "-" else text
        text.encode()
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text; convert it first.") from None
    return text


def kind_of_file(path: str) -> str:
    """'image' or 'video', by the content: an animation is a clip, and so is all that is no picture."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return "video" if getattr(picture, "is_animated", False) else "image"
    except UnidentifiedImageError:
        return "image" if re.search(r"\.(png|jpe?g|webp|bmp|tiff?)$", path, re.IGNORECASE) else "video"
    except Exception:  # a damaged picture: loading it will say so
        return "image"


def with_files(text: str) -> list[dict]:
    """A prompt → items of a message, in which each @path (or @"path") of an existing file has become that file."""
    items, end = [], 0
    for match in MENTION.finditer(text):
        names = [match[1]] if match[1] else [match[2], match[2].rstrip(".,;:!?)'\"")]  # "@a.png?" may end a question
        for name in names:
            path = os.path.expanduser(name)
            with suppress(OSError, ValueError):  # no name of a file at all
                if os.path.isfile(path):
                    kind = kind_of_file(path)
                    items.append({"type": "text", "text": text[end : match.start()].strip()})
                    items.append({"type": kind, kind: path})
                    end = match.end() if match[1] else match.start() + 1 + len(name)
                    break
        else:
            if MEDIA_NAME.search(names[-1]):
                note(f"There is no file {shorten(names[-1])}, so @{shorten(names[-1])} stays text.")
    items.append({"type": "text", "text": text[end:].strip() if items else text})
    return [item for item in items if item.get("text") != ""] or items[:1]


def clip_options(args: argparse.Namespace) -> dict:
    """--fps, --nframes, --video-start and --video-end, as far as they are given."""
    return {key: value for key in CLIPS if (value := getattr(args, key)) is not None}


def read_content(args: argparse.Namespace, processor: Qwen2VLProcessor, context: int) -> list[dict]:
    """The command line's pictures, clips and prompts → the content of a message, its media open."""
    items = []
    for kind, value in args.content:
        if kind == "prompt":
            text = text_of(value)
            # what comes through a pipe may be anybody's words: they attach no files
            items += [{"type": "text", "text": text}] if value == "-" else with_files(text)
        else:
            items.append({"type": kind, kind: value})
    kinds = {item["type"] for item in items}
    if clip_options(args) and "video" not in kinds and not args.chat:
        raise ValueError("--fps, --nframes, --video-start and --video-end are about clips; add --video.")
    if kinds == {"text"} and not "".join(item["text"] for item in items).strip():
        raise ValueError("The prompt is empty; write a question or add --image.")
    content = open_media(items, processor, context, clip_options(args))
    if "text" not in kinds and not args.chat:
        video_prompt = BUNDLED_VIDEO_PROMPT if args.model in (None, "tiny") else VIDEO_PROMPT
        content.append({"type": "text", "text": video_prompt if "video" in kinds else PICTURE_PROMPT})
    return content


def print_costs(length: int, media: list[dict], context: int, as_json: bool) -> None:
    """--count-tokens: the tokens of each picture and clip, of the text, and of all."""
    text_tokens = length - sum(item["measured"]["tokens"] for item in media)
    if as_json:
        counts = {"text_tokens": text_tokens, "total_tokens": length, "context": context}
        return print(json.dumps(measures(media) | counts, ensure_ascii=False))
    for item in media:
        print(in_words(item["measured"]))
    print(f"text and the chat's own markers: {text_tokens} tokens")
    print(f"total: {length} tokens, {length / context:.1%} of the context of {context}")


def measures(media: list[dict]) -> dict:
    """What --json says about pictures and clips."""
    names = {"pictures": "image", "videos": "video"}
    return {name: [item["measured"] for item in media if item["type"] == kind] for name, kind in names.items()}


# ── Conversations ─────────────────────────────────────────────────────────────────────────────────────────────────


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

    The border never lies inside a picture or clip, whose tokens are read together.
    """
    ids, cell = prompt["input_ids"], config.vision_config.spatial_merge_size**2  # patches of one visual token
    most = min(cache.token_ids.shape[1], ids.shape[1] - 1)  # one token at least must be read, to get the next one
    shared = int((cache.token_ids[0, :most].cpu() == ids[0, :most]).long().cumprod(0).sum())
    grids, ends = {}, {}  # of pictures and of clips: (·, 3), and the place behind the last token of each
    for kind, token_id in (("image", config.image_token_id), ("video", config.video_token_id)):
        grids[kind] = prompt.get(f"{kind}_grid_thw", torch.zeros(0, 3, dtype=torch.long))
        tokens = grids[kind].prod(1) // cell
        ends[kind] = (ids[0] == token_id).nonzero()[:, 0][tokens.cumsum(0) - 1] + 1
        for end, count in zip(ends[kind].tolist(), tokens.tolist()):
            if end - count < shared < end:
                shared = end - count
    kept = {kind: int((ends[kind] <= shared).sum()) for kind in grids}
    _, delta = get_rope_index(config, ids[:, :shared], *(grids[kind][: kept[kind]] for kind in ("image", "video")))
    cut_cache(cache, shared, (shared + delta).to(cache.token_ids.device))
    new = {"input_ids": ids[:, shared:]}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if kept[kind] < len(grids[kind]):
            rows = int(grids[kind][: kept[kind]].prod(1).sum())
            new |= {pixels: prompt[pixels][rows:], f"{kind}_grid_thw": grids[kind][kept[kind] :]}
    return new


class Chat:
    """A conversation. Its KV cache lives on from turn to turn, so that each turn reads only what is new; and pictures
    and clips are decoded once, then kept as the patches that the tower takes.

    A turn that fails leaves the conversation as it was; one that is interrupted counts as far as it came.
    `report` tells of the last turn: the ids it wrote, its tokens and its seconds.
    """

    def __init__(self, model, processor, system=None, add_vision_id=False, max_new_tokens: int = 256, **sampling):
        self.model, self.processor, self.system, self.add_vision_id = model, processor, system, add_vision_id
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.context = model.config.text_config.max_position_embeddings
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

    def say(self, text: str, images: tuple | list = (), videos: tuple | list = ()) -> Iterator[str]:
        """One turn, pictures and clips first; yields the answer in pieces."""
        media = [{"type": "image", "image": image} for image in images]
        media += [{"type": "video", "video": video} for video in videos]
        return self.turn([*media, {"type": "text", "text": text}])

    def turn(self, content: list[dict]) -> Iterator[str]:
        """One turn with the content of a message, in its order; yields the answer in pieces."""
        began = time.perf_counter()
        prompt, messages = self.prepare(content)
        length = prompt["input_ids"].shape[1]
        new = what_is_new(prompt, self.cache, self.model.config)
        kept, position = self.cache.length, self.cache.next_position
        # all the room that this turn can need; a cache that grows by itself doubles
        room = min(length + self.max_new_tokens, self.context)
        self.cache.data = F.pad(self.cache.data, (0, 0, 0, max(0, room - self.cache.data.shape[4])))
        listener, started, counts = Listener(self.processor.tokenizer), time.perf_counter(), False
        try:
            new = {name: tensor.to(self.model.device) for name, tensor in new.items()}
            options = {"max_new_tokens": self.max_new_tokens, "cache": self.cache, **self.sampling}
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

    def prepare(self, content: list[dict]) -> tuple[dict, list[dict]]:
        """The model's inputs for the whole conversation with one more turn, and its messages."""
        how = self.processor, self.context
        content = [item if "measured" in item else open_media([item], *how)[0] for item in content]
        messages = [*self.messages, {"role": "user", "content": content}]
        length = prompt_length(messages, self.processor, self.add_vision_id)
        check_length(messages, length, self.max_new_tokens, self.context)  # before anything large is made
        for item in media_of([messages[-1]]):
            item["patches"] = self.processor.media_patches(item)
        prompt = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True, add_vision_id=self.add_vision_id
        )
        return prompt, messages

    def spoken(self, ids: list[int]) -> list[dict]:
        """The ids of an answer → the content of its message, in which the markers of boxes stay control tokens."""
        tokenizer, texts = self.processor.tokenizer, []
        names = {i: name for name, i in tokenizer.special_ids.items()}
        if ids[-1] in self.ends:
            ids = ids[:-1]  # the template writes it
        for special, run in groupby(ids, names.__contains__):
            run = list(run)
            texts += [Special(names[i]) for i in run] if special else [tokenizer.decode(run)]
        return [{"type": "text", "text": text} for text in texts]

    def save(self, path: str) -> None:
        """Write the messages as one line of JSON, which is also a file for --batch; media by their absolute paths.

        Control tokens that the model wrote come back as plain text. Raises ValueError; overwrites nothing.
        """
        if not any(message["role"] == "user" for message in self.messages):
            raise ValueError("There is nothing to save yet; say something first.")
        saved = []
        for message in self.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [saved_item(item) if media_kind(item) else item for item in content]
            saved.append({"role": message["role"], "content": content})
        line = json.dumps(saved, ensure_ascii=False)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(line + "\n")
        except FileExistsError:
            raise ValueError(f"{shorten(path)} exists already and is left as it is; choose another name.") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{shorten(path)} cannot be written ({shorten(error)}); choose another place.") from None


def saved_item(item: dict) -> dict:
    """A media item as JSON can hold it."""
    kind, source = item["type"], item["source"]
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"The conversation has a {kind} that came from no file, so it cannot be saved.")
    source = os.fspath(source)
    path = source if is_url(source) else os.path.abspath(source)
    return {"type": kind, kind: path} | {key: item[key] for key in MEDIA_OPTIONS if key in item}


def chat_loop(chat: Chat, content: list[dict], args: argparse.Namespace) -> None:
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
            path = os.path.expanduser(path.strip().strip("'\""))
            if command in ("/image", "/video", "/save") and not path:
                raise ValueError(f"{command} needs the name of a file behind it.")
            if command in ("/image", "/video"):
                kind = command[1:]
                content = [*content, *attach(chat, [{"type": kind, kind: path}], args)]
            elif command == "/clear":
                chat.clear()
                content = []
                note("All is forgotten.")
            elif command == "/tokens":
                used = chat.tokens()
                note(f"{used} of {chat.context} tokens are in use ({used / chat.context:.1%}).")
            elif command == "/save":
                chat.save(path)
                note(f"Wrote {path}.")
            elif command == "/help":
                note(CHAT_HELP)
            elif command in ("/exit", "/quit"):
                return
            elif command:
                note(f"error: {command} is no command; /help lists them, and a space before the slash makes it text.")
            elif ready or line.strip():
                content = content if ready else [*content, *attach(chat, with_files(line.strip()), args)]
                if any(item["type"] == "text" for item in content):  # files alone wait for a question
                    turn, content, ready, answering = content, [], False, True
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


def attach(chat: Chat, items: list[dict], args: argparse.Namespace) -> list[dict]:
    """The items with their media open, and a word on stderr about each of these."""
    items = open_media(items, chat.processor, chat.context, clip_options(args))
    for item in media_of([{"content": items}]):
        note(in_words(item["measured"]))
    return items


# ── Running ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
        note(f"prepare   {seconds['prepare']:.2f} s to make inputs of pictures, clips and text")
        note(f"prefill   {seconds['prefill']:.2f} s to read {tokens['read']} of {tokens['prompt']} prompt tokens")
        note(f"decode    {seconds['decode']:.2f} s for {tokens['answer']} tokens, {speed:.1f} tokens/s")


def open_checkpoint(args: argparse.Namespace) -> tuple[Qwen2VLProcessor, int]:
    """The processor and the context length of --model: all that prompts are measured with, and no weights."""
    url_fetcher.ALLOW_PRIVATE |= args.allow_private_urls
    folder = weights_loader.find_checkpoint(args.model or "tiny")
    processor = Qwen2VLProcessor.from_pretrained(folder, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    return processor, Qwen2VLConfig.from_pretrained(folder).text_config.max_position_embeddings


def sampling_options(args: argparse.Namespace) -> dict:
    return {key: getattr(args, key) for key in ("seed", *SAMPLING)}


def load_model(args: argparse.Namespace) -> tuple[torch.nn.Module, dict, float]:
    """The model, the settings in force, and the seconds that loading took."""
    name, began = args.model or "tiny", time.perf_counter()
    model = weights_loader.load_model(name, dtype=args.dtype, device=args.device, attn_implementation=args.attn)
    seconds = time.perf_counter() - began
    settings = {"model": name, "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    settings |= {"attention": model.attn_implementation, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    settings |= model.sampling_settings(**{key: getattr(args, key) for key in SAMPLING})
    if args.verbose:
        note("settings  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
        note(f"load      {seconds:.2f} s")
    return model, settings, seconds


def run(args: argparse.Namespace) -> int:
    """One question or a chat. All that can be checked is checked before the weights are loaded."""
    system = text_of(args.system) if args.system else None
    processor, context = open_checkpoint(args)
    content = read_content(args, processor, context)
    media = media_of([{"content": content}])
    if args.model is None:
        note(BUNDLED)
    if content:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": content}]
        length = prompt_length(messages, processor, args.add_vision_id)
        if args.count_tokens:
            print_costs(length, media, context, args.json)
        check_length(messages, length, 0 if args.count_tokens else args.max_new_tokens, context)
        if args.count_tokens:
            return 0

    model, settings, load_seconds = load_model(args)
    for item in media if args.verbose or args.chat else ():
        note(f"{'picture' if item['type'] == 'image' else 'clip':<9} {in_words(item['measured'])}")
    chat = Chat(model, processor, system, args.add_vision_id, args.max_new_tokens, **sampling_options(args))
    if args.chat:
        chat_loop(chat, content, args)
        return 0
    answer(chat, content, args)

    raw, pictures = processor.decode(chat.report["ids"]), [item for item in media if item["type"] == "image"]
    last = pictures[-1]["image"] if pictures else None  # where boxes belong
    boxes = parse_boxes(raw, last.width, last.height) if pictures else []
    for box in boxes:
        note(f"box       {box.name}: ({box.x1:.0f}, {box.y1:.0f}) to ({box.x2:.0f}, {box.y2:.0f}) pixels")
    if args.boxes and boxes:
        draw_boxes(last, boxes).save(args.boxes)
        note(f"Wrote {args.boxes}.")
    elif args.boxes:
        note(f"The answer has no box, so {args.boxes} was not written.")
    if args.json:
        text = processor.decode(chat.report.pop("ids"), skip_special_tokens=True)
        report = {"answer": text, "raw": raw, "boxes": [asdict(box) for box in boxes], **measures(media)}
        report |= chat.report | {"settings": settings}
        report["tokens"]["context"], report["seconds"]["load"] = context, load_seconds
        print(json.dumps(report, ensure_ascii=False), flush=True)
    return 0
