"""POPE's questions, labels and figures."""

from __future__ import annotations

import json

import pytest
from sets_choice import POPE_ROWS, SHORT, make_pope, picture, write_parquet

from qllava.errors import UserError
from qllava.evaluate.answers import keys
from qllava.evaluate.benchmarks.paper import MODELS
from qllava.evaluate.benchmarks.pope import POPE, figures, parse


def test_questions(tmp_path):
    make_pope(tmp_path)
    asked = POPE.questions(tmp_path)
    assert [(q.id, q.group, q.answer) for q in asked] == [(r[0], r[3], r[4]) for r in POPE_ROWS]
    assert asked[0].shown == "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    assert asked[0].turns[0].images == 1 and asked[0].images[0].name == "COCO_val2014_1.jpg"
    assert POPE.max_new_tokens == 128 and POPE.paper.keys() <= MODELS.keys()
    assert POPE.paper["llava-1.5-7b"] == {"f1": 85.9, "random f1": 87.3, "popular f1": 86.1, "adversarial f1": 84.2}
    assert POPE.paper["llava-1.5-13b"]["f1"] == 85.9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No", "no"), ("no, there is none", "no"), ("There is not. Yes", "no"), ("Yes. No.", "yes"), ("NO", "yes"),
        ("None", "yes"), ("No\n", "yes"), ("No,way", "yes"), ("", "yes"), ("A dog, no", "no"),
    ],
)  # fmt: skip
def test_parse(text, said):
    assert parse(text) == said


def test_figures_are_the_originals(shared):
    for case in json.loads((shared / "conformance/pope.json").read_text()):
        read = [
            [json.loads(line) for line in (shared / "conformance" / case[name]).read_text().splitlines()]
            for name in ("labels", "answers")
        ]
        found = figures([row["label"] for row in read[0]], [row["text"] for row in read[1]])
        names = ("F1 score", "Accuracy", "Precision", "Recall", "Yes ratio")
        assert list(found.values()) == [case["printed"][name] for name in names]


def test_score(tmp_path):
    make_pope(tmp_path)
    asked = POPE.questions(tmp_path)
    score = POPE.score(tmp_path, asked, ["Yes", "Yes", "Yes", "No", "No", "No"])
    assert score.parts["adversarial f1"] == pytest.approx(100 * 2 / 3)
    assert (score.parts["popular f1"], score.parts["random f1"]) == (100, 0)
    assert score.parts["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert [score.parts[f"random {n}"] for n in ("accuracy", "precision", "recall", "yes_ratio")] == [50, 0, 0, 0]
    assert [score.parts[f"adversarial {n}"] for n in ("accuracy", "precision", "recall")] == [50, 50, 100]
    assert list(score.parts)[1] == "random f1" and score.questions == 6 and not score.notes
    assert POPE.score(tmp_path, asked[:2], ["Yes", "No"]).notes == ("No question of: random, popular.",)


def test_hub(tmp_path):
    row = {"question": "Is there a dog in the image?", "answer": "yes", "image": {"bytes": picture(), "path": "a.png"}}
    rows = [{**row, "question_id": "1", "category": name} for name in ("adversarial", "popular", "random")]
    write_parquet(tmp_path / "pope/data/test-00000-of-00001.parquet", rows)
    asked = POPE.questions(tmp_path)
    assert [q.id for q in asked] == ["adversarial/1", "popular/1", "random/1"] and len(set(keys(asked))) == 3
    assert (asked[2].shown, asked[2].answer) == ("Is there a dog in the image?" + SHORT, "yes")
    assert asked[2].images == (picture(),)
    assert POPE.score(tmp_path, asked, ["Yes"] * 3).parts["f1"] == 100


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"neither pope/llava_pope_test\.jsonl nor parquet"):
        POPE.questions(tmp_path)
    labels = make_pope(tmp_path) / "coco" / "coco_pope_random.json"
    first = labels.read_text().splitlines()[0]
    labels.write_text(first + "\n")
    with pytest.raises(UserError, match=r"coco_pope_random\.json has 1 labels for the 2 random questions"):
        POPE.questions(tmp_path)
    labels.write_text(first.replace('"yes"', '"maybe"') + "\n")
    with pytest.raises(UserError, match=r"coco_pope_random\.json, line 1 needs the label"):
        POPE.questions(tmp_path)
    labels.unlink()
    with pytest.raises(UserError, match=r"No file .*coco_pope_random\.json"):
        POPE.questions(tmp_path)
    (tmp_path / "pope/val2014/COCO_val2014_2.jpg").unlink()
    with pytest.raises(UserError, match=r"line 4: No image at .*COCO_val2014_2\.jpg"):
        POPE.questions(tmp_path)
