"""How large a recipe's model and artifacts will be, from configurations alone: no weight is read.

In: a recipe. Out: parameters, and bytes on disk. Checked against the original's counts (spec: 224 modules and 319,815,680
LoRA parameters for 7B at rank 128, 20,979,712 in the projector).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from ..recipe.schema import Parts, Recipe
from .adapt import LANGUAGE
from .build import locate, read_config


@dataclass(frozen=True)
class Size:
    """Numbers of parameters."""

    total: int
    language_model: int  # with lm_head
    projector: int
    lora: int
    lora_modules: int

    def trainable(self, tune: str) -> int:
        """Parameters that a run with this `tune` trains."""
        extra = {"projector": 0, "full": self.language_model, "lora": self.lora, "qlora": self.lora}[tune]
        return self.projector + extra


def size_of(base: str | Parts, rank: int) -> Size:
    """Sizes of the base with LoRA of that rank on the LLM's linears.

    Raises:
        UserError: the base has no configuration to read.
    """
    base = locate(base)
    if isinstance(base, str):
        config = read_config(base)
    else:
        tower, llm = read_config(base.vision_tower), read_config(base.llm)
        config = LlavaConfig(
            vision_config=getattr(tower, "vision_config", tower).to_dict(), text_config=llm.to_dict(),
            tie_word_embeddings=llm.tie_word_embeddings,
        )  # fmt: skip
    with torch.device("meta"):
        model = Llava(config)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(LANGUAGE)]
    language = model.model.language_model
    return Size(
        total=count(model),
        language_model=count(language) + (0 if config.tie_word_embeddings else count(model.lm_head)),
        projector=count(model.model.multi_modal_projector),
        lora=sum(rank * (m.in_features + m.out_features) for m in linears),
        lora_modules=len(linears),
    )


def disk_needed(recipe: Recipe) -> dict[str, int | str]:
    """Bytes that a run writes at most: checkpoints (weights in float32 and the optimizer's two moments) and the artifact."""
    trained = size_of(recipe.base, recipe.lora.r).trainable(recipe.tune)
    weights, optimizer = 4 * trained, 8 * trained
    kept = (recipe.save_total_limit or 0) + 1  # the next one is written before the oldest goes
    per_checkpoint = weights + optimizer
    limit = f"{kept} checkpoints" if recipe.save_total_limit else "1 checkpoint and as many more as are saved"
    return {
        "bytes": kept * per_checkpoint + weights,
        "what": f"{limit} of {per_checkpoint / 2**20:,.0f} MiB, the artifact {weights / 2**20:,.0f} MiB",
        "trainable_parameters": trained,
    }
