"""Which options the calls of processor and model take, and one sentence with the way out for each that they do not."""

from __future__ import annotations

import functools
import math
import numbers
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from qwen2vl_io.limits import of_size
from qwen2vl_io.sentences import shown

# ── Options of the processor ────────────────────────────────────────────────────────────────────────────────────────

MEDIA_OPTIONS = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"), "a whole number"),
    **dict.fromkeys(("nframes", "min_frames", "max_frames"), "a whole number"),
    **dict.fromkeys(("fps", "video_start", "video_end"), "a number"),
}
VIDEO_OPTIONS = ("fps", "nframes", "video_start", "video_end", "min_frames", "max_frames")  # of load_video
FOR_KIND = {"image": "images_kwargs", "video": "videos_kwargs"}
NESTED = (*FOR_KIND.values(), "processor_kwargs", "text_kwargs", "common_kwargs")  # dicts that official calls take
TEXT_OPTIONS = ("padding", "return_tensors", "return_mm_token_type_ids")
SETTING = "it is a setting of the image processor; give it to the constructor"
SAME = {"video_fps": "fps", "num_frames": "nframes"}  # the official calls' other names
# What the official calls take and we do otherwise or not at all: the values that ask for nothing, and why not others.
REFUSED = {
    "truncation": ((False, None, "do_not_truncate"), "a cut prompt would cut pictures; lower max_pixels instead"),
    "max_length": ((None,), "batches are as long as their longest prompt"),
    "pad_to_multiple_of": ((None,), "batches are as long as their longest prompt"),
    "padding_side": ((None, "left"), "new tokens follow the prompt, so it is padded on its left"),
    "add_special_tokens": ((None, True, False), "Qwen2's tokenizer adds none anyway"),
    "return_attention_mask": ((None, True), "the mask is always there; leave it out yourself"),
    "return_token_type_ids": ((None, False), "Qwen2-VL has none; return_mm_token_type_ids tells pictures from words"),
    "return_assistant_tokens_mask": ((None, False), "the template marks no answers"),
    "return_metadata": ((None, False), "qwen2vl_io.videos.load_video tells frames and time stamps"),
    "continue_final_message": ((None, False), "write the open answer behind the rendered prompt and tokenize that"),
    "tools": ((None, []), "Qwen2-VL's own template has no place for tools; describe them in the system message"),
    "documents": ((None, []), "Qwen2-VL's own template has no place for documents; put them into the text"),
    "chat_template": ((None,), "the template is Qwen2-VL's own; render another one yourself for processor(text=…)"),
    "load_audio_from_video": ((None, False), "Qwen2-VL does not hear"),
    "sanitize_control_tokens": ((None, True, False), "what a user typed is always plain text here"),
    "do_resize": ((None, True), "sizes must be multiples of 28; resized_height and resized_width set them"),
    "do_rescale": ((None, True), "pass whole bytes, or fractions from 0 to 1"),
    "do_normalize": ((None, True), "the tower was trained on normalised pixels"),
    "do_convert_rgb": ((None, True), "the tower knows RGB only"),
    "device": ((None, "cpu"), "move the inputs with .to(device)"),
    "data_format": ((None, "channels_first"), "patches have one layout only"),
    "input_data_format": ((None,), "arrays are (height, width, 3), tensors (3, height, width)"),
    "resample": ((None, 3, "bicubic"), 'the constructor takes resample="pillow" or "torch", both bicubic'),
    "rescale_factor": ((None, 1 / 255), "bytes become fractions from 0 to 1; scale other numbers yourself"),
    "do_center_crop": ((None, False), "crop pictures before"),
    "crop_size": ((None,), "crop pictures before"),
    "do_pad": ((None, False), "pictures keep their own sizes"),
    "pad_size": ((None,), "pictures keep their own sizes"),
    "disable_grouping": ((None, True, False), "pictures are resized one by one"),
    "default_to_square": ((None, False), "pictures keep their shapes"),
    "use_fast": ((None,), 'the constructor takes resample="torch", which is what the fast processor does'),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), ((None,), SETTING)),
    **dict.fromkeys(("image_mean", "image_std"), ((None,), SETTING)),
    "cap_pixels_per_frame": ((None, True), "a clip always has a budget; total_pixels says which"),
    "max_video_tokens": ((None,), "total_pixels is the budget of a clip, 784 pixels a token"),
    "use_token_compression": ((None, False), "Qwen2-VL has none; lower max_pixels or fps"),
    "video_metadata": ((None, {}, []), "frames that are given are all taken, and files tell their own times"),
    "video_load_backend": ((None, "pyav"), "clips are decoded by PyAV"),
    "sample_indices_fn": ((None,), "fps or nframes choose frames; or pass a list of frames"),
    **dict.fromkeys(("audio", "audios", "audio_kwargs"), ((None, {}), "Qwen2-VL does not hear")),
    **dict.fromkeys(("text_pair", "text_target", "text_pair_target"), ((None,), "a prompt is one text")),
    **dict.fromkeys(("return_overflowing_tokens", "return_length"), ((None, False), "no prompt is cut here")),
    "return_special_tokens_mask": ((None, False), "compare the ids with tokenizer.special_ids"),
    "return_offsets_mapping": ((None, False), "decode the ids one by one"),
    "is_split_into_words": ((None, False), "join the words"),
    "stride": ((None, 0), "no prompt is cut here"),
    "verbose": ((None, True, False), "there is nothing more to say"),
}
IN_ITEMS = ("images", "videos")  # arguments of the processor's call, and no options of apply_chat_template
PADDING = (True, False, "longest", "do_not_pad")


