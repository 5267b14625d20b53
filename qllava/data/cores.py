"""Work shared out over the cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 256  # rows that a process takes at a time
FEW = 2000  # rows that one process reads sooner than others have started
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores, and of the clock


def cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(bound, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or one without a limit (`max`)
        return bound


def spread(work: Callable[[range], Any], count: int, processes: int) -> Iterator[Any]:
    """`work` on stretches of `range(count)`, in order, by several processes where there is enough of it."""
    stretches = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    if count < FEW or processes < 2:
        yield from map(work, stretches)
        return
    from torch.utils.data import DataLoader

    yield from DataLoader(_Stretches(work, stretches), batch_size=None, num_workers=min(processes, len(stretches)))


@dataclass
class _Stretches:
    """A data loader's view of work to be shared out."""

    work: Callable[[range], Any]
    stretches: Sequence[range]

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, i: int) -> Any:
        if i >= len(self.stretches):
            raise IndexError(i)
        return self.work(self.stretches[i])
