"""4-bit quantisation of the LLM's linears, and of nothing else.

In: the recipe's `quantization` block. Out: a `BitsAndBytesConfig`; after loading, a guard and a check.

Two facts of today's stack are worked around here. A skip list must name modules by their full paths and replaces the
default that spares `lm_head`; names without `model.` match nothing, silently (transformers 5.23, quantizers_utils.py). And
on CPUs with AVX512-BF16, bitsandbytes repacks a weight in place in the first forward pass in evaluation mode, after which
gradients and merges are wrong without a word (bitsandbytes 0.50, nn/modules.py, Linear4bit.forward).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..errors import RunError
from ..recipe.schema import Quantization
from .device import DTYPES

SPARED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # full paths in a whole LLaVA


def bits_config(quantization: Quantization, dtype: torch.dtype, whole: bool) -> BitsAndBytesConfig:
    """The `BitsAndBytesConfig` for a whole LLaVA, or (`whole=False`) for an LLM on its own."""
    compute = quantization.bnb_4bit_compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype if compute == "auto" else DTYPES[compute],
        llm_int8_skip_modules=list(SPARED) if whole else ["lm_head"],
    )


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every 4-bit linear by its path."""
    import bitsandbytes

    return {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def guard(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on the CPU. To be called before the first forward pass."""
    for module in quantized_linears(model).values():
        module.support_avx512bf16_for_cpu = False


def check(model: nn.Module, language_prefix: str = "model.language_model.") -> int:
    """Counts the 4-bit linears, after making sure that they are all of the LLM's linears and no other.

    Raises:
        RunError: another module is quantised, or one of the LLM's is not.
    """
    quantized = set(quantized_linears(model))
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(language_prefix)}
    if quantized != linears or not quantized:
        extra, missing = sorted(quantized - linears), sorted(linears - quantized)
        raise RunError(
            f"Quantisation went wrong: {len(extra)} module(s) outside the LLM are in 4 bits {extra[:3]}, "
            f"and {len(missing)} of the LLM's linears are not {missing[:3]}."
        )
    return len(quantized)


def is_four_bits(module: nn.Module) -> bool:
    """Whether it is a 4-bit linear."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


@torch.no_grad()
def dequantized_weight(module: nn.Module) -> torch.Tensor:
    """A 4-bit linear's weight [out, in], spelt out in the dtype that it had."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


@torch.no_grad()
def dequantized(module: nn.Module) -> torch.Tensor:
    """A linear's weight [out, in] in float32, whether it is held in 4 bits or plain; always a copy."""
    if is_four_bits(module):
        return dequantized_weight(module).float()
    return module.weight.detach().float().clone()


@torch.no_grad()
def four_bits(weight: torch.Tensor, quantization: Quantization, device: torch.device) -> torch.Tensor:
    """The weight [out, in] rounded to 4 bits as `load_model` would round it, and spelt out again in float32."""
    import bitsandbytes

    held = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type=quantization.bnb_4bit_quant_type,
        compress_statistics=quantization.bnb_4bit_use_double_quant,
    ).to(device)  # fmt: skip
    return bitsandbytes.functional.dequantize_4bit(held.data, held.quant_state).float()


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """The model with every 4-bit linear replaced by a plain one that holds the same weights in float32."""
    for name, module in quantized_linears(model).items():
        weight = dequantized(module)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    for leftover in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if leftover in vars(model):
            delattr(model, leftover)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
