"""Projectors: linear, deeper MLPs and the resampler, from the recipe to the merged model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from qllava.api import evaluate, load, merge, train, verify
from qllava.errors import UserError
from qllava.model.base import config_of
from qllava.model.build import load_model
from qllava.model.inputs import load_processing
from qllava.model.projectors import Linears, QllavaConfig, Resampler, image_tokens
from qllava.model.size import size_of
from qllava.recipe import resolve_recipe
from qllava.recipe.projector import depth_of
from qllava.recipe.schema import Parts

TYPES = [("linear", None), ("mlp3x_gelu", None), ("resampler", 32)]


def base_of(kind, queries=None):
    base = {"vision_tower": "embedded", "llm": "embedded", "projector_type": kind}
    return base if queries is None else {**base, "projector_queries": queries}


def logits_of(model, tokens, image_token):
    torch.manual_seed(0)
    edge = model.config.vision_config.image_size
    ids = torch.tensor([[1, *[image_token] * tokens, 40, 50, 60]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=torch.randn(1, 3, edge, edge)).logits


@pytest.mark.parametrize(("name", "depth"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp12x_gelu", 12), ("resampler", 0)])
def test_depth_by_name(name, depth):
    assert depth_of(name) == depth


def test_llava_s_own_stays_transformers_own():
    config = config_of(Parts(**base_of("mlp2x_gelu")))
    assert type(config).__name__ == "LlavaConfig" and "projector_type" not in config.to_dict()
    model = load_model(Parts(**base_of("mlp2x_gelu")), torch.float32, torch.device("cpu"))
    assert type(model) is LlavaForConditionalGeneration
    assert type(model.model.multi_modal_projector) is LlavaMultiModalProjector


def test_linears_compute_what_llava_s_builder_does():
    config = config_of(Parts(**base_of("mlp3x_gelu")))
    module, x = Linears(config), torch.randn(2, 5, config.vision_config.hidden_size)
    plain = torch.nn.Sequential(module.linear_1, torch.nn.GELU(), module.linear_2, torch.nn.GELU(), module.linear_3)
    assert torch.equal(module(x), plain(x))
    one = Linears(config_of(Parts(**base_of("linear"))))
    assert torch.equal(one(x), one.linear_1(x)) and set(one.state_dict()) == {"linear_1.weight", "linear_1.bias"}


def test_a_resampler_makes_its_queries_of_each_image_alone_and_sees_places():
    torch.manual_seed(0)
    config = config_of(Parts(**base_of("resampler", 40)))
    module = Resampler(config).double()
    patches = config.vision_config.image_size // config.vision_config.patch_size
    x = torch.randn(3, patches**2, config.vision_config.hidden_size, dtype=torch.double)
    found = module(x)
    assert found.shape == (3, 40, config.text_config.hidden_size)
    torch.testing.assert_close(module(x.flip(0)).flip(0), found)
    torch.testing.assert_close(module(x[1:2]), found[1:2])
    assert (module(x.flip(1)) - found).abs().max() > 1e-3  # the same patches elsewhere
    found.square().sum().backward()
    # a key's bias adds the same to all of a query's scores, which softmax does not see
    assert all(
        p.grad.abs().max() > (0 if "k_proj.bias" in n else 1e-9) or "k_proj.bias" in n
        for n, p in module.named_parameters()
    )


@pytest.mark.parametrize(("kind", "queries"), TYPES)
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_run_merges_and_loads_again(recipe_values, scenes, tmp_path, kind, queries, tune):
    values = {**recipe_values, "base": base_of(kind, queries), "tune": tune, "max_steps": 2}
    if tune == "full":
        values.pop("lora"), values.pop("projector_learning_rate", None)
    recipe = resolve_recipe(values)
    fresh = load_model(recipe.base, torch.float32, torch.device("cpu")).model.multi_modal_projector.state_dict()
    result = train(recipe)
    verify(result.artifact)
    ours = load(result.artifact, dtype="float32")
    learned = ours.model.get_base_model() if tune == "lora" else ours.model
    for name, tensor in learned.model.multi_modal_projector.state_dict().items():
        assert not torch.equal(tensor, fresh[name]) or "k_proj.bias" in name, name
    tokens = ours.processing.image_tokens
    assert tokens == (queries or ours.model.config.image_seq_length) == image_tokens(learned.config)
    whole = result.artifact if tune == "full" else merge(result.artifact, tmp_path / "merged", dtype="float32")
    again = load(whole, dtype="float32")
    torch.testing.assert_close(
        logits_of(learned, tokens, ours.processing.image_token_id),
        logits_of(again.model, tokens, ours.processing.image_token_id),
        atol=1e-4,
        rtol=0,
    )
    assert again.model.config.projector_type == kind and again.processing.image_tokens == tokens
    said = evaluate(whole, scenes, scenes.parent / "images", limit=2)
    assert said["count"] == 2 if "count" in said else said


def test_transformers_alone_refuses_it(recipe_values, tmp_path):
    from qllava.api import assemble

    folder = assemble("embedded", "embedded", tmp_path / "base", projector_type="resampler", projector_queries=33)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qllava"
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "qllava" in done.stderr
    assert config_of(str(folder)).projector_queries == 33
    assert load_processing(str(folder), "vicuna_v1", "pad").image_tokens == 33


def test_align_s_projector_begins_instruct_and_another_s_is_refused(recipe_values, scenes, tmp_path):
    values = {k: v for k, v in recipe_values.items() if k not in ("lora", "projector_learning_rate")}
    align = train(resolve_recipe({**values, "base": base_of("resampler", 32), "tune": "projector", "max_steps": 1}))
    state = load_file(align.artifact / "projector.safetensors")
    more = {
        **recipe_values,
        "tune": "lora",
        "projector": str(align.artifact),
        "max_steps": 1,
        "learning_rate": 1e-9,
        "projector_learning_rate": 1e-9,
    }
    after = train(resolve_recipe({**more, "base": base_of("resampler", 32), "output_dir": str(tmp_path / "b")}))
    for name, tensor in load_file(after.artifact / "projector.safetensors").items():
        torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=0)
    for kind, queries in (("linear", None), ("mlp2x_gelu", None), ("resampler", 33)):
        with pytest.raises(UserError, match="resampler of 32 queries"):
            train(
                resolve_recipe(
                    {**more, "base": base_of(kind, queries), "output_dir": str(tmp_path / f"c{kind}{queries}")}
                )
            )


def test_text_alone_and_packed_rows(recipe_values, tmp_path):
    values = {
        **recipe_values,
        "base": base_of("resampler", 32),
        "tune": "lora",
        "per_device_train_batch_size": 1,
        "max_steps": 4,
    }
    losses = [e["loss"] for e in train(resolve_recipe(values)).log]
    assert len(losses) == 4 and all(v == v for v in losses)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"projector_type": "qformer"}, "projector_type"),
        ({"projector_type": "resampler", "projector_queries": 31}, "projector_queries"),
        ({"projector_type": "resampler", "projector_queries": 145}, "projector_queries"),
        ({"projector_type": "linear", "projector_queries": 64}, "resampler"),
        ({"projector_type": "resampler", "max_tiles": 6}, "max_tiles"),
    ],
)
def test_what_a_recipe_may_not_say(recipe_values, more, word):
    with pytest.raises(UserError, match=word):
        resolve_recipe({**recipe_values, "base": {"vision_tower": "embedded", "llm": "embedded", **more}})


def test_sizes_without_weights(recipe_values):
    for kind, queries in TYPES:
        recipe = resolve_recipe({**recipe_values, "base": base_of(kind, queries), "tune": "lora"})
        model = load_model(recipe.base, torch.float32, torch.device("cpu"))
        assert size_of(recipe).projector == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert isinstance(config_of(Parts(**base_of("linear"))), QllavaConfig)
