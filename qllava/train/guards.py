"""What stops a run before it wastes a night: numbers that are none, a loss that blows up, gradients that go astray.

In: what each optimizer step measured. Out: nothing, or the reason to stop. Knows no trainer.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

import torch

from ..errors import RunError

ADVICE = (
    "Begin anew with a lower learning_rate (1e-4 or less where 2e-4 blew up); or go on in another output_dir from the last good "
    "checkpoint, with adapter=CHECKPOINT (of tune projector: projector=CHECKPOINT; of tune full: base=CHECKPOINT)."
)
WINDOW = 20  # steps
LEAST_RISE = 1.0  # nats; below this a rise is noise, however small the lowest loss was
STARVED = 0.3  # share of time that is worth a word


class BadStep(RunError):
    """A step that was not taken: the weights are those of the step before."""


class Diverged(RunError):
    """The weights have gone astray some steps ago."""


def check_step(step: int, loss: float, grad_norm: float, supervised: int, scaled: bool = False) -> None:
    """To be called after the backward passes and before the optimizer's step, so that the weights are still good.

    Args:
        step: that would be taken.
        supervised: tokens with a label in the global batch.
        scaled: by a loss scaler (float16), which skips steps whose gradients are not finite by itself.

    Raises:
        BadStep: the step must not be taken.
    """
    if supervised == 0:
        raise BadStep(
            f"No token of step {step}'s samples is supervised, so there is nothing to learn from. See `qllava inspect`."
        )
    if not math.isfinite(loss):
        raise BadStep(f"The loss is {loss} at step {step}. {ADVICE}")
    if not (scaled or math.isfinite(grad_norm)):
        raise BadStep(f"The gradient's norm is {grad_norm} at step {step}. {ADVICE}")


class Divergence:
    """Sees a loss that rises and stays up: every one of the last `WINDOW` steps far above the lowest median of as many.

    Every one, because easy and hard batches may take turns, and a median jumps between the two.

    Args:
        factor: of the lowest median at which it has blown up (and risen by at least one nat).
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.lowest = math.inf
        self.good = 0  # the last step after which all was well: a step's loss is of the weights before it

    def add(self, step: int, loss: float) -> str | None:
        """Takes a step's loss; the reason to stop, or None."""
        self.recent.append(loss)
        if self.factor is None or len(self.recent) < WINDOW:
            self.good = step - 1
            return None
        median = statistics.median(self.recent)
        self.lowest = min(self.lowest, median)
        limit = max(self.factor * self.lowest, self.lowest + LEAST_RISE)
        if min(self.recent) >= limit:
            return (
                f"The loss has blown up: its median over {WINDOW} steps is {median:.3g} at step {step}, and it was "
                f"{self.lowest:.3g}. {ADVICE} (divergence_factor=null lets it go on.)"
            )
        if loss < limit:
            self.good = step - 1
        return None


def check_gradients(model: torch.nn.Module, finite: bool = True) -> None:
    """The audit of the first step: every trainable tensor has a gradient, every frozen one none.

    Args:
        finite: whether they have to be finite, too.

    Raises:
        RunError: it is not so.
    """
    lacking, astray, bad = [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is None:
            lacking.append(name)
        elif not p.requires_grad and p.grad is not None:
            astray.append(name)
        elif p.grad is not None and finite and not torch.isfinite(here(p.grad)).all():
            bad.append(name)
    wrong_gradients(lacking, astray, bad)


def here(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor what this process holds; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def wrong_gradients(lacking: list[str], astray: list[str], bad: list[str]) -> None:
    """Raises `RunError` where a tensor that trains got no gradient, a frozen one got one, or one is not finite."""
    for names, what in (
        (lacking, "train but got no gradient"),
        (astray, "are frozen but got one"),
        (bad, "got no finite one"),
    ):
        if names:
            raise RunError(f"The first step's gradients are wrong: {len(names)} tensors {what}, such as {names[0]}.")


def starved(waited: float, passed: float, workers: int) -> str | None:
    """A word about a run that mostly waits for its data, or None.

    Args:
        waited: seconds of `passed` in which the next batch was not there yet.
        workers: the recipe's `dataloader_num_workers`.
    """
    if passed < 1 or waited / passed < STARVED:
        return None
    more = max(4, 2 * workers)
    return (
        f"{100 * waited / passed:.0f} % of the time goes on waiting for data. Images are decoded "
        f"{'in the main process' if workers == 0 else f'by {workers} workers'}: try dataloader_num_workers={more}."
    )
