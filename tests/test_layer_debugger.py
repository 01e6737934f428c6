"""The layer debugger finds a planted bug and names the layer it is in."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weights_loader
from tests import layer_debugger, official
from tests.layer_debugger import compare, first_difference, record, stages, table
from tests.official import save_random_checkpoint, twins
from tests.small_models import image, make_inputs, video

LAYOUT = [[3, image(4, 6), 2, video(2, 4, 4), 3], [4]]


def swap_cos_and_sin(ours) -> None:
    attention = ours.model.layers[1].self_attn
    original = attention.forward
    attention.forward = lambda x, cos, sin, *rest: original(x, sin, cos, *rest)


def interleave_heads(ours) -> None:
    """The key/value heads of layer 0 in another order: every query head gets a wrong one."""
    weight = ours.model.layers[0].self_attn.k_proj.weight
    weight.data = weight.data.roll(weight.shape[0] // 2, 0)


def nudge(path: str):
    """Add a little to one number of one parameter."""

    def plant(ours) -> None:
        ours.get_parameter(path).data.view(-1)[0] += 0.05

    return plant


BUGS = {
    "patch embed": nudge("visual.patch_embed.proj.weight"),
    "vision block 1": nudge("visual.blocks.1.mlp.fc1.weight"),
    "merger": nudge("visual.merger.ln_q.bias"),
    "decoder layer 0": interleave_heads,
    "decoder layer 1": swap_cos_and_sin,
    "final norm": lambda ours: setattr(ours.model.norm, "eps", 1e-2),
    "logits": nudge("lm_head.weight"),
}


@pytest.fixture
def pair():
    """(ours, official) that a test may break."""
    ours, reference = twins("gqa4-deep")
    return copy.deepcopy(ours), reference


@pytest.mark.parametrize("layer", BUGS)
def test_a_planted_bug_is_found_and_named(pair, layer):
    ours, reference = pair
    inputs = make_inputs(ours.config, LAYOUT)
    assert first_difference(compare(ours, reference, inputs), 1e-5) is None
    BUGS[layer](ours)
    rows = compare(ours, reference, inputs)
    assert first_difference(rows, 1e-5).layer == layer
    marked = [line for line in table(rows, 1e-5).splitlines() if "first above 1e-05" in line]
    assert len(marked) == 1 and marked[0].startswith(layer)


def test_wrong_places_of_the_visual_tokens_are_found_in_the_embeddings(pair):
    ours, reference = pair
    inputs = make_inputs(ours.config, LAYOUT)
    expected = record(reference, inputs)
    ours.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0].roll(1, 1), *args[1:]), prepend=True)
    rows = layer_debugger.compare_records(record(ours, inputs), expected)
    assert first_difference(rows, 1e-5).layer == "embeddings"


def test_not_a_number_is_a_difference(pair):
    ours, reference = pair
    ours.model.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    rows = compare(ours, reference, make_inputs(ours.config, LAYOUT))
    assert first_difference(rows, 1e-4).layer == "decoder layer 3"


def test_layers_are_all_there_in_order_and_no_hook_is_left(pair):
    ours, reference = pair
    rows = compare(ours, reference, make_inputs(ours.config, LAYOUT))
    text, vision = ours.config.text_config, ours.config.vision_config
    assert [row.layer for row in rows] == [
        "patch embed",
        *(f"vision block {i}" for i in range(vision.depth)),
        "merger",
        "embeddings",
        *(f"decoder layer {i}" for i in range(text.num_hidden_layers)),
        "final norm",
        "logits",
    ]
    tokens = 3 + (6 + 2) + 2 + (8 + 2) + 3 + 4  # both rows, without the padding
    assert rows[0].shape == (24 + 32, vision.embed_dim) and rows[-1].shape == (tokens, text.vocab_size)
    for model in pair:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in stages(model).values())


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 140, 3), dtype=np.uint8)).save(path)
    return path


def test_command_says_that_all_layers_agree(checkpoint, picture, capsys):
    assert layer_debugger.main([str(checkpoint), str(picture), "--prompt", "What is this?", "--tolerance", "1e-5"]) == 0
    out = capsys.readouterr().out
    assert "patch embed       60 × 32" in out  # 84×140 pixels are 6×10 patches
    assert out.splitlines()[-1] == "All 9 layers agree within 1e-05."


def test_command_names_the_first_layer_that_differs(checkpoint, picture, capsys, monkeypatch):
    load_model = weights_loader.load_model

    def load_broken(*args, **options):
        ours = load_model(*args, **options)
        swap_cos_and_sin(ours)
        return ours

    monkeypatch.setattr(weights_loader, "load_model", load_broken)
    assert layer_debugger.main([str(checkpoint), str(picture)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "The first layer that differs is decoder layer 1."


def test_command_says_what_is_wrong_with_its_arguments(checkpoint, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(official, "load_official", lambda _: pytest.fail("went on"))
    assert layer_debugger.main([str(tmp_path / "nowhere"), str(picture)]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert layer_debugger.main(["tinny"]) == 2
    assert "no such folder and not a Hub id" in capsys.readouterr().err
    assert layer_debugger.main([str(checkpoint), str(tmp_path / "no.png")]) == 2
    assert "no.png" in capsys.readouterr().err


@pytest.mark.skipif(not layer_debugger.SCENE.exists(), reason="no scene")
def test_command_takes_names_and_has_a_picture_of_its_own(capsys):
    assert layer_debugger.main(["tiny"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("All 17 layers agree") and "decoder layer 7" in out
