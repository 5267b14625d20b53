"""An adapter's weights: LoRA in PEFT's own format and the projector beside it.

In: the trained model. Out: `adapter_config.json`, `adapter_model.safetensors` (none without LoRA) and
`projector.safetensors`; and back.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import UserError
from ..model.projector import put_projector, read_projector, save_projector

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Writes what was trained on top of the base into `folder`."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    save_projector(model, folder)


def put_adapter(model: torch.nn.Module, folder: Path, trainable: bool = False) -> torch.nn.Module:
    """The base with the folder's LoRA (if any) and projector on it.

    Raises:
        UserError: its LoRA does not fit the base, or a file is missing or damaged.
    """
    put_projector(model, read_projector(folder), folder)
    if not (folder / CONFIG).is_file():
        return model
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"The LoRA in {folder} does not fit this base: {str(error)[:300]}") from None
    check_loaded(adapted, folder)
    return adapted


def check_loaded(model: torch.nn.Module, folder: Path) -> None:
    """Makes sure that every LoRA tensor of the folder has its place in the model, and the reverse."""
    with safe_open(folder / WEIGHTS, "pt") as tensors:
        stored = set(tensors.keys())
    placed = {n.replace(".default", "") for n, _ in model.named_parameters() if "lora_" in n}
    stored = {k.replace("lora_magnitude_vector.weight", "lora_magnitude_vector") for k in stored}
    placed = {k.replace("lora_magnitude_vector.weight", "lora_magnitude_vector") for k in placed}
    if stored != placed:
        raise UserError(
            f"The LoRA in {folder} does not fit this base: {len(stored - placed)} of its tensors have no place in the "
            f"model {sorted(stored - placed)[:2]}, and {len(placed - stored)} of the model's are not in it."
        )
