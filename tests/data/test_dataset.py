"""From a LLaVA JSON to batches."""

from __future__ import annotations

import json

import pytest
import torch

from qllava.data.collate import collate
from qllava.data.dataset import select, training_set
from qllava.data.tokens import IGNORE
from qllava.errors import UserError
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Recipe, Source

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


@pytest.fixture(scope="module")
def processing():
    return load_processing(EMBEDDED, "vicuna_v1", "pad")


def recipe(*sources, **values):
    """A recipe with these sources and nothing else of interest."""
    fixed = {"stage": "instruct", "tune": "projector", "base": EMBEDDED, "output_dir": "x", "learning_rate": 1e-3}
    sizes = {"global_batch_size": 4, "per_device_train_batch_size": 4}
    return Recipe(**{**fixed, **sizes, "data": sources, **values})


def rows_of(path, processing):
    selection = select(recipe(Source(path=str(path), image_root="images")), processing)
    return training_set(selection.rows, processing, 2048)


def test_rows_and_batches(scenes, processing):
    rows = rows_of(scenes, processing)
    batch = collate([rows[i] for i in (0, 1, 14)], processing)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    spread = (batch["input_ids"] == processing.image_token_id).sum(1)
    assert spread.tolist() == [64, 64, 0]
    assert (batch["labels"][batch["input_ids"] == processing.image_token_id] == IGNORE).all()
    lengths = batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths):
        assert (batch["attention_mask"][row, :length] == 1).all()  # padding is on the right
        assert (batch["labels"][row, length:] == IGNORE).all()


def test_left_padding_for_generation(scenes, processing):
    rows = rows_of(scenes, processing)
    batch = collate([rows[0], rows[14]], processing, side="left")
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_text_alone_makes_a_batch_without_pixels(scenes, processing):
    rows = rows_of(scenes, processing)
    assert "pixel_values" not in collate([rows[14], rows[15]], processing)


def test_pixels_are_made_when_asked_for(scenes, processing):
    rows = rows_of(scenes, processing)
    torch.testing.assert_close(rows[3]["pixel_values"], rows[3]["pixel_values"])
    (scenes.parent / "images" / "5.png").write_text("no image")
    with pytest.raises(UserError, match=r"5\.png is not an image"):
        rows[5]


def test_a_missing_image_is_named_before_anything_runs(scenes, processing):
    (scenes.parent / "images" / "3.png").unlink()
    with pytest.raises(UserError, match=r"scenes\.json, sample 4 \(id 's3'\): No image at .*3\.png"):
        rows_of(scenes, processing)


def test_two_sources_are_joined_in_order(scenes, tmp_path, processing):
    other = tmp_path / "more.jsonl"
    other.write_text(
        json.dumps({"id": "m", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    )
    both = (Source(path=str(scenes), image_root="images"), Source(path=str(other)))
    selection = select(recipe(*both), processing)
    assert len(selection.rows) == 17 and selection.rows[16]["id"] == "m" and selection.taken == [16, 1]


def test_padding_to_a_multiple_changes_only_the_padding(scenes, processing):
    rows = rows_of(scenes, processing)
    plain, wide = collate([rows[0], rows[1]], processing), collate([rows[0], rows[1]], processing, multiple=32)
    length = plain["input_ids"].shape[1]
    assert wide["input_ids"].shape[1] % 32 == 0 and 0 <= wide["input_ids"].shape[1] - length < 32
    assert all(torch.equal(wide[k][:, :length], plain[k]) for k in ("input_ids", "labels", "attention_mask"))
    assert (wide["labels"][:, length:] == IGNORE).all() and not wide["attention_mask"][:, length:].any()


def test_a_mix_of_sources(scenes, processing):
    """A domain with a tenth of a general set beside it, and half of everything."""
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (scenes.parent / "general.json").write_text(json.dumps([{"id": f"g{i}", "conversations": talk} for i in range(50)]))
    domain = Source(path=str(scenes), image_root="images", weight=2)
    general = Source(path=str(scenes.parent / "general.json"), replay="25%")
    whole = select(recipe(domain, general), processing)
    assert whole.taken == [32, 8] and len(whole.rows) == 40
    half = select(recipe(domain, general, subset="50%"), processing)
    assert half.taken == [16, 4] and set(half.rows["id"][:]) < set(whole.rows["id"][:])
    assert len(training_set(half.rows, processing, 2048)[3]["input_ids"]) > 10


def test_the_same_recipe_takes_the_same_samples(scenes, processing):
    first, second = (
        select(recipe(Source(path=str(scenes), image_root="images", max_samples=5)), processing) for _ in range(2)
    )
    assert first.rows["id"][:] == second.rows["id"][:] and first.taken == [5]
