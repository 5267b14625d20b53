"""How large a recipe's model and artifacts will be, from configurations alone: no weight is read.

In: a recipe. Out: parameters, and bytes on disk. Checked against the original's counts (spec: 224 modules and 319,815,680
LoRA parameters for 7B at rank 128, 20,979,712 in the projector).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlavaConfig

from ..recipe.schema import Parts, Recipe
from .adapt import make_trainable
from .base import config_of, llava_config, locate, read_config, shaped
from .lora import is_plain, lora_layers
from .projector import projector_of, row_ends
from .tiles import model_class
from .towers import vision_of


@dataclass(frozen=True)
class Size:
    """Numbers of parameters."""

    total: int  # of the base
    language_model: int  # with lm_head
    projector: int
    lora: int
    lora_modules: int
    trainable: int  # of all that the recipe trains


def size_of(recipe: Recipe) -> Size:
    """Sizes of the recipe's model, made without weights.

    Raises:
        UserError: the base has no configuration to read.
    """
    base = locate(recipe.base)
    config = config_of(base) if isinstance(base, str) else _config(base)
    with torch.device("meta"):
        model = model_class(config)(config).requires_grad_(False)
        total, language = _count(model), _count(model.model.language_model)
        language += 0 if config.tie_word_embeddings else _count(model.lm_head)
        model = make_trainable(model, recipe)
    return Size(
        total=total,
        language_model=language,
        projector=_count(projector_of(model)) + sum(p.numel() for p in row_ends(model).values()),
        lora=sum(p.numel() for n, p in model.named_parameters() if "lora_" in n),
        lora_modules=len(lora_layers(model)),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _config(parts: Parts) -> LlavaConfig:
    """Of the parts' own vocabulary: a tokenizer may not be there yet."""
    tower, llm = read_config(parts.vision_tower), read_config(parts.llm)
    plain = llava_config(
        vision_of(tower), llm, llm.vocab_size, parts.vision_feature_layer, parts.vision_feature_select_strategy
    )
    return shaped(plain, parts)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def disk_needed(recipe: Recipe, size: Size | None = None, copies: int = 0) -> dict[str, int | str]:
    """Bytes that a run writes at most: checkpoints (weights in float32 and the optimizer's two moments) and the artifact.

    Args:
        size: of the recipe, where it has been asked for before.
        copies: of the weights that train, which the engine adds to a checkpoint.
    """
    size = size or size_of(recipe)
    weights = 4 * (size.total if recipe.tune == "full" else size.trainable)  # of a model all, also what is frozen
    optimizer = (8 + 4 * copies) * size.trainable
    weights += 0 if is_plain(recipe) else 4 * size.lora  # the companion
    kept = (recipe.save_total_limit or 0) + 1  # the next one is written before the oldest goes
    per_checkpoint = weights + optimizer
    limit = f"{kept} checkpoints" if recipe.save_total_limit else "1 checkpoint and as many more as are saved"
    merged = (
        2 * size.total if recipe.adapter is not None and recipe.adapter_start == "merge-then-new" else 0
    )  # bfloat16
    return {
        "bytes": kept * per_checkpoint + weights + merged,
        "what": f"{limit} of {per_checkpoint / 2**20:,.0f} MiB, the artifact {weights / 2**20:,.0f} MiB",
        "checkpoint": per_checkpoint,
        "trainable_parameters": size.trainable,
    }
