"""Questions with answers about one image each: VQAv2, OK-VQA, A-OKVQA (COCO's images), and GQA.

In: the files as they were published. Out: a talk for each question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from .inputs import Inputs
from .raw import Records
from .rules import Talk, capital


def vqav2(inputs: Inputs) -> Iterator[Talk]:
    """`v2_OpenEnded_mscoco_train2014_questions.json` and `v2_mscoco_train2014_annotations.json`; the answer is the one most given."""
    file = inputs.listed("annotations", "annotations")
    answers: dict[int, str] = {}
    for record in file:
        answers[_new(file, record, answers)] = file.text(record, "multiple_choice_answer")
    yield from _answered(inputs, answers)


def okvqa(inputs: Inputs) -> Iterator[Talk]:
    """OK-VQA's two files, in VQAv2's layout; the answer is the one that most people gave, the first of those given equally often."""
    file = inputs.listed("annotations", "annotations")
    answers: dict[int, str] = {}
    for record in file:
        given = [file.text(a, "raw_answer" if isinstance(a, dict) and "raw_answer" in a else "answer")
                 for a in file.many(record, "answers")]  # fmt: skip
        if not given:
            raise file.fail("has no answers")
        answers[_new(file, record, answers)] = Counter(given).most_common(1)[0][0]
    yield from _answered(inputs, answers)


def _new(file: Records, record: Any, answers: dict[int, str]) -> int:
    """The record's question, which has no answer yet."""
    number = file.whole(record, "question_id")
    if number in answers:
        raise file.fail(f"question {number} has an answer already; leave one of them out")
    return number


def _answered(inputs: Inputs, answers: dict[int, str]) -> Iterator[Talk]:
    file = inputs.listed("questions", "questions")
    for record in inputs.counted(file):
        number = file.whole(record, "question_id")
        if number not in answers:
            raise file.fail(f"question {number} has no answer in {inputs.named('annotations')}")
        image = file.natural(record, "image_id")
        yield Talk(f"{image:012d}", inputs.coco(image), [(file.text(record, "question"), capital(answers[number]))])


def aokvqa(inputs: Inputs) -> Iterator[Talk]:
    """`aokvqa_v1p0_train.json`; a pair has the question, its choices, and the right one's number."""
    file = inputs.listed("questions")
    for record in inputs.counted(file):
        choices, right = file.many(record, "choices", str), file.whole(record, "correct_choice_idx")
        if not 2 <= len(choices) <= 26 or not 0 <= right < len(choices):
            raise file.fail(f"'correct_choice_idx' is {right} of {len(choices)} choices")
        if not all(choice.strip() for choice in choices):
            raise file.fail("has a choice without a text")
        image = file.natural(record, "image_id")
        yield Talk(f"{image:012d}", inputs.coco(image), [(file.text(record, "question"), tuple(choices), right)])


def gqa(inputs: Inputs) -> Iterator[Talk]:
    """`train_balanced_questions.json`: questions by their number; the answer is the short one."""
    file = inputs.entries("questions")
    for _, record in inputs.counted(file):
        image = file.name(record, "imageId")
        pair = (file.text(record, "question"), capital(file.text(record, "answer")))
        yield Talk(image, inputs.image(f"{image}.jpg"), [pair])
