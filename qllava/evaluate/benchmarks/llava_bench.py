"""LLaVA-Bench (In-the-Wild): 60 open questions about 24 images; a judge compares each answer with text-only GPT-4's.

Layout: `llava-bench-in-the-wild/` with questions.jsonl, context.jsonl, answers_gpt4.jsonl and images/, or a copy of the hub's
lmms-lab/llava-bench-in-the-wild. Prompts, parsing and score: LLaVA's eval_gpt_review_bench.py, summarize_gpt_review.py and
table/rule.json at c121f04. The paper's judge was gpt-4-0314, which is no longer served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.sample import ask
from ...errors import RunError, UserError
from ..judge import Asked, Judge, notes, review
from ..question import Question
from .base import Benchmark, Score, find, from_hub, image_bytes, need, picture, read_lines

FOLDER = "llava-bench-in-the-wild"
CATEGORIES = ("conv", "detail", "complex")
ROLE = "Assistant"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
RULE = (  # one text for all three categories
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an "
    "overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias "
    "and ensuring that the order in which the responses were presented does not affect your judgment."
)


def _hub(root: Path) -> list[dict[str, Any]] | None:
    """Rows of the hub's copy, where the official files are not there.

    Raises:
        UserError: neither is there.
    """
    folder = find(root, FOLDER)
    if (folder / "questions.jsonl").is_file():
        return None
    rows = from_hub(folder)
    if rows is None:
        raise UserError(f"{folder} has neither questions.jsonl nor the parquet files of lmms-lab/{FOLDER}.")
    return rows


def questions(root: Path) -> list[Question]:
    """The questions, in the file's order.

    Raises:
        UserError: a file, a key or an image is missing, or a category is unknown.
    """
    found = []
    rows = _hub(root)
    if rows is None:
        folder = root / FOLDER
        for where, row in read_lines(folder / "questions.jsonl"):
            name, image, text, category = need(row, where, "question_id", "image", "text", "category")
            found.append((where, name, picture(image, folder / "images"), text, category))
    else:
        for number, row in enumerate(rows, 1):
            where = f"{root / FOLDER}, row {number}"
            name, image, text, category = need(row, where, "question_id", "image", "question", "category")
            found.append((where, name, image_bytes(image, where), text, category))
    for where, _, _, _, category in found:
        if category not in CATEGORIES:
            raise UserError(f"{where} has the category {category!r}, which is none of {', '.join(CATEGORIES)}.")
    return [Question(name, ask(text, 1), (image,), None, category) for _, name, image, text, category in found]


def _references(root: Path) -> dict[str, tuple[str, str]]:
    """What the judge is shown beside an answer, by question: the image's description, and GPT-4's answer."""
    rows = _hub(root)
    found: dict[str, tuple[str, str]] = {}
    if rows is not None:
        for number, row in enumerate(rows, 1):
            name, caption, answer = need(row, f"row {number}", "question_id", "caption", "gpt_answer")
            found[str(name)] = (_joined(caption), answer)
        return found
    folder = root / FOLDER
    captions, answers = {}, {}
    for where, row in read_lines(folder / "context.jsonl"):
        image, caption = need(row, where, "image", "caption")
        captions[image] = _joined(caption)
    for where, row in read_lines(folder / "answers_gpt4.jsonl"):
        name, text = need(row, where, "question_id", "text")
        answers[str(name)] = text
    for where, row in read_lines(folder / "questions.jsonl"):
        name, image = need(row, where, "question_id", "image")
        if image not in captions:
            raise UserError(f"{where} is about {image}, which {folder / 'context.jsonl'} does not describe.")
        if str(name) not in answers:
            raise UserError(f"{folder / 'answers_gpt4.jsonl'} has no answer to question {name!r}.")
        found[str(name)] = (captions[image], answers[str(name)])
    return found


def _joined(caption: str | list[str]) -> str:
    return "\n".join(caption) if isinstance(caption, list) else caption


def content(caption: str, question: str, reference: str, answer: str) -> str:
    """What the judge is asked."""
    return (
        f"[Context]\n{caption}\n\n[Question]\n{question}\n\n"
        f"[{ROLE} 1]\n{reference}\n\n[End of {ROLE} 1]\n\n"
        f"[{ROLE} 2]\n{answer}\n\n[End of {ROLE} 2]\n\n"
        f"[System]\n{RULE}\n\n"
    )


def parse(text: str) -> tuple[float, float] | None:
    """GPT-4's score and the answer's, out of a review's first line; None where it is not two numbers from 0 to 10 and a space.

    The original puts (-1, -1) into its means there.
    """
    words = text.split("\n")[0].replace(",", " ").split(" ")
    try:
        pair = tuple(float(word) for word in words)
    except ValueError:
        return None
    return pair if len(pair) == 2 and all(0 <= value <= 10 for value in pair) else None


def _relative(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The answers' mean in percent of GPT-4's, rounded where the original rounds; None without a mean to divide by."""
    if not pairs:
        return None
    reference, answer = (round(mean, 3) for mean in np.asarray(pairs).mean(0).tolist())
    return round(answer / reference * 100, 1) if reference else None


