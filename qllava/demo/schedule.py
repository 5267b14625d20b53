"""What the two pretraining loops share: a learning-rate schedule and a meter that prints and remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to a twentieth of the peak."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Both:
    """Muon for the matrices inside the layers, AdamW for embeddings, heads, norms and biases; stepped as one."""

    def __init__(self, model: torch.nn.Module, muon: float, adamw: float, betas: tuple[float, float]) -> None:
        def inner(name: str, parameter: torch.nn.Parameter) -> bool:
            return parameter.ndim == 2 and "layers." in name

        named = list(model.named_parameters())
        matrices = [p for n, p in named if inner(n, p)]
        others = [p for n, p in named if not inner(n, p)]
        self.parts = [
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=adamw, betas=betas, weight_decay=0.01),
        ]

    def schedules(self, steps: int, warmup: int) -> list[torch.optim.lr_scheduler.LambdaLR]:
        return [cosine(part, steps, warmup) for part in self.parts]

    def step(self) -> None:
        for part in self.parts:
            part.step()
            part.zero_grad()


class Meter:
    """Prints the mean loss of the last fifty steps, and what `probe` measures at every twentieth of the way."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.start, self.losses = name, steps, time.perf_counter(), []

    def __call__(self, step: int, loss: float, probe: Callable[[], dict]) -> None:
        self.losses.append(loss)
        due = (step + 1) % max(1, self.steps // 20) == 0
        if (step + 1) % 50 == 0 or due:
            recent = self.losses[-50:]
            seconds = time.perf_counter() - self.start
            told = probe() if due else ""
            print(
                f"{self.name} {step + 1}/{self.steps} loss {sum(recent) / len(recent):.4f} {seconds:.0f} s {told}",
                flush=True,
            )

    def summary(self) -> dict:
        recent = self.losses[-50:]
        return {
            "steps": self.steps,
            "final_loss": round(sum(recent) / len(recent), 4),
            "seconds": round(time.perf_counter() - self.start),
        }
