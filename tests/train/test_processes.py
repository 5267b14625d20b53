"""Two processes under torchrun take the same steps as one, with the same global batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from qllava.api import train
from qllava.recipe import resolve_recipe
from qllava.train.checkpoint import newest_good


def launched(recipe, *more, **options):
    """`qllava train` in two processes; OMP_NUM_THREADS as for one, so that sums come out alike."""
    port = str(29500 + os.getpid() % 1000)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return subprocess.run(
        [*command, "-m", "qllava", "train", str(recipe), *more], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def both(values, tmp_path):
    """Losses of the same run in one process and in two."""
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "two")}))
    done = launched(recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "two" / f"checkpoint-{one.steps}" / "trainer_state.json").read_text())
    return [e["loss"] for e in one.log], [e["loss"] for e in state["log_history"] if "loss" in e]


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True], ids=["shuffled", "by modality and length"])
def test_two_processes_equal_one(recipe_values, tmp_path, grouped):
    values = {
        **recipe_values,
        "global_batch_size": 8,
        "max_steps": 2,
        "group_by_modality_length": grouped,
        "warmup_steps": 0,
    }
    one, two = both(values, tmp_path)
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_the_last_batch_of_an_epoch_that_does_not_divide(recipe_values, tmp_path):
    """accelerate would repeat samples to fill it, and every step after it would differ."""
    data = [{**recipe_values["data"][0], "max_samples": 13}]
    values = {
        **recipe_values,
        "data": data,
        "global_batch_size": 4,
        "max_steps": -1,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
    }
    values |= {"per_device_train_batch_size": 1, "warmup_steps": 0, "save_steps": 1}
    one, two = both(values, tmp_path)
    assert len(one) == 8 and two == pytest.approx(one, rel=1e-4)
    counted = json.loads((tmp_path / "two" / "run.json").read_text())
    assert counted["samples_per_second"] * counted["seconds"] == pytest.approx(26, rel=0.02)


@pytest.mark.slow
def test_a_tower_that_trains_and_batches_of_text_alone(recipe_values, tmp_path):
    """A batch without a picture gives the tower a gradient of zero; DDP would end with a mismatch of its collectives."""
    values = {
        **recipe_values,
        "tune_vision_tower": "full",
        "per_device_train_batch_size": 1,
        "max_steps": 4,
        "save_steps": 4,
    }
    values |= {"learning_rate": 1e-3, "group_by_modality_length": True, "global_batch_size": 2}
    one, two = both(values, tmp_path)
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(recipe_values, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "max_steps": 4000, "save_steps": 4000, "global_batch_size": 4}))
    port = str(29500 + os.getpid() % 1000)
    processes, log = [], tmp_path / "log"
    for rank in range(2):
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        command = [sys.executable, "-m", "qllava", "train", str(recipe), "--json"]
        with log.open("a") as file, (tmp_path / f"out-{rank}").open("w") as out:
            processes.append(subprocess.Popen(command, env=environment, stderr=file, stdout=out))
    try:
        deadline = time.time() + 120
        while "step 2/" not in log.read_text():
            assert time.time() < deadline and all(p.poll() is None for p in processes), log.read_text()[-2000:]
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        assert [p.wait(60) for p in processes] == [1, 1]
    finally:
        for process in processes:
            process.kill()
    found, complaints = newest_good(tmp_path / "run")
    assert found is not None and not complaints
    assert "--resume" in log.read_text() and "Traceback" not in log.read_text()


@pytest.mark.slow
def test_one_document_whatever_the_number_of_processes(recipe_values, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "max_steps": 1, "global_batch_size": 4}))
    done = launched(recipe, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["steps"] == 1
    assert done.stderr.count("What trains") == 1
