"""LLaVA-1.5-HD in two processes under each engine: the steps of one process, and the row-end token is saved."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from launching import launched, values_of
from safetensors.torch import load_file

from qllava.api import train, verify
from qllava.recipe import resolve_recipe

pytestmark = pytest.mark.slow
CELLS = [("lora", "ddp"), ("lora", "fsdp2"), ("lora", "zero3"), ("full", "zero2")]


@pytest.mark.parametrize(("tune", "engine"), CELLS, ids=["-".join(c) for c in CELLS])
def test_two_processes_equal_one(recipe_values, tmp_path, engine, tune):
    """Images in tiles and text alone are mixed: some micro-batches have no picture, and so no row end."""
    base = {**recipe_values["base"], "max_tiles": 3}
    more = {"per_device_train_batch_size": 1, "global_batch_size": 8, "max_steps": 2, "save_steps": 2, "base": base}
    values = values_of(recipe_values, tune, **more)
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "two")}))
    done = launched(engine, tmp_path / "two.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    state = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [e["loss"] for e in state["log_history"] if "loss" in e]
    assert losses == pytest.approx([e["loss"] for e in one.log], rel=2e-4)
    verify(tmp_path / "two")
    name = "model.safetensors" if tune == "full" else "projector.safetensors"
    ends = [load_file(f / name)["image_newline"] for f in (one.artifact, tmp_path / "two" / "final")]
    assert torch.allclose(*ends, atol=5e-3) and ends[0].float().std() > 0
