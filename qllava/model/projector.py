"""The projector's weights as a file: read, written, and put into a model.

In and out: `projector.safetensors` with the keys `linear_1.weight`, `linear_1.bias`, `linear_2.weight`, `linear_2.bias`,
float32. A LLaVA whole folder serves as well: its projector is read out of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import UserError

FILE = "projector.safetensors"
MARK = "multi_modal_projector."


def llava_of(model: torch.nn.Module) -> torch.nn.Module:
    """The LLaVA itself, wrapped by PEFT or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def projector_of(model: torch.nn.Module) -> torch.nn.Module:
    """The projector of a LLaVA, wrapped by PEFT or not."""
    return llava_of(model).model.multi_modal_projector


def save_projector(model: torch.nn.Module, folder: Path) -> None:
    """Writes the projector's float32 weights into `folder`."""
    state = {k: v.detach().float().cpu().contiguous() for k, v in projector_of(model).state_dict().items()}
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
                    if MARK in key:
                        found[key.split(MARK, 1)[1]] = tensors.get_tensor(key).float()
    except SafetensorError as error:
        raise UserError(f"The projector in {folder} is damaged: {error}.") from None
    if not found:
        raise UserError(
            f"No projector in {folder}: no {FILE}, and no weights with one. A recipe's field `projector` names the run of "
            "stage align that made it (projector=DIR); run that first."
        )
    return found


def put_projector(model: torch.nn.Module, state: dict[str, torch.Tensor], source: object = "the given weights") -> None:
    """Copies the weights into the model's projector, in the projector's own dtype.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    projector = projector_of(model)
    own = {k: tuple(v.shape) for k, v in projector.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if own != given:
        raise UserError(f"The projector in {source} does not fit this base: it is {given}, the base's is {own}.")
    projector.load_state_dict(state)
