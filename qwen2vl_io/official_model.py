"""The official names and ways to call that the model's classes have beside their own: inputs, outputs, training.

Nothing of it teaches Qwen2-VL. What is official and not here is answered in one sentence with the way out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qwen2vl_io.generation_config import KEPT, OTHERS, is_neutral
from qwen2vl_io.official_names import FOR_TRANSFORMERS, absent, did_you_mean
from qwen2vl_io.options import MODEL_INPUTS, is_number, whole_number
from qwen2vl_io.sentences import shown

INITIAL_SPREAD = 0.02  # standard deviation of random weights: the official initializer_range
KNOWN_AGAIN = 8  # tokens at the beginning of a prompt that a cache holds, too: more than chance would have it


# ── Outputs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class OfficialOutput:
    """`output["logits"]`, `output[0]`, `output.to_tuple()` of a dataclass: fields that are None are not there."""

    ORDER = ("loss", "logits", "last_hidden_state", "past_key_values", "hidden_states", "attentions")

    def keys(self) -> tuple[str, ...]:
        """The official names of what is there. Beside logits the last hidden state is not counted, as officially."""
        names = [name for name in self.ORDER if getattr(self, name) is not None]
        return tuple(name for name in names if name != "last_hidden_state" or "logits" not in names)

    def to_tuple(self) -> tuple:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> list[tuple]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def values(self) -> tuple:
        return self.to_tuple()

    def get(self, name: str, default=None):
        return self[name] if name in self else default

    def __getitem__(self, place):
        if not isinstance(place, str):
            return self.to_tuple()[place]
        if getattr(self, place, None) is None:
            raise KeyError(f"The output has no {shown(place)}; it has {', '.join(self.keys())}.")
        return getattr(self, place)

    def __contains__(self, name) -> bool:
        return isinstance(name, str) and getattr(self, name, None) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


# ── Inputs of forward ───────────────────────────────────────────────────────────────────────────────────────────────

NO_EFFECT = ("mm_token_type_ids", "rope_deltas", "cache_position", "second_per_grid_ts")
GRIDS = (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


def official_forward(cache_class: Callable | None = None, like: Callable | None = None) -> Callable:
    """Decorator of a model's `forward`: the official keywords, and checks of all that is given.

    `past_key_values` is `cache`. `use_cache` makes one, of `cache_class`, where none is given; officially and here that
    is the default except in training. `return_dict=False` asks for a tuple. A forward that hands its inputs on to
    another one, `like`, has that one's signature, too: HF's Trainer asks for it, and sends more to `**inputs`.
    """

    def decorate(forward: Callable) -> Callable:
        signature = inspect.signature(forward)
        if like is not None:
            signature = joined(inspect.signature(like), signature)

        @functools.wraps(forward)
        def call(self, *args, **asked):
            given = known_inputs(signature, self, args, asked)
            wants_tuple = given.pop("return_dict", True) is False
            if like is None:
                prepare(self, given, cache_class)
            else:
                check_labels(given, self.config.text_config.vocab_size)
                if "labels" in given:  # a loss is wanted, and no answer
                    given.setdefault("use_cache", False)
            output = forward(self, **given)
            return output.to_tuple() if wants_tuple else output

        call.__signature__ = signature
        return call

    return decorate


def joined(first: inspect.Signature, second: inspect.Signature) -> inspect.Signature:
    """The parameters of both, but for what only stands for "all others"."""
    parameters = dict(first.parameters)
    for name, parameter in second.parameters.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name not in parameters:
            parameters[name] = parameter.replace(kind=parameter.KEYWORD_ONLY)
    return inspect.Signature(list(parameters.values()))


def known_inputs(signature: inspect.Signature, model, args: tuple, asked: dict) -> dict:
    """What a call of forward was given, under our names and without None. Raises ValueError for what is not known."""
    names = ("input_ids", "attention_mask", "position_ids")
    if len(args) > len(names):
        raise ValueError(f"forward() takes {', '.join(names)} by place; name the other inputs.")
    given = dict(zip(names, args))
    for name, value in asked.items():
        ours = "cache" if name == "past_key_values" else name
        if ours in given:
            both = "past_key_values is the earlier name of cache; give one of the two" if ours == "cache" else ours
            raise ValueError(f"forward() was given the same twice: {both}.")
        given[ours] = value

    known = {*signature.parameters, "use_cache", "return_dict"} - {"self"}
    for name in given.keys() - known - {*NO_EFFECT}:
        raise ValueError(f"forward() has no {shown(name)}; {did_you_mean(name, known)}")
    return {name: value for name, value in given.items() if value is not None and name not in NO_EFFECT}


def prepare(model, given: dict, cache_class: Callable) -> None:
    """Check the inputs of forward, and complete them: ids, positions on three axes, a cache. Raises ValueError."""
    embeddings = given.get("inputs_embeds")
    ids = given.get("input_ids")
    if ids is None and embeddings is None:
        raise ValueError("forward() needs input_ids (rows, tokens), or inputs_embeds (rows, tokens, channels).")
    if embeddings is not None:
        check_embeddings(embeddings, ids, model.config.text_config.hidden_size)
    if ids is None:
        check_words_only(given)
        ids = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        given["input_ids"] = ids

    check_ids(ids, model.config.text_config.vocab_size)
    cache = given.get("cache")
    check_cache(cache, ids)
    check_pixels(given, model.config.vision_config)
    check_mask_shape(given.get("attention_mask"), ids, 0 if cache is None else cache.length)
    if "position_ids" in given:
        given["position_ids"] = on_three_axes(given["position_ids"], ids, given.get("attention_mask"))
    if not isinstance(given.get("use_cache", True), bool):
        raise ValueError(f"use_cache should be True or False, not {shown(given['use_cache'])}.")
    wants_cache = given.pop("use_cache", cache is not None or not (model.training and torch.is_grad_enabled()))
    if wants_cache and cache is None:
        given["cache"] = cache_class(model.config.text_config, *ids.shape, model.device, model.dtype)
    if cache is not None and not wants_cache:
        raise ValueError("use_cache=False contradicts the cache that was given; drop one of the two.")


def checks_pixels(features: Callable) -> Callable:
    """Decorator of `get_image_features(self, pixel_values, image_grid_thw)`: what does not fit is refused."""

    @functools.wraps(features)
    def call(self, pixel_values, image_grid_thw):
        given = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        check_pixels(given, self.config.vision_config)
        if pixel_values is None or image_grid_thw is None or len(pixel_values) != int(image_grid_thw.prod(1).sum()):
            found = 0 if pixel_values is None else len(pixel_values)
            raise ValueError(f"The pixels have {found} rows, which are not those that their grid_thw describes.")
        return features(self, pixel_values, image_grid_thw)

    return call


def is_whole(tensor) -> bool:
    """Whether it is a tensor of whole numbers."""
    return isinstance(tensor, Tensor) and tensor.dtype in WHOLE


def described(value) -> str:
    """What was given in place of a tensor, or of one of another shape."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def check_ids(ids, vocabulary: int) -> None:
    """Ids are whole numbers below the size of the vocabulary, (rows, tokens), at least one."""
    if not is_whole(ids) or ids.ndim != 2:
        raise ValueError(f"input_ids should be a tensor of whole numbers (rows, tokens), not {described(ids)}.")
    if ids.numel() == 0:
        raise ValueError(f"input_ids of shape {tuple(ids.shape)} have no token; give at least one.")
    if ids.shape[1] > 1 and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(
            f"input_ids hold {int(ids.min())} to {int(ids.max())}, but the vocabulary has {vocabulary}: "
            "take the tokenizer of this checkpoint."
        )


