"""The bundled checkpoint's training and evaluation, on a few seconds of each."""

import csv

import pytest
import torch

import weights_loader
from qwen2vl_mini import Qwen2VLForConditionalGeneration
from tiny_world import batches, evaluate, train
from tiny_world.heads import TowerHeads
from tiny_world.muon import COEFFICIENTS, Muon, orthogonalised
from tiny_world.scenes import COLOURS, SHAPES, TEST_SEED


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return train.start_folder(tmp_path_factory.mktemp("start"))


def test_exact_by_task_wants_every_token():
    ids = torch.tensor([[7, 1, 2, 7, 3]])
    answers = torch.tensor([[-1, 0, 0, -1, 1]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0, 0]]), 8).float()
    right = train.exact_by_task(logits, ids, answers, [["describe", "count"]])
    assert right == {"describe": [True], "count": [False]}


@pytest.mark.parametrize("size", [(12, 40), (40, 12), (20, 20)])
def test_orthogonalised_keeps_directions_and_evens_their_sizes(size):
    torch.manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(size), full_matrices=False)
    sizes = torch.logspace(0, -2, len(u.T if size[0] > size[1] else u))  # from 1 down to a hundredth
    found = u.T @ orthogonalised(u * sizes @ v) @ v.T  # in the directions of the matrix
    assert 0.6 < found.diagonal().min() and found.diagonal().max() < 1.3
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def step_beside_torch(kind_of_gradient) -> tuple[list, list, list]:
    """Two steps of our Muon and of torch's on a wide, a tall and a square matrix: where both began and ended."""
    start = [torch.randn(size) for size in ((8, 24), (24, 8), (16, 16))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    steppers = Muon(ours, lr=0.1, weight_decay=0.02), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.02)
    gradients = [[kind_of_gradient(p) for _ in range(2)] for p in start]
    for step in range(2):
        for mine, other, gradient in zip(ours, theirs, gradients):
            mine.grad, other.grad = gradient[step].clone(), gradient[step].clone()
        for stepper in steppers:
            stepper.step()
    assert steppers[0].state[ours[0]].keys() == steppers[1].state[theirs[0]].keys()  # one can resume the other's
    return start, ours, theirs


def largest_rounding_error(s: float) -> float:
    """Of five Newton-Schulz iterations in bfloat16, as a share of their result, to first order.

    For a matrix X = s Q, Q with orthonormal rows; it stays of that form, and s becomes p(s) = a s + b s³ + c s⁵.
    bfloat16 keeps 8 bits, so what is stored is off by at most 2⁻⁸ of itself (products are summed in float32). An error
    E of X becomes p'(s) E where E Qᵀ is symmetric and p(s) / s E elsewhere: as a share of the matrix, it is multiplied
    by |p'(s)| s / p(s) or by 1. To it are added the roundings of the two products and of the new X.
    """
    a, b, c = COEFFICIENTS
    error = 3.0  # in units of 2⁻⁸: the cast to bfloat16, the norm, the division by it
    for _ in range(5):
        new = a * s + b * s**3 + c * s**5
        growth = max(1.0, abs(a + 3 * b * s**2 + 5 * c * s**4) * s / new)
        of_gram = abs(b + 2 * c * s**2) * s**3 / new  # G = X Xᵀ = s², seen through b G X + c G² X
        of_update = abs(b * s**2 + c * s**4) * s / new  # U = b G + c G², seen through U X
        error = growth * error + of_gram + of_update + 1
        s = new
    return error * 2**-8


needs_the_peer = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the peer came with torch 2.9")


@needs_the_peer
def test_muon_in_bfloat16_steps_as_that_of_torch_to_the_bit(monkeypatch):
    monkeypatch.setattr(weights_loader, "cpu_is_fast_in_bfloat16", lambda: True)
    for seed in range(20):
        torch.manual_seed(seed)
        _, ours, theirs = step_beside_torch(torch.randn_like)
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs))


@needs_the_peer
def test_muon_in_float32_differs_from_that_of_torch_by_rounding_alone(monkeypatch):
    """Gradients have equal singular values: of others, bfloat16 loses the small ones in the rounding of the large."""
    monkeypatch.setattr(weights_loader, "cpu_is_fast_in_bfloat16", lambda: False)
    for seed in range(20):
        torch.manual_seed(seed)
        orthogonal = {size: torch.nn.init.orthogonal_(torch.empty(size)) for size in ((8, 24), (24, 8), (16, 16))}
        start, ours, theirs = step_beside_torch(lambda p, orthogonal=orthogonal: orthogonal[tuple(p.shape)])
        for before, mine, other in zip(start, ours, theirs):
            bound = largest_rounding_error(min(before.shape) ** -0.5)  # 0.16; 0.016 is the most in 300 seeds
            assert 0 < torch.dist(mine, other) < bound * torch.dist(mine, before)


