"""The model that a run trains, as it is at the first step. In: recipe, device, and what it starts from. Out: the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from .. import console
from ..artifact.adapter import fill, stack_on
from ..artifact.delta import read_lora
from ..artifact.load import find_artifact
from ..artifact.manifest import verify_quick
from ..artifact.stream import BaseTensors
from ..model.adapt import make_trainable
from ..model.build import load_model
from ..model.empty import empty_like, outline
from ..model.lora import is_plain, start_eva, start_from_own_weights, start_loftq
from ..model.projector import llava_of, put_projector, read_projector
from ..recipe.rules import from_own_weights, has_lora
from ..recipe.schema import Recipe
from .engine import Engine
from .keeping import restore_weights


def begin(
    recipe: Recipe, dtype: torch.dtype, device: torch.device, batches: Iterable[dict[str, Any]], adapter: Path | None,
    checkpoint: Path | None, engine: Engine,
) -> torch.nn.Module:  # fmt: skip
    """The model with its trainable parts. All processes have to come here.

    Under FSDP2 and ZeRO-3 the first process has it whole, in main memory, and the others have its outline: their parts are sent when the
    engine cuts it.

    Args:
        batches: of the training data, for a start that looks at them (EVA).
        adapter: to continue, or to stack on.
        checkpoint: whose weights the model has.

    Raises:
        UserError: base, projector or adapter are not fit for the run.
        RunError: LoRA or quantisation did not come out as asked.
    """
    if not engine.sharded:
        return _with_weights(recipe, dtype, device, device, batches, adapter, checkpoint)
    model = None
    if engine.reads:
        model = _with_weights(recipe, dtype, torch.device("cpu"), device, batches, adapter, checkpoint)
    told = broadcast_object_list([None if model is None else outline(model)])[0]
    if model is None:
        model = empty_like(told, recipe, dtype)
        _checkpoint(model, recipe)
    return model


def _with_weights(
    recipe: Recipe, dtype: torch.dtype, home: torch.device, device: torch.device, batches: Any, adapter: Path | None,
    checkpoint: Path | None,
) -> torch.nn.Module:  # fmt: skip
    """The model on `home`; what is computed for its start is computed on `device`."""
    model = load_model(recipe.base, dtype, home, recipe.quantization if recipe.tune == "qlora" else None)
    if recipe.projector is not None and checkpoint is None:
        artifact = find_artifact(recipe.projector)
        if artifact is not None:
            verify_quick(artifact)
        folder = artifact or Path(recipe.projector)
        put_projector(model, read_projector(folder), folder, first=True)
    shape = checkpoint or (adapter if recipe.adapter_start == "continue" else None)
    like = read_lora(shape)[1] if shape is not None and has_lora(recipe) and is_plain(recipe) else None
    model = make_trainable(model, recipe, like)
    if checkpoint is not None:
        restore_weights(model, checkpoint, recipe.tune == "full")
    elif adapter is not None:
        if recipe.adapter_start == "stack":
            stack_on(model, adapter)
        else:
            fill(model, adapter)
    elif has_lora(recipe):
        computed = home != device and (from_own_weights(recipe) or recipe.lora.init_lora_weights == "eva")
        _start_lora(model.to(device) if computed else model, recipe, dtype, device, batches)
        if computed:
            model.to(home)
    _checkpoint(model, recipe)
    return model


def _start_lora(model: torch.nn.Module, recipe: Recipe, dtype: torch.dtype, device: torch.device, batches: Any) -> None:
    kind = recipe.lora.init_lora_weights
    if from_own_weights(recipe):
        start_from_own_weights(model, str(kind))
    elif kind == "loftq":
        start_loftq(model, BaseTensors(recipe.base).weight)
    elif kind == "eva":
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            start_eva(model, batches)


def _checkpoint(model: torch.nn.Module, recipe: Recipe) -> None:
    """Recomputes the LLM's activations, and leaves a frozen tower without a graph.

    Non-reentrant, so that no gradient has to enter at the embeddings: the hook for that would reach CLIP as well.
    """
    if not recipe.gradient_checkpointing:
        return
    llava, again = llava_of(model).model, recipe.gradient_checkpointing
    parts = [llava.language_model] + ([llava.vision_tower] if recipe.tune_vision_tower != "frozen" else [])
    for part in parts:
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = len(llava.language_model.layers)
    console.note(f"{count if again is True else min(again, count)} of {count} layers run again in the backward pass.")
    if again is not True:
        for layer in llava.language_model.layers[again:]:
            layer.gradient_checkpointing = False
