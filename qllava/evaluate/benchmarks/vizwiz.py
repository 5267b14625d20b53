"""VizWiz-VQA, test: 8,000 questions that blind people asked about their photos. Its answers are with a server.

Under `vizwiz/`: `llava_test.jsonl` and `test/`, or the parquet files of lmms-lab/VizWiz-VQA (split `test`). Facts:
LLaVA's scripts/v1_5/eval/vizwiz.sh and scripts/convert_vizwiz_for_submission.py; the prompt is in the paper's table 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..question import Question
from ..vqa_text import normalize
from .base import SHORT, Benchmark, need, read_lines
from .vqav2 import VLMEVALKIT, asked, hub_column, hub_question, hub_rows, write_json

QUESTIONS = "vizwiz/llava_test.jsonl"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT


def questions(root: Path) -> list[Question]:
    """All questions of the test split."""
    if (root / QUESTIONS).is_file():
        return asked(root / QUESTIONS, root / "vizwiz/test")
    found = []
    for number, row in enumerate(hub_rows(root, "vizwiz", "test", QUESTIONS)):
        where = f"{root / 'vizwiz'}, test row {number}"
        (text,) = need(row, where, "question")
        found.append(hub_question(row, where, "question_id", text + UNANSWERABLE))
    return found


def submit(root: Path, asked: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """Writes `vizwiz.json`: an answer for every question, by the name of its image.

    Raises:
        UserError: a question has none.
    """
    if (root / QUESTIONS).is_file():
        every = [tuple(need(row, where, "question_id", "image")) for where, row in read_lines(root / QUESTIONS)]
    else:  # the hub's ids are the images' names without their ending
        names = hub_column(root / "vizwiz", "test", "question_id")
        every = [(name, f"{str(name).removesuffix('.jpg')}.jpg") for name in names]
    given = {q.id: normalize(text) for q, text in zip(asked, texts, strict=True)}
    if missing := [name for name, _ in every if name not in given]:
        raise UserError(
            f"The server takes all {len(every):,} answers; {len(missing):,} are missing, first {missing[0]!r}."
        )
    return write_json(folder / "vizwiz.json", [{"image": image, "answer": given[name]} for name, image in every])


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 50.0,
            "llava-1.5-13b": 53.6,
            "llava-1.5-hd-13b": 57.5,
            "llava-1.5-7b-lora": 47.8,
            "llava-1.5-13b-lora": 58.9,
            "blip-2": 19.6,
            "instructblip-7b": 34.5,
            "instructblip-13b": 33.4,
            "idefics-9b": 35.5,
            "idefics-80b": 36.0,
            "qwen-vl": 35.2,
            "qwen-vl-chat": 38.9,
            "pali-x-55b": 70.9,  # *
        }.items()
    },
    questions=questions,
    official=8000,
    max_new_tokens=128,
    submit=submit,
    server="EvalAI, VizWiz VQA: https://eval.ai/web/challenges/challenge-page/2185/my-submission",
    differences=(
        "lmms-eval: the question's first letter made a capital and all others small; scores the val split too.",
        VLMEVALKIT,
    ),
)
