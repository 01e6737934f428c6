"""The study of M-RoPE: its positions are those it speaks of, its clips show what they should, and a small one runs."""

import csv
from dataclasses import replace

import pytest
import torch

from qwen2vl_mini import Qwen2VLProcessor, get_rope_index, mrope_angles
from tiny_world import scenes, studies, study_rope
from tiny_world.batches import render_all
from tiny_world.study_rope import (
    AS_TRAINED,
    BASE,
    FAR_QUESTION,
    FAR_SIDES,
    FAR_TIME,
    SQUEEZED,
    WAYS,
    Asker,
    Movements,
    Way,
    positions_of,
)

CELLS = study_rope.ROWS * study_rope.COLS
WORDS = 5


@pytest.fixture(scope="module")
def processor():
    return Qwen2VLProcessor.from_pretrained("tiny")


def few_movements(count=3, width=192):
    """Random visual tokens in the place of movements."""
    torch.manual_seed(0)
    return Movements(torch.randn(count, study_rope.STILLS, CELLS, width), torch.arange(count) % 4)


# ── Positions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pairs", (2, 4, 16))
def test_positions_of_mrope_are_those_of_the_model(processor, pairs):
    config = study_rope.new_decoder(Way(), 0, processor.tokenizer).model.config
    ids = torch.tensor([[config.vision_start_token_id, *[config.video_token_id] * pairs * CELLS, *range(WORDS)]])
    grid = torch.tensor([[pairs, 2 * study_rope.ROWS, 2 * study_rope.COLS]])
    wanted, _ = get_rope_index(config, ids, video_grid_thw=grid)
    assert torch.equal(positions_of(Way(), pairs, WORDS), wanted[:, 0].float())


def test_positions_of_one_axis_count_the_tokens():
    positions = positions_of(Way(one_axis=True), 16, WORDS)
    assert torch.equal(positions, torch.arange(1.0 + 16 * CELLS + WORDS).expand(3, -1))


@pytest.mark.parametrize("name", [name for name in WAYS if SQUEEZED in study_rope.readings_of(name)])
@pytest.mark.parametrize("pairs", (12, 16))
def test_squeezed_positions_stay_in_the_trained_range(name, pairs):
    way = WAYS[name]
    squeezed = positions_of(way, pairs, WORDS, SQUEEZED).amax(1)
    assert torch.allclose(squeezed, positions_of(way, way.longest, WORDS).amax(1))
    assert (positions_of(way, pairs, WORDS).amax(1) > squeezed + 0.3).all()  # and without it they leave the range
    assert torch.equal(positions_of(way, 3, WORDS, SQUEEZED), positions_of(way, 3, WORDS))


def test_far_readings_differ_from_squeezed_on_their_own_axes():
    positions = {reading: positions_of(Way(), 16, WORDS, reading) for reading in study_rope.readings_of(BASE)}
    assert torch.equal(positions[FAR_TIME][0], positions[AS_TRAINED][0])
    assert torch.equal(positions[FAR_TIME][1:], positions[SQUEEZED][1:])
    assert torch.equal(positions[FAR_SIDES][0], positions[SQUEEZED][0])
    assert torch.equal(positions[FAR_SIDES][1:], positions[AS_TRAINED][1:])
    assert torch.equal(positions[FAR_QUESTION][:, :-WORDS], positions[SQUEEZED][:, :-WORDS])
    assert torch.equal(positions[FAR_QUESTION][:, -WORDS:], positions[AS_TRAINED][:, -WORDS:])
    assert not torch.equal(positions[SQUEEZED][0], positions[AS_TRAINED][0])
    assert not torch.equal(positions[SQUEEZED][1:], positions[AS_TRAINED][1:])


def test_time_fitted_ends_where_eight_frames_do():
    for pairs in (2, 6, 16):
        positions = positions_of(WAYS["M-RoPE, time fitted"], pairs, WORDS)
        t = positions[0, 1 : 1 + pairs * CELLS]
        assert t[0] == 1 and t[-1] == pytest.approx(4) and torch.equal(t, t.sort().values)
        assert torch.allclose(positions[:, -1], torch.tensor(4.0 + WORDS))


