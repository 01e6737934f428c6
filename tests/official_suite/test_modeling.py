"""What test_modeling_qwen2_vl.py and test_modeling_common.py check of one forward or backward pass, and of weights."""

import copy
import inspect

import pytest
import torch
import transformers
from torch import nn
from transformers import Qwen2VLForConditionalGeneration as OfficialModel

from qwen2vl_mini import Qwen2VLForConditionalGeneration
from tests.official import load_official, official_name, official_twin, twins
from tests.official_suite.pairs import LAYOUTS, SAME, both_inputs, fresh_twins
from tests.small_models import SHAPES, one_row, real_tokens, relative_difference, shared_model, small_config

# --- what a forward pass takes and gives ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_the_same_call_twice_gives_the_same(layout):
    ours, _ = twins("gqa2")
    inputs = both_inputs(layout)
    assert torch.equal(ours(**inputs).logits, ours(**inputs).logits)


@torch.no_grad()
def test_train_mode_changes_nothing():
    """There is no dropout: as officially, a model in train() mode says what it says in eval() mode."""
    inputs = both_inputs()
    for model in fresh_twins():
        assert torch.equal(model.train()(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.parametrize("row", range(3))
@torch.no_grad()
def test_a_row_of_a_batch_is_the_same_alone(row):
    ours, official = twins("gqa2")
    inputs = both_inputs("batch")
    together = real_tokens(ours(**inputs).logits[row : row + 1], {"attention_mask": inputs["attention_mask"][[row]]})
    alone = one_row(ours.config, inputs, row)
    assert relative_difference(together, ours(**alone).logits[0]) < SAME
    assert relative_difference(together, official(**alone).logits[0]) < SAME


def test_the_first_argument_is_called_input_ids():
    for model in twins("gqa2"):
        assert list(inspect.signature(model.forward).parameters)[0] == "input_ids"


OFFICIAL_INPUTS = (
    *("attention_mask", "position_ids", "inputs_embeds", "labels", "logits_to_keep"),
    *("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"),
)


@pytest.mark.parametrize("name", OFFICIAL_INPUTS)
def test_the_signature_names_what_the_model_takes(name):
    """Trainers read the signature to know which columns of a data set to keep."""
    for model in twins("gqa2"):
        assert name in inspect.signature(model.forward).parameters, type(model)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_an_output_is_a_tuple_a_dict_and_an_object(layout):
    ours, official = twins("gqa2")
    inputs = both_inputs(layout)
    labels = inputs["input_ids"]
    for more in ({}, {"labels": labels}, {"output_hidden_states": True}, {"return_dict": True}):
        found, expected = ours(**inputs, **more, use_cache=False), official(**inputs, **more, use_cache=False)
        names = [name for name in expected.keys() if name not in ("image_outputs", "video_outputs")]
        assert list(found.keys()) == names
        assert relative_difference(found["logits"], expected["logits"]) < SAME
        assert torch.equal(found[0], found.loss if "labels" in more else found.logits)
        assert len(found.to_tuple()) == len(names)
        assert torch.equal(found.to_tuple()[0], found[0])
        assert dict(found.items())["logits"] is found.logits and "logits" in found


@torch.no_grad()
def test_return_dict_false_gives_the_tuple():
    """… or says that an output can be read as one."""
    ours, official = twins("gqa2")
    inputs = both_inputs()
    expected = official(**inputs, return_dict=False, use_cache=False)
    assert isinstance(expected, tuple)
    try:
        found = ours(**inputs, return_dict=False, use_cache=False)
    except ValueError as error:
        assert "return_dict" in str(error) and "to_tuple" in str(error)
    else:
        assert isinstance(found, tuple) and relative_difference(found[0], expected[0]) < SAME


@pytest.mark.parametrize("use_cache", (None, True, False))
@torch.no_grad()
def test_use_cache_decides_whether_a_cache_comes_back(use_cache):
    ours, official = twins("gqa2")
    inputs = both_inputs()
    found, expected = ours(**inputs, use_cache=use_cache), official(**inputs, use_cache=use_cache)
    assert relative_difference(found.logits, expected.logits) < SAME
    if use_cache is not None:
        assert (found.past_key_values is None) == (expected.past_key_values is None) == (not use_cache)


@pytest.mark.parametrize("keep", (1, 3, "places"))
@torch.no_grad()
def test_logits_of_some_places_only(keep):
    ours, official = twins("gqa2")
    inputs = both_inputs("batch")
    keep = torch.tensor([0, -1]) if keep == "places" else keep
    found, expected = ours(**inputs, logits_to_keep=keep).logits, official(**inputs, logits_to_keep=keep).logits
    assert found.shape == expected.shape
    if not isinstance(keep, int):
        found, expected = found[:, 1:], expected[:, 1:]  # the first place is padding in two rows
    assert relative_difference(found, expected) < SAME


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_embeddings_in_place_of_ids(layout):
    """The embeddings of the words alone, or with the ids beside them that say where the pictures stand."""
    ours, official = fresh_twins()
    inputs = both_inputs(layout)
    expected = official(**inputs).logits
    words = ours.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(words, official.get_input_embeddings()(inputs["input_ids"]))
    if layout == "text":
        rest = {"attention_mask": inputs["attention_mask"]}
        assert relative_difference(ours(**rest, inputs_embeds=words).logits, expected) < SAME
        assert relative_difference(official(**rest, inputs_embeds=words).logits, expected) < SAME
    else:  # find the places, then give the whole embeddings: the pictures are in them
        merged = ours(**inputs, output_hidden_states=True).hidden_states[0]
        positions = ours(**inputs).position_ids
        given = {"inputs_embeds": merged, "position_ids": positions, "attention_mask": inputs["attention_mask"]}
        found = real_tokens(ours(**given).logits, inputs)
        assert relative_difference(found, real_tokens(expected, inputs)) < SAME


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
@torch.no_grad()
def test_attention_can_be_chosen_at_any_time(implementation):
    """By the official call, or by the attribute that its sentence names; other tests compare what each computes."""
    ours, official = fresh_twins()
    inputs = both_inputs("batch")
    try:
        ours.set_attn_implementation(implementation)
    except AttributeError as error:
        assert "model.attn_implementation" in str(error)
        ours.attn_implementation = implementation
    official.set_attn_implementation(implementation)
    assert ours.attn_implementation == official.config._attn_implementation == implementation
    found, expected = real_tokens(ours(**inputs).logits, inputs), real_tokens(official(**inputs).logits, inputs)
    assert relative_difference(found, expected) < SAME


def test_gradients_of_hidden_states_are_the_official_ones():
    gradients = []
    for model in fresh_twins():
        output = model(**both_inputs(), output_hidden_states=True)
        output.hidden_states[1].retain_grad()
        output.logits.flatten()[0].backward()
        gradients.append(output.hidden_states[1].grad)
    assert relative_difference(*gradients) < 10 * SAME


def test_gradients_through_attention_maps_are_the_official_ones():
    """A loss on the maps themselves, which are worked out beside the answer, to look at."""
    ours, official = fresh_twins()
    official.set_attn_implementation("eager")
    for model in (ours, official):
        output = model(**both_inputs(), output_attentions=True)
        output.attentions[1].square().sum().backward()
    assert not any(map_.isnan().any() for map_ in output.attentions)
    found = ours.model.layers[1].self_attn.q_proj.weight.grad
    expected = official.model.language_model.layers[1].self_attn.q_proj.weight.grad
    assert relative_difference(found, expected) < 1e-4


# --- pictures and their places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ("a picture less", "a picture more", "a grid less"))
def test_pictures_and_their_places_must_match_in_number(change):
    inputs = both_inputs("batch")
    n = int(inputs["image_grid_thw"][0].prod())
    if change == "a picture less":
        inputs["pixel_values"], inputs["image_grid_thw"] = inputs["pixel_values"][n:], inputs["image_grid_thw"][1:]
    elif change == "a grid less":
        inputs["image_grid_thw"] = inputs["image_grid_thw"][1:]
    else:
        inputs["pixel_values"] = torch.cat([inputs["pixel_values"], inputs["pixel_values"][:n]])
        inputs["image_grid_thw"] = torch.cat([inputs["image_grid_thw"], inputs["image_grid_thw"][:1]])
    ours, official = twins("gqa2")
    with pytest.raises(ValueError):
        ours(**inputs)
    with pytest.raises((ValueError, RuntimeError)):
        official(**inputs)


@torch.no_grad()
def test_the_same_picture_in_two_rows():
    """Two rows, two pictures: taken. Two rows and one picture: not."""
    ours, official = twins("gqa2")
    inputs = both_inputs()
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    found = ours(**twice).logits
    assert relative_difference(found, official(**twice).logits) < SAME
    assert relative_difference(found[0], found[1]) < SAME
    with pytest.raises(ValueError):
        ours(**twice | {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]})


@pytest.mark.parametrize("kind", ("image", "video"))
@torch.no_grad()
def test_features_in_lower_precision_keep_it(kind):
    """Pixels come in float32; the features have the dtype of the model."""
    ours, official = fresh_twins()
    inputs = both_inputs("batch")
    suffix = "_videos" if kind == "video" else ""
    asked = (inputs[f"pixel_values{suffix}"], inputs[f"{kind}_grid_thw"])
    for model in (ours.bfloat16(), official.bfloat16()):
        features = getattr(model, f"get_{kind}_features")(*asked)
        features = getattr(features, "pooler_output", features)
        assert {part.dtype for part in features} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@torch.no_grad()
def test_half_precision_gives_finite_logits_of_that_dtype(dtype):
    inputs = both_inputs("batch")
    for model in fresh_twins():
        logits = real_tokens(model.to(dtype)(**inputs).logits, inputs)
        assert logits.dtype == dtype and logits.isfinite().all()


@torch.no_grad()
def test_autocast_gives_finite_logits():
    inputs = both_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for model in twins("gqa2"):
            assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("batch", (1, 3))
def test_shapes_of_logits_and_features(batch):
    ours, official = twins("gqa2")
    one = both_inputs()
    inputs = {name: torch.cat([value] * batch) for name, value in one.items()}
    with torch.no_grad():
        for model in (ours, official):
            assert model(**inputs).logits.shape == (batch, 15, 200)
    features = ours.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    assert [tuple(part.shape) for part in features] == [(6, ours.config.text_config.hidden_size)] * batch


# --- positions --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_forward_pass_after_generating_starts_anew():
    """Nothing of the last prompt stays on the model: its positions are those of the new inputs."""
    ours, official = twins("gqa2")
    first, second = both_inputs("batch"), both_inputs("image", seed=1)
    ours.generate(**first, max_new_tokens=4, suppress_tokens=[])
    assert relative_difference(ours(**second).logits, copy.deepcopy(official)(**second).logits) < SAME


@pytest.mark.parametrize("layout", ("text", "image", "clip"))
@torch.no_grad()
def test_given_positions_are_used(layout):
    ours, official = twins("gqa2")
    inputs = both_inputs(layout)
    positions = ours(**inputs).position_ids
    shifted = positions + torch.tensor([0, 2, 5])[:, None, None]  # another distance between the axes changes angles
    scaled = positions * 2
    for given in (positions, shifted, scaled):
        found = ours(**inputs, position_ids=given).logits
        assert relative_difference(found, official(**inputs, position_ids=given).logits) < SAME
    assert relative_difference(found, ours(**inputs).logits) > 1e-3, "positions make no difference"


@torch.no_grad()
def test_flat_positions_of_text_are_used():
    """(B, S), as every text model takes them: the same on all three axes. Or a sentence says what they should be."""
    ours, official = twins("gqa2")
    inputs = both_inputs("text")
    flat = torch.arange(9)[None]
    expected = official(**inputs).logits
    try:
        found = ours(**inputs, position_ids=flat).logits
    except ValueError as error:
        assert "position_ids" in str(error)
    else:
        assert relative_difference(found, expected) < SAME


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", (True, False))
def test_a_new_model_has_the_official_initialisation(tied):
    """Biases 0, norms 1, matrices normal with initializer_range: no weight is left to PyTorch's own defaults."""
    config = small_config(heads=(8, 4), head_dim=16, tied=tied, vision=(2, 64, 4), vocab_size=400)
    torch.manual_seed(0)
    ours = Qwen2VLForConditionalGeneration(config)
    official = OfficialModel(transformers.Qwen2VLConfig.from_dict(config.to_dict())).state_dict()
    for name, parameter in ours.named_parameters():
        expected = official[official_name(name)]
        if parameter.ndim == 1:
            assert torch.equal(parameter, expected), name
        else:  # the standard deviation of n draws is known to a part of 1/√(2n); five of those
            spread = 5 * expected.std() * (2 * parameter.numel()) ** -0.5
            assert abs(parameter.std() - expected.std()) < 2 * spread + 1e-9, name
            assert abs(parameter.mean()) < 5 * expected.std() * parameter.numel() ** -0.5, name


def test_the_first_loss_of_a_new_model_is_that_of_guessing():
    config = small_config()
    torch.manual_seed(0)
    ours = Qwen2VLForConditionalGeneration(config)
    ids = torch.randint(1, config.vision_start_token_id, (2, 40))
    loss = ours(ids, labels=ids).loss.item()
    assert loss == pytest.approx(torch.tensor(200.0).log().item(), rel=0.1)  # ln V


def test_nothing_but_parameters_and_buffers_is_a_tensor():
    """So that .to(device) moves all of it."""
    for module in twins("gqa2")[0].modules():
        kept = {id(value) for value in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
        assert not [n for n, value in vars(module).items() if isinstance(value, torch.Tensor) and id(value) not in kept]


@pytest.mark.parametrize("shape", ("gqa2", "gqa1"))  # untied, tied
def test_embeddings_can_be_got_and_set(shape):
    for model in fresh_twins(shape):
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding) and embeddings.num_embeddings == 200
        assert isinstance(model.get_output_embeddings(), nn.Linear)
        tied = model.get_output_embeddings().weight is embeddings.weight
        assert tied == (shape == "gqa1")
        other = nn.Embedding(200, embeddings.embedding_dim)
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other


def test_a_tied_head_is_one_parameter():
    for shape in SHAPES:
        ours, official = twins(shape)
        assert len(list(ours.parameters())) == len(list(official.parameters()))
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in official.parameters())


