"""A checkpoint's generation_config.json as a dict that has attributes, too, as the official object has."""

from __future__ import annotations

import logging
from pathlib import Path

from qwen2vl_io.files import json_text, read_json, write_files
from qwen2vl_io.official_config import LARGEST
from qwen2vl_io.official_names import INNER, AbsentName, absent, did_you_mean
from qwen2vl_io.options import is_number
from qwen2vl_io.sentences import shorten, shown

logger = logging.getLogger(__name__)

FOLLOWED = {  # what counts here, and the kind of number it is
    **{"temperature": float, "top_p": float, "repetition_penalty": float, "top_k": int},
    **{"eos_token_id": int, "pad_token_id": int, "max_new_tokens": int, "do_sample": bool},
}
IN_CALL = "pass it to generate()"
OTHERS = {  # official names that do not count here: the values that change nothing, and the way out for others
    "max_length": ((20,), "pass max_new_tokens to generate()"),  # 20 was the default of older releases
    "min_length": ((0,), "suppress_tokens keeps the end from being chosen"),
    "min_new_tokens": ((0,), "suppress_tokens keeps the end from being chosen"),
    "suppress_tokens": ((), IN_CALL),
    "begin_suppress_tokens": ((), "suppress_tokens does so for the whole answer"),
    "num_beams": ((1,), "answers are generated one token at a time, without beams"),
    "num_beam_groups": ((1,), "answers are generated one token at a time, without beams"),
    "early_stopping": ((False,), "there are no beams"),
    "length_penalty": ((1.0,), "there are no beams"),
    "diversity_penalty": ((0.0,), "there are no beams"),
    "num_return_sequences": ((1,), "repeat the prompt in the batch"),
    "use_cache": ((True,), "the cache is always used"),
    "cache_implementation": ((), "a KVCache of your own goes to generate(cache=…)"),
    "typical_p": ((1.0,), "sample with top_p"),
    "min_p": ((0.0,), "sample with top_p"),
    "epsilon_cutoff": ((0.0,), "sample with top_p"),
    "eta_cutoff": ((0.0,), "sample with top_p"),
    "penalty_alpha": ((0.0,), "sample with top_p"),
    "encoder_repetition_penalty": ((1.0,), "use repetition_penalty"),
    "no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "guidance_scale": ((1.0,), "there is no guidance"),
    "renormalize_logits": ((False,), "probabilities add up to 1 anyway"),
    "remove_invalid_values": ((False,), "logits that are not finite are an error"),
    "output_attentions": ((False,), "ask forward for them"),
    "output_hidden_states": ((False,), "ask forward for them"),
    "output_scores": ((False,), "ask forward for logits"),
    "output_logits": ((False,), "ask forward for logits"),
    "return_dict_in_generate": ((False,), "generate returns ids"),
    "low_memory": ((False,), "there are no beams"),
    **dict.fromkeys("bad_words_ids force_words_ids sequence_bias constraints".split(), ((), "use suppress_tokens")),
    **dict.fromkeys("stop_strings max_time".split(), ((), "stream, and stop reading")),
    **dict.fromkeys("forced_bos_token_id forced_eos_token_id".split(), ((), "write it into the prompt")),
    **dict.fromkeys(
        "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
        "cache_config compile_config continuous_batching_config disable_compile dola_layers "
        "exponential_decay_length_penalty "
        "max_cache_len max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule prefill_chunk_size "
        "prompt_lookup_num_tokens speculation_type target_lookbehind token_healing top_h use_mtp "
        "watermarking_config".split(),
        ((False,), "it is not a part of this decoder"),
    ),
}
KEPT = ("bos_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config", "is_assistant")


