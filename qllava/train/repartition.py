"""An optimizer that ZeRO saved in the pieces of other processes, cut anew for those of this run.

In: DeepSpeed's engine at its first step, and a checkpoint of as many pieces as wrote it. Out: each process has its share of the averages.
DeepSpeed's own converter makes one file a parameter and average of them. Its loader for those is not used: it gives all parameter groups the
settings of the first, and reads the weights once more, which the run has begun with.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

NAME = ".repartitioned"  # beside the checkpoint, while it is read
WEIGHT, STEP = "fp32", "step"


def pieces_in(folder: Path) -> int:
    """How many processes wrote the checkpoint."""
    return len(list(folder.glob("*/*_optim_states.pt")))


def stage_of(folder: Path) -> int:
    """ZeRO's stage that wrote the checkpoint: at the third each process has a piece of the weights."""
    return 3 if any(folder.glob("*/zero_pp_rank_*_model_states.pt")) else 2


def load_repartitioned(wrapped: Any, folder: Path) -> None:
    """Gives every process its share of the optimizer's state in `folder`; all have to come here."""
    made = folder.parent / NAME
    first = int(torch.distributed.get_rank()) == 0
    try:
        if first:
            _convert(folder, made)
        torch.distributed.barrier()
        parts = made / folder.name / "zero"
        steps = _steps(parts)
        for name, parameter in wrapped.module.named_parameters():
            if parameter.requires_grad:
                _fill(wrapped.optimizer, parameter, {**steps, **dict(_averages(parts / name))})
        torch.distributed.barrier()
    finally:
        if first:
            shutil.rmtree(made, ignore_errors=True)


def _convert(folder: Path, made: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(made, ignore_errors=True)
    asked = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    source = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source), output_folder=str(made / folder.name), inject_missing_state=True, **asked
        )
    )


def _steps(parts: Path) -> dict[str, Any]:
    """How many steps the optimizer has taken, where it is kept for all parameters at once (ZeRO-3)."""
    common = torch.load(parts / "optimizer_state.pt", weights_only=False, map_location="cpu")
    state = common.get("optimizer_state_dict", {}).get("state", {})
    return {STEP: state[0][STEP]} if STEP in state.get(0, {}) else {}


def _averages(folder: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(folder.glob("*.pt")):
        if file.stem != WEIGHT:
            held = torch.load(file, weights_only=True, map_location="cpu")
            yield file.stem, held["param"] if isinstance(held, dict) else held


def _fill(zero: Any, parameter: torch.nn.Parameter, found: dict[str, Any]) -> None:
    """Puts this process's share of a parameter's averages, of its shape, where the optimizer looks for them."""
    cut = hasattr(parameter, "ds_id")  # ZeRO-3
    if cut:
        group, start, numel = zero.grad_position[zero.get_param_id(parameter)]
        flat, first = zero.fp32_partitioned_groups_flat[group], numel * torch.distributed.get_rank()
    else:
        held = parameter._hp_mapping
        if held is None:  # others have the whole of it
            return
        flat = zero.single_partition_of_fp32_groups[held.param_group_index]
        start, numel, first = (
            held.hp_fragment_address.start,
            held.hp_fragment_address.numel,
            held.lp_fragment_address.start,
        )
    state = zero.optimizer.state[flat]
    for key, value in found.items():
        if key == STEP:
            state.setdefault(key, torch.tensor(float(value)))  # each its own: it is counted up in place
            continue
        mine = value.flatten()[first : first + numel]  # shorter in ZeRO-3's last piece, which is filled up
        state.setdefault(key, torch.zeros_like(flat)).narrow(0, start, mine.numel()).copy_(mine)
