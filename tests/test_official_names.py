"""Official names of configurations, tokenizer and processors: they mean the same here, or say what to do instead."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import qwen2vl_mini
from qwen2vl_io.generation_config import GenerationConfig
from qwen2vl_io.official_names import AbsentName
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLTextConfig,
    Qwen2VLTokenizer,
    Qwen2VLVisionConfig,
)
from tests.small_models import small_config, small_model

TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def official():
    processor = transformers.AutoProcessor.from_pretrained(TINY)
    processor.tokenizer.padding_side = "left"
    return processor


@pytest.fixture
def processor() -> Qwen2VLProcessor:
    """A new one for each test, since the tests change it."""
    return Qwen2VLProcessor.from_pretrained("tiny")


@pytest.fixture(scope="module")
def official_config():
    return transformers.AutoConfig.from_pretrained(TINY)


# ── Every public name of the official classes ───────────────────────────────────────────────────────────────────────


def pairs(official, processor, official_config) -> list[tuple]:
    config = Qwen2VLConfig.from_pretrained("tiny")
    return [
        (official, processor),
        (official.tokenizer, processor.tokenizer),
        (official.image_processor, processor.image_processor),
        (official.video_processor, processor.video_processor),
        (official_config, config),
        (official_config.text_config, config.text_config),
        (official_config.vision_config, config.vision_config),
        (transformers.GenerationConfig(), GenerationConfig()),
    ]


def test_every_official_name_is_there_or_says_what_to_do(official, processor, official_config):
    for theirs, ours in pairs(official, processor, official_config):
        for name in dir(theirs):
            if name.startswith("_") or hasattr(ours, name):
                continue
            with pytest.raises(AttributeError) as caught:
                getattr(ours, name)
            sentence = str(caught.value)
            assert name in sentence and sentence.endswith((".", "?")) and "\n" not in sentence and " " in sentence
            assert "has no" in sentence, sentence


def test_absent_names_leave_python_as_it_is(processor):
    config = small_config()
    for thing in (processor, processor.tokenizer, processor.image_processor, config, config.text_config):
        assert not hasattr(thing, "nonsense") and getattr(thing, "nonsense", 3) == 3
        assert not hasattr(thing, "__array__") and not hasattr(thing, "_repr_html_")
        copied = copy.deepcopy(thing)
        assert type(copied) is type(thing)
    for part in (config, processor.image_processor, GenerationConfig(top_k=3)):
        assert pickle.loads(pickle.dumps(part)) == part


@pytest.mark.parametrize(
    "name, words",
    [
        ("tokeniser", "did you mean tokenizer?"),
        ("image_procesor", "did you mean image_processor?"),
        ("push_to_hub", "hf upload"),
        ("replace_image_token", "expand_placeholders"),
        ("register_for_auto_class", "transformers' own machinery"),
        ("xyzzy", "no name of ours"),
    ],
)
def test_what_an_absent_name_says(processor, name, words):
    with pytest.raises(AbsentName, match=words.replace("?", r"\?")):
        getattr(processor, name)


# ── Configurations ──────────────────────────────────────────────────────────────────────────────────────────────────

SIZES = {
    **{"vocab_size": 200, "hidden_size": 64, "intermediate_size": 136, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096},
    "rms_norm_eps": 1e-6,
}
ROPE = {"rope_theta": 1e6, "mrope_section": [2, 3, 3]}
TOWER = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 4, "hidden_size": 64}
IDS = {"image_token_id": 198, "video_token_id": 199, "vision_start_token_id": 195, "vision_end_token_id": 196}
WAYS = {
    "halves as dicts": {"text_config": SIZES | {"rope_parameters": ROPE | {"rope_type": "default"}}},
    "older RoPE": {"text_config": SIZES | {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", **ROPE}}},
    "flat": SIZES | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1e6},
    "with what changes nothing": {
        "text_config": SIZES | {"rope_parameters": ROPE, "hidden_act": "silu", "attention_dropout": 0.0},
        **{"use_cache": True, "architectures": ["Qwen2VLForConditionalGeneration"], "torch_dtype": "float32"},
    },
    "an object and a flat value": {
        "text_config": Qwen2VLTextConfig(**SIZES | {"vocab_size": 999, "rope_parameters": ROPE}),
        "vocab_size": 200,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_dicts_and_flat_keywords_as_the_official_class_takes_them(way):
    config = Qwen2VLConfig(**WAYS[way], vision_config=TOWER, tie_word_embeddings=True, **IDS)
    assert config == small_config()
    assert isinstance(config.text_config, Qwen2VLTextConfig) and isinstance(config.vision_config, Qwen2VLVisionConfig)
    assert Qwen2VLForConditionalGeneration(config).lm_head.weight.shape == (200, 64)
    theirs = transformers.Qwen2VLConfig.from_dict(config.to_dict()).text_config
    assert (theirs.hidden_size, theirs.num_hidden_layers) == (64, 2)


def test_the_official_to_dict_makes_the_same_config(official_config):
    """Through the constructor, as one dict, and as JSON."""
    ours = Qwen2VLConfig.from_pretrained("tiny")
    content = official_config.to_dict()
    assert Qwen2VLConfig(**content) == Qwen2VLConfig.from_dict(content) == ours
    assert Qwen2VLConfig.from_dict(official_config) == ours  # its object, and its halves
    halves = {"text_config": official_config.text_config, "vision_config": official_config.vision_config}
    assert Qwen2VLConfig(**halves).text_config.hidden_size == 192
    assert Qwen2VLConfig.from_dict(json.loads(ours.to_json_string())) == ours
    text = Qwen2VLTextConfig(**content["text_config"])
    assert text == Qwen2VLConfig(text_config=content["text_config"], vision_config=content["vision_config"]).text_config


RELEASED = {  # the config.json of the 2B model, key by key
    **{"architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643},
    **{"eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653},
    **{"vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu"},
    **{"hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960, "max_position_embeddings": 32768},
    **{"max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 12, "num_hidden_layers": 28},
    **{"num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768},
    **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True},
    **{"use_sliding_window": False, "vocab_size": 151936},
    "vision_config": {
        **{"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536},
        **{"patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2},
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}


def test_a_released_config_keeps_every_key():
    """Read as a file, and spread into the constructor; written, all keys have their values."""
    read = Qwen2VLConfig.from_dict(RELEASED)
    made = Qwen2VLConfig(**RELEASED)
    assert read == made == Qwen2VLConfig()
    for config in (read, made):
        written = config.to_dict()
        for name, value in RELEASED.items():
            if name == "vision_config":
                assert value.items() <= written[name].items()
            else:
                assert written[name] == value, name


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Qwen2VLConfig(hiden_size=64), "no 'hiden_size'; did you mean hidden_size"),
        (lambda: Qwen2VLConfig(text_config={"num_layers": 3}), "did you mean num_hidden_layers"),
        (lambda: Qwen2VLConfig(text_config=5), "a dict or a Qwen2VLTextConfig, not a int"),
        (lambda: Qwen2VLConfig(vision_config=[1]), "a dict or a Qwen2VLVisionConfig, not a list"),
        (lambda: Qwen2VLConfig(text_config={"vocab_size": 3}, vocab_size=4), "say it once"),
        (lambda: Qwen2VLConfig(text_config={"hidden_size": 60, "num_attention_heads": 4}), "not a whole number|add up"),
        (lambda: Qwen2VLConfig(image_token_id="x"), "image_token_id = 'x'"),
        (lambda: Qwen2VLTextConfig(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (lambda: Qwen2VLTextConfig(use_sliding_window=True), "use_sliding_window = True"),
        (lambda: Qwen2VLTextConfig(attention_dropout=0.1), "no dropout"),
        (lambda: Qwen2VLTextConfig(hidden_size=-1), "hidden_size = -1"),
        (lambda: Qwen2VLTextConfig(rope_parameters={"rope_type": "yarn"}), "scaled RoPE"),
        (lambda: Qwen2VLTextConfig(rope_parameters=[1]), "JSON object"),
        (lambda: Qwen2VLVisionConfig(in_channels=4), "in_channels = 4"),
        (lambda: Qwen2VLVisionConfig(hidden_act="silu"), "hidden_act = 'silu'"),
        (lambda: Qwen2VLVisionConfig(rope_parameters={"rope_theta": 5}), "only a base of 10000"),
        (lambda: Qwen2VLVisionConfig(dept=4), "did you mean depth"),
        (lambda: Qwen2VLConfig.from_dict(5), "takes the content of a config.json, not 5"),
        (lambda: Qwen2VLTextConfig.from_dict([1]), "takes the content of a config.json"),
    ],
)
def test_configurations_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_dict_as_half_was_silently_kept_before():
    """`Qwen2VLConfig(text_config={…})` built a config whose half was a dict, and failed far from the cause."""
    config = Qwen2VLConfig(text_config=SIZES | {"rope_parameters": ROPE}, vision_config=TOWER)
    assert config.text_config.head_dim == 16
    assert Qwen2VLModel(config).model.embed_tokens.weight.shape == (200, 64)


def test_names_that_people_read(official_config):
    config = Qwen2VLConfig.from_pretrained("tiny")
    text, vision = official_config.text_config, official_config.vision_config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(config, name) == getattr(config.text_config, name) == getattr(text, name), name
    for name in ("model_type", "image_token_id", "architectures", "is_encoder_decoder", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(official_config, name), name
    for name in ("num_hidden_layers", "num_attention_heads", "in_channels", "in_chans", "hidden_act", "model_type"):
        assert getattr(config.vision_config, name) == getattr(vision, name), name
    for name in ("hidden_act", "use_cache", "attention_dropout", "layer_types", "model_type", "use_sliding_window"):
        assert getattr(config.text_config, name) == getattr(text, name), name
    assert config.text_config.rope_parameters["mrope_section"] == text.rope_parameters["mrope_section"]
    assert config.get_text_config() is config.get_text_config(decoder=True) is config.text_config
    assert config.torch_dtype is config.dtype is torch.bfloat16
    assert json.loads(config.to_json_string()) == config.to_dict() == config.to_diff_dict()


def test_what_is_set_on_a_config_counts_or_is_refused():
    config = small_config()
    config.vocab_size = 300
    config.num_hidden_layers = 1
    assert (config.text_config.vocab_size, config.text_config.num_hidden_layers, config.vocab_size) == (300, 1, 300)
    assert Qwen2VLForConditionalGeneration(config).lm_head.weight.shape[0] == 300
    config.use_cache = False  # what training scripts set; nothing is computed differently
    config.pad_token_id = 3
    assert config.use_cache is False and config.to_dict()["pad_token_id"] == 3
    config.vision_config.num_hidden_layers = 1
    assert config.vision_config.depth == 1
    for name, value, words in (
        ("num_layers", 3, "did you mean num_hidden_layers"),
        ("hidden_size", "wide", "hidden_size = 'wide'"),
        ("xyzzy", 1, "known are"),
    ):
        with pytest.raises(ValueError, match=words):
            setattr(config, name, value)
    with pytest.raises(ValueError, match="hidden_act = 'gelu'"):
        config.text_config.hidden_act = "gelu"


def test_a_config_with_a_dtype_is_written(tmp_path):
    config = Qwen2VLConfig(torch_dtype=torch.float16)
    assert config.torch_dtype is config.dtype is torch.float16
    assert config.to_dict()["torch_dtype"] == "float16"
    config.save_pretrained(tmp_path)
    assert Qwen2VLConfig.from_pretrained(tmp_path).dtype is torch.float16
    config.pad_token_id = object()
    with pytest.raises(ValueError, match="is no JSON"):
        config.save_pretrained(tmp_path)
    text = config.text_config
    assert Qwen2VLTextConfig(**text.to_dict()) == Qwen2VLTextConfig.from_dict(text.to_diff_dict()) == text
    theirs = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLTextConfig(**text.to_dict())
    assert theirs.rope_parameters["mrope_section"] == text.mrope_section


@pytest.mark.parametrize("where", ["tiny", TINY, str(TINY / "config.json")])
def test_a_config_from_anywhere(where):
    config = Qwen2VLConfig.from_pretrained(where, trust_remote_code=True, revision="main", use_cache=False)
    assert config.hidden_size == 192 and config.use_cache is False
    with pytest.raises(ValueError, match="did you mean num_hidden_layers"):
        Qwen2VLConfig.from_pretrained(where, num_hiden_layers=3)


# ── generation_config ───────────────────────────────────────────────────────────────────────────────────────────────


def test_generation_config_is_a_dict_that_has_attributes():
    model = small_model()
    config = model.generation_config
    assert config == {} and config.top_k is None and "top_k" not in config
    config.top_k = 50
    config["temperature"] = 0.5
    assert config["top_k"] == 50 and config.temperature == 0.5 and config.get("top_p") is None
    config.top_k = None
    assert config == {"temperature": 0.5} == config.to_dict() and "top_k" not in config
    config.update(do_sample=True, eos_token_id=[3, 4])
    assert copy.deepcopy(config) == config == copy.deepcopy(model).generation_config
    del config.do_sample
    assert "do_sample" not in config and json.loads(config.to_json_string()) == config


def test_a_generation_config_that_is_set_takes_effect():
    """A dict, and transformers' own object: the ids are those of the keywords."""
    model = small_model()
    ids = torch.arange(5)[None]
    sampled = {"do_sample": True, "temperature": 3.0, "top_k": 0}
    expected = model.generate(ids, max_new_tokens=8, seed=1, **sampled)
    greedy = model.generate(ids, max_new_tokens=8)
    assert not torch.equal(expected, greedy)
    for settings in (sampled, transformers.GenerationConfig(**sampled), GenerationConfig(sampled)):
        model.generation_config = settings
        assert torch.equal(model.generate(ids, max_new_tokens=8, seed=1), expected)
        assert model.generation_config.temperature == 3.0
    model.generation_config.do_sample = False
    assert torch.equal(model.generate(ids, max_new_tokens=8), greedy)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("num_beams", 4, "num_beams = 4 is not supported: .* without beams"),
        ("temprature", 0.5, "no 'temprature'; did you mean temperature"),
        ("temperature", "hot", "temperature = 'hot'"),
        ("top_k", -1, "top_k = -1"),
        ("eos_token_id", ["x"], "eos_token_id"),
        ("do_sample", "yes", "do_sample = 'yes' should be true or false"),
        ("no_repeat_ngram_size", 3, "use repetition_penalty"),
        ("stop_strings", ["."], "stream"),
    ],
)
def test_generation_settings_that_would_change_nothing_are_refused(name, value, words):
    config = GenerationConfig()
    for change in (
        lambda: setattr(config, name, value),
        lambda: config.update({name: value}),
        lambda: config.setdefault(name, value),
        lambda: GenerationConfig({name: value}),
    ):
        with pytest.raises(ValueError, match=words):
            change()
    assert config == {}
    for neutral in ({"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "max_length": 20}, {name: None}):
        config.update(neutral)


def test_what_a_file_asks_for_and_nothing_follows_is_said(tmp_path, caplog):
    content = {"num_beams": 4, "max_new_tokens": 9, "top_k": 3, "length_penalty": 1.0, "temperature": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    config = GenerationConfig.from_file(tmp_path / "generation_config.json")
    [record] = caplog.records
    assert "num_beams = 4 is not followed" in record.message
    assert config == {name: value for name, value in content.items() if value is not None}  # and it is kept
    for wrong in (5, "top_k=3", [1]):
        with pytest.raises(ValueError, match="a dict or an object"):
            small_model().generation_config = wrong


# ── The tokenizer ───────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = ("A red circle.", ["A", "Where is the <|im_start|>green star?\n", ""], "日本 😀 <|image_pad|>")


def test_special_tokens_and_sizes(processor, official):
    ours, theirs = processor.tokenizer, official.tokenizer
    for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "bos_token", "bos_token_id", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.get_added_vocab() == theirs.get_added_vocab() and ours.is_fast
    assert {i: t.content for i, t in ours.added_tokens_decoder.items()} == {
        i: t.content for i, t in theirs.added_tokens_decoder.items()
    }
    assert "<|im_end|>" in ours and "no such token" not in ours and bool(ours)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "longest", "add_special_tokens": False},
        {"truncation": True, "max_length": 3},
        {"padding": "max_length", "max_length": 30, "truncation": True, "return_tensors": "pt"},
        {"return_attention_mask": False},
    ],
)
def test_the_call_is_the_official_one(processor, official, text, options):
    found, expected = processor.tokenizer(text, **options), official.tokenizer(text, **options)
    assert found.keys() == expected.keys()
    for name in expected:
        if options.get("return_tensors"):
            assert torch.equal(found[name], expected[name])
            assert torch.equal(found.to("cpu").input_ids, found.input_ids)
        else:
            assert found[name] == expected[name]
    assert found.input_ids is found["input_ids"]


