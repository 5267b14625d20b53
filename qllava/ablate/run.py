"""`qllava ablate`: a study's runs as processes of their own, taken up where an earlier call left them, and what came of them.

In: a study and a folder. Out: `results.json`, `table.md`, `chart.png` and `page.html` in it. A run beside whose folder
stands a record of what it is (`STAGE.json`) and that has its result is done; one that was cut off goes on from its newest
good checkpoint, or begins anew where it has none.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .. import console
from ..artifact.alone import alone
from ..errors import RunError, UserError
from ..evaluate.results import write_result
from .plan import Plan, Run, plan
from .prepare import prepare
from .record import add, begin, belongs, ended, left_to_do
from .study import DATA, Study, load_study, words
from .table import results
from .write import write

TAIL = 8  # lines of a failed run's log that are shown
PATIENCE = 60.0  # seconds that a run gets for its last checkpoint, once it is told to stop
TICK = 0.05


@dataclass(frozen=True)
class Failure:
    run: str
    log: Path
    tail: str


def ablate(
    source: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    launcher: str | None = None,
) -> dict[str, Any]:
    """Runs what of the study is not done, and returns what `results.json` holds.

    Args:
        out: by default `runs/ablate/` and the study's name.
        only: arms; the others stay out of the table, too.
        seeds: by default the study's.
        jobs: so many runs at a time.
        launcher: what stands before `-m qllava`, such as `torchrun --nproc-per-node 8`; by default this Python.

    Raises:
        UserError: the study or a recipe is wrong, or `out` holds runs of another one.
        RunError: a run failed (the others ended, and are in the table), or the study was interrupted.
    """
    study, folder = load_study(source), place_of(source, out)
    found = plan(study, folder, seeds or study.seeds, only)
    if jobs < 1:
        raise UserError("jobs is a number above 0.")
    program = shlex.split(launcher) if launcher else [sys.executable]
    if shutil.which(program[0]) is None:
        raise UserError(f"--launcher: there is no program {program[0]!r} here.")
    can_score(study)
    belongs(found)
    try:
        with alone(folder, f"{folder} is another call's that still runs. Wait for it, or name another --out."):
            return _run(study, found, folder, jobs, program, again(source, folder, only, seeds, jobs, launcher))
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from None


def again(
    source: str | Path, folder: Path, only: Sequence[str], seeds: Sequence[int] | None, jobs: int, launcher: str | None
) -> str:
    """The same call, to go on."""
    words = ["qllava", "ablate", str(source), "--out", str(folder), *(w for arm in only for w in ("--only", arm))]
    words += ["--seeds", ",".join(map(str, seeds))] if seeds else []
    words += ["--jobs", str(jobs)] if jobs != 1 else []
    return shlex.join(words + (["--launcher", launcher] if launcher else []))


def place_of(source: str | Path, out: str | Path | None) -> Path:
    """The study's folder."""
    return Path(out) if out else Path("runs/ablate") / Path(source).stem


def can_score(study: Study) -> None:
    """Raises `UserError` where what the models are going to be asked is not here, before days of training."""
    for name, asked in study.evaluate.items():
        file = asked.root if asked.benchmark is not None else str(asked.data)
        if not words(file) and not Path(file).exists():
            raise UserError(f"evaluate.{name}: there is no {file}, which every model is scored on. Put it there first.")


def _run(study: Study, found: Plan, folder: Path, jobs: int, program: list[str], again: str) -> dict[str, Any]:
    if study.prepare:
        prepare(study.prepare, folder / DATA)
    waiting = left_to_do(found)
    for (
        run
    ) in waiting:  # what came of other models goes first: a call that is killed must not leave it beside the new ones
        if run.result.is_file():
            shutil.rmtree(run.folder)
    done = len(found.runs) - len(waiting)
    console.note(f"{study.title}: {len(found.runs)} runs in {folder}" + (f", {done} of them done" if done else ""))
    failures, skipped = _work(waiting, jobs, program, again)
    document = results(study, found, [vars(f) | {"log": str(f.log)} for f in failures])
    write_result(document, folder / "results.json")
    write(document, folder)
    if failures:
        told = "\n".join(f"{f.run} failed; the end of {f.log}:\n{f.tail}" for f in failures)
        more = f"\nNot begun for that reason: {', '.join(skipped)}." if skipped else ""
        raise RunError(f"{told}{more}\nThe others are in {folder / 'table.md'}. When it is mended: {again}")
    return document


def _work(waiting: list[Run], jobs: int, program: list[str], again: str) -> tuple[list[Failure], list[str]]:
    """Runs them, each after what it needs; the failed ones, and the names of those that could not begin."""
    left, total, number = {run.name: run for run in waiting}, len(waiting), 0
    busy: dict[str, tuple[Run, subprocess.Popen, float]] = {}
    failures: list[Failure] = []
    skipped: list[str] = []
    lost: set[str] = set()
    try:
        while left or busy:
            for name in [n for n, run in left.items() if lost & set(run.needs)]:
                left.pop(name)
                lost.add(name)
                skipped.append(name)
            for name, run in list(left.items()):
                if len(busy) < jobs and not any(n in left or n in busy for n in run.needs):
                    number += 1
                    console.note(f"[{number}/{total}] {name}")
                    busy[name] = (left.pop(name), _start(run, program), time.monotonic())
            for name, (run, process, began) in list(busy.items()):
                if process.poll() is None:
                    continue
                busy.pop(name)
                seconds = time.monotonic() - began
                if process.returncode == 0 and run.result.is_file():
                    ended(run, seconds)
                    continue
                ended(run, seconds)
                lost.add(name)
                failures.append(Failure(name, run.log, _tail(run.log)))
                console.note(f"{name} failed after {seconds:.0f} s; the study goes on with the others.")
            time.sleep(TICK)
    except KeyboardInterrupt:
        _end([process for _, process, _ in busy.values()])
        raise RunError(f"Interrupted. What has ended is kept; to go on: {again}") from None
    except BaseException:
        _end([process for _, process, _ in busy.values()])
        raise
    return failures, skipped


def _start(run: Run, program: list[str]) -> subprocess.Popen:
    """Begins the run, or goes on with it."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    more = []
    if run.recipe is not None and any(run.folder.glob("checkpoint-*")):
        from ..train.checkpoint import newest_good

        more = ["--resume"] if newest_good(run.folder)[0] is not None else []
    if run.recipe is not None and not more and run.folder.exists():
        shutil.rmtree(run.folder)  # the record beside it says that it is this study's
    begin(run, goes_on=run.folder.exists())
    command = [*program, "-m", "qllava", *run.arguments, *more]
    with run.log.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    add(run, process=process.pid, began=psutil.Process(process.pid).create_time())
    return process


def _tail(log: Path) -> str:
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-TAIL:])


def _end(processes: list[subprocess.Popen]) -> None:
    """Tells each, with its own children, to stop; what does not in time is killed."""
    for process in processes:
        _tell(process, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            _tell(process, signal.SIGKILL)
            process.wait()


def _tell(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
