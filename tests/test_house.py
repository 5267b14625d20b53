"""The walls: imports go one way, files stay small, and looking at the package costs nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "qllava"
# From the ground up. A room imports from those under it, or from itself; rooms on one floor do not know each other.
FLOORS = (
    {"errors"}, {"console"}, {"recipe"}, {"data"}, {"model"}, {"artifact"}, {"evaluate"}, {"train", "serve"}, {"demo"}, {"ablate"},
    {"api"}, {"cli"}, {"__main__"},
)  # fmt: skip
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it the import stands."""
    package = ("qllava", *file.relative_to(PACKAGE).parts[:-1])
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            path = (*base, *(node.module.split(".") if node.module else ()))
            rooms |= {path[1]} if len(path) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qllava."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("qllava.")}
    return {r for r in rooms if not r.startswith("__")}


def test_every_room_has_a_floor():
    assert {room_of(f) for f in FILES} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path):
    own = room_of(file)
    if own == "__init__":
        assert not imported_rooms(file)
        return
    wrong = {r for r in imported_rooms(file) if r != own and HEIGHT[r] >= HEIGHT[own]}
    assert not wrong, f"{own} may not import from {wrong}"


def test_the_import_check_sees_relative_and_absolute_imports(tmp_path: Path):
    for room in ("model", "train"):
        assert room in imported_rooms(PACKAGE / "train" / "run.py") | {"train"}
    assert imported_rooms(PACKAGE / "data" / "dataset.py") >= {"errors", "recipe", "data"}


@pytest.mark.parametrize(
    "file", [f for d in ("qllava", "tests", "benchmarks") for f in (ROOT / d).rglob("*.py")], ids=str
)
def test_no_file_is_long(file: Path):
    assert len(file.read_text().splitlines()) <= 300


def of_processor(*words):
    """What Python prints, and the seconds that it keeps a processor busy: those of the clock depend on what runs beside it."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    after = os.times()
    return done.stdout, sum(after[2:4]) - sum(before[2:4])


def test_import_is_light():
    code = "import qllava, qllava.api, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out, seconds = of_processor("-c", code)
    assert out.split() == ["False", "False"]
    assert 0 < seconds < 1.0


def test_recipe_room_imports_no_torch():
    code = "import qllava.recipe, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_help_is_quick():
    out, seconds = of_processor("-m", "qllava", "--help")
    assert "demo" in out
    assert 0 < seconds < 1.5
