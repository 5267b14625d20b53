"""LoRA's starts: at the first step nothing has changed, and what is saved is plain LoRA on the base as it was."""

from __future__ import annotations

import pytest
import torch
from conftest import image_logits as logits
from peft import PeftModel
from safetensors.torch import load_file

from qllava.artifact.adapter import fill, put_adapter, save_adapter, stack_on
from qllava.artifact.stream import BaseTensors
from qllava.errors import UserError
from qllava.model.adapt import audit, make_trainable
from qllava.model.build import load_model
from qllava.model.lora import lora_layers, start_from_own_weights, start_loftq
from qllava.model.quantize import dequantized
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts, Quantization

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


def recipe(tune="lora", **changes):
    changes["lora"] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **changes.get("lora", {})}
    if "lora" not in tune and changes.get("tune_vision_tower") != "lora":
        del changes["lora"]
    values = {
        "stage": "instruct", "tune": tune, "base": EMBEDDED.model_dump(), "data": [{"path": "x"}], "output_dir": "x",
        "global_batch_size": 1, "per_device_train_batch_size": 1, "learning_rate": 1e-3, **changes,
    }  # fmt: skip
    return resolve_recipe(values)


def base(tune="lora"):
    return load_model(EMBEDDED, torch.float32, torch.device("cpu"), Quantization() if tune == "qlora" else None)


@torch.no_grad()
def shake(model):
    """As if it had been trained."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("tune", ["lora", "qlora"])
@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_from_the_bases_weights_changes_nothing_and_is_saved_as_plain_lora(tmp_path, tune, kind):
    before = logits(base(tune))
    mine = recipe(tune, lora={"init_lora_weights": kind})
    model = make_trainable(base(tune), mine)
    start_from_own_weights(model, kind)
    assert all(m.lora_B["default"].weight.abs().sum() > 0 for m in lora_layers(model).values())
    torch.testing.assert_close(logits(model), before, atol=2e-4, rtol=0)
    trained = {p.part: p.trainable for p in audit(model, mine)}
    assert trained["LoRA"] > 0 and trained["LoRA, frozen companion"] == 0
    after = logits(shake(model))
    assert (after - before).abs().max() > 0.1
    save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(put_adapter(base(tune), tmp_path)), after, atol=2e-4, rtol=0)
    plain = PeftModel.from_pretrained(base(tune), tmp_path)  # without qllava; the projector is the base's still
    torch.testing.assert_close(logits(plain), after, atol=2e-4, rtol=0)
    again = make_trainable(base(tune), mine)
    fill(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_pissa_begins_with_the_largest_singular_values():
    model = make_trainable(base(), recipe(lora={"init_lora_weights": "pissa"}))
    start_from_own_weights(model, "pissa")
    module = next(iter(lora_layers(model).values()))
    weight = dequantized(module.base_layer)
    delta = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(delta, u[:, :4] * s[:4] @ v[:4], atol=1e-5, rtol=1e-4)


def test_loftq_makes_good_most_of_what_four_bits_lost():
    model = make_trainable(base("qlora"), recipe("qlora", lora={"init_lora_weights": "loftq"}))
    original = BaseTensors(EMBEDDED).weight
    start_loftq(model, original)
    for name, module in lora_layers(model).items():
        lost = original(name).float() - dequantized(module.base_layer)
        made_good = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        torch.testing.assert_close(made_good, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5, rtol=1e-3)
        assert (lost - made_good).norm() < lost.norm()


@pytest.mark.parametrize(
    "variant", [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 6}}]
)
def test_a_second_adapter_on_top_of_a_first(tmp_path, variant):
    first = shake(make_trainable(base(), recipe(lora={"lora_alpha": 3, **variant})))
    before = logits(first)
    (tmp_path / "first").mkdir()
    save_adapter(first, tmp_path / "first")
    mine = recipe(lora={"r": 8, "lora_alpha": 16})
    model = make_trainable(base(), mine)
    stack_on(model, tmp_path / "first")
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)
    frozen = {n: p.clone() for n, p in model.named_parameters() if ".companion." in n}
    after = logits(shake(model))
    assert frozen and all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in frozen.items())
    (tmp_path / "both").mkdir()
    save_adapter(model, tmp_path / "both")
    torch.testing.assert_close(logits(put_adapter(base(), tmp_path / "both")), after, atol=1e-4, rtol=0)


def test_dora_is_neither_stacked_on_nor_lost(tmp_path):
    model = shake(make_trainable(base(), recipe(lora={"use_dora": True})))
    save_adapter(model, tmp_path)
    assert any("magnitude" in k for k in load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(put_adapter(base(), tmp_path)), logits(model), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="is a DoRA"):
        stack_on(make_trainable(base(), recipe()), tmp_path)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_is_named(field):
    """PEFT matches from the end and lets `mlp` or `multi_modal_projector` pass in silence."""
    for pattern in ("mlp", "multi_modal_projector", "down_projj", "vision_tower.*"):
        with pytest.raises(UserError, match=rf"lora\.{field}: .* matches none of the 28 modules"):
            make_trainable(base(), recipe(lora={field: {pattern: 2}}))
    with pytest.raises(UserError, match="is no regular expression"):
        make_trainable(base(), recipe(lora={field: {"(": 2}}))
    model = make_trainable(base(), recipe(lora={"rank_pattern": {"mlp.down_proj": 2}}))
    ranks = {n.rsplit(".", 1)[1]: m.r["default"] for n, m in lora_layers(model).items()}
    assert ranks["down_proj"] == 2 and ranks["up_proj"] == 4


@pytest.mark.parametrize(
    ("tune", "how"),
    [("projector", "full"), ("projector", "lora"), ("qlora", "full"), ("qlora", "lora"), ("full", "full")],
)
def test_the_vision_tower_on_request(tmp_path, tune, how):
    """What the projector reads of it, and no layer behind that, which would get no gradient."""
    mine = recipe(tune, tune_vision_tower=how, vision_tower_learning_rate=2e-6)
    model = make_trainable(base(tune), mine)
    parts = {p.part: p for p in audit(model, mine)}
    trained = parts["vision tower" if how == "full" else "vision tower's LoRA"]
    assert trained.trainable and trained.dtype == "float32"
    in_tower = [n for n, p in model.named_parameters() if p.requires_grad and "vision_tower" in n]
    last = model.config.vision_config.num_hidden_layers - 1
    assert in_tower and not any(f".layers.{last}." in n or "post_layernorm" in n for n in in_tower)
    assert all(("lora_" in n) == (how == "lora") for n in in_tower)
    if tune == "full":
        return  # saved whole
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    save_adapter(model, tmp_path)
    assert (tmp_path / "vision_tower.safetensors").is_file() == (how == "full")
    torch.testing.assert_close(logits(put_adapter(base(tune), tmp_path)), logits(model), atol=1e-3, rtol=0)
    again = make_trainable(base(tune), mine)
    fill(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_a_tower_that_was_trained_is_not_dropped_in_silence(tmp_path):
    model = make_trainable(base(), recipe(tune_vision_tower="full"))
    save_adapter(model, tmp_path)
    with pytest.raises(UserError, match="with the vision tower's weights training"):
        fill(make_trainable(base(), recipe()), tmp_path)
