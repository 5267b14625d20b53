"""Which LLMs can stand in a LLaVA: any of transformers' causal ones whose layers lie under `model` and whose head is `lm_head`.

In: an LLM's config. Out: nothing, or a sentence before a weight is read. Llama, Vicuna, Mistral, Qwen2, Qwen3, Phi-3 and Gemma are of
that build; layers with fewer kept activations (`fused_layers`) are Llama's alone, others run as transformers has them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .. import console
from ..errors import UserError

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
KNOWN = "Llama, Vicuna, Mistral, Qwen2, Qwen3, Phi-3 and Gemma are known to do"


def check_llm(config: Any, source: str) -> None:
    """Raises `UserError` where this LLM cannot be a LLaVA's."""
    kind = config.model_type
    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"{source} is a {kind}, not an LLM that continues text; {KNOWN}.")
    if any(getattr(config, name, None) for name in EXPERTS):
        raise UserError(f"{source} is a mixture of experts ({kind}), whose experts LoRA would pass over; {KNOWN}.")
    made = AutoModelForCausalLM._model_mapping[type(config)]
    with torch.device("meta"):
        llm = made(config)
    layers = getattr(getattr(llm, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not hasattr(llm, "lm_head"):
        raise UserError(f"{source} is a {kind}, whose layers and head lie elsewhere than a LLaVA's; {KNOWN}.")


def check_rows(config: Any, max_length: int, packing: bool) -> None:
    """Says so where rows may be longer than what the LLM was trained on.

    Raises:
        UserError: rows are packed, and the LLM attends in a way that packed rows do not.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if most is not None and max_length > most:
        console.note(
            f"max_length is {max_length}, and the LLM was made for {most} positions; what lies behind them it has never seen."
        )
    if not packing:
        return
    if getattr(text, "attn_logit_softcapping", None):
        raise UserError(
            f"packing: this LLM ({text.model_type}) caps its attention's logits, which packed rows leave out. Write packing: false."
        )
    window = window_of(text)
    if window is not None and max_length > window:
        raise UserError(
            f"packing: this LLM ({text.model_type}) sees {window} positions back, and packed rows see all of a sample. Write packing: "
            f"false, or max_length: {window}."
        )


def window_of(text: Any) -> int | None:
    """The positions that the narrowest of an LLM's layers sees; None where each sees all that came before."""
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(text, "sliding_window", None) if slides else None