def check_embeddings(embeddings, ids, channels: int) -> None:
    """Embeddings in the place of those of the ids."""
    right = isinstance(embeddings, Tensor) and embeddings.ndim == 3 and embeddings.shape[2] == channels
    if not right or not embeddings.is_floating_point():
        raise ValueError(f"inputs_embeds should be (rows, tokens, {channels}) floats, not {described(embeddings)}.")
    if ids is not None and tuple(ids.shape) != tuple(embeddings.shape[:2]):
        raise ValueError(f"inputs_embeds {tuple(embeddings.shape)} and input_ids {tuple(ids.shape)} do not fit.")


def check_words_only(given: dict) -> None:
    """Without ids nobody knows where the pictures belong."""
    if any(name in given for name, _ in GRIDS):
        raise ValueError("inputs_embeds with pictures need input_ids beside them, which say where the pictures stand.")


def check_kind_of_cache(cache, ids: Tensor) -> None:
    """A KVCache of as many rows."""
    if not hasattr(cache, "next_position"):
        raise ValueError(
            f"past_key_values is {described(cache)}, not a KVCache; take `output.past_key_values` of the call before, "
            "or leave it out."
        )
    if len(cache.pads) != len(ids):
        raise ValueError(f"The cache has {len(cache.pads)} rows, but input_ids {len(ids)}; start a new one.")


