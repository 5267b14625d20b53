"""VizWiz: questions of both layouts, and the server's file."""

from __future__ import annotations

import json

import pytest
from sets_vqa import UNSURE, make_vizwiz, picture, put_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.vizwiz import QUESTIONS, VIZWIZ

TEXTS = ("Unanswerable", "dark-blue.", "2%")
PROMPT = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
SUBMITTED = [
    {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
    {"image": "VizWiz_test_00000001.jpg", "answer": "dark blue"},
    {"image": "VizWiz_test_00000002.jpg", "answer": "2%"},
]


def test_original_layout(tmp_path):
    make_vizwiz(tmp_path)
    found = VIZWIZ.questions(tmp_path)
    assert [q.id for q in found] == [0, 1, 2] and PROMPT == UNSURE
    assert found[0].shown == "What is this?" + PROMPT and found[0].turns[0].images == 1
    assert found[2].images == ((tmp_path / "vizwiz/test/VizWiz_test_00000002.jpg").resolve(),)
    assert VIZWIZ.score is None and VIZWIZ.paper["llava-1.5-13b-lora"] == {"accuracy": 58.9}


def test_submission(tmp_path):
    make_vizwiz(tmp_path)
    file = VIZWIZ.submit(tmp_path, VIZWIZ.questions(tmp_path), TEXTS, tmp_path / "out")
    assert json.loads(file.read_text()) == SUBMITTED


def test_images_that_are_links_keep_their_names(tmp_path):
    make_vizwiz(tmp_path)
    image = tmp_path / "vizwiz/test/VizWiz_test_00000001.jpg"
    image.rename(image.with_name("other.jpg"))
    image.symlink_to("other.jpg")
    file = VIZWIZ.submit(tmp_path, VIZWIZ.questions(tmp_path), TEXTS, tmp_path)
    assert json.loads(file.read_text()) == SUBMITTED


def test_every_question_is_required(tmp_path):
    make_vizwiz(tmp_path)
    with pytest.raises(UserError, match="all 3 answers; 1 are missing, first 2"):
        VIZWIZ.submit(tmp_path, VIZWIZ.questions(tmp_path)[:2], TEXTS[:2], tmp_path)


def test_hub_layout(tmp_path):
    rows = [{"question_id": f"VizWiz_test_{n:08}", "question": f"what is {n}?", "answers": []} for n in range(3)]
    put_parquet(tmp_path / "vizwiz/data/test-00000-of-00001-8bb0.parquet", rows)
    put_parquet(tmp_path / "vizwiz/data/val-00000-of-00001-7775.parquet", rows[:1])
    found = VIZWIZ.questions(tmp_path)
    assert [q.shown for q in found] == [f"what is {n}?" + PROMPT for n in range(3)]
    assert found[2].images == (picture(2),)
    assert json.loads(VIZWIZ.submit(tmp_path, found, TEXTS, tmp_path).read_text()) == SUBMITTED
    with pytest.raises(UserError, match="1 are missing, first 'VizWiz_test_00000002'"):
        VIZWIZ.submit(tmp_path, found[:2], TEXTS[:2], tmp_path)


def test_bad_data(tmp_path):
    with pytest.raises(UserError, match=r"neither vizwiz/llava_test.jsonl nor parquet"):
        VIZWIZ.questions(tmp_path)
    make_vizwiz(tmp_path)
    (tmp_path / "vizwiz/test/VizWiz_test_00000002.jpg").unlink()
    with pytest.raises(UserError, match=r"llava_test.jsonl, line 3: No image"):
        VIZWIZ.questions(tmp_path)
    (tmp_path / QUESTIONS).write_text('{"question_id": 0}\n')
    with pytest.raises(UserError, match=r"llava_test.jsonl, line 1 has no image, text"):
        VIZWIZ.questions(tmp_path)
