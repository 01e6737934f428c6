"""The official implementation (transformers) beside ours: the same shape, the same weights, the same inputs."""

from functools import cache
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration as OfficialModel

import weights_loader
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
)
from tests.small_models import SHAPES, small_config, small_model
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.tokenizer import save_tokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def official_name(name: str) -> str:
    """Our parameter name (that of the released files) → the one recent transformers uses."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def official_twin(ours: Qwen2VLForConditionalGeneration) -> OfficialModel:
    """The official model with the config and the weights of `ours`."""
    config = transformers.Qwen2VLConfig.from_dict(ours.config.to_dict() | {"bos_token_id": None, "eos_token_id": None})
    official = OfficialModel(config).eval()
    official.load_state_dict({official_name(name): value for name, value in ours.state_dict().items()})
    return official


@cache
def twins(shape: str) -> tuple[Qwen2VLForConditionalGeneration, OfficialModel]:
    """(ours, official) of one of SHAPES, made once: a test that changes a model must copy it first."""
    ours = small_model(small_config(**SHAPES[shape]))
    return ours, official_twin(ours)


def load_official(folder: str | Path) -> OfficialModel:
    """The official model from a checkpoint's folder, in float32 on the CPU."""
    return OfficialModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def save_random_checkpoint(folder: Path) -> Path:
    """A random model with the tiny world's tokenizer, in the released layout: the bundled checkpoint, but untrained."""
    save_tokenizer(folder)
    tokenizer = Qwen2VLTokenizer(folder / "tokenizer.json")
    ids = tokenizer.special_ids
    config = small_config(vocab_size=tokenizer.bpe.get_vocab_size())
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    model = small_model(config)
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    model.generation_config = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
    weights_loader.save(model, Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, CHAT_TEMPLATE), folder)
    return folder


@cache
def _position_model() -> OfficialModel:
    return twins("gqa1")[1]


def official_rope_index(config: Qwen2VLConfig, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The official (position_ids (3, B, S), rope_deltas (B, 1)); depends on no weight, only on the merge size."""
    wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    assert config.vision_config.spatial_merge_size == 2
    return _position_model().model.get_rope_index(**{name: inputs[name] for name in wanted if name in inputs})
