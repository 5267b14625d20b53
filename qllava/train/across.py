"""One recipe under each engine on a cluster. In: the recipe, the cluster. Out: a plan for each, and which to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from ..data.processing import Processing
from ..errors import UserError, nearest
from ..recipe.schema import Recipe
from .batches import Sizes
from .cluster import Cluster
from .engine import Engine, fit
from .held import Held, Start, held, start
from .memory import counts, gib, state_bytes
from .plan import Known, Plan, Planner

# As the files in recipes/cluster are called, from the simplest on.
ENGINES = ("ddp", "zero2", "fsdp2", "zero3", "zero3-offload")


@dataclass(frozen=True)
class Shared:
    """The recipe under one engine."""

    engine: str
    refused: str | None = None  # why it does not run, and what is nearest
    plan: Plan | None = None
    held: Held | None = None
    start: Start | None = None
    host: int = 0  # bytes of main memory that a node needs, but for libraries and data

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.chosen is not None and self.start.card <= self.plan.budget

    @property
    def why_not(self) -> str:
        """Empty where it fits."""
        if self.refused is not None or self.fits:
            return self.refused or ""
        if self.plan.chosen is None:
            return self.plan.remedy
        return f"Loading takes {gib(self.start.card)} on each card, of {gib(self.plan.budget)}."


@dataclass(frozen=True)
class Across:
    """The recipe on a cluster."""

    cluster: Cluster
    engines: list[Shared]

    @property
    def chosen(self) -> Shared | None:
        """The simplest of those that are as good as fastest; None where nothing fits."""
        fitting = [s for s in self.engines if s.fits]
        fastest = min((s.plan.chosen.seconds for s in fitting), default=0.0)
        return next((s for s in fitting if s.plan.chosen.seconds <= 1.02 * fastest), None)

    def as_values(self) -> dict[str, Any]:
        """As plain values, for JSON; memory in bytes."""
        found = [dataclasses.asdict(s) | {"plan": s.plan and s.plan.as_values(), "fits": s.fits} for s in self.engines]
        return {
            "cluster": dataclasses.asdict(self.cluster),
            "chosen": self.chosen.engine if self.chosen else None,
            "engines": found,
        }


def engine_named(name: str, processes: int) -> Engine:
    """Raises `UserError` where there is no engine of that name."""
    if name not in ENGINES:
        raise UserError(f"No engine {name!r} is known.{nearest(name, ENGINES)} There are {', '.join(ENGINES)}.")
    if processes == 1 and name == "ddp":
        return Engine("single", 1)
    return Engine(name.removesuffix("-offload"), processes, name.endswith("-offload"))


def across(
    recipe: Recipe, cluster: Cluster, rows: Dataset | None = None, processing: Processing | None = None,
    engines: Sequence[str] = ENGINES, budget: int | None = None, rate: float | None = None,
    known: Known | None = None, sizes: Sizes | None = None,
) -> Across:  # fmt: skip
    """The recipe under each of the engines, in bfloat16 where it says `auto`.

    Args:
        budget: bytes of a card; by default what the cluster's have.
        rate: operations a second of a large matrix product; by default what is assumed of the card.
        known: of the recipe, where it has been asked for before.
        sizes: of micro-batches, where the data is not there to tell.

    Raises:
        UserError: there is no such engine, the base has no configuration, or the processes cannot share the global batch.
    """
    known = known or Known(recipe)
    dtype = torch.bfloat16 if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    found = []
    for name in engines:
        engine = engine_named(name, cluster.processes)
        try:
            ours = fit(recipe, engine, dtype)
        except UserError as error:
            found.append(Shared(name, refused=str(error)))
            continue
        planner = Planner(
            ours, rows, processing, dtype, "cuda", engine, rate, cluster, known, sizes
        )  # fmt: skip
        numbers = counts(ours, known.shape, dtype)
        mine = held(numbers, engine, state_bytes(ours.optim))
        first = start(
            numbers, engine, sum(c.total() for c in (known.shape.frozen, known.shape.trained)) * 2, cluster.per_node
        )
        host = max(first.host, cluster.per_node * mine.host)
        found.append(Shared(name, None, planner.plan(budget or cluster.card.memory), mine, first, host))
    return Across(cluster, found)