def call_options(asked: dict, text: bool = True) -> dict:
    """The options of a processor's call under our names, without those that ask for nothing.

    `text`: whether the call makes ids, too. The official nested dicts count like their contents, but those for one kind
    of media stay apart.
    """
    flat = {}
    apart = {}
    for name, value in asked.items():
        if name in NESTED:
            if not isinstance(value, dict | None):
                raise ValueError(f"{name}={shown(value)} should be a dict of options.")
            inner = call_options(value or {}, text)
            apart |= {kind: inner.pop(kind) for kind in FOR_KIND.values() if kind in inner}
            if name in FOR_KIND.values():
                apart[name] = inner
            else:
                check_said_once(flat, inner)
                flat |= inner
        else:
            flat[name] = value
    known = (*MEDIA_OPTIONS, *SAME, "size", "do_sample_frames", *(TEXT_OPTIONS if text else ("return_tensors",)))
    options = {}
    for name, value in flat.items():
        if name in IN_ITEMS and value is not None:
            raise ValueError(f"{name} are no option of this call: they stand in the items of messages.")
        if name in REFUSED:
            check_neutral(name, value)
        elif name not in (*known, *IN_ITEMS):
            close = get_close_matches(name[:100], known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"The option {shown(name)} is unknown; {hint}")
        elif value is not None:
            options[name] = value
    check_text_options(options)
    options = own_names(options)
    rates = options.get("fps")
    for rate in rates if isinstance(rates, list | tuple) else ():  # one for each clip
        check_numbers({"fps": rate})
    check_numbers(options | {"fps": None} if isinstance(rates, list | tuple) else options)
    return options | apart


def check_neutral(name: str, value) -> None:
    """An option of the official calls that is none here may only have a value that asks for nothing."""
    allowed, reason = REFUSED[name]
    plain = getattr(value, "value", value) if name == "resample" else value  # of torchvision's InterpolationMode
    plain = str(value) if name == "device" and isinstance(value, torch.device) else plain
    same = any(plain is one or (isinstance(plain, type(one)) and plain == one) for one in allowed)
    if not same or (name == "resample" and isinstance(value, bool)):
        raise ValueError(f"{name}={shown(value)} is not supported: {reason}.")


def check_text_options(options: dict) -> None:
    """Those options of a call that say in which form its ids are wanted."""
    padding = options.get("padding", True)
    tensors = options.get("return_tensors", "pt")
    if not isinstance(padding, bool | str) or padding not in PADDING:
        raise ValueError(f"padding={shown(padding)} is not supported: batches are as long as their longest row.")
    if not isinstance(tensors, str) or tensors != "pt":
        raise ValueError(f"return_tensors={shown(tensors)} is not supported; use 'pt', torch tensors.")
    if not isinstance(options.get("do_sample_frames", True), bool):
        raise ValueError(f"do_sample_frames={shown(options['do_sample_frames'])} should be True or False.")


