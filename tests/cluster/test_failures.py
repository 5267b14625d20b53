"""Two processes under torchrun, one of which fails: the other ends with its words, soon, and they are said once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import psutil
import pytest
import yaml
from conftest import ROOT
from launching import command_of, end_all, environment_of, launched, losses_of, spoiled, until, values_of, words_of

from qllava.train.checkpoint import newest_good, number_of

pytestmark = pytest.mark.slow
OWN_STORE = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
}  # without, torchrun starts anew beside the old keys, and gloo takes them


@pytest.fixture
def small(recipe_values, tmp_path):
    """Writes a short LoRA run as a recipe."""

    def write(**more):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values_of(recipe_values, "lora", **{"save_steps": 1, **more})))
        return path

    return write


def told_once(done, words):
    text = words_of(done.stderr)
    assert done.returncode != 0 and text.count(words) == 1, done.stderr[-5000:]
    assert "gloo" not in text and text.count("Error: process") <= 1, done.stderr[-5000:]
    return text


def test_data_that_one_process_cannot_read(small, tmp_path):
    """The first would have begun to read the model."""
    program = spoiled(
        tmp_path,
        """
        import qllava.train.run as r
        from qllava.errors import UserError
        def select(*args):
            raise UserError("5.png is not there")
        if os.environ["RANK"] == "1":
            r.select = select
        """,
    )
    text = told_once(launched("ddp", small(), program=program), "Error: process 1 on ")
    assert "5.png is not there" in text and "[rank" not in text
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_broken_picture_in_the_middle(small, tmp_path):
    picture = tmp_path / "images" / "5.png"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    text = told_once(launched("ddp", small(max_steps=8)), "5.png")
    assert "Error: process " in text and "--resume" in text


def test_a_mistake_in_one_process_is_shown_whole(small, tmp_path):
    program = spoiled(
        tmp_path,
        """
        import qllava.train.trainer as t
        plain = t.LlavaTrainer.compute_loss
        def compute_loss(self, *args, **kwargs):
            if os.environ["RANK"] == "1" and self.state.global_step == 1:
                raise ValueError("what no one has foreseen")
            return plain(self, *args, **kwargs)
        t.LlavaTrainer.compute_loss = compute_loss
        """,
    )
    done = launched("ddp", small(), program=program)
    text = told_once(done, "ValueError: what no one has foreseen")
    assert "process 1 on " in text and "in compute_loss" in text
    assert newest_good(tmp_path / "run")[0].name == "checkpoint-1"


def test_the_first_process_cannot_write(small, tmp_path):
    """Its checkpoint of step 2 is cut off as on a full disk, while the other waits for it to be written."""
    program = spoiled(
        tmp_path,
        """
        import resource, signal
        import qllava.train.trainer as t
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        plain = t.LlavaTrainer._save_checkpoint
        def save(self, *args):
            if os.environ["RANK"] == "0" and self.state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return plain(self, *args)
        t.LlavaTrainer._save_checkpoint = save
        """,
    )
    text = told_once(launched("ddp", small(), program=program), "could not be written")
    assert "Error: process 0 on " in text
    found, complaints = newest_good(tmp_path / "run")
    assert found.name == "checkpoint-1" and not complaints and str(found) in text
    assert launched("ddp", tmp_path / "recipe.yaml", "--resume").returncode == 0


def test_a_wrong_recipe_is_told_once(small):
    done = launched("ddp", small(max_length=-1))
    assert done.returncode != 0 and words_of(done.stderr).count("max_length") == 1


def test_a_process_that_stands_still_is_given_up_after_ddp_timeout(small, tmp_path):
    """And every group has that timeout, also those that DeepSpeed made for itself."""
    program = spoiled(
        tmp_path,
        """
        import torch
        import qllava.train.trainer as t
        from torch.distributed.distributed_c10d import _world
        plain = t.LlavaTrainer.compute_loss
        def compute_loss(self, *args, **kwargs):
            limits = {g._get_backend(torch.device("cpu")).options._timeout.seconds for g in _world.pg_map}
            assert limits == {10} and len(_world.pg_map) > 1, limits
            return plain(self, *args, **kwargs)
        t.LlavaTrainer.compute_loss = compute_loss
        """,
    )
    recipe, log = small(max_steps=500, ddp_timeout=10), tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [*command_of("zero2", program=program), "train", str(recipe)],
            stdout=file,
            stderr=file,
            env=environment_of("zero2"),
            cwd=ROOT,
        )
    try:
        until(lambda: (tmp_path / "run" / "checkpoint-2").is_dir(), launcher, log)
        workers = {p.environ().get("RANK"): p for p in psutil.Process(launcher.pid).children()}
        workers["1"].send_signal(signal.SIGSTOP)
        workers["0"].wait(timeout=10 + 5 + 15 + 10)
    finally:
        end_all(launcher)
    text = words_of(log.read_text())
    assert text.count("Error: process 1 on ") == 1 and "ended without a word" in text, log.read_text()[-3000:]
    assert newest_good(tmp_path / "run")[0] is not None


def test_torchrun_starts_anew_and_the_run_goes_on(small, tmp_path):
    program = spoiled(
        tmp_path,
        """
        import qllava.train.trainer as t
        plain = t.LlavaTrainer.compute_loss
        def compute_loss(self, *args, **kwargs):
            if os.environ["RANK"] + os.environ["TORCHELASTIC_RESTART_COUNT"] == "10" and self.state.global_step == 2:
                os.kill(os.getpid(), 9)
            return plain(self, *args, **kwargs)
        t.LlavaTrainer.compute_loss = compute_loss
        """,
    )
    recipe = small()
    done = launched("ddp", recipe, program=program, launcher=["--max-restarts", "1", "--standalone"], **OWN_STORE)
    assert done.returncode == 0, done.stderr[-5000:]
    assert words_of(done.stderr).count("Resuming from") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 4
    whole = launched("ddp", recipe, f"output_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0 and losses_of(tmp_path / "run") == pytest.approx(
        losses_of(tmp_path / "whole"), rel=1e-5
    )


def test_a_signal_to_all_processes_and_workers(small, tmp_path):
    """As Slurm and terminals send it: the workers that load data live until the run has saved."""
    recipe, log = small(max_steps=4000, save_steps=4000, dataloader_num_workers=2), tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [*command_of("ddp"), "train", str(recipe)], stdout=file, stderr=file, env=environment_of("ddp"), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "step 2/" in log.read_text(), launcher, log)
        for process in psutil.Process(launcher.pid).children(recursive=True):
            process.send_signal(signal.SIGTERM)
        os.kill(launcher.pid, signal.SIGTERM)
        started = time.monotonic()
        launcher.wait(timeout=60)
    finally:
        end_all(launcher)
    text = words_of(log.read_text())
    found, complaints = newest_good(tmp_path / "run")
    assert found is not None and number_of(found) > 1 and not complaints, log.read_text()[-3000:]
    assert text.count("Go on with the same command and --resume") == 1 and "DataLoader worker" not in text
    assert time.monotonic() - started < 25


def test_a_checkpoint_that_takes_long_is_waited_for(small, tmp_path):
    """The first process writes down what it saved, while the others have nothing left to do."""
    program = spoiled(
        tmp_path,
        """
        import contextlib, time
        import qllava.train.keeping as k
        import qllava.train.peers as p
        p.GRACE, plain = 1.0, k.writing
        @contextlib.contextmanager
        def writing(*args):
            with plain(*args) as folder:
                yield folder
                time.sleep(5)  # longer than torchrun's echo is passed over
        k.writing = writing
        """,
    )
    recipe, log = small(max_steps=4000, save_steps=4000), tmp_path / "log"
    with log.open("w") as file:
        command = [*command_of("ddp", program=program), "train", str(recipe)]
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=environment_of("ddp"), cwd=ROOT)
    try:
        until(lambda: "step 2/" in log.read_text(), launcher, log)
        for process in psutil.Process(launcher.pid).children():
            process.send_signal(signal.SIGTERM)
        launcher.wait(timeout=60)
    finally:
        end_all(launcher)
    found, complaints = newest_good(tmp_path / "run")
    assert found is not None and not complaints, log.read_text()[-3000:]
    assert words_of(log.read_text()).count("Go on with the same command and --resume") == 1
