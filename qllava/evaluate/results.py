"""What is made of answers: their score, what a server takes, and a line about them.

In: an answer file and the folder of the evaluation data; no model. Out: the submission, and `result.json`, which the scoreboard
reads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artifact.manifest import versions
from ..errors import UserError
from .answers import read_answers
from .benchmarks import BENCHMARKS, benchmark, judge_answers, mmvet
from .benchmarks.base import Benchmark, Score, questions_of, read_json, shortfall, without_images
from .judge import Judge
from .lines import parse_object, read_text
from .question import Question

RESULT = "result.json"


def score_answers(
    name: str,
    answers: str | Path,
    root: str | Path,
    out: str | Path | None = None,
    judge: Judge | None = None,
    reference: str | Path | None = None,
) -> dict[str, Any]:
    """Scores an answer file, ours or one that LLaVA's own scripts wrote, and writes its submission.

    Args:
        out: folder for the result; by default the answer file's.
        judge: who compares, for LLaVA-Bench and MM-Vet.
        reference: a published answer file, to be compared by the same judge.

    Raises:
        UserError: the file does not answer the set's questions one by one in order; names the line.
    """
    b, root, file = benchmark(name), Path(root), Path(answers)
    with without_images():
        questions = questions_of(b, root)
    texts = read_answers(file, questions)
    place, beside = Path(out) if out else file.parent, _known(file.parent / RESULT)
    known = beside if beside.get("answers") == _digest(texts) else {}
    there = _known(place / RESULT)
    if there.get("asked_now") is not None and there.get("answers") != _digest(texts):
        raise UserError(f"{place / RESULT} is the result of other answers, which a model gave. Name another --out.")
    _folder(place)
    return conclude(b, root, questions, texts, place, known or {"model": str(answers)}, True, judge, reference)


def _folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write results to {place}: {error.strerror or error}.") from None


def conclude(
    benchmark: Benchmark,
    root: Path,
    questions: Sequence[Question],
    texts: Sequence[str],
    place: Path,
    about: dict[str, Any],
    whole: bool = True,
    judge: Judge | None = None,
    reference: str | Path | None = None,
) -> dict[str, Any]:
    """Score, submission and `result.json` of these answers."""
    b, found, other = benchmark, None, None
    if judge is not None and not b.judged:
        raise UserError(f"{b.title} needs no judge.")
    if reference is not None and judge is None:
        raise UserError("A reference's answers are compared by a judge; name one.")
    submission, unsent = _submitted(b, root, questions, texts, place) if whole else (None, [])
    if b.judged and judge is not None:
        found = judge_answers(b.name)(root, questions, texts, judge, place / "reviews.jsonl")
        if reference is not None:
            file = Path(reference)
            theirs = mmvet.read_results(file, questions) if file.suffix == ".json" else read_answers(file, questions)
            score = judge_answers(b.name)(root, questions, theirs, judge, place / "reference_reviews.jsonl")
            other = {"name": str(reference), "parts": score.parts}
    elif b.score is not None and whole:
        found = b.score(root, questions, texts)
    notes = [*(found.notes if found else ()), *unsent, *filter(None, [shortfall(b, len(questions))] if whole else [])]
    result = {
        "benchmark": b.name, "title": b.title, "source": about.get("model") or about.get("source"), "questions": len(questions),
        "main": b.main, "parts": _parts(found), "notes": notes, "whole": whole,
        "server": b.server, "submission": None if submission is None else str(submission), "reference": other,
        "judge": None if judge is None else {"model": judge.model, "url": judge.host, "date": _today()},
        "max_new_tokens": b.max_new_tokens, "versions": versions(), "date": _today(), "answers": _digest(texts),
    } | {k: about.get(k) for k in ("base", "weights", "dtype", "batch_size", "processes", "seconds", "asked_now", "questions_per_second")}  # fmt: skip
    result = _with_kept(result, _known(place / RESULT))
    write_result(result, place / RESULT)
    return result


def _submitted(
    b: Benchmark, root: Path, questions: Sequence[Question], texts: Sequence[str], place: Path
) -> tuple[Path | None, list[str]]:
    """The submission's place; or, where the score is made here anyhow, a note of what it lacks."""
    if b.submit is None:
        return None, []
    try:
        return b.submit(root, questions, texts, place), []
    except UserError as error:
        if b.score is None:
            raise
        return None, [f"No submission: {error}"]


def read_result(file: Path) -> dict[str, Any]:
    """A `result.json`.

    Raises:
        UserError: it is missing, or not what `conclude` writes.
    """
    result = read_json(file)
    if not isinstance(result, dict) or not isinstance(result.get("benchmark"), str):
        raise UserError(f"{file} is no result of `qllava eval`: it has no 'benchmark'.")
    if not isinstance(result.get("main"), str):
        raise UserError(f"{file} has no 'main', the name of its score.")
    questions = result.get("questions")
    if not isinstance(questions, int) or isinstance(questions, bool) or questions < 0:
        raise UserError(f"{file} has no count of 'questions'.")
    for name, kind in (("parts", dict), ("judge", dict), ("reference", dict), ("notes", list)):
        if result.get(name) is not None and not isinstance(result[name], kind):
            raise UserError(f"{file}: '{name}' is {type(result[name]).__name__}, not {kind.__name__} or null.")
    return result


def number(value: Any, file: Path, name: str) -> float | None:
    """The number, or None.

    Raises:
        UserError: it is something else; names the file.
    """
    if value is None:
        return None
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise UserError(f"{file}: '{name}' is no score.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{file}: '{name}' is {value!r}, not a number.")
    return float(value)


def main_score(result: dict[str, Any], file: Path) -> float | None:
    """What was scored here or by a judge; None before."""
    return number((result.get("parts") or {}).get(result["main"]), file, result["main"])


def write_result(result: dict[str, Any], file: Path) -> None:
    """Writes it whole or leaves what was there."""
    new = file.with_name(file.name + ".new")
    try:
        new.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def tell(result: dict[str, Any], asked: bool = True) -> str:
    """A result in one line; with its speed where the questions were `asked` now."""
    b, rate = BENCHMARKS[result["benchmark"]], result.get("questions_per_second")
    speed = f", {rate:,.1f} a second" if asked and rate and result.get("asked_now") else ""
    if result["parts"] is not None:
        value = f"{result['main']} {result['parts'][result['main']]:.2f}"
    elif not result["whole"]:
        value = "a first few only: not scored"
    elif b.judged:
        value = f"waits for a judge: qllava score {b.name} ANSWERS --judge URL --judge-model NAME"
    else:
        value = f"for {b.server}: {result['submission']}"
    notes = f" ({'; '.join(n.rstrip('.') for n in result['notes'])})" if result["notes"] else ""
    return f"{result['title']}: {value}{notes} [{result['questions']:,} questions{speed}]"


def _parts(found: Score | None) -> dict[str, float] | None:
    return None if found is None else dict(found.parts)


def _with_kept(result: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The result with what a server or a judge has said of the same answers before."""
    if before.get("answers") != result["answers"] or before.get("benchmark") != result["benchmark"]:
        return result
    kept = [k for k in ("server_score", "server_date") if k in before]
    if result["judge"] is None and before.get("judge") is not None:
        kept += ["judge", "parts", "notes", "reference"]
    return result | {k: before.get(k) for k in kept}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def _known(file: Path) -> dict[str, Any]:
    try:
        return parse_object(read_text(file), str(file))
    except UserError:
        return {}


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