def own_names(given: dict) -> dict:
    """Options of a call or of a message's item under our names, those that are None left out.

    `size`, whose two "edges" are areas, becomes min_pixels and max_pixels.
    """
    options: dict = {}
    limits = of_size(given["size"]) if given.get("size") is not None else {}
    for name, value in [*limits.items(), *given.items()]:
        own = SAME.get(name, name)
        if name == "size" or value is None:
            continue
        if own in options and not options[own] == value:
            other = "size" if own in limits else ", ".join(one for one in SAME if SAME[one] == own)
            raise ValueError(f"{own}={shown(value)} and {other} say the same differently; give one of the two.")
        options[own] = value
    return options


def check_said_once(options: dict, others: dict) -> None:
    """Options of a call and of a dict in it: the same name may not have two values."""
    for name in options.keys() & others.keys():
        if options[name] is not None and others[name] is not None and options[name] != others[name]:
            raise ValueError(f"{name}={shown(options[name])} and {shown(others[name])} are both given; choose one.")


def check_frame_numbers(sampling: dict) -> None:
    """Numbers of frames that a user asked for may not contradict each other."""
    least, most, number = (sampling.get(name) for name in ("min_frames", "max_frames", "nframes"))
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_frames ({least}) is larger than max_frames ({most}); swap or lower it.")
    if number is None:
        return
    taken = round(number / 2) * 2  # frames are taken in pairs
    for name, limit, is_past in (("min_frames", least, "<"), ("max_frames", most, ">")):
        if limit is not None and (taken < limit if is_past == "<" else taken > limit):
            raise ValueError(f"nframes ({number}) contradicts {name} ({limit}), which is set, too; leave one out.")


def is_number(value, kind: type, smallest: float, largest: float) -> bool:
    """Whether a value is a number of that kind (int or float) within the limits; NaN and booleans never are."""
    right_kind = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    return right_kind and not isinstance(value, bool) and bool(smallest <= value <= largest)


def positive_number(value, name: str) -> float:
    """A number above zero, of an option of that name, as a float."""
    if not is_number(value, float, 0, 1e300) or value == 0:
        raise ValueError(f"{name} must be a number above 0, not {shown(value)}.")
    return float(value)


