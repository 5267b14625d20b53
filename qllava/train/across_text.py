"""A plan for a cluster as text: a line for each engine, and the one to take part by part."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from .across import Across, Shared
from .plan_text import again, show_plan

COLUMNS = (
    "engine", "micro-batch", "layers run again", "frozen", "what trains", "activations", "buffers", "peak GiB",
    "main memory a node", "s a step", "",
)  # fmt: skip


def show_across(found: Across, to: Console) -> None:
    """Prints it."""
    grid = Table(
        title=f"{found.cluster.title}: GiB on each card", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in COLUMNS:
        grid.add_column(column, justify="left" if column in ("engine", "") else "right")
    for shared in found.engines:
        grid.add_row(shared.engine, *_cells(shared, found.chosen))
    to.print(grid)
    for shared in found.engines:
        if shared.why_not:
            to.print(f"{shared.engine}: {shared.why_not}", markup=False, soft_wrap=True)
    if found.chosen is not None:
        show_plan(found.chosen.plan, to)
        share = f"recipes/cluster/{found.chosen.engine}.yaml --num_processes {found.cluster.processes}"
        share += f" --num_machines {found.cluster.nodes} …" if found.cluster.nodes > 1 else ""
        launch = f"Launch: accelerate launch --config_file {share} -m qllava train …"
        to.print(launch if found.cluster.processes > 1 else "Launch: qllava train …", markup=False, soft_wrap=True)


def _cells(shared: Shared, chosen: Shared | None) -> list[str]:
    if shared.plan is None:
        return [""] * (len(COLUMNS) - 2) + ["refused"]
    best = shared.plan.chosen or min(shared.plan.choices, key=lambda c: c.memory.peak)
    memory = best.memory
    parts = (memory.weights, memory.trained, memory.kept + memory.working, memory.buffers, memory.peak, shared.host)
    verdict = "chosen" if shared is chosen else "fits" if shared.fits else "too large"
    return [
        str(best.per_device_train_batch_size), again(best), *(f"{n / 2**30:.1f}" for n in parts), f"{best.seconds:.3g}", verdict,
    ]  # fmt: skip