def test_an_answer_weighs_as_the_root_of_its_length():
    ids = torch.tensor([[9, 1, 9, 2, 2, 2, 2]])
    answers = torch.tensor([[-1, 0, -1, 1, 1, 1, 1]])
    losses = []
    for wrong in (1, 2):  # certain of everything but the answer whose tokens are `wrong`
        logits = torch.full((1, 7, 10), -30.0)
        logits[0, torch.arange(6), ids[0, 1:]] = 30.0
        logits[0, :-1][ids[0, 1:] == wrong] = 0.0
        losses.append(float(train.answer_loss(logits, ids, answers)))
    assert losses[1] / losses[0] == pytest.approx(2)  # four tokens weigh twice as much as one
    assert sum(losses) == pytest.approx(torch.tensor(10.0).log().item())


def test_names_are_smoothed_over_their_group(processor):
    tokenizer = processor.tokenizer
    groups = train.name_groups(tokenizer)
    assert [[tokenizer.decode([i]) for i in group] for group in groups] == [
        [f" {name}" for name in COLOURS],
        [name.capitalize() for name in COLOURS],
        [f" {name}" for name in SHAPES],
    ]
    names = groups[2]  # eight shapes
    for wanted, best in ((names[0], 0.9 + 0.1 / 8), (7, 1.0)):  # a shape, and a token of no group
        logits = torch.zeros(1, 2, tokenizer.bpe.get_vocab_size(), requires_grad=True)
        ids, answers = torch.tensor([[9, int(wanted)]]), torch.tensor([[-1, 0]])
        optimizer = torch.optim.Adam([logits], lr=0.3)
        for _ in range(300):
            optimizer.zero_grad()
            train.answer_loss(logits, ids, answers, groups).backward()
            optimizer.step()
        shares = logits[0, 0].softmax(-1)
        assert shares[wanted].item() == pytest.approx(best, abs=0.01)
        if best < 1:  # no other shape is less likely than the next
            assert shares[names[1:]].tolist() == pytest.approx([0.1 / 8] * 7, abs=0.002)


def test_the_rate_warms_up_stays_and_falls():
    assert train.rate_factor(0, 0.0) < 0.05
    assert train.rate_factor(1000, train.DECAY_FROM) == 1.0
    assert 0 < train.rate_factor(1000, 0.95) < 0.5
    assert train.rate_factor(1000, 1.0) == 0.0


@pytest.fixture
def small_steps(monkeypatch):
    for recipe in (batches.FULL, batches.COURSE):
        monkeypatch.setitem(vars(recipe), "tokens", 500)
        monkeypatch.setitem(vars(recipe), "sheet_cells", 100)
    monkeypatch.setattr(train, "WARMUP_STEPS", 2)


