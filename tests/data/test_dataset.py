"""From a LLaVA JSON to batches."""

from __future__ import annotations

import json

import pytest
import torch

from qllava.data.collate import collate
from qllava.data.dataset import read_sources, training_set
from qllava.data.tokens import IGNORE
from qllava.errors import UserError
from qllava.model.build import load_processing
from qllava.recipe.schema import Parts, Source


@pytest.fixture(scope="module")
def processing():
    return load_processing(Parts(vision_tower="embedded", llm="embedded"), "vicuna_v1", "pad")


def source(path):
    return (Source(path=str(path), image_root="images"),)


def test_rows_and_batches(scenes, processing):
    rows = training_set(source(scenes), processing, 2048)
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
    rows = training_set(source(scenes), processing, 2048)
    batch = collate([rows[0], rows[14]], processing, side="left")
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_text_alone_makes_a_batch_without_pixels(scenes, processing):
    rows = training_set(source(scenes), processing, 2048)
    assert "pixel_values" not in collate([rows[14], rows[15]], processing)


def test_pixels_are_made_when_asked_for(scenes, processing):
    rows = training_set(source(scenes), processing, 2048)
    torch.testing.assert_close(rows[3]["pixel_values"], rows[3]["pixel_values"])
    (scenes.parent / "images" / "5.png").write_text("no image")
    with pytest.raises(UserError, match=r"5\.png is not an image"):
        rows[5]


def test_a_missing_image_is_named_before_anything_runs(scenes):
    (scenes.parent / "images" / "3.png").unlink()
    with pytest.raises(UserError, match=r"scenes\.json, sample 's3': No image at .*3\.png"):
        read_sources(source(scenes))


def test_two_sources_are_joined_in_order(scenes, tmp_path):
    other = tmp_path / "more.jsonl"
    other.write_text(
        json.dumps({"id": "m", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    )
    rows = read_sources((*source(scenes), Source(path=str(other))))
    assert len(rows) == 17 and rows[16]["id"] == "m"


def test_padding_to_a_multiple_changes_only_the_padding(scenes, processing):
    rows = training_set(source(scenes), processing, 2048)
    plain, wide = collate([rows[0], rows[1]], processing), collate([rows[0], rows[1]], processing, multiple=32)
    length = plain["input_ids"].shape[1]
    assert wide["input_ids"].shape[1] % 32 == 0 and 0 <= wide["input_ids"].shape[1] - length < 32
    assert all(torch.equal(wide[k][:, :length], plain[k]) for k in ("input_ids", "labels", "attention_mask"))
    assert (wide["labels"][:, length:] == IGNORE).all() and not wide["attention_mask"][:, length:].any()
