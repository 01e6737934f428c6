"""The studies, on a few scenes and steps each: they run, write what they say, and go on where they were."""

import csv

import pytest
import torch

import weights_loader
from qwen2vl_mini import Qwen2VLProcessor
from tiny_world import studies


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def run(study, folder, *more):
    assert studies.main([study, "--out", str(folder), "--seeds", "1", "--samples", "2", "--steps", "2", *more]) == 0
    table = folder / f"study_{study}.csv"
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return rows_of(table)


def test_resolution(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "MAX_TOKENS", (4, 16))
    monkeypatch.setattr(studies, "FIXED_TOKENS", (16,))
    rows = run("resolution", tmp_path)
    assert {(row["way"], row["limit"], row["task"]) for row in rows} == {
        (way, limit, task)
        for way, limit in (("dynamic", "4"), ("dynamic", "16"), ("fixed area", "16"), ("fixed square", "16"))
        for task in ("read", "where")
    }
    tokens = {(row["way"], row["limit"]): float(row["tokens"]) for row in rows}
    assert tokens["fixed square", "16"] == 16 and tokens["dynamic", "4"] <= 4 and tokens["dynamic", "16"] <= 16
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert run("resolution", tmp_path) == rows  # nothing is measured twice


def test_every_merger_is_new():
    trainer = studies.new_trainer(Qwen2VLProcessor.from_pretrained("tiny"), 7, merge_size=2)
    bundled = weights_loader.load_model("tiny", dtype="float32").visual
    assert all(w.requires_grad == n.startswith("merger") for n, w in trainer.model.visual.named_parameters())
    same = {name for name, w in trainer.model.visual.named_parameters() if torch.equal(w, bundled.get_parameter(name))}
    assert same == {name for name, _ in bundled.named_parameters() if not name.startswith("merger")}


def test_a_new_merger_learns_alone_and_is_frozen(monkeypatch):
    monkeypatch.setattr(studies, "MERGER_STEPS", 2)
    monkeypatch.setattr(studies, "rate_factor", lambda step, progress: 1.0)
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    trainer = studies.new_trainer(processor, 7, merge_size=2)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    studies.teach_merger(trainer, processor, 7)
    changed = {name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("visual.merger")}
    assert not any(weight.requires_grad for weight in trainer.model.visual.parameters())


def test_merger(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "MERGER_STEPS", 2)
    monkeypatch.setattr(studies, "MERGES", (1, 2))
    monkeypatch.setattr(studies, "SEEN_SIDE", 112)
    rows = run("merger", tmp_path)
    assert {(row["merge"], row["task"]) for row in rows} == {(m, t) for m in "12" for t in studies.MERGER_TASKS}
    tokens = {row["merge"]: float(row["tokens"]) for row in rows}
    assert 3 < tokens["1"] / tokens["2"] < 6  # four patches are a token
    assert all(float(row["seconds_to_first_token"]) > 0 for row in rows)


def test_the_series_has_means_and_deviations(tmp_path):
    results = studies.Results(tmp_path / "table.csv", ("way", "x"))
    for seed, y in enumerate((0.2, 0.4)):
        results.add(way="a", x=1, seed=seed, y=y)
    results.add(way="b", x=1, seed=0, y=0.9)
    x, y, error = results.series("x", "y", way="a")
    assert (x, y, error) == ([1.0], [pytest.approx(0.3)], [pytest.approx(0.1414, abs=1e-4)])
    assert results.has(way="a", x=1, seed=1) and not results.has(way="a", x=1, seed=2)
    assert studies.Results(tmp_path / "table.csv", ("way", "x")).rows == results.rows


def test_bad_options_end_in_a_sentence(tmp_path, capsys):
    assert studies.main(["rope", "--out", str(tmp_path), "--seeds", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
