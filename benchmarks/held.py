"""`python -m benchmarks held`: what processes really hold under each engine, beside `qllava.train.held`'s formula.

In: engines, kinds of tuning, numbers of processes. Each cell is a run of the embedded base (bfloat16, AdamW) over gloo on this CPU, in
which every process counts its tensors (`held_process`). Out: bytes of the process that holds most, by part, and the formula's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .machine import commit, machine, versions
from .speed.race import ROOT

ENGINES, TUNES = ("ddp", "fsdp2", "zero2", "zero3"), ("projector", "full", "lora", "qlora")
PARTS = ("frozen", "trained", "masters", "gradients", "optimizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=ENGINES)
    parser.add_argument("--tunes", choices=TUNES, nargs="+", default=TUNES)
    parser.add_argument("--processes", type=int, nargs="+", default=(2, 4))


def environment(engine: str) -> dict[str, str]:
    """What `accelerate launch` makes of the engine's file in recipes/cluster."""
    if engine == "ddp":
        return {}
    asked = yaml.safe_load((ROOT / "recipes" / "cluster" / f"{engine}.yaml").read_text())
    if engine == "fsdp2":
        return {"ACCELERATE_USE_FSDP": "true"} | {k.upper(): str(v) for k, v in asked["fsdp_config"].items()}
    stage = str(asked["deepspeed_config"]["zero_stage"])
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage, "DS_ACCELERATOR": "cpu"}


def recipe_values(folder: Path, tune: str) -> dict[str, Any]:
    """A recipe on 8 drawn pictures, of which every optimizer step takes all."""
    from PIL import Image

    (folder / "images").mkdir()
    rows = []
    for i in range(8):
        Image.new("RGB", (64, 64), ("red", "green", "blue")[i % 3]).save(folder / "images" / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": "It is a color."}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (folder / "samples.json").write_text(json.dumps(rows))
    lora = {"lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}} if tune in ("lora", "qlora") else {}
    return lora | {
        "stage": "instruct", "tune": tune, "base": {"vision_tower": "embedded", "llm": "embedded"}, "dtype": "bfloat16",
        "data": [{"path": str(folder / "samples.json"), "image_root": "images"}], "output_dir": str(folder / "run"),
        "global_batch_size": 8, "per_device_train_batch_size": 1, "learning_rate": 1e-4, "max_steps": 2, "save_steps": 2,
    }  # fmt: skip


def cell(engine: str, tune: str, processes: int) -> dict[str, Any]:
    """One run, and the formula for it.

    Raises:
        RuntimeError: the run failed.
    """
    import torch

    from qllava.model.base import config_of
    from qllava.model.size import disk_needed
    from qllava.recipe import resolve_recipe
    from qllava.train.engine import Engine, fit
    from qllava.train.held import held
    from qllava.train.memory import Shape, counts, state_bytes

    with tempfile.TemporaryDirectory(prefix="qllava-held-") as temporary:
        folder = Path(temporary)
        values = recipe_values(folder, tune)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
        (folder / "out").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
        done = subprocess.run(
            [sys.executable, "-m", *launch, "-m", "benchmarks.held_process", "train", str(folder / "recipe.yaml")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HELD_OUT": str(folder / "out"), **environment(engine)},
            cwd=ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        seen = [json.loads(f.read_text()) for f in sorted((folder / "out").glob("*.json"))]
        if done.returncode or len(seen) != processes:
            raise RuntimeError(f"{engine}, {tune}, {processes} processes: {done.stderr[-6000:]}")
        files = (
            f for f in (folder / "run" / "checkpoint-2").rglob("*") if f.suffix in (".safetensors", ".pt", ".distcp")
        )
        written = sum(f.stat().st_size for f in files)
        sharing = Engine(engine, processes)
        recipe = fit(resolve_recipe(values), sharing, torch.bfloat16)
        shape = Shape(recipe, config_of(recipe.base))
        disk = disk_needed(recipe.model_copy(update={"save_total_limit": None}), copies=sharing.copies)
        said = held(counts(recipe, shape, torch.bfloat16), sharing, state_bytes(recipe.optim))
    most = max(seen, key=lambda s: sum(s["step"][p] for p in PARTS))
    between = max(s["between"]["gradients"] + s["between"]["rest"] for s in seen)
    measured = {p: most["step"][p] for p in PARTS}
    formula = {p: v for p, v in dataclasses.asdict(said).items() if p in PARTS}
    return {
        "engine": engine, "tune": tune, "processes": processes, "measured": measured, "formula": formula,
        "off_by": sum(measured.values()) / sum(formula.values()) - 1, "rest": most["step"]["rest"],
        "between": between, "checkpoint": written, "checkpoint_formula": disk["checkpoint"], "autocast_keeps": any(s["cached"] for s in seen),
    }  # fmt: skip


def measure(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """All cells that the support matrix has.

    Raises:
        RuntimeError: a run failed.
    """
    rows = []
    for processes in args.processes:
        for engine in args.engines:
            for tune in args.tunes:
                if not (tune == "qlora" and engine in ("fsdp2", "zero3")):
                    rows.append(cell(engine, tune, processes))
                    print(f"{engine}, {tune}, {processes} processes: {rows[-1]['off_by']:+.2%}", file=sys.stderr)
    return {
        "benchmark": "held", "command": shlex.join(["python", "-m", "benchmarks", *command]), "commit": commit(ROOT),
        "machine": machine(), "versions": versions(), "cells": rows,
    }  # fmt: skip
