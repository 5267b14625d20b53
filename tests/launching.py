"""Runs of several processes, by torchrun, under each engine that this machine can run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import psutil
import pytest
import yaml
from conftest import ROOT

from qllava.train.checkpoint import checkpoints

ENGINES = {"ddp": {}} | {
    f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    for stage in (2, 3)
}
LIMIT = 300  # seconds; a launch takes 10 to 60
ON_CPU = str(ROOT / "tests" / "train" / "fsdp_on_cpu.py")


def settings_of(engine):
    """What `accelerate launch` puts into the environment for the engine's file in recipes/cluster."""
    if engine != "fsdp2":
        return ENGINES[engine]
    asked = yaml.safe_load((ROOT / "recipes" / "cluster" / "fsdp2.yaml").read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true"} | {k.upper(): str(v) for k, v in asked.items()}


def command_of(engine, processes=2, program=None, more=()):
    """torchrun's words; `program` is run instead of `-m qllava`."""
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (make test builds it)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
    command += more
    return command + ([str(program or ON_CPU)] if program or engine == "fsdp2" else ["-m", "qllava"])


def spoiled(folder, code):
    """A program like `qllava` but for what `code` changes first."""
    program = folder / "spoiled.py"
    program.write_text(f"import os, sys\n{textwrap.dedent(code)}\nimport qllava.cli\nqllava.cli.main(sys.argv[1:])\n")
    return program


def words_of(text):
    """What was said, without line breaks."""
    return " ".join(text.split())


def losses_of(folder):
    """By step, from the newest checkpoint of a run."""
    state = json.loads((checkpoints(folder)[0] / "trainer_state.json").read_text())
    return {e["step"]: e["loss"] for e in state["log_history"] if "loss" in e}


def until(holds, launcher, log, seconds=240):
    """Waits for something that a launch under way does."""
    end = time.monotonic() + seconds
    while not holds():
        assert launcher.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def end_all(launcher):
    """Kills what a test has left running."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.wait()


def environment_of(engine):
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **settings_of(engine)}


def launched(engine, recipe, *more, processes=2, program=None, launcher=(), **variables):
    """A launch to its end. One that does not end is killed whole, and what it said is shown: its processes would slow down all that follow."""
    command = [*command_of(engine, processes, program, launcher), "train", str(recipe), *more]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = subprocess.Popen(command, stdout=out, stderr=err, env=environment_of(engine) | variables)
        try:
            started.wait(LIMIT)
        except subprocess.TimeoutExpired:
            end_all(started)
            err.seek(0)
            pytest.fail(f"not over after {LIMIT} s: {' '.join(command)}\n{err.read()[-4000:]}")
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(command, started.returncode, out.read(), err.read())


def values_of(recipe_values, tune, **more):
    drop = () if tune in ("lora", "qlora") else ("lora", "projector_learning_rate")
    values = {k: v for k, v in recipe_values.items() if k not in drop}
    return values | {"tune": tune, "learning_rate": 1e-3, "warmup_steps": 0, "stage": "instruct"} | more
