"""Attention of packed rows, in each of its ways, against one call under a dense mask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from qllava.data.pack import Layout
from qllava.errors import UserError
from qllava.model import attention

HEADS, WIDTH = 2, 8


@st.composite
def layouts(draw):
    """Groups of any shape, and the length of a row with some padding."""
    groups, at = [], 0
    for _ in range(draw(st.integers(1, 4))):
        bounds = [at, at + draw(st.integers(0, 9))]
        for _ in range(draw(st.integers(0 if bounds[1] > at else 2, 4))):
            bounds.append(bounds[-1] + draw(st.integers(1, 6)))
        if len(bounds) == 3:
            bounds.pop()
        if bounds[-1] == at:
            continue
        groups.append(tuple(bounds))
        at = bounds[-1]
    return Layout(tuple(groups), 0), at + draw(st.integers(0, 5))


def dense(layout, length):
    """Who sees whom, written down position by position."""
    mask = torch.eye(length, dtype=torch.bool)
    for start, trunk, *ends in layout.groups:
        for begin, end in [(start, trunk), *zip([trunk, *ends], ends, strict=False)]:
            for i in range(begin, end):
                mask[i, start : min(i, trunk - 1) + 1] = True
                mask[i, begin : i + 1] = True
    return mask


def inputs(length, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (1, length, HEADS, WIDTH)
    return [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


@settings(deadline=None, max_examples=40)
@given(layouts())
def test_each_way_equals_one_call_under_a_dense_mask(case):
    layout, length = case
    real = max((g[-1] for g in layout.groups), default=0)
    if not real:
        return
    q, k, v = inputs(length)
    weight = torch.randn(1, HEADS, length, WIDTH, dtype=torch.float64)
    weight[:, :, real:] = 0
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense(layout, length))
    wanted = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    for way in (attention._plain, attention._Flash.apply):
        out = way(q, k, v, layout, WIDTH**-0.5)
        torch.testing.assert_close(out[:, :, :real], plain[:, :, :real])
        for got, expected in zip(torch.autograd.grad((out * weight).sum(), (q, k, v)), wanted, strict=True):
            torch.testing.assert_close(got, expected)


def test_the_block_mask_of_a_gpu_says_the_same():
    """FlexAttention has no backward pass on a CPU; its forward pass shows what the mask lets through."""
    layout, length = Layout(((0, 9), (9, 20, 31, 33, 50), (50, 50, 55, 58)), 0), 64
    q, k, v = (t.detach().float() for t in inputs(length))
    out = flex_attention(q, k, v, block_mask=attention.block_mask(layout, length, q.device))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense(layout, length))
    torch.testing.assert_close(out[:, :, :58], plain[:, :, :58], rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # it is compiled
def test_flex_attention_as_a_gpu_would_take_it_gives_the_same():
    layout, length = Layout(((0, 9), (9, 20, 31, 33, 50), (50, 120)), 0), 128
    query, key, value = (torch.randn(1, heads, length, 32) for heads in (4, 2, 2))
    module = SimpleNamespace(training=False, num_key_value_groups=2)
    with torch.no_grad():
        by_flex, by_segments = (
            attention.attend(
                module,
                query,
                key,
                value,
                attention.mask_for(layout, length, query.device, kind),
                32**-0.5,
                layout=layout,
            )[0]
            for kind in ("flex", "segments")
        )
    torch.testing.assert_close(by_flex[:, :120], by_segments[:, :120], rtol=1e-5, atol=1e-5)


def test_packed_rows_refuse_dropped_attention():
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=8)
    config.attention_dropout = 0.1
    with pytest.raises(UserError, match="attention_dropout"):
        attention.install_attention(LlamaModel(config))
