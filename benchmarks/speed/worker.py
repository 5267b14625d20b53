"""One contender in a process of its own: `python -m benchmarks.speed.worker JOB.json`, started by `race`.

Reports are JSON, one a line, on what was stdout; each line on stdin is a go. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .job import Job


class Line:
    """The line to the race."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def say(self, report: dict[str, Any]) -> None:
        self.out.write(json.dumps(report) + "\n")
        self.out.flush()

    def wait(self) -> None:
        """Returns at the go; ends the process when the race is over."""
        if not sys.stdin.readline():
            os._exit(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, is a lack of memory."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if type(seen).__name__ == "OutOfMemoryError" or isinstance(seen, MemoryError):
            return True
        if "out of memory" in text or "can't allocate memory" in text:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def run(job: Job, line: Line) -> None:
    """The contender's whole run."""
    import torch

    from .stopwatch import Stopwatch

    torch.set_num_threads(job.threads)
    if job.device == "cuda" and job.vram_cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.vram_cap * 2**30 / total))
    if job.kind == "rate":
        from .rate import matmul_rate

        line.say({"event": "rate", "flops": matmul_rate(job.device, job.dtype)})
        return
    if job.kind == "base":
        from .shapes import make_base

        line.say({"event": "base", "path": str(make_base(job.name, Path(job.base), job.device))})
        return
    watch = Stopwatch(line.say, line.wait, job.steps, job.device)
    if job.kind == "qllava":
        from qllava.train.run import train

        train(job.recipe(), callbacks=[watch])
    else:
        from . import peers

        getattr(peers, job.kind)(job, watch)


def main() -> None:
    line = Line()
    job = Job.read(Path(sys.argv[1]))
    try:
        run(job, line)
    except Exception as error:
        import traceback

        traceback.print_exc()
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        line.say({"event": "failed", "oom": out_of_memory(error), "error": text})
        os._exit(1)


if __name__ == "__main__":
    main()
