"""TextVQA, val 0.5.1: 5,000 questions about text in pictures, with the data set's OCR tokens in the prompt and without.

Under `textvqa/`: `TextVQA_0.5.1_val.json`, `train_images/` and, with OCR, `llava_textvqa_val_v051_ocr.jsonl` (tokens of
Rosetta v0.2, haotian-liu/LLaVA#976); or the parquet files of lmms-lab/textvqa (split `validation`), whose column of
tokens may differ from that file's. A question's id is its image's, as in LLaVA's file, and comes again: annotations are
found by image and question. Facts: LLaVA's scripts/v1_5/eval/textvqa.sh and llava/eval/eval_textvqa.py.

The paper's figures are with OCR tokens. Without them it prints none for LLaVA-1.5; those that go round are other
harnesses', so `TEXTVQA_NOOCR.paper` is empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data.sample import ask
from ...errors import UserError
from ..question import Question
from ..vqa_text import ANNOTATORS, soft_accuracy
from .base import SHORT, Benchmark, Score, need, picture, read_json
from .vqav2 import VLMEVALKIT, asked, hub_question, hub_rows

QUESTIONS = "textvqa/llava_textvqa_val_v051_ocr.jsonl"
ANNOTATIONS = "textvqa/TextVQA_0.5.1_val.json"
IMAGES = "textvqa/train_images"
REFERENCE = "\nReference OCR token: "


def question_in(prompt: str) -> str | None:
    """The question inside a prompt, in small letters, by the forms that eval_textvqa.py knows; else None."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return found.group(1).lower() if found else None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[prompt.startswith("Reference OCR token:")].lower()
    return lines[0].lower() if len(lines) == 2 else None


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    (answers,) = need(row, where, "answers")
    if not isinstance(answers, list) or len(answers) != ANNOTATORS or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{where} needs {ANNOTATORS} answers, and has {answers!r:.80}.")
    return tuple(answers)


def _annotations(root: Path) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Place, image, question and answers of each."""
    document = read_json(root / ANNOTATIONS)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{root / ANNOTATIONS} has no list of annotations under 'data'.")
    found = []
    for number, row in enumerate(rows):
        where = f"{root / ANNOTATIONS}, data[{number}]"
        image, question = need(row, where, "image_id", "question")
        found.append((where, str(image), str(question), _answers(row, where)))
    return found


def _from_hub(root: Path, ocr: bool, instead: str) -> list[Question]:
    found = []
    for number, row in enumerate(hub_rows(root, "textvqa", "validation", instead)):
        where = f"{root / 'textvqa'}, validation row {number}"
        (question,) = need(row, where, "question")
        tokens = REFERENCE + ", ".join(row.get("ocr_tokens") or ()) if ocr else ""
        prompt = question.capitalize() + tokens + SHORT
        found.append(hub_question(row, where, "image_id", prompt, answer=_answers(row, where)))
    return found


def questions_ocr(root: Path) -> list[Question]:
    """The questions of LLaVA's file, with the annotators' answers.

    Raises:
        UserError: a file is missing or malformed, or a question has no annotation.
    """
    if not (root / QUESTIONS).is_file():
        return _from_hub(root, True, QUESTIONS)
    answers = {(image, question.lower()): given for _, image, question, given in _annotations(root)}
    found = []
    for question in asked(root / QUESTIONS, root / IMAGES):
        prompt = question.shown
        text = question_in(prompt)
        if text is None:
            raise UserError(
                f"{root / QUESTIONS}, question {question.id!r} has no prompt of a known form: {prompt!r:.120}."
            )
        if (str(question.id), text) not in answers:
            raise UserError(
                f"{root / ANNOTATIONS} has no {text!r} about image {question.id!r}, which {QUESTIONS} asks."
            )
        found.append(replace(question, answer=answers[str(question.id), text]))
    return found


def questions_noocr(root: Path) -> list[Question]:
    """The annotations' questions, the first letter a capital as in LLaVA's file.

    Raises:
        UserError: the file is missing or malformed, or an image is missing.
    """
    if not (root / ANNOTATIONS).is_file():
        return _from_hub(root, False, ANNOTATIONS)
    found = []
    for where, image, question, answers in _annotations(root):
        try:
            file = picture(f"{image}.jpg", root / IMAGES)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        found.append(Question(image, ask(question.capitalize() + SHORT, 1), (file,), answers))
    return found


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """VQA accuracy."""
    each = [soft_accuracy(text, q.answer) for q, text in zip(asked, texts, strict=True)]
    return Score({"accuracy": 100 * sum(each) / len(each) if each else 0.0}, len(each))


LMMS_EVAL = "lmms-eval: no OCR tokens by default (ocr: false)"

TEXTVQA_OCR = Benchmark(
    name="textvqa_ocr",
    title="TextVQA with OCR tokens",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 58.2,
            "llava-1.5-13b": 61.3,
            "llava-1.5-hd-13b": 62.5,
            "llava-1.5-7b-lora": 58.2,
            "llava-1.5-13b-lora": 60.2,
            "blip-2": 42.5,
            "instructblip-7b": 50.1,
            "instructblip-13b": 50.7,
            "idefics-9b": 25.9,
            "idefics-80b": 30.9,
            "qwen-vl": 63.8,  # *
            "qwen-vl-chat": 61.5,  # *
            "pali-x-55b": 71.4,  # *
        }.items()
    },
    questions=questions_ocr,
    official=5000,
    max_new_tokens=128,
    score=score,
    differences=(
        f"{LMMS_EVAL}: compare its figures with textvqa_noocr.",
        f"{VLMEVALKIT} TextVQA: no OCR tokens; 45.5 (open-compass/VLMEvalKit#1029).",
    ),
)

TEXTVQA_NOOCR = Benchmark(
    name="textvqa_noocr",
    title="TextVQA without OCR tokens",
    main="accuracy",
    paper={},
    questions=questions_noocr,
    official=5000,
    max_new_tokens=128,
    score=score,
    differences=(f"{LMMS_EVAL}, as here.", f"{VLMEVALKIT} TextVQA: 45.5 (open-compass/VLMEvalKit#1029)."),
)
