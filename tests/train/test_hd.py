"""LLaVA-1.5-HD through the whole job: trained, resumed, cached, merged, evaluated, talked to."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sets_choice import make_pope
from transformers import AutoConfig, LlavaNextForConditionalGeneration

from qllava.api import assemble, benchmark, check, combine, inspect, load, merge, plan, train, verify
from qllava.artifact.prove import compare, probes, say
from qllava.data.dataset import select, training_set
from qllava.errors import UserError
from qllava.evaluate.generate import generate
from qllava.evaluate.question import Question, features_of, length_of
from qllava.model.inputs import load_processing, processing_for
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts
from qllava.serve.chat import open_chat

BASE = {"vision_tower": "embedded", "llm": "embedded", "max_tiles": 6}
SIZES = ((1, 1), (64, 64), (100, 30), (300, 200), (40, 260), (4000, 300))


@pytest.fixture
def values(recipe_values, tmp_path):
    """A run on pictures of many sizes, and text alone between them."""
    rows = json.loads((tmp_path / "scenes.json").read_text())
    rng = np.random.default_rng(0)
    for i in range(14):
        width, height = SIZES[i % len(SIZES)]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "scenes.json").write_text(json.dumps(rows))
    return {**recipe_values, "base": BASE, "tune": "lora", "max_steps": 2, "save_steps": 2, "learning_rate": 1e-3}


def run(values, **changes):
    values = {**values, **changes}
    if "lora" not in values["tune"]:
        values.pop("lora")
    return train(resolve_recipe(values))


def weights(folder):
    return {f"{f.name}:{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.parametrize("tune", ["projector", "qlora", "full"])
def test_every_mode_trains_the_row_end_token(values, tune):
    result = run(values, tune=tune)
    verify(result.artifact)
    start = load_processing(Parts(**BASE), "vicuna_v1", "pad")
    assert start.tiling is not None
    from qllava.model.build import load_model

    before = load_model(Parts(**BASE), torch.float32, torch.device("cpu")).model.image_newline
    name = "projector.safetensors" if tune != "full" else "model.safetensors"
    after = load_file(result.artifact / name)["image_newline"]
    assert after.shape == before.shape and not torch.equal(after.float(), before.float())


def test_packing_and_split_do_not_matter(values, tmp_path):
    one = run(values, output_dir=str(tmp_path / "a"))
    padded = run(values, packing=False, output_dir=str(tmp_path / "b"))
    single = run(values, per_device_train_batch_size=1, output_dir=str(tmp_path / "c"))
    plain = run(values, fused_layers=False, output_dir=str(tmp_path / "d"))
    for other in (padded, single, plain):
        assert other.log[0]["loss"] == pytest.approx(one.log[0]["loss"], rel=1e-5)
        assert other.log[1]["loss"] == pytest.approx(one.log[1]["loss"], rel=1e-3)


@pytest.mark.parametrize("kind", ["crops", "features"])
def test_kept_images_are_the_same(values, tmp_path, monkeypatch, kind):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    plain = run(values, output_dir=str(tmp_path / "a"))
    kept = [run(values, image_cache=kind, output_dir=str(tmp_path / name)) for name in ("b", "c")]
    for other in kept:
        assert [e["loss"] for e in other.log] == pytest.approx([e["loss"] for e in plain.log], rel=1e-5)
    files = [f for f in (tmp_path / "cache" / "qllava" / kind).rglob("*") if f.is_file()]
    assert files and len({f.stat().st_size for f in files}) > 2  # as many views as a picture has


def test_merged_it_is_plain_llava_next_and_says_the_same(values, tmp_path):
    result = run(values)
    merged = merge(result.artifact, tmp_path / "merged", dtype="float32")
    manifest = verify(merged)
    assert manifest.report["proof"]["greedy_agreement"] == 1.0
    _, told = LlavaNextForConditionalGeneration.from_pretrained(merged, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert AutoConfig.from_pretrained(merged).max_tiles == 6
    on_base, whole = load(result.artifact, dtype="float32"), load(merged, dtype="float32")
    assert on_base.processing.tiling == whole.processing.tiling
    prompts = probes(whole.processing)
    assert compare(say(on_base.model, prompts, 2048), say(whole.model, prompts, 2048)).relative < 1e-5


def test_it_answers_and_is_talked_to(values, tmp_path):
    result = run(values)
    loaded = load(result.artifact)
    from qllava.data.sample import Turn

    turns = (Turn("user", "Which color?", 1),)
    asked = [Question(i, turns, (tmp_path / "images" / f"{i}.png",)) for i in range(6)]
    asked.append(Question("t", (Turn("user", "Hi", 0),)))
    made = [features_of(q, loaded.processing) for q in asked]
    assert [length_of(q, loaded.processing) for q in asked] == [
        loaded.processing.tiling.tokens([size])[0] + len(m["input_ids"]) - 1
        for size, m in zip(SIZES, made, strict=False)
    ] + [len(made[-1]["input_ids"])]
    together = generate(loaded, made, 4)
    assert together == [generate(loaded, [m], 4)[0] for m in made]
    make_pope(tmp_path)
    scores = benchmark(result.artifact, ["pope"], tmp_path, out=tmp_path / "eval", batch_size=4)
    assert scores["pope"]["questions"] > 2
    chat = open_chat(result.artifact, tmp_path / "images" / "2.png", max_new_tokens=4)
    chat.ask("Which color?")
    chat.ask("Sure?")
    assert len(chat.turns) == 4


def test_resumed_equals_uninterrupted(values, tmp_path):
    import shutil

    whole = run(values, max_steps=4, output_dir=str(tmp_path / "whole"))
    recipe = resolve_recipe({**values, "max_steps": 4, "output_dir": str(tmp_path / "cut")})
    train(recipe)
    for name in ("final", "checkpoint-4"):
        shutil.rmtree(tmp_path / "cut" / name)
    resumed = train(recipe, resume=True)
    expected, got = weights(whole.artifact), weights(resumed.artifact)
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)


def test_a_plain_stage_1_gives_the_projector(values, tmp_path):
    align = run(
        values, stage="align", tune="projector", template="plain", base={**BASE, "max_tiles": None},
        image_aspect_ratio="square", output_dir=str(tmp_path / "align"),
        data=[{"path": str(tmp_path / "one.json"), "image_root": "images"}],
    ) if _one_turn(tmp_path) else None  # fmt: skip
    after = run(values, projector=str(align.artifact), projector_learning_rate=1e-12, output_dir=str(tmp_path / "hd"))
    a, b = (load_file(r.artifact / "projector.safetensors") for r in (align, after))
    assert b.keys() - a.keys() == {"image_newline"}
    assert all(torch.allclose(a[k], b[k], atol=1e-8) for k in a)


def _one_turn(folder):
    rows = [r | {"conversations": r["conversations"][:2]} for r in json.loads((folder / "scenes.json").read_text())]
    (folder / "one.json").write_text(json.dumps([r for r in rows if "image" in r]))
    return True


def test_adapters_are_combined(values, tmp_path):
    runs = [run(values, seed=seed, output_dir=str(tmp_path / str(seed))) for seed in (1, 2)]
    out = combine([r.artifact for r in runs], tmp_path / "both")
    ends = [load_file(f / "projector.safetensors")["image_newline"] for f in (runs[0].artifact, runs[1].artifact, out)]
    assert torch.allclose(ends[2], (ends[0] + ends[1]) / 2, atol=1e-6)


def test_an_adapter_is_bound_to_its_tiles(values, tmp_path):
    result = run(values)
    with pytest.raises(UserError, match="max_tiles"):
        load(result.artifact, base="{vision_tower: embedded, llm: embedded, max_tiles: 4}")
    with pytest.raises(UserError, match="max_tiles"):
        load(result.artifact, base="{vision_tower: embedded, llm: embedded}")


def test_a_base_is_assembled_in_tiles(tmp_path):
    folder = assemble("embedded", "embedded", tmp_path / "base", dtype="float32", max_tiles=4)
    loaded = load(folder)
    assert loaded.processing.tiling.max_tiles == 4 and loaded.manifest.report["parts"]["max_tiles"] == 4
    _, told = LlavaNextForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]


def test_check_and_inspect_count_tiles(values):
    recipe = resolve_recipe(values)
    processing = processing_for(recipe)
    found = check(recipe)
    rows = training_set(select(recipe, processing).rows, processing, recipe.max_length)
    longest = 0
    for row in (rows[i] for i in range(len(rows))):
        counts = processing.counts(row)
        longest = max(longest, len(row["input_ids"]) - len(counts) + sum(counts))
    assert found["longest"] == longest
    shown = {s.id: t for s, _, t in inspect(recipe).samples()}
    assert shown["s3"].counts == (processing.tiling.layout(300, 200).tokens,)


def test_an_image_too_long_for_the_window_is_named(values):
    with pytest.raises(UserError, match=r"Sample 's\d+': max_length 400 would cut an image away .\d+ positions each"):
        run(values, max_length=400)


def test_the_planner_counts_views_and_tokens(values):
    from qllava.model.base import config_of
    from qllava.train.batches import Sizes
    from qllava.train.memory import Shape

    recipe = resolve_recipe({**values, "max_length": 2000})
    processing = processing_for(recipe)
    shape = Shape(recipe, config_of(recipe.base))
    tiling = processing.tiling
    assert (shape.views, shape.image_tokens) == (7, tiling.most_tokens)
    rows = select(recipe, processing).rows
    largest, mean = Sizes(recipe, rows, processing, shape.image_tokens, shape.views).of(1)
    assert largest.images == 7 and largest.positions >= tiling.most_tokens
    views = [tiling.layout(*SIZES[i % 6]).views for i in range(14)]
    assert mean.images == round(sum(views) / 16)
    none = Sizes(recipe, None, None, shape.image_tokens, shape.views).of(2)[0]
    assert (none.images, none.labels) == (14, 2 * (2000 - tiling.most_tokens))
    plain = resolve_recipe({**values, "base": {**BASE, "max_tiles": None}})
    assert plan(recipe).choices[0].memory.peak > plan(plain).choices[0].memory.peak
    assert dataclasses.asdict(plan(recipe))["disk"]["trainable_parameters"] == (
        dataclasses.asdict(plan(plain))["disk"]["trainable_parameters"] + 256
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["bf16-dequantized", "nf4"])
def test_qlora_is_merged(values, tmp_path, target):
    result = run(values, tune="qlora")
    merged = merge(result.artifact, tmp_path / "merged", target=target, force=True)
    assert set(verify(merged).report["targets"]) == {"bf16", "bf16-dequantized", "nf4"}
    end = load_file(result.artifact / "projector.safetensors")["image_newline"]
    assert torch.equal(load(merged).model.model.image_newline.float(), end.bfloat16().float())
