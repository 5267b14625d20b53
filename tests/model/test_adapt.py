"""What trains, counted on the real shapes and asserted on the embedded base."""

from __future__ import annotations

import pytest
import torch
from conftest import LLMS, TOWER
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qllava.errors import RunError
from qllava.model.adapt import audit, make_trainable
from qllava.model.build import load_model
from qllava.model.lora import lora_layers
from qllava.model.projector import projector_of
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts, Quantization

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")
SHAPES = {  # modules, LoRA parameters, projector parameters
    "7b": (224, 319_815_680, 20_979_712),
    "13b": (280, 500_695_040, 31_467_520),
}


@pytest.mark.parametrize("size", SHAPES)
def test_counts_on_the_real_shapes(size):
    modules, lora, projector = SHAPES[size]
    text, vision = LlamaConfig(**LLMS[size], vocab_size=32064), CLIPVisionConfig(**TOWER)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
        ).requires_grad_(False)
        model = make_trainable(model, recipe("lora", r=128))
    found = lora_layers(model)
    assert len(found) == modules
    assert all(name.startswith("model.language_model.layers.") for name in found)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == lora
    assert sum(p.numel() for p in projector_of(model).parameters()) == projector
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == lora + projector


def recipe(tune, r=4):
    values = {
        "stage": "instruct", "tune": tune, "base": EMBEDDED.model_dump(), "data": [{"path": "x"}], "output_dir": "x",
        "global_batch_size": 1, "per_device_train_batch_size": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    return resolve_recipe(values | ({"lora": {"r": r, "lora_alpha": 2 * r}} if "lora" in tune else {}))


def build(tune, dtype=torch.bfloat16):
    model = load_model(EMBEDDED, dtype, torch.device("cpu"), Quantization() if tune == "qlora" else None)
    return make_trainable(model, recipe(tune))


@pytest.mark.parametrize(
    ("tune", "training"),
    [
        ("projector", {"projector"}),
        ("lora", {"projector", "LoRA"}),
        ("qlora", {"projector", "LoRA"}),
        ("full", {"projector", "LLM", "lm_head", "embeddings"}),
    ],
)
def test_each_mode_trains_its_parts_in_float32(tune, training):
    parts = {p.part: p for p in audit(build(tune), recipe(tune))}
    assert {name for name, p in parts.items() if p.trainable} == training
    assert all(parts[name].dtype == "float32" and parts[name].trainable == parts[name].parameters for name in training)
    assert parts["vision tower"].dtype == "bfloat16"  # no float32 copy of the frozen tower
    assert parts["LLM"].quantized == (28 if tune == "qlora" else 0)


def test_the_audit_stops_on_a_projector_in_bfloat16():
    model = build("lora")
    projector_of(model).to(torch.bfloat16)
    with pytest.raises(RunError, match="must be float32"):
        audit(model, recipe("lora"))


def test_the_audit_stops_when_something_else_trains():
    model = build("lora")
    next(p for n, p in model.named_parameters() if "vision_tower" in n).data = torch.zeros(1)
    next(p for n, p in model.named_parameters() if "vision_tower" in n).requires_grad_(True)
    with pytest.raises(RunError, match="must train whole and nothing else"):
        audit(model, recipe("lora"))


def test_the_audit_stops_when_lora_is_frozen():
    model = build("lora")
    next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    with pytest.raises(RunError, match="must train whole"):
        audit(model, recipe("lora"))
