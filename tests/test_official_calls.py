"""The official ways to call a model, as people bring them along: inputs, outputs, generation, training, mistakes."""

import inspect
import math

import pytest
import torch
import transformers
from torch import nn

import weights_loader
from qwen2vl_io import official_model
from qwen2vl_mini import KVCache, Qwen2VLForConditionalGeneration, Qwen2VLModel, get_rope_index
from tests.small_models import small_config, small_model

SCENE = {"type": "image", "image": "assets/scene.png"}


@pytest.fixture(scope="module")
def tiny():
    return weights_loader.load("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def model():
    return small_model()


def asked(tiny, text: str = "Describe this image.", *media: dict) -> dict:
    """The inputs of one question, with the example scene unless other media are given."""
    content = [*(media or (SCENE,)), {"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    return tiny[1].apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)


def ids_of(*lengths: int, seed: int = 0) -> torch.Tensor:
    """Random words (1, sum of lengths)."""
    return torch.randint(3, 150, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))


# ── Given positions ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_positions_that_are_given_hold_for_the_whole_answer(tiny):
    inputs = asked(tiny)
    positions, _ = get_rope_index(tiny[0].config, inputs.input_ids, inputs.image_grid_thw)
    wanted = tiny[0].generate(**inputs, max_new_tokens=40)
    assert wanted.shape[1] - inputs.input_ids.shape[1] > 8
    text_too = torch.cat([torch.arange(positions.shape[2]).expand(1, 1, -1), positions])  # (4, B, S)
    for given in (positions, positions.int(), text_too):
        assert torch.equal(tiny[0].generate(**inputs, position_ids=given, max_new_tokens=40), wanted)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_positions_of_plain_text_are_the_same_on_all_axes(model, rows):
    """(B, S), also with three or four rows, where they could be mistaken for axes."""
    ids = torch.randint(3, 150, (rows, 7), generator=torch.Generator().manual_seed(rows))
    positions = torch.stack([torch.arange(7) + 2 * row for row in range(rows)])
    output = model(ids, position_ids=positions)
    assert torch.equal(output.position_ids, positions.expand(3, -1, -1))
    assert torch.equal(output.logits, model(ids, position_ids=positions.expand(3, -1, -1)).logits)
    assert torch.equal(model(ids, position_ids=torch.arange(7)[None]).logits, model(ids).logits)


def test_the_next_token_stands_behind_positions_that_were_given(model):
    ids = ids_of(6)
    first = model(ids, position_ids=torch.arange(10, 16)[None], use_cache=True)
    then = model(ids[:, :1], past_key_values=first.past_key_values)
    assert then.position_ids.flatten().tolist() == [16, 16, 16]


@pytest.mark.parametrize("there", [900, 1, -1])
def test_padding_stands_nowhere_whatever_is_said_of_it(model, there):
    ids = torch.randint(3, 150, (2, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = get_rope_index(model.config, ids, attention_mask=mask)[0].masked_fill(mask == 0, there)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=4)
    assert torch.equal(model.generate(ids, attention_mask=mask, position_ids=positions, max_new_tokens=4), wanted)


WRONG_POSITIONS = {
    "one axis": torch.zeros(1, 2, 5).long(),
    "two axes": torch.zeros(2, 2, 5).long(),
    "five axes": torch.zeros(5, 2, 5).long(),
    "too short": torch.zeros(3, 2, 4).long(),
    "too long": torch.zeros(2, 6).long(),
    "other rows": torch.zeros(3, 5).long(),
    "one row in three axes": torch.zeros(3, 1, 5).long(),
    "fractions": torch.zeros(3, 2, 5),
    "truth values": torch.zeros(3, 2, 5).bool(),
    "below zero": torch.full((3, 2, 5), -1),
    "a list": [[0, 1, 2, 3, 4]] * 2,
    "flat": torch.arange(5),
    "four dimensions": torch.zeros(1, 3, 2, 5).long(),
}


@pytest.mark.parametrize("positions", WRONG_POSITIONS.values(), ids=WRONG_POSITIONS)
def test_positions_that_do_not_fit_are_refused(model, positions):
    ids = torch.full((2, 5), 7)
    for call in (model, lambda *args, **named: model.generate(*args, max_new_tokens=2, **named)):
        with pytest.raises(ValueError, match="position_ids should"):
            call(ids, position_ids=positions)


# ── Caches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def loop(model, inputs: dict, steps: int, **first) -> list[int]:
    """The greedy loop that everybody writes."""
    output = model(**inputs, **first)
    ids = []
    for _ in range(steps):
        chosen = output.logits[:, -1].argmax(-1, keepdim=True)
        ids.append(int(chosen))
        output = model(input_ids=chosen, past_key_values=output.past_key_values)
    return ids


@pytest.mark.parametrize("how", ["no_grad", "with gradients", "training, use_cache"])
def test_the_plain_loop_writes_what_generate_writes(tiny, how):
    model, _ = tiny
    inputs = asked(tiny)
    wanted = model.generate(**inputs, max_new_tokens=10, suppress_tokens=[])[0, inputs.input_ids.shape[1] :].tolist()
    if how == "no_grad":
        with torch.no_grad():
            found = loop(model, inputs, len(wanted))
    elif how == "with gradients":
        found = loop(model, inputs, len(wanted))
    else:
        with torch.inference_mode():
            found = loop(model, inputs, len(wanted), use_cache=True)
    assert found == wanted


def test_a_cache_is_made_except_in_training_or_if_it_is_not_wanted(model):
    ids = ids_of(5)
    assert model(ids).past_key_values.length == 5
    assert model(ids, use_cache=False).past_key_values is model(ids, labels=ids).past_key_values is None
    with pytest.raises(ValueError, match="use_cache=False contradicts the cache"):
        model(ids, use_cache=False, cache=model(ids).past_key_values)
    model.train()
    try:
        assert model(ids).past_key_values is None and model(ids, use_cache=True).past_key_values.length == 5
        with torch.no_grad():
            assert model(ids).past_key_values.length == 5
    finally:
        model.eval()


def test_gradients_are_the_same_with_a_cache(model):
    ids = ids_of(9)
    grads = []
    for use_cache in (True, False):
        model.zero_grad()
        model(ids, labels=ids, use_cache=use_cache).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    for name, gradient in grads[0].items():
        assert torch.allclose(gradient, grads[1][name], rtol=0, atol=1e-5 * float(gradient.abs().max() + 1e-9)), name


def test_the_whole_conversation_beside_a_used_cache_is_read_once(tiny):
    """As officially: what the cache knows is left out, with its pictures, and what is new is read."""
    model, processor = tiny
    clip = {"type": "video", "video": "assets/clip.mp4"}
    chat = [{"role": "user", "content": [SCENE, {"type": "text", "text": "Describe this image."}]}]
    how = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    first = processor.apply_chat_template(chat, **how)
    cache = KVCache(model.config.text_config, 1, 400)
    said = model.generate(**first, cache=cache, max_new_tokens=40)
    text = processor.decode(said[0, first.input_ids.shape[1] :], skip_special_tokens=True)

    for media in ([], [SCENE], [clip, SCENE]):
        more = [*media, {"type": "text", "text": "How many objects are there?"}]
        whole = [*chat, {"role": "assistant", "content": text}, {"role": "user", "content": more}]
        inputs = processor.apply_chat_template(whole, **how)
        fresh = model.generate(**inputs, max_new_tokens=20)
        used = KVCache(model.config.text_config, 1, 400)
        model.generate(**first, cache=used, max_new_tokens=40)
        again = model.generate(**inputs, past_key_values=used, max_new_tokens=20)
        assert torch.equal(again[:, -4:], fresh[:, -4:]) and used.length == fresh.shape[1] - 1


def test_what_a_cache_holds_already_is_not_read_twice(tiny):
    model, _ = tiny
    inputs = asked(tiny)
    cache = model(**inputs).past_key_values
    with pytest.raises(ValueError, match="pass only what is new"):
        model(**inputs, cache=cache)
    with pytest.raises(ValueError, match="nothing new; pass only the new turn"):
        model.generate(**inputs, cache=cache)
    other = asked(tiny, "How many objects are there?")
    with pytest.raises(ValueError, match="other tokens after the first .* pass only the new turn"):
        model.generate(**other, cache=cache)
    assert cache.length == inputs.input_ids.shape[1]


def test_few_tokens_that_come_again_are_no_conversation_that_comes_again(model):
    """A token, or a word, may well be said twice."""
    cache = model(torch.tensor([[5, 6]])).past_key_values
    assert model(torch.tensor([[5, 6]]), cache=cache).past_key_values.length == 4


def test_a_padded_batch_that_comes_again_is_recognised(model):
    ids = torch.randint(3, 150, (2, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    cache = model(ids, attention_mask=mask).past_key_values
    longer = torch.cat([ids, ids[:, :2]], dim=1)
    fresh = model.generate(longer, attention_mask=torch.cat([mask, mask[:, -2:]], dim=1), max_new_tokens=3)
    again = model.generate(longer, attention_mask=torch.cat([mask, mask[:, -2:]], dim=1), cache=cache, max_new_tokens=3)
    assert torch.equal(again[:, -3:], fresh[:, -3:])


def test_a_whole_conversation_whose_beginning_was_edited_is_refused(tiny):
    model, _ = tiny
    inputs = asked(tiny)
    cache = model(**inputs).past_key_values
    edited = inputs.input_ids.clone()
    edited[0, 20] = 3
    with pytest.raises(ValueError, match="start a new cache"):
        model.generate(torch.cat([edited, edited[:, -3:]], dim=1), cache=cache)


FOREIGN_CACHES = {
    "DynamicCache": transformers.DynamicCache(),
    "a tuple": ((torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16)),),
    "a list": [],
    "a text": "cache",
    "true": True,
}


@pytest.mark.parametrize("cache", FOREIGN_CACHES.values(), ids=FOREIGN_CACHES)
def test_caches_of_others_are_refused(model, cache):
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="not a KVCache; take `output.past_key_values`"):
            call(ids_of(4), past_key_values=cache)


def test_a_cache_of_other_rows_is_refused(model):
    cache = model(ids_of(4)).past_key_values
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="The cache has 1 rows, but input_ids 2"):
            call(torch.full((2, 1), 9), cache=cache)


# ── Outputs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outputs_are_read_by_name_by_place_and_as_a_tuple(model):
    ids = ids_of(5)
    output = model(ids, labels=ids, output_hidden_states=True, return_dict=True, use_cache=True)
    assert output[0] is output["loss"] is output.loss and output[1] is output["logits"]
    assert output.keys() == ("loss", "logits", "past_key_values", "hidden_states")
    assert output.to_tuple()[1] is output.logits and len(output) == 4 and "logits" in output
    assert "attentions" not in output and output.get("attentions") is None and output.get("logits") is output.logits
    assert dict(output.items()).keys() == set(output.keys()) and output[1:] == output.to_tuple()[1:]
    loss, logits, *_ = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert Qwen2VLModel.forward(model, ids)[0].shape == (1, 5, model.config.text_config.hidden_size)
    with pytest.raises(KeyError, match="The output has no 'scores'; it has loss, logits"):
        output["scores"]


def test_the_order_is_the_official_one(model):
    """Of a tuple's entries, whichever are there."""
    ids = ids_of(5)
    fields = [name for name in transformers.modeling_outputs.CausalLMOutputWithPast.__dataclass_fields__]
    ours = list(model(ids, labels=ids, use_cache=True, output_hidden_states=True, output_attentions=True).keys())
    assert ours == [name for name in (name.replace("cache", "past_key_values") for name in fields) if name in ours]


# ── Inputs of the wrong shape or kind ───────────────────────────────────────────────────────────────────────────────

PIXELS, GRID = torch.zeros(16, 1176), torch.tensor([[1, 4, 4]])
IDS = torch.tensor([[7, 195, *[198] * 4, 196, 8]])  # a picture of four tokens between its markers
WRONG = {
    "ids of one dimension": ({"input_ids": IDS[0]}, "input_ids should be"),
    "ids of three dimensions": ({"input_ids": IDS[None]}, "input_ids should be"),
    "ids as a list": ({"input_ids": IDS.tolist()}, "input_ids should be"),
    "ids as text": ({"input_ids": "Hello"}, "input_ids should be"),
    "ids as floats": ({"input_ids": IDS.float()}, "input_ids should be"),
    "no ids": ({"input_ids": None}, "needs input_ids"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "no token"),
    "no rows": ({"input_ids": IDS[:0]}, "no token"),
    "ids beyond the vocabulary": ({"input_ids": IDS + 100}, "the vocabulary has 200"),
    "ids below zero": ({"input_ids": IDS - 100}, "the vocabulary has 200"),
    "pixels of three dimensions": ({"pixel_values": PIXELS[None]}, "pixel_values should be"),
    "pixels of one dimension": ({"pixel_values": PIXELS[0]}, "pixel_values should be"),
    "pixels of a picture": ({"pixel_values": torch.zeros(1, 3, 56, 56)}, "pixel_values should be"),
    "pixels of other patches": ({"pixel_values": torch.zeros(16, 588)}, "pixel_values should be"),
    "pixels as a list": ({"pixel_values": [PIXELS]}, "pixel_values should be"),
    "pixels without a grid": ({"image_grid_thw": None}, "describes 0"),
    "a grid without pixels": ({"pixel_values": None}, "have 0 rows"),
    "a grid as a list": ({"image_grid_thw": [[1, 4, 4]]}, "image_grid_thw should be"),
    "a grid as a tuple": ({"image_grid_thw": (1, 4, 4)}, "image_grid_thw should be"),
    "a grid as floats": ({"image_grid_thw": GRID.float()}, "image_grid_thw should be"),
    "a grid of one dimension": ({"image_grid_thw": GRID[0]}, "image_grid_thw should be"),
    "a grid of two numbers": ({"image_grid_thw": GRID[:, 1:]}, "image_grid_thw should be"),
    "a grid of zeros": ({"image_grid_thw": GRID * 0}, "should be above 0"),
    "an odd grid": ({"image_grid_thw": torch.tensor([[1, 3, 5]])}, "rows and columns times 2"),
    "a negative grid": ({"image_grid_thw": torch.tensor([[1, -4, -4]])}, "should be above 0"),
    "a mask of another length": ({"attention_mask": torch.ones(1, 5)}, "attention_mask should be"),
    "a mask of other rows": ({"attention_mask": torch.ones(2, 8)}, "attention_mask should be"),
    "a mask of four dimensions": ({"attention_mask": torch.ones(1, 1, 8, 8)}, "attention_mask should be"),
    "a mask as a list": ({"attention_mask": [[1] * 8]}, "attention_mask should be"),
    "embeddings of other channels": ({"inputs_embeds": torch.zeros(1, 8, 3)}, "inputs_embeds should be"),
    "embeddings of another length": ({"inputs_embeds": torch.zeros(1, 5, 64)}, "do not fit"),
    "embeddings of whole numbers": ({"inputs_embeds": torch.zeros(1, 8, 64).long()}, "inputs_embeds should be"),
    "pictures beside embeddings": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 8, 64)},
        "need input_ids beside them",
    ),
    "an unknown name": ({"pixel_value": PIXELS}, "did you mean pixel_values"),
    "another unknown name": ({"num_items_in_batch": 3}, "forward() has no 'num_items_in_batch'"),
}


