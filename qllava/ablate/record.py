"""What is kept beside each run's folder (`STAGE.json`): what it is, what it read, which process has it, how long it took.

In: a plan. Out: the runs that are left to do; a sentence where a folder is another run's, or a living process works in it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import psutil

from ..errors import UserError
from ..evaluate.results import write_result
from .plan import Plan, Run


def reads(run: Run) -> list[Path]:
    """The data files that the run depends on: of training its sources, of an evaluation its questions."""
    named = [s.path for s in run.recipe.data] if run.recipe is not None else []
    if "--data" in run.arguments:
        named = [run.arguments[run.arguments.index("--data") + 1]]
    return [Path(n) for n in named if Path(n).is_file()]


def digests(run: Run) -> dict[str, str]:
    """Of each of them, by its path."""
    return {str(p): _digest(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in reads(run)}


@functools.cache
def _digest(path: str, changed: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def left_to_do(found: Plan) -> list[Run]:
    """The runs without a result, and those whose result is of an earlier run that is done anew."""
    names: dict[str, Run] = {}
    for run in found.runs.values():  # each after those that it needs
        if not run.result.is_file() or names.keys() & set(run.needs):
            names[run.name] = run
    return list(names.values())


def begin(run: Run, goes_on: bool) -> None:
    """Writes the record of a run that is about to start.

    Args:
        goes_on: with what an earlier process has left; its time stays.
    """
    seconds = _read(run).get("seconds") if goes_on and run.record.is_file() else None
    kept = {
        "run": run.name,
        "digest": run.digest,
        "arguments": run.arguments,
        "values": run.values,
        "data": digests(run),
    }
    write_result(kept | ({"seconds": seconds} if seconds is not None else {}), run.record)


def add(run: Run, **fields: Any) -> None:
    """Adds fields to the record; one that is None goes."""
    write_result({k: v for k, v in {**_read(run), **fields}.items() if v is not None}, run.record)


def ended(run: Run, seconds: float) -> None:
    """Adds the time of a process that has ended to that of those before it."""
    add(run, seconds=round(_read(run).get("seconds", 0.0) + seconds, 1), process=None, began=None)


def _read(run: Run) -> dict[str, Any]:
    return json.loads(run.record.read_text(encoding="utf-8"))


def belongs(found: Plan) -> None:
    """Raises `UserError`, naming what differs, where a run's folder is another one's than this study's."""
    wrong = []
    for run in found.runs.values():
        if not run.record.is_file():
            if run.folder.exists():
                wrong.append(f"{run.folder}: has no record ({run.record.name}) of what it is")
            continue
        try:
            record = _read(run)
            then, data = dict(record["values"]), dict(record.get("data", {}))
        except (ValueError, KeyError, TypeError):
            wrong.append(f"{run.record}: is no record of a run")
            continue
        _is_free(run, record)
        now = json.loads(json.dumps(run.values))
        if then != now:
            fields = [k for k in {**then, **now} if then.get(k) != now.get(k)]
            told = [f"{k} {_short(then, k)} then, {_short(now, k)} now" for k in fields]
            wrong.append(f"{run.folder}: {'; '.join(told)}")
        here = digests(run)
        wrong += [
            f"{run.folder}: the data in {path} has changed" for path, was in data.items() if here.get(path, was) != was
        ]
    if wrong:
        shown = "\n".join(f"  - {w}" for w in wrong[:6]) + (
            f"\n  - and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        )
        raise UserError(
            f"The study or its recipes have changed since these runs were made, which would be mixed with others:\n{shown}\n"
            "Name another --out, or remove those folders with what lies beside them."
        )


def _short(values: dict[str, Any], field: str) -> str:
    text = json.dumps(values[field], ensure_ascii=False) if field in values else "(the default)"
    return text if len(text) <= 60 else text[:59] + "…"


def _is_free(run: Run, record: dict[str, Any]) -> None:
    """Raises `UserError` where a process of an earlier call, which was killed, still works on the run."""
    if "process" not in record:
        return
    with contextlib.suppress(psutil.Error):  # it has ended
        process = psutil.Process(record["process"])
        if process.create_time() == record.get("began") and process.status() != psutil.STATUS_ZOMBIE:
            raise UserError(
                f"{run.folder} is still being worked on by process {process.pid}, of a call that was killed. Wait for it, or end it "
                f"(kill {process.pid}), then call again."
            )
