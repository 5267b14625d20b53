"""A user's own set: any LLaVA JSON with answers, by metric and by type; and what a domain adapter cost elsewhere.

In: a model and a LLaVA JSON. Every answer in it is one question: the conversation up to it, with the JSON's own earlier answers,
is the prompt. A row's `answers` (a list) are further references beside its only answer; exact match takes the latter alone. Out: figures, and every answer as a line.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import console
from ..artifact.load import Loaded, find_artifact, load
from ..artifact.manifest import read_manifest
from ..data.image import resolve
from ..data.sample import is_text, iter_rows, parse
from ..errors import UserError
from ..model.fingerprint import weight_files
from .generate import answers, batches, vision_dtype
from .metrics import METRICS, check, exact_match, kind_of
from .question import Question
from .results import RESULT, write_result
from .run import identity, source_name
from .runner import Answered, answer, together


@dataclass(frozen=True)
class Score:
    exact_match: float  # share, 0 to 1
    correct: int
    questions: int
    answers: tuple[str, ...]  # the model's, in the order of the questions


def own_questions(data: Path, image_root: Path, by: str | None = None, limit: int | None = None) -> list[Question]:
    """One question for each answer; `answer` is the list of its references, `group` its type.

    Args:
        by: the key of the JSON's rows that holds the type; by default the type is that of the answer (yes/no, number, other).

    Raises:
        UserError: a row is no LLaVA sample, has no such key, or an image is missing.
    """
    out: list[Question] = []
    for number, row in enumerate(iter_rows(data), 1):
        if isinstance(row, UserError):
            raise row
        where = f"{data.name}, sample {number}"
        sample = parse(row, where)
        if by is not None and by not in row:
            raise UserError(f"{where} (id {sample.id!r}) has no {by!r}; it has {', '.join(map(str, row))}.")
        try:
            files = tuple(resolve(i, image_root) if isinstance(i, str) else i for i in sample.images)
        except UserError as error:
            raise UserError(f"{where} (id {sample.id!r}): {error}") from None
        more = row.get("answers")
        if more is not None and not (isinstance(more, list) and all(isinstance(m, str) for m in more)):
            raise UserError(f"{where} (id {sample.id!r}): 'answers' is no list of texts.")
        replies = [i for i, turn in enumerate(sample.turns) if turn.role == "assistant"]
        if more and len(replies) > 1:
            raise UserError(
                f"{where} (id {sample.id!r}): 'answers' is for a row with one answer; this has {len(replies)}."
            )
        if not all(map(is_text, [*(more or []), str(row.get(by, ""))])):
            raise UserError(f"{where} (id {sample.id!r}) holds half of a surrogate pair, which is no character.")
        for i in replies:
            asked, text = sample.turns[:i], sample.turns[i].text
            references = [text]
            if more:
                others = list(more)
                if text in others:  # an annotator's answer that became the row's counts once
                    others.remove(text)
                references += others
            group = str(row[by]) if by is not None else kind_of(text)
            seen = files[: sum(t.images for t in asked)]
            out.append(Question(f"{sample.id}/{i // 2}", asked, seen, references, group))
            if len(out) == limit:
                return out
    if not out:
        raise UserError(f"{data} has no answers to compare with.")
    return _told_apart(out)


def _told_apart(questions: list[Question]) -> list[Question]:
    """Ids that come again get a number: a JSON need not have any of its own."""
    if len({q.id for q in questions}) == len(questions):
        return questions
    return [Question(f"{n}:{q.id}", q.turns, q.images, q.answer, q.group) for n, q in enumerate(questions, 1)]


def figures(questions: Sequence[Question], texts: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Means over all and by type: `{"questions", "metrics": {metric: mean}, "by_type": {type: {"questions", metric: mean}}}`."""
    each = {m: METRICS[m](texts, [q.answer for q in questions]) for m in metrics}
    groups: dict[str, list[int]] = {}
    for i, q in enumerate(questions):
        groups.setdefault(q.group, []).append(i)
    return {
        "questions": len(questions),
        "metrics": {m: sum(v) / len(v) for m, v in each.items()},
        "by_type": {
            g: {"questions": len(rows)} | {m: sum(v[i] for i in rows) / len(rows) for m, v in each.items()}
            for g, rows in sorted(groups.items())
        },
    }


def score(loaded: Loaded, asked: Sequence[Question], max_new_tokens: int = 32, batch_size: int = 32) -> Score:
    """Exact match of a model's answers, with nothing kept on disk."""
    texts = [""] * len(asked)
    with console.progress("answering", len(asked)) as advance:
        for numbers, found in answers(
            loaded, asked, batches(loaded, asked, range(len(asked)), batch_size), max_new_tokens
        ):
            for i, text in zip(numbers, found, strict=True):
                texts[i] = text
            advance(len(numbers))
    right = int(sum(exact_match(texts, [q.answer for q in asked])))
    return Score(right / len(asked), right, len(asked), tuple(texts))


