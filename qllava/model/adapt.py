"""What trains: LoRA, the projector in float32, the vision tower if asked, all else frozen. And the proof that it is so.

In: a frozen LLaVA and a recipe. Out: the model to train (a `PeftModel` where there is LoRA), and the audit's table.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RunError
from ..recipe.rules import has_lora
from ..recipe.schema import Recipe
from .lora import COMPANION, add_lora, lora_layers
from .projector import llava_of, projector_of, row_ends
from .quantize import quantized_linears
from .tiles import ROW_END
from .tower import tower_parameters

PROJECTOR, TOWER = "projector", "vision tower"
LORA, TOWER_LORA, FROZEN_LORA = "LoRA", "vision tower's LoRA", "LoRA, frozen companion"


def make_trainable(model: nn.Module, recipe: Recipe, like: Any = None) -> nn.Module:
    """Switches on what the recipe trains, with float32 master weights, and leaves all else frozen.

    Args:
        like: a `LoraConfig` whose shape LoRA takes, instead of the recipe's; see `lora.add_lora`.
    """
    if recipe.tune_vision_tower == "full":
        read = tower_parameters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in read)
        model.model.vision_tower.float()  # the layers behind what is read run, too, and in one dtype with the rest
    if recipe.tune == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    train_anyway = {n for n, p in model.named_parameters() if p.requires_grad}
    if has_lora(recipe):
        model = add_lora(model, recipe, like)
        for name, parameter in model.named_parameters():  # PEFT freezes what is not its own
            if name.removeprefix("base_model.model.") in train_anyway:
                parameter.requires_grad_(True)
    projector_of(model).requires_grad_(True)
    for token in row_ends(model).values():
        token.requires_grad_(True)
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
    if f".{COMPANION}." in name:
        return FROZEN_LORA
    if "lora_" in name:
        return TOWER_LORA if "vision_tower" in name else LORA
    for mark, part in (
        ("vision_tower", TOWER),
        ("multi_modal_projector", PROJECTOR),
        (ROW_END, PROJECTOR),
        ("lm_head", "lm_head"),
    ):
        if mark in name:
            return part
    return "embeddings" if "embed_tokens" in name else "LLM"


def audit(model: nn.Module, recipe: Recipe) -> list[Part]:
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
    expected = {PROJECTOR} | ({LORA} if recipe.tune in ("lora", "qlora") else set())
    expected |= {"LLM", "embeddings", "lm_head"} if recipe.tune == "full" else set()
    expected |= {"frozen": set(), "full": {TOWER}, "lora": {TOWER_LORA}}[recipe.tune_vision_tower]
    whole = {part: c["parameters"] for part, c in counts.items()}
    if TOWER in expected:  # but for what lies behind the layer that is read
        llava = llava_of(model)
        read = tower_parameters(llava)
        whole[TOWER] = sum(p.numel() for n, p in llava.named_parameters() if n in read)
    training = {part for part, c in counts.items() if c["trainable"]}
    if llava_of(model).config.tie_word_embeddings:  # then the embeddings are the head
        expected -= {"lm_head"}
    if expected - set(counts):
        raise RunError(
            f"With tune '{recipe.tune}', {sorted(expected - set(counts))} must train, and the model has none."
        )
    if training - expected or any(counts[p]["trainable"] != whole[p] for p in expected & set(counts)):
        raise RunError(
            f"With tune '{recipe.tune}', {sorted(expected)} must train whole and nothing else, but {sorted(training)} do."
        )
    quantized = Counter(part_of(n) for n in quantized_linears(model))
    if bool(quantized) != (recipe.tune == "qlora") or set(quantized) - {"LLM"}:
        raise RunError(f"With tune '{recipe.tune}', 4-bit linears are in: {dict(quantized)}.")
    carriers = Counter(TOWER_LORA if "vision_tower" in n else LORA for n in lora_layers(model))
    return [
        Part(
            part,
            c["parameters"],
            c["trainable"],
            "+".join(sorted(dtypes[part])),
            quantized[part],
            carriers[part],
        )
        for part, c in counts.items()
    ]


def audit_rows(parts: list[Part]) -> list[dict]:
    """The audit as plain values, for a manifest or JSON."""
    return [asdict(p) for p in parts]
