"""VQAv2: questions of both layouts, and the server's file."""

from __future__ import annotations

import json

import pytest
from sets_vqa import SHORT, VQAV2_IDS, make_vqav2, picture, put_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.vqav2 import EVERY, QUESTIONS, VQAV2

TEXTS = ("The Bat-Man.", "baseball", "two")


def test_original_layout(tmp_path):
    make_vqav2(tmp_path)
    found = VQAV2.questions(tmp_path)
    assert [q.id for q in found] == list(VQAV2_IDS)
    assert [(t.role, t.text, t.images) for t in found[0].turns] == [
        ("user", "Is the ball flying towards the batter?" + SHORT, 1)
    ]
    assert found[0].images == ((tmp_path / "vqav2/test2015/COCO_test2015_000000262144.jpg").resolve(),)
    assert found[0].answer is None and VQAV2.score is None and VQAV2.max_new_tokens == 128
    assert VQAV2.paper["llava-1.5-7b"] == {"accuracy": 78.5}


def test_submission_names_all_of_test2015(tmp_path):
    make_vqav2(tmp_path)
    file = VQAV2.submit(tmp_path, VQAV2.questions(tmp_path), TEXTS, tmp_path / "out")
    assert json.loads(file.read_text()) == [
        {"question_id": 1, "answer": ""},
        {"question_id": VQAV2_IDS[2], "answer": "2"},
        {"question_id": VQAV2_IDS[0], "answer": "bat man"},
        {"question_id": VQAV2_IDS[1], "answer": "baseball"},
        {"question_id": 2, "answer": ""},
    ]


def test_hub_layout(tmp_path):
    rows = [{"question_id": n, "image_id": 7, "question": f"What is {n}?", "answers": None} for n in (70, 71, 72)]
    put_parquet(tmp_path / "vqav2/data/testdev-00000-of-00001.parquet", rows[:2])
    found = VQAV2.questions(tmp_path)
    assert [(q.id, q.shown) for q in found] == [(70, "What is 70?" + SHORT), (71, "What is 71?" + SHORT)]
    assert found[1].images == (picture(1),) and found[1].turns[0].images == 1
    with pytest.raises(UserError, match="every question of test2015"):
        VQAV2.submit(tmp_path, found, TEXTS[:2], tmp_path)
    put_parquet(tmp_path / "vqav2/data/test-00000-of-00001.parquet", rows)
    assert len(VQAV2.questions(tmp_path)) == 2
    file = VQAV2.submit(tmp_path, found, TEXTS[:2], tmp_path)
    assert [row["answer"] for row in json.loads(file.read_text())] == ["bat man", "baseball", ""]


def test_an_asked_question_that_the_list_lacks(tmp_path):
    make_vqav2(tmp_path)
    found = VQAV2.questions(tmp_path)
    file = tmp_path / EVERY
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if str(VQAV2_IDS[1]) not in line))
    with pytest.raises(UserError, match=f"lacks {VQAV2_IDS[1]}"):
        VQAV2.submit(tmp_path, found, TEXTS, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1', "line 2 is no JSON"),
        ('["x"]', "line 2 is list"),
        ('{"question_id": 1, "image": "a.jpg"}', "line 2 has no text"),
        ('{"question_id": 1, "image": 5, "text": "x"}', "line 2 needs question_id"),
        ('{"question_id": [1], "image": "a.jpg", "text": "x"}', "line 2 needs question_id"),
        ('{"question_id": 1, "image": "a.jpg", "text": "x"}', "line 2: No image at"),
        ('{"question_id": 1, "image": "../../a.jpg", "text": "x"}', "line 2: .* leaves the image root"),
    ],
)
def test_malformed_lines(tmp_path, line, message):
    make_vqav2(tmp_path)
    lines = (tmp_path / QUESTIONS).read_text().splitlines()
    (tmp_path / QUESTIONS).write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(UserError, match=f"test-dev2015.jsonl, {message}"):
        VQAV2.questions(tmp_path)


def test_no_data(tmp_path):
    with pytest.raises(UserError, match=r"neither vqav2/llava_.*jsonl nor parquet"):
        VQAV2.questions(tmp_path)
