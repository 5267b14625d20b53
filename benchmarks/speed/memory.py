"""The peak memory of this process since a moment: resident on a CPU, allocated on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from pathlib import Path

EVERY = 0.02  # seconds between two looks, where the kernel keeps no peak that can be reset


class Memory:
    """Peak memory in bytes since `begin`.

    Args:
        device: `cuda` counts what torch has allocated there; else what is resident, from Linux's VmHWM where it can be reset
            and from a thread that looks every 20 ms where not.
    """

    def __init__(self, device: str) -> None:
        self.cuda, self.at_begin, self._seen, self.how = device == "cuda", 0, 0, "torch.cuda.max_memory_allocated"

    def begin(self) -> int:
        """Gives back what nobody uses, starts counting and returns what is held now."""
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.at_begin = torch.cuda.memory_allocated()
            return self.at_begin
        _trim()
        self.how = "VmHWM" if _reset_peak() else "resident, every 20 ms"
        self.at_begin = self._seen = _status("VmRSS")
        if self.how != "VmHWM":
            threading.Thread(target=self._watch, daemon=True).start()
        return self.at_begin

    def peak(self) -> int:
        """The most that was held since `begin`."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        return _status("VmHWM") if self.how == "VmHWM" else self._seen

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self._seen = max(self._seen, process.memory_info().rss)
            time.sleep(EVERY)


def _status(field: str) -> int:
    """Bytes of that field of Linux's /proc/self/status; without it, what psutil says is resident."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    import psutil

    return psutil.Process().memory_info().rss


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _status("VmHWM") <= _status("VmRSS") + (8 << 20)  # some kernels take the write and do nothing


def _trim() -> None:
    """Gives free pages of the heap back to the system, so that they do not count as the model's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