@pytest.mark.parametrize("text", ("A red circle.", "Où est <|im_end|>?"))
def test_tokens_and_ids(processor, official, text):
    ours, theirs = processor.tokenizer, official.tokenizer
    tokens = ours.tokenize(text)
    assert tokens == theirs.tokenize(text)
    ids = ours.convert_tokens_to_ids(tokens)
    assert ids == theirs.convert_tokens_to_ids(tokens) == ours(text).input_ids
    assert ours.convert_ids_to_tokens(ids) == tokens and ours.convert_ids_to_tokens(ids[0]) == tokens[0]
    assert ours.convert_ids_to_tokens(torch.tensor(ids)) == tokens
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens) == text
    assert ours.convert_tokens_to_ids("<|im_end|>") == ours.eos_token_id == 500
    assert ours.convert_tokens_to_ids("no such token") is None
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == [int(i >= 498) for i in ids]


def test_encode_with_the_official_keywords(processor, official, caplog):
    for text in ("A red circle.", "日本 😀"):
        ids = processor.tokenizer.encode(text)
        assert ids == official.tokenizer.encode(text) == processor.tokenizer.encode(text, add_special_tokens=True)
        tensor = processor.tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        assert torch.equal(tensor, official.tokenizer.encode(text, return_tensors="pt", add_special_tokens=False))
    assert (
        processor.tokenizer.encode("A red circle", truncation=True, max_length=2)
        == ids[:0] + [32, *ids[:0]] + (processor.tokenizer.encode("A red circle")[1:2])
    )
    plain = processor.tokenizer.encode("<|im_end|>")  # the one difference: what is typed is text
    assert len(plain) > 1 and plain != official.tokenizer.encode("<|im_end|>")
    assert not caplog.records


