"""What today's libraries get wrong without a word: each with the fault shown, and what qllava makes of it.

Elsewhere: the skip list and the repacked weights (tests/model/test_quantize.py), PiSSA and rank patterns
(tests/model/test_lora.py, test_begin.py), missing optimizer state (test_interrupt.py), NaN (test_guards.py), samples without
supervision and the end token (tests/data/test_sample.py, test_tokens.py).
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from qllava.api import load, train
from qllava.model.adapt import make_trainable
from qllava.model.build import load_model
from qllava.model.lora import lora_layers
from qllava.model.projector import llava_of, projector_of
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts, Quantization
from qllava.train.begin import _checkpoint

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


def base(dtype=torch.float32, quantization=None):
    return load_model(EMBEDDED, dtype, torch.device("cpu"), quantization)


def test_peft_alone_does_not_save_a_projector_that_trains(recipe_values, tmp_path):
    model = get_peft_model(base(), LoraConfig(target_modules=r".*language_model.*q_proj"))
    projector_of(model).requires_grad_(True)
    model.save_pretrained(tmp_path / "peft")
    assert not any("projector" in k for k in load_file(tmp_path / "peft" / "adapter_model.safetensors"))  # the fault
    artifact = train(resolve_recipe({**recipe_values, "tune": "lora", "max_steps": 2})).artifact
    trained = load_file(artifact / "projector.safetensors")
    now, before = projector_of(load(artifact).model).state_dict(), projector_of(base()).state_dict()
    assert all(torch.equal(now[k].float(), trained[k]) and not torch.equal(now[k], before[k]) for k in trained)
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        assert (checkpoint / "projector.safetensors").is_file()


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], "all-linear"])
def test_names_hit_the_vision_tower(recipe_values, targets):
    hit = get_peft_model(base(), LoraConfig(target_modules=targets))
    assert any("vision_tower" in n for n in lora_layers(hit))  # the fault
    ours = make_trainable(base(), resolve_recipe({**recipe_values, "tune": "lora"}))
    assert all(n.startswith("model.language_model.layers.") for n in lora_layers(ours))


def test_gradient_checkpointing_with_peft_puts_the_frozen_tower_into_the_graph(recipe_values):
    def tower_in_graph(model):
        seen = []
        tower = llava_of(model).model.vision_tower
        tower.register_forward_hook(lambda m, i, o: seen.append(o.last_hidden_state.requires_grad))
        edge = model.config.vision_config.image_size
        image = model.config.image_token_index
        ids = torch.tensor([[1, *[image] * model.config.image_seq_length, 5]])
        model.train()(input_ids=ids, pixel_values=torch.zeros(1, 3, edge, edge))
        return seen[0]

    faulty = get_peft_model(base(), LoraConfig(target_modules=r".*language_model.*q_proj"))
    faulty.enable_input_require_grads()  # what TRL and PEFT do
    assert tower_in_graph(faulty)  # the fault: stored, recomputed and back-propagated for nothing
    recipe = resolve_recipe({**recipe_values, "tune": "lora", "gradient_checkpointing": True})
    ours = make_trainable(base(), recipe)
    _checkpoint(ours, recipe)
    assert not tower_in_graph(ours)


def test_peft_makes_a_float32_copy_of_the_tower():
    from peft import prepare_model_for_kbit_training

    model = base(torch.bfloat16, Quantization())
    tower = next(p for n, p in model.named_parameters() if "vision_tower" in n)
    assert tower.dtype == torch.bfloat16
    faulty = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    assert next(p for n, p in faulty.named_parameters() if "vision_tower" in n).dtype == torch.float32  # the fault


def test_the_masters_stay_float32_where_trl_casts_them_to_bfloat16(recipe_values, tmp_path, monkeypatch):
    """And so nearly all of the projector moves in one step of QLoRA at 2e-5, in bfloat16."""
    from qllava.train.trainer import LlavaTrainer

    seen = {}
    plain = LlavaTrainer.create_optimizer

    def create_optimizer(self, *args, **kwargs):
        seen.update({n: p.dtype for n, p in self.model.named_parameters() if p.requires_grad})
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlavaTrainer, "create_optimizer", create_optimizer)
    rates = {"learning_rate": 2e-5, "projector_learning_rate": 2e-5, "warmup_steps": 0, "dtype": "bfloat16"}
    artifact = train(resolve_recipe({**recipe_values, **rates, "max_steps": 1})).artifact
    assert seen and set(seen.values()) == {torch.float32}
    before, after = projector_of(base()).state_dict(), load_file(artifact / "projector.safetensors")
    moved = sum(int((before[k].to(torch.bfloat16).float() != after[k]).sum()) for k in after)
    assert moved >= 0.99 * sum(v.numel() for v in after.values())
    in_bfloat16 = sum(int((before[k].to(torch.bfloat16) != after[k].to(torch.bfloat16)).sum()) for k in after)
    assert in_bfloat16 < 0.5 * moved  # the fault: masters in bfloat16 would have rounded most of it away


def test_an_adapter_is_loaded_by_peft_without_qllava(recipe_values):
    artifact = train(resolve_recipe({**recipe_values, "tune": "lora", "max_steps": 2})).artifact
    plain = PeftModel.from_pretrained(base(), artifact)
    stored = load_file(artifact / "adapter_model.safetensors")
    placed = {n.replace(".default", ""): p for n, p in plain.named_parameters() if "lora_" in n}
    assert placed.keys() == stored.keys() and all(torch.equal(placed[k], stored[k]) for k in stored)