def test_time_steps_of_a_quarter():
    t = positions_of(WAYS["M-RoPE, time steps of 1/4"], 16, WORDS)[0, 1 : 1 + 16 * CELLS]
    assert torch.equal(t[::CELLS], 1 + torch.arange(16) / 4)


def test_time_last_turns_the_slowest_pairs_with_time(processor):
    way = WAYS["M-RoPE, time in the slowest pairs"]
    config = study_rope.new_decoder(way, 0, processor.tokenizer).model.config.text_config
    plain = positions_of(Way(), 8, WORDS)
    angles = mrope_angles(positions_of(way, 8, WORDS)[:, None], config)[0]  # (S, 16)
    rates = 20.0 ** -(torch.arange(16) / 16)
    for pair, axis in enumerate([1] * 6 + [2] * 6 + [0] * 4):
        assert torch.allclose(angles[:, pair], plain[axis] * rates[pair], atol=1e-5)


# ── Clips ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_movements_go_where_they_say():
    for seed in range(8):
        stills, direction = study_rope.draw_movement(seed)
        assert len(stills) == study_rope.STILLS
        (before,) = set(stills[0].things) - set(stills[-1].things)
        (after,) = set(stills[-1].things) - set(stills[0].things)
        dx, dy = after.cx - before.cx, after.cy - before.cy
        seen = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("up" if dy < 0 else "down")
        assert study_rope.ANSWERS[direction] == seen
    assert study_rope.draw_movement(3) == study_rope.draw_movement(3) != study_rope.draw_movement(scenes.TEST_SEED + 3)


def test_clips_show_the_ends_forwards_and_backwards():
    movements = few_movements()
    seen, answers = movements.clips(torch.tensor([2, 2]), torch.tensor([False, True]), 4)
    stills = seen.view(2, 4, CELLS, -1)
    assert torch.equal(stills[0], movements.seen[2, [0, 5, 10, 15]])
    assert torch.equal(stills[1], stills[0].flip(0))
    assert [study_rope.ANSWERS[answer] for answer in answers] == ["right", "left"]
    whole, _ = movements.clips(torch.tensor([1]), torch.tensor([False]), 16)
    assert torch.equal(whole[0], movements.seen[1].flatten(0, 1))


def test_the_answers_begin_with_different_tokens(processor):
    assert len(set(Asker(processor.tokenizer).answers.tolist())) == 4


def test_stored_tokens_answer_as_the_whole_model(processor):
    """Without its own tower, a decoder says what the model says about a clip that shows each still twice."""
    trainer = study_rope.new_decoder(Way(), 0, processor.tokenizer)
    trainer.in_half = False
    model = trainer.model.eval()
    asker = Asker(processor.tokenizer)
    stills, _ = study_rope.draw_movement(0)
    frames = [image for image in render_all(stills[:6]) for _ in range(2)]
    patches, grid = processor.image_processor.patches_of(frames, (study_rope.SIDE, study_rope.SIDE))
    grids = torch.tensor([grid])
    clip = torch.full((6 * CELLS,), model.config.video_token_id)
    ids = torch.cat([asker.before, clip, asker.after])[None]
    with torch.no_grad():
        wanted = model(ids, pixel_values_videos=patches, video_grid_thw=grids).logits[:, -1]
        each = torch.tensor([[1, *grid[1:]]]).repeat(6, 1)
        seen = model.visual(patches, each)[None]
        found = asker.scores(trainer, seen, positions_of(Way(), 6, len(asker.after))[:, None])
    assert torch.allclose(found, wanted, atol=1e-3)
    moved = asker.scores(trainer, seen, positions_of(Way(), 6, len(asker.after), FAR_TIME)[:, None])
    assert not torch.allclose(moved, wanted, atol=1e-3)