@pytest.mark.parametrize("as_what", ["a list", "a tensor", "an array", "zero-dimensional tensors", "a tuple"])
def test_decode_takes_ids_of_any_kind(processor, official, as_what):
    ids = processor.tokenizer.encode("A red circle.")
    given = {
        "a list": ids,
        "a tensor": torch.tensor(ids),
        "an array": np.array(ids),
        "zero-dimensional tensors": list(torch.tensor(ids)),
        "a tuple": tuple(ids),
    }[as_what]
    for decode in (processor.tokenizer.decode, processor.decode):
        assert decode(given) == decode(token_ids=given, clean_up_tokenization_spaces=False) == "A red circle."
    rows = [given, given]
    assert processor.batch_decode(rows) == processor.tokenizer.decode(rows) == ["A red circle."] * 2
    assert processor.batch_decode(given) == official.batch_decode(ids) == ["A red circle."]
    assert processor.tokenizer.decode(given[0]) == official.tokenizer.decode(ids[0]) == "A"


@pytest.mark.parametrize(
    "ids, words",
    [
        ([3, -100, 4], "put the padding's id in the place of −100"),
        (torch.tensor([[3, -100]]), "in the place of −100"),
        (-1, "whole numbers from 0"),
        ([1.5], "1.5 cannot be decoded"),
        ("text", "'text' cannot be decoded"),
        (None, "None cannot be decoded"),
        ([True], "True cannot be decoded"),
        ([2**40], "cannot be decoded"),
    ],
)
def test_ids_that_are_none_are_refused(processor, ids, words):
    for decode in (processor.decode, processor.batch_decode):
        with pytest.raises(ValueError, match=words):
            decode(ids)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t: t(None), "a text or a list of texts"),
        (lambda t: t([1, 2]), "A prompt is a text"),
        (lambda t: t("a", return_tensors="np"), "return_tensors='np'"),
        (lambda t: t("a", paddin=True), "no option 'paddin'; did you mean padding"),
        (lambda t: t("a", padding="long"), "padding='long'"),
        (lambda t: t("a", padding="max_length"), "needs max_length"),
        (lambda t: t("a", max_length=-1), "max_length"),
        (lambda t: t("a", padding_side="right"), "padded on the left"),
        (lambda t: t("a", return_offsets_mapping=True), "return_offsets_mapping=True"),
        (lambda t: t(["a", "a b c"], return_tensors="pt"), "need padding=True"),
        (lambda t: t.encode(None), "a text or a list of pieces"),
        (lambda t: t.encode([1]), "a text or a list of pieces"),
        (lambda t: t.encode("a", nonsense=1), "no option 'nonsense'"),
        (lambda t: t.decode([1], skip_special_token=True), "did you mean skip_special_tokens"),
        (lambda t: setattr(t, "padding_side", "right"), "prompts are padded on the left.*new tokens follow"),
        (lambda t: setattr(t, "paddingside", "left"), "did you mean padding_side"),
        (lambda t: setattr(t, "pad_token", "<nothing>"), "no token of this vocabulary"),
        (lambda t: setattr(t, "pad_token_id", 10**6), "no token of this vocabulary"),
        (lambda t: setattr(t, "vocab_size", 3), "follows from tokenizer.json"),
        (lambda t: t.add_tokens(["x"]), "the vocabulary is fixed"),
    ],
)
def test_what_the_tokenizer_cannot_do_is_said(processor, call, words):
    with pytest.raises((ValueError, AttributeError), match=words) as caught:
        call(processor.tokenizer)
    assert "\n" not in str(caught.value)


