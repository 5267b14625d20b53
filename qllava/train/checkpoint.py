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


def newest_good(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written; and what is wrong with the newer ones."""
    complaints = []
    for folder in checkpoints(output_dir):
        try:
            manifest = verify(folder)
            lacking = [n for n in NEEDED if not any(f.startswith(n) for f in manifest.files)]
            if not lacking:
                return folder, complaints
            complaints.append(f"{folder} lacks {', '.join(lacking)}.")
        except (RunError, UserError) as error:
            complaints.append(str(error))
    return None, complaints
