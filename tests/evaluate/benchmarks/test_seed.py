"""SEED-Bench's questions, scores and submission."""

from __future__ import annotations

import json

import pytest
from sets_choice import LETTER, SEED_ROWS, make_seed, picture, write_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.paper import MODELS
from qllava.evaluate.benchmarks.seed import SEED


def test_questions(tmp_path):
    make_seed(tmp_path)
    asked = SEED.questions(tmp_path)
    assert [(q.id, q.answer, q.group) for q in asked] == [
        (101669, "A", "image/Scene Understanding"),
        (101670, "D", "image/Text Understanding"),
        ("v7", "C", "video/Action Recognition"),
    ]
    assert asked[0].shown == f"What is in 101669?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}"
    assert asked[2].images[0].name == "v7.png" and SEED.max_new_tokens == 128
    assert SEED.paper.keys() <= MODELS.keys()
    assert SEED.paper["llava-1.5-7b"] == {"all": 58.6, "image": 66.1, "video": 37.3}


def test_score(tmp_path):
    make_seed(tmp_path)
    asked = SEED.questions(tmp_path)
    score = SEED.score(tmp_path, asked, ["A", "D.", "C"])
    assert score.parts == {
        "all": pytest.approx(200 / 3), "image": 50, "video": 100,
        "Action Recognition": 100, "Scene Understanding": 100, "Text Understanding": 0,
    }  # fmt: skip
    assert not score.notes
    assert SEED.score(tmp_path, asked, ["a", " D", "C. Three"]).parts["all"] == 0
    assert SEED.score(tmp_path, asked[:2], ["A", "D"]).notes[0].startswith("1 questions of seed_bench/SEED-Bench.json")


def test_submission(tmp_path):
    make_seed(tmp_path)
    asked = SEED.questions(tmp_path)
    file = SEED.submit(tmp_path, asked, ["A", "B", "C"], tmp_path / "out")
    assert file.read_text() == (
        '{"question_id": "101669", "prediction": "A"}\n'
        '{"question_id": "101670", "prediction": "B"}\n'
        '{"question_id": "v7", "prediction": "C"}\n'
    )
    with pytest.raises(UserError, match="1 were not asked, such as 'v7'"):
        SEED.submit(tmp_path, asked[:2], ["A", "B"], tmp_path / "out")


def test_hub(tmp_path):
    frames = {"image": [picture()], "video": [picture("red"), picture("blue"), picture("green")]}
    rows = [
        {"question_id": name, "question": f"What is in {name}?", "answer": answer, "data_type": data,
         "question_type_id": kind, "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four",
         "image": [{"bytes": frame, "path": None} for frame in frames[data]]}
        for name, kind, data, _, answer in SEED_ROWS
    ]  # fmt: skip
    write_parquet(tmp_path / "seed_bench/data/test-00000-of-00001.parquet", rows)
    asked = SEED.questions(tmp_path)
    assert asked[0].shown == f"What is in 101669?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}"
    assert asked[2].images == (picture("blue"),)
    assert SEED.score(tmp_path, asked, ["A", "A", "C"]).parts["type 9"] == 0
    assert len(SEED.submit(tmp_path, asked, ["A", "A", "C"], tmp_path / "out").read_text().splitlines()) == 3


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"neither seed_bench/llava-seed-bench\.jsonl nor parquet"):
        SEED.questions(tmp_path)
    folder = make_seed(tmp_path)
    file = folder / "SEED-Bench.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"questions": whole["questions"][:2]}))
    with pytest.raises(UserError, match=r"SEED-Bench\.json has no question 'v7'"):
        SEED.questions(tmp_path)
    file.write_text(json.dumps(whole | {"question_type": {"Scene Understanding": 1}}))
    with pytest.raises(UserError, match=r"questions\[1\] is of the type 9"):
        SEED.questions(tmp_path)
    file.write_text("[]")
    with pytest.raises(UserError, match="needs an object 'question_type'"):
        SEED.questions(tmp_path)
    make_seed(tmp_path)
    (folder / SEED_ROWS[1][3]).unlink()
    with pytest.raises(UserError, match="line 2: No image"):
        SEED.questions(tmp_path)