def test_another_token_for_padding_takes_effect(processor):
    """`tokenizer.pad_token = tokenizer.eos_token`, as many scripts say."""
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    assert processor.tokenizer.pad_token_id == 500
    inputs = processor.tokenizer(["a", "a b c"], padding=True)
    assert inputs.input_ids[0][0] == 500 and inputs.attention_mask[0][0] == 0
    chats = [[{"role": "user", "content": text}] for text in ("a", "a b c")]
    assert processor.apply_chat_template(chats, tokenize=True)[0, 0] == 500
    processor.tokenizer.padding_side = "left"  # what is so anyway may be said
    processor.tokenizer.eos_token_id = 498
    assert processor.tokenizer.eos_token == "<|endoftext|>"


def test_the_tokenizer_of_a_checkpoint(processor, official, tmp_path):
    tokenizer = Qwen2VLTokenizer.from_pretrained("tiny", use_fast=True, padding_side="left", trust_remote_code=True)
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert tokenizer.chat_template == processor.chat_template == tokenizer.get_chat_template()
    tokenizer.save_pretrained(tmp_path)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert back("A red circle.").input_ids == tokenizer("A red circle.").input_ids
    with pytest.raises(ValueError, match="no option 'max_pixels'"):
        Qwen2VLTokenizer.from_pretrained("tiny", max_pixels=3)


