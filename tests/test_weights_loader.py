"""weights_loader.py: names of checkpoints, strict loading in both key layouts, saving; a thread plays the Hub."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qwen2vl_io
import weights_loader
from qwen2vl_io import files
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLTokenizer,
)
from tests.official import load_official, official_twin
from tests.small_models import image, make_inputs, small_config, small_model
from tiny_world.chat_template import CHAT_TEMPLATE
from tiny_world.tokenizer import build_tokenizer
from weights_loader import INDEX, WEIGHTS, choose_device, choose_dtype, find_checkpoint, load, load_model, save

ROOT = Path(weights_loader.__file__).resolve().parent
CPU = {"dtype": "float32", "device": "cpu"}


# ── Helpers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Qwen2VLProcessor:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_tokenizer().save(str(file))
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112, resample="torch")
    return Qwen2VLProcessor(images, Qwen2VLTokenizer(file), CHAT_TEMPLATE)


def make_model(tied: bool = True, seed: int = 0, **options) -> Qwen2VLForConditionalGeneration:
    """A random model of ours, for the vocabulary of the tokenizer above."""
    return small_model(seed=seed, tied=tied, vocab_size=512, **options)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A sound folder of ours to break: tied, one file, no processor."""
    save(make_model(), None, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_weights(folder: Path, change) -> None:
    """Let `change` alter the dict of tensors in model.safetensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits_of(model, config: Qwen2VLConfig) -> torch.Tensor:
    """Logits of one prompt with a picture, from our model or the official one."""
    with torch.no_grad():
        return model(**make_inputs(config, [[3, image(4, 4), 5]])).logits


def assert_same_weights(model, other) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


# ── Both layouts, both directions ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("released_keys", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
def test_pitfall_19_both_key_layouts(tmp_path, tied, released_keys, shard_size):
    ours = make_model(tied)
    official = official_twin(ours)
    official.save_pretrained(tmp_path, save_original_format=released_keys, max_shard_size=shard_size)
    assert (tmp_path / INDEX).exists() == (shard_size == "100KB")
    keys = {key for file in tmp_path.glob("*.safetensors") for key in load_file(file)}
    assert ("visual.merger.ln_q.weight" in keys) == released_keys  # the files are in the layout that we mean to test
    assert ("model.language_model.norm.weight" in keys) != released_keys
    assert ("lm_head.weight" in keys) != tied
    model = load_model(tmp_path, **CPU)
    assert_same_weights(model, ours)
    assert model.config == ours.config
    torch.testing.assert_close(logits_of(model, ours.config), logits_of(official, ours.config), atol=1e-4, rtol=1e-4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [5e9, 1e5])
def test_official_loads_what_we_save(tmp_path, tied, max_shard_bytes):
    model = make_model(tied)
    save(model, None, tmp_path, max_shard_bytes)
    official, report = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, dtype="float32"
    )
    assert not any(report.values()), report  # nothing missing, unexpected or of another shape
    torch.testing.assert_close(logits_of(official, model.config), logits_of(model, model.config), atol=1e-4, rtol=1e-4)
    assert (official.lm_head.weight is official.model.language_model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_through_transformers_keeps_every_bit(tmp_path, tied):
    model = make_model(tied)
    model.generation_config = {"do_sample": True, "temperature": 0.01, "top_k": 1, "eos_token_id": [3, 4]}
    save(model, None, tmp_path / "ours")
    official = load_official(tmp_path / "ours")
    official.save_pretrained(tmp_path / "theirs", save_original_format=False)
    back = load_model(tmp_path / "theirs", **CPU)
    assert_same_weights(back, model)
    assert back.config == model.config
    assert back.generation_config["eos_token_id"] == [3, 4]


@pytest.mark.parametrize("max_shard_bytes", [5e9, 1e5])
def test_our_own_round_trip(tmp_path, processor, max_shard_bytes):
    model = make_model()
    model.generation_config = {"top_k": 1, "eos_token_id": [3, 4]}
    save(model, processor, tmp_path, max_shard_bytes)
    back, back_processor = load(tmp_path, **CPU)
    assert_same_weights(back, model)
    assert back.config == model.config and back.generation_config == model.generation_config
    image_settings = [json.dumps(p.image_processor.to_dict()) for p in (back_processor, processor)]
    assert image_settings[0] == image_settings[1]
    assert back_processor.chat_template == CHAT_TEMPLATE
    assert back_processor.tokenizer.bpe.to_str() == processor.tokenizer.bpe.to_str()


def test_saved_files_are_those_of_the_released_checkpoints(tmp_path, processor):
    model = make_model().to(torch.bfloat16)
    model.generation_config = {"top_k": 1}
    save(model, processor, tmp_path)
    expected = (
        "chat_template config generation_config preprocessor_config tokenizer tokenizer_config "
        "video_preprocessor_config"
    ).split()
    assert sorted(os.listdir(tmp_path)) == sorted([*(f"{name}.json" for name in expected), WEIGHTS])
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors.keys() == {name for name in model.state_dict() if name != "lm_head.weight"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    with safe_open(tmp_path / WEIGHTS, "pt") as content:
        assert content.metadata() == {"format": "pt"}  # older releases of transformers refuse files without it
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["tie_word_embeddings"] is True
    assert config["hidden_size"] == 64 and "text_config" not in config  # flat


def test_shards_and_their_index(tmp_path):
    model = make_model()
    save(model, None, tmp_path, max_shard_bytes=1e5)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    held = {key: file.name for file in shards for key in load_file(file)}
    assert held == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in shards]
    assert index["metadata"]["total_size"] == sum(sizes)
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert all(size <= max(1e5, largest) for size in sizes)


def test_transformers_auto_classes_load_our_processor(tmp_path, processor):
    save(make_model(), processor, tmp_path)
    official = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(official).__name__ == "Qwen2VLProcessor"
    picture = Image.effect_mandelbrot((150, 90), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Où est 7 red cubes?\n\n日本 😀"}]
    conversation = [{"role": "user", "content": content}]
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    theirs, ours = (each.apply_chat_template(conversation, **options) for each in (official, processor))
    assert torch.equal(theirs["input_ids"], ours["input_ids"])
    assert torch.equal(theirs["image_grid_thw"], ours["image_grid_thw"])
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], atol=1e-6, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    ids = ours["input_ids"][0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == processor.decode(ids, skip_special_tokens=True)
    assert tokenizer.chat_template == CHAT_TEMPLATE


# ── Tied, untied, and flags that lie ──────────────────────────────────────────────────────────────────────────────


def test_pitfall_19_config_says_untied_but_there_is_no_head(checkpoint, caplog):
    edit_json(checkpoint / "config.json", tie_word_embeddings=False)
    model = load_model(checkpoint, **CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.text_config.tie_word_embeddings is True
    assert_same_weights(model, make_model())
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "no lm_head.weight" in record.message and "\n" not in record.message


def test_pitfall_19_config_says_tied_but_the_head_differs(tmp_path, caplog):
    model = make_model(tied=False)
    save(model, None, tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    back = load_model(tmp_path, **CPU)
    assert_same_weights(back, model)
    assert back.config.text_config.tie_word_embeddings is False
    [record] = caplog.records
    assert "lm_head.weight of its own" in record.message
    save(back, None, tmp_path / "again")
    assert "lm_head.weight" in load_file(tmp_path / "again" / WEIGHTS)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_says_of_tying_what_is_true_now(tmp_path, tied):
    model = make_model(tied=not tied)
    weight = model.model.embed_tokens.weight
    model.lm_head.weight = weight if tied else torch.nn.Parameter(weight.detach().clone())
    save(model, None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in load_file(tmp_path / WEIGHTS)) != tied


def test_pitfall_19_a_stored_head_equal_to_the_embedding_is_tied(checkpoint, caplog):
    edit_weights(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = load_model(checkpoint, **CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    edit_json(checkpoint / "config.json", tie_word_embeddings=False)  # but if it says untied, two they are
    model = load_model(checkpoint, **CPU)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert not caplog.records


@pytest.mark.parametrize("tied", [True, False])
def test_the_bare_model_skips_the_head(tmp_path, tied, caplog):
    save(make_model(tied), None, tmp_path)
    model = Qwen2VLModel.from_pretrained(tmp_path, **CPU)
    assert type(model) is Qwen2VLModel and not hasattr(model, "lm_head")
    assert torch.equal(model.model.norm.weight, make_model(tied).model.norm.weight)
    assert not caplog.records


def test_training_goes_on_from_a_loaded_model(checkpoint):
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, **CPU)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    ids = torch.arange(6)[None]
    model(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad is model.lm_head.weight.grad is not None
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


# ── Strictness: each error names the key ──────────────────────────────────────────────────────────────────────────


def test_pitfall_19_a_missing_key_is_an_error_that_names_it(checkpoint):
    edit_weights(checkpoint, lambda t: t.pop("visual.blocks.1.mlp.fc1.bias"))
    with pytest.raises(ValueError, match=r"lacks visual\.blocks\.1\.mlp\.fc1\.bias:"):
        load_model(checkpoint, **CPU)


def test_pitfall_19_many_missing_keys_are_counted(checkpoint):
    edit_weights(checkpoint, lambda t: [t.pop(key) for key in list(t) if key.startswith("visual.blocks.0.")])
    with pytest.raises(ValueError, match=r"lacks visual\.blocks\.0\.attn\.proj\.bias, .*… \(12 in all\)"):
        load_model(checkpoint, **CPU)


def test_pitfall_19_a_missing_embedding_is_an_error(checkpoint):
    edit_weights(checkpoint, lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"lacks .*model\.embed_tokens\.weight"):
        load_model(checkpoint, **CPU)


def test_pitfall_19_an_unexpected_key_is_an_error_that_names_it(checkpoint):
    key = "model.language_model.layers.2.input_layernorm.weight"
    edit_weights(checkpoint, lambda t: t.update({key: torch.ones(64)}))
    with pytest.raises(ValueError, match=r"holds model\.language_model\.layers\.2\.input_layernorm\.weight"):
        load_model(checkpoint, **CPU)


def test_pitfall_19_a_key_in_both_layouts_is_an_error(checkpoint):
    edit_weights(checkpoint, lambda t: t.update({"model.language_model.norm.weight": torch.ones(64)}))
    with pytest.raises(ValueError, match=r"holds model\.norm\.weight twice"):
        load_model(checkpoint, **CPU)


def test_pitfall_19_a_key_in_two_shards_is_an_error(tmp_path):
    save(make_model(), None, tmp_path, max_shard_bytes=1e5)
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    key, tensor = next(iter(load_file(first).items()))
    save_file(load_file(last) | {key: tensor}, last)
    with pytest.raises(ValueError, match=f"index.json and {last.name} disagree about {key}"):
        load_model(tmp_path, **CPU)


def test_pitfall_19_a_wrong_shape_is_an_error_that_names_it(checkpoint):
    edit_weights(checkpoint, lambda t: t.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(65,\), but config\.json says \(64,\)"):
        load_model(checkpoint, **CPU)


def test_a_transposed_weight_is_an_error(checkpoint):
    name = "model.layers.0.mlp.down_proj.weight"
    edit_weights(checkpoint, lambda t: t.update({name: t[name].T.contiguous()}))
    with pytest.raises(ValueError, match=r"down_proj\.weight has shape \(136, 64\), but config\.json says \(64, 136\)"):
        load_model(checkpoint, **CPU)


def test_a_wrong_head_is_an_error(checkpoint):
    edit_weights(checkpoint, lambda t: t.update({"lm_head.weight": torch.ones(500, 64)}))
    with pytest.raises(ValueError, match=r"lm_head\.weight has shape \(500, 64\)"):
        load_model(checkpoint, **CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_pitfall_28_other_dtypes_are_refused(checkpoint, dtype):
    edit_weights(checkpoint, lambda t: t.update({"model.norm.weight": torch.ones(64).to(dtype)}))
    with pytest.raises(ValueError, match=r"stores model\.norm\.weight as (I8|F8_E4M3|BOOL); only BF16, F16"):
        load_model(checkpoint, **CPU)


def test_stored_rotary_frequencies_are_the_only_thing_skipped(checkpoint):
    edit_weights(checkpoint, lambda t: t.update({"visual.rotary_pos_emb.inv_freq": torch.ones(4)}))
    with pytest.raises(ValueError, match="visual.rotary_pos_emb.inv_freq"):
        load_model(checkpoint, **CPU)
    edit_weights(checkpoint, lambda t: t.pop("visual.rotary_pos_emb.inv_freq"))
    for key in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.language_model.rotary_emb.inv_freq"):
        edit_weights(checkpoint, lambda t, key=key: t.update({key: torch.ones(8)}))
    assert_same_weights(load_model(checkpoint, **CPU), make_model())


# ── Files that cannot be trusted ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..", "", "x.bin", ".x", 7],
)
def test_pitfall_28_index_traversal(checkpoint, shard):
    # the file that the name leads to is there and sound, so only the name can be the reason to refuse
    for place in (checkpoint.parent, checkpoint / "a", checkpoint / "a\\b.safetensors"):
        if place.suffix:
            shutil.copy(checkpoint / WEIGHTS, place)
        else:
            place.mkdir(exist_ok=True)
            shutil.copy(checkpoint / WEIGHTS, place / ("b.safetensors" if place.name == "a" else "x.safetensors"))
    keys = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {key: shard for key in keys}}))
    with pytest.raises(ValueError, match="not the plain name of a .safetensors file"):
        load_model(checkpoint, **CPU)


def test_hub_cache_symlinks_are_followed(checkpoint):
    blob = checkpoint.parent / "blobs" / "0123abcd"
    blob.parent.mkdir()
    (checkpoint / WEIGHTS).rename(blob)
    (checkpoint / WEIGHTS).symlink_to(blob)
    assert_same_weights(load_model(checkpoint, **CPU), make_model())


def test_a_named_shard_that_is_missing(tmp_path):
    save(make_model(), None, tmp_path, max_shard_bytes=1e5)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"{lost.name}, which is missing"):
        load_model(tmp_path, **CPU)


def test_an_index_that_disagrees_with_its_shards(tmp_path):
    save(make_model(), None, tmp_path, max_shard_bytes=1e5)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    edit_json(tmp_path / INDEX, weight_map=weight_map)
    with pytest.raises(ValueError, match=r"disagree about model\.norm\.weight"):
        load_model(tmp_path, **CPU)
    edit_json(tmp_path / INDEX, weight_map={})
    with pytest.raises(ValueError, match="no weight_map"):
        load_model(tmp_path, **CPU)


def test_pitfall_28_pickles_are_not_read(checkpoint):
    torch.save(load_file(checkpoint / WEIGHTS), checkpoint / "pytorch_model.bin")
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors .*pytorch_model\.bin.* save_pretrained"):
        load_model(checkpoint, **CPU)


def test_pitfall_28_header_that_claims_a_terabyte(checkpoint):
    content = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes((10**12).to_bytes(8, "little") + content[8:])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(checkpoint, **CPU)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_pitfall_28_truncated_file(checkpoint, length):
    content = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(checkpoint, **CPU)


def test_pitfall_28_git_lfs_pointer(checkpoint):
    (checkpoint / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4418050848\n")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(checkpoint, **CPU)


def test_pitfall_28_damaged_headers_raise_a_sentence_or_load(checkpoint):
    """Any one damaged byte of the header ends in a ValueError; if the file loads, it is complete."""
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    generator = torch.Generator().manual_seed(0)
    outcomes = set()
    for _ in range(60):
        place, byte = (int(torch.randint(0, top, (), generator=generator)) for top in (header, 256))
        damaged = content[:place] + bytes([byte]) + content[place + 1 :]
        (checkpoint / WEIGHTS).write_bytes(damaged)
        try:
            model = load_model(checkpoint, **CPU)
            assert [p.shape for p in model.parameters()] == [p.shape for p in make_model().parameters()]
            outcomes.add("loads")
        except ValueError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_model(tmp_path, **CPU)


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pitfall_20_one_tensor_at_a_time(tmp_path, monkeypatch):
    """When a weight is read, the one before it has been let go: also with a change of dtype, and over shards."""
    save(make_model(tied=False), None, tmp_path, max_shard_bytes=1e5)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    earlier, read = [], weights_loader.StoredTensor.read

    def watched_read(self):
        assert not [reference for reference in earlier if reference() is not None]
        tensor = read(self)
        earlier.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(weights_loader.StoredTensor, "read", watched_read)
    for dtype in ("float32", "bfloat16"):
        model = load_model(tmp_path, dtype=dtype, device="cpu")
        assert len(earlier) == len(list(model.parameters()))  # each exactly once
        earlier.clear()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_pitfall_20_no_second_copy(tmp_path):
    """A process that loads 200 MB of weights grows by little more, counting the pages of the mapped file too."""
    config = small_config(layers=30, heads=(4, 2), head_dim=256, section=[32, 48, 48])
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    tensors = {name: torch.full(p.shape, 0.01, dtype=torch.bfloat16) for name, p in model.named_parameters()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert total > 180e6
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    code = """
        import sys, weights_loader, qwen2vl_mini
        def kilobytes(name):
            return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
        before = kilobytes("VmRSS")
        model = weights_loader.load_model(sys.argv[1], dtype="bfloat16", device="cpu")
        print(1024 * (kilobytes("VmHWM") - before))
    """
    try:
        grown = int(run_python(code, str(tmp_path)))
    finally:
        (tmp_path / WEIGHTS).unlink()
    assert total < grown < 1.35 * total, (grown, total)


def test_running_out_of_memory_is_one_sentence(checkpoint, monkeypatch):
    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")

    monkeypatch.setattr(weights_loader.StoredTensor, "read", lambda self: type("Stub", (), {"to": no_room})())
    with pytest.raises(ValueError, match=r"^cpu has not enough free memory for the 0\.0 GB .*, as float32\.$"):
        load_model(checkpoint, **CPU)


# ── Saving safely ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first, second", [(5e9, 1e5), (1e5, 5e9), (1e5, 3e5)])
def test_saving_over_an_older_checkpoint(tmp_path, first, second):
    (tmp_path / "README.md").write_text("mine")
    save(make_model(seed=1), None, tmp_path, first)
    newer = make_model(tied=False, seed=2)
    save(newer, None, tmp_path, second)
    assert_same_weights(load_model(tmp_path, **CPU), newer)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"] if second < 5e9 else {"": WEIGHTS}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == set(weight_map.values())  # no stale ones
    assert (tmp_path / INDEX).exists() == (second < 5e9)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_crash_while_saving_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    older = make_model(seed=1)
    save(older, None, tmp_path)
    calls = []

    def crash(tensors, file, metadata):
        calls.append(file)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return save_file(tensors, file, metadata)

    monkeypatch.setattr(files, "save_file", crash)
    for folder in (tmp_path, tmp_path / "new"):
        calls.clear()
        with pytest.raises(OSError, match="No space"):
            save(make_model(seed=2), None, folder, max_shard_bytes=1e5)
        assert len(calls) == 2
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", WEIGHTS, "new"])
    assert os.listdir(tmp_path / "new") == []
    assert_same_weights(load_model(tmp_path, **CPU), older)


def test_saving_what_was_loaded_into_its_own_folder(checkpoint):
    model = load_model(checkpoint, **CPU)
    save(model, None, checkpoint)
    assert_same_weights(load_model(checkpoint, **CPU), make_model())


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["no-such", "./a/b", "/no/such", "a/b/c", "../a", "https://hub/a/b", "a/", "~x/y z"])
def test_a_name_that_is_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_loader, "download", lambda *args: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match="no such folder and not a Hub id, which looks like org/name"):
        find_checkpoint(name)


def test_a_path_object_is_never_a_hub_id(monkeypatch):
    monkeypatch.setattr(weights_loader, "download", lambda *args: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_checkpoint(Path("Qwen/Qwen2-VL-2B-Instruct"))


def test_a_file_is_not_a_checkpoint(checkpoint):
    with pytest.raises(ValueError, match="is a file; pass the folder"):
        find_checkpoint(checkpoint / WEIGHTS)


def test_a_folder_wins_over_the_hub_and_home_is_expanded(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    (checkpoint.parent / "org").mkdir()
    shutil.copytree(checkpoint, checkpoint.parent / "org" / "name")
    monkeypatch.setattr(weights_loader, "download", lambda *args: pytest.fail("asked the Hub"))
    assert find_checkpoint("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert find_checkpoint("~/checkpoint") == checkpoint


@pytest.mark.parametrize("weights", [False, True])
def test_a_hub_id_is_downloaded_with_weights_only_on_request(weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(weights_loader, "download", lambda *args: asked.append(args) or tmp_path)
    assert find_checkpoint("Qwen/Qwen2-VL-2B-Instruct", weights) == tmp_path
    [(name, patterns)] = asked
    assert name == "Qwen/Qwen2-VL-2B-Instruct"
    assert {"*.json", "*.txt", "*.jinja"} <= set(patterns) and ("*.safetensors" in patterns) == weights


def test_tiny_is_beside_the_module_or_inside_the_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_loader, "__file__", str(tmp_path / "site" / "weights_loader.py"))
    monkeypatch.setattr(qwen2vl_io, "__file__", str(tmp_path / "site" / "qwen2vl_io" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="bundled checkpoint .* install again"):
        find_checkpoint("tiny")
    for home in ("site/qwen2vl_io", "site"):  # the clone's own comes first
        folder = tmp_path / home / "checkpoints" / "tiny"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert find_checkpoint("tiny", weights=True) == folder.resolve()


@pytest.mark.skipif(not (ROOT / "checkpoints" / "tiny" / WEIGHTS).exists(), reason="not trained yet")
def test_the_bundled_checkpoint_loads():
    model, processor = load(**CPU)
    assert model.dtype == torch.float32 and model.config.text_config.vocab_size >= len(processor.tokenizer.special_ids)
    assert processor.chat_template and model.generation_config


def test_pitfall_27_where_a_chat_template_may_be(tmp_path):
    """The newest place wins; a checkpoint without a template is not an error here."""
    assert weights_loader.read_chat_template(tmp_path) is None
    for number, name in enumerate(("tokenizer_config.json", "chat_template.json")):
        (tmp_path / name).write_text(json.dumps({"other": 1}))
        assert weights_loader.read_chat_template(tmp_path) == (f"é{number - 1}" if number else None)
        (tmp_path / name).write_text(json.dumps({"chat_template": f"é{number}"}))
        assert weights_loader.read_chat_template(tmp_path) == f"é{number}"
    (tmp_path / "chat_template.jinja").write_text("é2", encoding="utf-8")
    assert weights_loader.read_chat_template(tmp_path) == "é2"


def test_load_passes_image_options_on(tmp_path, processor):
    save(make_model(), processor, tmp_path)
    _, loaded = load(tmp_path, **CPU, max_pixels=56 * 56, resample="pillow")
    assert loaded.image_processor.max_pixels == 56 * 56 and loaded.image_processor.resample == "pillow"
    assert loaded.image_processor.min_pixels == processor.image_processor.min_pixels


# ── Devices and dtypes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: machine(cuda=number of GPUs, capability=…, mps=…, fast_cpu=…)."""

    def pretend(cuda=0, capability=(8, 0), mps=False, fast_cpu=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(weights_loader, "cpu_is_fast_in_bfloat16", lambda: fast_cpu)

    return pretend


def test_device_auto(machine):
    machine(cuda=1, mps=True)
    assert choose_device("auto") == torch.device("cuda")
    machine(mps=True)
    assert choose_device("auto") == torch.device("mps")
    machine()
    assert choose_device("auto") == torch.device("cpu")


def test_device_names(machine):
    machine(cuda=2)
    assert choose_device("cuda:1") == choose_device(torch.device("cuda", 1)) == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="sees no cuda:2 here; choose device='auto' or 'cpu'"):
        choose_device("cuda:2")
    with pytest.raises(ValueError, match="sees no mps here"):
        choose_device("mps")
    machine()
    with pytest.raises(ValueError, match="sees no cuda here"):
        choose_device("cuda")
    for unknown in ("gpu", "tpu", "cuda:x", "xla", "meta", {"": "disk"}, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="is unknown; choose 'auto', 'cpu', 'cuda'"):
            choose_device(unknown)


def test_pitfall_10_dtype_auto_is_never_float16(machine):
    cuda, cpu, mps = map(torch.device, ("cuda", "cpu", "mps"))
    machine(cuda=1, capability=(9, 0))
    assert choose_dtype("auto", cuda) == torch.bfloat16
    machine(cuda=1, capability=(7, 5))
    assert choose_dtype("auto", cuda) == torch.float32
    machine(mps=True, fast_cpu=True)
    assert choose_dtype("auto", mps) == torch.float32
    assert choose_dtype("auto", cpu) == torch.bfloat16
    machine(fast_cpu=False)
    assert choose_dtype("auto", cpu) == torch.float32


def test_dtype_names(machine):
    cpu = torch.device("cpu")
    for name in ("float32", "bfloat16", "float16"):
        assert choose_dtype(name, cpu) == choose_dtype(getattr(torch, name), cpu) == getattr(torch, name)
    for unknown in ("bf16", "int8", torch.int8, None, 16):
        with pytest.raises(ValueError, match="is unknown; choose 'auto', 'float32', 'bfloat16', 'float16'"):
            choose_dtype(unknown, cpu)


@pytest.mark.parametrize("ratio, expected", [(0.25, False), (1.1, False), (2.0, True)])
def test_a_cpu_of_which_nothing_is_known_is_measured_and_left_as_it_was(monkeypatch, ratio, expected):
    """bfloat16 is chosen when it is clearly faster; the clock is pretended."""
    monkeypatch.setattr(weights_loader, "cpu_features", lambda: None)
    seconds = iter([[1.0, 1.0], [1 / ratio, 5.0]])  # float32 first; the best of several tries counts
    monkeypatch.setattr(weights_loader.timeit, "repeat", lambda *args, **kwargs: next(seconds))
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    fast, reason = weights_loader.cpu_bfloat16.__wrapped__()
    assert fast is expected and f"1/{ratio:.1f}" in reason
    assert threads == [1, 6]


@pytest.mark.parametrize(
    "features, expected, reason",
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True, "the CPU has amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, True, "the CPU has avx512_bf16"),
        ({"amx_bf16": False, "avx2": True}, False, "the CPU has neither amx_bf16 nor avx512_bf16"),
    ],
)
def test_a_known_cpu_is_not_measured(monkeypatch, features, expected, reason):
    """A stopwatch would give other numbers on a busy day."""
    monkeypatch.setattr(weights_loader, "cpu_features", lambda: features)
    monkeypatch.setattr(weights_loader.timeit, "repeat", lambda *args, **kwargs: pytest.fail("measured"))
    assert weights_loader.cpu_bfloat16.__wrapped__() == (expected, reason)


