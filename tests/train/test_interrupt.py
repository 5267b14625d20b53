"""A run that is interrupted, as a real process: the message, the exit code, and a checkpoint that goes on."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time

import pytest
import yaml
from transformers import TrainerControl

from qllava.api import load, train
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe
from qllava.train import callbacks
from qllava.train.checkpoint import newest_good


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(recipe_values, tmp_path, number):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "max_steps": 2000, "save_steps": 1000}))
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "qllava", "train", str(recipe)], stderr=file, stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.time() + 120
            while "step 2/" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.time() < deadline
                time.sleep(0.1)
            with pytest.raises(UserError, match=r"Another run is writing to .*run\."):
                train(resolve_recipe(recipe_values))
            process.send_signal(number)
            assert process.wait(60) == 1
        finally:
            process.kill()
    text = log.read_text()
    found, complaints = newest_good(tmp_path / "run")
    assert found is not None and not complaints
    assert "Traceback" not in text and "--resume" in text and str(found) in text
    assert load(found).model is not None
    step = int(found.name.split("-")[1])
    result = train(resolve_recipe({**recipe_values, "max_steps": step + 1, "save_steps": 1000}), resume=True)
    assert result.steps == step + 1


def test_a_damaged_checkpoint_is_named_and_passed_over(recipe_values, tmp_path, capsys):
    recipe = resolve_recipe({**recipe_values, "max_steps": 4, "save_steps": 2})
    whole = train(recipe)
    import shutil

    shutil.rmtree(whole.artifact)
    newest = tmp_path / "run" / "checkpoint-4"
    (newest / "optimizer.pt").write_bytes(b"half")
    resumed = train(recipe, resume=True)
    err = " ".join(capsys.readouterr().err.split())
    assert "optimizer.pt is not the file that was written" in err and "Resuming from" in err and "checkpoint-2" in err
    assert resumed.steps == 4 and newest_good(tmp_path / "run")[0] == newest
    assert (tmp_path / "run" / "damaged-checkpoint-4").is_dir()


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_without_a_part_is_not_resumed_from(recipe_values, tmp_path, part):
    """transformers resumes without one of the first three in silence, and takes another path."""
    train(resolve_recipe({**recipe_values, "max_steps": 1, "save_steps": 1}))
    import json
    import shutil

    shutil.rmtree(tmp_path / "run" / "final")
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / part).unlink()
    manifest = json.loads((folder / "qllava.json").read_text())
    del manifest["files"][part]  # a checkpoint that was written without it
    (folder / "qllava.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"No good checkpoint(.|\n)*lacks {part.removesuffix('.pth')}"):
        train(resolve_recipe({**recipe_values, "max_steps": 2, "save_steps": 1}), resume=True)


def test_a_flipped_byte_in_an_adapter_is_refused(recipe_values):
    folder = train(resolve_recipe({**recipe_values, "max_steps": 1})).artifact
    file = folder / "projector.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"projector\.safetensors is not the file"):
        load(folder)


def test_who_was_not_told_says_why_it_stops(monkeypatch, capsys):
    """The process that people read may be on another machine than the launcher that got the signal."""
    monkeypatch.setattr(callbacks, "anywhere", lambda asked: True)
    stop, control = callbacks.OrderlyStop(peers=None), TrainerControl()
    for _ in range(2):
        stop.on_step_end(None, None, control)
    assert control.should_save and control.should_training_stop
    assert (
        capsys.readouterr().err.count("Stopping after this step, with a checkpoint: another process was told to.") == 1
    )


class Quiet:
    """Peers of which none has failed, or one has."""

    def __init__(self, failed=None):
        self.failed = failed

    def failure(self):
        return self.failed


def ends_at_once(second, failed=None):
    """Whether a second signal ends a run at once that SIGTERM had asked to stop."""
    stop = callbacks.OrderlyStop(Quiet())
    stop.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        stop.peers = Quiet(failed)
        signal.raise_signal(second)
    except KeyboardInterrupt:
        return True
    finally:
        stop.restore()
    return False


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("later", [0, 2 * callbacks.ECHO], ids=["with it", "later"])
def test_a_launcher_and_a_scheduler_may_tell_each_for_itself(monkeypatch, processes, later):
    """Under Slurm a process hears SIGTERM from slurmstepd, torchrun and reproduce.sbatch; to hurry it they send SIGKILL."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    clock = itertools.count(0, later)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    assert not ends_at_once(signal.SIGTERM)
    assert ends_at_once(signal.SIGINT) == bool(later)


def test_what_ends_a_run_that_was_asked_to_stop(monkeypatch):
    """Without a launcher the second signal; under one, torchrun's when another process has failed."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ends_at_once(signal.SIGTERM) and ends_at_once(signal.SIGINT)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ends_at_once(signal.SIGTERM, failed="rank 1: the disk is full")