def check_cache(cache, ids: Tensor) -> None:
    """A KVCache of as many rows, to which the ids are new."""
    if cache is None:
        return
    check_kind_of_cache(cache, ids)
    if known_tokens(cache, ids) == cache.length >= KNOWN_AGAIN:
        raise ValueError(
            f"input_ids begin with the {cache.length} tokens that the cache holds already; pass only what is new."
        )


def known_tokens(cache, ids: Tensor) -> int:
    """How many tokens at the beginning of all rows are those at the beginning of the cache."""
    both = min(cache.length, ids.shape[1])
    if both < KNOWN_AGAIN:
        return 0
    is_padding = torch.arange(both, device=ids.device) < torch.tensor(cache.pads, device=ids.device)[:, None]
    same = ((ids[:, :both] == cache.token_ids[:, :both]) | is_padding).all(dim=0)  # (both,)
    return int(same.long().cumprod(dim=0).sum())


def check_pixels(given: dict, vision) -> None:
    """Pixels are rows of patches, and grids whole numbers (pictures, 3) that windows can be made of."""
    numbers = 3 * vision.temporal_patch_size * vision.patch_size**2  # of a patch
    for pixels_name, grid_name in GRIDS:
        pixels = given.get(pixels_name)
        grids = given.get(grid_name)
        right = isinstance(pixels, Tensor) and pixels.is_floating_point() and pixels.shape[1:] == (numbers,)
        if pixels is not None and not right:
            raise ValueError(f"{pixels_name} should be floating-point (patches, {numbers}), not {described(pixels)}.")
        if grids is None:
            continue
        if not is_whole(grids) or grids.ndim != 2 or grids.shape[1] != 3:
            what = "a tensor of whole numbers (pictures, 3): frame pairs, rows, columns"
            raise ValueError(f"{grid_name} should be {what}, not {described(grids)}.")
        if (grids < 1).any() or (grids[:, 1:] % vision.spatial_merge_size).any():
            size = vision.spatial_merge_size
            raise ValueError(f"{grid_name} {shown(grids.tolist())} should be above 0, rows and columns times {size}.")


def check_mask_shape(mask, ids: Tensor, held: int) -> None:
    """A mask of the ids, or of the ids and what the cache holds."""
    allowed = (tuple(ids.shape), (len(ids), held + ids.shape[1]))
    if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) not in allowed):
        raise ValueError(f"attention_mask should be a tensor {allowed[0]} as input_ids, not {described(mask)}.")
    if mask is not None and ids.shape[1] > 1 and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("attention_mask should hold 1 for tokens and 0 for padding, and nothing else.")


