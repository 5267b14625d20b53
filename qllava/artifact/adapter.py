"""An adapter's weights: LoRA in PEFT's own format, and the projector and a trained vision tower beside it.

In: the trained model. Out: `adapter_config.json`, `adapter_model.safetensors` (none without LoRA), `projector.safetensors` and
`vision_tower.safetensors` (where it trained); and back.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UserError
from ..model.lora import COMPANION, OWN, add_companion, lora_layers, plain_lora
from ..model.projector import put_projector, read_projector, save_projector
from ..model.tower import FILE as TOWER_FILE
from ..model.tower import put_tower, save_tower, tower_trains
from .delta import CONFIG, PREFIX, WEIGHTS, read_lora, scaling_of


def save_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Writes what was trained on top of the base into `folder`."""
    if hasattr(model, "peft_config"):
        state, config = plain_lora(model)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
    if tower_trains(model):
        save_tower(model, folder)
    save_projector(model, folder)


def put_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The base with the folder's LoRA (if any), projector and vision tower (if any) on it, to answer or to be merged.

    Raises:
        UserError: something does not fit the base, or a file is missing or damaged.
    """
    put_projector(model, read_projector(folder), folder)
    if (folder / TOWER_FILE).is_file():
        put_tower(model, folder)
    if not (folder / CONFIG).is_file():
        return model
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise UserError(f"The LoRA in {folder} does not fit this base: {str(error)[:300]}") from None
    check_loaded(adapted, set(read_lora(folder)[0]), folder)
    return adapted


def fill(model: torch.nn.Module, folder: Path) -> None:
    """Puts what `save_adapter` wrote into a model that trains the same parts, to go on with it.

    Rows of LoRA beyond the trained rank are the companion's (see `model.lora`).

    Raises:
        UserError: what the folder holds is not what the model trains.
    """
    put_projector(model, read_projector(folder), folder)
    if (folder / TOWER_FILE).is_file() != tower_trains(model):
        raise UserError(
            f"{folder} was made with the vision tower's weights {'' if (folder / TOWER_FILE).is_file() else 'not '}training, and "
            "this recipe says otherwise; see its tune_vision_tower."
        )
    if tower_trains(model):
        put_tower(model, folder)
    if not hasattr(model, "peft_config"):
        return
    from peft import set_peft_model_state_dict

    state, _ = read_lora(folder)
    check_loaded(model, set(state), folder)
    own, rows = _split(model, state)
    if rows and COMPANION not in model.peft_config:
        add_companion(model, rows)
    try:
        set_peft_model_state_dict(model, own, adapter_name=OWN)
    except RuntimeError as error:
        raise UserError(f"The LoRA in {folder} does not fit this run's: {str(error)[:300]}") from None


def _split(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """The trained adapter's tensors, and by module the companion's A and B, where there is more than the trained rank."""
    own, rows = dict(state), {}
    for name, module in lora_layers(model).items():
        a, b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
        rank = module.r[OWN]
        if state[a].shape[0] > rank:
            rows[name] = (state[a][rank:].contiguous(), state[b][:, rank:].contiguous())
        own[a], own[b] = state[a][:rank].contiguous(), state[b][:, :rank].contiguous()
    return own, rows


def stack_on(model: torch.nn.Module, folder: Path) -> None:
    """Puts the folder's projector into the model, and its LoRA beside the trained one, frozen.

    Raises:
        UserError: it is a DoRA, or does not fit.
    """
    state, config = read_lora(folder)
    if config.use_dora:
        raise UserError(f"{folder} is a DoRA, to which none can be added. Write adapter_start: merge-then-new.")
    if (folder / TOWER_FILE).is_file():
        raise UserError(f"{folder} has a vision tower of its own. Write adapter_start: merge-then-new.")
    put_projector(model, read_projector(folder), folder)
    layers, rows = lora_layers(model), {}
    for key, a in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if name not in layers:
            raise UserError(
                f"{folder} has LoRA on {name}, where this recipe has none. Write adapter_start: merge-then-new."
            )
        b = state[key.replace("lora_A", "lora_B")]
        rows[name] = (a, b * (scaling_of(config, name, a.shape[0]) / layers[name].scaling[OWN]))
    add_companion(model, rows)


def check_loaded(model: torch.nn.Module, stored: set[str], folder: Path, adapter: str = OWN) -> None:
    """Makes sure that every LoRA tensor of the folder has its place in the model, and the reverse."""
    mark = f".{adapter}"
    placed = {
        _plain(n.replace(mark, ""))
        for n, _ in model.named_parameters()
        if "lora_" in n and (f"{mark}." in n or n.endswith(mark))
    }
    stored = {_plain(k) for k in stored}
    if stored != placed:
        raise UserError(
            f"The LoRA in {folder} does not fit this base: {len(stored - placed)} of its tensors have no place in the "
            f"model {sorted(stored - placed)[:2]}, and {len(placed - stored)} of the model's are not in it."
        )


def _plain(key: str) -> str:
    return key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
