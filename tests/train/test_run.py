"""A run: every mode learns, is written whole, resumes as if it had not stopped, and refuses what is not fit."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from qllava.api import train, verify
from qllava.errors import UserError
from qllava.recipe import resolve_recipe
from qllava.train.checkpoint import newest_good

MODES = ("projector", "lora", "qlora", "full")


def values_for(recipe_values, tune, **changes):
    values = {**recipe_values, "tune": tune, "learning_rate": 1e-3, **changes}
    if "lora" not in tune:
        values.pop("lora")
    return resolve_recipe(values)


def weights(folder):
    return {f"{f.name}:{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.parametrize("tune", MODES)
def test_resumed_equals_uninterrupted_bit_for_bit(recipe_values, tmp_path, tune):
    """Through the end of an epoch: 16 samples make 4 steps, the run takes 6 and is cut at 3."""
    common = {"max_steps": 6, "save_steps": 3, "group_by_modality_length": True}
    whole = train(values_for(recipe_values, tune, **common, output_dir=str(tmp_path / "whole")))
    train(values_for(recipe_values, tune, **common, output_dir=str(tmp_path / "cut")))
    import shutil

    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    resumed = train(values_for(recipe_values, tune, **common, output_dir=str(tmp_path / "cut")), resume=True)
    assert resumed.steps == whole.steps == 6
    expected, got = weights(whole.artifact), weights(resumed.artifact)
    assert expected.keys() == got.keys() and expected
    assert all(torch.equal(expected[k], got[k]) for k in expected)


@pytest.mark.parametrize("tune", MODES)
def test_it_learns_and_leaves_a_whole_artifact(recipe_values, tune):
    result = train(values_for(recipe_values, tune, max_steps=12, save_steps=12, learning_rate=2e-3, warmup_steps=0))
    manifest = verify(result.artifact)
    assert manifest.kind == ("model" if tune == "full" else "adapter")
    assert manifest.recipe["learning_rate"] == 2e-3 and manifest.report["steps"] == 12
    assert result.log[-1]["loss"] < result.log[0]["loss"]
    assert math.isfinite(result.loss)
    assert {"supervised_tokens_per_second", "peak_memory_mib", "projector_learning_rate"} <= result.log[0].keys()
    assert newest_good(result.artifact.parent)[0].name == "checkpoint-12"


def test_the_projector_has_its_own_rate(recipe_values):
    log = train(values_for(recipe_values, "lora", projector_learning_rate=1e-5)).log
    assert all(math.isclose(e["projector_learning_rate"], e["learning_rate"] / 100, abs_tol=1e-12) for e in log)


@pytest.mark.parametrize("split", [1, 2, 8])
def test_the_split_of_the_global_batch_does_not_matter(recipe_values, tmp_path, split):
    """One step on 8 samples, text and images mixed, as 8×1, 4×2 and 1×8."""
    changes = {"global_batch_size": 8, "max_steps": 1, "save_steps": 1, "warmup_steps": 0}
    one = train(
        values_for(recipe_values, "lora", **changes, per_device_train_batch_size=4, output_dir=str(tmp_path / "a"))
    )
    other = train(
        values_for(recipe_values, "lora", **changes, per_device_train_batch_size=split, output_dir=str(tmp_path / "b"))
    )
    assert math.isclose(one.loss, other.loss, rel_tol=1e-5)
    assert math.isclose(one.log[0]["grad_norm"], other.log[0]["grad_norm"], rel_tol=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory(recipe_values, tmp_path):
    plain = train(values_for(recipe_values, "qlora", max_steps=2, output_dir=str(tmp_path / "a")))
    again = train(
        values_for(recipe_values, "qlora", max_steps=2, gradient_checkpointing=True, output_dir=str(tmp_path / "b"))
    )
    assert [e["loss"] for e in plain.log] == pytest.approx([e["loss"] for e in again.log], rel=1e-6)


def test_the_projector_is_taken_from_an_artifact(recipe_values, tmp_path):
    first = train(values_for(recipe_values, "projector", output_dir=str(tmp_path / "align")))
    second = train(
        values_for(
            recipe_values,
            "lora",
            projector=str(tmp_path / "align"),
            projector_learning_rate=1e-12,
            output_dir=str(tmp_path / "b"),
        )
    )
    a, b = (load_file(r.artifact / "projector.safetensors") for r in (first, second))
    assert all(torch.allclose(a[k], b[k], atol=1e-8) for k in a)


def test_a_run_is_not_written_over(recipe_values):
    recipe = values_for(recipe_values, "projector")
    train(recipe)
    with pytest.raises(UserError, match="holds a run already"):
        train(recipe)
    with pytest.raises(UserError, match="has ended"):
        train(recipe, resume=True)


def test_nothing_to_resume(recipe_values):
    with pytest.raises(UserError, match="No good checkpoint"):
        train(values_for(recipe_values, "projector"), resume=True)


def test_tensorboard_by_name(recipe_values, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    train(values_for(recipe_values, "projector", max_steps=1, report_to=["tensorboard"]))
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_an_adapter_is_no_base(recipe_values, tmp_path):
    train(values_for(recipe_values, "projector", max_steps=1, output_dir=str(tmp_path / "a")))
    with pytest.raises(UserError, match=r"is an adapter, not a base\. Merge it first"):
        train(values_for(recipe_values, "lora", base=str(tmp_path / "a"), output_dir=str(tmp_path / "b")))


def test_the_manifest_names_a_local_base_by_its_whole_path(recipe_values, tmp_path, monkeypatch):
    from qllava.api import assemble, load

    assemble("embedded", "embedded", tmp_path / "base", dtype="float32")
    monkeypatch.chdir(tmp_path)
    adapter = train(values_for(recipe_values, "lora", max_steps=1, base="base")).artifact
    monkeypatch.chdir("/")
    assert load(adapter).manifest.base.source == str(tmp_path / "base")