@torch.no_grad()
def test_tied_weights_change_together():
    ours, _ = fresh_twins("gqa1")
    ours.get_input_embeddings().weight.mul_(2)
    assert torch.equal(ours.lm_head.weight, ours.get_input_embeddings().weight)


@torch.no_grad()
def test_a_model_through_a_folder_and_back(tmp_path):
    """save_pretrained → from_pretrained of both classes: the same logits; the same through torch.save."""
    ours, official = fresh_twins()
    inputs = both_inputs("batch")
    expected = real_tokens(ours(**inputs).logits, inputs)
    ours.save_pretrained(tmp_path)
    again = Qwen2VLForConditionalGeneration.from_pretrained(str(tmp_path), dtype="float32", device="cpu")
    assert torch.equal(real_tokens(again(**inputs).logits, inputs), expected)
    assert relative_difference(real_tokens(load_official(tmp_path)(**inputs).logits, inputs), expected) < SAME
    torch.save(ours.state_dict(), tmp_path / "weights.pt")
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(real_tokens(again(**inputs).logits, inputs), expected)


@torch.no_grad()
def test_what_the_official_class_saves_is_read(tmp_path):
    ours, official = fresh_twins("gqa1")
    inputs = both_inputs("batch", "gqa1")
    official.save_pretrained(tmp_path)
    again = Qwen2VLForConditionalGeneration.from_pretrained(str(tmp_path), dtype="float32", device="cpu")
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert torch.equal(real_tokens(again(**inputs).logits, inputs), real_tokens(ours(**inputs).logits, inputs))


