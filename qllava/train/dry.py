"""Saving tried before the first step, so that no run finds out at its end that it cannot be kept.

In: the trainer and the run's folder. Out: nothing; what is written is read back and removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..artifact.manifest import can_write
from ..errors import RunError
from .checkpoint import PROBE

SMALL = 2 << 30  # bytes of weights that are worth writing for a trial


def dry_save(trainer: Any, out: Path) -> None:
    """Writes and reads back what will be saved, if it is small, and makes sure of room for a checkpoint.

    Raises:
        RunError: it cannot be written or read, a trained tensor is not in it, or the disk is too full.
    """
    if not trainer.args.should_save:
        return
    bad = [n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
    if bad:
        raise RunError(
            f"{len(bad)} tensors that are to train hold numbers that are none before the first step, such as {bad[0]}: what the run "
            "starts from (projector, adapter or base) is damaged."
        )
    trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    weights = 4 * sum(trained)
    needed, free = 3 * weights, shutil.disk_usage(out).free  # with the optimizer's two moments
    if free < needed:
        raise RunError(
            f"{out} has {free / 2**20:,.0f} MiB free, and one checkpoint of this run takes {needed / 2**20:,.0f}. Make room, or "
            "name another output_dir."
        )
    if weights > SMALL:
        return
    folder = can_write(out / PROBE)
    try:
        trainer.write_weights(folder)
        found = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                found += sum(tensors.get_tensor(k).numel() for k in tensors.keys())  # noqa: SIM118 (not a mapping)
        if found < sum(trained):
            raise RunError(
                f"{sum(trained):,} parameters train and only {found:,} would be saved. This is a mistake in qllava."
            )
    except (OSError, SafetensorError) as error:
        raise RunError(f"A trial of saving in {out} failed: {error}.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