def judge_answers(root: Path, questions: Sequence[Question], texts: Sequence[str], judge: Judge, file: Path) -> Score:
    """The score of any answers, ours or published ones, by this judge.

    Args:
        file: of the reviews; those in it are not asked for again.

    Raises:
        UserError: the set lacks something, or what `review` raises.
        RunError: no review could be parsed.
    """
    references = _references(root)
    asked = []
    for question, text in zip(questions, texts, strict=True):
        caption, reference = references[str(question.id)]
        asked.append(Asked(question.id, SYSTEM, content(caption, question.shown, reference, text)))
    reviews = review(judge, file, asked)
    pairs = [parse(one.content) for one in reviews]
    failures = pairs.count(None)
    parts = {}
    for name in ("all", *CATEGORIES):
        chosen = [p for p, q in zip(pairs, questions, strict=True) if p is not None and name in ("all", q.group)]
        value = _relative(chosen)
        if value is not None:
            parts[name] = value
    if "all" not in parts:
        raise RunError(
            f"None of {len(reviews):,} reviews in {file} could be scored; the first is "
            f"{reviews[0].content[:100] if reviews else ''!r}. Is {judge.model!r} able to follow the judge's prompt? Delete the file to have them written anew."
        )
    return Score(parts | {"parse failures": float(failures)}, len(questions), notes(reviews, failures))


def submit(root: Path, questions: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """llava_bench.jsonl, as the official review script takes it beside answers_gpt4.jsonl."""
    file = folder / "llava_bench.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for question, text in zip(questions, texts, strict=True):
            row = {
                "question_id": question.id,
                "prompt": question.shown,
                "text": text,
                "answer_id": hashlib.sha256(f"{question.id}\0{text}".encode()).hexdigest()[:22],
                "model_id": "qllava",
                "metadata": {},
            }
            out.write(json.dumps(row) + "\n")
    return file


LLAVA_BENCH = Benchmark(
    name="llava_bench",
    title="LLaVA-Bench (In-the-Wild)",
    main="all",
    paper={
        slug: {"all": value}
        for slug, value in (
            ("blip-2", 38.1), ("instructblip-7b", 60.9), ("instructblip-13b", 58.2), ("llava-7b", 62.8),
            ("llava-1.5-7b", 65.4), ("llava-1.5-13b", 72.5), ("llava-1.5-hd-13b", 72.0),
            ("llava-1.5-7b-lora", 67.9), ("llava-1.5-13b-lora", 69.5),
        )
    },
    questions=questions,
    official=60,
    max_new_tokens=1024,
    submit=submit,
    server="LLaVA's eval_gpt_review_bench.py",
    judged=True,
    differences=(
        "the original counts a review that cannot be parsed as (-1, -1) in its means; here it is left out, and counted",
        "the paper's judge, gpt-4-0314, is no longer served: scores by other judges do not compare with the paper's",
        "lmms-eval takes the first two numbers of a review's first line, and lets answers have 4,096 tokens",
    ),
)  # fmt: skip
