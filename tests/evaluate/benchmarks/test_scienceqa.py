"""ScienceQA's questions, parsing and scores."""

from __future__ import annotations

import json

import pytest
from sets_choice import LETTER, SQA_ROWS, make_scienceqa, picture, write_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.paper import MODELS
from qllava.evaluate.benchmarks.scienceqa import SCIENCEQA, parse

FIRST = "Context: N/A\nQuestion: Which is highlighted?\nOptions: (A) Ohio (B) Texas (C) Iowa" + LETTER
SECOND = "Context: Water is a liquid.\nQuestion: Is water wet?\nOptions: (A) no (B) yes" + LETTER


def test_questions(tmp_path):
    make_scienceqa(tmp_path)
    asked = SCIENCEQA.questions(tmp_path)
    assert [(q.id, q.answer, len(q.images)) for q in asked] == [("4", "B", 1), ("5", "B", 0), ("11", "A", 1)]
    assert (asked[0].turns[0].text, asked[0].turns[0].images, asked[0].shown) == (FIRST, 1, "<image>\n" + FIRST)
    assert (asked[1].turns[0].text, asked[1].turns[0].images, asked[1].shown) == (SECOND, 0, SECOND)
    assert SCIENCEQA.max_new_tokens == 1024 and SCIENCEQA.paper.keys() <= MODELS.keys()
    assert SCIENCEQA.paper["llava-1.5-13b"] == {"image accuracy": 71.6}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("E", "E"), ("F", "FAILED"), ("b", "FAILED"), ("B. Texas", "B"), ("B.", "FAILED"), ("B.Texas", "FAILED"),
        ("The answer is B.", "B"), ("So: The answer is B, not A", "B"), ("The answer is B", "FAILED"), ("", "FAILED"),
        ("The answer is A. The answer is B.", "FAILED"), ("AB", "FAILED"), ("F. The answer is C.", "C"),
    ],
)  # fmt: skip
def test_parse(text, letter):
    assert parse(text) == letter


def test_score(tmp_path):
    make_scienceqa(tmp_path)
    asked = SCIENCEQA.questions(tmp_path)
    score = SCIENCEQA.score(tmp_path, asked, ["The answer is B.", "yes", "A. this"])
    assert score.parts == {"image accuracy": 100, "accuracy": pytest.approx(200 / 3)}
    assert score.notes == ("1 answers name no letter, and are wrong.",)
    assert SCIENCEQA.score(tmp_path, asked, ["C", "B", "E"]).parts["image accuracy"] == 0


def test_hub(tmp_path):
    rows = [
        {"question": question, "choices": choices, "answer": answer, "hint": hint,
         "image": {"bytes": picture(), "path": image} if image else None}
        for question, choices, answer, hint, image in SQA_ROWS.values()
    ]  # fmt: skip
    write_parquet(tmp_path / "scienceqa/ScienceQA-FULL/test-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "scienceqa/ScienceQA-IMG/test-00000-of-00001.parquet", rows[:1])
    asked = SCIENCEQA.questions(tmp_path)
    assert [q.id for q in asked] == ["0", "1", "2"]
    assert [q.shown for q in asked[:2]] == ["<image>\n" + FIRST, SECOND]
    assert SCIENCEQA.score(tmp_path, asked, ["B", "B", "B"]).parts["image accuracy"] == 50


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"neither scienceqa/llava_test_CQM-A\.json nor parquet"):
        SCIENCEQA.questions(tmp_path)
    folder = make_scienceqa(tmp_path)
    file, splits, problems = (folder / name for name in ("llava_test_CQM-A.json", "pid_splits.json", "problems.json"))
    splits.write_text(json.dumps({"test": ["4", "5"]}))
    with pytest.raises(UserError, match="differ in 1 questions, such as '11'"):
        SCIENCEQA.questions(tmp_path)
    whole = json.loads(problems.read_text())
    problems.write_text(json.dumps(whole | {"5": whole["5"] | {"answer": 2}}))
    with pytest.raises(UserError, match=r"problems\.json, '5' needs an answer"):
        SCIENCEQA.questions(tmp_path)
    problems.write_text(json.dumps({"4": whole["4"]}))
    with pytest.raises(UserError, match=r"problems\.json has no '5', which .*record 1 asks"):
        SCIENCEQA.questions(tmp_path)
    file.write_text(json.dumps([{"id": "4", "conversations": []}]))
    with pytest.raises(UserError, match="record 0 needs conversations"):
        SCIENCEQA.questions(tmp_path)
    make_scienceqa(tmp_path)
    (folder / "images/test/11/image.png").unlink()
    with pytest.raises(UserError, match=r"record 2: No image"):
        SCIENCEQA.questions(tmp_path)
