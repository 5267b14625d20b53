"""What is kept of a study's runs: what is done stays, what has changed is refused or made anew."""

from __future__ import annotations

import json
import shutil

import psutil
import pytest

from qllava.ablate.run import ablate
from qllava.ablate.trial import trial
from qllava.errors import RunError, UserError


def test_a_changed_study_is_refused(study, fake, tmp_path, values):
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    before, stage = len(fake.calls), values["stages"]["instruct"]
    changed = stage | {"overrides": {"learning_rate": 0.01, "max_steps": 9}}
    for run in (ablate, trial):
        with pytest.raises(UserError) as caught:
            run(study(stages={"instruct": changed}), tmp_path / "out", launcher=fake.launcher)
        assert "max_steps 4 then, 9 now" in str(caught.value) and "another --out" in str(caught.value)
    with pytest.raises(UserError, match=r"evaluation .* then"):
        ablate(study(evaluate={"scenes": values["evaluate"]["scenes"] | {"limit": 3}}), tmp_path / "out")
    assert len(fake.calls) == before
    seen = stage | {"overrides": {"learning_rate": 0.01, "weight_decay": 0.5}}
    with pytest.raises(UserError, match=r"weight_decay \(the default\) then, 0.5 now"):
        ablate(study(stages={"instruct": seen}), tmp_path / "out", launcher=fake.launcher)
    more = stage | {"overrides": {"learning_rate": 0.01, "logging_steps": 3}}  # which changes no outcome
    ablate(study(stages={"instruct": more}), tmp_path / "out", launcher=fake.launcher)
    assert len(fake.calls) == before


def test_a_strange_folder_is_refused(study, fake, tmp_path):
    (tmp_path / "out" / "slow" / "seed-1" / "instruct").mkdir(parents=True)
    with pytest.raises(UserError, match="has no record"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)
    assert not fake.calls


def test_what_is_trained_anew_is_scored_anew(study, fake, tmp_path):
    out = tmp_path / "out"
    assert (
        ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)["arms"][0]["scores"]["scenes"]["mean"]
        == 50.0
    )
    told = json.loads((fake.folder / "told.json").read_text())
    (fake.folder / "told.json").write_text(json.dumps({**told, "scores": {"0.01/1": 0.99}}))
    shutil.rmtree(out / "slow" / "seed-1" / "instruct")
    document = ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)
    assert document["arms"][0]["scores"]["scenes"]["mean"] == 99.0
    assert [c[0] for c in fake.calls] == ["train", "eval"] * 2


def test_data_that_has_changed_is_refused(study, fake, scenes, tmp_path):
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    rows = json.loads(scenes.read_text())
    scenes.write_text(json.dumps(rows[:-1]))
    with pytest.raises(UserError, match=r"the data in .* has changed"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)


def test_a_run_that_a_killed_call_has_left_alive_is_not_disturbed(study, fake, tmp_path):
    out = tmp_path / "out"
    ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)
    record = out / "slow" / "seed-1" / "instruct.json"
    kept = json.loads(record.read_text())
    assert "process" not in kept
    alive = psutil.Process()
    record.write_text(json.dumps({**kept, "process": alive.pid, "began": alive.create_time()}))
    with pytest.raises(UserError, match=f"process {alive.pid}"):
        ablate(study(), out, launcher=fake.launcher)
    record.write_text(
        json.dumps({**kept, "process": alive.pid, "began": 1.0})
    )  # the number is another process's by now
    ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)


def test_time_is_that_of_all_parts(study, fake, tmp_path):
    out = tmp_path / "out"
    fake.tell(fail=(0.01,))
    with pytest.raises(RunError, match="--only slow --seeds 1 --jobs 2 --launcher"):
        ablate(study(), out, only=["slow"], seeds=[1], jobs=2, launcher=fake.launcher)
    record = out / "slow" / "seed-1" / "instruct.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "seconds": 100.0}))
    (out / "slow" / "seed-1" / "instruct" / "checkpoint-1").mkdir()
    fake.tell()
    ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)
    assert json.loads(record.read_text())["seconds"] < 100  # the checkpoint was none, so it began anew


def test_an_arm_that_joins_before_others_takes_their_runs_as_they_lie(study, fake, values, tmp_path):
    out, two = tmp_path / "out", {"fast": values["arms"]["fast"], "slow": {}}
    ablate(study(arms=two), out, seeds=[1], launcher=fake.launcher)
    document = ablate(study(arms={"early": two["fast"]} | two), out, seeds=[1], launcher=fake.launcher)
    assert len(fake.calls) == 4 and not (out / "early").exists()
    assert [arm["scores"]["scenes"]["mean"] for arm in document["arms"]] == [25.0, 25.0, 50.0]


@pytest.mark.parametrize("order", [("slow", "new"), ("new", "slow")])
def test_a_folder_that_two_arms_lay_claim_to_is_refused(study, fake, values, tmp_path, order):
    out, fast = tmp_path / "out", values["arms"]["fast"]
    ablate(study(), out, only=["slow"], seeds=[1], launcher=fake.launcher)
    swapped = {"slow": {"stages": {"instruct": {"overrides": {"learning_rate": 0.5}}}}, "new": {}}
    with pytest.raises(UserError, match=r"slow.seed-1.instruct holds a run that two arms lay claim to"):
        ablate(study(arms={n: swapped[n] for n in order} | {"fast": fast}), out, seeds=[1], launcher=fake.launcher)
    assert len(fake.calls) == 2


@pytest.mark.parametrize("damage", ["", "[]", '{"metrics": 3}'])
def test_a_damaged_result_is_named(study, fake, tmp_path, damage):
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    result = tmp_path / "out" / "slow" / "seed-1" / "eval-scenes" / "result.json"
    result.write_text(damage)
    with pytest.raises(UserError, match=r"result.json is damaged. Remove it"):
        ablate(study(), tmp_path / "out", launcher=fake.launcher)
    result.unlink()
    ablate(study(), tmp_path / "out", launcher=fake.launcher)
    assert len(fake.calls) == 9
