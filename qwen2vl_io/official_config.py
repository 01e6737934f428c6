"""What the official configurations can do besides holding numbers: dicts and flat keywords, other names, files.

Whatever a config.json says that the model here has no use for is kept in `rest` and written back.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import get_type_hints

import torch

from qwen2vl_io.files import inner_dict, json_text, read_json, write_files, write_json
from qwen2vl_io.foreign import refuse_other_models, refuse_quantised
from qwen2vl_io.official_names import INNER, AbsentName, OfficialNames, absent, did_you_mean
from qwen2vl_io.options import is_number
from qwen2vl_io.sentences import shown

LARGEST = 10**7  # of any number in a config.json that is not in this table; no library stumbles over such numbers
LIMITS = {
    **{"num_hidden_layers": (1, 1000), "depth": (1, 1000), "mlp_ratio": (0.25, 100)},
    **{"patch_size": (1, 100), "temporal_patch_size": (1, 100), "spatial_merge_size": (1, 10)},
    **{"rms_norm_eps": (1e-20, 1), "rope_theta": (1, 1e12)},
}
FIXED = {  # settings of the official classes that have one value here, in the text and the vision half: and why
    "text_config": {
        "hidden_act": (("silu",), "the decoder's MLP is SwiGLU"),
        "attention_dropout": ((0, None), "there is no dropout here; put one into the attention function of your own"),
        "use_sliding_window": ((False, None), "every layer sees the whole context, as in the released models"),
        "attention_bias": ((True, None), "queries, keys and values have a bias in Qwen2"),
        "pretraining_tp": ((1, None), "the weights are whole"),
    },
    "vision_config": {
        "hidden_act": (("quick_gelu",), "the tower's MLP is built with it"),
        "in_channels": ((3, None), "pictures are red, green and blue"),
        "in_chans": ((3, None), "pictures are red, green and blue"),
    },
}
# Settings that the official classes hold and that change nothing in what a model computes.
KEPT = (
    "architectures attn_implementation bos_token_id chunk_size_feed_forward dtype eos_token_id id2label "
    "initializer_range is_encoder_decoder label2id layer_types max_window_layers model_type name_or_path "
    "output_attentions output_hidden_states pad_token_id problem_type return_dict sliding_window torch_dtype "
    "spatial_patch_size "
    "transformers_version use_cache vision_token_id"
).split()
DEFAULTS = {  # what those say unless a file or a caller said otherwise
    **{"use_cache": True, "is_encoder_decoder": False, "return_dict": True, "use_return_dict": True},
    **{"output_attentions": False, "output_hidden_states": False, "name_or_path": "", "initializer_range": 0.02},
    "architectures": None,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "transformers_version")),
    "max_window_layers": None,
}
TEXT_DEFAULTS = {"hidden_act": "silu", "attention_dropout": 0.0, "use_sliding_window": False}
VISION_DEFAULTS = {"hidden_act": "quick_gelu", "in_channels": 3, "in_chans": 3}
OTHER_NAMES = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}  # of the tower, officially
ABSENT = {
    "push_to_hub": "save_pretrained(folder), then `hf upload org/name folder`",
}

# ── The content of a config.json, checked ───────────────────────────────────────────────────────────────────────────


def config_fields(kind: type, values: dict, part: str = "", where: str = "config.json") -> dict:
    """The values for fields of a configuration. Each is checked: it decides how much is built, or how often."""
    chosen = {name: values[name] for name in get_type_hints(kind) if name in values}
    for name, value in chosen.items():
        number = get_type_hints(kind)[name]
        wanted = None
        if number in (int, float):
            limits = LIMITS.get(name, (0 if name.endswith("_id") else 1, LARGEST))
            if not is_number(value, number, *limits):
                wanted = f"a {'whole ' * (number is int)}number from {limits[0]} to {limits[1]}"
        elif name == "mrope_section" and value is not None:
            three = value if isinstance(value, list | tuple) and len(value) == 3 else [None]
            if not all(is_number(pairs, int, 1, LARGEST) for pairs in three):
                wanted = "three whole numbers above zero"
        if wanted:
            raise ValueError(f"{where}: {part}{name} = {shown(value)} should be {wanted}.")
    return chosen


def check_fixed(half: str, values: dict, where: str = "config.json") -> None:
    """Settings of a half that the official classes have and that can only be one thing here."""
    for name, (allowed, reason) in FIXED[half].items():
        value = values.get(name, allowed[0])
        if not any(value is one or (type(value) is not bool and value == one) for one in allowed):
            raise ValueError(f"{where}: {name} = {shown(value)} is not supported, only {allowed[0]!r}: {reason}.")
    layers = values.get("layer_types") or ()
    if any(kind != "full_attention" for kind in layers if isinstance(layers, list | tuple)):
        raise ValueError(f"{where}: layer_types may hold 'full_attention' only: every layer sees the whole context.")
    head_dim = values.get("head_dim")
    heads = values.get("num_attention_heads")
    width = values.get("hidden_size")
    if head_dim is not None and half == "text_config" and is_number(heads, int, 1, LARGEST) and width is not None:
        if head_dim != width / heads:
            raise ValueError(f"{where}: head_dim = {shown(head_dim)} is not hidden_size / num_attention_heads.")


def check_rope(rope: dict, where: str = "config.json") -> None:
    """Rotary settings of the decoder: M-RoPE's and plain ones; scaled RoPE belongs to no released Qwen2-VL."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{where}: scaled RoPE ({shown(kind)}) is not supported, 'default' and 'mrope' are.")


