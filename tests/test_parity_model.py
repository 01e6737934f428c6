"""Equal to the official implementation: every layer, logits, loss, gradients, positions and generated ids.

Both models have the same random weights, in float32. Differences are relative: max |Δ| / max |official|.
"""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import weights_loader
from qwen2vl_mini import KVCache, Qwen2VLConfig, get_rope_index
from tests.layer_debugger import compare, compare_records, first_difference, record
from tests.official import load_official, official_name, official_rope_index, save_random_checkpoint, twins
from tests.small_models import (
    SHAPES,
    image,
    make_inputs,
    real_tokens,
    relative_difference,
    shared_model,
    video,
)
from tiny_world import scenes

SAME, SAME_GRADIENT = 1e-5, 1e-4  # relative, in float32
IMPLEMENTATIONS = ("eager", "sdpa", "flash")
LAYOUTS = {
    "text": [[11]],
    "image": [[3, image(4, 6), 5]],
    "two-images": [[2, image(4, 6), 3, image(8, 4), 4]],
    "mixed-batch": [[9], [3, image(4, 6), 4], [image(2, 4), image(6, 2), 2], [1, video(2, 4, 6), 2, image(4, 4), 3]],
    "clip": [[2, video(2, 4, 6), 3]],  # not longer than wide, or the position rules differ: see the long clip below
}


def our_rope_index(config: Qwen2VLConfig, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("image_grid_thw", "video_grid_thw", "attention_mask")
    return get_rope_index(config, inputs["input_ids"], **{name: inputs[name] for name in names if name in inputs})


def with_labels(inputs: dict) -> dict:
    """The next-token task, with the padding, the visual tokens and some of the text left out of the loss."""
    labels = inputs["input_ids"].clone()
    labels[inputs["attention_mask"] == 0] = -100
    labels[inputs["mm_token_type_ids"] > 0] = -100
    labels[:, -2] = -100
    return inputs | {"labels": labels}


# --- forward and backward --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_agrees(shape, layout):
    """Tower blocks, merger, merged embeddings, decoder layers, final norm and logits, for all our implementations."""
    ours, official = twins(shape)
    inputs = make_inputs(ours.config, LAYOUTS[layout])
    expected = record(official, inputs)
    text, vision = ours.config.text_config, ours.config.vision_config
    assert len(expected) == text.num_hidden_layers + 3 + (vision.depth + 2 if layout != "text" else 0)
    for ours.attn_implementation in IMPLEMENTATIONS:
        rows = compare_records(record(ours, inputs), expected)
        bad = [row for row in rows if not row.relative < SAME]
        assert not bad, f"{ours.attn_implementation}: {bad[0]}"


def test_text_and_pictures_do_meet():
    """The layouts above can fail: another picture gives other logits, at the text after it and nowhere before."""
    ours, official = twins("gqa2")
    inputs = make_inputs(ours.config, LAYOUTS["image"])
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(0)}
    for model in (ours, official):
        with torch.no_grad():
            moved = (model(**inputs).logits - model(**other).logits).abs().amax(-1)[0]
        assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_every_gradient_agree(shape, implementation):
    ours, official = (copy.deepcopy(model) for model in twins(shape))
    ours.attn_implementation = implementation
    inputs = with_labels(make_inputs(ours.config, LAYOUTS["mixed-batch"]))
    loss, expected = ours(**inputs).loss, official(**inputs).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    reference = dict(official.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        assert relative_difference(parameter.grad, reference[official_name(name)].grad) < SAME_GRADIENT, name
        compared += 1
    assert compared == len(reference)


def test_only_labels_that_count_enter_the_loss():
    ours, official = twins("gqa1")
    inputs = make_inputs(ours.config, LAYOUTS["image"])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -1] = 17
    with torch.no_grad():
        output = ours(**inputs, labels=labels)
        expected = official(**inputs, labels=labels).loss
    by_hand = -output.logits[0, -2].log_softmax(-1)[17]  # the place before predicts it
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6) == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_config_survives_both_layouts(shape):
    """Flat config.json (ours, as released) and nested (as recent transformers writes it) say the same."""
    ours, official = twins(shape)
    assert Qwen2VLConfig.from_dict(ours.config.to_dict()) == ours.config
    assert Qwen2VLConfig.from_dict(official.config.to_dict()) == ours.config


# --- positions -------------------------------------------------------------------------------------------------------

ORDERS = {
    "text-only": [[7]],
    "image-text-image": [[2, image(4, 6), 3, image(6, 2), 2]],
    "image-image": [[image(4, 6), image(2, 8)]],
    "video-image": [[1, video(2, 4, 4), image(4, 6), 2]],
    "image-video-text": [[image(8, 2), 1, video(3, 6, 2), 4]],
    "batch": [[5], [2, image(4, 6), 3], [video(2, 4, 6), 1, image(2, 2)], [image(2, 2), 6, image(6, 8)]],
}


