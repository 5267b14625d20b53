"""ScienceQA, test: 4,241 school questions with choices, 2,017 of them with a picture; the paper's figure is of those.

Under `scienceqa/`: `llava_test_CQM-A.json`, `problems.json`, `pid_splits.json` and `images/test/`; or the hub's
lmms-lab/ScienceQA (folder `ScienceQA-FULL`, else `ScienceQA-IMG`; split `test`), whose questions are written here in the form
CQM-A and called by their row, as it has no ids. Facts: LLaVA's scripts/v1_5/eval/sqa.sh, llava/eval/model_vqa_science.py,
llava/eval/eval_science_qa.py and scripts/convert_sqa_to_llava_base_prompt.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.sample import PLACEHOLDER, ask
from ...errors import UserError
from ..question import Question
from .base import LETTER, Benchmark, Score, image_bytes, need, percent, picture, read_json
from .vqav2 import VLMEVALKIT, hub_rows

QUESTIONS = "scienceqa/llava_test_CQM-A.json"
PROBLEMS = "scienceqa/problems.json"
SPLITS = "scienceqa/pid_splits.json"
OPTIONS = "ABCDE"
FAILED = "FAILED"


def parse(text: str) -> str:
    """The letter that is the answer, or begins it ("B. …"), or that "The answer is B." names once; else FAILED."""
    if len(text) == 1 and text in OPTIONS:
        return text
    if text[:1] and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else FAILED


def cqm(question: str, hint: str, choices: Sequence[str]) -> str:
    """A question in the form of `llava_test_CQM-A.json`: context, question, options."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(OPTIONS, choices, strict=False))
    text = f"Context: {hint.strip() or 'N/A'}\nQuestion: {question}\nOptions: {options}\n"
    return text.replace("  ", " ").strip()


def _letter(row: Mapping[str, Any], where: str) -> str:
    answer, choices = need(row, where, "answer", "choices")
    if not isinstance(choices, list) or type(answer) is not int or not 0 <= answer < min(len(choices), len(OPTIONS)):
        raise UserError(
            f"{where} needs an answer that numbers one of its choices, and has {answer!r} of {choices!r:.80}."
        )
    return OPTIONS[answer]


def _question(name: str, text: str, image: Path | bytes | None, answer: str) -> Question:
    if image is None:
        return Question(name, ask(text + LETTER), answer=answer)
    return Question(name, ask(text + LETTER, 1), (image,), answer, prompt=f"{PLACEHOLDER}\n{text}{LETTER}")


def questions(root: Path) -> list[Question]:
    """The questions of LLaVA's file, with the letters of the right choices.

    Raises:
        UserError: a file is missing or malformed, or the questions are not those of the split `test`.
    """
    if not (root / QUESTIONS).is_file():
        return _from_hub(root)
    rows, problems, splits = read_json(root / QUESTIONS), read_json(root / PROBLEMS), read_json(root / SPLITS)
    split = splits.get("test") if isinstance(splits, dict) else None
    if not isinstance(rows, list) or not isinstance(problems, dict) or not isinstance(split, list):
        raise UserError(
            f"{root / QUESTIONS} needs a list, {root / PROBLEMS} an object, and {root / SPLITS} a list as 'test'."
        )
    found = []
    for number, row in enumerate(rows):
        where = f"{root / QUESTIONS}, record {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where} is {type(row).__name__}, not an object.")
        name, talk = need(row, where, "id", "conversations")
        if not isinstance(problems.get(name), dict):
            raise UserError(f"{root / PROBLEMS} has no {name!r}, which {where} asks.")
        try:
            text = talk[0]["value"].replace(PLACEHOLDER, "").strip()
        except (LookupError, TypeError, AttributeError):
            raise UserError(f"{where} needs conversations that begin with a text as 'value'.") from None
        image = None
        if "image" in row:
            try:
                image = picture(str(row["image"]), root / "scienceqa/images/test")
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        found.append(_question(name, text, image, _letter(problems[name], f"{root / PROBLEMS}, {name!r}")))
    if other := {q.id for q in found} ^ set(split):
        name = min(other, key=str)
        raise UserError(
            f"{root / QUESTIONS} and the split test of {root / SPLITS} differ in {len(other):,} questions, such as {name!r}."
        )
    return found


def _from_hub(root: Path) -> list[Question]:
    folders = [
        f"scienceqa/{name}" for name in ("ScienceQA-FULL", "ScienceQA-IMG") if (root / "scienceqa" / name).is_dir()
    ]
    folder = folders[0] if folders else "scienceqa"
    found = []
    for number, row in enumerate(hub_rows(root, folder, "test", QUESTIONS)):
        where = f"{root / folder}, test row {number}"
        (question,) = need(row, where, "question")
        letter = _letter(row, where)
        image = image_bytes(row["image"], where) if row.get("image") is not None else None
        found.append(_question(str(number), cqm(question, row.get("hint") or "", row["choices"]), image, letter))
    return found


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """Accuracy of all questions, and of those with a picture."""
    given = [parse(text) for text in texts]
    hits = [(letter == q.answer, bool(q.images)) for q, letter in zip(asked, given, strict=True)]
    seen = [hit for hit, image in hits if image]
    parts = {"image accuracy": percent(sum(seen), len(seen)), "accuracy": percent(sum(h for h, _ in hits), len(hits))}
    failed = given.count(FAILED)
    return Score(parts, len(texts), (f"{failed:,} answers name no letter, and are wrong.",) if failed else ())


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA (image)",
    main="image accuracy",
    paper={
        model: {"image accuracy": value}
        for model, value in {
            "llava-1.5-7b": 66.8,
            "llava-1.5-13b": 71.6,
            "llava-1.5-hd-13b": 71.0,
            "llava-1.5-7b-lora": 68.4,
            "llava-1.5-13b-lora": 71.2,
            "blip-2": 61.0,
            "instructblip-7b": 60.5,
            "instructblip-13b": 63.1,
            "qwen-vl": 67.1,
            "qwen-vl-chat": 68.2,
        }.items()
    },
    questions=questions,
    official=2017,
    max_new_tokens=1024,
    score=score,
    differences=(
        'lmms-eval: choices as lines "A. …", no "Question:" or "Options:", no context where there is none; answers of at most '
        '16 tokens; small letters and "B." count, "The answer is B." does not.',
        VLMEVALKIT,
    ),
)
