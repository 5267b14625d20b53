"""Runs that die, as real processes: the message, the exit code, and a newest checkpoint that is good."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qllava.api import load, train, verify
from qllava.recipe import resolve_recipe
from qllava.train.checkpoint import checkpoints, newest_good, number_of
from qllava.train.sampler import SeededSampler


def weights(folder):
    return {f"{f.name}:{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def write(values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command_line(recipe, *more, **options):
    return subprocess.run(
        [sys.executable, "-m", "qllava", "train", str(recipe), *more],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.mark.slow
def test_a_corrupt_image_in_the_middle(recipe_values, tmp_path):
    values = {**recipe_values, "tune": "lora", "max_steps": 8, "save_steps": 1, "save_total_limit": None}
    picture = tmp_path / "images" / "5.png"
    good = picture.read_bytes()
    picture.write_bytes(good[: len(good) // 2])
    recipe = write(values, tmp_path)
    done = command_line(recipe)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    words = " ".join(done.stderr.split())
    assert "5.png" in words and "--resume" in words and done.stdout == ""
    found, complaints = newest_good(tmp_path / "run")
    assert not complaints and (found is None or f"The last good checkpoint is {found}" in words)
    picture.write_bytes(good)
    again = command_line(recipe, *(["--resume"] if found else []))
    assert again.returncode == 0, again.stderr[-2000:]
    verify(tmp_path / "run" / "final")


@pytest.mark.slow
def test_a_batch_that_is_nan(recipe_values, tmp_path):
    """A picture's values overflow: the step is not taken, and what was before it is kept."""
    third_step = list(SeededSampler([1] * 16, 4, 42))[8:12]
    victim = next(i for i in third_step if i < 14)  # the last two have no picture
    poison = textwrap.dedent(f"""
        import qllava.data.processing as p, qllava.cli as cli, sys
        plain = p.Processing.images
        def images(self, refs, root):
            made = plain(self, refs, root)
            return {{k: v * float("nan") for k, v in made.items()}} if "{victim}.png" in refs else made
        p.Processing.images = images
        cli.main(sys.argv[1:])
    """)
    recipe = write({**recipe_values, "tune": "qlora", "max_steps": 4, "save_steps": 50}, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", poison, "train", str(recipe)], capture_output=True, text=True, timeout=300
    )
    words = " ".join(done.stderr.split())
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "The loss is nan at step 3" in words and "lower learning_rate" in words
    found, complaints = newest_good(tmp_path / "run")
    assert number_of(found) == 2 and not complaints and str(found) in words
    assert all(torch.isfinite(v).all() for v in weights(found).values())
    assert command_line(recipe, "--resume").returncode == 0  # the same data without the poison


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole(recipe_values, tmp_path):
    """The kernel refuses bytes beyond a limit, as on a full disk: the last good checkpoint stays as it is."""
    values = {**recipe_values, "tune": "lora", "max_steps": 4, "save_steps": 1, "save_total_limit": None}
    recipe = write(values, tmp_path)
    sizes = [
        f.stat().st_size
        for f in train(resolve_recipe({**values, "max_steps": 1})).artifact.parent.rglob("*")
        if f.is_file()
    ]
    shutil.rmtree(tmp_path / "run" / "final")
    limit = max(sizes) // 2

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = command_line(recipe, "--resume", preexec_fn=limited)
    words = " ".join(done.stderr.split())
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert (
        [number_of(c) for c in checkpoints(tmp_path / "run")] == [1] and "failed" in words
    ) or "could not be written" in words
    assert newest_good(tmp_path / "run") == (tmp_path / "run" / "checkpoint-1", {})
    assert command_line(recipe, "--resume").returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(
            f"cannot mount a small file system here ({done.stderr.strip()}); the limit on a file's size is tested above"
        )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(recipe_values, tmp_path, small_disk):
    """Found before the first step where it is full already; else the run stops and the last good checkpoint is intact."""
    values = {**recipe_values, "tune": "lora", "max_steps": 60, "save_steps": 1, "save_total_limit": None}
    recipe = write({**values, "output_dir": str(small_disk / "run")}, tmp_path)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (11 << 20))
    done = command_line(recipe)
    assert done.returncode == 1 and "Make room, or name another output_dir" in " ".join(done.stderr.split())
    ballast.unlink()
    done = command_line(recipe)
    words = " ".join(done.stderr.split())
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    found, complaints = newest_good(small_disk / "run")
    assert found is not None and not complaints and str(found) in words and "could not be written" in words
    assert load(found).model is not None
    assert not [p for p in (small_disk / "run").glob(".*") if p.is_dir()]  # nothing half written stays in the way


KILLED = textwrap.dedent("""
    import os, sys, json
    import torch
    torch.set_num_threads(1)
    import qllava.train.trainer, qllava.train.watch, qllava.artifact.load  # everything slow, once
    from qllava.api import train
    from qllava.recipe import resolve_recipe
    recipe = resolve_recipe(json.loads(sys.argv[1]))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            if line.strip() == "undisturbed":
                recipe = recipe.model_copy(update={"output_dir": recipe.output_dir + "-whole"})
            train(recipe, resume=line.strip() == "resume")
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
""")


def mark(folder):
    """What tells a folder from another of its name; None where there is none."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora"])
def test_thirty_kills_while_saving(recipe_values, tmp_path, tune):
    """`kill -9` at random moments of saving: the newest whole checkpoint is always found, no other is ever taken for one, and
    what comes out in the end is what an undisturbed run gives."""
    values = {**recipe_values, "tune": tune, "max_steps": 60, "save_steps": 1, "save_total_limit": 2, "warmup_steps": 0}
    values |= {"group_by_modality_length": True, "learning_rate": 1e-4}
    out = tmp_path / "run"
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(values)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rng, kills, newest, saving = random.Random(5), 0, 0, 0
    longest = 0.05  # seconds into saving; more where a busy machine never comes to its end in them
    try:
        while kills < 30:
            left = mark(out / ".saving")  # by the kill before; the next run sweeps it away
            parent.stdin.write("resume\n" if newest else "begin\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            deadline = time.time() + 120
            while mark(out / ".saving") in (None, left) and time.time() < deadline:
                time.sleep(0.0005)
            time.sleep(rng.random() * longest)
            saving += any(p.name == ".saving" or p.name.endswith(".partial") for p in out.glob(".*"))
            os.kill(child, signal.SIGKILL)
            code = int(parent.stdout.readline())
            assert code == -signal.SIGKILL, f"it had ended by itself with {code}"
            kills += 1
            found, complaints = newest_good(out)
            assert not complaints, complaints
            step = number_of(found) if found else 0
            assert step >= newest, f"step {newest} was there and now the newest is {step}"
            if found:
                verify(found)
            longest = 0.05 if step > newest else min(2.0, 1.2 * longest)
            newest = step
            assert newest < 60, "killed too late: the run is over"
        for line in ("resume" if newest else "begin", "undisturbed"):
            parent.stdin.write(f"{line}\n")
            parent.stdin.flush()
            parent.stdout.readline()
            assert int(parent.stdout.readline()) == 0
    finally:
        parent.kill()
    print(f"{saving} of 30 kills fell while something was half written")
    assert saving >= 10
    expected, got = weights(tmp_path / "run-whole" / "final"), weights(out / "final")
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)
    assert not list(out.glob("damaged-*")) and not list(Path(out).glob(".*.partial"))
