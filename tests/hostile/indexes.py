"""Indexes of sharded weights, and names of models that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.checkpoints import checkpoint, header_of, load_weights, load_words, sound_checkpoint
from tests.hostile.ways_in import given
from tests.hostile.weights import NORM

SHARD = "model-1.safetensors"

WRONG_SHARDS = {  # name: where the index says that a tensor is, what the refusal says
    "out of the folder": ("../outside.safetensors", "plain name"),
    "an absolute path": ("/etc/passwd", "plain name"),
    "back and forth": ("a/../model-1.safetensors", "plain name"),
    "a subfolder": ("sub/model.safetensors", "plain name"),
    "backslashes": ("..\\model.safetensors", "plain name"),
    "a null character": ("a\0.safetensors", "plain name"),
    "a line break": ("a\n.safetensors", "plain name"),
    "a URL": ("http://127.0.0.1/model.safetensors", "plain name"),
    "no text": (7, "plain name"),
    "nothing": (None, "plain name"),
    "a list": (["a"], "plain name"),
    "dots": ("..", "plain name"),
    "a pickle": ("model.bin", "plain name"),
    "letters beyond ASCII": ("mödel.safetensors", "plain name"),
    "a name of 10,000 letters": ("a" * 10_000 + ".safetensors", "missing|plain name"),
    "a missing shard": ("model-1.safetensors", "is missing"),
}

WRONG_INDEXES = {  # name: content, what the refusal says
    "no table": (b"{}", "no weight_map"),
    "an empty table": (b'{"weight_map": {}}', "no weight_map"),
    "a list for a table": (b'{"weight_map": ["model.safetensors"]}', "no weight_map"),
    "a list for all": (b"[]", "JSON object"),
    "no JSON": (b"weight_map:", "not valid JSON"),
    "a key of 100,000 letters": (json.dumps({"weight_map": {"k" * 100_000: "../x"}}).encode(), "plain name"),
    "a key with line breaks": (json.dumps({"weight_map": {"a\nb": "../x"}}).encode(), "plain name"),
}

WRONG_MODELS = {  # name: what is loaded in place of a folder, what the refusal says
    "a name that is none": ("no/such/model/here", "no such folder"),
    "a null character": ("a\0b", "no such folder"),
    "an empty name": ("", "no such folder|config.json"),
    "a line break": ("org/na\nme", "no such folder"),
    "a name of 100,000 letters": ("a" * 100_000, "no such folder"),
    "out of the cache": ("../../etc", "no such folder|no config.json"),
    "a number": (7, "no such folder|checkpoint"),
    "None": (None, "no such folder|checkpoint"),
    "a list": ([], "no such folder|checkpoint"),
    "a device": ("/dev/null", "is a file"),
    "an empty folder": ("/proc/self/map_files", "config.json"),
    "a home that is none": ("~nobody-of-this-name/x", "no such folder"),
}


def indexes() -> Iterator[Case]:
    kind = "weights"
    for name, (shard, says) in WRONG_SHARDS.items():
        index = json.dumps({"weight_map": {NORM: shard}}).encode()
        yield Case(kind, f"index: {name}", checkpoint(weights=None, index=index), load_weights, says)
    for name, (index, says) in WRONG_INDEXES.items():
        yield Case(kind, f"index: {name}", checkpoint(weights=None, index=index), load_weights, says)

    yield Case(kind, "index: sound", sharded(dict), load_weights, "", "answered")
    yield Case(kind, "index: a link to a blob, as in the Hub's cache", in_the_cache, load_weights, "", "answered")
    yield Case(kind, "index: a key more", sharded(one_more), load_weights, "disagree about extra")
    yield Case(kind, "index: a key less", sharded(one_less), load_weights, f"disagree about {NORM}")
    yield Case(kind, "sound weights", checkpoint(), load_weights, "", "answered")
    yield Case(kind, "sound words", checkpoint(), load_words, "", "answered")

    for name, (value, says) in WRONG_MODELS.items():
        yield Case(kind, f"model: {name}", given(value), load_weights, says)


def sharded(promised: Callable[[dict], dict]) -> Callable[[Path], Path]:
    """The input is a checkpoint of one shard; `promised` changes what its index promises."""

    def make(folder: Path) -> Path:
        content = sound_checkpoint()["model.safetensors"]
        header, _ = header_of(content)
        table = promised({key: SHARD for key in header if key != "__metadata__"})
        index = json.dumps({"weight_map": table}).encode()
        return checkpoint(weights=None, index=index, **{SHARD: content})(folder)

    return make


def one_more(table: dict) -> dict:
    return table | {"extra": SHARD}


def one_less(table: dict) -> dict:
    return {key: shard for key, shard in table.items() if key != NORM}


def in_the_cache(folder: Path) -> Path:
    """A sharded checkpoint as huggingface_hub keeps it: the shard is a link to a file beside the folder."""
    inner = folder / "checkpoint"
    inner.mkdir()
    sharded(dict)(inner)
    (inner / SHARD).rename(folder / "blob")
    (inner / SHARD).symlink_to("../blob")
    return inner