@pytest.mark.parametrize("changes, words", WRONG.values(), ids=WRONG)
def test_wrong_inputs_end_in_one_sentence(model, changes, words):
    inputs = {"input_ids": IDS, "pixel_values": PIXELS, "image_grid_thw": GRID} | changes
    with pytest.raises(ValueError) as refusal:
        model(**inputs)
    assert words in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


WRONG_LABELS = {
    "another length": IDS[:, 1:],
    "other rows": IDS.repeat(2, 1),
    "one dimension": IDS[0],
    "floats": IDS.float(),
    "a list": IDS.tolist(),
}


@pytest.mark.parametrize("labels", WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_do_not_fit_are_refused(model, labels):
    with pytest.raises(ValueError, match="labels should be whole numbers"):
        model(IDS[:, :8], pixel_values=PIXELS, image_grid_thw=GRID, labels=labels)
    with pytest.raises(ValueError, match="labels need the logits of all places"):
        model(ids_of(8), labels=ids_of(8), logits_to_keep=1)


def test_what_has_no_effect_is_taken(model):
    ids = ids_of(6)
    extra = {"mm_token_type_ids": torch.zeros_like(ids), "cache_position": torch.arange(6), "second_per_grid_ts": None}
    assert torch.equal(model(ids, **extra).logits, model(ids).logits)
    assert torch.equal(model(ids, None, None).logits, model(ids, attention_mask=torch.ones_like(ids)).logits)
    with pytest.raises(ValueError, match="by place; name the other inputs"):
        model(ids, None, None, PIXELS)


def test_pixels_of_another_dtype_are_right(model):
    inputs = {"input_ids": IDS, "image_grid_thw": GRID}
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(model(pixel_values=pixels, **inputs).logits, model(pixel_values=pixels.float(), **inputs).logits)


# ── Embeddings in place of ids ──────────────────────────────────────────────────────────────────────────────────────


def test_embeddings_of_words_give_the_same_as_their_ids(model):
    ids = ids_of(6)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    cache = model(inputs_embeds=embeddings).past_key_values
    assert torch.equal(
        model(ids[:, :1], cache=cache).logits, model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1:]
    ) or (model(ids[:, :1], cache=model(ids).past_key_values).position_ids.max() == 6)


