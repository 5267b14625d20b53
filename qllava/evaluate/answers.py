"""Answer files: one JSON line an answer, with the keys that LLaVA's own scripts write, in the order of the questions.

In: a file and the questions that it answers. Out: texts, one for each question. A line that is malformed, missing, doubled or
out of order is an error that names it: the original's scorers pair some files by order, and would score it in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .lines import parse, read_text
from .question import Question

FILE = "answers.jsonl"  # what qllava's own is called

Key = tuple[str, str, int]  # id, prompt where ids come again, and how many the same came before


def keys(questions: Sequence[Question]) -> list[Key]:
    """What tells questions apart: the id; the prompt too where ids come again; their order where even that does."""
    plain = [(str(q.id), "") for q in questions]
    if len(set(plain)) < len(plain):
        plain = [(str(q.id), q.shown) for q in questions]
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for key in plain:
        found.append((*key, seen[key]))
        seen[key] += 1
    return found


def read_line(line: str, where: str) -> dict[str, Any]:
    """One answer, with at least `question_id` and `text`.

    Raises:
        UserError: the line is none.
    """
    row = parse(line, where)
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, not an object with question_id and text.")
    for name, kinds in (("question_id", (str, int)), ("text", (str,))):
        if not isinstance(row.get(name), kinds) or isinstance(row.get(name), bool):
            found = "has none" if name not in row else f"has {row[name]!r}"
            raise UserError(f"{where} needs {name!r} ({' or '.join(k.__name__ for k in kinds)}), and {found}.")
    return row


def read_answers(file: Path, questions: Sequence[Question]) -> list[str]:
    """The text for each question.

    Raises:
        UserError: a line is malformed, answers no question, answers one again or out of order, or one is missing.
    """
    lines = read_text(file).split("\n")
    rows = [(n, read_line(line, f"{file}, line {n}")) for n, line in enumerate(lines, 1) if line.strip()]
    wanted = keys(questions)
    place = {key: i for i, key in enumerate(wanted)}
    prompts = any(key[1] for key in wanted)
    texts: list[str] = []
    lines_of: dict[tuple[str, str], list[int]] = {}
    for number, row in rows:
        where = f"{file}, line {number}"
        if prompts and not isinstance(row.get("prompt"), str):
            raise UserError(f"{where} needs 'prompt': the ids of this set come again, and the prompt tells them apart.")
        plain = (str(row["question_id"]), row["prompt"] if prompts else "")
        before = lines_of.setdefault(plain, [])
        name = f"question {row['question_id']!r}" + (f" ({plain[1].strip()[:60]!r})" if prompts else "")
        if (*plain, 0) not in place:
            raise UserError(f"{where} answers {name}, which this set does not ask.")
        if (*plain, len(before)) not in place:
            raise UserError(f"{where} answers {name} again; line {before[-1]} has already.")
        if place[(*plain, len(before))] != len(texts):
            expected = questions[len(texts)].id
            raise UserError(
                f"{where} answers {name}, where the question file has {expected!r}: a line is missing before it, "
                "or the lines are out of order."
            )
        before.append(number)
        texts.append(row["text"])
    if len(texts) < len(questions):
        last = rows[-1][0] if rows else 0
        raise UserError(
            f"{file} ends after line {last} with {len(texts):,} of {len(questions):,} answers; "
            f"the next would be for question {questions[len(texts)].id!r}."
        )
    return texts