def test_the_chat_template_of_the_tokenizer(processor, official):
    chat = [{"role": "user", "content": "Hello <|im_end|>"}, {"role": "assistant", "content": "Hi."}]
    plain = [{"role": "user", "content": "Hello"}]
    ours, theirs = processor.tokenizer, official.tokenizer
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    for options in ({}, {"add_generation_prompt": True}, {"return_tensors": "pt"}, {"return_dict": False}):
        found = ours.apply_chat_template(plain, **options)
        expected = theirs.apply_chat_template(plain, **options)
        if options.get("return_dict") is False:
            assert found == expected
        else:
            assert (
                found["input_ids"] == expected["input_ids"]
                if not options.get("return_tensors")
                else torch.equal(found["input_ids"], expected["input_ids"])
            )
    both = ours.apply_chat_template([plain, chat], padding=True, return_tensors="pt")
    assert both["input_ids"].shape[0] == 2 and both["attention_mask"][0, 0] == 0
    typed = ours.apply_chat_template(chat)["input_ids"]
    assert typed.count(500) == 3  # the system's, the user's and the answer's; the typed one is text
    with pytest.raises(ValueError, match="reads no pictures; use processor.apply_chat_template"):
        ours.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}])


# ── The processors ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_of_the_processor(processor, official):
    for name in ("image_token", "image_token_id", "video_token", "video_token_id", "image_token_ids"):
        assert getattr(processor, name) == getattr(official, name), name
    assert set(official.model_input_names) == set(processor.model_input_names)
    assert set(official.image_processor.model_input_names) <= set(processor.image_processor.model_input_names)
    for name in ("patch_size", "merge_size", "temporal_patch_size", "do_resize", "rescale_factor"):
        assert getattr(processor.image_processor, name) == getattr(official.image_processor, name), name
        assert getattr(processor.video_processor, name) == getattr(official.video_processor, name), name
    assert processor.image_processor.size == dict(official.image_processor.size)
    sizes = ((100, 200), (500, 30), (28, 28))
    for size in sizes:
        assert processor.image_processor.get_number_of_image_patches(*size) == (
            official.image_processor.get_number_of_image_patches(*size, {})
        )


