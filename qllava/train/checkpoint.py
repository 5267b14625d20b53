"""The checkpoints of a run. In: its output_dir. Out: the newest whole one, and the names of those that are damaged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from ..artifact.manifest import verify
from ..errors import RunError, UserError
from .engine import Engine
from .repartition import NAME as REPARTITIONED

SAVING = ".saving"  # where a checkpoint is before it is one
PROBE = "probe"  # what is written to see that something can be; processes do it side by side
NAME = re.compile(r"checkpoint-(\d+)")
NEEDED = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state",
    "trainer_state.json",
)  # without one, a resumed run differs in silence
INSTEAD = {
    "optimizer.pt": ("global_step", "optimizer_0", "optimizer.bin")
}  # DeepSpeed's and FSDP2's, in pieces or whole


PLAIN, PIECES, SHARDS = "a plain run", "DeepSpeed", "FSDP2"  # who keeps an optimizer in which form


def written_by(checkpoint: Path) -> str:
    """Who wrote the checkpoint's optimizer, by its files."""
    names = [p.name for p in checkpoint.iterdir()]
    if any(n.startswith("global_step") for n in names):
        return PIECES
    return SHARDS if any(n.startswith(("optimizer_0", "optimizer.bin")) for n in names) else PLAIN


def keeps(engine: Engine) -> str:
    """In whose form the engine keeps it."""
    return PIECES if engine.deepspeed else SHARDS if engine.name == "fsdp2" else PLAIN


def checkpoints(output_dir: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found, reverse=True)]


def newest_good(output_dir: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose every file is as it was written; and the newer ones with what is wrong with them."""
    complaints: dict[Path, str] = {}
    for folder in checkpoints(output_dir):
        try:
            manifest = verify(folder)
            lacking = [n for n in NEEDED if not any(f.startswith((n, *INSTEAD.get(n, ()))) for f in manifest.files)]
            if not lacking:
                return folder, complaints
            complaints[folder] = f"{folder} lacks {', '.join(lacking)}."
        except (RunError, UserError) as error:
            complaints[folder] = str(error)
    return None, complaints


def number_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(NAME.fullmatch(checkpoint.name)[1])


def rotate(output_dir: Path, limit: int | None, keep: Collection[int] = ()) -> None:
    """Deletes the oldest checkpoints beyond `limit`, but never the newest that is not past one of the steps `keep`."""
    found = checkpoints(output_dir)
    if limit is None:
        return
    safe = {found[0]} if found else set()
    for step in keep:
        safe |= set([c for c in found if number_of(c) <= step][:1])
    doomed = [c for c in reversed(found) if c not in safe][: max(0, len(found) - limit)]
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(output_dir: Path) -> None:
    """Removes what a killed run left half written."""
    if output_dir.is_dir():
        for folder in output_dir.glob(".*"):
            partial = folder.name.endswith(".partial") and not folder.name.startswith(f".{PROBE}.")
            if folder.name in (SAVING, REPARTITIONED) or partial:
                shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path, why: str = "damaged") -> Path:
    """Renames a checkpoint that is not to be gone on with, so that another can take its place; returns where it is now."""
    target, number = folder.with_name(f"{why}-{folder.name}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{why}-{folder.name}-{number}")
    return folder.rename(target)
