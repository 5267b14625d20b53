"""The normal form of answers and VQA accuracy, against the original's own results and by hand."""

from __future__ import annotations

import json

import pytest

from qllava.errors import UserError
from qllava.evaluate.vqa_text import normalize, soft_accuracy


def test_scores_are_the_originals(shared):
    found = json.loads((shared / "conformance/textvqa.json").read_text())
    each = [soft_accuracy(case["pred_answer"], case["gt_answers"]) for case in found["cases"]]
    assert len(each) == 400 and each == found["each"]
    assert sum(each) / len(each) == found["mean"]
    assert {text: normalize(text) for text in found["normalised"]} == found["normalised"]


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Stop-Sign.", "stop sign"),
        ("a - b-c", "bc"),  # the space beside one hyphen takes all of them; "a" goes as an article
        ("x-b-c", "x b c"),
        ("10,000?", "10000"),
        ("3.5 or 3.", "3.5 or 3"),
        (".5", ".5"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),  # no more than 32 periods go
        ("Dog's", "dog 's"),
        ("let's", "let 's"),
        ("none", "0"),
        ("ten\tmen\nor Zero", "10 men or 0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("Im", "im"),  # the original's table has "Im", which no lower-case text meets
        ("somebody'd", "somebodyd"),
        ("twas oclock", "'twas o'clock"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("an", ""),
        ("$5.00 50% #1 & more", "$5.00 50% #1 & more"),
    ],
)
def test_normal_forms(answer, normal):
    assert normalize(answer) == normal


def test_accuracy_leaves_each_annotator_out():
    def score(same: int) -> float:
        return soft_accuracy("two", ["2"] * same + ["x"] * (10 - same))

    assert [score(n) for n in (0, 10)] == [0.0, 1.0]
    assert [score(n) for n in (1, 2, 3, 4)] == pytest.approx([0.3, 0.6, 0.9, 1.0])


@pytest.mark.parametrize("count", [0, 9, 11])
def test_only_ten_annotators(count):
    with pytest.raises(UserError, match=f"10 reference answers, and there are {count}"):
        soft_accuracy("a", ["a"] * count)