def on_three_axes(positions, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Positions as callers give them → (3, B, Q): time, height, width.

    (B, Q) are those of plain text, the same on all axes; of (4, B, Q) the first are text positions for masks, which
    transformers sends along. Padding stands nowhere, whatever is said of it.
    """
    if not is_whole(positions):
        raise ValueError(f"position_ids should be whole numbers (3, rows, tokens), not {described(positions)}.")
    shape = tuple(ids.shape)
    found = positions.to(ids.device)
    if found.ndim == 2 and tuple(found.shape) in (shape, (1, shape[1])):
        found = found[None].expand(3, *shape)
    if found.ndim == 3 and len(found) == 4:
        found = found[1:]
    if mask is not None and mask.shape == ids.shape and found.shape[-2:] == ids.shape:
        found = found.masked_fill(mask == 0, 0)
    if tuple(found.shape) != (3, *shape):
        raise ValueError(f"position_ids should be (3, {shape[0]}, {shape[1]}), not {tuple(positions.shape)}.")
    if (found < 0).any():
        raise ValueError("position_ids should not be below 0.")
    return found.long()


def check_logits_to_keep(keep) -> None:
    """How many last places, or which ones."""
    is_count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    if not is_count and not (is_whole(keep) and keep.ndim == 1):
        raise ValueError(f"logits_to_keep should be a number from 0, or a tensor of places, not {shown(keep)}.")


def check_labels(given: dict, vocabulary: int) -> None:
    """Labels are the ids themselves, or −100."""
    check_logits_to_keep(given.get("logits_to_keep", 0))
    labels = given.get("labels")
    if labels is None:
        return
    like = given.get("input_ids", given.get("inputs_embeds"))
    if not is_whole(labels) or not isinstance(like, Tensor) or labels.shape != like.shape[:2]:
        shape = tuple(like.shape[:2]) if isinstance(like, Tensor) else "(rows, tokens)"
        raise ValueError(f"labels should be whole numbers {shape} as input_ids, not {described(labels)}.")
    keep = given.get("logits_to_keep", 0)
    if ((labels < 0) & (labels != -100)).any() or (labels >= vocabulary).any():
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels should be −100 or ids below {vocabulary}, not {span}.")
    if isinstance(keep, Tensor) or keep:
        raise ValueError("labels need the logits of all places; leave logits_to_keep out.")


# ── Generation ──────────────────────────────────────────────────────────────────────────────────────────────────────

TAKEN = ("max_new_tokens", "eos_token_id", "pad_token_id", "suppress_tokens", "do_sample", "temperature", "top_p")
TAKEN += ("top_k", "repetition_penalty")
MORE = ("inputs", "inputs_embeds", "streamer")
IN_GENERATE = {  # official arguments of the call that are in no GenerationConfig
    "synced_gpus": "all processes generate by themselves",
    "assistant_model": "there is no assisted generation",
    "stopping_criteria": "take ids from generate_steps, and stop when you like",
    "logits_processor": "choose ids yourself, in a loop over forward",
    "prefix_allowed_tokens_fn": "choose ids yourself, in a loop over forward",
    "negative_prompt_ids": "there is no guidance",
    "negative_prompt_attention_mask": "there is no guidance",
    "custom_generate": "write a loop over forward, or over generate_steps",
    "tokenizer": "it is needed for stop_strings only, which there are not",
    "trust_remote_code": "no code comes from a checkpoint",
}


def official_generation(steps: Callable) -> Callable:
    """Decorator of `generate_steps`: the official options of `generate` in our words."""

    @functools.wraps(steps)
    def call(self, input_ids=None, **asked):
        input_ids, asked = settle_generation(self, input_ids, asked)
        return steps(self, input_ids, **asked)

    return call


def with_streamer(generate: Callable) -> Callable:
    """Decorator of `generate`: a `streamer` is given the prompt, each new id, and the end."""

    @functools.wraps(generate)
    def call(self, input_ids=None, streamer=None, **asked):
        if input_ids is None:
            input_ids = asked.pop("inputs", None)
        if streamer is None:
            return generate(self, input_ids, **asked)
        if not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(f"streamer should have put() and end(), as a TextStreamer; {described(streamer)} has not.")
        check_one_row(input_ids, "A streamer")

        streamer.put(input_ids.cpu())
        new_ids = []
        for ids in self.generate_steps(input_ids, **asked):
            streamer.put(ids.cpu())
            new_ids.append(ids[:, None])
        streamer.end()
        return torch.cat([input_ids, *new_ids], dim=1)

    return call


def check_one_row(ids, who: str) -> None:
    """What gives out one text takes one prompt."""
    if isinstance(ids, Tensor) and ids.ndim == 2 and len(ids) != 1:
        raise ValueError(f"{who} serves one prompt, but input_ids have {len(ids)} rows; give them one by one.")


def settle_generation(model, input_ids, asked: dict) -> tuple[Tensor, dict]:
    """What `generate` was asked → ids, and the keywords of `generate_steps`. Raises ValueError for what we have not."""
    check_names(asked)
    asked = {name: value for name, value in asked.items() if value is not None}
    if input_ids is None:
        input_ids = asked.pop("inputs", None)
    if input_ids is None or "inputs_embeds" in asked:
        raise ValueError("generate() needs input_ids (rows, tokens); embeddings alone do not say what was read.")
    check_ids(input_ids, model.config.text_config.vocab_size)
    if "past_key_values" in asked and "cache" in asked:
        raise ValueError("past_key_values is the earlier name of cache; give one of the two.")
    if "past_key_values" in asked:
        asked["cache"] = asked.pop("past_key_values")

    if "max_new_tokens" in model.generation_config and "max_length" not in asked:
        asked = {"max_new_tokens": model.generation_config["max_new_tokens"]} | asked
    asked = values_of(asked.pop("generation_config", {})) | asked
    length = asked.pop("max_length", None)
    if length is not None and "max_new_tokens" not in asked:
        asked["max_new_tokens"] = room_within(length, input_ids.shape[1])
    for name in [name for name in asked if name in OTHERS and name not in TAKEN]:
        check_neutral(name, asked.pop(name))
    for name in [name for name in asked if name in IN_GENERATE]:
        if asked.pop(name) not in (False, []):
            raise ValueError(f"generate({name}=…) is not supported: {IN_GENERATE[name]}.")
    for name in NO_EFFECT:
        asked.pop(name, None)
    check_asked(asked, model.config.text_config.vocab_size)
    if asked.get("cache") is not None:
        check_kind_of_cache(asked["cache"], input_ids)
    return drop_known(model, input_ids, asked)


def check_names(asked: dict) -> None:
    """Every option has a name that we know, whatever its value."""
    known = [*TAKEN, *MODEL_INPUTS, "seed", "cache", "past_key_values", "generation_config", "max_length"]
    for name in asked:
        if name not in known and not any(name in others for others in (OTHERS, IN_GENERATE, KEPT, NO_EFFECT, MORE)):
            raise ValueError(f"The option {shown(name)} of generate() is unknown; {did_you_mean(name, known)}")


def check_asked(asked: dict, vocabulary: int) -> None:
    """The options that count, each a number of its kind."""
    limits = {"max_new_tokens": (1, 10**7), "top_k": (0, 10**7), "seed": (-(2**63), 2**64 - 1)}
    for name, (least, most) in limits.items():
        if name in asked:
            whole_number(asked[name], name, least, most)
    for name in ("temperature", "top_p", "repetition_penalty"):
        if name in asked and not is_number(asked[name], float, 0, 1e300):
            raise ValueError(f"{name} must be a number from 0, not {shown(asked[name])}.")
    if not isinstance(asked.get("do_sample", False), bool):
        raise ValueError(f"do_sample must be True or False, not {shown(asked['do_sample'])}.")
    for name in ("eos_token_id", "pad_token_id", "suppress_tokens"):
        ids = asked.get(name, [])
        ids = ids.flatten().tolist() if isinstance(ids, Tensor) else ids
        for i in ids if isinstance(ids, list | tuple) else [ids]:
            whole_number(i, name, 0, vocabulary - 1)


def values_of(config) -> dict:
    """The values of a GenerationConfig, or of anything like one."""
    if hasattr(config, "to_diff_dict"):
        config = config.to_diff_dict()
    elif not isinstance(config, dict) and hasattr(config, "__dict__"):
        config = vars(config)
    if not isinstance(config, dict):
        raise ValueError(f"generation_config should be an object of settings or a dict, not {described(config)}.")
    return {name: value for name, value in config.items() if value is not None and not skipped(name)}


def skipped(name: str) -> bool:
    """What says nothing about an answer."""
    return name.startswith("_") or name in KEPT


def room_within(length, held: int) -> int:
    """How many new tokens a prompt of `held` tokens leaves within a total length."""
    if not isinstance(length, int) or isinstance(length, bool) or length <= held:
        raise ValueError(f"max_length={shown(length)} leaves no room behind a prompt of {held} tokens; raise it.")
    return length - held


def check_neutral(name: str, value) -> None:
    """A value that changes nothing is taken; any other is refused with the way out."""
    if not is_neutral(name, value):
        raise ValueError(f"generate({name}={shown(value)}) is not supported: {OTHERS[name][1]}.")


def drop_known(model, ids: Tensor, asked: dict) -> tuple[Tensor, dict]:
    """A whole conversation beside a cache that holds its beginning → only what is new, with its pictures."""
    cache = asked.get("cache")
    if cache is None:
        return ids, asked
    held = cache.length
    known = known_tokens(cache, ids)
    if known < KNOWN_AGAIN:
        return ids, asked
    if known < held or ids.shape[1] == held:
        what = "nothing new" if known == held else f"other tokens after the first {known}"
        raise ValueError(
            f"The prompt repeats what the cache holds, but has {what}; pass only the new turn, or start a new cache."
        )
    asked = dict(asked)
    asked.pop("attention_mask", None)
    if "position_ids" in asked:
        asked["position_ids"] = asked["position_ids"][..., held:]
    tokens = ((model.config.image_token_id, *GRIDS[0]), (model.config.video_token_id, *GRIDS[1]))
    merged = model.config.vision_config.spatial_merge_size**2
    for token, pixels_name, grid_name in tokens:
        if grid_name in asked:
            seen = int((ids[:, :held] == token).sum()) * merged  # patches of the pictures read already
            counts = asked[grid_name].prod(dim=1).cumsum(dim=0)
            read = int((counts <= seen).sum())
            asked[pixels_name] = asked[pixels_name][seen:]
            asked[grid_name] = asked[grid_name][read:]
            if len(asked[grid_name]) == 0:
                del asked[pixels_name], asked[grid_name]
    return ids[:, held:], asked


# ── The model ───────────────────────────────────────────────────────────────────────────────────────────────────────

ABSENT = {
    "push_to_hub": "save_pretrained(folder), then upload the folder with huggingface_hub",
    "beam_search": "answers are generated one token at a time, without beams",
    "contrastive_search": "generate() chooses greedily or samples",
    "generate_batch": "generate() takes rows of different lengths, padded on the left",
    "compute_transition_scores": "take log_softmax of forward's logits",
    "set_decoder": "assign model.model",
    "set_encoder": "assign model.visual",
    "loss_function": "forward computes the loss itself; labels of −100 do not count",
    "add_adapter": "wrap the model by PEFT's get_peft_model, or see tiny_world/lora.py",
    "load_adapter": "load the base model, wrap it by PEFT's PeftModel.from_pretrained, merge, save",
    "dequantize": "weights are never quantised here",
    "tp_plan": "a model is on one device",
    "register_for_auto_class": "no code comes with a checkpoint",
    "set_attn_implementation": "assign model.attn_implementation",
    "warnings_issued": "there are none to be kept",
    "rope_deltas": "a model keeps nothing between calls; output.cache.next_position is where the next token stands",
}
MACHINERY = (  # public names of the official class that serve transformers itself
    "activation_checkpointing_disable activation_checkpointing_enable add_model_tags adjust_generation_fn "
    "barrier_after_gathered_checkpoint_save base_model can_record_outputs config_class "
    "continuous_batching_context_manager destroy_cached_continuous_batching_manager dummy_inputs enable_peft_hotswap "
    "ep_plan fsdp_plan fsdp_size gather_sharded_state_dict_for_save generation_config_class get_compiled_call "
    "get_correct_attn_implementation get_correct_experts_implementation get_expanded_tied_weights_keys "
    "get_experts_implementation get_init_context get_parameter_or_buffer get_position_embeddings heal_tokens "
    "init_continuous_batching init_parallel_plans init_weights initialize_weights input_modalities "
    "is_activation_checkpointing is_backend_compatible is_distributed_loading_by_transformers load_custom_generate "
    "mark_tied_weights_as_initialized maybe_distribute_model model_tags named_non_persistent_buffers "
    "output_modalities post_init pp_plan prepare_distribute_model resize_position_embeddings "
    "retrieve_modules_from_names save_distributed_checkpoint set_experts_implementation set_use_kernels "
    "should_save_on_this_rank supports_context_parallel supports_pp_plan supports_tp_plan tp_size use_kernels "
    "warn_if_padding_and_no_attention_mask"
)
ABSENT |= dict.fromkeys(MACHINERY.split(), FOR_TRANSFORMERS)
ADAPTERS = "set_adapter disable_adapters enable_adapters delete_adapter active_adapters get_adapter_state_dict"
ABSENT |= dict.fromkeys(ADAPTERS.split(), "adapters are PEFT's; wrap the model by get_peft_model")


class OfficialModel(nn.Module):
    """What official models have besides: names of parts, counting, checkpointing of activations."""

    main_input_name = "input_ids"
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    is_parallelizable = False
    model_parallel = False
    is_gradient_checkpointing = False

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise absent(self, name, ABSENT) from None

    @property
    def language_model(self) -> nn.Module:
        """The decoder, by its official name."""
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of ids."""
        return self.model.embed_tokens

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        """Put another embedding in its place; a tied output matrix follows."""
        old = self.model.embed_tokens.weight.shape
        if embedding.weight.shape != old:
            sizes = "×".join(map(str, embedding.weight.shape)), "×".join(map(str, old))
            raise ValueError(f"An embedding of {sizes[0]} does not fit: this checkpoint's has {sizes[1]}.")
        head = getattr(self, "lm_head", None)
        is_tied = head is not None and head.weight is self.model.embed_tokens.weight
        self.model.embed_tokens = embedding
        if is_tied:
            head.weight = embedding.weight

    def get_output_embeddings(self) -> nn.Linear | None:
        """The output matrix; None where there is none."""
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, head: nn.Linear) -> None:
        """Put another output matrix in its place."""
        self.lm_head = head

    def tie_weights(self, *args, **asked) -> None:
        """Make the output matrix the embedding again, if the configuration has it so."""
        if hasattr(self, "lm_head") and self.config.text_config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_rope_index(
        self, input_ids, mm_token_type_ids=None, image_grid_thw=None, video_grid_thw=None, attention_mask=None
    ) -> tuple[Tensor, Tensor]:
        """Positions (3, B, S) and rope deltas (B, 1), in the order of the official arguments."""
        check_ids(input_ids, self.config.text_config.vocab_size)
        if isinstance(mm_token_type_ids, Tensor) and mm_token_type_ids.shape != input_ids.shape:
            raise ValueError("get_rope_index takes mm_token_type_ids second; give the grids by name.")
        given = {"image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}
        check_pixels({name: grids for name, grids in given.items() if grids is not None}, self.config.vision_config)
        check_mask_shape(attention_mask, input_ids, 0)
        return self.rope_index(self.config, input_ids, image_grid_thw, video_grid_thw, attention_mask)

    def get_decoder(self) -> nn.Module:
        """The decoder."""
        return self.model

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The vision tower, for pictures and for clips."""
        return self.visual

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **asked) -> nn.Embedding:
        """The embedding, whose size is fixed. Raises ValueError for any other one."""
        if new_num_tokens not in (None, self.model.embed_tokens.num_embeddings):
            size = self.model.embed_tokens.num_embeddings
            raise ValueError(
                f"The vocabulary of {size} ids is fixed, so resize_token_embeddings({shown(new_num_tokens)}) cannot be "
                "done; Qwen2-VL's tokenizer has spare ids for new tokens."
            )
        return self.model.embed_tokens

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """What the decoder is given for each clip: to the tower, a clip is pictures one after the other."""
        return self.get_image_features(pixel_values_videos, video_grid_thw)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model has; a tied matrix counts once."""
        embedding = self.model.embed_tokens.weight
        chosen = [p for p in self.parameters() if p.requires_grad or not only_trainable]
        return sum(p.numel() for p in chosen if not (exclude_embeddings and p is embedding))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weights."""
        return sum(p.nbytes for p in self.parameters())

    def can_generate(self) -> bool:
        """Whether there is a head to generate with."""
        return hasattr(self, "lm_head")

    def prepare_inputs_for_generation(self, input_ids, **inputs) -> dict:
        """The inputs as they are: generate() works out the rest by itself. (PEFT wants this name to be there.)"""
        return {"input_ids": input_ids, **inputs}

    def enable_input_require_grads(self) -> None:
        """Let gradients flow from the embeddings on although their weights are frozen, as for reentrant checkpoints."""
        self.disable_input_require_grads()
        hook = self.model.embed_tokens.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
        vars(self)["_input_hook"] = hook

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        hook = vars(self).pop("_input_hook", None)
        if hook is not None:
            hook.remove()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **asked) -> None:
        """Keep no activations inside layers in training; they are computed again for the gradients."""
        how = dict(gradient_checkpointing_kwargs or {})
        how.pop("use_reentrant", None)  # the other way loses the gradients of layers whose input needs none
        for name in how.keys() - {"preserve_rng_state", "determinism_check", "debug", "early_stop"}:
            raise ValueError(f"gradient_checkpointing_enable() has no {shown(name)}; leave it out.")
        self.gradient_checkpointing_disable()
        for layer in (*self.visual.blocks, *self.model.layers):
            layer.forward = functools.partial(checkpointed, layer, how)
        self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for layer in (*self.visual.blocks, *self.model.layers):
            vars(layer).pop("forward", None)
        self.is_gradient_checkpointing = False


def checkpointed(layer: nn.Module, how: dict, *inputs):
    """A layer whose activations are not kept, in training; a cache or a list to be filled would be filled twice."""
    forward = type(layer).forward
    is_filled = isinstance(inputs[-1], list) or any(hasattr(one, "next_position") for one in inputs)
    if layer.training and torch.is_grad_enabled() and not is_filled:
        return checkpoint(forward, layer, *inputs, use_reentrant=False, **how)
    return forward(layer, *inputs)


def initialise(model: nn.Module) -> None:
    """The official random weights: normal ones of spread 0.02, zero biases, norms of one."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_SPREAD)
        if getattr(module, "bias", None) is not None and isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)
