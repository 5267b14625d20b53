"""What a contender's trainer is measured with: a callback that takes one optimizer step at each go.

In: a line to the race (`say` a dict, `wait` for the go). Out: a report after each step. A step counts from the go to the end of
the optimizer's step, reading and preparing its samples included.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from .memory import Memory


class Stopwatch(TrainerCallback):
    """Waits before each step, reports after it, and ends the process after the last.

    Args:
        say: sends a report.
        wait: returns at the go.
        steps: how many there will be.
        device: `cpu` or `cuda`.
        leave: called after the last step. The process ends here by default: what a trainer writes at its end is no part of
            the race.
    """

    def __init__(
        self, say: Callable[[dict], None], wait: Callable[[], None], steps: int, device: str, leave: Any = os._exit
    ) -> None:
        self.say, self.wait, self.steps, self.device, self.leave = say, wait, steps, device, leave
        self.memory = Memory(device)
        self.waited, self.losses, self.counts = 0.0, [], []
        self.started = 0.0
        _listen(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        same_start(model)
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        if self.device == "cpu":
            for parameter in model.parameters():  # weights that were mapped from their file become resident
                parameter.detach().sum()
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        begin = self.memory.begin()
        self.say({"event": "ready", "memory": begin, "memory_by": self.memory.how, "trainable": trainable})
        self._go()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._finish()
        seconds = time.perf_counter() - self.started
        sums = {name: sum(int(count[name]) for count in self.counts) for name in self.counts[0]} if self.counts else {}
        self.say(
            {
                "event": "step",
                "seconds": seconds,
                "waited": self.waited,
                "loss": float(sum(float(loss) for loss in self.losses)),
                "peak": self.memory.peak(),
                **sums,
            }
        )
        if state.global_step >= self.steps:
            self.leave(0)
            return
        self._go()

    def _go(self) -> None:
        self.waited, self.losses, self.counts = 0.0, [], []
        self.wait()
        self._finish()
        self.started = time.perf_counter()

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        """Notes what goes into a forward pass, as tensors that are read when the step is over."""
        self.counts.append(counted(inputs))


def counted(inputs: dict[str, Any]) -> dict[str, Any]:
    """Of a batch: `positions` (with padding), `tokens` (without), `supervised`, `images`, and `pairs`, how many (query, key)
    pairs attention has to look at. Positions that restart with each sample tell where samples begin, also of packed ones."""
    ids, mask, places = inputs.get("input_ids"), inputs.get("attention_mask"), inputs.get("position_ids")
    labels, pixels = inputs.get("labels"), inputs.get("pixel_values")
    flat = mask is not None and mask.dim() == 2
    tokens = mask.sum() if flat else ids.numel()
    if places is not None:
        each = places.reshape(-1, places.shape[-1])[: ids.shape[0]] + 1
        pairs = (each * mask).sum() if flat and mask.shape == each.shape else each.sum()
    elif flat:
        lengths = mask.sum(1)
        pairs = (lengths * (lengths + 1) // 2).sum()
    else:
        pairs = 0
    return {
        "positions": ids.numel(),
        "tokens": tokens,
        "supervised": (labels != -100).sum() if labels is not None else 0,
        "images": pixels.shape[0] if pixels is not None else 0,
        "pairs": pairs,
    }


def same_start(model: torch.nn.Module) -> None:
    """The same first LoRA in every contender, whatever random numbers were drawn before (its B matrices are zero)."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name and parameter.is_floating_point():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.data.copy_(drawn)


def _listen(watch: Stopwatch) -> None:
    """Makes transformers' trainer, which every contender's derives from, tell its waiting for data and its exact losses."""
    batches, step = Trainer.get_batch_samples, Trainer.training_step

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return batches(self, *args, **kwargs)
        finally:
            watch.waited += time.perf_counter() - started

    def training_step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, *args, **kwargs)
        watch.losses.append(loss.detach())
        return loss

    Trainer.get_batch_samples, Trainer.training_step = get_batch_samples, training_step
