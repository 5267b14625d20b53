"""Exact match on any LLaVA JSON with answers.

In: a model and a LLaVA JSON. Every answer in it is one question: the conversation up to it, with the JSON's own earlier
answers, is the prompt. Out: the share of answers that equal the JSON's, and every answer as a line.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .. import console
from ..artifact.load import Loaded, load
from ..data.image import open_image, resolve
from ..data.sample import Sample, Turn, read_samples
from ..data.tokens import encode_prompt
from ..errors import UserError
from .generate import answer_all, prompt_length


@dataclass(frozen=True)
class Question:
    id: str
    turns: tuple[Turn, ...]  # ends with the user's
    images: tuple[Path, ...]
    answer: str


@dataclass(frozen=True)
class Score:
    exact_match: float  # share, 0 to 1
    correct: int
    questions: int
    answers: tuple[str, ...]  # the model's, in the order of the questions


def questions(samples: Iterable[Sample], root: Path) -> list[Question]:
    """One question for each answer of each sample.

    Raises:
        UserError: an image is missing.
    """
    out = []
    for sample in samples:
        files = tuple(resolve(i, root) for i in sample.images)
        for i, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                asked = sample.turns[:i]
                out.append(Question(f"{sample.id}/{i // 2}", asked, files[: sum(t.images for t in asked)], turn.text))
    return out


def normalize(answer: str) -> str:
    """Lower case, without surrounding space and one final full stop."""
    return answer.strip().lower().removesuffix(".")


@functools.lru_cache(maxsize=256)
def _open(file: Path, exif: bool) -> Image.Image:
    return open_image(file, exif)


def score(loaded: Loaded, asked: Sequence[Question], max_new_tokens: int = 32, batch_size: int = 32) -> Score:
    """The model's answers to the questions, and how many equal the given ones after `normalize`."""
    processing = loaded.processing
    ids = [encode_prompt(q.turns, processing.template, processing.encoder) for q in asked]
    lengths = [prompt_length(i, processing.image_tokens) for i in ids]
    prompts = [
        functools.partial(
            lambda q, i: {
                "input_ids": i,
                "pixel_values": processing.pixels([_open(f, processing.exif) for f in q.images]),
            },
            q,
            i,
        )
        for q, i in zip(asked, ids, strict=True)
    ]
    with console.progress("answering", len(asked)) as advance:
        answers = answer_all(loaded, prompts, lengths, max_new_tokens, batch_size, advance)
    right = sum(normalize(a) == normalize(q.answer) for a, q in zip(answers, asked, strict=True))
    return Score(right / len(asked), right, len(asked), tuple(answers))


def evaluate(
    source: str | Path,
    data: str | Path,
    image_root: str | Path | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    limit: int | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Exact match of a model on a LLaVA JSON.

    Args:
        source: artifact, run or Hugging Face LLaVA.
        image_root: folder that image paths start from; by default the JSON's own.
        out: JSONL file for the answers, one line a question.
        limit: only the first so many questions.

    Returns:
        `exact_match` (share), `correct`, `questions`.

    Raises:
        UserError: the model, the JSON or an image is missing or wrong, or the JSON has no answers.
    """
    data = Path(data)
    if batch_size < 1 or max_new_tokens < 1 or (limit is not None and limit < 1):
        raise UserError("batch_size, max_new_tokens and limit are numbers above 0.")
    if out is not None:
        if Path(out).exists():
            raise UserError(f"{out} is there already; name another file for the answers.")
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot write answers to {out}: {error}.") from None
    asked = questions(read_samples(data), Path(image_root) if image_root else data.parent)[:limit]
    if not asked:
        raise UserError(f"{data} has no answers to compare with.")
    result = score(load(source, base), asked, max_new_tokens, batch_size)
    if out is not None:
        with Path(out).open("w", encoding="utf-8") as file:
            for question, answer in zip(asked, result.answers, strict=True):
                line = {
                    "id": question.id,
                    "prompt": question.turns[-1].text,
                    "answer": answer,
                    "expected": question.answer,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {"exact_match": result.exact_match, "correct": result.correct, "questions": result.questions}
