"""The projector's weights as a file: read, written, and put into a model.

In and out: `projector.safetensors` with the keys of the projector's module (`linear_1.weight`, `linear_1.bias`, …), float32; of a LLaVA-1.5-HD with its row-end token, `image_newline`, beside them. A LLaVA whole folder serves as well: its projector is read out of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import UserError
from .projectors import described
from .tiles import ROW_END

FILE = "projector.safetensors"
MARK = "multi_modal_projector."


def llava_of(model: torch.nn.Module) -> torch.nn.Module:
    """The LLaVA itself, wrapped by PEFT or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def projector_of(model: torch.nn.Module) -> torch.nn.Module:
    """The projector of a LLaVA, wrapped by PEFT or not."""
    return llava_of(model).model.multi_modal_projector


def row_ends(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The row-end token of a LLaVA-1.5-HD by its name, which is saved and trained with the projector; else nothing."""
    token = getattr(llava_of(model).model, ROW_END, None)
    return {} if token is None else {ROW_END: token}


def runtime_name(key: str) -> str:
    """The name in memory of a tensor of the projector's file."""
    return f"model.{key}" if key == ROW_END else f"model.{MARK}{key}"


def projector_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the projector's file holds, as it is in the model."""
    return projector_of(model).state_dict() | row_ends(model)


def save_projector(model: torch.nn.Module, folder: Path) -> None:
    """Writes the projector's float32 weights into `folder`."""
    state = {k: v.detach().float().cpu().contiguous() for k, v in projector_tensors(model).items()}
    save_file(state, folder / FILE, metadata={"format": "pt"})


def read_projector(folder: Path) -> dict[str, torch.Tensor]:
    """The projector's weights out of an artifact or of a whole LLaVA's folder.

    Raises:
        UserError: there is none, or its file is damaged.
    """
    try:
        if (folder / FILE).is_file():
            return load_file(folder / FILE)
        found = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if MARK in key or key.endswith(ROW_END):
                        found[key.split(MARK, 1)[-1] if MARK in key else ROW_END] = tensors.get_tensor(key).float()
    except SafetensorError as error:
        raise UserError(f"The projector in {folder} is damaged: {error}.") from None
    if not found:
        raise UserError(
            f"No projector in {folder}: no {FILE}, and no weights with one. A recipe's field `projector` names the run of "
            "stage align that made it (projector=DIR); run that first."
        )
    return found


def put_projector(
    model: torch.nn.Module, state: dict[str, torch.Tensor], source: object = "the given weights", first: bool = False
) -> None:
    """Copies the weights into the model's projector (and row-end token), in the projector's own dtype.

    Args:
        first: they are what a run begins with, and may be of a model without tiles: the row-end token stays as it is.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    state = fitting(model, state, source, first)
    for name, token in row_ends(model).items():
        token.data.copy_(state.pop(name))
    projector_of(model).load_state_dict(state)


def fitting(
    model: torch.nn.Module, state: dict[str, torch.Tensor], source: object, first: bool = False
) -> dict[str, torch.Tensor]:
    """The weights as `put_projector` copies them, after a look at names and shapes; the model may be on `meta`.

    Raises:
        UserError: they differ from the model's.
    """
    ends, state = row_ends(model), dict(state)
    if first and ends and ROW_END not in state:
        state |= {name: token.detach() for name, token in ends.items()}
    own = {k: tuple(v.shape) for k, v in projector_tensors(model).items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if (ROW_END in own) != (ROW_END in given):
        with_, without = ("has none", "has one") if ends else ("has one", "has none")
        raise UserError(
            f"The projector in {source} does not fit this base: it {with_} of LLaVA-1.5-HD's row-end tokens, and the base "
            f"{without}. Name the base with{'' if not ends else 'out'} max_tiles."
        )
    if own != given:
        kinds = described(given), described(own)
        told = f"it is {kinds[0]}, and the base's {kinds[1]}" if kinds[0] != kinds[1] else _differ(given, own)
        raise UserError(f"The projector in {source} does not fit this base: {told}. See the base's projector_type.")
    return state


def _differ(given: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]]) -> str:
    names = sorted(k for k in given.keys() | own.keys() if given.get(k) != own.get(k))
    return "; ".join(f"{k} is {given.get(k, 'not there')}, the base's {own.get(k, 'not there')}" for k in names[:3])