def test_embeddings_beside_ids_let_pictures_stand_where_the_ids_say(model):
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    media = {"pixel_values": pixels, "image_grid_thw": GRID}
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
    output = model(IDS, inputs_embeds=embeddings, **media)
    assert torch.equal(output.logits, model(IDS, **media).logits)
    output.logits.sum().backward()
    is_picture = IDS[0] == model.config.image_token_id
    assert (embeddings.grad[0, is_picture] == 0).all() and (embeddings.grad[0, ~is_picture] != 0).any()
    model.zero_grad()


# ── generate ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Collector:
    """A streamer, as transformers' TextStreamer is one."""

    def __init__(self):
        self.put_ids = []
        self.ended = False

    def put(self, ids):
        self.put_ids.append(ids.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_is_told_the_prompt_each_id_and_the_end(model):
    streamer = Collector()
    ids = ids_of(4)
    output = model.generate(ids, max_new_tokens=3, streamer=streamer, suppress_tokens=[])
    assert streamer.put_ids == [ids.tolist(), *([i] for i in output[0, 4:].tolist())] and streamer.ended
    with pytest.raises(ValueError, match="A streamer serves one prompt, but input_ids have 2 rows"):
        model.generate(ids.repeat(2, 1), streamer=streamer)
    with pytest.raises(ValueError, match="streamer should have put"):
        model.generate(ids, streamer="stdout")


def test_the_official_streamer_prints_the_answer(tiny, capsys):
    official = transformers.AutoTokenizer.from_pretrained(weights_loader.find_checkpoint("tiny"))
    streamer = transformers.TextStreamer(official, skip_prompt=True, skip_special_tokens=True)
    inputs = asked(tiny)
    output = tiny[0].generate(**inputs, max_new_tokens=40, streamer=streamer)
    text = tiny[1].decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == text.strip()


def test_stream_serves_one_prompt(tiny):
    rows = torch.full((2, 4), 9)
    with pytest.raises(ValueError, match=r"stream\(\) serves one prompt, but input_ids have 2 rows"):
        tiny[0].stream(tiny[1].tokenizer, rows)


class Settings:
    """Like a GenerationConfig: attributes, most of them None."""

    def __init__(self, **values):
        self.early_stopping = None
        self._private = 3
        vars(self).update(values)


@pytest.mark.parametrize("kind", [transformers.GenerationConfig, Settings, dict])
def test_a_generation_config_counts_by_its_values_and_the_call_wins(model, kind):
    ids = ids_of(4)
    config = kind(max_new_tokens=3, do_sample=True, temperature=1.5, top_k=40, top_p=1.0, repetition_penalty=1.1)
    named = {"do_sample": True, "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.1, "suppress_tokens": []}
    wanted = model.generate(ids, max_new_tokens=3, seed=1, **named)
    assert torch.equal(model.generate(ids, generation_config=config, seed=1, suppress_tokens=[]), wanted)
    assert model.generate(ids, generation_config=config, max_new_tokens=5, seed=1).shape == (1, 9)
    model = small_model()
    model.generation_config.max_new_tokens = 2
    assert model.generate(ids, suppress_tokens=[]).shape == (1, 6)
    with pytest.raises(ValueError, match="num_beams=4.* is not supported"):
        model.generate(ids, generation_config=kind(num_beams=4))


def test_every_official_setting_has_a_neutral_value_or_a_way_out(model):
    ids = ids_of(4)
    wanted = model.generate(ids, max_new_tokens=2)
    names = {*transformers.GenerationConfig().to_dict()} - {"max_new_tokens"}
    assert torch.equal(model.generate(ids, max_new_tokens=2, **dict.fromkeys(names)), wanted)  # None is not there
    neutral = {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
    neutral |= {"typical_p": 1.0, "num_return_sequences": 1, "use_cache": True, "output_scores": False}
    neutral |= {"return_dict_in_generate": False, "logits_processor": [], "stopping_criteria": [], "synced_gpus": False}
    assert torch.equal(model.generate(ids, max_new_tokens=2, **neutral), wanted)


REFUSED = {
    "num_beams": 4,
    "num_return_sequences": 2,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 3,
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
    "stop_strings": ["."],
    "bad_words_ids": [[3]],
    "typical_p": 0.5,
    "min_p": 0.1,
    "guidance_scale": 2.0,
    "prompt_lookup_num_tokens": 3,
    "assistant_model": nn.Linear(1, 1),
    "logits_processor": [print],
    "stopping_criteria": [print],
    "custom_generate": "x",
    "tokenizer": object(),
    "max_length": 3,
    "temperatur": 0.5,
    "beam_width": 3,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_generate_does_not_have_is_refused_by_name_with_the_way_out(model, name):
    with pytest.raises(ValueError) as refusal:
        model.generate(ids_of(4), **{name: REFUSED[name]})
    text = str(refusal.value)
    assert name in text and text.endswith((".", "?")) and (": " in text or "; " in text)


def test_max_length_counts_the_prompt_and_inputs_is_another_name(model):
    ids = ids_of(4)
    assert model.generate(ids, max_length=7, suppress_tokens=[]).shape == (1, 7)
    assert torch.equal(model.generate(inputs=ids, max_new_tokens=3), model.generate(ids, max_new_tokens=3))
    for nothing in ({}, {"inputs_embeds": torch.zeros(1, 4, 64)}):
        with pytest.raises(ValueError, match="generate\\(\\) needs input_ids"):
            model.generate(**nothing)


def test_a_row_that_has_ended_goes_on_with_the_pad_token_asked_for(model):
    ids = torch.cat([ids_of(6, seed=1), ids_of(6, seed=2)])
    first = model.generate(ids, max_new_tokens=1, suppress_tokens=[])[0, -1].item()
    output = model.generate(ids, max_new_tokens=4, eos_token_id=first, pad_token_id=77, suppress_tokens=[])
    assert output[0, 7:].tolist() == [77] * (output.shape[1] - 7) and output.shape[1] > 7


# ── Training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_random_weights_are_the_officials_and_the_first_loss_is_that_of_a_guess():
    torch.manual_seed(0)
    config = small_config(vocab_size=400, layers=3)
    model = Qwen2VLForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "norm" in name or "ln_q" in name:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name
        elif weight.numel() > 2000:
            assert 0.9 < weight.std().item() / 0.02 < 1.1, name  # 2000 numbers: the spread of their spread is 1.6 %
    ids = torch.randint(3, 300, (4, 30))
    assert abs(model(ids, labels=ids).loss.item() - math.log(400)) < 0.5


def test_forward_names_all_that_it_takes():
    """HF's Trainer sends `num_items_in_batch` to whoever has `**kwargs`, and drops columns that are not named."""
    parameters = inspect.signature(Qwen2VLForConditionalGeneration.forward).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    wanted = "input_ids attention_mask position_ids pixel_values pixel_values_videos image_grid_thw video_grid_thw"
    assert {*wanted.split(), "labels", "inputs_embeds", "logits_to_keep"} <= parameters.keys()


def gradients(model, ids, media) -> dict:
    model.zero_grad()
    model(ids, labels=ids, **media).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_checkpointing_gives_the_same_gradients_and_runs_layers_again():
    model = small_model().train()
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    media = {"pixel_values": pixels, "image_grid_thw": GRID}
    wanted = gradients(model, IDS, media)
    runs = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    found = gradients(model, IDS, media)
    assert len(runs) == 2 and found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], rtol=0, atol=1e-5 * float(gradient.abs().max() + 1e-9)), name
    assert set(model.state_dict()) == set(small_model().state_dict())

    runs.clear()
    with torch.no_grad():
        model(IDS, **media)
    assert len(runs) == 1 and model.generate(ids_of(4), max_new_tokens=2).shape == (1, 6)
    model.gradient_checkpointing_disable()
    runs.clear()
    gradients(model, IDS, media)
    assert len(runs) == 1 and not model.is_gradient_checkpointing


def test_inputs_can_be_made_to_need_gradients():
    model = small_model().requires_grad_(False)
    model.enable_input_require_grads()
    model.enable_input_require_grads()  # a second time changes nothing
    assert model(ids_of(4)).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(ids_of(4)).logits.requires_grad


def test_the_official_trainer_trains(tmp_path):
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = small_model()
    rows = [{"input_ids": ids_of(8, seed=i)[0], "labels": ids_of(8, seed=i)[0]} for i in range(8)]
    before = model(rows[0]["input_ids"][None], labels=rows[0]["labels"][None]).loss.item()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        gradient_checkpointing=True,
        disable_tqdm=True,
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert model.eval()(rows[0]["input_ids"][None], labels=rows[0]["labels"][None]).loss.item() < before - 0.5


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_peft_wraps_trains_and_merges(task):
    peft = pytest.importorskip("peft")
    model = small_model()
    ids = ids_of(8)
    wanted = model(ids).logits
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type=task))
    assert torch.allclose(wrapped(input_ids=ids).logits, wanted, atol=1e-5)
    wrapped(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.requires_grad for p in wrapped.parameters())
    assert wrapped.generate(input_ids=ids, max_new_tokens=2).shape == (1, 10)
    assert type(wrapped.merge_and_unload()) is Qwen2VLForConditionalGeneration


