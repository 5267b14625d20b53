"""Attention of packed rows: causal within a sample, none across samples, and what samples share seen by all of them.

In: queries, keys and values [1, heads, positions, head dim] and a `data.pack.Layout`. Out: the same as if each sample stood
alone. Three ways, equal within rounding: `segments` by the CPU's flash kernel, `segments` by PyTorch's
`scaled_dot_product_attention` on any device, and `flex`, one FlexAttention kernel with a block mask, which needs a GPU that
torch.compile has a compiler for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..data.pack import Group, Layout
from ..errors import UserError

NAME = "qllava"  # under which transformers finds it
KINDS = ("auto", "segments", "flex")
Call = tuple[int, int, int, int, bool]  # queries from, to; keys from, to; whether causal


def install_attention(language_model: torch.nn.Module) -> None:
    """Makes the LLM's layers attend by `attend`, which is PyTorch's own attention wherever there is no layout.

    Raises:
        UserError: the LLM drops attention weights, which packed rows do not.
    """
    if getattr(language_model.config, "attention_dropout", 0.0):
        raise UserError(
            "packing: this LLM's config has an attention_dropout, which packed rows leave out. Write packing: false."
        )
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, layout: Layout | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """As transformers' attention functions: [1, heads, positions, head dim] in, [1, positions, heads, head dim] out."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotated in float32, q and k would not fit v
        query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
    if not isinstance(attention_mask, torch.Tensor):  # a block mask
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling)[0], None
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    by = _Flash.apply if kind == "cpu" else _plain
    return by(query, key, value, layout, scaling or query.shape[-1] ** -0.5).transpose(1, 2).contiguous(), None


def mask_for(layout: Layout, length: int, device: torch.device, kind: str = "auto") -> Any:
    """What goes through the LLM as attention mask for a packed row: a block mask for `flex`; for `segments` an empty tensor
    of four dimensions, which transformers passes on as it is.

    Args:
        length: of the row, padding included.
    """
    if kind == "flex" or (kind == "auto" and device.type == "cuda"):
        return block_mask(layout, length, device)
    return torch.empty(1, 1, 0, 0, device=device)


def block_mask(layout: Layout, length: int, device: torch.device) -> Any:
    """FlexAttention's block mask for the layout."""
    from torch.nn.attention.flex_attention import create_block_mask

    group, branch = (t.to(device) for t in _numbers(layout, length))

    def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
        mine = (branch[key] == 0) | (branch[key] == branch[query])
        return (group[query] == group[key]) & (query >= key) & mine

    return create_block_mask(sees, None, None, length, length, device=str(device))


def _numbers(layout: Layout, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each position its group, and its branch in it; 0 is what is shared. Padding is group -1."""
    group, branch = torch.full((length,), -1), torch.zeros(length, dtype=torch.long)
    for number, bounds in enumerate(layout.groups):
        group[bounds[0] : bounds[-1]] = number
        for i, (start, end) in enumerate(itertools.pairwise(bounds[1:])):
            branch[start:end] = i + 1
    return group, branch


def _calls(layout: Layout) -> Iterator[Call]:
    """The layout as calls of a kernel: of each group what is shared; then its branches, all on what is shared, and each on
    itself."""
    for start, trunk, *ends in layout.groups:
        if trunk > start:
            yield start, trunk, start, trunk, True
        if ends and trunk > start:
            yield trunk, ends[-1], start, trunk, False
        for begin, end in itertools.pairwise([trunk, *ends]):
            yield begin, end, begin, end, True


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """Group by group, under a mask where there are branches; on any device."""
    parts, at = [], 0
    for bounds in layout.groups:
        start, at = bounds[0], bounds[-1]
        mask = None if len(bounds) == 2 else _tree_mask(tuple(b - start for b in bounds), query.device)
        mine = (t[:, :, start:at] for t in (query, key, value))
        parts.append(scaled_dot_product_attention(*mine, attn_mask=mask, is_causal=mask is None, scale=scale))
    parts.append(torch.zeros_like(query[:, :, at:]))
    return torch.cat(parts, 2)


@functools.lru_cache(maxsize=32)
def _tree_mask(bounds: Group, device: torch.device) -> torch.Tensor:
    """[positions, positions] of a group: whether one sees the other."""
    mask = torch.ones(bounds[-1], bounds[-1], dtype=torch.bool, device=device).tril_()
    for start, stop in itertools.pairwise(bounds[1:]):
        mask[stop:, start:stop] = False
    return mask


class _Flash(torch.autograd.Function):
    """Call by call, by the CPU's flash kernel, into one output: PyTorch's own graph would hold a copy for every call, and a
    gradient of the whole row for every slice.

    A branch attends to what is shared and to itself in two calls, whose results are averaged by the sums of their
    exponentials, which is what one call would have given. The backward kernel, given the joint result and sum, makes each
    call's share of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        batch, heads, length, width = query.shape
        out = query.new_zeros(batch, length, heads, width).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)
        sums = torch.full((batch, heads, length), -torch.inf, dtype=wide)
        for a, b, c, d, causal in _calls(layout):
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], 0.0, causal, scale=scale
            )
            before, both = sums[:, :, a:b], torch.logaddexp(sums[:, :, a:b], logsumexp)
            if a == c:  # nothing of these positions is there yet, or what is shared
                out[:, :, a:b] = _average(out[:, :, a:b], part, before, logsumexp, both)
            else:
                out[:, :, a:b] = part
            sums[:, :, a:b] = both
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, out, sums = ctx.saved_tensors
        grads = [torch.zeros_like(t) for t in (query, key, value)]
        for a, b, c, d, causal in _calls(ctx.layout):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, a:b], query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], out[:, :, a:b],
                sums[:, :, a:b].contiguous(), 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            for whole, part, (start, end) in zip(grads, parts, ((a, b), (c, d), (c, d)), strict=True):
                whole[:, :, start:end] += part
        return *grads, None, None


def _average(
    first: torch.Tensor, second: torch.Tensor, before: torch.Tensor, after: torch.Tensor, both: torch.Tensor
) -> torch.Tensor:
    """Two attentions of the same queries as one; `first` may be none, where `before` is minus infinity."""
    shares = [torch.exp(sums - both)[..., None] for sums in (before, after)]
    return (first * shares[0] + second * shares[1]).to(first.dtype)
