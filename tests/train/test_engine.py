"""Which engine a launch means, what it can run, and launches that became something else."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT

from qllava.errors import UserError
from qllava.recipe import resolve_recipe
from qllava.train.engine import TITLES, Engine, _asked, fit, launched, refusal

CLUSTER = sorted((ROOT / "recipes" / "cluster").glob("*.yaml"))
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.fixture
def environment(monkeypatch):
    for name in (
        "WORLD_SIZE",
        "RANK",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_FSDP",
        "FSDP_VERSION",
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_a_launch_by_its_environment(environment):
    assert launched(True) == Engine("single", 1)
    environment("WORLD_SIZE", "4")
    assert launched(True) == Engine("ddp", 4)
    environment("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="fsdp_version: 2"):
        launched(False)
    environment("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="fsdp_cpu_ram_efficient_loading: true"):
        launched(False)
    environment("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert launched(False) == Engine("fsdp2", 4)
    with pytest.raises(UserError, match=r"plain DDP instead and not say so.*ZeRO"):
        launched(True)


@pytest.mark.skipif(not DEEPSPEED, reason="DeepSpeed is not installed")
def test_deepspeed_by_stage_or_file(environment, tmp_path):
    environment("ACCELERATE_USE_DEEPSPEED", "true")
    environment("WORLD_SIZE", "2")
    for stage, name in (("2", "zero2"), ("3", "zero3")):
        environment("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
        assert launched(True) == Engine(name, 2)
    environment("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    with pytest.raises(UserError, match="stage 1 is not supported"):
        launched(True)
    file = tmp_path / "ds.json"
    environment("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    with pytest.raises(UserError, match=r"ds\.json names no ZeRO stage"):
        launched(True)
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert launched(True) == Engine("zero3", 2)


def test_deepspeed_that_is_not_installed(environment, monkeypatch):
    environment("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-build-isolation deepspeed"):
        launched(True)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["launch", "--cpu", "--num_processes", "2", "-m", "qllava"], 2), (["launch", "--num-processes=8", "x.py"], 8),
        (["launch", "-m", "qllava"], None), (["launch", "--num_processes", "many"], None),
    ],
)  # fmt: skip
def test_how_many_processes_a_launch_names(words, asked):
    assert _asked(words) == asked


def test_how_many_processes_a_configuration_names(tmp_path):
    (tmp_path / "a.yaml").write_text("num_processes: 4\n")
    assert _asked(["launch", "--config_file", str(tmp_path / "a.yaml")]) == 4
    assert _asked(["launch", "--config_file", str(tmp_path / "a.yaml"), "--num_processes", "2"]) == 2
    assert _asked(["launch", "--config_file", str(tmp_path / "gone.yaml")]) is None


def test_accelerate_that_starts_one_process_of_two_is_stopped(recipe_values, tmp_path):
    """It does so in silence, with --cpu; the run would be another one."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "qllava"]
    done = subprocess.run([*command, "train", str(recipe)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode != 0
    assert "was asked for 2 processes and started one" in " ".join(done.stderr.split())
    assert "torchrun --nproc_per_node 2" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("tune", "name"), itertools.product(("projector", "full", "lora", "qlora"), TITLES))
def test_the_support_matrix(recipe_values, tune, name):
    """Each cell runs (see test_sharded) or is refused with the nearest that does."""
    drop = () if tune in ("lora", "qlora") else ("lora", "projector_learning_rate")
    recipe = resolve_recipe({k: v for k, v in recipe_values.items() if k not in drop} | {"tune": tune})
    reason = refusal(recipe, name)
    if tune == "qlora" and name in ("zero3", "fsdp2"):
        assert "4-bit weights" in reason and "zero2.yaml" in reason and "tune: lora" in reason
        with pytest.raises(UserError, match="4-bit weights"):
            fit(recipe, Engine(name, 2), torch.float32)
        return
    assert reason is None
    fitted = fit(recipe, Engine(name, 2), torch.float32)
    assert fitted.fused_layers == (recipe.fused_layers and name not in ("zero3", "fsdp2"))


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        ({"optim": "paged_adamw_8bit"}, "zero2", "adamw_torch"), ({"optim": "adamw_bnb_8bit"}, "fsdp2", "adamw_torch"),
        ({"tune_vision_tower": "full"}, "zero3", "ddp.yaml"), ({"image_cache": "features"}, "zero3", "crops"),
        ({"sample_generations": 2}, "fsdp2", "Drop them"),
    ],
)  # fmt: skip
def test_what_else_is_refused(recipe_values, change, name, word):
    recipe = resolve_recipe({**recipe_values, "tune": "lora", **change})
    assert word in refusal(recipe, name) and refusal(recipe, "ddp") is None


def test_float16_under_zero(recipe_values):
    recipe = resolve_recipe({**recipe_values, "tune": "lora"})
    with pytest.raises(UserError, match="bfloat16"):
        fit(recipe, Engine("zero2", 2), torch.float16)


@pytest.mark.parametrize("file", CLUSTER, ids=lambda f: f.stem)
def test_accelerate_takes_the_files_and_they_name_no_number_of_processes(file):
    from accelerate.commands.config.config_args import load_config_from_file

    found = yaml.safe_load(file.read_text())
    assert "num_processes" not in found and file.read_text().startswith("# ")
    config = load_config_from_file(str(file))
    stage = (config.deepspeed_config or {}).get("zero_stage") if hasattr(config, "deepspeed_config") else None
    assert stage == {"zero2": 2, "zero3": 3, "zero3-offload": 3}.get(file.stem)


def test_the_readme_says_what_runs_under_what(recipe_values):
    names = ("single", "ddp", "fsdp2", "zero2", "zero3")
    told = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    for tune in ("projector", "full", "lora", "qlora"):
        drop = () if tune in ("lora", "qlora") else ("lora", "projector_learning_rate")
        recipe = resolve_recipe({k: v for k, v in recipe_values.items() if k not in drop} | {"tune": tune})
        cells = " | ".join("yes" if refusal(recipe, name) is None else "no" for name in names)
        assert f"| `{tune}` | {cells} |" in told
