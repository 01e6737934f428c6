"""Fine-tuning by LoRA: what is learned and from which tokens, that merging changes nothing, and the whole example."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from tests.official import load_official, save_random_checkpoint
from tests.small_models import image, make_inputs, relative_difference, shared_model, small_model
from tiny_world import lora
from tiny_world.lora import NOT_LEARNED, TARGETS, LoRALinear, add_lora, encode, merge_lora, train

ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8}  # half a unit in the last place, relative


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model with the tiny world's words."""
    return save_random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


def picture(width: int = 84, height: int = 56, colour: str = "orange") -> dict:
    return {"type": "image", "image": Image.new("RGB", (width, height), colour)}


def user(*content) -> dict:
    return {"role": "user", "content": [*content]}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


SPOON = [user(picture(), "What is it?"), assistant("A wooden spoon.")]
EXAMPLES = [
    SPOON,
    [user(picture(56, 112, "navy"), "What is it?"), assistant("A cup of tea, without sugar.")],
    [user(picture(), picture(colour="white"), "Which one is it?"), assistant("The second.")],
    [user("Who are you?"), assistant("Nobody.")],
]


@torch.no_grad()
def randomise_lora(model: nn.Module) -> None:
    """As if a lot had been learned: A·x is about as large as x, B·A·x too."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.B.normal_(std=module.B.shape[1] ** -0.5)


# ── Labels ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BOX = "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>"
ANSWERS = (
    *("A spoon.", " a space first", "a space last ", "two\n\nlines\n", "한국어 🙂 naïve", "x", "assistant\nA spoon."),
    *(BOX, f"Two: {BOX}{BOX}, that is all"),
    *("<|im_end|>", "a<|im_start|>assistant\nb", "<|image_pad|><|vision_end|>"),  # typed, so plain text
)


@pytest.mark.parametrize("answer", ANSWERS)
def test_labels_are_the_answer_and_its_end_mark(processor, answer):
    chat = [*SPOON[:1], assistant("An earlier answer."), user("And now?"), assistant(answer)]
    inputs, labels = encode(processor, [chat])
    learned = labels != NOT_LEARNED
    assert processor.decode(labels[learned]) == f"{answer}<|im_end|>"
    assert torch.equal(labels[learned], inputs["input_ids"][learned])

    prompt = processor.apply_chat_template(
        chat[:-1], tokenize=True, return_dict=True, add_generation_prompt=True
    ).input_ids
    first = int(learned.int().argmax())
    assert torch.equal(inputs["input_ids"][:, :first], prompt)  # what stands before the answer when it is generated


def test_a_box_in_an_answer_is_learned_as_it_is_generated(processor):
    ids = processor.tokenizer.special_ids
    _, labels = encode(processor, [[user(picture(), "Where is the cup?"), assistant(BOX)]])
    learned = labels[labels != NOT_LEARNED].tolist()
    names = ("object_ref_start", "object_ref_end", "box_start", "box_end", "im_end")
    assert [i for i in learned if i in ids.values()] == [ids[f"<|{name}|>"] for name in names]


def test_labels_in_a_padded_batch_are_those_of_each_row_alone(processor):
    inputs, labels = encode(processor, EXAMPLES)
    assert not inputs["attention_mask"].all() and (labels[inputs["attention_mask"] == 0] == NOT_LEARNED).all()
    for row, example in zip(labels, EXAMPLES):
        alone = encode(processor, [example])[1][0]
        assert torch.equal(row[len(row) - len(alone) :], alone)


def test_an_answer_whose_line_break_would_join_the_prompts_is_refused(processor):
    """Where BPE merges line breaks, as the released tokenizer does, such a prompt never ends in the same tokens."""

    class MergingLineBreaks:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer
            self.special_ids, self.pad_token_id = tokenizer.special_ids, tokenizer.pad_token_id

        def encode(self, pieces):
            two = self.tokenizer.encode("\n\n")
            ids = self.tokenizer.encode(pieces)
            while True:
                at = next((i for i in range(len(ids)) if ids[i : i + 2] == two), None)
                if at is None:
                    return ids
                ids[at : at + 2] = [0]

        def decode(self, ids, **how):
            raise NotImplementedError

        batch_decode = decode

    merging = Qwen2VLProcessor(
        processor.image_processor, MergingLineBreaks(processor.tokenizer), processor.chat_template
    )
    encode(merging, [SPOON])
    with pytest.raises(ValueError, match="begins with a line break"):
        encode(merging, [[user("Hello"), assistant("\nHello")]])


# ── Matrices ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_at_first_nothing_is_added(dtype):
    model = small_model().to(dtype)
    inputs = make_inputs(model.config, [[3, image(4, 6), 5], [7]])
    before = model(**inputs).logits
    add_lora(model, rank=3)
    assert torch.equal(model(**inputs).logits, before)  # y + scale·0 is y, to the bit


@pytest.mark.parametrize("names", [TARGETS, ("q_proj", "v_proj"), ("qkv", "fc1", "fc2"), "proj", ("0", "2")])
def test_only_lora_gets_gradients(names):
    model = small_model()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in layers if name.rpartition(".")[2] in ([names] if isinstance(names, str) else names)]
    parameters = add_lora(model, names, rank=2)
    assert len(parameters) == 2 * len(chosen) > 0

    randomise_lora(model)
    inputs = make_inputs(model.config, [[3, image(4, 6), 5], [7]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {f"{name}.{matrix}" for name in chosen for matrix in "AB"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_weight_is_w_plus_alpha_over_r_b_a(dtype):
    torch.manual_seed(1)
    linear = nn.Linear(24, 40).to(dtype)
    layer = LoRALinear(linear, rank=4, alpha=6)
    nn.init.normal_(layer.B)
    assert layer.A.dtype == layer.B.dtype == torch.float32
    exact = linear.weight.double() + 6 / 4 * layer.B.double() @ layer.A.double()
    size = linear.weight.double().abs() + 6 / 4 * layer.B.double().abs() @ layer.A.double().abs()
    bias = linear.bias.clone()

    merged = layer.merged()
    assert merged is linear and merged.weight.dtype == dtype and torch.equal(merged.bias, bias)
    # float32 sums of 4 products and W: at most 7 roundings; then one to the dtype
    bound = 7 * ROUNDING[torch.float32] * size + ROUNDING[dtype] * 1.01 * exact.abs()
    assert ((merged.weight.double() - exact).abs() <= bound).all()


@torch.no_grad()
def test_a_merged_layer_does_what_it_did_before():
    layer = LoRALinear(nn.Linear(24, 40), rank=4, alpha=8)
    nn.init.normal_(layer.B)
    x = torch.randn(100, 24)
    unmerged = layer(x).double()
    # Sums of 24 and of 4 products, each with as many roundings; all terms are at most these, in absolute values.
    inner = x.double().abs() @ layer.A.double().abs().T
    size = x.double().abs() @ layer.linear.weight.double().abs().T + 2 * inner @ layer.B.double().abs().T
    bound = 2 * (24 + 4 + 8) * ROUNDING[torch.float32] * (size + layer.linear.bias.double().abs())
    assert ((layer.merged()(x).double() - unmerged).abs() <= bound).all()


@torch.no_grad()
def test_a_merged_model_does_what_it_did_before():
    model = small_model(tied=False)
    inputs = make_inputs(model.config, [[3, image(4, 6), 5], [7]])
    untouched = model(**inputs).logits
    add_lora(model, (*TARGETS, "qkv", "fc1"), rank=2, alpha=1)
    randomise_lora(model)
    unmerged = model(**inputs).logits
    merge_lora(model)
    assert relative_difference(unmerged, untouched) > 0.01
    assert relative_difference(model(**inputs).logits, unmerged) < 1e-5  # the limit for two ways to the same logits
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": ("q_porj",)}, "'q_porj'"),
        ({"names": ("q_proj", "embed_tokens")}, "'embed_tokens'"),
        ({"names": ("lm_head",)}, "'lm_head'"),  # tied, it is the embedding too
        ({"names": ("self_attn",)}, "'self_attn'"),
        ({"names": ()}, "no layer"),
        *(({"rank": rank}, "rank") for rank in (0, -1, 2.0, True, "8", None)),
    ],
)
def test_what_cannot_be_adapted_is_refused(options, says):
    before = list(shared_model().state_dict())
    with pytest.raises(ValueError, match=says):
        add_lora(shared_model(), **options)
    assert list(shared_model().state_dict()) == before


def test_a_second_lora_is_refused_until_the_first_is_merged():
    model = small_model()
    names = list(model.state_dict())
    add_lora(model, ("q_proj",))
    with pytest.raises(ValueError, match=r"merge_lora\(model\) first"):
        add_lora(model, ("v_proj",))
    merge_lora(model)
    assert list(model.state_dict()) == names
    add_lora(model, ("v_proj",))


# ── Training, files ─────────────────────────────────────────────────────────────────────────────────────────────────


def trained(folder: Path, steps: int, dtype: str = "float32") -> tuple[Qwen2VLForConditionalGeneration, list[float]]:
    """A checkpoint, trained on EXAMPLES and merged; and the losses."""
    model, processor = weights_loader.load(folder, dtype=dtype, device="cpu")
    losses = train(model, processor, EXAMPLES, add_lora(model, rank=4), steps, learning_rate=0.01)
    merge_lora(model)
    return model, losses


def test_the_loss_falls_on_a_fixed_batch(checkpoint):
    """All examples are in each batch, so nothing but the learning changes the loss."""
    _, losses = trained(checkpoint, 25)
    assert losses[-1] < losses[0] / 2


def test_a_loss_that_is_no_number_ends_the_training(checkpoint):
    model, processor = weights_loader.load(checkpoint, dtype="float32", device="cpu")
    parameters = add_lora(model)
    nn.init.constant_(parameters[1], float("nan"))
    with pytest.raises(ValueError, match="step 1 is nan; choose a lower --learning-rate"):
        train(model, processor, EXAMPLES, parameters, 2, 0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_train_save_load_train_again_stays_exact(checkpoint, tmp_path, processor, dtype):
    inputs, labels = encode(processor, EXAMPLES)
    stored = [checkpoint]
    for name in ("first", "second"):
        with torch.enable_grad():
            model, _ = trained(stored[-1], 3, dtype)
        weights_loader.save(model, processor, tmp_path / name)
        stored.append(tmp_path / name)
        again, its_processor = weights_loader.load(tmp_path / name, dtype=dtype, device="cpu")

        for (key, weight), (its_key, its_weight) in zip(model.state_dict().items(), again.state_dict().items()):
            assert key == its_key and torch.equal(weight, its_weight), key
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        assert lora.answers(again, its_processor, EXAMPLES) == lora.answers(model, processor, EXAMPLES)

    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ADAPTED}
    assert names_that_differ(stored[1], stored[2]) == expected  # and no bias, norm or embedding
    if dtype == "float32":  # in bfloat16, loading has rounded the others too
        assert names_that_differ(stored[0], stored[1]) == expected


ADAPTED = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def names_that_differ(one: Path, other: Path) -> set[str]:
    """The keys whose weights differ in two checkpoints that have the same keys."""
    with safe_open(one / "model.safetensors", "pt") as a, safe_open(other / "model.safetensors", "pt") as b:
        assert set(a.keys()) == set(b.keys())
        return {key for key in a.keys() if not torch.equal(a.get_tensor(key).float(), b.get_tensor(key).float())}


@torch.no_grad()
def test_transformers_loads_a_merged_checkpoint(checkpoint, tmp_path, processor):
    with torch.enable_grad():
        model, _ = trained(checkpoint, 3)
    weights_loader.save(model, processor, tmp_path)
    official = load_official(tmp_path)
    inputs = processor.apply_chat_template(EXAMPLES[0], tokenize=True, return_dict=True, return_mm_token_type_ids=True)
    assert relative_difference(model(**inputs).logits, official(**inputs).logits) < 1e-5


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lesson_changes_the_style_and_nothing_else(tmp_path, capsys, monkeypatch):
    """In fewer but larger steps than by default. Any weights will do that describe and find well: margins are wide."""
    monkeypatch.setattr(lora, "HELD_OUT_PICTURES", 10)
    assert lora.main(["--out", str(tmp_path / "new"), "--steps", "60", "--learning-rate", "0.003"]) == 0
    said = capsys.readouterr().out

    losses = [float(loss) for loss in re.findall(r"loss (\S+)", said)]
    assert losses[-1] < losses[0] / 2
    scores = dict(
        (row, (int(a), int(b))) for row, a, b in re.findall(r"^(.*): (\d+) → (\d+) of 10", said, re.MULTILINE)
    )
    assert scores.keys() == {"describe", "describe, restyled", "count", "colour", "where"}
    before, after = scores.pop("describe, restyled")
    assert before == 0 and after >= 4
    assert scores.pop("describe")[1] <= 3
    assert all(after >= before - 5 for before, after in scores.values())
    assert said.count("after:  The picture: ") >= 2 and said.count("before: The picture: ") == 0

    changed = names_that_differ(weights_loader.bundled_checkpoint(), tmp_path / "new")  # also: no key more or less
    assert changed and all(
        re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight", name) for name in changed
    )


QUESTION = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]}
ANSWER = {"role": "assistant", "content": "A spoon."}


@pytest.fixture
def write(tmp_path):
    """Writes a file of lines beside a picture a.png; a line that is not bytes is written as JSON."""

    def write(*lines) -> Path:
        Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
        file = tmp_path / "data.jsonl"
        file.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        return file

    return write


def with_question(*items, **message) -> list[dict]:
    return [{"role": "user", "content": list(items), **message}, ANSWER]


BAD_LINES = {
    "no JSON": (b"What is it?", "no JSON"),
    "cut off": (json.dumps([QUESTION, ANSWER]).encode()[:-9], "no JSON"),
    "no UTF-8": (b'["\xff"]', "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "a long number": (b"9" * 10_000, "no JSON"),
    "two on a line": (json.dumps([QUESTION, ANSWER]).encode() * 2, "no JSON"),
    "null": (b"null", "list of messages"),
    "a text": ("What is it?", "list of messages"),
    "a single message": (ANSWER, '"messages"'),
    "another format": ({"conversations": [{"from": "human", "value": "<image>"}]}, '"messages"'),
    "null messages": ({"messages": None}, "list of messages"),
    "empty": ([], "by nobody"),
    "no answer": ([QUESTION], "by 'user'"),
    "the answer first": ([ANSWER, QUESTION], "by 'user'"),
    "no question": ([ANSWER], "by 'assistant'; write the user's question"),
    "a system prompt only": ([{"role": "system", "content": "Be short."}, ANSWER], "write the user's question"),
    "another role": ([QUESTION, {"role": "gpt", "content": "A spoon."}], "by 'gpt'"),
    "an answer without words": ([QUESTION, {"role": "assistant", "content": "  "}], "is not a text"),
    "an answer of nothing": ([QUESTION, {"role": "assistant", "content": []}], "is not a text"),
    "a picture as the answer": ([QUESTION, {**QUESTION, "role": "assistant"}], "is not a text"),
    "no content": ([QUESTION, {"role": "assistant"}], "'content'"),
    "no such picture": (with_question({"type": "image", "image": "b.png"}), "b.png"),
    "a folder": (with_question({"type": "image", "image": "."}), "folder"),
    "no picture": (with_question({"type": "image", "image": "data.jsonl"}), "no picture"),
    "no source": (with_question({"type": "image"}), "names no picture"),
    "no such clip": (with_question({"type": "video", "video": "b.mp4"}), "b.mp4"),
    "a wrong limit": (with_question({"type": "image", "image": "a.png", "max_pixels": "many"}), "max_pixels"),
    "half a character": (with_question("What is \ud800?"), "half a character"),
    "too long": (with_question("many words " * 40_000), "do not fit the model's context of 32768"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("place", [1, 3])
def test_a_bad_line_is_refused_before_anything_is_loaded(write, capsys, monkeypatch, name, place):
    monkeypatch.setattr(weights_loader, "load_model", None)
    bad, says = BAD_LINES[name]
    good = [QUESTION, ANSWER]
    file = write(*([good, b"", bad] if place == 3 else [bad, good]))
    assert lora.main(["--data", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {file}, line {place}: ") and captured.err.endswith((".\n", "?\n"))
    assert says in captured.err and len(captured.err) < 800


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "no.jsonl"], "no.jsonl is no file"),
        (["--data", "."], "is no file"),
        (["--data", "empty.jsonl"], "empty.jsonl is empty"),
        (["--model", "no_such_model"], "no such folder"),
        (["--out", "checkpoint"], "holds a checkpoint already"),
        (["--out", "empty.jsonl"], "cannot be written"),
        (["--out", "empty.jsonl/new"], "cannot be written"),
        *((["--steps", steps], "--steps must be at least 1") for steps in ("0", "-5")),
        *((["--rank", rank], "--rank must be at least 1") for rank in ("0", "-1")),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        *((["--learning-rate", rate], "--learning-rate must be above 0") for rate in ("0", "-1", "nan", "inf")),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_loader, "load_model", None)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert lora.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert says in captured.err


def test_a_file_of_conversations_is_learned(checkpoint, write, tmp_path, capsys, monkeypatch):
    """Every way to write a line that --batch takes; relative paths count from the file, not from here."""
    encoded = (tmp_path / "data.jsonl").resolve().parent / "a.png"
    file = write(
        b"\xef\xbb\xbf" + json.dumps([QUESTION, ANSWER]).encode() + b"\r",
        {"id": 7, "messages": with_question({"image_url": {"url": "a.png"}, "type": "image_url"}, "What is it?")},
        b"  ",
        with_question({"image": f"file://{encoded}"}, {"type": "text", "text": "And what is it?"}),
        with_question({"type": "video", "video": ["a.png", "a.png"]}, "Does it move?"),
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Who are you?"},
            ANSWER,
            QUESTION,
            ANSWER,
        ],
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    argv = ["--model", str(checkpoint), "--data", str(file), "--out", "new", "--steps", "40", "--rank", "4"]
    assert lora.main([*argv, "--learning-rate", "0.02"]) == 0
    said = capsys.readouterr().out
    assert "5 conversations" in said and said.count("after:  A spoon.") == 3 and "before: A spoon." not in said

    model, processor = weights_loader.load("new", dtype="float32", device="cpu")
    assert lora.answers(model, processor, [[QUESTION | {"content": [picture(), "What is it?"]}, ANSWER]]) == [
        "A spoon."
    ]
