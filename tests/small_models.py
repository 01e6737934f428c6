"""Small random models and inputs for them, for all tests of the model. Nothing here needs transformers."""

from functools import cache

import torch
from torch import Tensor, nn

from qwen2vl_mini import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLTextConfig, Qwen2VLVisionConfig

# Each shape differs from the others in as much as possible. `heads` is query heads / key-value heads, `head_dim` the
# decoder's, `vision` is depth, embed_dim, heads of the tower. A mistake in one of these shows in at least one shape.
SHAPES = {
    "gqa1": dict(layers=2, heads=(2, 2), head_dim=16, section=[2, 3, 3], tied=True, vision=(2, 32, 2)),
    "gqa2": dict(layers=3, heads=(4, 2), head_dim=24, section=[4, 4, 4], tied=False, vision=(1, 48, 3), eps=1e-5),
    "gqa3": dict(layers=2, heads=(6, 2), head_dim=32, section=[4, 6, 6], tied=True, vision=(3, 64, 1), mlp_ratio=3),
    "gqa4-deep": dict(layers=6, heads=(4, 1), head_dim=16, section=[1, 2, 5], tied=False, vision=(4, 24, 3), theta=1e4),
    "gqa6-as-2b": dict(layers=2, heads=(6, 1), head_dim=128, section=[16, 24, 24], tied=True, vision=(2, 160, 2)),
    "gqa7-as-7b": dict(layers=2, heads=(7, 1), head_dim=64, section=[8, 12, 12], tied=False, vision=(2, 64, 4)),
    "one-axis": dict(layers=1, heads=(3, 3), head_dim=16, section=[6, 1, 1], tied=True, vision=(1, 16, 4), theta=1e2),
}


def small_config(
    layers: int = 2,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    section: list[int] | None = None,
    tied: bool = True,
    vision: tuple[int, int, int] = (2, 32, 2),
    mlp_ratio: float = 4,
    eps: float = 1e-6,
    theta: float = 1e6,
    vocab_size: int = 200,
    context: int = 4096,
) -> Qwen2VLConfig:
    """A config of the released structure; the vision tokens take the last ids of the vocabulary, in their order."""
    width = heads[0] * head_dim
    depth, embed_dim, vision_heads = vision
    return Qwen2VLConfig(
        Qwen2VLTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=2 * width + 8,
            num_hidden_layers=layers,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            rms_norm_eps=eps,
            rope_theta=theta,
            mrope_section=section or [2, 3, 3],
            max_position_embeddings=context,
            tie_word_embeddings=tied,
        ),
        Qwen2VLVisionConfig(depth, embed_dim, vision_heads, mlp_ratio, hidden_size=width),
        vision_start_token_id=vocab_size - 5,
        vision_end_token_id=vocab_size - 4,
        image_token_id=vocab_size - 2,  # between them is <|vision_pad|>
        video_token_id=vocab_size - 1,
    )


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near 1. Norms and biases are random too, or leaving one out would not show."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def small_model(config: Qwen2VLConfig | None = None, seed: int = 0, **options) -> Qwen2VLForConditionalGeneration:
    """A random model; `options` as for `small_config`."""
    return randomise(Qwen2VLForConditionalGeneration(config or small_config(**options)), seed).eval()


@cache
def shared_model() -> Qwen2VLForConditionalGeneration:
    """One model for the tests that only read it."""
    return small_model(tied=False)


def image(h: int, w: int) -> tuple[str, int, int, int]:
    """A still picture of h × w patches, both even: an item of a row of `make_inputs`."""
    return "image", 1, h, w


def video(t: int, h: int, w: int) -> tuple[str, int, int, int]:
    """A clip of t frame pairs of h × w patches."""
    return "video", t, h, w


def make_inputs(config: Qwen2VLConfig, rows: list[list], seed: int = 0, padding: int = 0) -> dict[str, Tensor]:
    """Inputs for both models: random text and pixels. A row lists counts of text tokens and pictures, in order.

    Shorter rows are padded on the left; `padding` adds that many places more to all of them. `mm_token_type_ids` (0
    text, 1 image, 2 video) is for the official model, ours takes and ignores it.
    """
    generator = torch.Generator().manual_seed(seed)
    pad_ids = {"image": config.image_token_id, "video": config.video_token_id}
    cell = config.vision_config.spatial_merge_size**2
    prompts, grids = [], {"image": [], "video": []}
    for row in rows:
        ids = []
        for item in row:
            if isinstance(item, int):
                ids += torch.randint(1, config.vision_start_token_id, (item,), generator=generator).tolist()
            else:
                kind, t, h, w = item
                grids[kind].append([t, h, w])
                pads = [pad_ids[kind]] * (t * h * w // cell)
                ids += [config.vision_start_token_id, *pads, config.vision_end_token_id]
        prompts.append(ids)
    length = max(map(len, prompts)) + padding
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]),
    }
    types = (inputs["input_ids"] == config.image_token_id).int()
    inputs["mm_token_type_ids"] = types + 2 * (inputs["input_ids"] == config.video_token_id).int()
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, generator=generator)
            inputs |= {f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grid}
    return inputs


def one_row(config: Qwen2VLConfig, inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The inputs of one row alone: without the others, their pictures and the padding."""
    keep = inputs["attention_mask"][row].bool()
    alone = {name: inputs[name][row, keep][None] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    for kind, suffix, token_id in (("image", "", config.image_token_id), ("video", "_videos", config.video_token_id)):
        if f"{kind}_grid_thw" not in inputs:
            continue
        grid = inputs[f"{kind}_grid_thw"]
        patches = (inputs["input_ids"] == token_id).sum(1) * config.vision_config.spatial_merge_size**2
        first, last = int(patches[:row].sum()), int(patches[: row + 1].sum())  # this row's rows of pixel_values
        ends = grid.prod(1).cumsum(0)
        mine = (ends > first) & (ends <= last)
        if mine.any():
            alone |= {
                f"pixel_values{suffix}": inputs[f"pixel_values{suffix}"][first:last],
                f"{kind}_grid_thw": grid[mine],
            }
    return alone


def real_tokens(x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """(B, S, …) → (tokens that are not padding, …)."""
    return x[inputs["attention_mask"].bool()]


def relative_difference(x: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the largest number of the reference; infinite if anything is not finite."""
    assert x.shape == reference.shape, f"{tuple(x.shape)} against {tuple(reference.shape)}"
    difference = (x.double() - reference.double()).abs().max() / reference.double().abs().max().clamp_min(1e-30)
    return float(difference) if difference.isfinite() else float("inf")
