"""The loss of a batch, with logits computed only where there is a label.

In: a batch of `data.collate`. Out: the sum of the cross-entropies of all labelled positions divided by `normalizer`. At
LLaVA's proportions nine positions in ten have no label, so their logits are never made.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from ..data.tokens import IGNORE
from .features import install_features


def install_loss(llava: torch.nn.Module) -> None:
    """Makes `llava(..., labels=…, normalizer=…)` return that loss, and no logits. Without labels nothing changes.

    Images may come as `image_features` [images, patches, width] instead of `pixel_values`.
    """
    install_features(llava)
    plain = types.MethodType(type(llava).forward, llava)

    def forward(
        self: Any, *args: Any, labels: torch.Tensor | None = None, normalizer: Any = None,
        image_features: torch.Tensor | None = None, **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:  # fmt: skip
        if image_features is not None:
            kwargs["pixel_values"] = image_features  # see `install_features`
        if labels is None:
            return plain(*args, **kwargs)
        hidden = self.model(*args, use_cache=False, **kwargs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        labelled = targets != IGNORE
        logits = self.lm_head(hidden[labelled]).float()
        loss = torch.nn.functional.cross_entropy(logits, targets[labelled], reduction="sum")
        if kwargs.get("pixel_values") is None:
            loss = loss + _idle_image_path(self)
        return LlavaCausalLMOutputWithPast(loss=loss / (labelled.sum() if normalizer is None else normalizer))

    llava.forward = types.MethodType(functools.wraps(type(llava).forward)(forward), llava)


def _idle_image_path(llava: torch.nn.Module) -> torch.Tensor:
    """A zero that depends on projector and vision tower: in a batch of text alone they would have no gradient, which DDP
    waits for."""
    projector = llava.model.multi_modal_projector
    weight = projector.linear_1.weight
    zero = 0.0 * projector(weight.new_zeros(1, weight.shape[1])).sum()
    return zero + sum(0.0 * p.sum() for p in llava.model.vision_tower.parameters() if p.requires_grad)