def whole_number(value, name: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`, of an option of that name."""
    if not is_number(value, int, least, most):
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}.")
    return int(value)


def check_numbers(options: dict) -> None:
    """Limits and frame numbers, of a call or of a message's item, must be numbers above zero (times may be zero)."""
    beyond = 2**31  # far beyond all that makes sense, and still a number to every library
    for name, kind in MEDIA_OPTIONS.items():
        value = options.get(name)
        if value is None:
            continue
        is_right = is_number(value, float if kind == "a number" else int, 0, math.inf)
        is_too_small = is_right and value == 0 and not name.startswith("video_")
        is_too_large = is_right and value >= beyond and name != "max_pixels"  # "no limit" may be any number
        if not is_right or is_too_small or is_too_large:
            raise ValueError(f"{name}={shown(value)} should be {kind} above zero and below {beyond}.")

    if (options.get("resized_height") is None) != (options.get("resized_width") is None):
        raise ValueError("resized_height and resized_width go together: give both or none.")


def check_frames(frames: Tensor, cell: int) -> None:
    """What `patchify` is given: frames (T, 3, height, width) whose sides are whole cells of `cell` pixels."""
    shape = tuple(getattr(frames, "shape", ()))
    if not isinstance(frames, Tensor) or len(shape) != 4:
        what = f"a tensor of shape {shape}" if isinstance(frames, Tensor) else f"a {type(frames).__name__}"
        way_out = "; a single picture is frames[None]" if len(shape) == 3 else ""
        raise ValueError(f"patchify takes a tensor of frames (T, channels, height, width), not {what}{way_out}.")
    if not all(shape) or shape[2] % cell or shape[3] % cell:
        raise ValueError(
            f"Frames of shape {shape} cannot be cut into cells of {cell}×{cell} pixels; resize them to the size that "
            "smart_resize gives."
        )


def checked_grid(patches: Tensor, grid, patch: int, frames: int, merge: int) -> tuple[int, int, int]:
    """The grid (t, h, w) that `unpatchify` is given, if the patches (N, 1176) can have come from it."""
    values = grid.tolist() if isinstance(grid, Tensor | np.ndarray) else grid
    values = values[0] if isinstance(values, list | tuple) and len(values) == 1 else values  # (1, 3), a row of grid_thw
    whole = isinstance(values, list | tuple) and len(values) == 3 and all(is_number(x, int, 1, 2**31) for x in values)
    if not whole or values[1] % merge or values[2] % merge:
        raise ValueError(
            f"A grid is three whole numbers (t, h, w), h and w multiples of {merge}, not {shown(values)}; "
            "patchify gives it, and a row of image_grid_thw is one."
        )
    t, h, w = map(int, values)
    numbers = patch * patch * frames
    if not isinstance(patches, Tensor) or patches.ndim != 2 or len(patches) != t * h * w or patches.shape[1] % numbers:
        shape = tuple(getattr(patches, "shape", ()))
        raise ValueError(
            f"The grid {(t, h, w)} belongs to patches of shape ({t * h * w}, {3 * numbers}), not {shape}; give the "
            "patches of one picture or clip and its own grid."
        )
    return t, h, w


def check_image_processor(processor) -> None:
    """The fields of a Qwen2VLImageProcessor, which may come from anybody's preprocessor_config.json."""
    for name, value in vars(processor).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name.endswith("_pixels") and not (whole and 0 < value < 2**63):
            raise ValueError(f"preprocessor_config: {name}={shown(value)} should be a whole number above zero.")
        if name.endswith("_size") and not (whole and 0 < value <= 100):
            raise ValueError(f"preprocessor_config: {name}={shown(value)} should be a whole number from 1 to 100.")
        if name in ("image_mean", "image_std"):
            three = list(value) if isinstance(value, list | tuple) and len(value) == 3 else [None]
            right = all(isinstance(x, float | int) and abs(x) < 1e6 for x in three)  # nor is NaN below it
            if not right or (name == "image_std" and min(three) <= 0):
                raise ValueError(f"preprocessor_config: {name}={shown(value)} should be three numbers, one a colour.")
    if processor.resample not in ("pillow", "torch"):
        raise ValueError(f"resample={shown(processor.resample)} is unknown; use 'pillow' or 'torch'.")


# ── Options of the model ────────────────────────────────────────────────────────────────────────────────────────────

MODEL_INPUTS = (
    *("attention_mask", "position_ids", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"),
    "mm_token_type_ids",
)


def renamed(**names: str):
    """Decorator: keywords that transformers has renamed are taken under their earlier names, too (old=new)."""

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **options):
            for old, new in names.items():
                if old in options and new in options:
                    raise ValueError(f"{old} is the earlier name of {new}; give one of the two.")
                if old in options:
                    options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


GENERATION = ("max_new_tokens", "eos_token_id", "pad_token_id", "suppress_tokens", "seed", "cache")


def generation_inputs(asked: dict) -> dict:
    """The model's inputs among what a call of `generate` was given; whatever else is in it is unknown."""
    for name in asked.keys() - {*MODEL_INPUTS}:
        close = get_close_matches(str(name)[:100], [*MODEL_INPUTS, *GENERATION, *NEUTRAL], 1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join((*GENERATION, *NEUTRAL))}, and inputs."
        raise ValueError(f"generate({shown(name)}=…) is unknown; {hint}")
    return dict(asked)


NEUTRAL = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def sampling_settings(generation_config: dict, **asked) -> dict:
    """The settings in force: what is asked for (not None), else the checkpoint's, else neutral values.

    Who names a temperature, top_p or top_k wants to sample. Then the checkpoint's values for the three are left out:
    the released generation_config.json has top_k 1, which makes any temperature do nothing. Raises ValueError.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if any(name in asked for name in ("temperature", "top_p", "top_k")):
        asked.setdefault("do_sample", asked.get("temperature") != 0)
    kept = ("repetition_penalty",) if asked.get("do_sample") else tuple(NEUTRAL)
    settings = NEUTRAL | {name: value for name, value in generation_config.items() if name in kept} | asked
    if settings["temperature"] < 0 or not 0 < settings["top_p"] <= 1 or settings["top_k"] < 0:
        raise ValueError("Sampling needs temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0.")
    if settings["repetition_penalty"] <= 0:
        raise ValueError("repetition_penalty must be above 0 (1 changes nothing).")
    if settings["temperature"] < 1e-5 or settings["top_k"] == 1 or not settings["do_sample"]:
        settings |= {"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 1}  # all of these mean: greedy
    return settings


def generation_settings(generation_config: dict, asked: dict) -> tuple[dict, dict]:
    """What a call of `generate` was given besides its named parameters → (sampling settings, the model's inputs).

    `asked` itself stays unchanged. Raises ValueError for whatever is neither, and for settings out of their range.
    """
    inputs = dict(asked)
    sampling = {name: inputs.pop(name, None) for name in NEUTRAL}
    return sampling_settings(generation_config, **sampling), generation_inputs(inputs)


def check_prompt_fits(tokens: int, max_new_tokens: int, context: int) -> None:
    """The prompt (with what the cache holds) and its continuation must fit the model's context."""
    if tokens + max_new_tokens > context:
        raise ValueError(
            f"{tokens} tokens and {max_new_tokens} new ones do not fit the model's context of {context}; "
            "lower max_pixels or max_new_tokens, or start anew."
        )


def check_padded_left(attention_mask: Tensor | None) -> None:
    """To generate, no row of a mask (B, Q) may end in padding; rows of nothing but padding do not count."""
    if attention_mask is None:
        return
    ends_in_padding = attention_mask.any(1) & (attention_mask[:, -1] == 0)
    if ends_in_padding.any():
        raise ValueError("To generate, pad the prompts on the left: the new tokens follow the last place.")


def check_finite(logits: Tensor, dtype: torch.dtype) -> None:
    """Logits that overflowed (in float16, Qwen2-VL's do) cannot be chosen from."""
    if not logits.isfinite().all():
        raise ValueError(f"The logits are not finite in {dtype}; load the model in bfloat16 or float32.")


def check_prompt(attention_mask: Tensor | None, tokens: int, max_new_tokens: int, text_config) -> None:
    """Whether an answer to this prompt can be generated: it is padded on the left, and there is room for both."""
    check_padded_left(attention_mask)
    check_prompt_fits(tokens, max_new_tokens, text_config.max_position_embeddings)


@dataclass
class GenerationPlan:
    """What a generation goes by, once defaults, the checkpoint's file and the caller's words are put together."""

    settings: dict  # of `choose`: do_sample, temperature, top_k, top_p, repetition_penalty
    inputs: dict  # of the model's forward, for the prompt
    end_ids: Tensor  # ids that end a row
    pad_id: int  # what a row that has ended goes on with
    suppressed: list[int]  # ids that are never chosen
    generator: torch.Generator | None  # None: PyTorch's own


def plan_generation(model, inputs: dict, eos_token_id, suppress_tokens, seed: int | None) -> GenerationPlan:
    """The plan for a call of `generate_steps`. Raises ValueError for what it does not understand."""
    inputs = dict(inputs)
    pad_id = inputs.pop("pad_token_id", None)
    settings, inputs = generation_settings(model.generation_config, inputs)
    end_ids = model.end_token_ids(eos_token_id)
    if pad_id is None:
        pad_id = model.generation_config.get("pad_token_id", end_ids[0] if end_ids else 0)
    if suppress_tokens is None:  # the vision tokens, which would announce a picture that is not there
        suppress_tokens = list(range(model.config.vision_start_token_id, model.config.video_token_id + 1))

    return GenerationPlan(
        settings=settings,
        inputs=inputs,
        end_ids=torch.tensor(end_ids, dtype=torch.long, device=model.device),
        pad_id=pad_id,
        suppressed=suppress_tokens,
        generator=None if seed is None else torch.Generator(model.device).manual_seed(seed),
    )


def check_attention(name: str, known: dict) -> None:
    """The name of an attention implementation."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"attn_implementation={shown(name)} is not one of {', '.join(known)}.")


def check_lengths(rows: list[list[int]], asked: dict) -> None:
    """Whether prompts without padding, if that is asked for, can be one tensor."""
    unpadded = asked.get("padding") in (False, "do_not_pad")
    if unpadded and len({len(ids) for ids in rows}) > 1:
        raise ValueError("Prompts of different lengths need padding=True to become one tensor.")


def flash_problem(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the flash kernel cannot run this attention; None if it can. (On CPU, PyTorch's own flash kernel is meant.)"""
    fits = device == "cuda" and dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256
    if fits or device == "cpu":
        return None
    wanted = "cuda, float16 or bfloat16, and a head_dim that is a multiple of 8 up to 256"
    return f"it needs {wanted}; here are {device}, {dtype}, {head_dim}".replace("torch.", "")