# ── Names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_by_their_official_names(model):
    assert model.get_input_embeddings() is model.model.embed_tokens and model.language_model is model.model
    assert model.get_output_embeddings() is model.lm_head
    assert Qwen2VLModel(small_config()).get_output_embeddings() is None
    counted = sum(p.numel() for p in model.parameters())
    embedding = model.model.embed_tokens.weight
    assert model.num_parameters() == counted == model.num_parameters(exclude_embeddings=True) + embedding.numel()
    assert model.get_memory_footprint() == 4 * counted
    ids = torch.full((1, 4), 9)
    positions, deltas = model.get_rope_index(ids, mm_token_type_ids=torch.zeros_like(ids), attention_mask=None)
    assert torch.equal(positions, get_rope_index(model.config, ids)[0]) and deltas.shape == (1, 1)


def test_a_picture_has_its_positions_by_either_name(model):
    wanted = get_rope_index(model.config, IDS, GRID)
    assert model.get_decoder() is model.language_model and model.get_encoder() is model.visual
    for found in (model.get_rope_index(IDS, image_grid_thw=GRID), model.get_rope_index(IDS, None, GRID)):
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    with pytest.raises(ValueError, match="give the grids by name"):
        model.get_rope_index(IDS, GRID)


def test_features_have_the_official_keywords(model):
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    images = model.get_image_features(pixel_values=pixels, image_grid_thw=GRID)
    videos = model.get_video_features(pixel_values_videos=pixels, video_grid_thw=GRID)
    assert len(images) == len(videos) == 1 and torch.equal(images[0], videos[0])
    for wrong in (pixels[None], pixels[:8], pixels[:, :600], None):
        for call in (model.get_image_features, model.get_video_features):
            with pytest.raises(ValueError, match="pixel"):
                call(wrong, GRID)
    with pytest.raises(ValueError, match="image_grid_thw should be"):
        model.get_image_features(pixels, GRID[0])