@pytest.mark.parametrize("padding", (0, 1, 5))
@pytest.mark.parametrize("order", ORDERS)
def test_positions_and_deltas_are_the_official_ones(order, padding):
    config = shared_model().config
    inputs = make_inputs(config, ORDERS[order], padding=padding)
    for found, expected in zip(our_rope_index(config, inputs), official_rope_index(config, inputs)):
        assert torch.equal(found, expected)


even = st.integers(1, 4).map(lambda cells: 2 * cells)  # patches
images = st.builds(image, even, even)
clips = st.builds(video, st.integers(1, 4), even, even).filter(lambda clip: clip[1] <= max(clip[2], clip[3]) // 2)
rows = st.lists(st.one_of(st.integers(1, 6), images, clips), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 5))
def test_positions_of_random_layouts(batch, padding):
    config = shared_model().config
    inputs = make_inputs(config, batch, padding=padding)
    for found, expected in zip(our_rope_index(config, inputs), official_rope_index(config, inputs)):
        assert torch.equal(found, expected)


def axes(position_ids: torch.Tensor) -> list[str]:
    """(3, 1, S) → one string of digits for each of t, h, w."""
    return ["".join(map(str, axis.tolist())) for axis in position_ids[:, 0]]


def test_golden_positions_of_an_image():
    """3 text tokens, a picture of 2×3 cells, 2 text tokens; the markers around the picture count as text."""
    config = shared_model().config
    position_ids, deltas = our_rope_index(config, make_inputs(config, [[2, image(4, 6), 1]]))
    assert axes(position_ids) == ["01233333367", "01233344467", "01234534567"]
    assert deltas.tolist() == [[8 - 11]]


def test_golden_positions_of_a_clip():
    """A clip of 3 frame pairs of 2×2 cells, then text; here one marker comes before it."""
    config = shared_model().config
    position_ids, deltas = our_rope_index(config, make_inputs(config, [[video(3, 4, 4), 2]]))
    assert axes(position_ids) == ["0111122223333456", "0112211221122456", "0121212121212456"]
    assert deltas.tolist() == [[7 - 16]]


def test_golden_positions_of_pictures_side_by_side():
    """Without a marker between them, which the official code takes for one picture: 1×2 cells, then 2×1 cells."""
    config = shared_model().config
    ids = torch.tensor([[5] + [config.image_token_id] * 4 + [6]])
    position_ids, deltas = get_rope_index(config, ids, torch.tensor([[1, 2, 4], [1, 4, 2]]))
    assert axes(position_ids) == ["011335", "011345", "012335"]
    assert deltas.tolist() == [[0]]
    with pytest.raises(ValueError, match="Row 0 has visual tokens"):
        get_rope_index(config, ids, torch.tensor([[1, 2, 4]]))


def test_long_clip_is_where_transformers_5_differs():
    """4 frame pairs of 2×2 cells: the paper goes on at the largest position + 1, transformers 5 already at + 2.

    With its positions our logits are the official ones, so this rule is the only difference.
    """
    ours, official = twins("gqa2")
    inputs = make_inputs(ours.config, [[3, video(4, 4, 4), 5]])
    found, expected = our_rope_index(ours.config, inputs)[0], official_rope_index(ours.config, inputs)[0]
    after = 3 + 1 + 16  # text, the start marker and the clip's cells
    assert torch.equal(found[..., :after], expected[..., :after])
    assert (found[..., after:] == found[..., :after].max() + 1 + torch.arange(6)).all()
    if torch.equal(found, expected):
        pytest.fail(f"transformers {transformers.__version__} follows the paper again: compare long clips like others.")
    assert (found - expected)[..., after:].eq(4 - 2).all()
    with torch.no_grad():
        reference = official(**inputs).logits
        assert relative_difference(ours(**inputs, position_ids=expected).logits, reference) < SAME
        own = ours(**inputs).logits
    assert relative_difference(own[:, :after], reference[:, :after]) < SAME
    assert relative_difference(own[:, after:], reference[:, after:]) > 1e-3


# --- generation ------------------------------------------------------------------------------------------------------


def generate_both(shape: str, layout: str, implementation: str = "sdpa", eos=(), **options):
    """(our ids, official ids), 32 new ones a row unless an id of `eos` comes. No id is banned, as officially."""
    ours, official = twins(shape)
    ours.attn_implementation = implementation
    inputs = make_inputs(ours.config, LAYOUTS[layout])
    options |= {"max_new_tokens": 32, "do_sample": False, "suppress_tokens": []}
    pad = eos[0] if eos else 0
    expected = official.generate(**inputs, **options, eos_token_id=list(eos) or None, pad_token_id=pad)
    return ours.generate(**inputs, **options, eos_token_id=list(eos)), expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_ids_are_equal(shape, layout):
    found, expected = generate_both(shape, layout, IMPLEMENTATIONS[list(SHAPES).index(shape) % 3])
    assert found.shape[1] == 32 + make_inputs(twins(shape)[0].config, LAYOUTS[layout])["input_ids"].shape[1]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("penalty", (1.3, 0.8))