def check_tower_rope(rope: dict, where: str = "config.json") -> None:
    """Rotary settings of the tower, which newer files write out and no release changed."""
    if rope.get("rope_theta", 10_000) != 10_000 or rope.get("rope_type", "axial") not in ("axial", "default"):
        raise ValueError(f"{where}: the tower's rope_parameters {shown(rope)} are not supported, only a base of 10000.")


def check_config(config) -> None:
    """The numbers of a Qwen2VLConfig must fit each other, or its modules cannot be built."""
    text = config.text_config
    vision = config.vision_config
    for name, whole, part in (
        ("hidden_size / num_attention_heads", text.hidden_size, text.num_attention_heads),
        ("num_attention_heads / num_key_value_heads", text.num_attention_heads, text.num_key_value_heads),
        ("vision embed_dim / (4 · num_heads)", vision.embed_dim, 4 * vision.num_heads),
    ):
        if whole % part:
            raise ValueError(f"config.json: {name} = {whole} / {part} is not a whole number.")

    pairs = text.head_dim // 2 if text.mrope_section is None else sum(text.mrope_section)  # rotary pairs of a head
    if 2 * pairs != text.head_dim:
        raise ValueError(f"config.json: mrope_section {text.mrope_section} must add up to {text.head_dim} / 2.")
    if vision.hidden_size != text.hidden_size:
        raise ValueError(f"config.json: the merger's {vision.hidden_size} channels are not {text.hidden_size}.")


