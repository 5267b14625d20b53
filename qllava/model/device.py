"""Which device a process uses, and in which dtype it computes."""

from __future__ import annotations

import os

import torch

from ..errors import UserError, nearest

# torch keeps an oneDNN primitive for each of the last 1,024 shapes that a CPU has multiplied, and rows of ever other lengths
# make ever new ones: hundreds of MiB that save no time (benchmarks/LOG.md). Read at the first product, so set before it.
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
if not torch.cuda.is_available():
    # DeepSpeed, which accelerate imports where it is installed, looks for a GPU and tells on stdout that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AVX512-BF16 or AMX); others emulate it, slowly."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        UserError: weights are not kept in such a dtype.
    """
    if name not in DTYPES:
        raise UserError(f"No dtype '{name}' for weights.{nearest(name, DTYPES)} There are: {', '.join(DTYPES)}.")
    return DTYPES[name]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name. `auto` is bfloat16 where the device multiplies in it, else float16 on a GPU, float32 on a CPU."""
    if name != "auto":
        return dtype_of(name)
    if device.type == "cpu":
        return torch.bfloat16 if multiplies_bfloat16() else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def ran_out(error: BaseException) -> bool:
    """Whether a GPU's memory or main memory ran out; the CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