# ── The study ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ways_differ_in_positions_only(processor, monkeypatch):
    """A seed is a decoder and a row of clips, whatever the way."""
    monkeypatch.setattr(study_rope, "CLIPS", 4)
    drawn, weights = [], []
    clips = Movements.clips

    def keep(movements, which, backwards, pairs):
        drawn.append((which.tolist(), backwards.tolist(), pairs))
        return clips(movements, which, backwards, pairs)

    monkeypatch.setattr(Movements, "clips", keep)
    asker = Asker(processor.tokenizer)
    for name in ("M-RoPE, theta 20", "1-D RoPE, theta 1000", "M-RoPE, question apart"):
        trainer = study_rope.new_decoder(WAYS[name], 7, processor.tokenizer)
        weights.append([weight.clone() for weight in trainer.model.model.parameters()])
        steps = [step for step, _ in study_rope.train_steps(trainer, WAYS[name], 7, 3, few_movements(20), asker)]
        assert steps == [1, 2, 3]
        changed = [not torch.equal(a, b) for a, b in zip(weights[-1], trainer.model.model.parameters())]
        assert all(changed)
    assert drawn[:3] == drawn[3:6] == drawn[6:] and len({tuple(which) for which, _, _ in drawn[:3]}) == 3
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*weights))


def test_question_apart_stands_further_on_in_training(processor, monkeypatch):
    asker = Asker(processor.tokenizer)
    way = replace(WAYS["M-RoPE, question apart"], frames=(8,))
    words = len(asker.after)
    offsets = []

    def keep(trainer, seen, positions):
        offset = positions - positions_of(way, 4, words)[:, None]
        assert not offset[..., :-words].any()
        assert (offset[..., -words:] == offset[:1, :, -1:]).all()
        offsets.extend(offset[0, :, -1].tolist())
        return torch.zeros(len(seen), 512, requires_grad=True)

    monkeypatch.setattr(asker, "scores", keep)
    trainer = study_rope.new_decoder(way, 0, processor.tokenizer)
    list(study_rope.train_steps(trainer, way, 0, 4, few_movements(), asker))
    assert min(offsets) == 0 and max(offsets) == way.apart and len(set(offsets)) == way.apart + 1


def test_flat_from():
    assert study_rope.flat_from({100: 0.3, 200: 0.96, 300: 0.98, 400: 0.97}) == 200
    assert study_rope.flat_from({100: 0.98, 200: 0.9, 300: 0.98}) == 300
    assert study_rope.flat_from({100: 0.98}) == 100


def test_rope(tmp_path, monkeypatch):
    few = {name: WAYS[name] for name in ("M-RoPE, theta 20", "1-D RoPE, theta 20", "M-RoPE, time fitted")}
    monkeypatch.setattr(study_rope, "WAYS", few)
    monkeypatch.setattr(study_rope, "MOVEMENTS", 3)
    monkeypatch.setattr(study_rope, "CLIPS", 2)
    monkeypatch.setattr(study_rope, "TEST_FRAMES", (4, 12))
    rows = run_rope(tmp_path)
    every = {(name, AS_TRAINED, frames) for name in few for frames in ("4", "12")}
    every |= {("M-RoPE, theta 20", reading, "12") for reading in (SQUEEZED, FAR_TIME, FAR_SIDES, FAR_QUESTION)}
    every |= {("1-D RoPE, theta 20", SQUEEZED, "12")}
    every |= {(name, "in training", "4 to 8") for name in few}
    assert {(row["way"], row["reading"], row["frames"]) for row in rows} == every
    assert len(rows) == len(every)
    assert all(row["step"] == row["flat_from"] == "2" and 0 <= float(row["accuracy"]) <= 1 for row in rows)

    monkeypatch.setattr(study_rope, "measure", None)  # a second run measures nothing
    assert run_rope(tmp_path) == rows


def run_rope(folder):
    assert studies.main(["rope", "--out", str(folder), "--seeds", "1", "--samples", "2", "--steps", "2"]) == 0
    table = folder / "study_rope.csv"
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as lines:
        return list(csv.DictReader(lines))
