"""The race: a process for each contender, and the go to one after another.

In: jobs. Out: each contender's reports. Alternating by steps, all are loaded first, and then take one step each in turn, so
that whatever else the machine does hits all alike. Where memory holds one at a time (a GPU), they alternate by rounds: each
is started, takes its steps and leaves, and then all over again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .job import Job

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 0.4  # seconds before a go: threads of the one before spin up to 0.2 s after their last work
Note = Callable[[str], None]


@dataclass
class Seen:
    """What was seen of a contender."""

    name: str
    status: str = "ok"  # or `OOM`, `failed`
    error: str | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)  # of all rounds, the warm-up marked

    def fail(self, report: dict[str, Any]) -> None:
        self.status, self.error = ("OOM" if report["oom"] else "failed"), report["error"]


class Worker:
    """A contender's process.

    Args:
        folder: for its job and what it prints.
        timeout: seconds that one report may take; then it is ended.
    """

    def __init__(self, job: Job, folder: Path, timeout: float) -> None:
        self.job, self.timeout, self.late = job, timeout, False
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "stderr.txt"
        path = replace(job, out=str(folder / "run")).write(folder / "job.json")
        threads = str(job.threads)
        environment = {
            **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if job.device == "cuda" else "",
            "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.speed.worker", str(path)],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def go(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def report(self) -> dict[str, Any]:
        """The next report; of a process that died without one, a report of its failure."""
        timer = threading.Timer(self.timeout, self._expire)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        if self.late:
            return {"event": "failed", "oom": False, "error": f"no report within {self.timeout:.0f} s"}
        if code == -9:  # nobody else ends a process so than Linux when memory is out
            return {"event": "failed", "oom": True, "error": "killed by the system"}
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
        return {"event": "failed", "oom": False, "error": f"exit code {code}: {last[:300]}"}

    def _expire(self) -> None:
        self.late = True
        self.process.kill()

    def end(self) -> None:
        """Lets the process go: without a line to it, it ends by itself."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def by_steps(jobs: Sequence[Job], folder: Path, warmup: int, timeout: float, note: Note) -> list[Seen]:
    """All loaded at once, one step each in turn."""
    seen = [Seen(job.name) for job in jobs]
    workers: list[Worker] = []
    try:
        for i, (job, row) in enumerate(zip(jobs, seen, strict=True)):
            workers.append(Worker(job, folder / str(i), timeout))
            _ready(workers[-1], row, note)
        for step in range(jobs[0].steps):
            for worker, row in zip(workers, seen, strict=True):
                if row.status == "ok":
                    _step(worker, row, step, warmup, note)
    finally:
        for worker in workers:
            worker.end()
    return seen


def by_rounds(jobs: Sequence[Job], folder: Path, warmup: int, timeout: float, note: Note, rounds: int) -> list[Seen]:
    """One loaded at a time; `rounds` times through all. The warm-up is taken in each round."""
    seen = [Seen(job.name) for job in jobs]
    for turn in range(rounds):
        for i, (job, row) in enumerate(zip(jobs, seen, strict=True)):
            if row.status != "ok":
                continue
            worker = Worker(job, folder / f"{turn}-{i}", timeout)
            try:
                _ready(worker, row, note)
                for step in range(job.steps):
                    if row.status == "ok":
                        _step(worker, row, step, warmup, note)
            finally:
                worker.end()
    return seen


def ask(job: Job, folder: Path, timeout: float) -> dict[str, Any]:
    """What a process of its own says to a job of one answer (`rate`, `base`), so that nothing of it, such as memory on a GPU,
    stays behind.

    Raises:
        RuntimeError: it failed.
    """
    worker = Worker(job, folder, timeout)
    report = worker.report()
    worker.end()
    if report["event"] == "failed":
        raise RuntimeError(f"{job.name}: {report['error']}")
    return report


def _ready(worker: Worker, row: Seen, note: Note) -> None:
    report = worker.report()
    if report["event"] == "failed":
        row.fail(report)
        note(f"{row.name}: {row.status} before its first step ({row.error})")
        return
    row.ready = report
    note(f"{row.name}: ready, {report['memory'] / 2**20:,.0f} MiB")


def _step(worker: Worker, row: Seen, step: int, warmup: int, note: Note) -> None:
    time.sleep(PAUSE)
    worker.go()
    report = worker.report()
    if report["event"] == "failed":
        row.fail(report)
        note(f"{row.name}: {row.status} in step {step + 1} ({row.error})")
        return
    report |= {"warmup": step < warmup, "begin": row.ready["memory"]}
    row.steps.append(report)
    note(
        f"{row.name}: step {step + 1}{' (warm-up)' if step < warmup else ''}, {report['seconds']:.2f} s, "
        f"loss {report['loss']:.4f}, peak {report['peak'] / 2**20:,.0f} MiB"
    )