class GenerationConfig(dict):
    """`config["top_k"]` and `config.top_k` are the same; what is None is not there.

    A value that would change nothing is refused with the way out. What a *file* says and nothing here follows is kept,
    and a line of the log says so.
    """

    def __init__(self, values=(), **named):
        super().__init__()
        self.update(values, **named)

    @classmethod
    def from_file(cls, path: Path) -> GenerationConfig:
        """What a generation_config.json says; what we use of it is checked."""
        config = cls()
        unused = []
        for name, value in read_json(path).items():
            if value is None:
                continue
            if name in FOLLOWED:
                check_followed(name, value, shorten(path))
            elif name in OTHERS and not is_neutral(name, value):
                unused.append(f"{name} = {shown(value)}")
            dict.__setitem__(config, name, value)
        if unused:
            logger.warning(f"{shorten(path)}: {', '.join(sorted(unused)[:5])} is not followed here.")
        return config

    def __setitem__(self, name: str, value) -> None:
        if value is None:
            self.pop(name, None)
            return
        if name in FOLLOWED:
            check_followed(name, value, "generation_config")
        elif name in OTHERS and not is_neutral(name, value):
            raise ValueError(f"generation_config.{name} = {shown(value)} is not supported: {OTHERS[name][1]}.")
        elif name not in OTHERS and name not in KEPT and name not in self:
            raise ValueError(f"generation_config has no {shown(name)}; {did_you_mean(name, [*FOLLOWED, *OTHERS])}")
        super().__setitem__(name, value)

    def update(self, values=(), **named) -> None:
        values = values.to_diff_dict() if hasattr(values, "to_diff_dict") else values
        for name, value in dict(values, **named).items():
            self[name] = value

    def setdefault(self, name, default=None):
        if name not in self:
            self[name] = default
        return self.get(name)

    def __ior__(self, values):
        self.update(values)
        return self

    def copy(self) -> GenerationConfig:
        return GenerationConfig(self)

    def __getattr__(self, name: str):
        if name in self:
            return self[name]
        if name in FOLLOWED or name in OTHERS or name in KEPT:
            return None
        if INNER.match(name):
            raise absent(self, name, {})
        raise AbsentName(f"generation_config has no {shown(name)}; {did_you_mean(name, [*FOLLOWED, *OTHERS])}")

    def __setattr__(self, name: str, value) -> None:
        if INNER.match(name) and name not in KEPT:
            object.__setattr__(self, name, value)
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def __reduce__(self):
        return _restored, (dict(self),)

    def to_dict(self) -> dict:
        return dict(self)

    to_diff_dict = to_dict

    def to_json_string(self, use_diff: bool = True) -> str:
        return json_text(dict(self))

    def save_pretrained(self, save_directory, **asked) -> list[str]:
        """Write generation_config.json into a folder."""
        return write_files(save_directory, {"generation_config.json": dict(self)})


def _restored(values: dict) -> GenerationConfig:
    """A copy, also of what a file said and nothing here follows."""
    config = GenerationConfig()
    dict.update(config, values)
    return config


def is_neutral(name: str, value) -> bool:
    """Whether a value of an official name changes nothing."""
    return any(type(value) is not bool and value == one or value is one for one in OTHERS[name][0])


def check_followed(name: str, value, where: str) -> None:
    """A value that counts is of its kind, and no absurd one."""
    kind = FOLLOWED[name]
    if kind is bool:
        right = isinstance(value, bool)
        wanted = "true or false"
    else:
        values = value if name == "eos_token_id" and isinstance(value, list | tuple) else [value]
        right = all(is_number(one, kind, 0, LARGEST) for one in values)
        wanted = f"a {'whole ' * (kind is int)}number from 0 to {LARGEST}"
    if not right:
        raise ValueError(f"{where}: {name} = {shown(value)} should be {wanted}.")


class GenerationSettings:
    """The attribute `generation_config` of a model: whatever dict or object it is set to becomes a GenerationConfig."""

    def __get__(self, model, kind=None):
        if model is None:
            return self
        return vars(model).setdefault("_generation_config", GenerationConfig())

    def __set__(self, model, value) -> None:
        if not isinstance(value, GenerationConfig):
            if not isinstance(value, dict) and not hasattr(value, "to_diff_dict"):
                raise ValueError(f"generation_config is a dict or an object of settings, not {shown(value)}.")
            value = GenerationConfig(value)
        vars(model)["_generation_config"] = value