def test_training_learns_is_resumed_and_saves_what_can_be_loaded(tmp_path, small_steps, monkeypatch, capsys):
    folder = tmp_path / "small"
    train.train(folder, minutes=60, max_steps=3, log_every=1)
    first = capsys.readouterr().out
    train.train(folder, minutes=60, max_steps=9, log_every=3)
    second = capsys.readouterr().out
    assert "Going on at step" not in first and "Going on at step" in second
    assert "3 steps of the tower and 9 of all" in second
    with (folder / "training.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == [1, 2, 3, 4, 5, 6, 9, 12]  # both runs and both stages in one table
    assert all(line["names"] and not line["answers"] for line in lines[:3])  # the tower alone
    assert float(lines[-1]["answers"]) < float(lines[3]["answers"])
    assert not lines[-1]["names"] and all(lines[-1][name] for name in ("places", "moves", "changes", "found"))
    names = ("known", "rest", "left", "coming", "sizes", "counts", "events")  # some need a round that comes once in 13
    assert all(any(line[name] for line in lines[3:]) for name in names)
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    model, processor = weights_loader.load(folder)
    assert sum(p.numel() for p in model.parameters()) == 4_554_880
    world = evaluate.World(max_side=64, max_things=2)
    results = evaluate.evaluate(model, processor, {task: (task, world) for task in ("describe", "where")}, 2)
    assert results["describe"]["n"] == 2 and 0 <= results["where"]["mean_iou"] <= 1


def test_the_heads_do_not_touch_the_saved_model(tmp_path, small_steps, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # then the rounds are made in the background
    train.train(tmp_path / "small", minutes=60, max_steps=1, recipe=batches.COURSE)
    names = weights_loader.load_model(tmp_path / "small").state_dict().keys()
    config = train.tiny_config(train.start_folder(tmp_path / "start").tokenizer)
    assert names == Qwen2VLForConditionalGeneration(config).state_dict().keys()


def test_iou_and_the_interval():
    assert evaluate.iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert evaluate.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert evaluate.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    low, high = evaluate.wilson(475, 500)
    assert low == pytest.approx(0.927, abs=1e-3) and high == pytest.approx(0.966, abs=1e-3)


def test_scores():
    (sample,) = evaluate.World(max_side=120).samples("where", 1)
    assert sample.seed >= TEST_SEED
    assert evaluate.score(sample, sample.answer) == (True, pytest.approx(1.0))
    assert evaluate.score(sample, "I do not know.") == (False, 0.0)
    (sample,) = evaluate.World(max_side=120).samples("colour", 1)
    assert evaluate.score(sample, sample.answer) == (True, None)
    assert evaluate.score(sample, sample.answer.lower()) == (False, None)


def test_character_errors():
    assert [evaluate.edits(*pair) for pair in (("", "AB"), ("AB12", "AB12"), ("A12", "AB12"), ("B1A", "AB1"))] == [
        2,
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("task", evaluate.TASKS)
def test_every_task_can_be_asked(task):
    """Two pictures, clips and second turns go through the processor, and an answer in the right words is right."""
    (sample,) = evaluate.World(max_side=90, max_things=2).samples(task, 1)
    assert evaluate.score(sample, sample.answer)[0] and not evaluate.score(sample, "Hello.")[0]
    model, processor = weights_loader.load("tiny", dtype="float32")
    (said,) = evaluate.answers(model, processor, [sample], max_new_tokens=3)
    assert isinstance(said, str)


def test_evaluate_refuses_bad_input_in_one_sentence(capsys):
    assert evaluate.main(["--model", "no/such folder", "--samples", "1"]) == 2
    assert evaluate.main(["--samples", "0"]) == 2
    assert evaluate.main(["--min-side", "300", "--max-side", "200"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_training_can_start_from_a_checkpoint(processor, tmp_path, small_steps, monkeypatch):
    torch.manual_seed(5)
    model = Qwen2VLForConditionalGeneration(train.tiny_config(processor.tokenizer))
    weights_loader.save(model, processor, tmp_path / "old")
    monkeypatch.setattr(train, "MUON_RATE", 0.0)  # so the one step changes nothing
    monkeypatch.setattr(train, "ADAMW_RATE", 0.0)
    train.train(tmp_path / "new", minutes=60, max_steps=1, start_from=str(tmp_path / "old"), log_every=1)
    new = weights_loader.load_model(tmp_path / "new", dtype="bfloat16").state_dict()
    assert all(torch.equal(new[name], weight.bfloat16()) for name, weight in model.state_dict().items())


def test_pictures_without_any_object_leave_gradients_finite(processor):
    """A round of texts alone: what cannot be known must not become a gradient that is no number."""
    trainer = train.Trainer(train.new_model(processor, None), processor.tokenizer)
    for seed in range(200):
        batch = batches.make_round("read", seed, processor, recipe=batches.Recipe(tokens=400))
        if batch["places"][:, 2:].isnan().all():
            break
    assert batch["places"][:, 2:].isnan().all()
    trainer.round_loss(batch).backward()
    gradients = [p.grad for p in trainer.model.model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_no_letters_are_no_lesson():
    heads, seen = TowerHeads(8), torch.zeros(3, 8)
    slots, edges = torch.zeros(3, batches.SLOTS, dtype=torch.long), torch.full((3, 4), torch.nan)
    names = torch.zeros(3, len(batches.NAMES))
    assert heads(seen, names, edges, slots).keys() == {"names"}
    slots[0, 0] = 1
    assert heads(seen, names, edges, slots).keys() == {"names", "characters"}


def test_the_tower_stays_as_it_has_learned_alone(tmp_path, small_steps, monkeypatch):
    real, tower_learns = train.Trainer.step, []

    def step(self, factor):
        tower_learns.append(any(p.grad is not None for p in self.model.visual.parameters()))
        real(self, factor)

    monkeypatch.setattr(train.Trainer, "step", step)
    states = []
    for steps in (1, 3):
        train.train(tmp_path / "small", minutes=60, max_steps=steps, recipe=batches.COURSE)
        states.append(weights_loader.load_model(tmp_path / "small").state_dict())
    same = {name for name, weight in states[0].items() if torch.equal(weight, states[1][name])}
    assert {name for name in states[0] if name.startswith("visual")} <= same < states[0].keys()
    assert tower_learns == [True, False, False, False]  # else its gradients would be computed for nothing
