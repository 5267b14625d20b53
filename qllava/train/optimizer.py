"""What learns how fast. In: the model and the recipe. Out: the optimizer's groups, and the same as columns of the audit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ..model.adapt import PROJECTOR, TOWER, TOWER_LORA, part_of
from ..recipe.schema import Recipe


def rate(name: str, recipe: Recipe) -> float:
    """The learning rate of a parameter."""
    own = {
        PROJECTOR: recipe.projector_learning_rate,
        TOWER: recipe.vision_tower_learning_rate,
        TOWER_LORA: recipe.vision_tower_learning_rate,
    }
    base = own.get(part_of(name)) or recipe.learning_rate
    return base * recipe.loraplus_lr_ratio if recipe.loraplus_lr_ratio and ".lora_B." in name else base


def groups(model: torch.nn.Module, recipe: Recipe, decayed: Collection[str]) -> list[dict[str, Any]]:
    """The optimizer's groups: one for each part, rate and decay; the projector's last.

    Args:
        decayed: names of the parameters that weight decay pulls on.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, speed = part_of(name), rate(name, recipe)
            decay = recipe.weight_decay if name in decayed else 0.0
            order = (part == PROJECTOR, part in (TOWER, TOWER_LORA), speed, name not in decayed)
            group = found.setdefault(order, {"params": [], "lr": speed, "weight_decay": decay})
            group["params"].append(parameter)
    return [found[order] for order in sorted(found)]


def rates(model: torch.nn.Module, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """By part: its learning rates and its weight decay, as text."""
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(part_of(name), set()).add(rate(name, recipe))
    return {
        part: (", ".join(f"{r:g}" for r in sorted(speeds)), f"{recipe.weight_decay:g}")
        for part, speeds in found.items()
    }
