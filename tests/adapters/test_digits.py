"""The first domain: its data are what they say, and its recipe runs."""

from __future__ import annotations

import importlib.util
import json

import pytest
from conftest import ROOT
from PIL import Image

from qllava.api import check, train
from qllava.recipe import load_recipe

FOLDER = ROOT / "adapters" / "digits"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_data", FOLDER / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("digits")
    module.build(out)
    return out


def overrides(data, tmp_path):
    sources = f"[{{path: {data}/train.json, image_root: images}}, {{path: {data}/test.json, image_root: images, replay: 10%}}]"
    return [f"data={sources}", "base={vision_tower: embedded, llm: embedded}", f"output_dir={tmp_path / 'run'}"]


def test_the_data_are_real_scans_split_without_overlap(data):
    rows = {name: json.loads((data / f"{name}.json").read_text()) for name in ("train", "test")}
    ids = {name: {r["id"] for r in found} for name, found in rows.items()}
    assert len(ids["train"]) == 1437 and len(ids["test"]) == 360 and not ids["train"] & ids["test"]
    answers = [r["conversations"][1]["value"] for found in rows.values() for r in found]
    assert len(set(answers)) == 10 and min(answers.count(a) for a in set(answers)) > 170
    picture = Image.open(data / "images" / rows["test"][0]["image"])
    assert picture.size == (64, 64) and picture.convert("L").getextrema()[0] < 60


def test_its_recipe_is_sound_and_runs(data, tmp_path):
    assert load_recipe(FOLDER / "recipe.yaml").data[1].replay  # against forgetting
    report = check(load_recipe(FOLDER / "recipe.yaml", overrides(data, tmp_path)))
    assert report["bad"] == [] and sum(report["taken"].values()) == 1437 + 144
    small = [*overrides(data, tmp_path), "max_steps=2", "eval_steps=2", "eval_share=1%"]
    assert train(FOLDER / "recipe.yaml", small).steps == 2
