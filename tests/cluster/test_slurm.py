"""`sbatch reproduce.sbatch demo` under a real Slurm: jobs in order, one queued again in the middle, the scoreboard at the end.

Needs Debian's slurm-wlm and munge; with QLLAVA_INSTALL=1 (as `.ci/run` sets it) and as root they are installed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, scene_rows
from PIL import Image
from sets_choice import make_pope
from slurm import Slurm, why_not

from qllava.artifact.manifest import read_manifest, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SBATCH = ROOT / "recipes" / "cluster" / "reproduce.sbatch"
CHAIN = ("align", "instruct", "merge", "evaluate")


@pytest.fixture(scope="module")
def slurm():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    cluster = Slurm(folder)
    cluster.environment |= {
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "EVAL_ROOT": "eval",
    }  # fmt: skip
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where it is submitted: a little data where the demo's would be, and a benchmark."""
    place = tmp_path_factory.mktemp("place")
    data = place / "runs" / "demo" / "data"
    for name in ("captions", "easyvqa_train", "easyvqa_test"):
        (data / name).mkdir(parents=True)
        rows = scene_rows(16)
        for i, row in enumerate(rows):
            Image.new("RGB", (64, 64), ("red", "green", "blue")[i % 3]).save(data / name / f"{i}.png")
            row["conversations"] = row["conversations"][:2]
        (data / f"{name}.json").write_text(json.dumps(rows))
    make_pope(place / "eval")
    return place


def submitted(slurm, place, *words, **variables):
    job = slurm.says("sbatch", "--parsable", "-c", "1", str(SBATCH), "demo", *words, cwd=place, **variables)
    assert job.isdigit(), job
    return job


def log_of(place, job):
    found = list(place.glob(f"qllava-*-{job}.log"))
    return found[0].read_text() if found else ""


def chain_of(slurm, place, job):
    """The jobs that the first one has submitted, by step."""
    slurm.until(lambda: "evaluate is job" in log_of(place, job), 120)
    lines = [line.split(" is job ") for line in log_of(place, job).splitlines() if " is job " in line]
    return {step: number.rstrip(".") for step, number in lines}


def ended(slurm, place, job, seconds, expected="COMPLETED"):
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    slurm.until(lambda: slurm.state(job)[0] in over, seconds)
    assert slurm.state(job)[0] == expected, f"{slurm.state(job)}\n{log_of(place, job)[-4000:]}"


def checkpoints_of(place):
    return sorted((place / "runs" / "demo" / "instruct").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def test_both_stages_to_the_scoreboard(slurm, place):
    words = ("align:max_steps=2", "align:global_batch_size=8", "align:per_device_train_batch_size=4", "logging_steps=1")
    words += ("instruct:max_steps=400", "instruct:save_steps=400", "instruct:global_batch_size=2", "instruct:lora.r=4")
    words += ("instruct:per_device_train_batch_size=1", "lr_scheduler_type=constant")
    options = {"NODES": "2", "CPUS": "1", "OPTIONS": "--time=1:00:00"}
    job = submitted(slurm, place, *words, **options)
    chain = chain_of(slurm, place, job)
    assert list(chain) == list(CHAIN)
    waiting = slurm.says("squeue", "-h", "-o", "%i %E").splitlines()
    for before, step in zip((job, *chain.values()), CHAIN, strict=False):
        assert f"{chain[step]} afterok:{before}(unfulfilled)" in waiting, waiting
    again = submitted(slurm, place, *words, **options)  # beside it: it waits, and finds all done
    ended(slurm, place, job, 180)
    ended(slurm, place, chain["align"], 180)

    instruct = chain["instruct"]
    slurm.until(lambda: "step 3/400" in log_of(place, instruct), 180)
    assert {slurm.state(chain[step])[0] for step in ("merge", "evaluate")} == {"PENDING"}
    slurm.says("scancel", "--batch", "--signal=USR1", instruct)  # as Slurm does before the time limit
    slurm.until(lambda: slurm.state(instruct)[1] == 1, 180)
    (saved,) = checkpoints_of(place)
    verify(saved)
    ended(slurm, place, instruct, 400)
    log = log_of(place, instruct)
    assert log.count("Stopping after this step") == 1 and "Queueing job" in log
    assert f"Resuming from runs/demo/instruct/{saved.name}" in log
    assert f'File "{ROOT / "qllava"}' not in log, "a traceback through qllava (torchrun writes one of its own)"
    final = read_manifest(place / "runs/demo/instruct/final")
    step = int(saved.name.split("-")[1])
    assert 3 <= step < 400 and final.report["resumed_from_step"] == step
    assert [p.name for p in checkpoints_of(place)] == [saved.name, "checkpoint-400"]

    ended(slurm, place, chain["merge"], 180)
    ended(slurm, place, chain["evaluate"], 180)
    assert read_manifest(place / "runs/demo/instruct-merged").kind == "model"
    board = json.loads((place / "runs/scoreboard/demo-qlora/scoreboard.json").read_text())
    (run,) = board["runs"]
    assert run["cells"]["pope"]["verdict"] != "not run" and run["cells"]["gqa"]["verdict"] == "not run"
    assert "exact match" in log_of(place, chain["evaluate"])

    for step, number in chain_of(slurm, place, again).items():
        ended(slurm, place, number, 180)
        assert step == "evaluate" or "passed over" in log_of(place, number)


def test_what_fails_or_is_cancelled_takes_the_rest_along(slurm, place):
    """A cancelled job hears the signal of a preemption, and must not queue itself again."""
    wrong = submitted(slurm, place, "max_stepz=3", RUNS="wrong")
    chain = chain_of(slurm, place, wrong)
    ended(slurm, place, wrong, 180, "FAILED")
    assert "max_steps" in log_of(place, wrong)
    slurm.until(lambda: {slurm.state(j)[0] for j in chain.values()} == {"CANCELLED"}, 180)

    job = submitted(slurm, place, "max_steps=4000", "save_steps=4000", "align:global_batch_size=2", "logging_steps=1",
                    "align:per_device_train_batch_size=2", RUNS="cancelled")  # fmt: skip
    chain = chain_of(slurm, place, job)
    slurm.until(lambda: "step 2/" in log_of(place, chain["align"]), 180)
    slurm.says("scancel", chain["align"])
    slurm.until(lambda: {slurm.state(j)[0] for j in chain.values()} == {"CANCELLED"}, 180)
    assert slurm.state(chain["align"])[1] == 0 and list((place / "cancelled/demo/align").glob("checkpoint-*"))
