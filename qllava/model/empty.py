"""A model without weights beside one with them: the same modules, shapes, dtypes and buffers, for a process that gets its part sent.

In: the outline of the model that one process has made. Out: the same model, empty; no weight file is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import RunError
from ..recipe.schema import Recipe
from .adapt import make_trainable
from .build import empty_model
from .lora import COMPANION, OWN, add_companion, lora_layers


@dataclass(frozen=True)
class Outline:
    """What a model is, but for its weights."""

    lora: Any  # the trained adapter's LoraConfig, as its start has left it; None without one
    companion: dict[str, int]  # rank of the frozen adapter beside it, by module
    buffers: dict[str, torch.Tensor]  # whole: they are small, and no state dict has them
    parameters: dict[str, tuple[torch.Size, torch.dtype, bool]]  # the last: whether it trains


def outline(model: torch.nn.Module) -> Outline:
    configs = getattr(model, "peft_config", {})
    layers = lora_layers(model).items() if COMPANION in configs else ()
    return Outline(
        lora=configs.get(OWN),
        companion={n: m.r[COMPANION] for n, m in layers if COMPANION in m.r},
        buffers=dict(model.named_buffers()),
        parameters=_parameters(model),
    )


def _parameters(model: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    return {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}


def empty_like(told: Outline, recipe: Recipe, dtype: torch.dtype) -> torch.nn.Module:
    """The model of that outline, whose parameters take no memory: each is one number, repeated.

    (On `meta` they could not be told apart: accelerate does that by their addresses, and DeepSpeed copies them.)

    Raises:
        UserError: the base has no configuration here.
        RunError: it comes out as another model; the base's configuration differs between the processes.
    """
    model = empty_model(recipe.base, dtype)
    with torch.device("meta"):
        model = make_trainable(model, recipe, told.lora)
        if told.companion:
            layers = lora_layers(model)
            sizes = {n: (r, layers[n].in_features, layers[n].out_features) for n, r in told.companion.items()}
            add_companion(model, {n: (torch.empty(r, i), torch.empty(o, r)) for n, (r, i, o) in sizes.items()})
    mine = _parameters(model)
    if wrong := sorted(n for n in mine.keys() | told.parameters.keys() if mine.get(n) != told.parameters.get(n)):
        raise RunError(
            f"The processes would train different models: {len(wrong)} tensors differ, such as {wrong[0]} (here "
            f"{mine.get(wrong[0])}, in the first process {told.parameters.get(wrong[0])}). The base's configuration has to be the "
            "same on every machine."
        )
    for name, buffer in told.buffers.items():
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = buffer
    thin: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # those that are tied stay so
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                number = torch.zeros((), dtype=parameter.dtype)
                one = torch.nn.Parameter(number.expand(parameter.shape), parameter.requires_grad)
                module._parameters[leaf] = thin.setdefault(parameter, one)
    return model
