"""The recipes that travel with qllava: where they are, what they are, and a copy of one to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
CLUSTER = "cluster"  # under recipes/: how processes are launched
LAUNCH = (CLUSTER, "mixes", "studies")  # under recipes/: launches, mixes of data and studies, no recipes
ROOTS = (PACKAGE / "_recipes", PACKAGE.parent / "recipes")  # installed from a wheel, or run from a checkout


@dataclass(frozen=True)
class Shipped:
    name: str  # path under recipes/ without .yaml
    path: Path
    about: str  # the first line of its opening comment


def root() -> Path:
    """The folder that holds the shipped recipes."""
    return next((r for r in ROOTS if r.is_dir()), ROOTS[0])


def list_shipped() -> list[Shipped]:
    """Every shipped recipe, by name."""
    found = []
    for path in sorted(p for p in root().rglob("*.yaml") if p.relative_to(root()).parts[0] not in LAUNCH):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found.append(Shipped(path.relative_to(root()).with_suffix("").as_posix(), path, first.lstrip("# ").strip()))
    return found


def find_shipped(name: str) -> Path | None:
    """The file of a shipped recipe by its name, with or without `recipes/` and `.yaml`."""
    path = root() / (name.removeprefix("recipes/").removesuffix(".yaml") + ".yaml")
    inside = path.is_file() and path.resolve().is_relative_to(root())
    return path if inside and not set(LAUNCH) & set(path.relative_to(root()).parts) else None


def copy_shipped(name: str, out: Path) -> Path:
    """Copies a shipped recipe to `out` (a file or a folder), its `extends` made absolute; returns the file written.

    Raises:
        UserError: there is no such recipe, or the file exists.
    """
    import re

    path = find_shipped(name)
    if path is None:
        names = [s.name for s in list_shipped()]
        raise UserError(f"No shipped recipe '{name}'.{nearest(name, names)} `qllava recipes` lists them.")
    target = out / path.name if out.is_dir() or not out.suffix else out
    if target.exists():
        raise UserError(f"{target} is there already; name another file or remove it.")
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^extends: *(\S+)", lambda m: f"extends: {(path.parent / m[1]).resolve()}", text)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target
