"""The loss of a batch, with logits computed only where there is a label, a few at a time.

In: a batch of `data.collate` or `data.pack`. Out: the sum of the cross-entropies of all labelled positions divided by
`normalizer`. At LLaVA's proportions nine positions in ten have no label, so their logits are never made.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from ..data.pack import Layout
from ..data.tokens import IGNORE
from .attention import mask_for
from .features import install_features
from .projectors import features_shape

LOGITS_AT_ONCE = 1 << 22  # 16 MB in float32


def install_loss(llava: torch.nn.Module, attention: str = "auto", sharded: bool = False) -> None:
    """Makes `llava(..., labels=…, normalizer=…)` return that loss, and no logits. Without labels nothing changes.

    Images may come as `image_features` [images, patches, width] instead of `pixel_values`; a packed row comes with its
    `layout` and `predictors`.

    Args:
        attention: of packed rows; see `attention.mask_for`.
        sharded: each process holds a part of the weights, so that all must run the same layers in the same order.
    """
    install_features(llava)
    plain = types.MethodType(type(llava).forward, llava)

    def forward(
        self: Any, *args: Any, labels: torch.Tensor | None = None, normalizer: Any = None, layout: Layout | None = None,
        predictors: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:  # fmt: skip
        if image_features is not None:
            kwargs["pixel_values"] = image_features  # see `install_features`
        if labels is None:
            return plain(*args, **kwargs)
        if kwargs.get("pixel_values") is None:
            kwargs["pixel_values"] = _idle_image(self, sharded)
        labelled = labels != IGNORE
        labelled[:, 0] = False  # nothing predicts it
        if layout is None:
            hidden = self.model(*args, use_cache=False, **kwargs).last_hidden_state[:, :-1][labelled[:, 1:]]
        else:
            mask = mask_for(layout, labels.shape[1], labels.device, attention)
            only = predictors if getattr(self.model.language_model, "takes_only", False) else None
            kwargs |= {"layout": layout, "attention_mask": mask, "only": only}
            hidden = self.model(*args, use_cache=False, **kwargs).last_hidden_state[0]
            hidden = hidden if only is not None else hidden[predictors]
        loss = head_loss(self.lm_head, hidden, labels[labelled])
        return LlavaCausalLMOutputWithPast(
            loss=loss / (labelled.sum().clamp(min=1) if normalizer is None else normalizer)
        )

    llava.forward = types.MethodType(functools.wraps(type(llava).forward)(forward), llava)


def head_loss(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the cross-entropies of `head(hidden)` [positions, vocabulary] and `targets` [positions], in float32."""
    if head.weight.requires_grad:
        return cross_entropy(head(hidden).float(), targets, reduction="sum")
    return _FrozenHeadLoss.apply(hidden, targets, head)


class _FrozenHeadLoss(torch.autograd.Function):
    """As the head does not learn, the gradient of its input is all that is wanted, and is made along with the loss: the
    logits of a few positions at a time, and none of them kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden)
        rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        for start in range(0, len(targets), rows):
            part, wanted = slice(start, start + rows), targets[start : start + rows, None]
            made = head(hidden[part])
            logits = made.float()
            total += (logits.logsumexp(-1, keepdim=True) - logits.gather(1, wanted)).sum()
            shares = logits.softmax(-1)
            shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
            grad[part] = shares.to(made.dtype) @ head.weight.to(made.dtype)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * grad.to(of_hidden.dtype), None, None


def _idle_image(llava: torch.nn.Module, sharded: bool) -> torch.Tensor:
    """What a batch of text alone takes for an image, which no position then reads: projector and vision tower get gradients of
    zero, and DDP waits for some.

    It goes the way that images go, so that all processes run the same layers in the same order, and gradients come in one order:
    ZeRO adds up those of several processes as they come, and gathers weights by a trace of the layers. A black picture where
    the tower trains or is `sharded`, else a single patch as the projector reads it (a resampler: all of an image).
    """
    tower, projector, size = (
        llava.model.vision_tower,
        llava.model.multi_modal_projector,
        llava.config.vision_config.image_size,
    )
    if sharded or any(p.requires_grad for p in tower.parameters()):
        like = next(tower.parameters())
        return like.new_zeros(1, 3, size, size)
    return next(projector.parameters()).new_zeros(1, *features_shape(projector))
