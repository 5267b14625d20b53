"""One process of a node works, the others take its result or its error; what is kept is found again, also elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import pytest

from qllava.data import cores, once, rows
from qllava.data.once import for_launch, kept, temporary_folder
from qllava.data.rows import rows_of
from qllava.errors import UserError
from qllava.recipe.schema import Source

TALK = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]

PROCESS = """
import json, os, sys
from qllava.data.once import for_launch
from qllava.errors import RunError, UserError

def make():
    with open(sys.argv[1], "a") as file:
        print(os.environ["LOCAL_RANK"], file=file)
    if sys.argv[2] == "fails":
        raise UserError("The data is bad.")
    if sys.argv[2] == "breaks":
        raise KeyError("oh")
    return ["made", os.environ["LOCAL_RANK"]]

try:
    print(json.dumps([for_launch(make), for_launch(lambda: 2)]))
except (UserError, RunError, KeyError) as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


SELECT = """
import json, os, sys
from qllava.data import dataset
from qllava.model.inputs import processing_for
from qllava.recipe import resolve_recipe

bad = dataset._bad
def counted(*arguments):
    with open(sys.argv[1], "a") as file:
        print(os.environ["LOCAL_RANK"], file=file)
    return bad(*arguments)
dataset._bad = counted
recipe = resolve_recipe(json.loads(sys.argv[2]))
try:
    made = dataset.select(recipe, processing_for(recipe))
    print(json.dumps([made.digest, [vars(b) for b in made.dropped]]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def launch(tmp_path, way, port="1", count=3, code=PROCESS):
    """What each process of a launch printed, and which of them worked."""
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    common = {**os.environ, "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": port, "TMPDIR": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(log), way], env=common | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in reversed(range(count))
    ]  # fmt: skip
    return [json.loads(p.communicate(timeout=120)[0]) for p in running], log.read_text().split()


def test_one_process_works_for_all_and_the_next_launch_looks_anew(tmp_path):
    for port in ("1", "2"):
        said, worked = launch(tmp_path, "works", port)
        assert said == [[["made", "0"], 2]] * 3 and worked == ["0"]
    assert not list(tmp_path.rglob("launches/*"))


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["none", "error", "drop"])
def test_one_process_surveys_and_all_select_the_same(scenes, recipe_values, tmp_path, bad):
    if bad != "none":
        (scenes.parent / "images" / "3.png").unlink()
        recipe_values["on_bad"] = bad
    if bad == "drop":
        (scenes.parent / "images" / "4.png").write_text("no image")  # which only decoding tells
    (first, *others), worked = launch(tmp_path, json.dumps(recipe_values), count=2, code=SELECT)
    assert others == [first] and worked == ["0"]
    if bad == "error":
        assert first[0] == "UserError" and "3.png" in first[1]
    else:
        assert [b["id"] for b in first[1]] == {"none": [], "drop": ["s3", "s4"]}[bad]


def test_all_get_the_error_of_the_one_that_worked(tmp_path):
    said, worked = launch(tmp_path, "fails")
    assert said == [["UserError", "The data is bad."]] * 3 and worked == ["0"]


def test_nobody_waits_for_a_process_that_has_broken(tmp_path):
    said, worked = launch(tmp_path, "breaks")
    assert worked == ["0"] and said[-1] == ["KeyError", "'oh'"]
    assert said[:-1] == [["RunError", "The first process failed: KeyError('oh')"]] * 2


def test_alone_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(once, "temporary_folder", lambda: pytest.fail("looked"))
    assert for_launch(lambda: {1}) == {1}


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that is kept, and where."""
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(once.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": f"r{i}", "conversations": TALK} for i in range(5)]))
    return path


def test_where_the_cache_cannot_be_written_the_temporary_folder_is_used(large, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file")
    assert len(rows_of(Source(path=str(large)))) == 5
    assert "Nothing can be kept in" in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "temporary").rglob("*.arrow"))) == 1
    monkeypatch.setattr(rows, "_rows", lambda *_: pytest.fail("read again"))
    assert len(rows_of(Source(path=str(large)))) == 5 and not capsys.readouterr().err


def test_a_temporary_folder_that_others_can_write_is_refused(large, tmp_path):
    temporary_folder().chmod(0o777)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="can be written by others"):
        rows_of(Source(path=str(large)))


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"no room for what is read.*HF_DATASETS_CACHE"):
        kept("x.arrow", write, "x")
    assert [f.suffix for f in (tmp_path / "cache").rglob("x.*")] in ([], [".lock"])


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["kept", "small"])
@pytest.mark.parametrize("how", ["grown", "cut", "gone"])
def test_a_file_that_changes_while_it_is_read_is_an_error(large, tmp_path, monkeypatch, how, limit):
    monkeypatch.setattr(rows, "KEPT", limit)
    original, content = rows.parse, large.read_bytes()

    def parse(*arguments):
        if how == "gone":
            large.unlink(missing_ok=True)
        else:
            large.write_bytes(content + b" " if how == "grown" else content[:-9])
        return original(*arguments)

    monkeypatch.setattr(rows, "parse", parse)
    with pytest.raises(UserError, match=r"a\.json was changed while it was read"):
        rows_of(Source(path=str(large)))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_cores_are_those_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert cores.cores() == 8
    for text, count in (("max 100000\n", 8), ("250000 100000\n", 2), ("10000 100000\n", 1), ("1600000 100000\n", 8)):
        (tmp_path / "cpu.max").write_text(text)
        assert cores.cores() == count
