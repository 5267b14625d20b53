"""How fast a device multiplies matrices: what a model's use of it is compared with."""

from __future__ import annotations

import statistics
import time

SIZES = {"cpu": (1024, 2048, 2048), "cuda": (8192, 8192, 8192)}  # rows, inner, columns


def matmul_rate(device: str, dtype: str, seconds: float = 2.0) -> float:
    """Floating-point operations per second of one large matrix product in `dtype`: the median of as many as fit in `seconds`."""
    import torch

    n, k, m = SIZES[device]
    a = torch.randn(n, k, device=device).to(getattr(torch, dtype))
    b = torch.randn(k, m, device=device).to(getattr(torch, dtype))
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 8 or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * n * k * m / statistics.median(times[3:])