def test_the_answer_of_generate_becomes_text(processor, official):
    ids = torch.tensor([processor.tokenizer("A red circle.<|im_end|>").input_ids])
    for given in (ids, ids[0]):
        assert processor.post_process_image_text_to_text(given) == ["A red circle."]
        assert official.post_process_image_text_to_text(given) == ["A red circle."]
    kept = processor.post_process_image_text_to_text(ids, skip_special_tokens=False)
    assert kept == ["A red circle.<|im_end|>"]


PICTURE = Image.effect_mandelbrot((320, 240), (-2, -1.5, 1, 1.5), 50).convert("RGB")
CHAT = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, "Hi"]}]


def tokens(processor) -> int:
    inputs = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True)
    return int((inputs["input_ids"] == processor.image_token_id).sum())


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "max_pixels", 28 * 28 * 20),
        lambda p: setattr(p.image_processor, "max_pixels", 28 * 28 * 20),
        lambda p: setattr(p.image_processor, "size", {"longest_edge": 28 * 28 * 20, "shortest_edge": 3136}),
        lambda p: setattr(p, "size", {"longest_edge": 28 * 28 * 20}),
        lambda p: setattr(p, "image_processor", Qwen2VLImageProcessor(max_pixels=28 * 28 * 20)),
    ],
)
def test_limits_that_are_set_take_effect(processor, change):
    before = tokens(processor)
    change(processor)
    assert before > 80 and 12 < tokens(processor) <= 20


