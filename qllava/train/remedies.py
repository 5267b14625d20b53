"""Why a recipe does not fit, and the field that would have made it. In: a planner and so many bytes. Out: sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import gib

if TYPE_CHECKING:
    from .plan import Planner

SLACK = 1.04  # what the allocator cannot use
SHORT = {
    "weights": "frozen weights", "trained": "what trains", "kept": "activations", "working": "working memory",
    "runtime": "libraries or context", "buffers": "the engine's buffers",
}  # fmt: skip
SMALLER = {"cpu": "adamw_bnb_8bit", "cuda": "paged_adamw_8bit"}


def too_large(planner: Planner, budget: int) -> str:
    """Why nothing fits, and which fields would make it."""
    least = planner.choice(1, planner.shape.layers, planner.recipe.optim, budget)
    sizes = {words: getattr(least.memory, name) for name, words in SHORT.items()}
    parts = ", ".join(f"{words} {gib(size)}" for words, size in sizes.items() if size)
    return (
        f"The recipe needs {gib(SLACK * least.memory.peak)} at the least, with {SLACK - 1:.0%} to spare, of {gib(budget)}: "
        f"{parts}. {remedies(planner, budget)}"
    )


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
    smaller = planner.smaller
    if smaller and (found := planner.choice(1, layers, smaller, limit)).fits:
        return f"per_device_train_batch_size=1 gradient_checkpointing=true optim={smaller} would take {gib(found.memory.peak)}."
    four = "tune=qlora holds the LLM in 4 bits" + (" (under DDP or ZeRO-2)" if planner.engine.sharded else "")
    hints = [] if recipe.tune in ("qlora", "projector") else [four]
    if planner.processes > 1 and not planner.engine.sharded and recipe.tune != "qlora":
        hints.append("FSDP2 and ZeRO-3 share the weights out")
    hints += [f"a lower lora.r than {recipe.lora.r}"] if recipe.tune in ("lora", "qlora") else []
    return f"Smaller would be: {'; '.join([*hints, f'a lower max_length than {recipe.max_length}'])}."
