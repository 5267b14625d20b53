"""A small LLM with LoRA, and what autograd keeps of it: what tests of the fused layers and of the planner share."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

from qllava.data.pack import Layout
from qllava.model.attention import install_attention
from qllava.model.fused import fuse

HIDDEN, MIDDLE, HEADS = 64, 176, 4
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def language_model(dtype=torch.float32, layers=2, kv_heads=HEADS, lora=True, middle=MIDDLE, hidden=HIDDEN, **options):
    """A small LLM with LoRA whose B is not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=middle, num_attention_heads=HEADS, num_key_value_heads=kv_heads,
        num_hidden_layers=layers, vocab_size=32,
    )  # fmt: skip
    model = LlamaModel(config).requires_grad_(False).to(dtype)
    if not lora:
        return model
    options = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": LINEARS} | options
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, p in adapted.named_parameters():
        if p.requires_grad:
            p.data = torch.randn_like(p, dtype=torch.float64 if dtype == torch.float64 else torch.float32) * 0.1
            assert "lora_" in name
    return adapted


def core(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Kept:
    """Bytes of what autograd keeps, parameters left out."""

    def __init__(self, model):
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.found = {}

    def __call__(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.found[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes again
        return tensor

    @property
    def total(self):
        return sum(size for size, _ in self.found.values())


def kept(fused, dtype=torch.bfloat16, positions=128, layers=2, hidden=HIDDEN, recomputed=False, **options):
    model = language_model(dtype, layers=layers, hidden=hidden, **options).train()
    install_attention(core(model))
    if fused:
        fuse(core(model))
    if recomputed:
        core(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    note, x = Kept(model), torch.randn(1, positions, hidden, dtype=dtype).requires_grad_()
    packed = {"layout": Layout(((0, positions),), 1), "attention_mask": torch.empty(1, 1, 0, 0)}
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        core(model)(inputs_embeds=x, use_cache=False, **packed)
    return note.total