def test_another_embedding_takes_the_tied_matrix_along(model):
    model = small_model()
    embedding = nn.Embedding(200, 64)
    model.set_input_embeddings(embedding)
    assert model.lm_head.weight is embedding.weight is model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="An embedding of 50×64 does not fit: this checkpoint's has 200×64"):
        model.set_input_embeddings(nn.Embedding(50, 64))
    assert model.resize_token_embeddings() is model.resize_token_embeddings(200) is embedding
    with pytest.raises(ValueError, match="The vocabulary of 200 ids is fixed"):
        model.resize_token_embeddings(210)
    model.lm_head = nn.Linear(64, 200, bias=False)
    model.tie_weights()
    assert model.lm_head.weight is embedding.weight


def test_every_official_name_is_there_or_says_what_to_do(model):
    official = transformers.Qwen2VLForConditionalGeneration
    names = [name for name in dir(official) if not name.startswith("_") and not hasattr(nn.Module, name)]
    assert len(names) > 80
    for name in names:
        try:
            getattr(model, name)
        except AttributeError as error:
            assert name in str(error) and ": " in str(error) and not hasattr(model, name), name
    with pytest.raises(AttributeError, match="did you mean lm_head"):
        model.lm_heads  # noqa: B018


def test_hidden_names_stay_pythons_own(model):
    """torch, PEFT and copy probe for names; they must not be there, and must be quick to be found absent."""
    assert not hasattr(model, "_hf_peft_config_loaded") and not hasattr(model, "__deepcopy__")
    assert official_model.ABSENT.keys().isdisjoint(dir(type(model)))
