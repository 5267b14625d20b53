"""SEED-Bench (the first): 14,233 questions about pictures and 5,009 about a video's middle frame, with four choices.

Under `seed_bench/`: `llava-seed-bench.jsonl`, `SEED-Bench.json`, and the pictures in `SEED-Bench-image/` and
`SEED-Bench-video-image/`; or the parquet files of lmms-lab/SEED-Bench (split `test`), where the middle one of a video's frames
is taken. Facts: LLaVA's scripts/v1_5/eval/seed.sh and scripts/convert_seed_for_submission.py: an answer is right if it is
the letter.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data.sample import ask
from ...errors import UserError
from ..question import Question
from .base import LETTER, Benchmark, Score, image_bytes, need, percent, read_json
from .vqav2 import VLMEVALKIT, asked, hub_rows

QUESTIONS = "seed_bench/llava-seed-bench.jsonl"
ANNOTATIONS = "seed_bench/SEED-Bench.json"
KINDS = ("image", "video")


def number_or_name(value: Any) -> int | str:
    """An id as a number where it is one, as the original looks it up."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return str(value)


def _annotations(root: Path) -> dict[int | str, tuple[Any, str, str]]:
    """By id: the id as it is written, the letter, and `data type/question type`."""
    document = read_json(root / ANNOTATIONS)
    types = document.get("question_type") if isinstance(document, dict) else None
    rows = document.get("questions") if isinstance(document, dict) else None
    if not isinstance(types, dict) or not isinstance(rows, list):
        raise UserError(f"{root / ANNOTATIONS} needs an object 'question_type' and a list 'questions'.")
    names = {number: name for name, number in types.items()}
    found = {}
    for i, row in enumerate(rows):
        where = f"{root / ANNOTATIONS}, questions[{i}]"
        if not isinstance(row, dict):
            raise UserError(f"{where} is {type(row).__name__}, not an object.")
        name, kind, data, answer = need(row, where, "question_id", "question_type_id", "data_type", "answer")
        if kind not in names or data not in KINDS:
            raise UserError(
                f"{where} is of the type {kind!r} and the data type {data!r}, which the file does not name."
            )
        found[number_or_name(name)] = (name, str(answer), f"{data}/{names[kind]}")
    return found


def questions(root: Path) -> list[Question]:
    """The questions of LLaVA's file, with their letters; `group` is data type and question type.

    Raises:
        UserError: a file is missing or malformed, or a question has no annotation.
    """
    if not (root / QUESTIONS).is_file():
        return _from_hub(root)
    annotated = _annotations(root)
    found = []
    for question in asked(root / QUESTIONS, root / "seed_bench"):
        name = number_or_name(question.id)
        if name not in annotated:
            raise UserError(f"{root / ANNOTATIONS} has no question {question.id!r}, which {root / QUESTIONS} asks.")
        _, answer, group = annotated[name]
        found.append(replace(question, id=name, answer=answer, group=group))
    return found


def _from_hub(root: Path) -> list[Question]:
    """Question types have numbers alone there."""
    found = []
    for number, row in enumerate(hub_rows(root, "seed_bench", "test", QUESTIONS)):
        where = f"{root / 'seed_bench'}, test row {number}"
        name, text, answer, data, kind = need(
            row, where, "question_id", "question", "answer", "data_type", "question_type_id"
        )
        choices = need(row, where, *(f"choice_{letter}" for letter in "abcd"))
        if data not in KINDS:
            raise UserError(f"{where} is of the data type {data!r}, not one of {', '.join(KINDS)}.")
        prompt = "\n".join([text, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))])
        frames = row.get("image")
        image = image_bytes(frames[len(frames) // 2] if isinstance(frames, list) and frames else frames, where)
        group = f"{data}/type {kind}"
        found.append(Question(number_or_name(name), ask(prompt + LETTER, 1), (image,), str(answer), group))
    return found


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """Accuracy of all, of pictures, of videos and of each question type."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for question, text in zip(asked, texts, strict=True):
        data, kind = question.group.split("/", 1)
        for part in ("all", data, kind):
            hits[part].append(text == question.answer)
    names = ["all", *KINDS, *sorted(hits.keys() - {"all", *KINDS})]
    parts = {name: percent(sum(hits[name]), len(hits[name])) for name in names if name == "all" or hits[name]}
    left = len(_annotations(root)) - len(asked) if (root / ANNOTATIONS).is_file() else 0
    note = f"{left:,} questions of {ANNOTATIONS} were not asked; the original counts them as wrong."
    return Score(parts, len(texts), (note,) if left else ())


def submit(root: Path, asked: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """Writes `seed.jsonl` for the leaderboard, a line for each annotated question.

    Raises:
        UserError: one was not asked.
    """
    given = {q.id: text for q, text in zip(asked, texts, strict=True)}
    annotated = _annotations(root) if (root / ANNOTATIONS).is_file() else {name: (name, "", "") for name in given}
    if missing := [name for name in annotated if name not in given]:
        raise UserError(
            f"The submission needs all questions of {root / ANNOTATIONS}; {len(missing):,} were not asked, "
            f"such as {missing[0]!r}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "seed.jsonl"
    lines = [json.dumps({"question_id": raw, "prediction": given[name]}) for name, (raw, _, _) in annotated.items()]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def _published(every: float, image: float, video: float) -> dict[str, float]:
    return {"all": every, "image": image, "video": video}


SEED = Benchmark(
    name="seed",
    title="SEED-Bench",
    main="all",
    paper={
        "llava-1.5-7b": _published(58.6, 66.1, 37.3),
        "llava-1.5-13b": _published(61.6, 68.2, 42.7),
        "llava-1.5-hd-13b": _published(62.6, 70.1, 41.3),
        "llava-1.5-7b-lora": {"all": 60.1},
        "llava-1.5-13b-lora": {"all": 61.3},
        "llava-7b": _published(33.5, 37.0, 23.8),
        "blip-2": _published(46.4, 49.7, 36.7),
        "instructblip-7b": _published(53.4, 58.8, 38.1),
        "idefics-9b": {"image": 44.5},
        "idefics-80b": {"image": 53.2},
        "qwen-vl": _published(56.3, 62.3, 39.1),
        "qwen-vl-chat": _published(58.2, 65.4, 37.8),
    },
    questions=questions,
    official=17_990,
    max_new_tokens=128,
    score=score,
    submit=submit,
    differences=(
        "lmms-eval: the first character of the answer counts, in either case; all frames of a video are shown.",
        f"{VLMEVALKIT} Its SEEDBench_IMG is the pictures alone.",
    ),
)
