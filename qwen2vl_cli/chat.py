"""A conversation whose cache lives on from turn to turn."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import groupby

import torch
import torch.nn.functional as F

from qwen2vl_cli.costs import check_length, media_of, open_media, prompt_length
from qwen2vl_io.messages import media_kind
from qwen2vl_io.options import MEDIA_OPTIONS
from qwen2vl_io.sentences import shorten
from qwen2vl_io.sources import is_url
from qwen2vl_mini import KVCache, Qwen2VLConfig, Special, get_rope_index

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}  # kind of media → its patches among the inputs


class Listener:
    """Stands in for the tokenizer in `model.stream`, to learn which ids were written and when the first one came."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.first: float | None = None  # when the first id came

    def decode(self, ids: list[int], **options) -> str:
        self.ids = ids
        self.first = self.first or time.perf_counter()
        return self.tokenizer.decode(ids, **options)


def cut_cache(cache: KVCache, length: int, next_position) -> None:
    """Keep the first `length` tokens of the cache; `next_position` (1, 1) is the M-RoPE position after them."""
    cache.length = length
    cache.token_ids = cache.token_ids[:, :length]
    cache.next_position = next_position


def media_places(prompt: dict, kind: str, config: Qwen2VLConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pictures or the clips of a prompt (B = 1): their grids (·, 3), and where the tokens of each start and end."""
    token_id = config.image_token_id if kind == "image" else config.video_token_id
    grids = prompt.get(f"{kind}_grid_thw", torch.zeros(0, 3, dtype=torch.long))
    counts = grids.prod(1) // config.vision_config.spatial_merge_size**2
    places = (prompt["input_ids"][0] == token_id).nonzero()[:, 0]
    ends = places[counts.cumsum(0) - 1] + 1
    return grids, ends - counts, ends


def what_is_new(prompt: dict, cache: KVCache, config: Qwen2VLConfig) -> dict:
    """Cut the cache back to what it shares with the prompt (B = 1); return the inputs of what is left to read.

    The border never lies inside a picture or clip, whose tokens are read together.
    """
    ids = prompt["input_ids"]
    media = {kind: media_places(prompt, kind, config) for kind in PIXELS}

    longest = min(cache.token_ids.shape[1], ids.shape[1] - 1)  # at least one token is read, to get the next one
    is_same = cache.token_ids[0, :longest].cpu() == ids[0, :longest]
    shared = int(is_same.long().cumprod(0).sum())
    for _, starts, ends in media.values():
        for start, end in zip(starts.tolist(), ends.tolist()):
            if start < shared < end:
                shared = start

    kept = {kind: int((ends <= shared).sum()) for kind, (_, _, ends) in media.items()}
    kept_grids = {kind: grids[: kept[kind]] for kind, (grids, _, _) in media.items()}
    next_position = torch.zeros(1, 1, dtype=torch.long)
    if shared:  # else nothing stands before what is new
        _, delta = get_rope_index(config, ids[:, :shared], kept_grids["image"], kept_grids["video"])
        next_position = shared + delta
    cut_cache(cache, shared, next_position.to(cache.token_ids.device))

    new = {"input_ids": ids[:, shared:]}
    for kind, (grids, _, _) in media.items():
        if kept[kind] < len(grids):
            rows = int(kept_grids[kind].prod(1).sum())
            new[PIXELS[kind]] = prompt[PIXELS[kind]][rows:]
            new[f"{kind}_grid_thw"] = grids[kept[kind] :]
    return new


class Chat:
    """A conversation. Its KV cache lives on from turn to turn, so that each turn reads only what is new; and pictures
    and clips are decoded once, then kept as the patches that the tower takes.

    A turn that fails leaves the conversation as it was; one that is interrupted counts as far as it came.
    `report` tells of the last turn: the ids it wrote, its tokens and its seconds.
    """

    def __init__(self, model, processor, system=None, add_vision_id=False, max_new_tokens: int = 256, **sampling):
        self.model = model
        self.processor = processor
        self.system = system
        self.add_vision_id = add_vision_id
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.context = model.config.text_config.max_position_embeddings
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
        kept = self.cache.length
        position = self.cache.next_position
        self.make_room(length + self.max_new_tokens)

        listener = Listener(self.processor.tokenizer)
        started = time.perf_counter()
        counts = False  # whether the turn becomes a part of the conversation
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
                self.report = self.make_report(listener, began, started, length, kept)
            else:
                cut_cache(self.cache, kept, position)

    def make_room(self, length: int) -> None:
        """Give the cache room for that many tokens at once; when it grows by itself, it doubles."""
        missing = min(length, self.context) - self.cache.data.shape[4]
        self.cache.data = F.pad(self.cache.data, (0, 0, 0, max(0, missing)))

    def make_report(self, listener: Listener, began: float, started: float, length: int, kept: int) -> dict:
        """What a turn took. Media `began`, then the model `started`; `kept` of `length` tokens were cached."""
        decode = time.perf_counter() - listener.first
        written = len(listener.ids)
        return {
            "ids": listener.ids,
            "tokens": {"prompt": length, "read": length - kept, "answer": written},
            "seconds": {"prepare": started - began, "prefill": listener.first - started, "decode": decode},
            "tokens_per_second": (written - 1) / max(decode, 1e-9),  # the prefill gives the first one
            "cut_off": listener.ids[-1] not in self.model.end_token_ids(),
        }

    def prepare(self, content: list[dict]) -> tuple[dict, list[dict]]:
        """The model's inputs for the whole conversation with one more turn, and its messages."""
        content = [
            item if "measured" in item else open_media([item], self.processor, self.context)[0] for item in content
        ]
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
        tokenizer = self.processor.tokenizer
        names = {i: name for name, i in tokenizer.special_ids.items()}
        if ids[-1] in self.model.end_token_ids():
            ids = ids[:-1]  # the template writes it

        texts = []
        for is_special, run in groupby(ids, names.__contains__):
            if is_special:
                texts += [Special(names[i]) for i in run]
            else:
                texts.append(tokenizer.decode(list(run)))
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
    kind = item["type"]
    source = item["source"]
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"The conversation has a {kind} that came from no file, so it cannot be saved.")

    source = os.fspath(source)
    path = source if is_url(source) else os.path.abspath(source)
    options = {key: item[key] for key in MEDIA_OPTIONS if key in item}
    return {"type": kind, kind: path, **options}