def config_from_dict(cls: type, content: dict):
    """A Qwen2VLConfig from the content of a config.json: *flat* as released, or with a `text_config` of its own.

    M-RoPE goes by the presence of `mrope_section`, never by a type name: that changed between releases.
    """
    refuse_other_models(content)
    refuse_quantised(content)
    inner_text = inner_dict(content, "text_config")
    text = content | inner_text
    vision = inner_dict(content, "vision_config")
    rope = inner_dict(text, "rope_scaling") | inner_dict(text, "rope_parameters")
    check_rope(rope)
    check_fixed("text_config", text)
    check_fixed("vision_config", vision)
    check_tower_rope(inner_dict(vision, "rope_parameters"))

    text["mrope_section"] = rope.get("mrope_section")
    text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta", 1e6))
    text["tie_word_embeddings"] = bool(content.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    ids = {name: value for name, value in content.items() if name.endswith("_id")}
    kinds = get_type_hints(cls)
    halves = {
        "text_config": kinds["text_config"](**config_fields(kinds["text_config"], text)),
        "vision_config": kinds["vision_config"](**config_fields(kinds["vision_config"], vision, "vision_config.")),
    }
    config = cls(**halves, **config_fields(cls, ids))
    check_config(config)

    for part, said in ((config, content), (config.text_config, inner_text), (config.vision_config, vision)):
        part.rest = dict(said)
        part.rest = without_own(part)
    if "architectures" in content:
        config.rest = config.rest | {"architectures": content["architectures"]}
    return config


def config_to_dict(config) -> dict:
    """The content of a config.json in the released, flat layout, with what else the file it came from said."""
    kept = {**without_own(config.text_config), **without_own(config), "model_type": "qwen2_vl"}
    d = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_act": "silu"}
    d |= kept | asdict(config)
    d |= d.pop("text_config")
    section = d.pop("mrope_section")
    if section:
        d["rope_scaling"] = {"type": "mrope", "mrope_section": list(section)}
    vision = {"model_type": "qwen2_vl", "hidden_act": "quick_gelu", "in_chans": 3}
    d["vision_config"] = d["vision_config"] | without_own(config.vision_config) | vision
    return d


def as_dict(content, kind: str) -> dict:
    """The content of a config.json, also from transformers' object of it."""
    content = content.to_dict() if hasattr(content, "to_dict") else content
    if not isinstance(content, dict):
        raise ValueError(f"{kind}.from_dict takes the content of a config.json, not {shown(content)}.")
    return content


def without_own(config) -> dict:
    """What else the file said, without what is written anew: the halves' fields and rotary settings, and the kind."""
    own = {
        "model_type",
        "rope_parameters",
        "rope_scaling",
        "mrope_section",
        "rope_theta",
        "hidden_act",
        "architectures",
    }
    own |= {"quantization_config", "head_dim", *config.field_names()}
    if hasattr(config, "text_config"):
        own |= set(config.text_config.field_names())
    kept = {name: value for name, value in config.rest.items() if name not in own}
    return {n: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for n, v in kept.items()}


# ── The classes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def takes_official_names(cls: type) -> type:
    """Decorator of a dataclass: its constructor takes the official keywords, too, which `cls.own_names` translates."""
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **named):
        own, rest = self.own_names(named)
        construct(self, *args, **own)
        if rest:
            self.rest = rest

    cls.__init__ = __init__
    return cls


