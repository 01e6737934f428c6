"""Wrong tensors and options for the model itself: forward, generate and stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch

from tests.hostile.cases import Case
from tests.hostile.ways_in import made
from tests.small_models import image, make_inputs, small_model

WRONG_INPUTS: dict[str, tuple[Callable[[dict], dict], str]] = {  # name: what is changed, what the refusal says
    "ids without rows": (lambda i: {"input_ids": i["input_ids"][0]}, r"input_ids should be"),
    "ids of three dimensions": (lambda i: {"input_ids": i["input_ids"][None]}, r"input_ids should be"),
    "ids as a list": (lambda i: {"input_ids": i["input_ids"].tolist()}, "input_ids should be"),
    "ids in floating point": (lambda i: {"input_ids": i["input_ids"].float()}, "whole numbers"),
    "boolean ids": (lambda i: {"input_ids": i["input_ids"] > 3}, "whole numbers"),
    "no ids": (lambda i: {"input_ids": None}, "needs input_ids"),
    "no token": (lambda i: {"input_ids": i["input_ids"][:, :0]}, "no token"),
    "an id behind the vocabulary": (lambda i: {"input_ids": i["input_ids"] + 10**6}, "vocabulary"),
    "labels' -100 as ids": (lambda i: {"input_ids": torch.full_like(i["input_ids"], -100)}, "vocabulary"),
    "pixels with a batch in front": (lambda i: {"pixel_values": i["pixel_values"][None]}, "pixel_values should be"),
    "pixels as a list": (lambda i: {"pixel_values": [i["pixel_values"]]}, "should be"),
    "whole pixels": (lambda i: {"pixel_values": i["pixel_values"].to(torch.uint8)}, "floating-point"),
    "patches of another size": (lambda i: {"pixel_values": i["pixel_values"][:, :588]}, "1176"),
    "no grid": (lambda i: {"image_grid_thw": None}, "grid_thw describes 0"),
    "a grid of one dimension": (lambda i: {"image_grid_thw": i["image_grid_thw"][0]}, "image_grid_thw should be"),
    "a grid as a list": (lambda i: {"image_grid_thw": i["image_grid_thw"].tolist()}, "should be"),
    "a grid in floating point": (lambda i: {"image_grid_thw": i["image_grid_thw"].float()}, "whole numbers"),
    "a grid of two columns": (lambda i: {"image_grid_thw": i["image_grid_thw"][:, 1:]}, "image_grid_thw should be"),
    "a negative grid": (lambda i: {"image_grid_thw": -i["image_grid_thw"]}, "above 0"),
    "an odd grid": (lambda i: {"image_grid_thw": torch.tensor([[1, 3, 8]])}, "times 2"),
    "a long mask": (lambda i: {"attention_mask": torch.ones(1, 99).long()}, "attention_mask should be"),
    "a mask of four dimensions": (lambda i: {"attention_mask": torch.ones(1, 1, 13, 13)}, "attention_mask should be"),
    "a mask of minus infinity": (
        lambda i: {"attention_mask": torch.full((1, 13), -torch.inf)},
        "attention_mask should",
    ),
    "positions of five axes": (lambda i: {"position_ids": torch.zeros(5, 1, 13).long()}, "position_ids should be"),
    "short positions": (lambda i: {"position_ids": torch.zeros(3, 1, 4).long()}, "position_ids should be"),
    "positions of other rows": (lambda i: {"position_ids": torch.zeros(3, 2, 13).long()}, "position_ids should be"),
    "positions in floating point": (lambda i: {"position_ids": torch.zeros(3, 1, 13)}, "whole numbers"),
    "positions as a list": (lambda i: {"position_ids": [0] * 13}, "should be"),
    "a cache that is none": (lambda i: {"past_key_values": ((1, 2),)}, "KVCache"),
    "a typo": (lambda i: {"atention_mask": None}, "did you mean attention_mask"),
}
WRONG_FORWARD = {
    "long labels": ({"labels": torch.ones(1, 14).long()}, "labels should be"),
    "labels without rows": ({"labels": torch.ones(13).long()}, "labels should be"),
    "labels behind the vocabulary": ({"labels": torch.full((1, 13), 999)}, "labels should be"),
    "labels in floating point": ({"labels": torch.ones(1, 13)}, "whole numbers"),
    "logits_to_keep is negative": ({"logits_to_keep": -1}, "logits_to_keep"),
    "use_cache is a text": ({"use_cache": "yes"}, "use_cache"),
    "narrow embeddings": ({"inputs_embeds": torch.ones(1, 13, 5)}, "inputs_embeds should be"),
    "short embeddings": ({"inputs_embeds": torch.ones(1, 5, 64)}, "do not fit"),
}
WRONG_OPTIONS = {
    "beams": ({"num_beams": 4}, "num_beams"),
    "a misspelled option": ({"max_new_token": 4}, "did you mean max_new_tokens"),
    "tokens in words": ({"max_new_tokens": "ten"}, "max_new_tokens"),
    "half a token": ({"max_new_tokens": 2.5}, "max_new_tokens"),
    "minus one token": ({"max_new_tokens": -1}, "max_new_tokens"),
    "a short max_length": ({"max_length": 3}, "max_length"),
    "a text as temperature": ({"temperature": "hot"}, "temperature"),
    "NaN as temperature": ({"temperature": float("nan")}, "temperature"),
    "half a top_k": ({"top_k": 0.5}, "top_k"),
    "do_sample is a text": ({"do_sample": "no"}, "do_sample"),
    "a text ends": ({"eos_token_id": "<|im_end|>"}, "eos_token_id"),
    "padding behind the vocabulary": ({"pad_token_id": 10**6}, "pad_token_id"),
    "suppressed behind the vocabulary": ({"suppress_tokens": [10**6]}, "suppress_tokens"),
    "a text as seed": ({"seed": "x"}, "seed"),
    "a streamer without methods": ({"streamer": print}, "streamer"),
    "a number as generation_config": ({"generation_config": 3}, "generation_config"),
    "beams in generation_config": ({"generation_config": {"num_beams": 2}}, "num_beams"),
    "a line break in an option": ({"a\nb": 1}, "unknown"),
    "an option of 10,000 letters": ({"x" * 10_000: 1}, "unknown"),
}


def model_calls() -> Iterator[Case]:
    kind = "calls of the model"
    for name, (change, says) in WRONG_INPUTS.items():
        for call in ("forward", "generate"):
            yield Case(kind, f"{call}, {name}", made(sound, change), calls(call), says)
    for name, (more, says) in WRONG_FORWARD.items():
        yield Case(kind, f"forward, {name}", made(sound, lambda _, more=more: more), calls("forward"), says)
    for name, (more, says) in WRONG_OPTIONS.items():
        yield Case(kind, f"generate, {name}", made(sound, lambda _, more=more: more), calls("generate"), says)


@cache
def model():
    return small_model()


def sound(change: Callable[[dict], dict]) -> dict:
    """Inputs that the model takes, changed."""
    inputs = make_inputs(model().config, [[3, image(4, 6), 2]])
    return inputs | change(inputs)


def calls(name: str) -> Callable[[dict], str]:
    return lambda inputs: str(getattr(model(), name)(**inputs))
