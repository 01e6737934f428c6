"""Saving and loading agree: what could not be loaded is not saved, whatever a round trip changes is said or kept."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import weights_loader
from qwen2vl_io import savable
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
)
from tests.official import official_twin
from tests.small_models import make_inputs, small_model
from weights_loader import INDEX, WEIGHTS, load, load_model, save

TINY = Path(weights_loader.__file__).resolve().parent / "checkpoints" / "tiny"
CPU = {"dtype": "float32", "device": "cpu"}
TOWER = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 4, "hidden_size": 64}


def make_model(**options) -> Qwen2VLForConditionalGeneration:
    """A random model for the vocabulary of the bundled tokenizer."""
    return small_model(vocab_size=512, **options)


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


@pytest.fixture
def checkpoint(tmp_path, processor) -> Path:
    """A sound and whole folder of ours to change."""
    model = make_model()
    model.generation_config = {"top_k": 1, "eos_token_id": [500, 498]}
    save(model, processor, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename_keys(folder: Path, rename) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def assert_same_weights(model, other) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


# ── What could not be loaded is not saved ───────────────────────────────────────────────────────────────────────────


class LowRank(nn.Module):
    """A layer with a low-rank update beside it, under the names that peft gives."""

    def __init__(self, layer: nn.Linear, rank: int = 2):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


def add_lora(model) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj)


def enlarge(model) -> None:
    model.model.embed_tokens = nn.Embedding(520, 64)


def enlarge_and_say_so(model) -> None:
    enlarge(model)
    model.config.text_config.vocab_size = 520


def drop_a_layer(model) -> None:
    model.model.layers = model.model.layers[:1]


def drop_a_block(model) -> None:
    model.visual.blocks = model.visual.blocks[:1]


def add_a_layer(model) -> None:
    model.classifier = nn.Linear(64, 3)


def add_a_buffer(model) -> None:
    model.register_buffer("scale", torch.ones(3))


def quantise(model) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def quantise_as_others_do(model) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.register_buffer("weight_scale", torch.ones(1))


def reshape(model) -> None:
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.ones(10, 64))


def parametrise(model) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def break_the_config(model) -> None:
    vars(model.config.text_config)["rms_norm_eps"] = "small"


def to_meta(model) -> None:
    model.to("meta")


@pytest.mark.parametrize(
    "change, words",
    [
        (add_lora, r"changed by a LoRA of peft .*merge_and_unload\(\)"),
        (enlarge, r"520 rows, and the config says 512; set model\.config\.text_config\.vocab_size = 520"),
        (enlarge_and_say_so, r"lm_head\.weight has 512 rows.*tie it"),
        (drop_a_layer, r"has 1 layers, and its config says 2; set .*num_hidden_layers = 1"),
        (drop_a_block, r"lacks visual\.blocks\.1\.attn\.proj\.bias"),
        (add_a_layer, r"holds classifier\.bias, classifier\.weight"),
        (add_a_buffer, r"holds scale"),
        (quantise, r"up_proj\.weight is in int8, which cannot be loaded"),
        (quantise_as_others_do, r"up_proj\.weight_scale"),
        (reshape, r"up_proj\.weight has shape \(10, 64\), but the model's config says \(136, 64\)"),
        (parametrise, r"parametrize .*remove_parametrizations"),
        (break_the_config, r"rms_norm_eps = 'small' should be a number"),
        (to_meta, r"on the meta device"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, change, words):
    model = make_model()
    change(model)
    with pytest.raises(ValueError, match=words) as caught:
        save(model, None, tmp_path / "new")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize(
    "wrap, words",
    [
        (nn.DataParallel, r"take model\.module"),
        (torch.compile, r"take model\._orig_mod"),
        (lambda model: nn.Sequential(model), "not a Sequential"),
        (lambda model: model.model, "not a Decoder"),
        (lambda model: None, "not a NoneType"),
        (lambda model: model.state_dict(), "not a OrderedDict"),
    ],
)
def test_what_is_no_model_of_ours_is_not_saved(tmp_path, wrap, words):
    with pytest.raises(ValueError, match=words):
        save(wrap(make_model()), None, tmp_path / "new")


def test_following_the_way_out_gives_a_checkpoint(tmp_path):
    model = make_model()
    enlarge_and_say_so(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    drop_a_layer(model)
    model.config.text_config.num_hidden_layers = 1
    save(model, None, tmp_path)
    assert_same_weights(load_model(tmp_path, **CPU), model)


def test_a_head_that_shares_the_memory_of_the_embedding(tmp_path):
    """`nn.Parameter(weight)` is another parameter in the same memory, which safetensors alone refuses."""
    model = make_model()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    save(model, None, tmp_path)
    assert_same_weights(load_model(tmp_path, **CPU), model)


def test_peft_models_are_told_to_merge(tmp_path):
    peft = pytest.importorskip("peft")
    model = make_model()
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    for unmerged in (wrapped, wrapped.base_model.model):
        with pytest.raises(ValueError, match="merge_and_unload"):
            save(unmerged, None, tmp_path / "new")
    save(wrapped.merge_and_unload(), None, tmp_path / "new")
    assert_same_weights(load_model(tmp_path / "new", **CPU), model)  # an untrained LoRA adds nothing


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_lora_round_trip_is_exact(tmp_path, tied):
    """Trained, saved beside its base, put onto the reloaded base again, merged, saved, loaded: the same bits."""
    base = make_model(tied=tied)
    save(base, None, tmp_path / "base")

    model = load_model(tmp_path / "base", **CPU).requires_grad_(False)
    torch.manual_seed(0)
    add_lora(model)
    inputs = make_inputs(model.config, [[12]])
    optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if "lora_" in name], lr=0.05)
    losses = []
    for _ in range(5):
        loss = model(inputs["input_ids"], labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapter = {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
    save_file(adapter, tmp_path / "adapter.safetensors")

    again = load_model(tmp_path / "base", **CPU)
    add_lora(again)
    again.load_state_dict(load_file(tmp_path / "adapter.safetensors"), strict=False)
    with torch.no_grad():
        assert torch.equal(again(inputs["input_ids"]).logits, model(inputs["input_ids"]).logits)
    for layer in again.model.layers:
        layer.self_attn.q_proj = layer.self_attn.q_proj.merged()
    save(again, None, tmp_path / "merged")
    back = load_model(tmp_path / "merged", **CPU)
    assert_same_weights(back, again)
    before, after = base.model.layers[0].self_attn.q_proj.weight, back.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(before, after)
    official = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype="float32")
    assert torch.equal(official.model.language_model.layers[0].self_attn.q_proj.weight, after)


def test_a_processor_of_another_model_is_not_saved_nor_loaded(tmp_path, processor, checkpoint):
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is 510 in the tokenizer and 598 .* do not belong together"):
        save(small_model(vocab_size=600), processor, tmp_path / "new")
    edit_json(checkpoint / "config.json", image_token_id=3)
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is 510 in the tokenizer and 3"):
        load(checkpoint, **CPU)


def test_a_vocabulary_larger_than_the_embedding_is_not_saved(tmp_path, processor):
    model = make_model()
    model.config.text_config.vocab_size = 511
    model.model.embed_tokens = nn.Embedding(511, 64)
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="the tokenizer has 512 tokens, the embedding 511 rows"):
        save(model, processor, tmp_path)


# ── A bare model, and folders that are no good ──────────────────────────────────────────────────────────────────────


def test_a_bare_untied_model_does_not_come_back_with_the_embedding_as_its_head(tmp_path):
    bare = Qwen2VLModel(make_model(tied=False).config)
    save(bare, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2VLModel"] and config["tie_word_embeddings"] is False
    assert_same_weights(Qwen2VLModel.from_pretrained(tmp_path, **CPU), bare)
    with pytest.raises(ValueError, match="bare Qwen2VLModel without its output matrix"):
        load_model(tmp_path, **CPU)


@pytest.mark.parametrize("folder, words", [(None, "is a path"), (7, "is a path"), ("file", "it is a file")])
def test_a_folder_that_cannot_be_written_to(tmp_path, processor, folder, words):
    (tmp_path / "file").write_text("mine")
    where = tmp_path / "file" if folder == "file" else folder
    calls = (lambda: save(make_model(), None, where), lambda: processor.save_pretrained(where))
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()
    assert (tmp_path / "file").read_text() == "mine"


# ── Whatever a round trip changes is kept, or said ──────────────────────────────────────────────────────────────────


def test_what_the_files_say_besides_is_written_back(tmp_path, checkpoint):
    edit_json(checkpoint / "config.json", initializer_range=0.03, bos_token_id=7, my_own={"deep": [1]})
    edit_json(checkpoint / "generation_config.json", repetition_penalty=1.05, my_own=3)
    edit_json(checkpoint / "tokenizer_config.json", model_max_length=777, eos_token="<|endoftext|>", my_own="x")
    model, processor = load(checkpoint, **CPU)
    save(model, processor, tmp_path / "again")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (checkpoint, tmp_path / "again"))
        assert before == after, name
    assert model.config.initializer_range == 0.03 and model.config.bos_token_id == 7
    assert processor.tokenizer.eos_token == "<|endoftext|>" and processor.tokenizer.model_max_length == 777


def test_a_round_trip_through_nested_files_keeps_what_they_say(tmp_path):
    official = official_twin(make_model())
    official.config.text_config.initializer_range = 0.07
    official.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", **CPU)
    save(model, None, tmp_path / "ours")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    theirs = official.config.text_config.to_dict()
    ours = back.text_config.to_dict()
    changed = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    assert changed <= {"dtype", "rope_parameters", "architectures", "torch_dtype", "_name_or_path"}, changed
    assert back.text_config.rope_parameters["mrope_section"] == [2, 3, 3]


def test_another_dtype_is_said(tmp_path, caplog):
    model = make_model().to(torch.bfloat16)
    save(model, None, tmp_path / "half")
    assert not caplog.records
    wide = load_model(tmp_path / "half", **CPU)
    save(wide, None, tmp_path / "wide")
    [record] = caplog.records
    assert "saved in float32, larger and no more exact than the bfloat16" in record.message
    assert "model.to(torch.bfloat16)" in record.message
    caplog.clear()
    save(wide.to(torch.bfloat16), None, tmp_path / "again")
    assert not caplog.records
    assert_same_weights(load_model(tmp_path / "again", dtype="bfloat16", device="cpu"), model)
    save(load_model(tmp_path / "wide", dtype="bfloat16", device="cpu"), None, tmp_path / "narrow")
    assert "with fewer digits than the float32" in caplog.records[-1].message


def test_mixed_dtypes_are_said(tmp_path, caplog):
    model = make_model().to(torch.bfloat16)
    model.model.norm.float()
    save(model, None, tmp_path)
    assert "weights in bfloat16 and float32; loading gives all of them one dtype" in caplog.records[-1].message


def test_the_settings_of_both_processors_come_back(tmp_path, processor):
    changed = copy.deepcopy(processor)
    changed.image_processor.resample = "torch"
    changed.image_processor.min_pixels = 1568
    changed.video_processor.max_pixels = 15680
    changed.video_processor.total_pixels = 156800
    changed.save_pretrained(tmp_path)
    back = Qwen2VLProcessor.from_pretrained(tmp_path)
    assert vars(back.image_processor) == vars(changed.image_processor)
    assert transformers.AutoProcessor.from_pretrained(tmp_path).video_processor.size["longest_edge"] == 15680


def test_an_older_save_of_transformers_does_not_win_over_ours(tmp_path, processor):
    transformers.AutoProcessor.from_pretrained(TINY).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("<|im_start|> of somebody else")
    changed = copy.deepcopy(processor)
    changed.max_pixels = 6272
    save(make_model(), changed, tmp_path)
    assert not (tmp_path / "processor_config.json").exists() and not (tmp_path / "chat_template.jinja").exists()
    back = Qwen2VLProcessor.from_pretrained(tmp_path)
    assert back.image_processor.max_pixels == 6272 and back.chat_template == processor.chat_template


def test_an_older_generation_config_does_not_outlive_a_model_without_one(checkpoint):
    save(make_model(), None, checkpoint)
    assert load_model(checkpoint, **CPU).generation_config == {}


# ── What transformers 5 writes ──────────────────────────────────────────────────────────────────────────────────────


def test_the_processor_as_transformers_5_writes_it(tmp_path, processor):
    official = transformers.AutoProcessor.from_pretrained(TINY)
    official.image_processor.size = {"shortest_edge": 1568, "longest_edge": 15680}
    official.video_processor.size = {"shortest_edge": 3136, "longest_edge": 31360}
    official.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    back = Qwen2VLProcessor.from_pretrained(tmp_path)
    pixels = back.image_processor
    assert (pixels.min_pixels, pixels.max_pixels) == (1568, 15680)
    assert (pixels.video_min_pixels, pixels.video_max_pixels) == (3136, 31360)
    assert back.chat_template == processor.chat_template
    assert back.tokenizer.get_vocab() == processor.tokenizer.get_vocab() and back.tokenizer.eos_token == "<|im_end|>"
    # where both are there, the new file counts, as officially
    shutil.copy(TINY / "preprocessor_config.json", tmp_path)
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).max_pixels == 15680
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path).size["longest_edge"] == 15680


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("original", [True, False])
def test_the_base_class_of_transformers(tmp_path, tied, original):
    ours = make_model(tied=tied)
    official_twin(ours).model.save_pretrained(tmp_path, save_original_format=original)
    assert any(key.startswith("language_model.") for key in load_file(tmp_path / WEIGHTS)) or original
    bare = Qwen2VLModel.from_pretrained(tmp_path, **CPU)
    for name, weight in bare.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
    if tied:
        assert_same_weights(load_model(tmp_path, **CPU), ours)
    else:  # its output matrix is not in the file
        with pytest.raises(ValueError, match="bare Qwen2VLModel"):
            load_model(tmp_path, **CPU)


def test_the_text_half_of_transformers_is_named(tmp_path):
    official_twin(make_model()).model.language_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'qwen2_vl_text' model .*without its tower: save the whole model"):
        load_model(tmp_path, **CPU)


def test_shards_without_their_index(tmp_path):
    model = make_model()
    save(model, None, tmp_path, max_shard_bytes=1e5)
    (tmp_path / INDEX).unlink()
    assert_same_weights(load_model(tmp_path, **CPU), model)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(FileNotFoundError, match="not all of its shards"):
        load_model(tmp_path, **CPU)


# ── Folders of others ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "names, words",
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter.*merge it into its base model first"),
        (["adapter_model.bin"], "is a LoRA adapter"),
        (["pytorch_model.bin"], r"pytorch_model\.bin: it holds pickles only.*save_pretrained"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "holds pickles only"),
        (["model.pt"], r"model\.pt: it holds pickles only"),
        (["qwen2-vl-q4_k_m.gguf", "mmproj.gguf"], "holds GGUF, the format of llama.cpp"),
        (["consolidated.safetensors"], "rename that file to model.safetensors"),
        (["model.fp16.safetensors"], "variant of the weights"),
        (["weights.safetensors"], "rename the file to model.safetensors"),
        (["optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"], "only the state of a training"),
        (["global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt"], "DeepSpeed; run its zero_to_fp32.py"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["checkpoint-90/config.json", "checkpoint-500/config.json"], r"such as .*checkpoint-500\.$"),
        (["tf_model.h5"], "TensorFlow"),
        (["flax_model.msgpack"], "Flax"),
        (["model.onnx"], "ONNX"),
        ([], "get the weights, too"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_folders_of_others_are_named(tmp_path, checkpoint, names, words, with_config):
    folder = tmp_path / "other"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"}))
    if with_config:
        shutil.copy(checkpoint / "config.json", folder)
    elif not re_matches(words, "adapter|GGUF|checkpoint-500"):
        words = "has no config.json"
    with pytest.raises(FileNotFoundError, match=words) as caught:
        load_model(folder, **CPU)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def re_matches(text: str, words: str) -> bool:
    return any(word in text for word in words.split("|"))


def test_an_adapter_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match="is a LoRA adapter of org/base; merge it"):
        load_model(tmp_path, **CPU)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("qwen2_5_vl", r"a Qwen2\.5-VL model"),
        ("qwen3_vl", "a Qwen3-VL model"),
        ("qwen2", "text only"),
        ("qwen2_audio", "does not see"),
        ("llava", "describes a 'llava' model"),
        (None, "describes a None model"),
    ],
)
def test_other_models_are_named(checkpoint, kind, words):
    edit_json(checkpoint / "config.json", model_type=kind)
    with pytest.raises(ValueError, match=words):
        load_model(checkpoint, **CPU)


@pytest.mark.parametrize(
    "rename, words",
    [
        (lambda key: f"base_model.model.{key}", "a LoRA of peft"),
        (lambda key: f"module.{key}", "DistributedDataParallel"),
        (lambda key: f"_orig_mod.{key}", "torch.compile"),
        (lambda key: key.replace("q_proj.weight", "q_proj.base_layer.weight"), "merge_and_unload"),
        (lambda key: key.replace("q_proj.weight", "q_proj.qweight"), "without -AWQ"),
        (lambda key: key.replace("visual.blocks.1.", "visual.blocks.7."), r"lacks visual\.blocks\.1"),
    ],
)
def test_keys_that_somebody_wrapped_are_explained(checkpoint, rename, words):
    rename_keys(checkpoint, rename)
    with pytest.raises(ValueError, match=words):
        load_model(checkpoint, **CPU)


def test_eight_bit_weights_say_the_way_out(checkpoint):
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(ValueError, match="F8_E4M3; only .* can be loaded: get the model without"):
        load_model(checkpoint, **CPU)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised weights \(awq\)"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"head_dim": 5}, "head_dim = 5"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scaled RoPE"),
        ({"vision_config": TOWER | {"hidden_act": "gelu"}}, "only 'quick_gelu'"),
        ({"vision_config": TOWER | {"in_channels": 4}}, "in_channels = 4"),
        ({"vision_config": TOWER | {"rope_parameters": {"rope_theta": 500.0}}}, "only a base of 10000"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(checkpoint, changes, words):
    """These were read over: the model would have computed something else."""
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(ValueError, match=words):
        load_model(checkpoint, **CPU)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"resample": 2}, "resample = 2 is not supported, only 3, bicubic"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"do_rescale": False}, "do_rescale = False"),
        ({"do_resize": False}, "do_resize = False"),
        ({"rescale_factor": 0.5}, "rescale_factor = 0.5"),
        ({"image_processor_type": "CLIPImageProcessor"}, "of a 'CLIPImageProcessor'"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_preprocessing_that_means_something_else_is_refused(checkpoint, changes, words, file):
    edit_json(checkpoint / file, **changes)
    with pytest.raises(ValueError, match=words):
        Qwen2VLProcessor.from_pretrained(checkpoint)


def test_clips_with_another_patch_size_are_refused(checkpoint):
    edit_json(checkpoint / "video_preprocessor_config.json", patch_size=16)
    with pytest.raises(ValueError, match="patch_size = 16 for clips differs"):
        Qwen2VLProcessor.from_pretrained(checkpoint)


def test_limits_of_null_do_not_hide_the_size(checkpoint):
    edit_json(checkpoint / "preprocessor_config.json", min_pixels=None, size={"shortest_edge": 784})
    assert Qwen2VLImageProcessor.from_pretrained(checkpoint).min_pixels == 784


# ── save_pretrained ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_parts_save_themselves_and_make_a_checkpoint(tmp_path, processor):
    model = make_model()
    model.generation_config.top_k = 3
    model.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    back, back_processor = load(tmp_path, **CPU)
    assert_same_weights(back, model)
    assert back.generation_config == {"top_k": 3} and back_processor.chat_template == processor.chat_template
    assert (tmp_path / INDEX).exists() and len(list(tmp_path.glob("*.safetensors"))) > 2
    shutil.rmtree(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        *("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "video_preprocessor_config.json"),
    ]
    assert Qwen2VLConfig.from_pretrained(tmp_path) == model.config
    assert Qwen2VLTokenizer.from_pretrained(tmp_path).chat_template == processor.chat_template
    assert vars(Qwen2VLImageProcessor.from_pretrained(tmp_path)) == vars(processor.image_processor)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"safe_serialization": False}, "safe_serialization=False.*only safetensors"),
        ({"push_to_hub": True}, "hf upload"),
        ({"max_shard_size": "large"}, "such as '5GB'"),
        ({"max_shard_size": 0}, "such as '5GB'"),
        ({"max_shard": "5GB"}, "no option 'max_shard'; did you mean max_shard_size"),
        ({"state_dict": {}}, "state_dict"),
    ],
)
def test_options_of_save_pretrained(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        make_model().save_pretrained(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size, number", [("5GB", 5e9), ("1.5 MB", 1.5e6), ("2GiB", 2 * 2**30), ("100b", 100), (7, 7)])
def test_sizes_of_shards(size, number):
    assert savable.as_bytes(size) == number
