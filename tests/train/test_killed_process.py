"""One of two processes dies while the other waits for it in a collective: the run ends with an error, soon."""

from __future__ import annotations

import signal
import subprocess
import time

import psutil
import pytest
import yaml
from conftest import ROOT
from launching import command_of, end_all, environment_of, until, values_of, words_of

pytestmark = pytest.mark.slow


def workers(launcher):
    """The launcher's processes by rank."""
    found = {}
    for child in psutil.Process(launcher.pid).children():
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child
    return found


@pytest.mark.parametrize(("engine", "killed"), [("ddp", 1), ("ddp", 0), ("zero2", 1)])
def test_a_process_killed_during_a_collective_ends_the_run(recipe_values, tmp_path, engine, killed):
    values = values_of(recipe_values, "lora", max_steps=500, save_steps=2, output_dir=str(tmp_path / "out"))
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "log"
    recipe.write_text(yaml.safe_dump(values))
    with log.open("w") as stderr:
        launcher = subprocess.Popen(
            [*command_of(engine), "train", str(recipe)],
            stdout=stderr,
            stderr=stderr,
            env=environment_of(engine),
            cwd=ROOT,
        )
        try:
            until(lambda: (tmp_path / "out" / "checkpoint-2").is_dir(), launcher, log)
            victim = workers(launcher)[killed]
            victim.send_signal(signal.SIGSTOP)  # the other one goes into its next collective, and waits there
            time.sleep(3)
            assert launcher.poll() is None
            victim.send_signal(signal.SIGKILL)
            started = time.monotonic()
            assert launcher.wait(timeout=60) != 0
        finally:
            end_all(launcher)
    assert time.monotonic() - started < 60
    text = words_of(log.read_text())
    assert text.count(f"Error: process {killed} on ") == 1 and "ended without a word" in text and "--resume" in text
    assert "[rank" not in text  # no traceback
    assert "exitcode : -9" in text and f"rank : {killed}" in text  # torchrun names who died and of what
    assert (tmp_path / "out" / "checkpoint-2").is_dir() and not (tmp_path / "out" / "final").exists()
