"""Sizes from configurations alone equal the original's counts (spec: golden values, 7.3)."""

from __future__ import annotations

import pytest
from conftest import LLMS, TOWER
from transformers import CLIPVisionConfig, LlamaConfig

from qllava.model.size import disk_needed, size_of
from qllava.recipe import load_recipe, resolve_recipe


@pytest.mark.parametrize(
    ("size", "llm", "projector", "lora", "modules"),
    [
        ("7b", 6_738_415_616, 20_979_712, 319_815_680, 224),
        ("13b", 13_015_864_320, 31_467_520, 500_695_040, 280),
    ],
)
def test_counts_are_the_originals(tmp_path, size, llm, projector, lora, modules):
    CLIPVisionConfig(**TOWER).save_pretrained(tmp_path / "tower")
    LlamaConfig(**LLMS[size]).save_pretrained(tmp_path / "llm")
    base = {"vision_tower": str(tmp_path / "tower"), "llm": str(tmp_path / "llm")}
    found = size_of(load_recipe("llava15-7b/instruct-qlora", [f"base={base}", "lora.r=128"]))
    assert (found.language_model, found.projector, found.lora, found.lora_modules) == (llm, projector, lora, modules)
    assert found.trainable == lora + projector
    align = load_recipe("llava15-7b/align", [f"base={base}"])
    assert (size_of(align).trainable, size_of(align).lora_modules) == (projector, 0)


def test_disk_is_checkpoints_and_the_artifact():
    found = disk_needed(load_recipe("demo/instruct"))
    trained = found["trainable_parameters"]
    assert found["bytes"] == 3 * 12 * trained + 4 * trained  # save_total_limit 2, and the one being written
    assert found["checkpoint"] == 12 * trained
    assert disk_needed(load_recipe("demo/instruct"), copies=2)["checkpoint"] == 20 * trained


def test_disk_of_a_whole_model_counts_what_is_frozen_too():
    values = {
        "stage": "instruct",
        "tune": "full",
        "base": {"vision_tower": "embedded", "llm": "embedded"},
        "output_dir": "x",
    }
    recipe = resolve_recipe(
        {
            **values,
            "data": [{"path": "x"}],
            "global_batch_size": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 1,
        }
    )
    size = size_of(recipe)
    assert size.total > size.trainable
    assert disk_needed(recipe)["checkpoint"] == 4 * size.total + 8 * size.trainable
