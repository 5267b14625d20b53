"""What this machine has: memory for a run, and how fast it multiplies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import torch

from ..model.device import pick_device

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def machine_memory(device: torch.device | None = None) -> int:
    """Bytes that this process may take: of its GPU, or of its share of main memory (a container's limit counts)."""
    device = device or pick_device()
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _fraction(device))
    limit = psutil.virtual_memory().total
    for file in LIMITS:
        path = Path(file)
        if path.is_file() and path.read_text().strip().isdigit():
            limit = min(limit, int(path.read_text()))
    return int(0.9 * limit / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _fraction(device: torch.device) -> float:
    known = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return known(device) if known else 1.0


def matrix_rate(dtype: torch.dtype, device: torch.device | None = None) -> float:
    """Operations a second that this device reaches in one large matrix product."""
    device = device or pick_device()
    edge = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(edge, edge, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * edge**3 / best
