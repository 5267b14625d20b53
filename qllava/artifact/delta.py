"""What an adapter adds to each weight. In: an adapter's folder. Out: by module path, a change that can be made dense.

Everything is float32. The rules are PEFT's (tuners/lora: scaling by alpha over r, or over its root for rsLoRA; patterns by
the end of the path; DoRA as a new norm for every row).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import RunError, UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's, before a module's path


@dataclass
class Change:
    """Of one linear."""

    a: torch.Tensor  # [r, in]
    b: torch.Tensor  # [out, r]
    scaling: float
    magnitude: torch.Tensor | None = None  # [out], of a DoRA

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def low_rank(self) -> torch.Tensor:
        """B A, scaled: [out, in]. For a DoRA this is not yet the whole change."""
        return self.scaling * (self.b @ self.a)

    def applied(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight [out, in], float32."""
        changed = weight.float() + self.low_rank().to(weight.device)
        if self.magnitude is None:
            return changed
        norm = torch.linalg.norm(changed, dim=1)
        return changed * (self.magnitude.to(weight.device) / norm)[:, None]

    def delta(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        """All that is added to the weight; for a DoRA that depends on it."""
        if self.magnitude is None:
            return self.low_rank()
        return self.applied(weight) - weight.float()


def scaling_of(config: Any, module: str, rank: int) -> float:
    """By how much a module's B A is multiplied, according to a `LoraConfig`."""
    from peft.utils.other import get_pattern_key

    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def read_lora(folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The folder's LoRA tensors, as PEFT saves them, and its `LoraConfig`.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    from peft import PeftConfig

    try:
        return load_file(folder / WEIGHTS), PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"No LoRA can be read from {folder}: {str(error)[:200]}") from None


def read_changes(folder: Path) -> dict[str, Change]:
    """The folder's changes by module path from the LLaVA's root.

    Raises:
        UserError: there is no LoRA, or it has parts that this does not know.
    """
    state, config = read_lora(folder)
    changes: dict[str, Change] = {}
    known = set()
    for key in state:
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        names = (key, f"{stem}.lora_B.weight", f"{stem}.lora_magnitude_vector", f"{stem}.lora_magnitude_vector.weight")
        if names[1] not in state:
            raise UserError(f"The LoRA in {folder} is not whole: {names[1]} is missing.")
        module, a = stem.removeprefix(PREFIX), state[key].float()
        magnitude = state.get(names[2], state.get(names[3]))
        known |= set(names)
        changes[module] = Change(
            a, state[names[1]].float(), scaling_of(config, module, a.shape[0]),
            None if magnitude is None else magnitude.float().flatten(),
        )  # fmt: skip
    if strange := sorted(set(state) - known):
        raise UserError(f"The LoRA in {folder} holds what is no LoRA on a linear: {strange[:3]}.")
    return changes


def write_changes(changes: dict[str, Change], folder: Path) -> None:
    """Writes changes as an adapter in PEFT's format; ranks and scalings may differ from module to module."""
    if not changes:
        return
    from peft import LoraConfig

    dora = [n for n, c in changes.items() if c.magnitude is not None]
    if dora and len(dora) < len(changes):
        raise RunError("Some modules are DoRA and some are not; PEFT's format knows one kind for all.")
    ranks = {n: c.rank for n, c in changes.items()}
    alphas = {n: c.scaling * c.rank for n, c in changes.items()}
    rank, alpha = max(ranks.values()), next(iter(alphas.values()))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=sorted(changes), use_dora=bool(dora),
        rank_pattern={n: r for n, r in ranks.items() if r != rank},
        alpha_pattern={n: a for n, a in alphas.items() if a != alpha}, inference_mode=True,
    )  # fmt: skip
    state = {}
    for name, change in changes.items():
        state[f"{PREFIX}{name}.lora_A.weight"], state[f"{PREFIX}{name}.lora_B.weight"] = change.a, change.b
        if change.magnitude is not None:
            state[f"{PREFIX}{name}.lora_magnitude_vector"] = change.magnitude
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
