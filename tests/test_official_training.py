"""Training as users of transformers do it: checkpointing, their Trainer, PEFT's adapters, a new model's first loss."""

import copy
import math

import pytest
import torch
from torch import nn

from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLModel
from tests.small_models import image, make_inputs, small_config, small_model, video

ROWS = [[3, image(4, 6), 4], [5, video(2, 4, 4), 2]]


def lesson(model, rows=ROWS) -> dict:
    inputs = make_inputs(model.config, rows)
    return inputs | {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def gradients(model, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("reentrant", (False, True))
@pytest.mark.parametrize("frozen", (False, True))
def test_checkpointing_changes_no_gradient_and_keeps_less(reentrant, frozen):
    model = small_model(tied=False).train()
    if frozen:  # as with adapters: only these are learned
        model.requires_grad_(False)
        for layer in (*model.model.layers, *model.visual.blocks):
            layer.mlp.requires_grad_(True)
        model.enable_input_require_grads()
    inputs = lesson(model)
    runs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    expected = gradients(model, inputs)
    assert len(runs) == 1

    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    found = gradients(model, inputs)
    assert len(runs) == 3  # forth, and once more on the way back
    assert found.keys() == expected.keys()
    for name in expected:  # the same operations on the same numbers
        assert torch.equal(found[name], expected[name]), name

    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight.zero_()
    again = gradients(model, inputs)  # a copy works on its own layers
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing and twin.is_gradient_checkpointing


def test_checkpointing_steps_aside_where_it_cannot_help():
    """A cache, attention maps, eval mode: worked out once, rightly."""
    model = small_model().train()
    inputs = make_inputs(model.config, ROWS)
    expected = model(**inputs, output_attentions=True, use_cache=True)
    model.gradient_checkpointing_enable()
    found = model(**inputs, output_attentions=True, use_cache=True)
    assert len(found.attentions) == len(expected.attentions) == 2
    assert found.cache.length == expected.cache.length and torch.equal(found.logits, expected.logits)
    found.logits.sum().backward()
    model.eval()
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), small_model().generate(**inputs, max_new_tokens=3))


@pytest.mark.parametrize("kind", (Qwen2VLForConditionalGeneration, Qwen2VLModel))
def test_a_new_model_starts_as_the_official_one(kind):
    torch.manual_seed(1)
    model = kind(small_config(tied=False))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # the deviation of n draws is known to about 1/√(2n) of itself
            assert abs(parameter.std() - 0.02) < 0.02 * 6 * (2 * parameter.numel()) ** -0.5, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name


@pytest.mark.parametrize("tied", (True, False))
def test_a_new_models_first_loss_is_that_of_guessing(tied):
    torch.manual_seed(2)
    model = Qwen2VLForConditionalGeneration(small_config(tied=tied))
    inputs = lesson(model, [[60, image(4, 4), 60]])
    assert abs(model(**inputs).loss.item() - math.log(200)) < 0.5
    assert model.lm_head.weight is model.model.embed_tokens.weight or not tied


# --- transformers' Trainer and PEFT -----------------------------------------------------------------------------------


class Lessons(torch.utils.data.Dataset):
    def __init__(self, model):
        self.inputs = lesson(model, [[4, image(4, 4), 6]])

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        return self.inputs


@pytest.mark.parametrize("checkpointing", (False, True))
def test_transformers_trainer_trains_and_evaluates_it(tmp_path, checkpointing):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(small_config(tied=False))
    arguments = transformers.TrainingArguments(
        tmp_path,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        gradient_checkpointing=checkpointing,
        disable_tqdm=True,
    )
    data = Lessons(model)
    trainer = transformers.Trainer(
        model, arguments, data_collator=lambda rows: rows[0], train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5
    assert trainer.predict(data).predictions is not None


@pytest.mark.parametrize("task_type", (None, "CAUSAL_LM"))
def test_peft_adapters_learn_and_merge(task_type):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = small_model(tied=False).train()
    inputs = lesson(model)
    prompt = {name: value for name, value in inputs.items() if name != "labels"}
    if not hasattr(model.config, "model_type"):
        model.config.model_type = "qwen2_vl"
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "qkv"], task_type=task_type)
    model.gradient_checkpointing_enable()
    wrapped = peft.get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        loss = wrapped(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    wrapped.eval()
    said = wrapped.generate(**prompt, max_new_tokens=4)
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, Qwen2VLForConditionalGeneration) and isinstance(merged.lm_head, nn.Linear)
    assert merged.state_dict().keys() == small_model(tied=False).state_dict().keys()
    assert torch.equal(merged.generate(**prompt, max_new_tokens=4), said)