@pytest.mark.parametrize("layout", ("image", "mixed-batch"))
@pytest.mark.parametrize("shape", ("gqa2", "gqa7-as-7b"))
def test_greedy_ids_with_a_repetition_penalty_are_equal(shape, layout, penalty):
    found, expected = generate_both(shape, layout, repetition_penalty=penalty)
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate_both(shape, layout)[0])


@pytest.mark.parametrize("shape", ("gqa1", "gqa7-as-7b"))
def test_greedy_ids_with_two_eos_ids_are_equal(shape):
    """Rows end at different steps and at different ids, the rest is padding; all rows over, the loop ends early."""
    free = generate_both(shape, "mixed-batch")[0][:, -32:]
    new_at = lambda row, step: free[row, step] not in free[row, :step]  # noqa: E731
    first = next(int(free[0, i]) for i in range(3, 32) if new_at(0, i))
    second = next(int(free[1, i]) for i in range(5, 32) if new_at(1, i) and int(free[1, i]) != first)
    found, expected = generate_both(shape, "mixed-batch", eos=(first, second))
    assert torch.equal(found, expected)
    ends = [(row == first).logical_or(row == second).nonzero()[0].item() for row in found[:2, -32:].cpu()]
    assert ends[0] != ends[1], "both rows end at the same step: choose other ids"
    alone, expected = generate_both(shape, "text", eos=tuple(range(0, 200, 2)))
    assert torch.equal(alone, expected) and alone.shape[1] < 11 + 32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ("gqa1", "gqa4-deep", "gqa6-as-2b"))
def test_cached_decoding_equals_the_full_forward_at_every_step(shape, layout):
    """… and both the official full forward, which computes its positions anew from the whole sequence."""
    ours, official = twins(shape)
    ours.attn_implementation = "sdpa"
    inputs = make_inputs(ours.config, LAYOUTS[layout])
    B, S = inputs["input_ids"].shape
    new = torch.randint(1, ours.config.vision_start_token_id, (B, 8))
    full = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    full["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    full["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 8), value=1)
    full["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 8), value=0)
    cache = KVCache(ours.config.text_config, B, S + 8, dtype=torch.float32)
    with torch.no_grad():
        expected, whole = official(**full).logits, ours(**full).logits
        steps = [ours(**inputs, cache=cache).logits]
        steps += [ours(new[:, i : i + 1], cache=cache).logits for i in range(8)]
    stepped = real_tokens(torch.cat(steps, dim=1), full)
    assert relative_difference(stepped, real_tokens(whole, full)) < SAME
    assert relative_difference(stepped, real_tokens(expected, full)) < SAME


# --- whole checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=("random", "tiny"))
def checkpoint(request, tmp_path_factory) -> Path:
    """A small random checkpoint, and the bundled one."""
    if request.param == "random":
        return save_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    folder = Path(weights_loader.__file__).parent / "checkpoints" / "tiny"
    if not (folder / "config.json").exists():
        pytest.skip("the bundled checkpoint is not there")
    return folder


@pytest.mark.parametrize("task", ("describe", "count", "compare"))
def test_a_checkpoint_loads_in_transformers_and_says_the_same(checkpoint, task):
    """The folder as it is: the same ids, pixels, logits and greedy sentences from a picture to a text."""
    model, processor = weights_loader.load(checkpoint, dtype="float32", device="cpu")
    official = load_official(checkpoint)
    official_processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    # its default resizes with torchvision; the one of the paper's code, and our default, with Pillow
    official_processor.image_processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    sample = scenes.make_sample(scenes.TEST_SEED + 5, task, 140, 112)
    chat = scenes.messages(sample, with_answer=False)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, **options)
    expected = official_processor.apply_chat_template(chat, **options)
    for name in ("input_ids", "attention_mask", "image_grid_thw", "pixel_values"):
        assert torch.equal(inputs[name], expected[name]), name
    rows = compare(model, official, expected)
    assert first_difference(rows, SAME) is None and rows[-1].layer == "logits"
    found = model.generate(**inputs, max_new_tokens=24)
    vision_ids = list(range(model.config.vision_start_token_id, model.config.video_token_id + 1))
    reference = official.generate(**expected, max_new_tokens=24, suppress_tokens=vision_ids)
    assert torch.equal(found, reference)
    new = found[:, inputs["input_ids"].shape[1] :]
    for skip in (True, False):
        sentence = processor.batch_decode(new, skip_special_tokens=skip)
        assert sentence == official_processor.batch_decode(new, skip_special_tokens=skip)
