"""`qllava eval --benchmark` and `qllava score`: answers, then what can be said of them here, then what a server is to get.

In: a model or an answer file, the folder of the evaluation data. Out: for each benchmark a folder with `answers.jsonl`, the
submission, and `result.json`, which the scoreboard reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artifact.load import Loaded, find_artifact, load
from ..artifact.manifest import FILE as MANIFEST
from ..artifact.manifest import digest, versions
from ..errors import UserError, nearest
from .answers import read_answers
from .benchmarks import BENCHMARKS, judge_answers, mmvet
from .benchmarks.base import Benchmark, Score
from .judge import Judge
from .question import Question
from .runner import FILE, answer, meet, together

RESULT = "result.json"


def named(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names; `all` is all of them.

    Raises:
        UserError: there is none of a name.
    """
    found = []
    for name in list(BENCHMARKS) if list(names) == ["all"] else names:
        if name not in BENCHMARKS:
            raise UserError(
                f"No benchmark '{name}'.{nearest(name, BENCHMARKS)} There are: {', '.join(BENCHMARKS)}, all."
            )
        found.append(BENCHMARKS[name])
    return found


def run_benchmarks(
    source: str | Path,
    names: Sequence[str],
    root: str | Path,
    out: str | Path | None = None,
    base: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
) -> dict[str, dict[str, Any]]:
    """A model's answers to the benchmarks' questions, greedy, scored where the score is made here.

    Args:
        names: of benchmarks, or `all`.
        root: folder of the evaluation data, in the layout of LLaVA's `playground/data/eval` or with hub data sets in it.
        out: folder for the results, one folder a benchmark in it; by default `runs/eval/` and the source's name.
        limit: ask only the first so many questions of each, to try it: nothing is scored or written for a server then.
        dtype: that the model computes in. Answers of batches are those of single questions in float32; in 16 bits the
            rounding of a larger batch can turn a near tie.

    Returns:
        By benchmark, what `result.json` holds.

    Raises:
        UserError: a name, the data or the model is wrong; nothing was asked then.
    """
    chosen = named(names)
    root, folder = Path(root), Path(out) if out else Path("runs/eval") / source_name(source)
    if not root.is_dir():
        raise UserError(f"No folder {root} with the evaluation data.")
    asked = {b.name: b.questions(root)[:limit] for b in chosen}  # all data is read before the model is
    for b in chosen:
        if not asked[b.name]:
            raise UserError(f"{root} has no questions for {b.title}.")
    loaded = as_original(load(source, base, dtype))
    settings = {
        "model": str(source),
        "base": base,
        "weights": identity(source, loaded),
        "dtype": str(_dtype(loaded)),
        "limit": limit,
    }
    results = {}
    with together() as (rank, world):
        for b in chosen:
            place = folder / (b.name if limit is None else f"{b.name}-first-{limit}")
            done = answer(
                loaded, asked[b.name], place, settings | {"benchmark": b.name}, b.max_new_tokens, batch_size, b.title
            )
            results[b.name] = about = {
                "batch_size": batch_size, "seconds": round(done.seconds, 1), "asked_now": done.asked, "processes": world,
                "questions_per_second": None if done.rate is None else round(done.rate, 2),
            }  # fmt: skip
            if rank == 0:
                results[b.name] = conclude(
                    b, root, asked[b.name], done.texts, place, {**settings, **about}, limit is None
                )
            meet(world)
    return results


def as_original(loaded: Loaded) -> Loaded:
    """The model with images as the original opens them: not turned as their EXIF says, which VizWiz's phone pictures have."""
    return replace(loaded, processing=replace(loaded.processing, exif=False))


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
    (b,) = named([name])
    root, file = Path(root), Path(answers)
    questions = b.questions(root)
    place = Path(out) if out else file.parent
    place.mkdir(parents=True, exist_ok=True)
    texts = read_answers(file, questions)
    known = _known(place / RESULT) if file.parent == place and file.name == FILE else {}
    return conclude(b, root, questions, texts, place, known or {"model": str(answers)}, True, judge, reference)


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
    submission = b.submit(root, questions, texts, place) if b.submit is not None and whole else None
    if b.judged and judge is not None:
        found = judge_answers(b.name)(root, questions, texts, judge, place / "reviews.jsonl")
        if reference is not None:
            file = Path(reference)
            theirs = mmvet.read_results(file, questions) if file.suffix == ".json" else read_answers(file, questions)
            score = judge_answers(b.name)(root, questions, theirs, judge, place / "reference_reviews.jsonl")
            other = {"name": str(reference), "parts": score.parts}
    elif b.score is not None and whole:
        found = b.score(root, questions, texts)
    result = {
        "benchmark": b.name, "title": b.title, "source": about.get("model") or about.get("source"), "questions": len(questions),
        "main": b.main, "parts": _parts(found), "notes": list(found.notes) if found else [], "whole": whole,
        "server": b.server, "submission": None if submission is None else str(submission), "reference": other,
        "judge": None if judge is None else {"model": judge.model, "url": judge.host, "date": _today()},
        "max_new_tokens": b.max_new_tokens, "versions": versions(), "date": _today(),
    } | {k: about.get(k) for k in ("base", "weights", "dtype", "batch_size", "processes", "seconds", "asked_now", "questions_per_second")}  # fmt: skip
    new = place / (RESULT + ".new")
    new.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(place / RESULT)
    return result


def tell(result: dict[str, Any]) -> str:
    """A result in one line."""
    rate = result["questions_per_second"]
    speed = f", {rate:,.1f} a second" if rate else ""
    if result["parts"] is not None:
        value = f"{result['main']} {result['parts'][result['main']]:.2f}"
    elif not result["whole"]:
        value = "a first few only: not scored"
    elif result["benchmark"] in BENCHMARKS and BENCHMARKS[result["benchmark"]].judged:
        value = f"waits for a judge: qllava score {result['benchmark']} ANSWERS --judge URL --judge-model NAME"
    else:
        value = f"for {result['server']}: {result['submission']}"
    notes = f" ({'; '.join(result['notes'])})" if result["notes"] else ""
    return f"{result['title']}: {value}{notes} [{result['questions']:,} questions{speed}]"


def source_name(source: str | Path) -> str:
    """What a model's results are filed under: its run's or folder's name, or its hub id with `--` for the slash."""
    folder = Path(source)
    if folder.exists():
        folder = folder.resolve()
        return folder.parent.name if folder.name == "final" else folder.name
    return str(source).replace("/", "--")


def identity(source: str | Path, loaded: Loaded) -> str | None:
    """A digest that changes with the weights: of the artifact's manifest; None for what has none."""
    folder = find_artifact(source) if loaded.manifest is not None else None
    return None if folder is None else digest(folder / MANIFEST)[:16]


def _dtype(loaded: Loaded) -> Any:
    return next(p.dtype for n, p in loaded.model.named_parameters() if "vision_tower" in n)


def _parts(found: Score | None) -> dict[str, float] | None:
    return None if found is None else {k: round(v, 4) for k, v in found.parts.items()}


def _known(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
