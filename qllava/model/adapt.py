"""What trains: LoRA on the LLM's linears, the projector in float32, all else frozen. And the proof that it is so.

In: a frozen LLaVA and a recipe. Out: the model to train (a `PeftModel` for lora and qlora), and the audit's table.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..errors import RunError
from ..recipe.schema import Lora, Recipe
from .projector import projector_of
from .quantize import quantized_linears

LANGUAGE = "model.language_model."
TOWER = "vision_tower"


def lora_targets(model: nn.Module) -> str:
    """A regular expression, anchored at the root, for every linear inside the LLM; `lm_head` lies outside."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(LANGUAGE)]
    shapes = sorted({re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(n)) for n in names})
    return "|".join(shapes)


def add_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """The model with LoRA on all of the LLM's linears, in float32.

    Raises:
        RunError: LoRA landed on another set of modules.
    """
    from peft import LoraConfig, get_peft_model

    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(LANGUAGE)]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=lora_targets(model), **lora.model_dump())
    adapted = get_peft_model(model, config)
    check_lora(adapted, len(linears))
    return adapted


def lora_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that carry LoRA, from the LLaVA's root."""
    return [
        n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)
    ]


def check_lora(model: nn.Module, expected: int) -> None:
    """Makes sure that LoRA sits on `expected` modules, all of them in the LLM."""
    found = lora_modules(model)
    outside = [n for n in found if not n.startswith(LANGUAGE)]
    if outside or len(found) != expected:
        raise RunError(f"LoRA sits on {len(found)} modules instead of {expected}; outside the LLM: {outside[:3]}.")


def make_trainable(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Switches on what the recipe trains, with float32 master weights, and leaves all else frozen."""
    if recipe.tune in ("lora", "qlora"):
        model = add_lora(model, recipe.lora)
    elif recipe.tune == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    projector_of(model).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


@dataclass(frozen=True)
class Part:
    """One line of the audit."""

    part: str
    parameters: int
    trainable: int
    dtype: str
    quantized: int  # 4-bit linears
    lora: int  # modules with LoRA


def part_of(name: str) -> str:
    if "lora_" in name:
        return "LoRA"
    for mark, part in ((TOWER, "vision tower"), ("multi_modal_projector", "projector"), ("lm_head", "lm_head")):
        if mark in name:
            return part
    return "embeddings" if "embed_tokens" in name else "LLM"


def audit(model: nn.Module, tune: str) -> list[Part]:
    """What the model is made of and what of it trains, part by part.

    Raises:
        RunError: something trains that must not, something does not that must, or master weights are not float32.
    """
    counts: dict[str, Counter] = {}
    dtypes: dict[str, set[str]] = {}
    for name, p in model.named_parameters():
        part = part_of(name)
        size = p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel()
        counts.setdefault(part, Counter()).update(parameters=size, trainable=size if p.requires_grad else 0)
        dtypes.setdefault(part, set()).add("4-bit" if size != p.numel() else str(p.dtype).removeprefix("torch."))
        if p.requires_grad and p.dtype != torch.float32:
            raise RunError(f"{name} trains in {p.dtype}; master weights must be float32.")
    expected = {"projector"} | {"lora": {"LoRA"}, "qlora": {"LoRA"}, "full": {"LLM", "embeddings", "lm_head"}}.get(
        tune, set()
    )
    training = {part for part, c in counts.items() if c["trainable"]}
    if training - expected or any(counts[p]["trainable"] != counts[p]["parameters"] for p in expected & set(counts)):
        raise RunError(
            f"With tune '{tune}', {sorted(expected)} must train whole and nothing else, but {sorted(training)} do."
        )
    quantized = Counter(part_of(n) for n in quantized_linears(model))
    if bool(quantized) != (tune == "qlora") or set(quantized) - {"LLM"}:
        raise RunError(f"With tune '{tune}', 4-bit linears are in: {dict(quantized)}.")
    lora = len(lora_modules(model))
    return [
        Part(
            part,
            c["parameters"],
            c["trainable"],
            "+".join(sorted(dtypes[part])),
            quantized[part],
            lora if part == "LoRA" else 0,
        )
        for part, c in counts.items()
    ]


def audit_rows(parts: list[Part]) -> list[dict]:
    """The audit as plain values, for a manifest or JSON."""
    return [asdict(p) for p in parts]
