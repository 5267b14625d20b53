"""GQA: questions of both layouts, the score and its parts, and the file for GQA's eval.py."""

from __future__ import annotations

import json

import pytest
from sets_vqa import GQA_IDS, SHORT, gqa_questions, make_gqa, picture, put_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.gqa import GQA, OFFICIAL

TEXTS = ("No.", "The woman", "Light blue", "red ")  # right, wrong, right, wrong: only final periods go


def test_original_layout(tmp_path):
    make_gqa(tmp_path)
    found = GQA.questions(tmp_path)
    assert [q.id for q in found] == list(GQA_IDS)
    assert found[0].shown == "Is it overcast?" + SHORT and found[0].turns[0].images == 1
    assert found[1].images == ((tmp_path / "gqa/data/images/n235859.jpg").resolve(),)
    assert [q.answer for q in found] == ["no", "woman", "light blue", "red"]


def test_score_and_parts(tmp_path):
    make_gqa(tmp_path)
    score = GQA.score(tmp_path, GQA.questions(tmp_path), TEXTS)
    assert score.questions == 4 and next(iter(score.parts)) == GQA.main == "accuracy"
    assert score.parts == {
        "accuracy": 50.0, "binary": 50.0, "open": 50.0,
        "structural.verify": 100.0, "structural.query": 50.0, "structural.choose": 0.0,
        "semantic.global": 100.0, "semantic.rel": 0.0, "semantic.attr": 50.0,
    }  # fmt: skip


def test_without_types_there_is_accuracy_alone(tmp_path):
    make_gqa(tmp_path)
    rows = {name: {"answer": row["answer"]} for name, row in gqa_questions().items()}
    (tmp_path / OFFICIAL).write_text(json.dumps(rows))
    assert GQA.score(tmp_path, GQA.questions(tmp_path), TEXTS).parts == {"accuracy": 50.0}


def test_predictions(tmp_path):
    make_gqa(tmp_path)
    file = GQA.submit(tmp_path, GQA.questions(tmp_path), ("No...", *TEXTS[1:]), tmp_path / "out")
    assert file.name == "testdev_balanced_predictions.json"
    assert json.loads(file.read_text()) == [
        {"questionId": name, "prediction": text}
        for name, text in zip(GQA_IDS, ("no", "the woman", "light blue", "red "), strict=True)
    ]


def test_hub_layout(tmp_path):
    rows = [{"id": name, "image": None} | row for name, row in gqa_questions().items()]
    put_parquet(tmp_path / "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows)
    pictures = [{"id": name} for name in ("n161313", "n235859")]
    file = tmp_path / "gqa/testdev_balanced_images/testdev-00000-of-00001.parquet"
    put_parquet(file, pictures)
    found = GQA.questions(tmp_path)
    assert [q.id for q in found] == list(GQA_IDS) and found[0].shown == "Is it overcast?" + SHORT
    assert [q.images for q in found] == [(picture(0),), (picture(1),), (picture(1),), (picture(0),)]
    assert GQA.score(tmp_path, found, TEXTS).parts["structural.query"] == 50.0
    put_parquet(file, pictures[:1])
    with pytest.raises(UserError, match="row 1 has no image"):
        GQA.questions(tmp_path)


def test_missing_annotations(tmp_path):
    make_gqa(tmp_path)
    rows = gqa_questions()
    del rows[GQA_IDS[2]]
    (tmp_path / OFFICIAL).write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"{OFFICIAL} has no question '{GQA_IDS[2]}'"):
        GQA.questions(tmp_path)
    (tmp_path / OFFICIAL).write_text(json.dumps(rows | {GQA_IDS[2]: {"question": "?"}}))
    with pytest.raises(UserError, match=f"question '{GQA_IDS[2]}' has no answer"):
        GQA.questions(tmp_path)
    (tmp_path / OFFICIAL).unlink()
    with pytest.raises(UserError, match=f"No file .*{OFFICIAL}"):
        GQA.questions(tmp_path)


def test_missing_image(tmp_path):
    make_gqa(tmp_path)
    (tmp_path / "gqa/data/images/n235859.jpg").unlink()
    with pytest.raises(UserError, match=r"testdev_balanced.jsonl, line 2: No image at .*n235859"):
        GQA.questions(tmp_path)
