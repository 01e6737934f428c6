"""What generation/test_utils.py checks of `generate`: options, caches, streamers, ends, and what it gives back."""

import copy

import pytest
import torch
import transformers
from transformers import DynamicCache, GenerationConfig

from qwen2vl_mini import KVCache, get_rope_index
from tests.official import twins
from tests.official_suite.pairs import (
    LAYOUTS,
    SAME,
    ask,
    both_inputs,
    fresh_twins,
    official_processor,
    our_processor,
    picture,
    tiny_models,
)
from tests.small_models import one_row, relative_difference

NEW = 6
FREE = {"max_new_tokens": NEW, "suppress_tokens": []}  # no id is banned, as officially


def generate_both(inputs: dict, shape: str = "gqa2", **options):
    """(our ids, official ids), greedy unless options say otherwise."""
    ours, official = twins(shape)
    official.model.rope_deltas = None
    options = FREE | {"do_sample": False} | options
    return ours.generate(**inputs, **options), official.generate(**inputs, **options)


# --- options that change nothing --------------------------------------------------------------------------------------

NEUTRAL = {
    "use_cache": True,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "logits_processor": [],
    "stopping_criteria": [],
    "streamer": None,
    "synced_gpus": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "generation_config": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "max_time": None,
    "assistant_model": None,
    "negative_prompt_ids": None,
    "prefix_allowed_tokens_fn": None,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_values_change_nothing(name):
    inputs = both_inputs("batch")
    found, expected = generate_both(inputs, **{name: NEUTRAL[name]})
    assert torch.equal(found, expected)


def test_sampling_settings_of_a_greedy_call_change_nothing():
    """With do_sample=False said, temperature, top_p and top_k have no say."""
    inputs = both_inputs()
    found, expected = generate_both(inputs, temperature=0.7, top_p=0.9, top_k=10)
    assert torch.equal(found, expected)


ABSENT = {
    "num_beams": 4,
    "num_return_sequences": 3,
    "num_beam_groups": 2,
    "penalty_alpha": 0.6,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7]],
    "force_words_ids": [[7]],
    "prompt_lookup_num_tokens": 2,
    "dola_layers": "low",
    "cache_implementation": "quantized",
    "min_p": 0.1,
    "typical_p": 0.5,
    "guidance_scale": 2.0,
    "stop_strings": ["."],
    "custom_generate": "x/y",
    "assistant_model": "another",
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_refused_by_name(name):
    """Never taken in silence: a caller would believe in beams that were never searched."""
    ours, _ = twins("gqa2")
    with pytest.raises(ValueError, match=name) as caught:
        ours.generate(**both_inputs(), **FREE, **{name: ABSENT[name]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("typo", ({"max_new_token": 5}, {"temprature": 0.5}, {"foo": "bar"}, {"pixel_value": 3}))
def test_unknown_options_are_refused(typo):
    for model in twins("gqa2"):
        with pytest.raises((ValueError, TypeError), match=next(iter(typo))):
            model.generate(**both_inputs(), **FREE, **typo)


# --- length and end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("new", (1, 5))
def test_as_many_new_tokens_as_asked_for(layout, new):
    found, expected = generate_both(both_inputs(layout), max_new_tokens=new)
    assert torch.equal(found, expected)
    assert found.shape[1] == both_inputs(layout)["input_ids"].shape[1] + new


def test_max_length_counts_the_prompt():
    """… or is refused in favour of max_new_tokens; it is never taken for the number of new tokens."""
    inputs = both_inputs("text")
    ours, official = twins("gqa2")
    expected = official.generate(**inputs, max_length=12, do_sample=False)
    assert expected.shape[1] == 12
    try:
        found = ours.generate(**inputs, max_length=12, suppress_tokens=[], do_sample=False)
    except ValueError as error:
        assert "max_length" in str(error)
    else:
        assert torch.equal(found, expected)


def test_min_new_tokens_holds_the_end_back():
    """… or is refused by name."""
    inputs = both_inputs("text")
    free, _ = generate_both(inputs)
    first = int(free[0, -NEW])
    ours, official = twins("gqa2")
    expected = official.generate(**inputs, **FREE, do_sample=False, eos_token_id=[first], min_new_tokens=4)
    assert expected.shape[1] >= 9 + 4
    try:
        found = ours.generate(**inputs, **FREE, eos_token_id=[first], min_new_tokens=4)
    except ValueError as error:
        assert "min_new_tokens" in str(error)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ("an id", "a list"))
def test_the_end_as_an_id_and_as_a_list(kind):
    inputs = both_inputs("text")
    free, _ = generate_both(inputs)
    end = int(free[0, -3])
    found, expected = generate_both(inputs, eos_token_id=end if kind == "an id" else [end, 0], pad_token_id=0)
    assert torch.equal(found, expected)
    assert found.shape[1] < free.shape[1] and found[0, -1] == end


@pytest.mark.parametrize("pad", (0, 5))
def test_rows_that_have_ended_are_padded_with_pad_token_id(pad):
    inputs = both_inputs("batch")
    free, _ = generate_both(inputs)
    end = int(free[0, -NEW])
    found, expected = generate_both(inputs, eos_token_id=[end], pad_token_id=pad)
    assert torch.equal(found, expected)
    assert (found[0, -NEW + 1 :] == pad).all()


def test_the_configs_settings_hold_unless_the_call_says_otherwise():
    ours, official = fresh_twins()
    inputs = both_inputs("text")
    free, _ = generate_both(inputs)
    first, end = int(free[0, -NEW]), next(int(i) for i in free[0, -NEW:] if i != free[0, -NEW])
    ours.generation_config = {"eos_token_id": end, "do_sample": False}
    official.generation_config = GenerationConfig(eos_token_id=end, do_sample=False, pad_token_id=0)
    found, expected = ours.generate(**inputs, **FREE), official.generate(**inputs, **FREE)
    assert torch.equal(found, expected) and len(found[0]) < len(free[0])
    again = [model.generate(**inputs, **FREE, eos_token_id=first) for model in (ours, official)]
    assert torch.equal(*again) and len(again[0][0]) < len(found[0])


def test_generation_config_is_an_object_with_attributes():
    ours, official = tiny_models()
    for name in ("do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id", "bos_token_id"):
        assert getattr(ours.generation_config, name) == getattr(official.generation_config, name), name


def test_a_generation_config_object_counts_by_its_values():
    ours, official = fresh_twins()
    inputs = both_inputs("image")
    asked = dict(max_new_tokens=4, repetition_penalty=1.4, do_sample=False)
    expected = official.generate(**inputs, generation_config=GenerationConfig(**asked))
    found = ours.generate(**inputs, generation_config=GenerationConfig(**asked), suppress_tokens=[])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name, value", (("repetition_penalty", 1.4), ("max_new_tokens", 4)))
def test_a_setting_changed_on_the_model_counts(name, value):
    """… or says that it belongs into the call."""
    ours, official = fresh_twins()
    inputs = both_inputs("image")
    setattr(official.generation_config, name, value)
    usual = {"max_new_tokens": NEW} if name != "max_new_tokens" else {}
    expected = official.generate(**inputs, **usual, do_sample=False)
    try:
        setattr(ours.generation_config, name, value)
    except ValueError as error:
        assert name in str(error) and "generate" in str(error)
    else:
        assert torch.equal(ours.generate(**inputs, **usual, do_sample=False, suppress_tokens=[]), expected)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}), ids=str)
