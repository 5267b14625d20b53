"""One process at a time in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from qllava.artifact.alone import alone
from qllava.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from qllava.artifact.alone import alone
with alone(Path(sys.argv[1]), "taken"):
    print("holds", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds `tmp_path / "a" / "b"` so many seconds."""
    started = []

    def start(seconds):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "a" / "b"), str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "holds\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_kept_out_until_the_first_is_killed(holder, tmp_path):
    first = holder(120)
    with pytest.raises(UserError, match=r"^b is taken$"), alone(tmp_path / "a" / "b", "b is taken"):
        raise AssertionError
    first.send_signal(signal.SIGKILL)
    first.wait()
    with alone(tmp_path / "a" / "b", "taken"):
        pass


def test_one_that_is_about_to_end_is_waited_for(holder, tmp_path):
    holder(1)
    since = time.monotonic()
    with alone(tmp_path / "a" / "b", "taken", 30):
        assert time.monotonic() - since < 25


def test_an_error_lets_go(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), alone(tmp_path, "taken"):
            raise KeyError


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^Cannot write to .*file/under"), alone(tmp_path / "file" / "under", "taken"):
        raise AssertionError
