"""What test_configuration_common.py checks: names, dictionaries, files, and the halves of a configuration."""

import copy
import json

import pytest
import transformers

from qwen2vl_mini import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLTextConfig, Qwen2VLVisionConfig
from tests.official_suite.pairs import TINY, tiny_models
from tests.small_models import small_config

TEXT = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
TEXT += ("intermediate_size", "rms_norm_eps", "max_position_embeddings", "hidden_act", "tie_word_embeddings")
VISION = ("depth", "embed_dim", "num_heads", "mlp_ratio", "hidden_size", "patch_size", "spatial_merge_size")
VISION += ("temporal_patch_size", "hidden_act", "in_channels")
WHOLE = ("model_type", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
WHOLE += ("architectures", "tie_word_embeddings")


def both_configs(content: dict | None = None) -> tuple[Qwen2VLConfig, transformers.Qwen2VLConfig]:
    content = content or small_config().to_dict()
    return Qwen2VLConfig.from_dict(copy.deepcopy(content)), transformers.Qwen2VLConfig.from_dict(content)


@pytest.mark.parametrize("part, name", [("text_config", n) for n in TEXT] + [("vision_config", n) for n in VISION])
def test_the_halves_have_the_official_names(part, name):
    ours, official = both_configs()
    if (part, name) == ("text_config", "tie_word_embeddings"):  # of the whole, since transformers 5
        assert ours.text_config.tie_word_embeddings == official.tie_word_embeddings
        return
    assert getattr(getattr(ours, part), name) == getattr(getattr(official, part), name)


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_has_the_official_names(name):
    ours, official = (model.config for model in tiny_models())
    assert getattr(ours, name) == getattr(official, name)


@pytest.mark.parametrize("name", ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"))
def test_common_names_can_be_read_and_set(name):
    """ConfigTester's four: officially on the text half (`get_text_config()`), which is here the same object."""
    for config in both_configs():
        text = config.get_text_config()
        assert text is config.text_config
        setattr(text, name, 8)
        assert getattr(config.text_config, name) == 8


def test_no_arguments_are_needed():
    for kind in (Qwen2VLConfig, Qwen2VLTextConfig, Qwen2VLVisionConfig):
        assert kind() == kind()


@pytest.mark.parametrize("as_dict", (True, False))
def test_halves_given_as_objects_or_dicts(as_dict):
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    if as_dict:
        config = Qwen2VLConfig(text_config=dict(text, mrope_section=[2, 3, 3]), vision_config=vision)
    else:
        half = Qwen2VLTextConfig(**text, mrope_section=[2, 3, 3])
        config = Qwen2VLConfig(text_config=half, vision_config=Qwen2VLVisionConfig(**vision))
    assert isinstance(config.text_config, Qwen2VLTextConfig)
    assert isinstance(config.vision_config, Qwen2VLVisionConfig)
    assert {name: getattr(config.text_config, name) for name in text} == text
    assert {name: getattr(config.vision_config, name) for name in vision} == vision


def test_rotary_settings_by_their_official_names():
    """rope_scaling as released, rope_parameters since transformers 5."""
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    mrope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    vision = {"hidden_size": 64}
    old = Qwen2VLConfig(text_config=text | {"rope_theta": 1e4, "rope_scaling": dict(mrope)}, vision_config=vision)
    new = Qwen2VLConfig(text_config=text | {"rope_parameters": mrope | {"rope_theta": 1e4}}, vision_config=vision)
    for config in (old, new):
        assert config.text_config.mrope_section == [2, 3, 3] and config.text_config.rope_theta == 1e4


def test_token_ids_by_keyword():
    for kind in (Qwen2VLConfig, transformers.Qwen2VLConfig):
        config = kind(image_token_id=7, video_token_id=8, vision_start_token_id=5, vision_end_token_id=6)
        assert (config.image_token_id, config.video_token_id) == (7, 8)


@pytest.mark.parametrize("typo", ({"hiden_size": 3}, {"image_token": 3}))
def test_unknown_keywords_are_refused(typo):
    """Officially they are kept as attributes; here a typo is an error."""
    with pytest.raises((ValueError, TypeError)):
        Qwen2VLConfig(**typo)


def test_a_configuration_as_json():
    ours, official = both_configs()
    found, expected = json.loads(ours.to_json_string()), json.loads(official.to_json_string())
    assert found["model_type"] == expected["model_type"] == "qwen2_vl"
    assert found["vision_config"]["depth"] == expected["vision_config"]["depth"]


def test_a_configuration_through_a_json_file(tmp_path):
    first, _ = both_configs()
    first.to_json_file(tmp_path / "config.json")
    assert Qwen2VLConfig.from_json_file(tmp_path / "config.json").to_dict() == first.to_dict()


@pytest.mark.parametrize("direction", ("ours to ours", "ours to theirs", "theirs to ours"))
def test_a_configuration_through_a_folder(direction, tmp_path):
    ours, official = both_configs()
    saved = official if direction == "theirs to ours" else ours
    saved.save_pretrained(tmp_path)
    if direction == "ours to theirs":
        again = transformers.AutoConfig.from_pretrained(tmp_path)
        assert isinstance(again, transformers.Qwen2VLConfig)
        for name in TEXT[:6]:
            assert getattr(again.text_config, name) == getattr(official.text_config, name)
        assert again.text_config.rope_parameters["mrope_section"] == ours.text_config.mrope_section
    else:
        again = Qwen2VLConfig.from_pretrained(str(tmp_path))
        assert again.text_config == ours.text_config and again.vision_config == ours.vision_config
        assert again.image_token_id == ours.image_token_id


def test_a_configuration_in_a_subfolder(tmp_path):
    first, _ = both_configs()
    first.save_pretrained(tmp_path / "inner")
    assert Qwen2VLConfig.from_pretrained(str(tmp_path / "inner")).to_dict() == first.to_dict()


@pytest.mark.parametrize("part", ("text_config", "vision_config"))
def test_a_half_can_be_saved_and_read_alone(part, tmp_path):
    """… from a file of the whole, too; officially both."""
    ours, official = both_configs()
    half = getattr(ours, part)
    ours.save_pretrained(tmp_path)
    try:
        found = type(half).from_pretrained(str(tmp_path))
    except (ValueError, AttributeError) as error:
        assert "object has no attribute" not in str(error) and len(str(error).split()) > 6
    else:
        assert found == half


def test_a_dict_and_back_changes_nothing():
    first, _ = both_configs()
    again = Qwen2VLConfig.from_dict(first.to_dict())
    assert again == first and again.to_dict() == first.to_dict()
    assert copy.deepcopy(first) == first


def test_the_models_configuration_is_the_one_it_was_built_with():
    config = small_config()
    model = Qwen2VLForConditionalGeneration(config)
    assert model.config is config
    assert model.model.config is config.text_config


def test_the_dtype_of_a_file_is_no_other_number():
    """torch_dtype (until transformers 4) or dtype (since 5) in a config.json do not disturb."""
    content = json.loads((TINY / "config.json").read_text())
    content.pop("torch_dtype")
    for name in ("torch_dtype", "dtype"):
        config = Qwen2VLConfig.from_dict(content | {name: "float32"})
        assert config.text_config.hidden_size == content["hidden_size"]
