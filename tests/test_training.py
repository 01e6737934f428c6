"""The bundled checkpoint's training and evaluation, on a few seconds of each."""

import csv

import pytest
import torch

import weights_loader
from qwen2vl_mini import Special
from tiny_world import evaluate, train
from tiny_world.scenes import TEST_SEED

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or newer")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return train.start_folder(tmp_path_factory.mktemp("start"))


def test_only_the_answers_are_learned(processor):
    tokenizer = processor.tokenizer
    turns = [
        ("describe", "Describe this image.", "A red circle."),
        ("where", "Where is the red circle?", "<|box_start|>(1,2),(3,4)<|box_end|>"),
    ]
    ids, labels = train.encode_chat(tokenizer, turns, cells=6)
    assert ids.count(tokenizer.special_ids["<|image_pad|>"]) == 6
    assert all(label in (-100, token) for token, label in zip(ids, labels))
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned == "A red circle.<|im_end|><|box_start|>(1,2),(3,4)<|box_end|><|im_end|>"
    # the same ids as the prompt that the model will be asked with
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]}]
    pieces = train.render_chat(messages, add_generation_prompt=True)
    prompt = tokenizer.encode([p for piece in pieces for p in [piece] * (6 if piece == "<|image_pad|>" else 1)])
    assert ids[: len(prompt)] == prompt and labels[: len(prompt)] == [-100] * len(prompt)
    assert labels[len(prompt)] == tokenizer.encode("A red circle.")[0]
    assert Special("<|im_end|>") in tokenizer.special_ids


def test_a_batch_has_one_target_for_each_visual_token(processor):
    batch = train.make_batch(3, processor.tokenizer, processor.image_processor)
    image_id = processor.tokenizer.special_ids["<|image_pad|>"]
    assert (batch["input_ids"] == image_id).sum() == len(batch["cell_names"]) == len(batch["pixel_values"]) // 4
    assert batch["cell_places"].shape == (len(batch["cell_names"]), 10)
    has_object = ~batch["cell_places"][:, 2].isnan()
    assert torch.equal(has_object, batch["cell_names"][:, :8].any(1))
    again = train.make_batch(3, processor.tokenizer, processor.image_processor)
    assert torch.equal(batch["pixel_values"], again["pixel_values"])  # a seed is a batch
    answers = (batch["labels"] == processor.tokenizer.special_ids["<|im_end|>"]).sum(1).tolist()
    assert answers == [len(tasks) for tasks in batch["tasks"]]


def test_exact_by_task_wants_every_token():
    labels = torch.tensor([[-100, 1, 2, -100, 3]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0, 0]]), 5).float()
    assert train.exact_by_task(logits, labels, [["describe", "count"]]) == {"describe": [True], "count": [False]}


def test_the_rate_warms_up_stays_and_falls():
    assert train.rate_factor(0, 0.0) < 0.05
    assert train.rate_factor(1000, 0.3) == 1.0
    assert 0 < train.rate_factor(1000, 0.95) < 0.5
    assert train.rate_factor(1000, 1.0) == 0.0


def test_training_learns_is_resumed_and_saves_what_can_be_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "MAX_ROWS", 8)
    monkeypatch.setattr(train, "MAX_SIDE", 84)
    folder = tmp_path / "small"
    monkeypatch.setattr(train, "WARMUP_STEPS", 2)
    train.train(folder, minutes=60, max_steps=3, log_every=1)
    first = capsys.readouterr().out
    train.train(folder, minutes=60, max_steps=8, log_every=1)
    second = capsys.readouterr().out
    assert "Going on at step" not in first and "Going on at step" in second
    with (folder / "training.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == list(range(1, 9))  # both runs in one table
    assert float(lines[-1]["loss"]) < float(lines[0]["loss"])
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    model, processor = weights_loader.load(folder)
    assert sum(p.numel() for p in model.parameters()) == 3_767_040
    results = evaluate.evaluate(model, processor, ["describe", "where"], 2, 64, 2, "train")
    assert results["describe"]["n"] == 2 and 0 <= results["where"]["mean_iou"] <= 1


def test_iou_and_the_interval():
    assert evaluate.iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert evaluate.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert evaluate.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    low, high = evaluate.wilson(475, 500)
    assert low == pytest.approx(0.927, abs=1e-3) and high == pytest.approx(0.966, abs=1e-3)


def test_scores():
    (sample,) = evaluate.held_out_samples("where", 1, 120, 3, "train")
    assert sample.seed >= TEST_SEED
    assert evaluate.score(sample, sample.answer) == (True, pytest.approx(1.0))
    assert evaluate.score(sample, "I do not know.") == (False, 0.0)
    (sample,) = evaluate.held_out_samples("colour", 1, 120, 3, "train")
    assert evaluate.score(sample, sample.answer) == (True, None)
    assert evaluate.score(sample, sample.answer.lower()) == (False, None)


def test_character_errors():
    assert [evaluate.edits(*pair) for pair in (("", "AB"), ("AB12", "AB12"), ("A12", "AB12"), ("B1A", "AB1"))] == [
        2,
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("task", evaluate.ALL_TASKS)
def test_every_task_can_be_asked(task):
    """Two pictures, clips and second turns go through the processor, and an answer in the right words is right."""
    (sample,) = evaluate.held_out_samples(task, 1, 90, 2, "train")
    assert evaluate.score(sample, sample.answer)[0] and not evaluate.score(sample, "Hello.")[0]
    model, processor = weights_loader.load("tiny", dtype="float32")
    (said,) = evaluate.answers(model, processor, [sample], max_new_tokens=3)
    assert isinstance(said, str)


def test_evaluate_refuses_bad_input_in_one_sentence(capsys):
    assert evaluate.main(["--model", "no/such folder", "--samples", "1"]) == 2
    assert evaluate.main(["--samples", "0"]) == 2
    assert evaluate.main(["--min-side", "300", "--max-side", "200"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_training_can_start_from_a_checkpoint(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MAX_ROWS", 2)
    monkeypatch.setattr(train, "MAX_SIDE", 60)
    torch.manual_seed(5)
    model = train.Qwen2VLForConditionalGeneration(train.tiny_config(processor.tokenizer))
    weights_loader.save(model, processor, tmp_path / "old")
    monkeypatch.setattr(train, "MUON_RATE", 0.0)  # so the one step changes nothing
    monkeypatch.setattr(train, "ADAMW_RATE", 0.0)
    train.train(tmp_path / "new", minutes=60, max_steps=1, start_from=str(tmp_path / "old"), log_every=1)
    new = weights_loader.load_model(tmp_path / "new", dtype="bfloat16").state_dict()
    assert all(torch.equal(new[name], weight.bfloat16()) for name, weight in model.state_dict().items())
