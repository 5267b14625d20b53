"""`qllava scoreboard`: what evaluation runs scored, beside the paper and the model zoo.

In: the folders of one or more runs, with `BENCHMARK/result.json` in them. Out: a table with a verdict for each cell, as
`scoreboard.json`, `.md` and `.html`, with a chart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from . import scoreboard_page as page
from .bands import band
from .benchmarks.base import Benchmark, read_json, shortfall
from .benchmarks.paper import MODELS
from .results import RESULT, main_score, number, read_result

WITHIN, ABOVE, BELOW = "within the band", "above", "below"
NOT_RUN, SERVER, JUDGE = "not run", "waits for the server", "waits for a judge"
NOT_SCORED = "not scored"
OTHER_JUDGE, OTHER_TASK = "another judge: not comparable", "another task"
OTHER_ROW, PART = "the reference is another model", "a part of the set"
UNPUBLISHED, NO_BAND = "no published figure", "no known band"
OTHER_TASKS = {
    "textvqa_noocr": "the published TextVQA figures are with OCR tokens in the prompt (haotian-liu/LLaVA#515)"
}
GENERAL = (
    "Batches: the original asks one question at a time. In 16 bits, batches of 16 turned two of MME's answers "
    "(haotian-liu/LLaVA#1928).",
    "VLMEvalKit asks with another system prompt and other spaces around the image.",
    "The Hugging Face port of the model gives other values by transformers' version (EvolvingLMMs-Lab/lmms-eval#203).",
)


def scoreboard(
    runs: Sequence[str | Path],
    expect: str | None = None,
    out: str | Path | None = None,
    benchmarks: Mapping[str, Benchmark] | None = None,
) -> dict[str, Any]:
    """The table, written to `out` where that is named.

    Args:
        runs: folders that `qllava eval --benchmark` wrote.
        expect: the published row to compare with, such as `llava-1.5-7b-lora`.
        out: folder for scoreboard.md, .json, .html and chart.png.
        benchmarks: by default the registry's.

    Raises:
        UserError: a folder or a file in it is not what `qllava eval` writes, or no row is called `expect`.
    """
    if benchmarks is None:
        from .benchmarks import BENCHMARKS as benchmarks
    rows = _published(benchmarks)
    if expect is not None and expect not in rows:
        raise UserError(f"No published row '{expect}'.{nearest(expect, rows)} There are: {', '.join(rows)}.")
    if not runs:
        raise UserError("Name the folder of at least one evaluation.")
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    names = [folder.resolve().name for folder in folders]
    ours = [
        _run(folder, name if names.count(name) == 1 else str(folder), benchmarks, expect)
        for folder, name in zip(folders, names, strict=True)
    ]
    board = {
        "expect": expect,
        "expect_title": None if expect is None else MODELS.get(expect, expect),
        "runs": ours,
        "published": [{"model": m, "title": MODELS.get(m, m), "scores": scores} for m, scores in rows.items()],
        "benchmarks": [
            {"name": n, "title": b.title, "main": b.main, "judged": b.judged, "server": b.server}
            | {"differences": list(b.differences)}
            for n, b in benchmarks.items()
        ],
        "differences": list(GENERAL),
    }  # fmt: skip
    if out is not None:
        page.write(board, Path(out))
    return board


def _published(benchmarks: Mapping[str, Benchmark]) -> dict[str, dict[str, float]]:
    """Main scores by model, by benchmark; models in the order of `MODELS`."""
    found: dict[str, dict[str, float]] = {}
    for name, b in benchmarks.items():
        for model, parts in b.paper.items():
            if b.main in parts:
                found.setdefault(model, {})[name] = parts[b.main]
    order = {m: i for i, m in enumerate(MODELS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _run(folder: Path, name: str, benchmarks: Mapping[str, Benchmark], expect: str | None) -> dict[str, Any]:
    files = sorted(folder.glob(f"*/{RESULT}"))
    if not files:
        raise UserError(f"{folder} has no BENCHMARK/{RESULT}. It is the folder that `qllava eval --benchmark` wrote.")
    read: dict[str, tuple[Path, dict[str, Any]]] = {}
    tried: dict[str, int] = {}
    notes: list[str] = []
    for file in files:
        document = read_json(file)
        if isinstance(document, dict) and "benchmark" not in document and "data" in document:
            notes.append(f"{file.parent.name} is of a set of your own ({document['data']}); left out.")
            continue
        result = read_result(file)
        of = result["benchmark"]
        if of not in benchmarks:
            raise UserError(f"{file} is of an unknown benchmark '{of}'.{nearest(of, benchmarks)}")
        if result["main"] != benchmarks[of].main:
            raise UserError(f"{file}: its score is '{result['main']}'; {of}'s is '{benchmarks[of].main}'.")
        if result.get("whole") is False:
            tried[of] = max(tried.get(of, 0), result["questions"])
        elif of in read:
            raise UserError(f"{read[of][0]} and {file} are both of {of}.")
        else:
            read[of] = file, result
    results = [r for _, r in read.values()]
    prints = sorted({str(p) for r in results if (p := r.get("fingerprint") or r.get("weights"))})
    sources = sorted({str(r["source"]) for r in results if r.get("source")})
    if len(prints) > 1 or len(sources) > 1:
        notes.append("These results are not all of one model: " + ", ".join(sources + prints) + ".")
    cells = {
        n: _cell(b, *read[n], expect)
        if n in read
        else {"verdict": f"only the first {tried[n]:,} asked" if n in tried else NOT_RUN}
        for n, b in benchmarks.items()
    }
    notes += _common([cells[n] for n in read])
    return {
        "name": name,
        "folder": str(folder),
        "sources": sources,
        "fingerprints": prints,
        "cells": cells,
        "notes": notes,
    }


def _common(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Takes out of several cells the notes that all of them have, which are then the run's."""
    if len(cells) < 2:
        return []
    shared = [note for note in cells[0]["notes"] if all(note in cell["notes"] for cell in cells[1:])]
    for cell in cells:
        cell["notes"] = [note for note in cell["notes"] if note not in shared]
    return shared


