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
from ..model.base import config_of
from ..model.device import pick_device, pick_dtype
from ..model.size import Size, disk_needed, size_of
from ..recipe.schema import Recipe
from .batches import Sizes
from .cluster import SHARE, Cluster
from .engine import ALONE, Engine, refusal
from .machine import machine_memory, matrix_rate
from .memory import Batch, Memory, Shape, counts, estimate, gib, operations
from .remedies import SLACK, SMALLER, remedies, too_large

REACHED = 0.6  # share of the rate of one large matrix product that a step reaches
STARTING = 128  # positions that a micro-batch costs besides its own
SPELLING = {"cpu": 1e-9, "cuda": 3e-12}  # seconds to spell out one 4-bit weight


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


class Known:
    """What the configurations tell of a recipe, whatever it runs on.

    Raises:
        UserError: the base has no configuration to read.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.shape = Shape(recipe, config_of(recipe.base))
        self._recipe = recipe

    @cached_property
    def size(self) -> Size:
        return size_of(self._recipe)


class Planner:
    """Estimates for one recipe on one kind of device.

    Args:
        rows: the run's samples; None where there are none yet.
        device: `cpu` or `cuda`.
        engine: what processes share the run by.
        rate: operations a second of a large matrix product; the cluster's, or measured on this machine, where it is left out.
        cluster: the cards; None counts no communication.
        known: of the recipe, where it has been asked for before.
        sizes: of micro-batches; by default what the rows tell.
    """

    def __init__(
        self, recipe: Recipe, rows: Dataset | None, processing: Processing | None, dtype: torch.dtype, device: str,
        engine: Engine = ALONE, rate: float | None = None, cluster: Cluster | None = None, known: Known | None = None,
        sizes: Sizes | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.dtype, self.device, self.engine, self.cluster = recipe, dtype, device, engine, cluster
        self.known = known or Known(recipe)
        self.shape, self.processes = self.known.shape, engine.processes
        self.sizes = sizes or Sizes(recipe, rows, processing, self.shape.image_tokens, self.shape.views)
        self.samples = None if rows is None else len(rows)
        self._rate = rate or (cluster and cluster.card.rate * SHARE / REACHED)

    @cached_property
    def rate(self) -> float:
        return self._rate or matrix_rate(self.dtype)

    def choice(self, size: int, recomputed: int, optim: str, budget: float) -> Choice:
        """What it takes to run with these sizes."""
        largest, mean = self.sizes.of(size)
        memory = estimate(self.recipe, self.shape, largest, self.dtype, recomputed, self.device, optim, self.engine)
        micro = self.recipe.global_batch_size / size / self.processes
        uses = 2 + recomputed / self.shape.layers
        spelling = SPELLING[self.device] * self.shape.linears * uses if self.recipe.tune == "qlora" else 0.0
        rate = self.rate * REACHED / (1 + STARTING / max(1, mean.positions))
        seconds = micro * (operations(self.recipe, self.shape, mean, recomputed) / rate + spelling)
        if self.cluster is not None:
            numbers = counts(self.recipe, self.shape, self.dtype)
            seconds = self.cluster.step(self.engine, numbers, round(micro), seconds)
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

    @property
    def smaller(self) -> str | None:
        """An optimizer with less memory; None where the engine has none."""
        asked = SMALLER[self.device]
        return None if refusal(self.recipe.model_copy(update={"optim": asked}), self.engine.name) else asked

    def layers(self) -> int | None:
        """How many layers the recipe says run again; None where it leaves that open."""
        said = self.recipe.gradient_checkpointing
        return None if said in ("auto", False) else self.shape.layers if said is True else min(said, self.shape.layers)

    def plan(self, budget: int) -> Plan:
        """The fastest choice that fits `budget` bytes, and the others; whatever the recipe says of sizes."""
        own, size = self.recipe.optim, self.recipe.per_device_train_batch_size
        choices = [self.least(n, own, budget) for n in self.possible()]
        if not any(c.fits for c in choices) and self.smaller not in (own, None):
            choices.append(self.least(1, self.smaller, budget))
        if size in self.possible() and self.recipe.gradient_checkpointing != "auto":
            choices.insert(0, self.choice(size, self.layers() or 0, own, budget))
        chosen = best(choices)
        largest = chosen and self.sizes.of(chosen.per_device_train_batch_size)[0]
        remedy = "" if chosen else too_large(self, budget)
        unique = list(dict.fromkeys(choices))
        disk = disk_needed(self.recipe, self.known.size, self.engine.copies)
        return Plan(budget, self.device, chosen, unique, largest, self._steps(), disk, remedy)

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
    recipe: Recipe, rows: Dataset, processing: Processing, dtype: torch.dtype, device: torch.device, engine: Engine
) -> Recipe:
    """The recipe with every `auto` among its sizes replaced by what the planner finds for this machine.

    Raises:
        UserError: nothing fits; the message names what would.
    """
    if "auto" not in (recipe.per_device_train_batch_size, recipe.gradient_checkpointing):
        return recipe
    budget = machine_memory(device)
    planner = Planner(recipe, rows, processing, dtype, device.type, engine, rate=1e12)  # times compare, no more
    found = planner.settle(budget)
    if found is None:
        raise UserError(too_large(planner, budget))
    console.note(
        f"Planned for {gib(budget)}: micro-batches of {found.per_device_train_batch_size}, "
        f"{_recomputed(found)}; about {gib(found.memory.peak)} at the peak."
    )
    return recipe.model_copy(update={k: v for k, v in found.updates.items() if k != "optim"})


def after_running_out(
    recipe: Recipe, rows: Dataset, processing: Processing, dtype: torch.dtype, device: torch.device, engine: Engine
) -> str:
    """Which fields would make a run fit that has just run out of memory, whatever was thought of it before."""
    planner = Planner(recipe, rows, processing, dtype, device.type, engine, rate=1e12)
    again = recipe.gradient_checkpointing
    layers = planner.shape.layers if again is True else int(again)
    now = planner.choice(recipe.per_device_train_batch_size, layers, recipe.optim, 0)
    own = now.memory.peak - now.memory.runtime
    return remedies(planner, machine_memory(device), below=(now.memory.runtime + 0.85 * own) * SLACK)


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
    here = pick_device()
    device = "cuda" if vram is not None else here.type
    dtype = pick_dtype(recipe.dtype, here) if device == here.type else _usual(recipe.dtype)
    rows, processing = samples_of(recipe)
    return Planner(recipe, rows, processing, dtype, device, rate=rate).plan(
        machine_memory(here) if vram is None else vram
    )


def samples_of(recipe: Recipe) -> tuple[Dataset | None, Processing | None]:
    """What the recipe trains on; Nones where the data is not there yet."""
    from ..data.dataset import hold_out, select
    from ..model.inputs import processing_for

    if not all(s.path.startswith("hub:") or Path(s.path).exists() for s in recipe.data):
        return None, None
    processing = processing_for(recipe)
    return hold_out(select(recipe, processing).rows, recipe.eval_share, recipe.seed)[0], processing


def _usual(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "auto" else getattr(torch, name)
