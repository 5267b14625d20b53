"""The vision tower where it trains: which of it, and its weights as a file.

In and out: `vision_tower.safetensors`, float32, with the keys that the tower's parameters have in memory. Only what the
projector's input depends on is in it: LLaVA-1.5 reads the last hidden state but one, so CLIP's last layer learns nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UserError
from .features import layers_read
from .projector import llava_of

FILE = "vision_tower.safetensors"
PREFIX = "model.vision_tower."


def tower_parameters(llava: nn.Module) -> set[str]:
    """Names of the vision tower's parameters that the projector's input depends on: all up to the layer it reads."""
    read = max(layers_read(llava.config))
    names = (
        n for n, _ in llava.named_parameters() if n.startswith(PREFIX) and not re.search(r"post_layernorm|\.head\.", n)
    )
    return {n for n in names if (m := re.search(r"\.layers\.(\d+)\.", n)) is None or int(m[1]) < read}


def tower_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tower's parameters that are read, by their names inside the tower."""
    llava = llava_of(model)
    read = tower_parameters(llava)
    return {n.removeprefix(PREFIX): p for n, p in llava.named_parameters() if n in read}


def tower_trains(model: nn.Module) -> bool:
    """Whether the tower's own weights train (not LoRA on them)."""
    return any(p.requires_grad for n, p in tower_tensors(model).items() if "lora_" not in n)


def save_tower(model: nn.Module, folder: Path) -> None:
    """Writes the tower's float32 weights into `folder`."""
    state = {k: v.detach().float().cpu().contiguous() for k, v in tower_tensors(model).items()}
    save_file(state, folder / FILE, metadata={"format": "pt"})


def read_tower(folder: Path) -> dict[str, torch.Tensor]:
    """The tower's weights in `folder`, by their names inside the tower.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return load_file(folder / FILE)
    except SafetensorError as error:
        raise UserError(f"{folder / FILE} is damaged: {error}.") from None


@torch.no_grad()
def put_tower(model: nn.Module, folder: Path) -> None:
    """Copies the weights in `folder` into the model's tower, in its own dtype.

    Raises:
        UserError: the file is damaged, or is of another tower.
    """
    state, own = read_tower(folder), tower_tensors(model)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
        raise UserError(f"The vision tower in {folder} does not fit this base's.")
    for name, parameter in own.items():
        parameter.copy_(state[name])