class OfficialConfig(OfficialNames):
    """The methods and other names of the official configurations.

    Names that change nothing are kept in `rest`; names that would, and do not here, are refused.
    """

    ABSENT = ABSENT
    rest: dict = {}  # replaced on an instance, never changed in place

    @classmethod
    def field_names(cls) -> list[str]:
        return [one.name for one in fields(cls)]

    @classmethod
    def from_dict(cls, content: dict, **changes):
        return cls(**as_dict(content, cls.__name__) | changes)

    @classmethod
    def from_json_file(cls, json_file):
        """From a config.json, wherever it lies and whatever its name is."""
        return cls.from_dict(read_json(json_file))

    @classmethod
    def get_config_dict(cls, name, **options) -> tuple[dict, dict]:
        return cls.from_pretrained(name, **options).to_dict(), {}

    def to_dict(self) -> dict:
        return without_own(self) | asdict(self) | {"model_type": self.model_type}

    def to_diff_dict(self) -> dict:
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        return json_text(self.to_dict())

    def to_json_file(self, json_file_path, use_diff: bool = True) -> None:
        write_json(json_file_path, self.to_dict())

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **asked) -> list[str]:
        """Write config.json into a folder."""
        if push_to_hub:
            raise ValueError(f"push_to_hub is not supported: {ABSENT['push_to_hub']}.")
        return write_files(save_directory, {"config.json": self.to_dict()})

    def update(self, config_dict: dict) -> None:
        """Set several values."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def __getattr__(self, name: str):
        if INNER.match(name):
            raise absent(self, name, {})
        found = self.defaults() | self.rest
        if name in ("dtype", "torch_dtype"):
            said = str(found.get("torch_dtype") or found.get("dtype")).removeprefix("torch.")
            return getattr(torch, said, None) if said in ("bfloat16", "float16", "float32", "float64") else None
        if name in found:
            return found[name]
        raise absent(self, name, self.ABSENT)

    def __setattr__(self, name: str, value) -> None:
        if name in self.field_names():
            object.__setattr__(self, name, config_fields(type(self), {name: value}, where=type(self).__name__)[name])
        elif name == "rest" or INNER.match(name):
            object.__setattr__(self, name, value)
        elif name in KEPT or name in self.rest:
            self.rest = self.rest | {name: value}
        else:
            own, rest = self.own_names({name: value})  # refuses what it does not know
            for known, translated in own.items():
                object.__setattr__(self, known, translated)
            self.rest = self.rest | rest

    def __contains__(self, name: str) -> bool:
        return name in self.to_dict()


class OfficialHalf(OfficialConfig):
    """The configuration of the decoder or of the tower."""

    HALF = ""
    ABSENT = ABSENT | {"from_pretrained": "read the whole, Qwen2VLConfig.from_pretrained(…), and take its half"}

    @classmethod
    def own_names(cls, named: dict) -> tuple[dict, dict]:
        """Official keywords → those of our fields, checked, and what else is only kept."""
        check_fixed(cls.HALF, named, cls.__name__)
        own = cls.renamed(named)
        rest = {name: value for name, value in own.items() if name not in cls.field_names()}
        for name in rest:
            if name not in KEPT and name not in FIXED[cls.HALF] and not INNER.match(name):
                known = [*cls.field_names(), *FIXED[cls.HALF], *KEPT]
                raise ValueError(f"{cls.__name__} has no {shown(name)}; {did_you_mean(name, known)}")
        return config_fields(cls, own, where=cls.__name__), rest

    def get_text_config(self, **which):
        return self


class OfficialTextConfig(OfficialHalf):
    HALF = "text_config"
    model_type = "qwen2_vl_text"

    @classmethod
    def renamed(cls, named: dict) -> dict:
        """M-RoPE's sections and the base frequency are in an object of their own, officially."""
        named = dict(named)
        rope = {}
        for name in ("rope_scaling", "rope_parameters"):
            if name in named:
                rope |= inner_dict(named, name, cls.__name__)
                named.pop(name)
        check_rope(rope, cls.__name__)
        named.pop("head_dim", None)
        if named.get("num_key_value_heads", 1) is None:
            named["num_key_value_heads"] = named.get("num_attention_heads")
        return named | {name: rope[name] for name in ("mrope_section", "rope_theta") if name in rope}

    def to_dict(self) -> dict:
        return super().to_dict() | {"rope_parameters": self.defaults()["rope_parameters"]}

    def defaults(self) -> dict:
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.mrope_section is not None:
            rope["mrope_section"] = list(self.mrope_section)
        layers = ["full_attention"] * self.num_hidden_layers
        return DEFAULTS | TEXT_DEFAULTS | {"rope_parameters": rope, "rope_scaling": rope, "layer_types": layers}


class OfficialVisionConfig(OfficialHalf):
    HALF = "vision_config"
    model_type = "qwen2_vl_vision"

    @classmethod
    def renamed(cls, named: dict) -> dict:
        named = {OTHER_NAMES.get(name, name): value for name, value in named.items()}
        check_tower_rope(inner_dict(named, "rope_parameters", cls.__name__), cls.__name__)
        named.pop("rope_parameters", None)
        return named

    def defaults(self) -> dict:
        rope = {"rope_type": "axial", "rope_theta": 10_000.0}
        return (
            DEFAULTS
            | VISION_DEFAULTS
            | {"rope_parameters": rope}
            | {other: getattr(self, ours) for other, ours in OTHER_NAMES.items()}
        )


