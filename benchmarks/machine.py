"""What a measurement was made on and with: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that may be used, memory (GiB), and the GPU where that is the device."""
    import psutil

    found: dict[str, Any] = {
        "processor": _processor(), "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "system": platform.platform(),
    }  # fmt: skip
    if device == "cuda":
        import torch

        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(root: Path) -> str | None:
    """The commit of the tree, with `+changes` where it has some; None outside a repository."""
    try:
        found = _git(root, "rev-parse", "--short", "HEAD")
        return found + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
