"""What a study's runs came to: means, spreads, differences, and the paper's own figures beside them."""

from __future__ import annotations

import json
import statistics
from typing import Any

from ..errors import UserError
from ..evaluate.benchmarks import benchmark
from ..evaluate.results import main_score, read_result
from .plan import Plan, Run
from .study import Evaluation, Study


def results(study: Study, found: Plan, failures: list[dict[str, Any]]) -> dict[str, Any]:
    """One document: each arm's values by evaluation and seed, with mean, sample standard deviation and difference."""
    arms, seeds = list(dict.fromkeys(arm for arm, _ in found.scored)), list(dict.fromkeys(s for _, s in found.scored))
    scores = {
        arm: {name: {s: score_of(e, found.scored[arm, s][name]) for s in seeds} for name, e in study.evaluate.items()}
        for arm in arms
    }
    rows = []
    for arm in arms:
        about, cells = study.arms[arm], {}
        for name in study.evaluate:
            cells[name] = cell(scores[arm][name], scores.get(study.against, {}).get(name, {}), arm == study.against)
            cells[name]["paper"] = about.paper.get(name)
        row = {"name": arm, "title": about.title or arm, "note": about.note, "scores": cells}
        rows.append(row | {"seconds": _seconds(arm, found)})
    return {
        "title": study.title, "axis": study.axis, "reference": study.against, "seeds": seeds, "source": study.source,
        "evaluations": [{"name": n, "title": e.title or n, "unit": unit(e)} for n, e in study.evaluate.items()],
        "arms": rows, "notes": list(study.notes), "failures": failures,
    }  # fmt: skip


def score_of(asked: Evaluation, run: Run) -> float | None:
    """A model's score: percent of one's own set, or as the benchmark has it; None where there is none yet."""
    if not run.result.is_file():
        return None
    if asked.benchmark is not None:
        return main_score(read_result(run.result), run.result)
    try:
        value = json.loads(run.result.read_text(encoding="utf-8"))["metrics"].get(asked.metric)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{run.result} is damaged. Remove it, and it is asked anew.") from None
    return None if value is None else 100 * value


def unit(asked: Evaluation) -> str:
    """What a score is counted in, for the table's head."""
    if asked.benchmark is not None:
        return benchmark(asked.benchmark).title
    return {"exact_match": "exact match, %", "vqa_accuracy": "VQA accuracy, %"}.get(asked.metric, asked.metric)


def cell(values: dict[int, float | None], reference: dict[int, float | None], own: bool) -> dict[str, Any]:
    """Figures over seeds. The difference is of the means over those seeds that both arms have."""
    known = {s: v for s, v in values.items() if v is not None}
    both = [s for s in known if reference.get(s) is not None]
    difference = statistics.fmean(known[s] - reference[s] for s in both) if both and not own else None
    return {
        "values": known,
        "n": len(known),
        "mean": statistics.fmean(known.values()) if known else None,
        "spread": statistics.stdev(known.values()) if len(known) > 1 else None,
        "difference": difference,
    }


def _seconds(arm: str, found: Plan) -> float | None:
    """Wall time of the arm's own runs, over all seeds; of runs that arms share, that of all its forerunners."""
    names: set[str] = set()

    def take(run: Run) -> None:
        names.add(run.name)
        for name in run.needs:
            take(found.runs[name])

    for (owner, _), runs in found.scored.items():
        if owner == arm:
            for run in runs.values():
                take(run)
    times = []
    for name in names:
        record = found.runs[name].record
        times.append(json.loads(record.read_text(encoding="utf-8")).get("seconds") if record.is_file() else None)
    return None if None in times else round(sum(times), 1)
