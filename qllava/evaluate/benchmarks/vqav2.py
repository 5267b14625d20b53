"""VQAv2, test-dev 2015: open questions about COCO pictures. Its answers are with a server.

Under `vqav2/`: `llava_vqav2_mscoco_test-dev2015.jsonl` (107,394 questions), `llava_vqav2_mscoco_test2015.jsonl`
(447,793: all that a submission must name) and `test2015/`, or the parquet files of lmms-lab/VQAv2, whose `testdev`
split holds an image for every question, about 17 GB that are read into memory. Facts: LLaVA's
scripts/v1_5/eval/vqav2.sh and scripts/convert_vqav2_for_submission.py.
The readers of question files here serve the sets of the same layout too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.sample import ask
from ...errors import UserError
from ..question import Question
from ..vqa_text import normalize
from .base import SHORT, Benchmark, from_hub, image_bytes, need, picture, read_lines

QUESTIONS, EVERY = "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", "vqav2/llava_vqav2_mscoco_test2015.jsonl"
VLMEVALKIT = 'VLMEvalKit: another system prompt, the image between spaces (" <image> "), a space after "ASSISTANT:".'


def asked(file: Path, images: Path) -> list[Question]:
    """The questions of a file for LLaVA's model_vqa_loader.py: `question_id`, `image` and `text`, used as it is.

    Raises:
        UserError: a line is malformed, or its image is not under `images`; names the line.
    """
    questions = []
    for where, row in read_lines(file):
        name, image, text = need(row, where, "question_id", "image", "text")
        if not isinstance(name, str | int) or not isinstance(image, str) or not isinstance(text, str):
            raise UserError(
                f"{where} needs question_id (str or int), image (str) and text (str), and has {row!r:.160}."
            )
        try:
            found = picture(image, images)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        questions.append(Question(name, ask(text, 1), (found,)))
    return questions


def hub_rows(root: Path, folder: str, split: str, instead: str) -> list[dict[str, Any]]:
    """Rows of a hub data set under `root/folder`.

    Args:
        instead: the original layout's file, which is not there either.

    Raises:
        UserError: there are none.
    """
    rows = from_hub(root / folder, split)
    if rows is None:
        raise UserError(f"{root} has neither {instead} nor parquet files of the hub's split {split} in {folder}/.")
    return rows


def hub_question(row: Mapping[str, Any], where: str, name: str, prompt: str, **more: Any) -> Question:
    """A question from a hub row with its image; `name` is the column of its id, `prompt` the whole text."""
    (id_,) = need(row, where, name)
    return Question(id_, ask(prompt, 1), (image_bytes(row.get("image"), where),), **more)


def hub_column(folder: Path, split: str, name: str) -> list[Any]:
    """One column of the parquet files in `folder` whose names begin with `split`; the images stay unread."""
    import pyarrow.parquet as pq

    files = sorted(folder.rglob(f"{split}*.parquet"))
    return [value for file in files for value in pq.read_table(file, columns=[name])[name].to_pylist()]


def write_json(file: Path, value: Any) -> Path:
    """Writes a document, and gives its place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def questions(root: Path) -> list[Question]:
    """All questions of test-dev."""
    if (root / QUESTIONS).is_file():
        return asked(root / QUESTIONS, root / "vqav2/test2015")
    found = []
    for number, row in enumerate(hub_rows(root, "vqav2", "testdev", QUESTIONS)):
        where = f"{root / 'vqav2'}, testdev row {number}"
        (text,) = need(row, where, "question")
        found.append(hub_question(row, where, "question_id", text + SHORT))
    return found


def submit(root: Path, asked: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """Writes `vqav2.json`: an answer for every question of test2015, empty where it is not in test-dev.

    Raises:
        UserError: the list of all questions is missing, or lacks one that was asked.
    """
    every = _every(root)
    given = {q.id: normalize(text) for q, text in zip(asked, texts, strict=True)}
    if strangers := given.keys() - set(every):
        raise UserError(
            f"The list of all test2015 questions under {root} lacks {min(strangers, key=str)!r}, which was asked."
        )
    rows = [{"question_id": name, "answer": given.get(name, "")} for name in every]
    return write_json(folder / "vqav2.json", rows)


def _every(root: Path) -> list[Any]:
    if (root / EVERY).is_file():
        every = [need(row, where, "question_id")[0] for where, row in read_lines(root / EVERY)]
    else:
        every = hub_column(root / "vqav2", "test-", "question_id")
    if not every:
        raise UserError(
            f"The server takes an answer for every question of test2015; {root} lists them neither in {EVERY} nor in "
            "parquet files of the hub's split test."
        )
    return every


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 78.5,  # *
            "llava-1.5-13b": 80.0,  # *
            "llava-1.5-hd-13b": 81.8,  # *
            "llava-1.5-7b-lora": 79.1,
            "llava-1.5-13b-lora": 80.0,
            "blip-2": 65.0,
            "shikra-13b": 77.4,  # *
            "idefics-9b": 50.9,
            "idefics-80b": 60.0,
            "qwen-vl": 78.8,  # *
            "qwen-vl-chat": 78.2,  # *
            "pali-x-55b": 86.1,  # *
        }.items()
    },
    questions=questions,
    official=107_394,
    max_new_tokens=128,
    submit=submit,
    needs=_every,
    server="EvalAI, VQA Challenge: https://eval.ai/web/challenges/challenge-page/830/my-submission",
    differences=(
        "lmms-eval: answers of at most 16 tokens; leaves commas, question marks and 's to the normaliser's later "
        "rules; submits only the questions that it asked.",
        VLMEVALKIT,
    ),
)