def test_settings_that_leave_one_choice_are_greedy(settings):
    inputs = both_inputs("batch")
    greedy, _ = generate_both(inputs)
    for model in twins("gqa2"):
        assert torch.equal(model.generate(**inputs, **FREE, do_sample=True, **{"top_k": 0} | settings), greedy)


def test_drawn_ids_are_those_of_the_official_probabilities():
    """top_k 3: only the three likeliest ids of the official model are ever drawn, and all three are."""
    ours, official = twins("gqa2")
    inputs = both_inputs("text")
    with torch.no_grad():
        likeliest = set(official(**inputs).logits[0, -1].topk(3).indices.tolist())
    options = {"max_new_tokens": 1, "do_sample": True, "top_k": 3, "temperature": 5.0, "suppress_tokens": []}
    drawn = {int(ours.generate(**inputs, **options, seed=seed)[0, -1]) for seed in range(60)}
    assert drawn == likeliest


def test_manual_seed_makes_sampling_repeatable():
    """Without a seed in the call PyTorch's own generator draws, as officially."""
    inputs = both_inputs("text")
    for model in twins("gqa2"):
        rows = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            rows.append(model.generate(**inputs, max_new_tokens=12, do_sample=True, temperature=3.0, top_k=0))
        assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


# --- what comes back --------------------------------------------------------------------------------------------------


def test_a_dict_of_all_that_was_made():
    """`return_dict_in_generate` with logits and scores: supported as officially, or refused by that name."""
    inputs = both_inputs()
    ours, official = twins("gqa2")
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    expected = official.generate(**inputs, **FREE, **options)
    try:
        found = ours.generate(**inputs, **FREE, **options)
    except ValueError as error:
        assert "return_dict_in_generate" in str(error) or "output_logits" in str(error)
    else:
        assert torch.equal(found.sequences, expected.sequences)
        for mine, theirs in zip(found.logits, expected.logits):
            assert relative_difference(mine, theirs) < SAME