def test_resized_embeddings_are_refused_with_the_way_out():
    """Officially new tokens are trained in; here the vocabulary is the checkpoint's, and a sentence says so."""
    ours, _ = fresh_twins()
    with pytest.raises((ValueError, AttributeError)) as caught:
        ours.resize_token_embeddings(210)
    assert "object has no attribute" not in str(caught.value) and len(str(caught.value).split()) > 6


def test_a_model_can_be_built_without_memory():
    with torch.device("meta"):
        ours = Qwen2VLForConditionalGeneration(small_config())
    assert all(parameter.is_meta for parameter in ours.parameters())


def test_a_copy_is_independent():
    ours = copy.deepcopy(shared_model())
    with torch.no_grad():
        ours.lm_head.weight.zero_()
    assert shared_model().lm_head.weight.any()
    assert torch.equal(official_twin(ours).lm_head.weight, ours.lm_head.weight)


# --- training ---------------------------------------------------------------------------------------------------------


def losses(model, inputs: dict, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_three_steps_of_training_are_the_official_ones():
    ours, official = fresh_twins()
    inputs = both_inputs()
    found = losses(ours.train(), inputs)
    assert found == pytest.approx(losses(official.train(), inputs), rel=1e-4)
    assert found[-1] < found[0]


@pytest.mark.parametrize("reentrant", (None, False, True))
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    inputs = both_inputs("batch")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    options = {} if reentrant is None else {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain, _ = fresh_twins()
    plain.train()(**inputs, labels=labels).loss.backward()
    for model in fresh_twins():
        model.train().gradient_checkpointing_enable(**options)
        if reentrant:
            model.enable_input_require_grads()
        assert model.is_gradient_checkpointing
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        grads = dict(model.named_parameters())
        for name, parameter in plain.named_parameters():
            other = grads[name if name in grads else official_name(name)]
            assert relative_difference(other.grad, parameter.grad) < 1e-4, name
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing


def test_frozen_weights_get_no_gradient():
    """As for LoRA: only what requires a gradient has one, and the embeddings' output can be made to need one."""
    for model in fresh_twins():
        model.requires_grad_(False)
        model.enable_input_require_grads()
        inputs = both_inputs("text")
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trainer_may_send_num_items_in_batch():
    """The sum of the losses by the number of tokens of all the small batches: gradient accumulation's mean."""
    ours, official = twins("gqa2")
    inputs = both_inputs()
    given = inputs | {"labels": inputs["input_ids"], "num_items_in_batch": 40}
    expected = official(**given).loss
    if "num_items_in_batch" in inspect.signature(ours.forward).parameters:
        assert ours(**given).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    else:  # a Trainer sends it only where the signature has **kwargs
        kinds = {parameter.kind for parameter in inspect.signature(ours.forward).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
