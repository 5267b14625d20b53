"""What a run counts and remembers: tokens, time spent waiting, memory, the held-out losses so far."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import TrainerState


@dataclasses.dataclass
class Counts:
    """What this process has done so far."""

    supervised: int = 0  # tokens with a label
    tokens: int = 0  # without padding, image tokens among them
    samples: int = 0
    waited: float = 0.0  # seconds for data

    def since(self, before: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)))


def _held_out(state: TrainerState) -> list[tuple[float, int]]:
    return [(entry["eval_loss"], entry["step"]) for entry in state.log_history if "eval_loss" in entry]


def best_step(state: TrainerState) -> int | None:
    """The step with the lowest held-out loss, the first of several; None where none was measured."""
    return min(_held_out(state), default=(0.0, None))[1]


def evaluations_since_best(state: TrainerState) -> int:
    """How many evaluations ago the held-out loss was at its lowest."""
    steps = [step for _, step in _held_out(state)]
    return len(steps) - 1 - steps.index(best_step(state))


def peak_memory() -> int:
    """The most memory this process has held, in MiB: on its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def over_processes(accelerator: Any, counts: Counts) -> Counts:
    """The sums of all processes' counts; every process has to ask."""
    if accelerator.num_processes == 1:
        return counts
    mine = torch.tensor(dataclasses.astuple(counts), dtype=torch.float32, device=accelerator.device)
    supervised, tokens, samples, waited = accelerator.reduce(mine, "sum").tolist()
    return Counts(int(supervised), int(tokens), int(samples), waited)
