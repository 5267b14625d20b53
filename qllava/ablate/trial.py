"""`qllava ablate --dry-run`: every command of a study, and each recipe's check as far as what is there allows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..recipe.schema import Recipe
from .plan import Run, plan
from .run import belongs, place_of
from .study import DATA, load_study


def trial(
    source: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    launcher: str | None = None,
) -> dict[str, Any]:
    """The runs in order: `name`, `command`, `done`, and of a stage's first seed `check`: `ok`, or what it stops at.

    Raises:
        UserError: the study or a recipe is wrong, a check fails for another reason than that something is not there yet, or
            `out` holds runs of another study.
    """
    study, folder = load_study(source), place_of(source, out)
    found = plan(study, folder, seeds or study.seeds, only)
    belongs(found)
    program = launcher or "python"
    made = [folder / DATA, *(run.folder for run in found.runs.values())]
    rows, checked = [], {}
    for run in found.runs.values():
        row = {
            "name": run.name,
            "command": f"{program} -m qllava {shlex.join(run.arguments)}",
            "done": run.result.is_file(),
        }
        if run.recipe is not None:
            told = _key(run)
            if told not in checked:
                checked[told] = check_as_far(run.recipe, made)
            row["check"] = checked[told]
        else:
            asked = Path(run.arguments[run.arguments.index("--data" if "--data" in run.arguments else "--root") + 1])
            if not asked.exists() and not asked.resolve().is_relative_to((folder / DATA).resolve()):
                row["check"] = f"stops at {asked}, which is not here"
        rows.append(row)
    return {"study": study.title, "out": str(folder), "prepare": study.prepare, "runs": rows}


def _key(run: Run) -> str:
    return str({k: v for k, v in run.values.items() if k not in ("seed", "projector", "adapter", "base")}) + str(
        run.values["base"]
    )


def check_as_far(recipe: Recipe, made: Sequence[Path] = ()) -> str:
    """`ok`, or what the check stops at: data or weights that are not there.

    Args:
        made: folders that the study fills itself before the recipe needs them.

    Raises:
        UserError: the check fails though everything it reads is there.
    """
    for named in absent(recipe):
        later = any(Path(named).resolve().is_relative_to(folder.resolve()) for folder in made)
        return f"stops at {named}, which {'the study makes first' if later else 'is not here'}"
    from ..train.check import check

    report = check(recipe, 1)
    if report["unusable_sources"]:
        raise UserError(f"{report['unusable_sources'][0]} holds no sample that can be used; see qllava check.")
    return "ok"


def absent(recipe: Recipe) -> list[str]:
    """What the recipe reads and is not on this machine: files and folders, and models on the hub."""
    parts = [recipe.base] if isinstance(recipe.base, str) else [recipe.base.vision_tower, recipe.base.llm]
    missing = [part for part in parts if part != "embedded" and not Path(part).is_dir()]
    missing += [s.path for s in recipe.data if s.path.startswith("hub:") or not Path(s.path).exists()]
    return missing + [p for p in (recipe.projector, recipe.adapter) if p is not None and not Path(p).exists()]