def _cell(b: Benchmark, file: Path, result: dict[str, Any], expect: str | None) -> dict[str, Any]:
    """A score, what it is compared with, and the verdict; `against` is set where that is not the published row."""
    score, judge = main_score(result, file), _judge(result)
    if score is None and (score := number(result.get("server_score"), file, "server_score")) is not None and b.judged:
        judge = f"{b.server or 'a server'}, {result.get('server_date')}"
    kept = ("questions", "submission", "batch_size", "dtype", "max_new_tokens", "date", "server_date")
    cell: dict[str, Any] = {
        "score": score, "verdict": None, "expected": None, "delta": None, "band": None, "band_source": None,
        "against": None, "judge": judge, "notes": [*map(str, result.get("notes") or []), *_settings(b, result)],
    } | {k: result.get(k) for k in kept}  # fmt: skip
    if score is None:
        # A benchmark that is neither judged nor sent anywhere is scored on the spot, unless that failed.
        return cell | {"verdict": JUDGE if b.judged else SERVER if b.server or b.score is None else NOT_SCORED}
    if b.name in OTHER_TASKS:
        return cell | {"verdict": OTHER_TASK, "notes": [*cell["notes"], OTHER_TASKS[b.name]]}
    if b.judged:
        cell |= _judged(b, file, result, score, judge, expect)
    if lacking := shortfall(b, result["questions"]):
        return cell | {
            "verdict": PART,
            "band": None,
            "band_source": None,
            "notes": [*cell["notes"], *({lacking} - {*cell["notes"]})],
        }
    if b.judged or expect is None:
        return cell
    published = b.paper.get(expect, {}).get(b.main)
    return cell | (
        {"verdict": UNPUBLISHED} if published is None else _compare(b, score, published, result["questions"])
    )


def _judged(
    b: Benchmark, file: Path, result: dict[str, Any], score: float, judge: str | None, expect: str | None
) -> dict[str, Any]:
    """Comparable are only published answers that the same judge scored again, and of published models only the expected."""
    reference = result.get("reference") or {}
    parts = reference.get("parts")
    theirs = number(parts.get(b.main) if isinstance(parts, dict) else None, file, f"reference {b.main}")
    if theirs is None or judge is None:
        return {"verdict": OTHER_JUDGE}
    name = str(reference.get("name"))
    found = _compare(b, score, theirs, result["questions"]) | {"against": f"{name}, by the same judge"}
    if expect is not None and slug(name) in MODELS and slug(name) != expect:
        found |= {"verdict": OTHER_ROW, "band": None, "band_source": None}
    return found


def slug(name: str) -> str:
    """The row that an answer file's name means: LLaVA's files are called `llava-v1.5-7b.jsonl`."""
    return re.sub(r"-v(?=\d)", "-", re.sub(r"\.jsonl?$", "", re.split(r"[/\\]", name)[-1]))


def _compare(b: Benchmark, score: float, published: float, questions: int) -> dict[str, Any]:
    known, delta = band(b.name, published, questions), score - published
    if known is None:
        verdict = NO_BAND
    else:
        verdict = WITHIN if abs(delta) <= known.half + 1e-9 else ABOVE if delta > 0 else BELOW
    return {
        "verdict": verdict, "expected": published, "delta": round(delta, 4),
        "band": known and known.half, "band_source": known and known.source,
    }  # fmt: skip


def _judge(result: dict[str, Any]) -> str | None:
    """Who judged and when; None unless both are known."""
    judge = result.get("judge") or {}
    return f"{judge['model']}, {judge['date']}" if judge.get("model") and judge.get("date") else None


def _settings(b: Benchmark, result: dict[str, Any]) -> list[str]:
    """Where this run's settings are not the original's: one question at a time, float16, this length of answers."""
    wanted = {"batch_size": (1,), "dtype": ("float16", "torch.float16"), "max_new_tokens": (b.max_new_tokens,)}
    return [
        f"{name} {result[name]}; the original: {values[0]}"
        for name, values in wanted.items()
        if result.get(name) is not None and result[name] not in values
    ]
