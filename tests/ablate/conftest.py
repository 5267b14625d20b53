"""A small study, and a program that stands in for the runs: it writes what they leave, and fails or waits when told to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

FAKE = """
import json, os, sys, time
from pathlib import Path
verb, arguments = sys.argv[3], sys.argv[4:]  # behind -m qllava
here = Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([verb, *arguments]) + "\\n")
told = json.loads((here / "told.json").read_text())
if verb == "train":
    fields = dict(a.split("=", 1) for a in arguments[1:] if "=" in a)
    out = Path(json.loads(fields["output_dir"]))
    rate = float(fields["learning_rate"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "pid").write_text(str(os.getpid()))
    if rate in told["fail"]:
        sys.exit(f"no luck with {rate}")
    time.sleep(told["sleep"])
    (out / "final").mkdir()
    (out / "final" / "qllava.json").write_text(json.dumps([rate, int(fields["seed"])]))
else:
    rate, seed = json.loads((Path(arguments[0]) / "final" / "qllava.json").read_text())
    out = Path(arguments[arguments.index("--out") + 1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps({"metrics": {"exact_match": told["scores"][f"{rate}/{seed}"]}}))
"""


class Fake:
    """The program's folder: what it is told, and how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "fake.py").write_text(FAKE)
        self.launcher = f"{sys.executable} {folder / 'fake.py'}"
        self.tell()

    def tell(self, fail: tuple[float, ...] = (), sleep: float = 0.0) -> None:
        scores = {"0.01/1": 0.5, "0.01/2": 0.7, "0.02/1": 0.25, "0.02/2": 0.25}
        (self.folder / "told.json").write_text(json.dumps({"fail": fail, "sleep": sleep, "scores": scores}))

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "fake")


@pytest.fixture
def values(tmp_path: Path, recipe_values: dict, scenes: Path) -> dict:
    """Two arms that differ in the learning rate, two seeds."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    return {
        "title": "Two rates",
        "axis": "rate",
        "stages": {"instruct": {"recipe": str(recipe), "overrides": {"learning_rate": 0.01}}},
        "arms": {
            "slow": {"paper": {"scenes": 61.0}},
            "fast": {"title": "twice", "stages": {"instruct": {"overrides": {"learning_rate": 0.02}}}},
        },
        "seeds": [1, 2],
        "evaluate": {"scenes": {"data": str(scenes), "image_root": str(scenes.parent / "images"), "max_new_tokens": 4}},
        "source": "nowhere",
    }


@pytest.fixture
def study(tmp_path: Path, values: dict):
    """Writes the study, with changes; returns its file."""

    def make(**changes) -> Path:
        file = tmp_path / "rates.yaml"
        file.write_text(yaml.safe_dump(values | changes, sort_keys=False))
        return file

    return make
