"""What the processes of a run share it by: torch's DDP or FSDP2, DeepSpeed's ZeRO-2 or ZeRO-3.

In: the environment as torchrun or `accelerate launch` leaves it, and a recipe. Out: the engine, or an error that names the
nearest that works. A launch that became something else than was asked for is an error too, as both become so in silence:
`accelerate launch --cpu --num_processes 2` starts one process, and accelerate's FSDP is DDP on a CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
import yaml

from ..console import first_process
from ..errors import UserError
from ..recipe.schema import Recipe

Name = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
TITLES = {"single": "one process", "ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
SHARDED = ("fsdp2", "zero3")  # each process holds a part of the weights
EIGHT_BITS = ("8bit", "paged", "bnb")


@dataclass(frozen=True)
class Engine:
    name: Name
    processes: int
    offload: bool = False  # ZeRO with its share in main memory; for the planner

    @property
    def title(self) -> str:
        return TITLES[self.name] + (" with offload" if self.offload else "")

    @property
    def deepspeed(self) -> bool:
        return self.name in ("zero2", "zero3")

    @property
    def sharded(self) -> bool:
        return self.name in SHARDED

    @property
    def reads(self) -> bool:
        """Whether this process reads the base's weights. Where they are cut, the first alone does, and sends the others theirs."""
        return not self.sharded or first_process()

    @property
    def copies(self) -> int:
        """Copies of what trains that DeepSpeed adds to a checkpoint: its masters, and the weights where they are whole."""
        return {"zero2": 2, "zero3": 1}.get(self.name, 0)

    @property
    def casts(self) -> bool:
        """Whether it would cast what trains by a policy of its own; the trainer computes in an autocast instead."""
        return self.deepspeed or self.name == "fsdp2"


ALONE = Engine("single", 1)


def launched_processes() -> int:
    """How many processes the launcher (torchrun, accelerate) started; 1 without one.

    From the environment: accelerate's PartialState says 1 in a CPU launch until it is told that it is one.
    """
    return int(os.environ.get("WORLD_SIZE", 1))


def launched(cpu: bool) -> Engine:
    """The engine that this process was launched for.

    Args:
        cpu: whether the run is on a CPU.

    Raises:
        UserError: what was asked for is not what runs, or is not there.
    """
    processes = launched_processes()
    _whole_world(processes)
    if _on("ACCELERATE_USE_DEEPSPEED"):
        stage = _zero_stage()
        if stage not in (2, 3):
            raise UserError(
                f"ZeRO stage {stage} is not supported; take 2 or 3 (recipes/cluster/zero2.yaml, zero3.yaml)."
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "DeepSpeed is asked for and not installed: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
            )
        return Engine("zero2" if stage == 2 else "zero3", processes)
    if _on("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION") != "2":
            raise UserError("FSDP of version 1 is not supported. Write fsdp_version: 2 (recipes/cluster/fsdp2.yaml).")
        if not _on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
            raise UserError(
                "FSDP2 runs with the base read by the first process alone, which sends the others their parts. Write "
                "fsdp_cpu_ram_efficient_loading: true (recipes/cluster/fsdp2.yaml)."
            )
        if cpu:
            raise UserError(
                "FSDP2 is asked for on a CPU, where accelerate would run plain DDP instead and not say so. Launch with "
                "recipes/cluster/ddp.yaml, or with ZeRO (zero2.yaml, zero3.yaml), which shards on a CPU too."
            )
        return Engine("fsdp2", processes)
    return Engine("single" if processes == 1 else "ddp", processes)


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    try:
        if file and file.lower() != "none":
            return int(json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"])
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"The DeepSpeed configuration {file or ''} names no ZeRO stage: {error}.") from None


def _whole_world(processes: int) -> None:
    """Raises `UserError` where `accelerate launch` was told of more processes than it has started."""
    command = _launcher()
    if command is None:
        return
    asked = _asked(command)
    if asked is not None and asked > 1 and processes == 1:
        raise UserError(
            f"`accelerate launch` was asked for {asked} processes and started one, as it does with --cpu (use_cpu) or without a "
            f"GPU. Launch with: torchrun --nproc_per_node {asked} -m qllava train …"
        )


def _launcher() -> list[str] | None:
    """The words of the `accelerate launch` above this process, or that became this process; None without one."""
    try:
        for parent in psutil.Process().parents()[:4]:
            words = parent.cmdline()
            for i, word in enumerate(words[:5]):
                if word == "accelerate.commands.launch" or (
                    Path(word).name == "accelerate" and words[i + 1 : i + 2] == ["launch"]
                ):
                    return words[i + 1 :]
    except (psutil.Error, OSError):
        pass
    return None


def _asked(words: list[str]) -> int | None:
    """How many processes a launch's words or its configuration file name."""
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("-m", "--module") or not name.startswith("-"):
            continue
        found.setdefault(name.lstrip("-").replace("-", "_"), value if equals else after)
    try:
        if "num_processes" in found:
            return int(found["num_processes"])
        if "config_file" in found:
            return int(
                (yaml.safe_load(Path(found["config_file"]).read_text(encoding="utf-8")) or {}).get("num_processes") or 1
            )
    except (ValueError, OSError, yaml.YAMLError, AttributeError):
        pass
    return None


def fit(recipe: Recipe, engine: Engine, dtype: torch.dtype) -> Recipe:
    """The recipe as the engine can run it.

    Raises:
        UserError: it cannot; the message names the nearest that does.
    """
    reason = refusal(recipe, engine.name)
    if reason is not None:
        raise UserError(reason)
    if engine.casts and dtype == torch.float16:
        raise UserError(f"dtype float16 does not run under {engine.title}. Write dtype: bfloat16, or take DDP.")
    if engine.sharded and recipe.fused_layers:
        # their hooks gather a linear's weights when it is called, and a fused layer reads them without
        return recipe.model_copy(update={"fused_layers": False})
    return recipe


def refusal(recipe: Recipe, engine: Name) -> str | None:
    """Why the engine cannot run the recipe and what is nearest; None where it can."""
    title = TITLES[engine]
    if recipe.tune == "qlora" and engine in SHARDED:
        return (
            f"tune: qlora does not run under {title}: 4-bit weights cannot be cut into shards and put together again there. Every "
            "process holds the base in 4 bits under DDP or ZeRO-2 (recipes/cluster/ddp.yaml, zero2.yaml); or take tune: lora."
        )
    if engine != "single" and engine != "ddp" and any(word in recipe.optim for word in EIGHT_BITS):
        return f"optim: {recipe.optim} does not run under {title}. Take adamw_torch, or DDP (recipes/cluster/ddp.yaml)."
    if engine in SHARDED and recipe.tune_vision_tower != "frozen":
        return (
            f"tune_vision_tower: {recipe.tune_vision_tower} is not proven under {title}. Take DDP or ZeRO-2 "
            "(recipes/cluster/ddp.yaml, zero2.yaml)."
        )
    if engine in SHARDED and recipe.image_cache == "features":
        return f"image_cache: features is not proven under {title}. Take image_cache: crops, DDP or ZeRO-2."
    if engine in SHARDED and (recipe.eval_share or recipe.sample_generations):
        return f"eval_share and sample_generations are not proven under {title}. Drop them, or take DDP or ZeRO-2."
    return None
