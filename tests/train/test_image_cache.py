"""Runs with images kept take the steps of runs without, and the vision tower rests where its features are kept."""

from __future__ import annotations

import collections
import json
import shutil

import pytest
import torch
from transformers import TrainerCallback

from qllava.data import cache
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe
from qllava.recipe.rules import broken
from qllava.train.run import train

from .test_processes import launched
from .test_run import weights


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))  # of processes that are launched
    return folder


def values_for(recipe_values, tmp_path, tune, image_cache, **changes):
    values = {
        **recipe_values,
        "tune": tune,
        "learning_rate": 1e-3,
        "max_steps": -1,
        "num_train_epochs": 2,
        "save_steps": 8,
    }
    if tune == "projector":
        values.pop("lora")
    return resolve_recipe(
        {**values, "image_cache": image_cache, "output_dir": str(tmp_path / f"{tune}-{image_cache}"), **changes}
    )


def losses(result):
    return [e["loss"] for e in result.log if "loss" in e]


class CountTower(TrainerCallback):
    """Images that go through the tower from the first step on."""

    def __init__(self) -> None:
        self.images = 0

    def on_train_begin(self, args, state, control, model, **_):
        tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower"))
        tower.embeddings.register_forward_pre_hook(self._count)

    def _count(self, _, given):
        self.images += len(given[0])


@pytest.mark.parametrize("tune", ["lora", "projector"])
def test_two_epochs_are_the_same(recipe_values, tmp_path, tune):
    results, images = {}, {}
    for how in ("none", "crops", "features"):
        count = CountTower()
        recipe = values_for(recipe_values, tmp_path, tune, how, eval_share=0.2, eval_steps=2)
        results[how], images[how] = train(recipe, callbacks=[count]), count.images
    none, crops, features = results.values()
    assert len(losses(none)) == none.steps == 8
    assert losses(crops) == losses(none)
    assert [e["eval_loss"] for e in crops.log if "eval_loss" in e] == [
        e["eval_loss"] for e in none.log if "eval_loss" in e
    ]
    assert all(torch.equal(weights(none.artifact)[k], v) for k, v in weights(crops.artifact).items())
    assert losses(features) == pytest.approx(losses(none), rel=1e-6, abs=1e-6)
    assert [e["eval_loss"] for e in features.log if "eval_loss" in e] == pytest.approx(
        [e["eval_loss"] for e in none.log if "eval_loss" in e], rel=1e-6
    )
    assert images["none"] == images["crops"] > 0 == images["features"]


def test_dropout_falls_on_the_same_places(recipe_values, tmp_path):
    """Making features draws nothing from the run's random stream."""
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3}
    none, features = (
        train(values_for(recipe_values, tmp_path, "lora", how, lora=lora)) for how in ("none", "features")
    )
    assert losses(features) == pytest.approx(losses(none), rel=1e-6, abs=1e-6)


def test_bfloat16_takes_the_same_steps(recipe_values, tmp_path):
    none, features = (
        train(values_for(recipe_values, tmp_path, "lora", how, dtype="bfloat16")) for how in ("none", "features")
    )
    assert losses(features) == pytest.approx(losses(none), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("image_cache", ["crops", "features"])
def test_workers_sample_answers_and_a_second_run(recipe_values, tmp_path, kept, image_cache):
    changes = {"dataloader_num_workers": 2, "sample_generations": 2, "eval_share": 0.2, "eval_steps": 4}
    first = train(values_for(recipe_values, tmp_path, "lora", image_cache, **changes))
    files = sorted(f for f in kept.rglob("*/??/*") if f.is_file())
    times = [f.stat().st_mtime_ns for f in files]
    assert len(files) == 14 and (first.artifact.parent / "samples.jsonl").is_file()
    second = train(
        values_for(recipe_values, tmp_path, "lora", image_cache, **changes, output_dir=str(tmp_path / "again"))
    )
    assert losses(second) == losses(first)
    assert [f.stat().st_mtime_ns for f in files] == times


def test_a_start_that_looks_at_the_data_and_a_resumed_run(recipe_values, tmp_path):
    lora = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "init_lora_weights": "eva"}
    whole = train(values_for(recipe_values, tmp_path, "lora", "none", lora=lora))
    out = str(tmp_path / "cut")
    train(values_for(recipe_values, tmp_path, "lora", "features", lora=lora, output_dir=out, save_steps=4))
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-8")
    for image_cache in ("crops", "features"):  # how images are kept may change
        resumed = train(
            values_for(recipe_values, tmp_path, "lora", image_cache, lora=lora, output_dir=out, save_steps=4),
            resume=True,
        )
        assert losses(resumed)[-4:] == pytest.approx(losses(whole)[-4:], rel=1e-4)
        shutil.rmtree(tmp_path / "cut" / "final")
        shutil.rmtree(tmp_path / "cut" / "checkpoint-8")


@pytest.mark.slow
def test_two_processes_share_the_work(recipe_values, tmp_path, kept):
    values = {**recipe_values, "global_batch_size": 8, "max_steps": 2, "warmup_steps": 0, "image_cache": "features"}
    one = train(resolve_recipe({**values, "image_cache": "none", "output_dir": str(tmp_path / "one")}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**values, "output_dir": str(tmp_path / "two")}))
    done = launched(recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("image_cache: features of 14 images") == 1
    state = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    two = [e["loss"] for e in state["log_history"] if "loss" in e]
    assert two == pytest.approx(losses(one), rel=1e-4)
    assert sum(f.is_file() for f in kept.rglob("features/*/??/*")) == 14


@pytest.mark.parametrize("image_cache", ["crops", "features"])
def test_a_full_disk_is_refused_before_the_first_step(recipe_values, tmp_path, monkeypatch, image_cache):
    disk = collections.namedtuple("disk", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: disk(0, 0, 1000))
    with pytest.raises(UserError, match=f"image_cache: {image_cache} of 14 images need"):
        train(values_for(recipe_values, tmp_path, "lora", image_cache))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_feature_lost_during_the_run_says_how_to_go_on(recipe_values, tmp_path, kept, workers):
    class Lose(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 4:
                for file in (f for f in kept.rglob("features/*/??/*") if f.is_file()):
                    file.write_bytes(b"")

    changes = {"dataloader_num_workers": workers, "save_steps": 4, "divergence_factor": None}
    recipe = values_for(recipe_values, tmp_path, "lora", "features", **changes)
    with pytest.raises(RunError, match=r"(?s)^What the vision tower made of .*--resume.*The last good checkpoint"):
        train(recipe, callbacks=[Lose()])
    assert train(recipe, resume=True).steps == 8


@pytest.mark.parametrize("tower", ["full", "lora"])
def test_features_of_a_tower_that_trains_are_refused(recipe_values, tower):
    with pytest.raises(UserError, match=r"image_cache: with tune_vision_tower .*image_cache: crops"):
        resolve_recipe({**recipe_values, "tune": "lora", "image_cache": "features", "tune_vision_tower": tower})
    crops = resolve_recipe({**recipe_values, "tune": "lora", "image_cache": "crops", "tune_vision_tower": tower})
    assert not list(broken(crops))