@torch.no_grad()
def test_the_first_new_id_is_that_of_a_plain_forward():
    ours, official = twins("gqa2")
    inputs = both_inputs("batch")
    found, expected = generate_both(inputs)
    assert torch.equal(found[:, -NEW], official(**inputs).logits[:, -1].argmax(-1))
    assert torch.equal(found[:, -NEW], ours(**inputs).logits[:, -1].argmax(-1))
    assert torch.equal(found, expected)


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.put_ids, self.ended = [], False

    def put(self, value):
        self.put_ids.append(value.reshape(-1).tolist())

    def end(self):
        self.ended = True


def test_a_streamer_sees_the_prompt_then_each_id():
    ours, official = twins("gqa2")
    inputs = both_inputs("text")
    found, expected = Recorder(), Recorder()
    ours.generate(**inputs, **FREE, do_sample=False, streamer=found)
    official.generate(**inputs, **FREE, do_sample=False, streamer=expected)
    assert found.put_ids == expected.put_ids and found.ended and expected.ended
    assert len(found.put_ids) == 1 + NEW


def test_a_text_streamer_prints_what_is_written(capsys):
    """The official TextStreamer with our tokenizer: its decode and its prompt skipping are what it needs."""
    ours, _ = tiny_models()
    processor = our_processor()
    inputs = processor.apply_chat_template(
        ask({"type": "image", "image": picture(84, 84)}, "Describe this image."),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    streamer = transformers.TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = ours.generate(**inputs, max_new_tokens=8, streamer=streamer)
    sentence = processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)[0]
    assert capsys.readouterr().out.strip() == sentence.strip() and sentence


def test_text_of_more_than_one_row_cannot_be_streamed():
    for model in twins("gqa2"):
        streamer = transformers.TextStreamer(official_processor().tokenizer)
        with pytest.raises(ValueError, match="(?i)batch|one prompt|row"):
            model.generate(**both_inputs("batch"), **FREE, streamer=streamer)


# --- padding and positions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_on_the_left_changes_no_answer(layout):
    inputs = both_inputs(layout)
    padded = both_inputs(layout, padding=5)
    for model in twins("gqa2"):
        options = FREE | {"do_sample": False}
        assert torch.equal(model.generate(**inputs, **options)[:, -NEW:], model.generate(**padded, **options)[:, -NEW:])


@pytest.mark.parametrize("row", range(3))
def test_a_row_of_a_batch_is_answered_as_alone(row):
    inputs = both_inputs("batch")
    found, _ = generate_both(inputs)
    alone, expected = generate_both(one_row(twins("gqa2")[0].config, inputs, row))
    assert torch.equal(alone, expected) and torch.equal(alone[0, -NEW:], found[row, -NEW:])


@pytest.mark.parametrize("layout", ("text", "image", "clip"))
def test_positions_given_or_worked_out_give_the_same_answer(layout):
    ours, official = twins("gqa2")
    inputs = both_inputs(layout)
    grids = (inputs.get("image_grid_thw"), inputs.get("video_grid_thw"))
    positions, _ = get_rope_index(ours.config, inputs["input_ids"], *grids)
    found, expected = generate_both(inputs)
    assert torch.equal(ours.generate(**inputs, **FREE, position_ids=positions), found)
    assert torch.equal(found, expected)


def test_a_mask_of_ones_is_no_mask():
    inputs = both_inputs("image")
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    for model in twins("gqa2"):
        options = FREE | {"do_sample": False}
        assert torch.equal(model.generate(**inputs, **options), model.generate(**without, **options))


