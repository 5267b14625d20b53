"""What a run will need, and how it fits a card: in a recipe and so much memory, out the sizes to run with and what each
other choice would cost. No weight is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .. import console
from ..data.processing import Processing
from ..errors import UserError
from ..model.build import config_of
from ..model.device import pick_device, pick_dtype
from ..model.size import disk_needed
from ..recipe.schema import Recipe
from .batches import Sizes
from .machine import machine_memory, matrix_rate
from .memory import Batch, Memory, Shape, estimate, gib, operations

SLACK = 1.04  # what the allocator cannot use
REACHED = 0.6  # share of the rate of one large matrix product that a step reaches
STARTING = 128  # positions that a micro-batch costs besides its own
SPELLING = {"cpu": 1e-9, "cuda": 3e-12}  # seconds to spell out one 4-bit weight
SHORT = {
    "weights": "frozen weights", "trained": "what trains", "kept": "activations", "working": "working memory",
    "runtime": "libraries or context",
}  # fmt: skip
SMALLER = {"cpu": "adamw_bnb_8bit", "cuda": "paged_adamw_8bit"}


@dataclass(frozen=True)
class Choice:
    """One way to run the recipe."""

    per_device_train_batch_size: int
    gradient_checkpointing: bool | int
    optim: str
    memory: Memory
    seconds: float  # of an optimizer step, roughly
    fits: bool

    @property
    def updates(self) -> dict[str, Any]:
        """As fields of the recipe."""
        return {n: getattr(self, n) for n in ("per_device_train_batch_size", "gradient_checkpointing", "optim")}


@dataclass(frozen=True)
class Plan:
    """What was found."""

    budget: int  # bytes
    device: str
    chosen: Choice | None  # None where nothing fits
    choices: list[Choice]
    largest: Batch | None  # micro-batch of what was chosen
    steps: int | None  # None without data
    disk: dict[str, int | str]
    remedy: str = ""  # where nothing fits

    def as_values(self) -> dict[str, Any]:
        """As plain values, for JSON; memory in bytes."""

        def choice(c: Choice) -> dict[str, Any]:
            return dataclasses.asdict(c) | {"memory": {**dataclasses.asdict(c.memory), "peak": c.memory.peak}}

        return dataclasses.asdict(self) | {
            "chosen": self.chosen and choice(self.chosen),
            "choices": [choice(c) for c in self.choices],
        }


class Planner:
    """Estimates for one recipe on one kind of device.

    Args:
        rows: the run's samples; None where there are none yet.
        device: `cpu` or `cuda`.
        rate: operations a second of a large matrix product; measured on this machine where it is left out.
    """

    def __init__(
        self, recipe: Recipe, rows: Dataset | None, processing: Processing | None, dtype: torch.dtype, device: str,
        processes: int = 1, rate: float | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.dtype, self.device, self.processes = recipe, dtype, device, processes
        self.shape = Shape(recipe, config_of(recipe.base))
        self.sizes = Sizes(recipe, rows, processing, self.shape.patches)
        self.samples = None if rows is None else len(rows)
        self._rate = rate

    @cached_property
    def rate(self) -> float:
        return self._rate or matrix_rate(self.dtype)

    def choice(self, size: int, recomputed: int, optim: str, budget: float) -> Choice:
        """What it takes to run with these sizes."""
        largest, mean = self.sizes.of(size)
        memory = estimate(self.recipe, self.shape, largest, self.dtype, recomputed, self.device, optim)
        micro = self.recipe.global_batch_size / size / self.processes
        uses = 2 + recomputed / self.shape.layers
        spelling = SPELLING[self.device] * self.shape.linears * uses if self.recipe.tune == "qlora" else 0.0
        rate = self.rate * REACHED / (1 + STARTING / max(1, mean.positions))
        seconds = micro * (operations(self.recipe, self.shape, mean, recomputed) / rate + spelling)
        whole = recomputed == self.shape.layers
        return Choice(
            size, True if whole else recomputed or False, optim, memory, seconds, memory.peak * SLACK <= budget
        )

    def least(self, size: int, optim: str, budget: float) -> Choice:
        """With as few layers run again as memory asks for."""
        for recomputed in range(self.shape.layers + 1):
            found = self.choice(size, recomputed, optim, budget)
            if found.fits:
                return found
        return found

    def possible(self) -> list[int]:
        """Sizes of micro-batch that make up the global batch.

        Raises:
            UserError: the processes cannot share it.
        """
        share, rest = divmod(self.recipe.global_batch_size, self.processes)
        if rest:
            raise UserError(
                f"global_batch_size {self.recipe.global_batch_size} cannot be shared by {self.processes} processes."
            )
        return [n for n in range(1, share + 1) if share % n == 0]

    def layers(self) -> int | None:
        """How many layers the recipe says run again; None where it leaves that open."""
        said = self.recipe.gradient_checkpointing
        return None if said in ("auto", False) else self.shape.layers if said is True else min(said, self.shape.layers)

    def plan(self, budget: int) -> Plan:
        """The fastest choice that fits `budget` bytes, and the others; whatever the recipe says of sizes."""
        own, size = self.recipe.optim, self.recipe.per_device_train_batch_size
        choices = [self.least(n, own, budget) for n in self.possible()]
        if not any(c.fits for c in choices) and SMALLER[self.device] != own:
            choices.append(self.least(1, SMALLER[self.device], budget))
        if size in self.possible() and self.recipe.gradient_checkpointing != "auto":
            choices.insert(0, self.choice(size, self.layers() or 0, own, budget))
        chosen = best(choices)
        largest = chosen and self.sizes.of(chosen.per_device_train_batch_size)[0]
        remedy = "" if chosen else too_large(self, budget)
        unique = list(dict.fromkeys(choices))
        return Plan(budget, self.device, chosen, unique, largest, self._steps(), disk_needed(self.recipe), remedy)

    def settle(self, budget: int) -> Choice | None:
        """The fastest choice that fits and leaves everything that the recipe says as it is."""
        size, layers, own = self.recipe.per_device_train_batch_size, self.layers(), self.recipe.optim
        sizes = self.possible() if size == "auto" else [size]
        return best(
            [self.least(n, own, budget) if layers is None else self.choice(n, layers, own, budget) for n in sizes]
        )

    def _steps(self) -> int | None:
        if self.recipe.max_steps > 0:
            return self.recipe.max_steps
        if self.samples is None:
            return None
        return round(-(-self.samples // self.recipe.global_batch_size) * self.recipe.num_train_epochs)


def best(choices: Iterable[Choice]) -> Choice | None:
    """Of those that fit and are as good as fastest, the smallest."""
    fitting = [c for c in choices if c.fits]
    fastest = min((c.seconds for c in fitting), default=0.0)
    return min((c for c in fitting if c.seconds <= 1.02 * fastest), key=lambda c: c.memory.peak, default=None)


def settle_sizes(
    recipe: Recipe, rows: Dataset, processing: Processing, dtype: torch.dtype, device: torch.device, processes: int
) -> Recipe:
    """The recipe with every `auto` among its sizes replaced by what the planner finds for this machine.

    Raises:
        UserError: nothing fits; the message names what would.
    """
    if "auto" not in (recipe.per_device_train_batch_size, recipe.gradient_checkpointing):
        return recipe
    budget = machine_memory(device)
    planner = Planner(recipe, rows, processing, dtype, device.type, processes, rate=1e12)  # times compare, no more
    found = planner.settle(budget)
    if found is None:
        raise UserError(too_large(planner, budget))
    console.note(
        f"Planned for {gib(budget)}: micro-batches of {found.per_device_train_batch_size}, "
        f"{_recomputed(found)}; about {gib(found.memory.peak)} at the peak."
    )
    return recipe.model_copy(update={k: v for k, v in found.updates.items() if k != "optim"})


def too_large(planner: Planner, budget: int) -> str:
    """Why nothing fits, and which fields would make it."""
    least = planner.choice(1, planner.shape.layers, planner.recipe.optim, budget)
    parts = ", ".join(f"{words} {gib(getattr(least.memory, name))}" for name, words in SHORT.items())
    return (
        f"The recipe needs {gib(SLACK * least.memory.peak)} at the least, with {SLACK - 1:.0%} to spare, of {gib(budget)}: "
        f"{parts}. {remedies(planner, budget)}"
    )


def after_running_out(
    recipe: Recipe, rows: Dataset, processing: Processing, dtype: torch.dtype, device: torch.device, processes: int
) -> str:
    """Which fields would make a run fit that has just run out of memory, whatever was thought of it before."""
    planner = Planner(recipe, rows, processing, dtype, device.type, processes, rate=1e12)
    again = recipe.gradient_checkpointing
    layers = planner.shape.layers if again is True else int(again)
    now = planner.choice(recipe.per_device_train_batch_size, layers, recipe.optim, 0)
    own = now.memory.peak - now.memory.runtime
    return remedies(planner, machine_memory(device), below=(now.memory.runtime + 0.85 * own) * SLACK)


def remedies(planner: Planner, budget: float, below: float = float("inf")) -> str:
    """The field that would have fitted, tried from the one that costs least.

    Args:
        below: bytes by the planner's own estimate that what is named has to stay under.
    """
    recipe, limit = planner.recipe, min(budget, below)
    own, layers = recipe.optim, planner.shape.layers
    size = recipe.per_device_train_batch_size
    for n in [
        n
        for n in range(size if size != "auto" else 1, 0, -1)
        if recipe.global_batch_size % (n * planner.processes) == 0
    ]:
        for again in (0, layers):
            found = planner.choice(n, again, own, limit)
            if found.fits:
                fields = f"per_device_train_batch_size={n}" + (" gradient_checkpointing=true" if again else "")
                return f"{fields} would take {gib(found.memory.peak)}."
    smaller = SMALLER[planner.device]
    if (found := planner.choice(1, layers, smaller, limit)).fits:
        return f"per_device_train_batch_size=1 gradient_checkpointing=true optim={smaller} would take {gib(found.memory.peak)}."
    hints = [] if recipe.tune in ("qlora", "projector") else ["tune=qlora holds the LLM in 4 bits"]
    hints += [f"a lower lora.r than {recipe.lora.r}"] if recipe.tune in ("lora", "qlora") else []
    return f"Smaller would be: {'; '.join([*hints, f'a lower max_length than {recipe.max_length}'])}."


def _recomputed(choice: Choice) -> str:
    again = choice.gradient_checkpointing
    return (
        "no layer run again"
        if again is False or again == 0
        else f"{'all' if again is True else again} layers run again"
    )


def read_size(text: str) -> int:
    """`12GB`, `12GiB` or `12` as bytes; cards are sold in GiB.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(g|gb|gib|)\s*", text.lower())
    if found is None or not float(found[1]):
        raise UserError(f"{text!r} is no size of a card's memory. Write it as 12GB.")
    return int(float(found[1]) * 2**30)


def plan(recipe: Recipe, vram: int | None = None, rate: float | None = None) -> Plan:
    """The plan for a card of `vram` bytes, or for this machine.

    Args:
        rate: operations a second of a large matrix product on that card.

    Raises:
        UserError: base or data cannot be read.
    """
    from ..data.dataset import hold_out, select
    from ..model.build import processing_for

    here = pick_device()
    device = "cuda" if vram is not None else here.type
    dtype = pick_dtype(recipe.dtype, here) if device == here.type else _usual(recipe.dtype)
    rows = processing = None
    if all(s.path.startswith("hub:") or Path(s.path).exists() for s in recipe.data):
        processing = processing_for(recipe)
        rows = hold_out(select(recipe, processing).rows, recipe.eval_share, recipe.seed)[0]
    return Planner(recipe, rows, processing, dtype, device, rate=rate).plan(
        machine_memory(here) if vram is None else vram
    )


def _usual(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "auto" else getattr(torch, name)
