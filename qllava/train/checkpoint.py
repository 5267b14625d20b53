"""The checkpoints of a run. In: its output_dir. Out: the newest whole one, and the names of those that are damaged."""

from __future__ import annotations

import re
from pathlib import Path

from ..artifact.manifest import verify
from ..errors import RunError, UserError

NAME = re.compile(r"checkpoint-(\d+)")
NEEDED = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state",
    "trainer_state.json",
)  # without one, a resumed run differs in silence


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
            lacking = [n for n in NEEDED if not any(f.startswith(n) for f in manifest.files)]
            if not lacking:
                return folder, complaints
            complaints[folder] = f"{folder} lacks {', '.join(lacking)}."
        except (RunError, UserError) as error:
            complaints[folder] = str(error)
    return None, complaints


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that the resumed run can write its own in that place; returns where it is now."""
    target, number = folder.with_name(f"damaged-{folder.name}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    return folder.rename(target)
