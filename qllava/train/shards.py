"""What a run's engine keeps in pieces, put together for what looks at the whole: saving, and the audit of the first step.

In: a model as the engine holds it. Out: the same with its trained weights whole while a block lasts; and what gradients there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import RunError
from .engine import Engine
from .guards import wrong_gradients


@contextmanager
def gathered(model: torch.nn.Module, engine: Engine) -> Iterator[None]:
    """Every process sees what trains, and LoRA that does not, whole while the block lasts; all have to come here."""
    if engine.name != "zero3":
        yield
        return
    import deepspeed

    parts = [p for n, p in model.named_parameters() if p.requires_grad or "lora_" in n]
    with deepspeed.zero.GatheredParameters(parts):
        yield


def whole_state(model: torch.nn.Module, engine: Engine) -> dict[str, torch.Tensor] | None:
    """All weights by name, on the CPU of the first process, gathered one by one; None where the model is whole as it is.

    The other processes get an empty one; all have to come here. (ZeRO-2's weights are whole, but views of one flat buffer, which
    safetensors refuses.)
    """
    if not engine.deepspeed:
        return None
    import deepspeed

    first, state = int(torch.distributed.get_rank()) == 0, {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if first:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


class Heard:
    """Which tensors got a gradient in a step, and whether it was finite: an engine that takes the step itself leaves no trace."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.finite = model, {}
        self.hooks = [p.register_hook(self._listen(n)) for n, p in model.named_parameters() if p.requires_grad]

    def _listen(self, name: str) -> Any:
        def hear(gradient: torch.Tensor) -> None:
            self.finite[name] = self.finite.get(name, True) and bool(torch.isfinite(gradient).all())

        return hear

    def check(self) -> None:
        """To be called once after a step.

        Raises:
            RunError: a tensor that trains got no gradient, or none that is finite.
        """
        for hook in self.hooks:
            hook.remove()
        trained = [n for n, p in self.model.named_parameters() if p.requires_grad]
        wrong_gradients(
            [n for n in trained if n not in self.finite], [], [n for n, fine in self.finite.items() if not fine]
        )


def save_pieces(wrapped: Any, folder: str | Path) -> None:
    """DeepSpeed's own checkpoint, each process its piece, without the frozen weights."""
    wrapped.save_checkpoint(str(folder), exclude_frozen_parameters=True)


def load_pieces(wrapped: Any, folder: str | Path) -> None:
    """Takes what `save_pieces` wrote.

    Raises:
        RunError: it was written by another number of processes, or is damaged.
    """
    try:
        path, _ = wrapped.load_checkpoint(
            str(folder), load_optimizer_states=True, load_lr_scheduler_states=True, load_module_strict=False
        )
    except Exception as error:  # DeepSpeed's own kinds of many
        if type(error).__name__ != "ZeRORuntimeException" and not isinstance(
            error, OSError | RuntimeError | ValueError
        ):
            raise
        raise RunError(
            f"DeepSpeed cannot go on from {folder}: {str(error).splitlines()[0][:300]} Resume with as many processes as wrote it."
        ) from None
    if path is None:
        raise RunError(f"{folder} holds no checkpoint of DeepSpeed's.")