def evaluate(
    source: str | Path,
    data: str | Path,
    image_root: str | Path | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    limit: int | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    metrics: Sequence[str] = ("exact_match",),
    by: str | None = None,
    guard: str | Path | None = None,
    guard_root: str | Path | None = None,
    before: str | None = None,
    dtype: str = "auto",
) -> dict[str, Any]:
    """A model's greedy answers to a LLaVA JSON, and how near they are to the JSON's.

    Args:
        source: artifact, run or Hugging Face LLaVA.
        image_root: folder that image paths start from; by default the JSON's own.
        out: folder for `answers.jsonl` and `result.json`; an evaluation that was cut off goes on there. None keeps nothing.
        limit: only the first so many questions.
        metrics: of `metrics.METRICS`; exact match is always among them.
        by: key of the JSON's rows that holds a question's type.
        guard: another LLaVA JSON, of general questions, that the model from before the training and this one both answer.
        guard_root: folder of the guard's images; by default the JSON's own.
        before: the model from before the training; by default what the adapter's manifest names as base and projector.

    Returns:
        `exact_match` (share), `correct`, `questions`, `metrics`, `by_type`, `questions_per_second`, and with a guard `guard`:
        `before` and `after` (metrics), `change`.

    Raises:
        UserError: the model, the JSON or an image is missing or wrong, or the JSON has no answers.
    """
    if batch_size < 1 or max_new_tokens < 1 or (limit is not None and limit < 1):
        raise UserError("batch_size, max_new_tokens and limit are numbers above 0.")
    if out is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("Several processes share a set through files: name a folder with --out.")
    metrics = list(dict.fromkeys(["exact_match", *metrics]))
    check(metrics)
    data, general = Path(data), None if guard is None else Path(guard)
    questions = own_questions(data, Path(image_root) if image_root else data.parent, by, limit)
    known = None if general is None else own_questions(general, Path(guard_root) if guard_root else general.parent)
    earlier = None if known is None else (before or model_before(source, base))
    if known is None and (guard_root or before):
        raise UserError("--guard-root and --before go with --guard.")
    if earlier is not None and find_artifact(earlier) is None:
        weight_files(earlier)  # nothing is asked if there is no such model
    loaded = load(source, base, dtype)
    size = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "lasting": out is not None}
    with together() as (rank, _), _folder(out, source) as place:
        done = _ask(loaded, questions, place, source, base, size)
        result = figures(questions, done.texts, metrics)
        result["exact_match"] = result["metrics"]["exact_match"]
        result["correct"] = round(result["exact_match"] * len(questions))
        result["questions_per_second"] = None if done.rate is None else round(done.rate, 2)
        if known is not None:
            after = figures(known, _ask(loaded, known, place / "guard_after", source, base, size).texts, metrics)
            loaded = None  # two models at once may not fit
            gc.collect()
            loaded = load(earlier, None, dtype)
            first = figures(known, _ask(loaded, known, place / "guard_before", earlier, None, size).texts, metrics)
            change = {m: after["metrics"][m] - first["metrics"][m] for m in metrics}
            result["guard"] = {"model": str(earlier), "before": first, "after": after, "change": change}
        if rank == 0 and out is not None:
            about = {"source": str(source), "data": str(data), **result}
            write_result(about, place / RESULT)
    return result


def model_before(source: str | Path, base: str | None = None) -> str:
    """The model that an adapter's training began from: its base, where that is a whole LLaVA, or the run's projector.

    Args:
        base: where the base lies now, if not where the manifest says.

    Raises:
        UserError: the manifest names none that could answer.
    """
    folder = find_artifact(source)
    manifest = None if folder is None else read_manifest(folder)
    if manifest is not None and manifest.base is not None:
        start = (manifest.recipe or {}).get("projector")
        if start:
            if find_artifact(start) is None:
                raise UserError(
                    f"{source} was trained from the projector in {start}, which is not there (seen from {Path.cwd()}). "
                    "Run it from where it was trained, or name the model before its training with --before."
                )
            return str(start)
        if base is not None or isinstance(manifest.base.source, str):
            return base or manifest.base.source
    raise UserError(
        f"{source} does not say what it was trained from, as no merged model does. Name that model with --before."
    )


def _ask(
    loaded: Loaded, questions: list[Question], place: Path, source: str | Path, base: str | None, size: dict[str, Any]
) -> Answered:
    weights, dtype = identity(source, loaded), str(vision_dtype(loaded.model))
    settings = {"model": str(source), "base": base, "weights": weights, "dtype": dtype}
    return answer(loaded, questions, place, settings, **size)


@contextmanager
def _folder(out: str | Path | None, source: str | Path) -> Iterator[Path]:
    if out is not None:
        if Path(out).is_file():
            raise UserError(f"{out} is a file; --out names a folder for answers.jsonl and result.json.")
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix=f"qllava-{source_name(source)[:40]}-") as scratch:
        yield Path(scratch)
