"""Other projectors than LLaVA-1.5's in a run: what it starts from, kept features, and what the planner counts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from qllava.api import check, plan, train
from qllava.data.dataset import select
from qllava.errors import UserError
from qllava.model.base import config_of
from qllava.model.inputs import processing_for
from qllava.model.projectors import Resampler, new_projector, work_of
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts
from qllava.train import run as running
from qllava.train.batches import Sizes
from qllava.train.memory import Shape

TYPES = {"linear": {}, "mlp2x_gelu": {}, "mlp4x_gelu": {}, "resampler": {"projector_queries": 32}}


def recipe_of(values, kind, **changes):
    base = {"vision_tower": "embedded", "llm": "embedded", "projector_type": kind, **TYPES[kind]}
    return resolve_recipe({**values, "base": base, "tune": "lora", "max_steps": 2, **changes})


def test_another_projector_is_refused_before_the_base_s_weights_are_read(recipe_values, tmp_path, monkeypatch):
    align = {k: v for k, v in recipe_values.items() if k not in ("lora", "projector_learning_rate")}
    made = train(recipe_of(align, "resampler", tune="projector", max_steps=1, output_dir=str(tmp_path / "align")))
    monkeypatch.setattr(running, "begin", lambda *_: pytest.fail("a model is made"))
    for kind in ("linear", "mlp2x_gelu", "mlp4x_gelu"):
        recipe = recipe_of(recipe_values, kind, projector=str(tmp_path / "align"))
        for call in (train, check):
            with pytest.raises(UserError, match=rf"resampler of 32 queries.* and the base's {kind}"):
                call(recipe)
    assert check(recipe_of(recipe_values, "resampler", projector=str(made.artifact)))["disk"]
    assert check(recipe_of(recipe_values, "resampler", projector=str(tmp_path / "yet to be")))["disk"]
    with pytest.raises(UserError, match="No projector in"):
        train(recipe_of(recipe_values, "resampler", projector=str(tmp_path / "yet to be")))


@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_kept_features_and_packing_change_nothing(recipe_values, tmp_path, monkeypatch, kind):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    changes = {"plain": {}, "kept": {"image_cache": "features"}, "padded": {"packing": False, "fused_layers": False}}
    found = {
        name: [e["loss"] for e in train(recipe_of(recipe_values, kind, output_dir=str(tmp_path / name), **c)).log]
        for name, c in changes.items()
    }
    assert found["kept"] == pytest.approx(found["plain"], rel=1e-5)
    assert found["padded"] == pytest.approx(found["plain"], rel=1e-3)
    assert list((tmp_path / "cache" / "qllava" / "features").rglob("*"))


@pytest.mark.parametrize("kind", TYPES)
def test_4_bits_leave_the_projector_alone(recipe_values, kind):
    result = train(recipe_of(recipe_values, kind, tune="qlora"))
    state = load_file(result.artifact / "projector.safetensors")
    own = new_projector(config_of(recipe_of(recipe_values, kind).base)).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    assert all(v.dtype == torch.float32 for v in state.values())


@pytest.mark.parametrize("kind", TYPES)
def test_text_alone_gives_every_tensor_of_the_projector_a_gradient(kind):
    from qllava.model.build import load_model
    from qllava.model.forward import install_loss
    from qllava.model.projector import projector_of

    base = Parts(vision_tower="embedded", llm="embedded", projector_type=kind, **TYPES[kind])
    model = load_model(base, torch.float32, torch.device("cpu"))
    projector_of(model).requires_grad_(True)
    install_loss(model)
    ids = torch.tensor([[1, 40, 50, 60]])
    model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in projector_of(model).parameters())


@pytest.mark.parametrize("kind", TYPES)
def test_the_work_of_a_projector_is_what_runs(kind):
    """Multiplications as torch counts them (of attention, where it is spelt out)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of(Parts(vision_tower="embedded", llm="embedded", projector_type=kind, **TYPES[kind]))
    module, images = new_projector(config), 3
    features = torch.randn(images, 64, config.vision_config.hidden_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(features)
    assert counter.get_total_flops() == 2 * images * work_of(config).multiplications


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_projector_keeps_is_what_autograd_saves(kind):
    config = config_of(Parts(vision_tower="embedded", llm="embedded", projector_type=kind, **TYPES[kind]))
    module, images, kept = new_projector(config), 3, {}

    def saved(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    features = torch.randn(images, 64, config.vision_config.hidden_size)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda t: t):
        out = module(features)
    own = {p.data_ptr() for p in module.parameters()}
    measured = sum(n for pointer, n in kept.items() if pointer not in own) + out.numel()
    assert 0.8 < images * work_of(config).kept / measured < 1.25


def test_the_planner_counts_a_resampler_s_tokens(recipe_values):
    recipe = recipe_of(recipe_values, "resampler")
    processing, shape = processing_for(recipe), Shape(recipe, config_of(recipe.base))
    assert processing.image_tokens == shape.image_tokens == 32 and shape.patches == 64
    rows = select(recipe, processing).rows
    plain = recipe_of(recipe_values, "mlp2x_gelu")
    theirs = Sizes(plain, rows, processing_for(plain), 64).of(1)[0]
    ours = Sizes(recipe, rows, processing, shape.image_tokens).of(1)[0]
    assert theirs.positions - ours.positions == 32 and ours.images == 1
    assert plan(recipe).choices


def test_a_resampler_takes_the_class_token_too():
    config = config_of(
        Parts(
            vision_tower="embedded", llm="embedded", projector_type="resampler", projector_queries=32,
            vision_feature_select_strategy="full",
        )
    )  # fmt: skip
    module = new_projector(config)
    assert isinstance(module, Resampler) and module.positions.shape[0] == 65
    assert module(torch.randn(2, 65, 128)).shape == (2, 32, config.text_config.hidden_size)