class OfficialWholeConfig(OfficialConfig):
    """The configuration of both halves: its decoder's values are its own, too."""

    model_type = "qwen2_vl"
    to_dict = config_to_dict
    to_diff_dict = config_to_dict

    @classmethod
    def from_dict(cls, content: dict, **changes):
        """From the content of a config.json: *flat* as released, or with a `text_config` of its own."""
        return config_from_dict(cls, as_dict(content, cls.__name__) | changes)

    @classmethod
    def own_names(cls, named: dict) -> tuple[dict, dict]:
        """The official keywords: halves as dicts or objects, the decoder's values flat, token ids."""
        kinds = get_type_hints(cls)
        own = config_fields(
            cls, {name: value for name, value in named.items() if name.endswith("_id")}, "", cls.__name__
        )
        text_fields = kinds["text_config"].field_names()
        kept = {n: v for n, v in named.items() if n in KEPT or INNER.match(n)}
        rest = {n: v for n, v in kept.items() if n not in text_fields and n not in own}
        flat = {n: v for n, v in named.items() if n not in (*own, *rest, "text_config", "vision_config")}
        built = False
        for half in ("text_config", "vision_config"):
            value = named.get(half)
            if not isinstance(value, kinds[half]) and hasattr(value, "to_dict"):  # of transformers
                value = value.to_dict()
            more = flat if half == "text_config" else {}
            if isinstance(value, kinds[half]):
                own[half] = copy.copy(value) if more else value
                for name, changed in more.items():
                    setattr(own[half], name, changed)
            elif isinstance(value, dict | None) and (value is not None or more):
                own[half] = kinds[half](**merged(half, value or {}, more))
                built = True
            elif value is not None:
                what = f"a dict or a {kinds[half].__name__}, not a {type(value).__name__}"
                raise ValueError(f"{cls.__name__}: {half} should be {what}.")
        if built:
            halves = {half: own.get(half) or kinds[half]() for half in ("text_config", "vision_config")}
            check_config(SimpleNamespace(**halves))
        return own, rest

    def get_text_config(self, **which):
        """The decoder's half, which the official name `get_text_config(decoder=True)` means, too."""
        return self.text_config

    def defaults(self) -> dict:
        return DEFAULTS | {"architectures": ["Qwen2VLForConditionalGeneration"]}

    def __getattr__(self, name: str):
        if INNER.match(name) or "text_config" not in vars(self):
            raise absent(self, name, {})
        if name in self.rest or name in ("dtype", "torch_dtype", "architectures"):
            return super().__getattr__(name)
        try:
            return getattr(self.text_config, name)
        except AbsentName:
            raise absent(self, name, self.ABSENT) from None

    def __setattr__(self, name: str, value) -> None:
        in_text = name in getattr(type(vars(self).get("text_config")), "field_names", list)()
        if in_text or name in ("rope_scaling", "rope_parameters"):
            setattr(self.text_config, name, value)
        elif name in KEPT or name in self.field_names() or name == "rest" or INNER.match(name):
            super().__setattr__(name, value)
        else:
            known = [*self.field_names(), *self.text_config.field_names(), *KEPT]
            raise ValueError(f"{type(self).__name__} has no {shown(name)}; {did_you_mean(name, known)}")


def merged(half: str, inner: dict, flat: dict) -> dict:
    """The values of a half that are said in its dict, and beside it."""
    for name in inner.keys() & flat.keys():
        if inner[name] != flat[name]:
            raise ValueError(f"{name} is {shown(flat[name])}, and in {half} {shown(inner[name])}; say it once.")
    return flat | inner
