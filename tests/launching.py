"""Runs of several processes, by torchrun, under each engine that this machine can run."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

ENGINES = {"ddp": {}} | {
    f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    for stage in (2, 3)
}
ON_CPU = str(ROOT / "tests" / "train" / "fsdp_on_cpu.py")


def settings_of(engine):
    """What `accelerate launch` puts into the environment for the engine's file in recipes/cluster."""
    if engine != "fsdp2":
        return ENGINES[engine]
    asked = yaml.safe_load((ROOT / "recipes" / "cluster" / "fsdp2.yaml").read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true"} | {k.upper(): str(v) for k, v in asked.items()}


def command_of(engine, processes=2):
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (make test builds it)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
    return command + ([ON_CPU] if engine == "fsdp2" else ["-m", "qllava"])


def environment_of(engine):
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **settings_of(engine)}


def launched(engine, recipe, *more, processes=2):
    command = [*command_of(engine, processes), "train", str(recipe), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment_of(engine))


def values_of(recipe_values, tune, **more):
    drop = () if tune in ("lora", "qlora") else ("lora", "projector_learning_rate")
    values = {k: v for k, v in recipe_values.items() if k not in drop}
    return values | {"tune": tune, "learning_rate": 1e-3, "warmup_steps": 0, "stage": "instruct"} | more