def test_limits_of_clips_that_are_set_take_effect(processor):
    frames = [PICTURE] * 4
    before = processor.image_processor(videos=frames).video_grid_thw.prod()
    for change in (
        lambda: setattr(processor.video_processor, "max_pixels", 6272),
        lambda: setattr(processor, "max_pixels", 6272),
        lambda: setattr(processor.video_processor, "size", {"longest_edge": 6272}),
    ):
        processor.image_processor.video_max_pixels = 602112
        processor.video_processor.min_pixels = 3136
        change()
        after = processor.video_processor(videos=frames).video_grid_thw.prod()
        assert after <= 2 * 6272 / 14**2 < before
        assert processor.video_processor.max_pixels == 6272


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: setattr(p, "max_pixel", 3136), "no 'max_pixel'; did you mean max_pixels"),
        (lambda p: setattr(p, "max_pixels", "big"), "max_pixels='big'"),
        (lambda p: setattr(p, "image_token", "<image>"), "cannot be set"),
        (lambda p: setattr(p.image_processor, "max_pixels", 0), "max_pixels=0"),
        (lambda p: setattr(p.image_processor, "maxpixels", 5), "did you mean max_pixels"),
        (lambda p: setattr(p.image_processor, "patch_size", "14"), "patch_size='14'"),
        (lambda p: setattr(p.image_processor, "do_resize", False), "do_resize = False"),
        (lambda p: setattr(p.image_processor, "resample", 2), "resample=2"),
        (lambda p: setattr(p.image_processor, "size", {"height": 5}), "shortest_edge"),
        (lambda p: setattr(p.image_processor, "image_mean", [1, 2]), "image_mean"),
        (lambda p: setattr(p.video_processor, "fps", 3), "no 'fps'; frames are chosen by a call's fps"),
        (lambda p: setattr(p.video_processor, "patch_size", 16), "that of pictures"),
        (lambda p: setattr(p, "padding_side", "right"), "padded on the left"),
    ],
)
def test_settings_that_cannot_be_set_are_refused(processor, change, words):
    with pytest.raises(ValueError, match=words):
        change(processor)


