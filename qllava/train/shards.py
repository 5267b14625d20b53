"""What a run's engine keeps in pieces, put together for what looks at the whole: saving, and the audit of the first step.

In: a model as the engine holds it. Out: the same with its trained weights whole while a block lasts; and what gradients there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import RunError
from .engine import Engine
from .guards import wrong_gradients
from .repartition import load_repartitioned, pieces_in, stage_of


@contextmanager
def gathered(model: torch.nn.Module, engine: Engine) -> Iterator[None]:
    """Every process sees what trains, and LoRA that does not, whole while the block lasts; all have to come here."""
    if not engine.sharded:
        yield
        return
    parts = {n: p for n, p in model.named_parameters() if p.requires_grad or "lora_" in n}
    if engine.name == "zero3":
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parts.values())):
            yield
        return
    try:
        for name, piece in parts.items():
            _put(model, name, torch.nn.Parameter(_full(piece).clone(), requires_grad=piece.requires_grad))
        yield
    finally:
        for name, piece in parts.items():
            _put(model, name, piece)


def whole_state(model: torch.nn.Module, engine: Engine) -> dict[str, torch.Tensor] | None:
    """All weights by name, on the CPU of the first process, gathered one by one; None where the model is whole as it is.

    The other processes get an empty one; all have to come here. (ZeRO-2's weights are whole, but views of one flat buffer, which
    safetensors refuses.)
    """
    if not engine.casts:
        return None
    first, state = int(torch.distributed.get_rank()) == 0, {}
    for name, parameter in model.named_parameters():
        with _one(parameter, engine) as whole:
            if first:
                state[name] = whole.detach().to("cpu", copy=True)
    return state


@contextmanager
def _one(parameter: torch.Tensor, engine: Engine) -> Iterator[torch.Tensor]:
    if engine.name == "fsdp2":
        yield _full(parameter)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield parameter


def _full(piece: torch.Tensor) -> torch.Tensor:
    """A DTensor put together in every process; any other as it is."""
    return piece.full_tensor() if hasattr(piece, "full_tensor") else piece.detach()


def _put(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = parameter


def cut_by_layers(plugin: Any, llava: torch.nn.Module) -> None:
    """Makes FSDP2 gather a layer of the LLM or of the vision tower at a time.

    Left alone, accelerate asks for every class that transformers would not split, also those that this model does not have.
    """
    stacks = [m for m in llava.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    plugin.transformer_cls_names_to_wrap = sorted({type(stack[0]).__name__ for stack in stacks})


def send_pieces(model: torch.nn.Module, engine: Engine, accelerator: Any) -> None:
    """Cuts a model for ZeRO-3, tensor by tensor: the first process sends each one, and every process keeps its piece.

    DeepSpeed's engine would put the whole model on each process's device before it cuts it.
    """
    import deepspeed

    asked = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    settled = {k: v for k, v in asked.items() if v != "auto"}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": settled}
    deepspeed.zero.Init(module=_OneByOne(model, engine.reads, accelerator.device), config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)


class _OneByOne(torch.nn.Module):
    """A model for DeepSpeed to cut, whose empty parameters get memory when their turn comes; the cut takes it away."""

    def __init__(self, model: torch.nn.Module, filled: bool, device: torch.device) -> None:
        super().__init__()
        self.__dict__ |= {"model": model, "filled": filled, "device": device}  # it is no child

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        for parameter in self.model.parameters():
            if not self.filled:
                parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.device)
            yield parameter


class Heard:
    """Which tensors got a gradient in a step, and whether it was finite: an engine that takes the step itself leaves no trace."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.finite = model, {}
        self.hooks = [p.register_hook(self._listen(n)) for n, p in model.named_parameters() if p.requires_grad]

    def _listen(self, name: str) -> Any:
        def hear(gradient: torch.Tensor) -> None:
            self.finite[name] = self.finite.get(name, True) and bool(torch.isfinite(gradient).all())

        return hear

    def check(self) -> None:
        """To be called once after a step.

        Raises:
            RunError: a tensor that trains got no gradient, or none that is finite.
        """
        for hook in self.hooks:
            hook.remove()
        trained = [n for n, p in self.model.named_parameters() if p.requires_grad]
        wrong_gradients(
            [n for n in trained if n not in self.finite], [], [n for n, fine in self.finite.items() if not fine]
        )


def save_pieces(wrapped: Any, folder: str | Path) -> None:
    """DeepSpeed's own checkpoint, each process its piece, without the frozen weights."""
    wrapped.save_checkpoint(str(folder), exclude_frozen_parameters=True)


def load_pieces(wrapped: Any, folder: str | Path) -> None:
    """Takes what `save_pieces` wrote, by as many processes or by others, at this stage of ZeRO or the other.

    Raises:
        RunError: it is damaged.
    """
    try:
        pieces, stage = pieces_in(Path(folder)), wrapped.zero_optimization_stage()
        if pieces and (pieces, stage_of(Path(folder))) != (torch.distributed.get_world_size(), stage):
            load_repartitioned(wrapped, Path(folder))
            return
        path, _ = wrapped.load_checkpoint(
            str(folder), load_optimizer_states=True, load_lr_scheduler_states=True, load_module_strict=False
        )
    except Exception as error:  # DeepSpeed's own kinds of many
        if type(error).__name__ != "ZeRORuntimeException" and not isinstance(
            error, OSError | RuntimeError | ValueError | AssertionError
        ):
            raise
        raise RunError(f"DeepSpeed cannot go on from {folder}: {str(error).splitlines()[0][:300]}") from None
    if path is None:
        raise RunError(f"{folder} holds no checkpoint of DeepSpeed's.")
