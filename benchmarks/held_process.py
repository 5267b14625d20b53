"""One process of `python -m benchmarks held`: `qllava train …` with a count of every tensor that the process holds.

In: a folder (`$HELD_OUT`) beside what `torchrun` gives; the command line is qllava's. Out: `RANK.json` there, with bytes by part as
the optimizer is about to take its second step (`step`) and after that step's first micro-batch (`between`), and whether autocast
keeps what it spells out (`cached`).
"""

from __future__ import annotations

import gc
import json
import os
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

AT = 2  # the optimizer's step before which is counted: its states are there from the first on
SHIM = Path(__file__).resolve().parent.parent / "tests" / "train" / "fsdp_on_cpu.py"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter: its piece under FSDP2 and ZeRO-3."""
    tensor = getattr(tensor, "ds_tensor", tensor)
    return getattr(tensor, "_local_tensor", tensor)


class Counter:
    """Bytes by part; a storage that two tensors share is counted once, for the part that comes first."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def add(self, tensors: Iterable[torch.Tensor | None]) -> int:
        total = 0
        for tensor in tensors:
            if tensor is None or tensor.device.type == "meta":
                continue
            try:
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
            except (RuntimeError, NotImplementedError):  # a wrapper without storage of its own, such as a DTensor
                continue
            if place and place not in self.seen:
                self.seen.add(place)
                total += size
        return total


def scales_of(parameter: torch.Tensor) -> list[torch.Tensor]:
    """The scales that belong to a 4-bit weight."""
    state = getattr(parameter, "quant_state", None)
    return [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]


def of_zero(zero: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """DeepSpeed's own copies of the weights that train, and of their gradients, of all groups."""
    masters = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    gradients = [t for some in zero.averaged_gradients.values() if some for t in some]
    return list(masters), [*gradients, getattr(zero, "grad_partitions_flat_buffer", None)]


def counted(model: torch.nn.Module, optimizer: torch.optim.Optimizer, zero: Any) -> dict[str, int]:
    """Bytes of all tensors alive in this process, by part.

    Args:
        zero: DeepSpeed's optimizer around it; None under other engines.
    """
    count, parameters = Counter(), list(model.parameters())
    masters, gradients = ([], [p.grad for p in parameters]) if zero is None else of_zero(zero)
    moments = (t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    scales = (t for p in parameters for t in scales_of(p))
    found = {
        "frozen": count.add(local(p) for p in parameters if not p.requires_grad) + count.add(scales),
        "trained": count.add(local(p) for p in parameters if p.requires_grad),
        "masters": count.add(masters),
        "gradients": count.add(local(g) for g in gradients if g is not None),
        "optimizer": count.add(map(local, moments)),
    }
    gc.collect()
    alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    alive += [o.grad for o in alive if o.is_leaf and o.grad is not None]  # which no Python object may stand for
    return found | {"rest": count.add(alive)}


def watch(out: Path) -> None:
    """Sees to the counts in step `AT`."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from transformers import TrainerCallback

    import qllava.train.trainer as module
    from qllava.model.projector import llava_of

    found: dict[str, Any] = {}
    trainers: list[Any] = []

    def look(*_: Any) -> None:
        found["cached"] = torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()

    class Told(module.LlavaTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)
            self.add_callback(Between())
            llava_of(kwargs["model"]).get_input_embeddings().register_forward_pre_hook(look)

    def count(optimizer: Any, name: str) -> None:
        if trainers and trainers[0].state.global_step == AT - 1 and name not in found:
            trainer = trainers[0]
            zero = trainer.model_wrapped.optimizer if trainer.engine.deepspeed else None
            found[name] = counted(trainer.accelerator.unwrap_model(trainer.model), optimizer, zero)
            (out / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))

    class Between(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = kwargs["optimizer"]
            while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's are around torch's
                optimizer = optimizer.optimizer
            count(optimizer, "between")

    module.LlavaTrainer = Told
    register_optimizer_step_pre_hook(lambda optimizer, *_: count(optimizer, "step"))


if __name__ == "__main__":
    watch(Path(os.environ["HELD_OUT"]))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        runpy.run_path(str(SHIM), run_name="__main__")
    else:
        from qllava.cli import main

        main()