def test_a_replaced_tokenizer_is_the_one_that_decodes(processor):
    """`processor.decode` belonged to the tokenizer that the processor was made with."""
    other = copy.deepcopy(processor.tokenizer)
    other.decode = lambda ids, **how: "other"
    processor.tokenizer = other
    assert processor.decode([1]) == "other" and processor.batch_decode([[1]]) == ["other"]


def test_official_constructors(processor):
    pixels = Qwen2VLImageProcessor(
        do_resize=True, resample=3, size={"shortest_edge": 784, "longest_edge": 78400}, rescale_factor=1 / 255
    )
    assert (pixels.min_pixels, pixels.max_pixels, pixels.resample) == (784, 78400, "pillow")
    assert Qwen2VLImageProcessorFast(max_pixels=784).resample == "torch"
    made = Qwen2VLProcessor(
        image_processor=pixels,
        tokenizer=processor.tokenizer,
        video_processor=processor.video_processor,
        chat_template=processor.chat_template,
    )
    assert made.image_processor is pixels
    for make, words in (
        (lambda: Qwen2VLImageProcessor(max_pixel=3), "did you mean max_pixels"),
        (lambda: Qwen2VLImageProcessor(do_normalize=False), "do_normalize = False"),
        (lambda: Qwen2VLImageProcessor(size=[3, 4]), "shortest_edge"),
        (lambda: Qwen2VLProcessor(pixels, processor.tokenizer, image_processer=1), "did you mean image_processor"),
        (lambda: Qwen2VLProcessor(pixels, processor.tokenizer, video_processor=1), "leave it out"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