# --- caches -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_a_cache_the_answer_is_the_same():
    """Each new id from the whole sequence, read anew: the loop that a cache must not change."""
    ours, official = twins("gqa2")
    inputs = both_inputs("image")
    found, _ = generate_both(inputs)
    more = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    ids = inputs["input_ids"]
    for _ in range(NEW):
        ids = torch.cat([ids, ours(ids, **more).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, found)
    assert torch.equal(official.generate(**inputs, **FREE, do_sample=False, use_cache=False), ids)


@pytest.mark.parametrize("layout", ("text", "image", "clip"))
@torch.no_grad()
def test_a_loop_that_passes_the_cache_on(layout):
    """The loop of every tutorial: forward, take past_key_values from the output, pass it with the next id."""
    ours, official = twins("gqa2")
    inputs = both_inputs(layout)
    expected, _ = generate_both(inputs)
    output = ours(**inputs, use_cache=True)
    ids = [output.logits[:, -1].argmax(-1)]
    for _ in range(NEW - 1):
        output = ours(input_ids=ids[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        ids.append(output.logits[:, -1].argmax(-1))
    assert torch.equal(torch.stack(ids, dim=1), expected[:, -NEW:])


@pytest.mark.parametrize("layout", ("text", "image"))
def test_an_answer_is_continued_from_its_cache(layout):
    """Stop after three tokens and go on with the cache: the same as in one go, as the official call promises."""
    ours, official = twins("gqa2")
    inputs = both_inputs(layout)
    whole, _ = generate_both(inputs)
    S = inputs["input_ids"].shape[1]
    cache = KVCache(ours.config.text_config, 1, S + NEW, dtype=torch.float32)
    first = ours.generate(**inputs, suppress_tokens=[], max_new_tokens=3, cache=cache)
    rest = ours.generate(first[:, cache.length :], suppress_tokens=[], max_new_tokens=NEW - 3, cache=cache)
    assert torch.equal(torch.cat([first, rest[:, -NEW + 3 :]], dim=1), whole)
    theirs = DynamicCache(config=official.config.get_text_config())
    official.model.rope_deltas = None
    begun = official.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=theirs)
    assert torch.equal(begun, first)


def test_the_whole_conversation_with_a_used_cache_is_read_once():
    """The official call takes ids from the start and skips what the cache holds; so does ours, or it says so."""
    ours, _ = twins("gqa2")
    inputs = both_inputs("image")
    whole, _ = generate_both(inputs)
    S = inputs["input_ids"].shape[1]
    cache = KVCache(ours.config.text_config, 1, S + NEW, dtype=torch.float32)
    first = ours.generate(**inputs, suppress_tokens=[], max_new_tokens=3, cache=cache)
    again = inputs | {"input_ids": first, "attention_mask": torch.ones_like(first)}
    again["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    try:
        found = ours.generate(**again, suppress_tokens=[], max_new_tokens=NEW - 3, cache=cache)
    except ValueError as error:
        assert "cache" in str(error)
    else:
        assert torch.equal(found, whole)


def test_a_cache_of_transformers_is_refused_with_a_sentence():
    ours, _ = twins("gqa2")
    with pytest.raises((ValueError, TypeError), match="(?i)cache") as caught:
        ours.generate(**both_inputs("text"), **FREE, past_key_values=DynamicCache())
    assert "attribute" not in str(caught.value)


@torch.no_grad()
def test_a_cache_has_the_official_shape():
    """Keys and values (layers, B, key-value heads, tokens, head_dim) of both caches agree."""
    ours, official = twins("gqa2")
    inputs = both_inputs("image")
    B, S = inputs["input_ids"].shape
    cache = KVCache(ours.config.text_config, B, S, dtype=torch.float32)
    ours(**inputs, cache=cache)
    theirs = official(**inputs, use_cache=True).past_key_values
    assert cache.length == theirs.get_seq_length() == S
    for layer, data in enumerate(cache.data):
        for mine, reference in zip(data, (theirs.layers[layer].keys, theirs.layers[layer].values)):
            assert relative_difference(mine[:, :, :S], reference) < SAME


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_generate_alone_needs_ids():
    """Officially a lone bos_token starts; Qwen2-VL has none, and says what is missing."""
    ours, _ = twins("gqa2")
    with pytest.raises((ValueError, TypeError), match="input_ids"):
        ours.generate(max_new_tokens=2)


def test_generating_leaves_no_gradient_and_no_mode_behind():
    for model in fresh_twins():
        model.train()
        found = model.generate(**both_inputs("text"), max_new_tokens=2)
        assert model.training and not found.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_are_not_changed():
    inputs = both_inputs("batch")
    kept = copy.deepcopy(inputs)
    for model in twins("gqa2"):
        model.generate(**inputs, **FREE, do_sample=False)
        assert all(torch.equal(inputs[name], kept[name]) for name in kept) and inputs.keys() == kept.keys()


@pytest.mark.parametrize("layout", ("text", "image"))
def test_embeddings_in_place_of_ids_start_an_answer(layout):
    """Officially the answer alone comes back then. Supported so, or refused by name."""
    ours, official = fresh_twins()
    inputs = both_inputs(layout)
    whole, _ = generate_both(inputs)
    with torch.no_grad():
        output = ours(**inputs, output_hidden_states=True)
    given = {"inputs_embeds": output.hidden_states[0], "attention_mask": inputs["attention_mask"]}
    if layout != "text":
        given["position_ids"] = output.position_ids
    try:
        found = ours.generate(**given, **FREE, do_sample=False)
    except (ValueError, TypeError) as error:
        assert "inputs_embeds" in str(error) or "input_ids" in str(error)
    else:
        assert torch.equal(found, whole[:, -NEW:])
    if layout == "text":
        assert torch.equal(official.generate(**given, **FREE, do_sample=False), whole[:, -NEW:])
