"""GQA, testdev-balanced: 12,578 compositional questions about 398 pictures; an answer is right if it is the reference.

Under `gqa/`: `llava_gqa_testdev_balanced.jsonl`, and in `data/` the official `testdev_balanced_questions.json` and
`images/`; or the hub's lmms-lab/GQA, its folders `testdev_balanced_instructions` and `testdev_balanced_images`. Facts:
LLaVA's scripts/v1_5/eval/gqa.sh, scripts/convert_gqa_for_eval.py (final periods off, lower case) and GQA's own eval.py
(equality; `query` questions are open, the others binary).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..question import Question
from .base import SHORT, Benchmark, Score, need, percent, read_json
from .vqav2 import VLMEVALKIT, asked, hub_question, hub_rows, write_json

QUESTIONS = "gqa/llava_gqa_testdev_balanced.jsonl"
OFFICIAL = "gqa/data/testdev_balanced_questions.json"
PREDICTIONS = "testdev_balanced_predictions.json"
KINDS = ("structural", "semantic")


def _group(row: Mapping[str, Any]) -> str:
    """`query/attr`: structural and semantic type; nothing where the row does not have both."""
    types = row.get("types")
    found = [types.get(kind) for kind in KINDS] if isinstance(types, dict) else []
    return "/".join(map(str, found)) if all(found) else ""


def questions(root: Path) -> list[Question]:
    """All questions with their reference answers.

    Raises:
        UserError: a file is missing or malformed, or a question has no reference.
    """
    if (root / QUESTIONS).is_file():
        return _original(root)
    rows = hub_rows(root, "gqa", "testdev_balanced_instructions", QUESTIONS)
    pictures = {
        row.get("id"): row.get("image") for row in hub_rows(root, "gqa", "testdev_balanced_images", "gqa/data/images")
    }
    found = []
    for number, row in enumerate(rows):
        where = f"{root / 'gqa'}, testdev_balanced_instructions row {number}"
        text, image, answer = need(row, where, "question", "imageId", "answer")
        row = {**row, "image": pictures.get(image)}
        found.append(hub_question(row, where, "id", text + SHORT, answer=answer, group=_group(row)))
    return found


def _original(root: Path) -> list[Question]:
    official = read_json(root / OFFICIAL)
    if not isinstance(official, dict):
        raise UserError(f"{root / OFFICIAL} is {type(official).__name__}, not an object of questions by id.")
    found = []
    for question in asked(root / QUESTIONS, root / "gqa/data/images"):
        row = official.get(str(question.id))
        if not isinstance(row, dict):
            raise UserError(f"{root / OFFICIAL} has no question {question.id!r}, which {root / QUESTIONS} asks.")
        (answer,) = need(row, f"{root / OFFICIAL}, question {question.id!r}", "answer")
        found.append(replace(question, answer=answer, group=_group(row)))
    return found


def prediction(text: str) -> str:
    """What is compared."""
    return text.rstrip(".").lower()


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """Accuracy, and its parts by type: `binary`, `open`, `structural.…` and `semantic.…`."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for question, text in zip(asked, texts, strict=True):
        hit = prediction(text) == question.answer
        hits["accuracy"].append(hit)
        if question.group:
            kinds = question.group.split("/", 1)
            hits["open" if kinds[0] == "query" else "binary"].append(hit)
            for kind, value in zip(KINDS, kinds, strict=True):
                hits[f"{kind}.{value}"].append(hit)
    names = ["accuracy", *sorted(hits.keys() - {"accuracy"})]
    return Score({name: percent(sum(hits[name]), len(hits[name])) for name in names}, len(texts))


def submit(root: Path, asked: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """Writes `testdev_balanced_predictions.json`, which GQA's eval.py reads (`--tier testdev_balanced`)."""
    pairs = zip(asked, texts, strict=True)
    return write_json(folder / PREDICTIONS, [{"questionId": q.id, "prediction": prediction(text)} for q, text in pairs])


GQA = Benchmark(
    name="gqa",
    title="GQA",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 62.0,  # *
            "llava-1.5-13b": 63.3,  # *
            "llava-1.5-hd-13b": 64.7,  # *
            "llava-1.5-7b-lora": 63.0,
            "llava-1.5-13b-lora": 63.3,
            "blip-2": 41.0,
            "instructblip-7b": 49.2,
            "instructblip-13b": 49.5,
            "idefics-9b": 38.4,
            "idefics-80b": 45.2,
            "qwen-vl": 59.3,  # *
            "qwen-vl-chat": 57.5,  # *
            "pali-x-55b": 72.1,  # *
        }.items()
    },
    questions=questions,
    official=12_578,
    max_new_tokens=128,
    score=score,
    submit=submit,
    differences=(
        "lmms-eval: answers of at most 16 tokens, compared without any punctuation.",
        VLMEVALKIT + " GQA: a final period is kept, and the answer wrong for it.",
    ),
)
