"""Held-out loss, sample answers, early stopping: measured without touching the run."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qllava.api import load, merge, train
from qllava.data.collate import collate
from qllava.data.dataset import hold_out, select
from qllava.errors import UserError
from qllava.model.inputs import processing_for
from qllava.recipe import resolve_recipe


def recipe(values, **changes):
    values = {**values, "learning_rate": 1e-3, "warmup_steps": 0, **changes}
    if "lora" not in values["tune"]:
        values.pop("lora")
    return resolve_recipe(values)


def weights(folder):
    return {f"{f.name}:{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["qlora", "lora", "projector", "full"])
def test_evaluations_change_nothing(recipe_values, tmp_path, tune):
    """With dropout, whose random stream an evaluation must not draw from; under QLoRA on a CPU with AVX512-BF16, a forward
    pass in evaluation mode repacks bitsandbytes' weights in place, after which gradients and merges are wrong."""
    common = {"tune": tune, "max_steps": 5, "save_steps": 50, "eval_share": 0.25, "sample_generations": 0}
    if "lora" in tune:
        common["lora"] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2}
    without = train(recipe(recipe_values, **common, eval_steps=1000, output_dir=str(tmp_path / "a")))
    watched = {**common, "eval_steps": 1, "sample_generations": 2}
    with_ = train(recipe(recipe_values, **watched, output_dir=str(tmp_path / "b")))
    assert [e["loss"] for e in without.log] == [e["loss"] for e in with_.log]
    assert [e["grad_norm"] for e in without.log] == [e["grad_norm"] for e in with_.log]
    a, b = weights(without.artifact), weights(with_.artifact)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    if tune == "qlora":
        one, other = (
            merge(r.artifact, tmp_path / f"merged-{i}", dtype="float32") for i, r in enumerate((without, with_))
        )
        a, b = weights(one), weights(other)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_held_out_loss_is_that_of_the_artifact(recipe_values, tmp_path):
    mine = recipe(recipe_values, tune="lora", max_steps=3, eval_share=0.25, eval_steps=3)
    result = train(mine)
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    measured = [e["eval_loss"] for e in state["log_history"] if "eval_loss" in e]
    processing = processing_for(mine)
    _, held = hold_out(select(mine, processing).rows, 0.25, mine.seed)
    from qllava.data.dataset import training_set

    rows = training_set(held, processing, 2048)
    loaded = load(result.artifact)
    batch = collate([rows[i] for i in range(len(rows))], processing)
    with torch.no_grad():
        logits = loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert measured == [pytest.approx(float(expected), rel=1e-4)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["eval_loss"] == measured[0]


def test_sample_answers_are_written(recipe_values, tmp_path):
    train(recipe(recipe_values, tune="lora", max_steps=4, eval_steps=2, sample_generations=3))
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 3 + [4] * 3
    assert [line["id"] for line in lines[:3]] == [line["id"] for line in lines[3:]]
    assert all({"prompt", "expected", "answer"} <= line.keys() for line in lines)


def test_early_stopping_keeps_the_best(recipe_values, tmp_path, monkeypatch):
    from qllava.train.watch import Watch

    losses = iter([3.0, 2.0, 2.5, 2.2, 9.0, 9.0])
    monkeypatch.setattr(Watch, "_loss", lambda self, trainer, model: next(losses))
    values = {"tune": "lora", "max_steps": 20, "eval_share": 0.25, "eval_steps": 1, "early_stopping_patience": 2}
    result = train(recipe(recipe_values, **values, save_steps=1, save_total_limit=1))
    assert result.steps == 4
    best = load_file(tmp_path / "run" / "checkpoint-2" / "projector.safetensors")
    final = load_file(result.artifact / "projector.safetensors")
    assert all(torch.equal(best[k], final[k]) for k in best)
    card = json.loads((tmp_path / "run" / "run.json").read_text())
    assert card["best_eval_loss"] == 2.0 and card["steps"] == 4


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.9), st.integers(0, 5))
def test_held_out_samples_are_never_trained_on(places, share, seed):
    """A sample that is taken several times stays on one side."""
    from datasets import Dataset

    rows = Dataset.from_dict({"where": [f"x.json, {p}" for p in places]})
    if len(set(places)) < 2 or max(1, round(len(set(places)) * share)) >= len(set(places)):
        return
    train_rows, held = hold_out(rows, share, seed)
    assert not set(train_rows["where"]) & set(held["where"])
    assert sorted([*train_rows["where"], *held["where"]]) == sorted(rows["where"])


def test_a_share_that_leaves_nothing(recipe_values):
    mine = recipe(recipe_values, tune="lora", eval_share=0.99)
    with pytest.raises(UserError, match="leaves none to train on"):
        train(mine)


def test_a_best_state_that_is_lost_costs_no_artifact(recipe_values, tmp_path, monkeypatch, capsys):
    import shutil

    from qllava.train.watch import Watch

    losses = iter([1.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr(Watch, "_loss", lambda self, trainer, model: next(losses))
    values = {"tune": "lora", "max_steps": 4, "eval_share": 0.25, "eval_steps": 1, "early_stopping_patience": 9}
    mine = recipe(recipe_values, **values, save_steps=1, save_total_limit=9)
    whole = train(mine)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (report["weights_of_step"], report["eval_loss"], report["held_out"]) == (2, 0.5, 4)
    assert "held-out loss 0.5000" in (whole.artifact / "README.md").read_text()
    shutil.rmtree(whole.artifact)
    (tmp_path / "run" / "checkpoint-2" / "projector.safetensors").write_bytes(b"half")
    resumed = train(mine, resume=True)
    assert resumed.steps == 4 and "The last weights are kept" in " ".join(capsys.readouterr().err.split())
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (report["weights_of_step"], report["eval_loss"], report["resumed_from_step"]) == (4, 3.0, 4)
    assert len([e for e in report["log"] if "loss" in e]) == 4