def test_the_features_of_this_cpu_are_the_kernels(monkeypatch):
    """PyTorch's list and that of /proc/cpuinfo, which stands in for it in older releases, say the same."""
    flags = Path("/proc/cpuinfo")
    if weights_loader.cpu_features() is None or not flags.exists() or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("not an x86 CPU under Linux with a recent PyTorch")
    newer = weights_loader.cpu_features()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    older = weights_loader.cpu_features()
    for name in ("avx2", "avx512_bf16", "amx_bf16"):
        assert bool(newer.get(name)) == bool(older.get(name)), name


def test_the_real_measurement_runs():
    assert weights_loader.bfloat16_gain() > 0
    assert weights_loader.cpu_is_fast_in_bfloat16() in (True, False)


def test_loaded_dtype_and_the_official_option_names(checkpoint, machine):
    machine(fast_cpu=True)
    assert load_model(checkpoint, device="cpu").dtype == torch.bfloat16
    assert load_model(checkpoint, dtype="float16", device_map="cpu").dtype == torch.float16
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32, device_map="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.device == torch.device("cpu")
    with pytest.raises(ValueError, match="is unknown"):
        load_model(checkpoint, dtype="float32", device_map="everywhere")


def test_bfloat16_is_the_rounded_float32(checkpoint):
    wide, narrow = (load_model(checkpoint, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    for (name, weight), other in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        assert torch.equal(weight.to(torch.bfloat16), other), name


def test_attn_implementation_is_passed_on(checkpoint):
    assert load_model(checkpoint, **CPU, attn_implementation="eager").attn_implementation == "eager"
    with pytest.raises(ValueError, match="attn_implementation='fast'"):
        load(checkpoint, **CPU, attn_implementation="fast")


# ── The Hub, played by a thread ───────────────────────────────────────────────────────────────────────────────────

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """The output of a fresh Python in which our modules can be imported. (huggingface_hub reads its settings once.)"""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


class Hub(ThreadingHTTPServer):
    """The parts of huggingface.co that a download needs. `log` holds (method, path, Range header, status)."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files, self.log, self.cut_once = files, [], {"org/cut"}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes = b"", total: int | None = None, **headers: str) -> None:
        self.server.log.append((self.command, urlsplit(self.path).path, self.headers.get("Range"), status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if total is None else total), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = urlsplit(self.path).path.removeprefix("/api/models").strip("/").split("/")
        if len(path) < 3:  # small talk of the client
            return self.answer(404)
        repository, action, file = "/".join(path[:2]), path[2], "/".join(path[4:])
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        if repository in ("org/private", "org/secret") and authorization is None or repository == "org/unknown":
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repository == "org/broken":
            return self.answer(500)
        if action in ("revision", "tree"):
            info = {"id": repository, "sha": COMMIT}
            tree = [{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in self.server.files.items()]
            body = json.dumps(info if action == "revision" else tree).encode()
            return self.answer(200, body, Content_Type="application/json")
        if repository == "org/gated":
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if repository == "org/torn":
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = self.server.files[file]
        etag = f"{repository}-{file}".replace("/", "-")
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if self.command == "GET" and file == WEIGHTS and repository in self.server.cut_once:
            self.server.cut_once.remove(repository)
            self.answer(200, content[: len(content) // 2], total=len(content), **headers)
            self.close_connection = True
        elif start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], **headers)
        else:
            self.answer(200, content, **headers)

    do_HEAD = do_GET


ASK = """
    import json, os, sys
    from huggingface_hub import constants
    from weights_loader import find_checkpoint
    constants.DOWNLOAD_CHUNK_SIZE = 4096  # bytes; its own 10 MB are more than the files that the tests download
    answers = []
    for name, weights, token in json.loads(sys.argv[1]):
        os.environ["HF_TOKEN"] = token
        try:
            folder = find_checkpoint(name, weights)
            answers.append({"folder": str(folder), "files": sorted(os.listdir(folder))})
        except Exception as error:
            answers.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(answers))
"""


def ask(questions: list, **environment: str) -> list[dict]:
    """The answers of find_checkpoint to (name, weights, token), all in one fresh process."""
    return json.loads(run_python(ASK, json.dumps(questions), **environment).splitlines()[-1])


SMALL_FILES = {
    "config.json",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def hub_session(tmp_path_factory, processor):
    """Online, then offline, then with the Hub gone: three processes with one cache. The tests below look at parts."""
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("home")
    save(make_model(), processor, source)
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    hub = Hub(files | {"README.md": b"# not asked for", "pytorch_model.bin": b"pickle", ".gitattributes": b""})
    online = [["org/model", False, ""], ["org/model", True, ""], ["org/model", True, ""], ["org/cut", True, ""]]
    online += [["org/small", False, ""], ["org/private", False, ""], ["org/private", False, TOKEN]]
    online += [["org/gated", False, ""], ["org/unknown", False, ""], ["org/model", False, "hf_wrong"]]
    online += [["org/secret", False, "hf_wrong"], ["org/broken", False, ""], ["org/a..b", False, ""]]
    online += [["org/torn", False, ""]]
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": hub.address}
    answers = {("online", i): answer for i, answer in enumerate(ask(online, **environment))}
    requests = list(hub.log)
    offline = [["org/model", True, ""], ["org/small", False, ""], ["org/small", True, ""], ["org/never", False, ""]]
    answers |= {("offline", i): a for i, a in enumerate(ask(offline, **environment, HF_HUB_OFFLINE="1"))}
    assert hub.log == requests  # offline means: not one request
    hub.shutdown()
    hub.server_close()
    answers |= {("gone", i): a for i, a in enumerate(ask(offline, **environment))}
    return answers, requests, home, hub, source


def sentence_of(answer: dict) -> str:
    kind, _, sentence = answer["error"].partition(": ")
    assert kind == "ValueError" and "\n" not in sentence and "Traceback" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_hub_small_files_first_weights_on_request(hub_session):
    answers, requests, home, *_ = hub_session
    small, full, again = (answers["online", i] for i in range(3))
    assert set(small["files"]) == SMALL_FILES
    assert set(full["files"]) == set(again["files"]) == SMALL_FILES | {WEIGHTS}
    assert Path(full["folder"]).is_relative_to(home)  # HF_HOME
    downloads = [path for method, path, _, _ in requests if method == "GET" and path.startswith("/org/model/resolve/")]
    assert sorted(path.rpartition("/")[2] for path in downloads) == sorted(SMALL_FILES | {WEIGHTS})  # each once


def test_hub_download_loads(hub_session):
    answers, _, _, _, source = hub_session
    model, processor = load(answers["online", 1]["folder"], **CPU)
    assert_same_weights(model, make_model())
    assert processor.chat_template == CHAT_TEMPLATE


def test_hub_cut_connection_is_resumed(hub_session):
    answers, requests, _, hub, source = hub_session
    half = (source / WEIGHTS).stat().st_size // 2
    tries = [entry[2:] for entry in requests if entry[:2] == ("GET", f"/org/cut/resolve/{COMMIT}/{WEIGHTS}")]
    assert tries == [(None, 200), (f"bytes={half // 4096 * 4096}-", 206)]  # whole chunks are kept
    assert (Path(answers["online", 3]["folder"]) / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_hub_private_needs_the_token(hub_session):
    answers, _, _, hub, _ = hub_session
    assert sentence_of(answers["online", 5]).startswith(
        f"'org/private' is neither a folder here nor a model at {hub.address}"
    )
    assert "if it is private, set HF_TOKEN" in sentence_of(answers["online", 5])
    assert set(answers["online", 6]["files"]) == SMALL_FILES


def test_hub_gated_says_where_to_accept(hub_session):
    answers, _, _, hub, _ = hub_session
    assert f"terms accepted: do so at {hub.address}/org/gated" in sentence_of(answers["online", 7])


def test_hub_unknown_id(hub_session):
    answers, *_ = hub_session
    assert sentence_of(answers["online", 8]).startswith("'org/unknown' is neither a folder here nor a model")


def test_hub_wrong_token(hub_session):
    answers, *_ = hub_session
    assert "refuses your token" in sentence_of(answers["online", 10])


def test_hub_other_failures_are_one_sentence(hub_session):
    answers, *_ = hub_session
    assert "500 Internal Server Error" in sentence_of(answers["online", 11])
    assert "404 Client Error" in sentence_of(answers["online", 13])  # the first of the error's lines
    assert sentence_of(answers["online", 12]).startswith("'org/a..b' could not be downloaded (")


@pytest.mark.parametrize("when", ["offline", "gone"])
def test_hub_cache_works_without_network(hub_session, when):
    answers, *_ = hub_session
    assert answers[when, 0] == answers["online", 1]
    assert set(answers[when, 1]["files"]) == SMALL_FILES


@pytest.mark.parametrize("case", [2, 3])  # only the small files are there; nothing is there
def test_hub_not_in_the_cache(hub_session, case):
    answers, *_ = hub_session
    assert "HF_HUB_OFFLINE forbids" in sentence_of(answers["offline", case])
    assert re.search(
        r"127\.0\.0\.1:\d+ does not send it \(.*: check the connection", sentence_of(answers["gone", case])
    )


def test_a_local_load_says_one_line_on_stderr_and_imports_no_hub_client(checkpoint):
    edit_json(checkpoint / "config.json", tie_word_embeddings=False)
    code = """
        import sys, weights_loader
        sys.stderr = sys.stdout
        weights_loader.load_model(sys.argv[1], device="cpu")
        print("huggingface_hub" in sys.modules, "transformers" in sys.modules)
    """
    warning, modules = run_python(code, str(checkpoint)).splitlines()
    assert "has no lm_head.weight" in warning and modules == "False False"
