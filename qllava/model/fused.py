"""The LLM's layers as three functions that keep little for the backward pass: norm and q, k, v; o and the residual; norm,
SwiGLU and the residual. The same loss and gradients as PEFT's layers, within rounding.

In: a LLaVA whose LLM is frozen, with LoRA by PEFT or without. Out: the same model, its layers of another class.

What a frozen linear needs for its gradient is its weight alone, and what LoRA's A needs is the linear's input, which a norm
makes anew from the residual stream. So of a layer only this is kept: its input, q, k, v, what attention gives, its middle,
and what gate and up give; in the dtype of the computation. PEFT keeps the norm's output, a copy of it for each linear in A's
dtype, dropout's masks and outputs, and SwiGLU's steps besides. 4-bit weights are spelt out once for each use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, silu
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .quantize import dequantized_weight, is_four_bits

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def fuse(language_model: nn.Module) -> int:
    """Makes every layer that can be a `FusedLayer`; gives their number.

    A layer stays as it is where something of it other than LoRA trains, where LoRA is DoRA, or where it is no Llama's.
    """
    layers = [layer for layer in language_model.layers if can_fuse(layer)]
    for layer in layers:
        layer.__class__ = FusedLayer
    language_model.takes_only = bool(layers) and layers[-1] is language_model.layers[-1]  # see `FusedLayer`
    norm = language_model.norm
    if type(norm) is LlamaRMSNorm and not norm.weight.requires_grad:
        norm.forward = lambda x: _Norm.apply(x, norm.weight, norm.variance_epsilon)
    return len(layers)


def can_fuse(layer: nn.Module) -> bool:
    """Whether the functions here compute what the layer does."""
    if type(layer) is not LlamaDecoderLayer or layer.self_attn.config.hidden_act != "silu":
        return False
    if any(p.requires_grad for n, p in layer.named_parameters() if "lora_" not in n):
        return False
    return all(_is_plain(layer.get_submodule(name)) for name in LINEARS)


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a linear, whole or in 4 bits, with nothing on it but LoRA."""
    base = getattr(module, "base_layer", module)
    if module is not base and (module.lora_variant or module.merged or any(getattr(module, "lora_bias", {}).values())):
        return False
    return type(base) is nn.Linear or is_four_bits(base)


@dataclass
class Adapter:
    """One LoRA on a linear: y += scale · dropout(x) Aᵀ Bᵀ."""

    scale: float
    dropout: float  # share that is dropped; 0 in evaluation
    seed: int  # of its mask, which is drawn again in the backward pass


@dataclass
class Projection:
    """A frozen linear and its adapters; their matrices A [rank, in] and B [out, rank] go apart, as autograd has to see them."""

    base: nn.Module
    adapters: list[Adapter]

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in]."""
        if is_four_bits(self.base):
            return dequantized_weight(self.base).to(dtype)
        return self.base.weight.to(dtype)

    def apply(self, x: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        """[positions, in] to [positions, out]."""
        bias = self.base.bias
        y = linear(x, self.weight(x.dtype), None if bias is None else bias.to(x.dtype))
        for adapter, a, b in self._pairs(matrices):
            y.addmm_(_dropped(x, adapter) @ a.to(x.dtype).T, b.to(x.dtype).T, alpha=adapter.scale)
        return y

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor | None,
        matrices: Sequence[torch.Tensor],
        into: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Gradients of the input, added to `into` if there is one, and of the matrices."""
        weight = self.weight(grad.dtype)
        into = grad @ weight if into is None else into.addmm_(grad, weight)
        found: list[torch.Tensor] = []
        for adapter, a, b in self._pairs(matrices):
            low = (grad @ b.to(grad.dtype)).mul_(adapter.scale)  # [positions, rank]
            dropped, a_low = _dropped(x, adapter), a.to(grad.dtype)
            found += [(low.T @ dropped).to(a.dtype), (grad.T @ (dropped @ a_low.T)).mul_(adapter.scale).to(b.dtype)]
            if adapter.dropout:
                into += (low @ a_low).mul_(_mask(x, adapter))
            else:
                into.addmm_(low, a_low)
        return into, found

    def _pairs(self, matrices: Sequence[torch.Tensor]) -> Any:
        return zip(self.adapters, matrices[::2], matrices[1::2], strict=True)


