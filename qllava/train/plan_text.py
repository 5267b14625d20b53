"""A plan as text: what the run takes, the fields to write, and what each other choice would cost."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from .memory import gib
from .plan import Choice, Plan

PARTS = {
    "weights": "frozen weights",
    "trained": "what trains: weights in float32, gradients, optimizer",
    "kept": "activations kept for the backward pass",
    "working": "one layer's, the head's or the tower's working memory",
    "runtime": "libraries, or the GPU's context",
    "buffers": "the engine's buffers: gathered layers, gradients on their way",
}


def show_plan(plan: Plan, to: Console) -> None:
    """Prints the plan."""
    chosen = plan.chosen
    to.print(f"{'A card' if plan.device == 'cuda' else 'This machine'} with {gib(plan.budget)} to use", markup=False)
    if chosen is None:
        to.print("Nothing fits.", markup=False)
    else:
        grid = Table(title="Peak memory by part", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        grid.add_column("part")
        grid.add_column("GiB", justify="right")
        for name, words in PARTS.items():
            if name == "buffers" and not chosen.memory.buffers:
                continue
            grid.add_row(words, f"{getattr(chosen.memory, name) / 2**30:.2f}")
        grid.add_row("together", f"{chosen.memory.peak / 2**30:.2f}")
        to.print(grid)
        for line in _about(plan, chosen):
            to.print(line, markup=False, soft_wrap=True)
    grid = Table(title="Choices", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("micro-batch", "layers run again", "optimizer", "peak GiB", "seconds a step", ""):
        grid.add_column(column, justify="right" if column in ("micro-batch", "peak GiB", "seconds a step") else "left")
    for choice in plan.choices:
        verdict = "chosen" if choice == chosen else "fits" if choice.fits else "too large"
        grid.add_row(
            str(choice.per_device_train_batch_size), again(choice), choice.optim, f"{choice.memory.peak / 2**30:.2f}",
            f"{choice.seconds:.3g}", verdict,
        )  # fmt: skip
    to.print(grid)


def _about(plan: Plan, chosen: Choice) -> Iterator[str]:
    largest = plan.largest
    yield f"Largest micro-batch: {largest.positions:,} positions, {largest.images} images, {largest.labels:,} labels."
    if plan.steps is not None:
        yield f"Time: {plan.steps:,} steps of about {chosen.seconds:.3g} s, {duration(plan.steps * chosen.seconds)} in all."
    else:
        yield f"Time: about {chosen.seconds:.3g} s a step, if samples are of max_length; the data is not there yet."
    yield f"Disk: {int(plan.disk['bytes']) / 2**30:,.2f} GiB ({plan.disk['what']})."
    fields = " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in chosen.updates.items())
    yield f"Write: {fields}"


def duration(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"


def again(choice: Choice) -> str:
    said = choice.gradient_checkpointing
    return "all" if said is True else str(int(said))
