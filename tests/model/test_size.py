"""Sizes from configurations alone equal the original's counts (spec: golden values, 7.3)."""

from __future__ import annotations

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from qllava.model.size import disk_needed, size_of
from qllava.recipe import load_recipe
from qllava.recipe.schema import Parts

TOWER = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
LLMS = {
    "7b": LlamaConfig(),
    "13b": LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


@pytest.mark.parametrize(
    ("size", "llm", "projector", "lora", "modules"),
    [
        ("7b", 6_738_415_616, 20_979_712, 319_815_680, 224),
        ("13b", 13_015_864_320, 31_467_520, 500_695_040, 280),
    ],
)
def test_counts_are_the_originals(tmp_path, size, llm, projector, lora, modules):
    TOWER.save_pretrained(tmp_path / "tower")
    LLMS[size].save_pretrained(tmp_path / "llm")
    found = size_of(Parts(vision_tower=str(tmp_path / "tower"), llm=str(tmp_path / "llm")), rank=128)
    assert (found.language_model, found.projector, found.lora, found.lora_modules) == (llm, projector, lora, modules)
    assert found.trainable("qlora") == lora + projector and found.trainable("projector") == projector


def test_disk_is_checkpoints_and_the_artifact():
    found = disk_needed(load_recipe("demo/instruct"))
    trained = found["trainable_parameters"]
    assert found["bytes"] == 3 * 12 * trained + 4 * trained  # save_total_limit 2, and the one being written
