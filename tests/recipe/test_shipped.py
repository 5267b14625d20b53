"""Every recipe in recipes/ loads, is whole, and can be copied out."""

from __future__ import annotations

import pytest
from conftest import ROOT

from qllava.errors import UserError
from qllava.recipe import copy_shipped, list_shipped, load_recipe
from qllava.recipe.schema import Recipe
from qllava.recipe.shipped import LAUNCH

FILES = sorted(f for f in (ROOT / "recipes").rglob("*.yaml") if f.parent.name not in LAUNCH)


def test_none_is_overlooked():
    assert len(FILES) == 76
    assert {s.path for s in list_shipped()} == set(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_loads_and_says_what_it_is(file):
    recipe = load_recipe(file)
    assert isinstance(recipe, Recipe)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 30
    assert any(
        f"qllava train {file.relative_to(ROOT / 'recipes').with_suffix('').as_posix()}" in line for line in lines
    ), "its launch command is not in it"


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_hyper_parameters_are_the_originals(size):
    align, full, lora = (load_recipe(f"llava15-{size}/{n}") for n in ("align", "instruct-full", "instruct-lora"))
    assert (align.learning_rate, align.global_batch_size, align.image_aspect_ratio, align.template) == (
        1e-3,
        256,
        "square",
        "plain",
    )
    assert (full.learning_rate, full.global_batch_size, full.image_aspect_ratio) == (2e-5, 128, "pad")
    assert (lora.learning_rate, lora.projector_learning_rate) == (2e-4, 2e-5)
    assert (lora.lora.r, lora.lora.lora_alpha, lora.lora.lora_dropout) == (128, 256, 0.05)
    assert {r.max_grad_norm for r in (align, full, lora)} == {0.0}
    assert {(r.lr_scheduler_type, r.warmup_steps, r.weight_decay, r.max_length) for r in (align, full, lora)} == {
        ("cosine", 0.03, 0.0, 2048)
    }
    assert load_recipe(f"llava15-{size}/task-lora").exif_transpose
    assert full.group_by_modality_length and not align.group_by_modality_length
    assert size in lora.base.llm and size in lora.projector and size in lora.output_dir


@pytest.mark.parametrize("name", ["llava15-13b/task-qlora", "demo/align"])
def test_a_copy_is_the_same_recipe(tmp_path, name):
    copy = copy_shipped(name, tmp_path / "mine.yaml")
    assert load_recipe(copy) == load_recipe(name)
    with pytest.raises(UserError, match="is there already"):
        copy_shipped(name, copy)


def test_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'demo/align'"):
        copy_shipped("demo/aling", tmp_path)


def test_schema_describes_every_field():
    properties = Recipe.model_json_schema()["properties"]
    assert set(properties) == set(Recipe.model_fields)
    assert "description" in properties["projector_learning_rate"]


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_hd_is_the_plain_recipe_on_tiles(size):
    align = load_recipe(f"ablations/hd/{size}-align")
    assert align.base.max_tiles is None and align.image_aspect_ratio == "square" and size in align.base.llm
    for kind in ("full", "lora", "qlora"):
        plain, hd = load_recipe(f"llava15-{size}/instruct-{kind}"), load_recipe(f"ablations/hd/{size}-instruct-{kind}")
        assert hd.projector == align.output_dir and hd.base.max_tiles == 6 and hd.max_length == 4096
        assert hd.base.vision_tower == align.base.vision_tower == "openai/clip-vit-large-patch14"
        own = {"base", "projector", "max_length", "per_device_train_batch_size", "output_dir"}
        assert {k for k in type(hd).model_fields if getattr(hd, k) != getattr(plain, k)} == own
