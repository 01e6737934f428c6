"""Which layer is the first to differ from the official model?

    python -m tests.layer_debugger CHECKPOINT [IMAGE] [--prompt TEXT] [--tolerance 1e-4]

runs both models in float32 on the same prompt and picture and prints a table of all layers. CHECKPOINT is "tiny", a
folder or a Hub id, as everywhere. Exit code: 0 if all agree, 1 if a layer differs, 2 if the checkpoint or the picture
cannot be used.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.small_models import real_tokens, relative_difference

SCENE = Path(__file__).resolve().parent.parent / "assets" / "scene.png"


@dataclass
class Row:
    """One line of the table: how far ours is from the official output of a layer."""

    layer: str
    shape: tuple[int, ...]
    max_difference: float
    relative: float  # max |Δ| / max |official|


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of either model, by common names, in the order in which data passes them."""
    is_official = hasattr(model.model, "language_model")
    tower, decoder = (model.model.visual, model.model.language_model) if is_official else (model.visual, model.model)
    return (
        {"patch embed": tower.patch_embed}
        | {f"vision block {i}": block for i, block in enumerate(tower.blocks)}
        | {"merger": tower.merger, "embeddings": decoder.layers[0]}  # of the last we take the input, see below
        | {f"decoder layer {i}": layer for i, layer in enumerate(decoder.layers)}
        | {"final norm": decoder.norm, "logits": model.lm_head}
    )


@torch.no_grad()
def record(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run a model and return every layer's output, without the padding.

    Tower layers give (patches or visual tokens, C), images before clips; decoder layers (real tokens, C).
    """
    found, handles = defaultdict(list), []
    for name, module in stages(model).items():
        if name == "embeddings":
            hook = module.register_forward_pre_hook(lambda _, args, name=name: found[name].append(args[0].detach()))
        else:
            hook = module.register_forward_hook(lambda *call, name=name: found[name].append(call[-1].detach()))
        handles.append(hook)
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    outputs = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: real_tokens(x, inputs) if x.ndim == 3 else x for name, x in outputs.items()}


def compare_records(ours: dict[str, Tensor], official: dict[str, Tensor]) -> list[Row]:
    """The table from what `record` saw of both models."""
    if ours.keys() != official.keys():
        raise ValueError(f"Only one of the models has or ran {sorted(ours.keys() ^ official.keys())}.")
    return [
        Row(name, tuple(x.shape), float((x - official[name]).abs().max()), relative_difference(x, official[name]))
        for name, x in ours.items()
    ]


def compare(ours: nn.Module, official: nn.Module, inputs: dict[str, Tensor]) -> list[Row]:
    """Run both models on `inputs` (with `attention_mask` and `mm_token_type_ids`) and compare all layers."""
    return compare_records(record(ours, inputs), record(official, inputs))


def first_difference(rows: list[Row], tolerance: float) -> Row | None:
    """The first layer that differs by more than `tolerance`, relatively."""
    return next((row for row in rows if row.relative > tolerance), None)


def table(rows: list[Row], tolerance: float) -> str:
    """The rows as text, one layer a line, the first that differs marked."""
    first = first_difference(rows, tolerance)
    lines = [f"{'layer':<18}{'shape':<16}{'max |Δ|':>10}{'relative':>11}"]
    for row in rows:
        shape = " × ".join(map(str, row.shape))
        mark = f"  ← first above {tolerance:g}" if row is first else ""
        lines.append(f"{row.layer:<18}{shape:<16}{row.max_difference:>10.1e}{row.relative:>11.1e}{mark}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.layer_debugger", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help='"tiny" (the bundled one), a folder, or a Hub id org/name')
    parser.add_argument("image", nargs="?", default=str(SCENE), help="a picture's path (default assets/scene.png)")
    parser.add_argument("--prompt", default="Describe this image.")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, max |Δ| / max |official|")
    options = parser.parse_args(arguments)

    import weights_loader
    from qwen2vl_mini import Qwen2VLProcessor
    from tests.official import load_official  # slow to import, so after the arguments are known to be good

    content = [{"type": "image", "image": options.image}, {"type": "text", "text": options.prompt}]
    try:
        folder = weights_loader.find_checkpoint(options.checkpoint, weights=True)
        ours = weights_loader.load_model(folder, dtype="float32", device="cpu")
        inputs = Qwen2VLProcessor.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    inputs = inputs | {"mm_token_type_ids": (inputs["input_ids"] == ours.config.image_token_id).int()}
    rows = compare(ours, load_official(folder), inputs)
    print(table(rows, options.tolerance))
    if first := first_difference(rows, options.tolerance):
        print(f"\nThe first layer that differs is {first.layer}.")
        return 1
    print(f"\nAll {len(rows)} layers agree within {options.tolerance:g}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
