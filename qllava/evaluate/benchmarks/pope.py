"""POPE: "Is there a … in the image?" about COCO pictures, in three categories by how the absent objects were drawn.

Under `pope/`: `llava_pope_test.jsonl` (8,910 questions), `val2014/` and `coco/coco_pope_{random,popular,adversarial}.json` with
the labels; or the parquet files of lmms-lab/POPE (split `test`, 9,000 questions: its category `random` is 90 longer). Facts:
LLaVA's scripts/v1_5/eval/pope.sh and llava/eval/eval_pope.py. Question and label files number their lines differently, and
the original pairs them by order within a category; so does this, once their counts are equal. The paper prints an F1 for each
category; the model zoo's figure is the mean of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ..question import Question
from .base import SHORT, Benchmark, Score, need, read_lines
from .vqav2 import VLMEVALKIT, asked, hub_question, hub_rows

QUESTIONS = "pope/llava_pope_test.jsonl"
CATEGORIES = ("random", "popular", "adversarial")


def parse(text: str) -> str:
    """`no` where the first sentence has one of the words No, not, no (spaces alone part words); else `yes`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def figures(labels: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Fractions as eval_pope.py computes them; 0 where it divides by zero (nothing answered or labelled yes)."""
    pairs = [(parse(text) == "yes", label != "no") for text, label in zip(answers, labels, strict=True)]
    hits = pairs.count((True, True))
    said, true, right = sum(p for p, _ in pairs), sum(t for _, t in pairs), sum(p == t for p, t in pairs)
    precision = hits / said if said else 0.0
    recall = hits / true if true else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": right / len(pairs) if pairs else 0.0,
        "precision": precision,
        "recall": recall,
        "yes_ratio": said / len(pairs) if pairs else 0.0,
    }


def _label(value: object, where: str) -> str:
    if value not in ("yes", "no"):
        raise UserError(f"{where} needs the label 'yes' or 'no', and has {value!r:.80}.")
    return str(value)


def questions(root: Path) -> list[Question]:
    """All questions with their labels.

    Raises:
        UserError: a file is missing or malformed, or a category has another number of labels than of questions.
    """
    if not (root / QUESTIONS).is_file():
        return _from_hub(root)
    found = asked(root / QUESTIONS, root / "pope/val2014")
    categories = [str(need(row, where, "category")[0]) for where, row in read_lines(root / QUESTIONS)]
    for category in dict.fromkeys(categories):
        file = root / f"pope/coco/coco_pope_{category}.json"
        labels = [_label(need(row, where, "label")[0], where) for where, row in read_lines(file)]
        places = [i for i, name in enumerate(categories) if name == category]
        if len(labels) != len(places):
            raise UserError(
                f"{file} has {len(labels):,} labels for the {len(places):,} {category} questions of {root / QUESTIONS}; "
                "they are paired by order, so these files are not of one version."
            )
        for place, label in zip(places, labels, strict=True):
            found[place] = replace(found[place], answer=label, group=category)
    return found


def _from_hub(root: Path) -> list[Question]:
    """Ids begin again in each category there, so that theirs here are `category/question_id`."""
    found = []
    for number, row in enumerate(hub_rows(root, "pope", "test", QUESTIONS)):
        where = f"{root / 'pope'}, test row {number}"
        text, answer, category, name = need(row, where, "question", "answer", "category", "question_id")
        label = _label(str(answer).lower().strip(), where)
        row = {**row, "id": f"{category}/{name}"}
        found.append(hub_question(row, where, "id", text.strip() + SHORT, answer=label, group=str(category)))
    return found


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """Five figures of each category in percent, and as `f1` the mean of their F1."""
    pairs = list(zip(asked, texts, strict=True))
    met = dict.fromkeys(q.group for q in asked)
    parts: dict[str, float] = {"f1": 0.0}
    for group in sorted(met, key=lambda name: (CATEGORIES.index(name) if name in CATEGORIES else 3, name)):
        found = figures([q.answer for q in asked if q.group == group], [text for q, text in pairs if q.group == group])
        parts |= {f"{group} {name}": 100 * value for name, value in found.items()}
    if met:
        parts["f1"] = sum(parts[f"{group} f1"] for group in met) / len(met)
    missing = [name for name in CATEGORIES if name not in met]
    return Score(parts, len(texts), (f"No question of: {', '.join(missing)}.",) if missing else ())


def _published(random: float, popular: float, adversarial: float) -> dict[str, float]:
    """The paper's three, and their mean, which is the model zoo's figure where that has one (85.9 for 7B and 13B)."""
    mean = round((random + popular + adversarial) / 3, 1)
    return {"f1": mean, "random f1": random, "popular f1": popular, "adversarial f1": adversarial}


POPE = Benchmark(
    name="pope",
    title="POPE",
    main="f1",
    paper={
        "llava-1.5-7b": _published(87.3, 86.1, 84.2),
        "llava-1.5-13b": _published(87.1, 86.2, 84.5),
        "llava-1.5-hd-13b": _published(87.5, 86.4, 85.0),
        "llava-1.5-7b-lora": {"f1": 86.4},
        "llava-1.5-13b-lora": {"f1": 86.7},
        "llava-7b": _published(76.3, 72.2, 70.1),
        "blip-2": _published(89.6, 85.5, 80.9),
        "instructblip-13b": _published(87.7, 77.0, 72.0),
    },
    questions=questions,
    official=8910,
    max_new_tokens=128,
    score=score,
    differences=(
        "lmms-eval: only the whole answers 'yes' and 'no' count; one F1 over all categories; its yes ratio is of the labels.",
        VLMEVALKIT,
    ),
)
