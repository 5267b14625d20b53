"""Runs of a study: shared, resumed, failed, interrupted, refused. A small program stands in for `python`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qllava.ablate.plan import plan
from qllava.ablate.run import ablate
from qllava.ablate.study import load_study
from qllava.ablate.trial import trial
from qllava.errors import RunError, UserError


def trained(fake) -> list[str]:
    """Output folders of the training runs that were begun, in order."""
    return [a.split("=", 1)[1].strip('"') for call in fake.calls if call[0] == "train" for a in call if a.startswith("output_dir=")]  # fmt: skip


@pytest.mark.parametrize("jobs", [1, 3])
def test_runs_every_arm_with_every_seed(study, fake, tmp_path, jobs):
    document = ablate(study(), tmp_path / "out", jobs=jobs, launcher=fake.launcher)
    slow, fast = document["arms"]
    assert slow["scores"]["scenes"]["values"] == {1: 50.0, 2: 70.0} and fast["scores"]["scenes"]["mean"] == 25.0
    assert len(fake.calls) == 8
    assert json.loads((tmp_path / "out" / "results.json").read_text())["title"] == "Two rates"
    assert all((tmp_path / "out" / name).stat().st_size for name in ("table.md", "chart.png", "page.html"))
    assert (tmp_path / "out" / "fast" / "seed-2" / "instruct" / "final" / "qllava.json").is_file()


def test_no_more_runs_at_a_time_than_jobs(study, fake, tmp_path, monkeypatch):
    from qllava.ablate import run as room

    alive, most, started = [], [], room._start

    def counted(*arguments):
        process = started(*arguments)
        alive.append(process)
        most.append(sum(p.poll() is None for p in alive))
        return process

    monkeypatch.setattr(room, "_start", counted)
    fake.tell(sleep=0.4)
    ablate(study(), tmp_path / "out", jobs=2, launcher=fake.launcher)
    assert max(most) == 2


def test_what_has_ended_is_not_run_again(study, fake, tmp_path):
    ablate(study(), tmp_path / "out", only=["slow"], launcher=fake.launcher)
    before = len(fake.calls)
    document = ablate(study(), tmp_path / "out", launcher=fake.launcher)
    assert before == 4 and len(fake.calls) == 8
    assert [a["name"] for a in document["arms"]] == ["slow", "fast"]
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    assert len(fake.calls) == 8


def test_a_run_that_was_cut_off_begins_anew(study, fake, tmp_path):
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    run = tmp_path / "out" / "slow" / "seed-1"
    (run / "instruct" / "final" / "qllava.json").unlink()
    (run / "instruct" / "half").write_text("x")
    (run / "eval-scenes" / "result.json").unlink()
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    assert trained(fake)[4:] == [str(run / "instruct")] and not (run / "instruct" / "half").exists()


def test_a_good_checkpoint_is_gone_on_with(study, fake, tmp_path, monkeypatch):
    from qllava.train import checkpoint

    fake.tell(fail=(0.01,))
    with pytest.raises(RunError):
        ablate(study(), tmp_path / "out", ["slow"], [1], launcher=fake.launcher)
    folder = tmp_path / "out" / "slow" / "seed-1" / "instruct"
    (folder / "checkpoint-2").mkdir()
    fake.tell()
    monkeypatch.setattr(checkpoint, "newest_good", lambda out: (out / "checkpoint-2", {}))
    ablate(study(), tmp_path / "out", ["slow"], [1], launcher=fake.launcher)
    assert fake.calls[1][-1] == "--resume" and (folder / "checkpoint-2").is_dir()


def test_a_failed_arm_leaves_the_others(study, fake, tmp_path):
    fake.tell(fail=(0.01,))
    with pytest.raises(RunError) as caught:
        ablate(study(), tmp_path / "out", launcher=fake.launcher)
    told = str(caught.value)
    assert "slow/seed-1/instruct failed" in told and "no luck with 0.01" in told
    assert "Not begun for that reason: slow/seed-1/eval-scenes, slow/seed-2/eval-scenes" in told
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["arms"][1]["scores"]["scenes"]["values"] == {"1": 25.0, "2": 25.0}
    assert document["arms"][0]["scores"]["scenes"]["n"] == 0 and len(document["failures"]) == 2
    fake.tell()
    assert ablate(study(), tmp_path / "out", launcher=fake.launcher)["arms"][0]["scores"]["scenes"]["n"] == 2


def test_chains_that_begin_alike_share_their_runs(study, values, tmp_path):
    recipe = values["stages"]["instruct"]["recipe"]
    stages = {
        "first": {"recipe": recipe, "overrides": {"seed": 7}},
        "second": {"recipe": recipe, "overrides": {"projector": "$first"}},
    }
    arms = {"a": {}, "b": {"stages": {"second": {"overrides": {"learning_rate": 0.02}}}}}
    found = plan(load_study(study(stages=stages, arms=arms)), tmp_path / "out", (1, 2))
    assert [n for n in found.runs if n.endswith("first")] == ["a/seed-1/first"]
    assert len([n for n in found.runs if n.endswith("second")]) == 4
    assert found.runs["b/seed-2/second"].needs == ("a/seed-1/first",)
    assert found.runs["b/seed-2/second"].recipe.projector == str(tmp_path / "out" / "a" / "seed-1" / "first")
    alone = plan(load_study(study(stages=stages, arms=arms)), tmp_path / "out", (1,), ["b"])
    assert list(alone.runs) == ["a/seed-1/first", "b/seed-1/second", "b/seed-1/eval-scenes"]
    stages["first"]["overrides"]["learning_rate"] = 0.5  # a forerunner that changes changes what comes of it
    other = plan(load_study(study(stages=stages, arms=arms)), tmp_path / "out", (1, 2))
    assert {found.runs[n].digest for n in found.runs}.isdisjoint({other.runs[n].digest for n in other.runs})


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        ({"data": "gone.json"}, "evaluate.x: there is no gone.json"),
        ({"benchmark": "gqa", "root": "gone"}, "evaluate.x: there is no gone"),
        ({"benchmark": "gqqa"}, "gqa"),
    ],
)
def test_what_is_asked_must_be_there_before_anything_trains(study, fake, tmp_path, evaluation, told):
    with pytest.raises(UserError, match=told):
        ablate(study(evaluate={"x": evaluation}, arms={"a": {}, "b": {}}), tmp_path / "out", launcher=fake.launcher)
    assert not fake.calls


def test_a_launcher_that_is_not_there_and_a_record_that_is_none(study, fake, tmp_path):
    with pytest.raises(UserError, match="no program 'gone-launcher'"):
        ablate(study(), tmp_path / "out", launcher="gone-launcher --x")
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    (tmp_path / "out" / "slow" / "seed-1" / "instruct.json").write_text("{")
    with pytest.raises(UserError, match="is no record of a run"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)


def test_one_call_at_a_time(study, fake, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UserError, match="another call's"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)


def test_a_disk_that_fills_up_is_told(study, fake, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qllava.ablate.run._work", full)
    with pytest.raises(UserError, match=r"^Cannot write to .*out: No space left on device\.$"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)


def test_an_unknown_arm_is_named(study, tmp_path):
    with pytest.raises(UserError, match=r"no arm .slo.*slow"):
        ablate(study(), tmp_path / "out", only=["slo"])


def test_dry_run_prints_commands_and_checks(study, tmp_path, values):
    found = trial(study(), tmp_path / "out")
    assert [r["name"] for r in found["runs"]][:2] == ["slow/seed-1/instruct", "slow/seed-1/eval-scenes"]
    assert found["runs"][0]["command"].startswith("python -m qllava train ") and found["runs"][0]["check"] == "ok"
    assert not (tmp_path / "out").exists()
    gone = values["stages"]["instruct"] | {"overrides": {"data": [{"path": "gone.json"}]}}
    found = trial(study(stages={"instruct": gone}), tmp_path / "out")
    assert found["runs"][0]["check"] == "stops at gone.json, which is not here"


def test_ctrl_c_ends_the_children_and_says_how_to_go_on(study, fake, tmp_path):
    fake.tell(sleep=60)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qllava", "ablate", str(study()), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen([*command, "--launcher", fake.launcher], stderr=subprocess.PIPE, text=True)
    pids = [out / "slow" / f"seed-{seed}" / "instruct" / "pid" for seed in (1, 2)]
    end = time.monotonic() + 60
    while not all(p.is_file() and p.read_text() for p in pids) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Interrupted." in err and "to go on: qllava ablate" in " ".join(err.split())
    for pid in pids:
        assert not alive(int(pid.read_text()))
    fake.tell()
    begun = len(fake.calls)
    ablate(study(), out, launcher=fake.launcher)
    assert len(fake.calls) - begun == 8


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.slow
def test_a_real_study_end_to_end(study, tmp_path):
    document = ablate(study(), tmp_path / "out")
    for arm in document["arms"]:
        assert arm["scores"]["scenes"]["n"] == 2 and arm["seconds"] > 0
        assert all(0 <= v <= 100 for v in arm["scores"]["scenes"]["values"].values())
    manifest = json.loads((tmp_path / "out" / "fast" / "seed-2" / "instruct" / "final" / "qllava.json").read_text())
    assert (manifest["recipe"]["learning_rate"], manifest["recipe"]["seed"]) == (0.02, 2)


def test_a_dry_run_names_what_the_models_would_be_asked_and_is_not_here(values, tmp_path):
    import yaml

    values["evaluate"]["scenes"]["data"] = "nowhere.json"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    rows = trial(tmp_path / "study.yaml", tmp_path / "out")["runs"]
    told = {r["name"]: r.get("check") for r in rows}
    assert told["slow/seed-1/eval-scenes"] == "stops at nowhere.json, which is not here"
