"""Vision towers: CLIP of any size and SigLIP, which layer and which features the projector reads."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from qllava.api import evaluate, load, merge, train
from qllava.data.image import to_pixels
from qllava.errors import UserError
from qllava.model.base import config_of
from qllava.model.build import load_model
from qllava.model.features import tower_features
from qllava.model.inputs import load_processing
from qllava.model.size import size_of
from qllava.model.tower import tower_parameters
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def a_tower(folder, kind="clip", edge=56, patch=14):
    torch.manual_seed(1)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**SHAPE, image_size=edge, patch_size=patch)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=edge).save_pretrained(folder)
    else:
        SiglipVisionModel(SiglipVisionConfig(**SHAPE, image_size=edge, patch_size=patch)).save_pretrained(folder)
        SiglipImageProcessor(
            size={"height": edge, "width": edge}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ).save_pretrained(folder)
    return str(folder)


def pixels_of(processing, image):
    return to_pixels(image, processing.image_processor, processing.image_aspect_ratio)


CASES = [
    ("clip", 56, 14, {}, 16), ("clip", 48, 8, {}, 36), ("siglip", 54, 14, {}, 9),
    ("clip", 56, 14, {"vision_feature_select_strategy": "full"}, 17), ("siglip", 56, 14, {"vision_feature_layer": -1}, 16),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "edge", "patch", "more", "tokens"), CASES)
def test_a_run_on_it_merges_and_plain_transformers_agrees(recipe_values, tmp_path, kind, edge, patch, more, tokens):
    base = {"vision_tower": a_tower(tmp_path / "tower", kind, edge, patch), "llm": "embedded", **more}
    recipe = resolve_recipe({**recipe_values, "base": base, "tune": "lora", "max_steps": 2})
    result = train(recipe)
    merged = merge(result.artifact, tmp_path / "merged", dtype="float32")
    plain, info = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = load(result.artifact, dtype="float32")
    assert ours.processing.image_tokens == plain.config.image_seq_length == tokens
    image = Image.effect_noise((80, 60), 90).convert("RGB")
    processor = LlavaProcessor.from_pretrained(merged)
    given = processor(images=image, text="<image>\nWhat is it?", return_tensors="pt")
    assert (given["input_ids"] == ours.processing.image_token_id).sum() == tokens
    torch.testing.assert_close(given["pixel_values"][0], pixels_of(ours.processing, image), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(**given).logits, plain.eval()(**given).logits, atol=1e-4, rtol=0)


def test_siglip_reads_what_transformers_reads(tmp_path):
    base = Parts(vision_tower=a_tower(tmp_path / "tower", "siglip"), llm="embedded")
    model = load_model(base, torch.float32, torch.device("cpu"))
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(tower_features(model, pixels), states[-2])
    read = tower_parameters(model)
    assert not any(".head." in n or "post_layernorm" in n or ".layers.2." in n for n in read)
    assert any(".layers.1." in n for n in read)


def test_siglip_s_pictures_are_scaled_to_its_square_in_its_own_colours(tmp_path):
    base = Parts(vision_tower=a_tower(tmp_path / "tower", "siglip"), llm="embedded")
    processing = load_processing(base, "vicuna_v1", "pad")
    image = Image.effect_noise((70, 70), 90).convert("RGB")
    theirs = SiglipImageProcessor.from_pretrained(base.vision_tower)(images=image, return_tensors="pt")["pixel_values"][
        0
    ]
    torch.testing.assert_close(
        pixels_of(processing, image), theirs, atol=0.02, rtol=0
    )  # torchvision's scaling beside Pillow's
    wide = pixels_of(processing, Image.new("RGB", (70, 20), "white"))
    assert wide[:, 0].abs().max() < 0.01 and wide[:, 28].min() > 0.99  # padding in the mean colour, which becomes 0


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"vision_feature_select_strategy": "default"}, "class token"),
        ({"vision_feature_layer": -5}, "3 layers"),
        ({"vision_feature_layer": 4}, "3 layers"),
        ({"max_tiles": 6}, "CLIP"),
    ],
)
def test_what_a_siglip_has_not_is_refused(tmp_path, more, word):
    with pytest.raises(UserError, match=word):
        config_of(Parts(vision_tower=a_tower(tmp_path / "tower", "siglip"), llm="embedded", **more))


def test_another_kind_of_tower_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8}))
    with pytest.raises(UserError, match="CLIP or a SigLIP"):
        config_of(Parts(vision_tower=str(tmp_path), llm="embedded"))


def test_a_siglip_is_counted_cached_and_answers(recipe_values, scenes, tmp_path):
    base = {"vision_tower": a_tower(tmp_path / "tower", "siglip"), "llm": "embedded"}
    recipe_values.pop("lora"), recipe_values.pop("projector_learning_rate", None)
    recipe = resolve_recipe(
        {**recipe_values, "base": base, "tune": "projector", "image_cache": "features", "max_steps": 1}
    )
    model = load_model(recipe.base, torch.float32, torch.device("cpu"))
    assert size_of(recipe).projector == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    result = train(recipe)
    found = evaluate(result.artifact, scenes, scenes.parent / "images", limit=2)
    assert found is not None


def test_the_original_s_layout_refuses_it(recipe_values, tmp_path):
    from qllava.api import assemble, convert

    base = assemble(a_tower(tmp_path / "tower", "siglip"), "embedded", tmp_path / "base")
    with pytest.raises(UserError, match="CLIP"):
        convert(base, "original", tmp_path / "out")