def _mask(x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    generator = torch.Generator(x.device).manual_seed(adapter.seed)
    keep = 1 - adapter.dropout
    return torch.empty_like(x).bernoulli_(keep, generator=generator).div_(keep)


def _dropped(x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    return x * _mask(x, adapter) if adapter.dropout else x


def _of(module: nn.Module) -> tuple[Projection, list[torch.Tensor]]:
    """A linear as a `Projection` and its active adapters' matrices."""
    if not hasattr(module, "base_layer"):
        return Projection(module, []), []
    adapters: list[Adapter] = []
    matrices: list[torch.Tensor] = []
    for name in () if module.disable_adapters else module.active_adapters:
        if name in module.lora_A:
            dropout = getattr(module.lora_dropout[name], "p", 0.0) if module.training else 0.0
            seed = int(torch.randint(2**62, ())) if dropout else 0  # of the run's own stream, so that it resumes
            adapters.append(Adapter(module.scaling[name], dropout, seed))
            matrices += [module.lora_A[name].weight, module.lora_B[name].weight]
    return Projection(module.base_layer, adapters), matrices


class FusedLayer(LlamaDecoderLayer):
    """A Llama's layer in three functions. (A subclass, so that transformers wraps checkpointing around its `forward`.)"""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, past_key_values: Any = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None, only: torch.Tensor | None = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """As the layer's own. `only`: the positions that the last layer is asked for, as nothing reads the others."""
        if past_key_values is not None:  # an answer under way: one position at a time
            return super().forward(
                hidden_states, attention_mask=attention_mask, past_key_values=past_key_values,
                position_embeddings=position_embeddings, **kwargs,
            )  # fmt: skip
        attention, mlp = self.self_attn, self.mlp
        shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        norm = (self.input_layernorm.weight, self.input_layernorm.variance_epsilon)
        qkv = _call(_NormLinears, flat, norm, (attention.q_proj, attention.k_proj, attention.v_proj))
        query, key, value = (t.view(shape).transpose(1, 2) for t in qkv)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        out, _ = attend(
            attention, query, key, value, attention_mask, dropout=attention.attention_dropout if self.training else 0.0,
            scaling=attention.scaling, **kwargs,
        )  # fmt: skip
        out = out.reshape(flat.shape[0], -1)
        if only is not None and attention.layer_idx == attention.config.num_hidden_layers - 1:
            out, flat, hidden_states = out[only], flat[only], hidden_states[:, only]
        middle = _call(_LinearAdd, out, flat, (attention.o_proj,))
        norm = (self.post_attention_layernorm.weight, self.post_attention_layernorm.variance_epsilon)
        return _call(_Mlp, middle, norm, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)).view_as(hidden_states)


def _call(function: Any, x: torch.Tensor, other: Any, modules: Sequence[nn.Module]) -> Any:
    projections, matrices = zip(*map(_of, modules), strict=True)
    counts = [len(m) for m in matrices]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else modules[0].weight.dtype
    dtype = dtype if dtype.is_floating_point else x.dtype
    with torch.autocast(kind, enabled=False):
        return function.apply(x, other, projections, counts, dtype, *(m for of_one in matrices for m in of_one))


def _shares(matrices: Sequence[torch.Tensor], counts: Sequence[int]) -> list[Sequence[torch.Tensor]]:
    found, at = [], 0
    for count in counts:
        found.append(matrices[at : at + count])
        at += count
    return found


def _normed(x: torch.Tensor, norm: tuple[torch.Tensor, float], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Llama's RMSNorm [positions, width] in `dtype`, and what each position was multiplied with."""
    weight, epsilon = norm
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (weight * (wide * scale).to(x.dtype)).to(dtype), scale


def _norm_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    grad = grad.float().mul_(weight.float()) if grad.dtype != torch.float32 else grad * weight.float()
    straight = x.float().mul_(scale) if x.dtype != torch.float32 else x * scale
    along = (grad * straight).mean(-1, keepdim=True)
    return grad.sub_(straight.mul_(along)).mul_(scale).to(x.dtype)


class _NormLinears(torch.autograd.Function):
    """x → each linear of norm(x)."""

    @staticmethod
    def forward(ctx: Any, x: Any, norm: Any, projections: Any, counts: Any, dtype: torch.dtype, *matrices: Any) -> Any:
        normed, scale = _normed(x, norm, dtype)
        ctx.save_for_backward(x, scale, *matrices)
        ctx.others = norm, projections, counts, dtype
        return tuple(p.apply(normed, m) for p, m in zip(projections, _shares(matrices, counts), strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, scale, *matrices = ctx.saved_tensors
        norm, projections, counts, dtype = ctx.others
        normed = _normed(x, norm, dtype)[0] if matrices else None
        into, found = None, []
        for grad, projection, mine in zip(grads, projections, _shares(matrices, counts), strict=True):
            into, new = projection.backward(grad.reshape(-1, grad.shape[-1]), normed, mine, into)
            found += new
        return _norm_backward(into, x, norm[0], scale), None, None, None, None, *found


class _LinearAdd(torch.autograd.Function):
    """x → residual + linear(x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, residual: Any, projections: Any, counts: Any, dtype: torch.dtype, *matrices: Any
    ) -> Any:
        x = x.to(dtype)
        ctx.save_for_backward(*((x, *matrices) if matrices else ()))
        ctx.projection, ctx.dtype = projections[0], dtype
        return projections[0].apply(x, matrices).add_(residual).to(residual.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, *matrices = ctx.saved_tensors or (None,)
        into, found = ctx.projection.backward(grad.to(ctx.dtype), x, matrices)
        return into, grad, None, None, None, *found


class _Mlp(torch.autograd.Function):
    """x → x + down(silu(gate(norm(x))) · up(norm(x)))."""

    @staticmethod
    def forward(ctx: Any, x: Any, norm: Any, projections: Any, counts: Any, dtype: torch.dtype, *matrices: Any) -> Any:
        shares = _shares(matrices, counts)
        normed, scale = _normed(x, norm, dtype)
        gate, up = (p.apply(normed, m) for p, m in zip(projections[:2], shares[:2], strict=True))
        ctx.save_for_backward(x, scale, gate, up, *matrices)
        ctx.others = norm, projections, counts, dtype
        return projections[2].apply(silu(gate).mul_(up), shares[2]).add_(x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, scale, gate, up, *matrices = ctx.saved_tensors
        norm, projections, counts, dtype = ctx.others
        shares = _shares(matrices, counts)
        lit = silu(gate)
        middle, of_down = projections[2].backward(grad.to(dtype), lit * up if shares[2] else None, shares[2])
        of_up = lit.mul_(middle)
        of_gate = torch.ops.aten.silu_backward(middle.mul_(up), gate)
        del lit, middle
        normed = _normed(x, norm, dtype)[0] if matrices else None
        into, for_gate = projections[0].backward(of_gate, normed, shares[0])
        del of_gate
        into, for_up = projections[1].backward(of_up, normed, shares[1], into)
        return _norm_backward(into, x, norm[0], scale).add_(grad), None, None, None, None, *for_gate, *for_up, *of_down


class _Norm(torch.autograd.Function):
    """x → norm(x), keeping x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        normed, scale = _normed(x, (weight, epsilon), x.dtype)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        return _norm_backward(grad, x, weight, scale), None, None
