"""Two processes under torchrun take the same steps as one, with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from qllava.api import train
from qllava.recipe import resolve_recipe


@pytest.mark.parametrize("grouped", [False, True], ids=["shuffled", "by modality and length"])
def test_two_processes_equal_one(recipe_values, tmp_path, grouped):
    values = {
        **recipe_values,
        "global_batch_size": 8,
        "max_steps": 2,
        "group_by_modality_length": grouped,
        "warmup_steps": 0,
    }
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "two")}))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(29500 + os.getpid() % 1000),
    ]
    done = subprocess.run(
        [*command, "-m", "qllava", "train", str(recipe)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    two = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert two == pytest.approx([entry["loss"] for entry in one.log], rel=1e-4)
