"""A server's score, kept with the answers that it is of, so that a later scoreboard finds it there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from datetime import date as Date
from pathlib import Path
from typing import Any

from .. import console
from ..errors import UserError, nearest
from .benchmarks import BENCHMARKS
from .results import RESULT, main_score, read_result, write_result


def record(folder: str | Path, value: float, date: str) -> dict[str, Any]:
    """Writes the score that a server gave into a benchmark's `result.json`; returns the result.

    Args:
        folder: the benchmark's, with `result.json` in it.
        date: of the server's answer, such as 2026-01-31.

    Raises:
        UserError: there is no result, it is scored already, or value or date is none that it can have.
    """
    file = Path(folder) / RESULT
    result = read_result(file)
    if main_score(result, file) is not None:
        raise UserError(f"{file} is scored already: {result['main']} {main_score(result, file):g}.")
    _check(value, result["benchmark"])
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise UserError(f"'{date}' is no date like 2026-01-31.") from None
    if (before := result.get("server_score")) is not None and before != value:
        console.note(
            f"{result['benchmark']}: {value:g} takes the place of {before!s:.20}, recorded {result.get('server_date')}."
        )
    result |= {"server_score": value, "server_date": date}
    write_result(result, file)
    return result


def _check(value: float, name: str) -> None:
    most = BENCHMARKS[name].most if name in BENCHMARKS else math.inf
    if not 0 <= value <= most:  # nor NaN
        raise UserError(f"{value:g} is no score of {name}: those are from 0 to {most:g}.")


def record_scores(runs: Sequence[str | Path], records: Sequence[str], date: str | None = None) -> None:
    """Records several scores, each as `vqav2=78.4`, of the only run; today's unless a date is given.

    Raises:
        UserError: there are several runs, or a name or a number is wrong, and nothing is written; or one is scored.
    """
    if records and len(runs) != 1:
        raise UserError(f"A server's score belongs to one run; {len(runs)} are named. Name that one alone.")
    values: list[tuple[Path, float]] = []
    for text in records:
        name, _, number = text.partition("=")
        folder = Path(runs[0]) / name.strip()
        try:
            values.append((folder, float(number)))
        except ValueError:
            raise UserError(f"'{text}' is no score such as vqav2=78.4.") from None
        _check(values[-1][1], name.strip())
        if not name.strip() or not (folder / RESULT).is_file():
            known = sorted(file.parent.name for file in Path(runs[0]).glob(f"*/{RESULT}"))
            raise UserError(f"{runs[0]} has no result of '{name}'.{nearest(name, known)} It has: {', '.join(known)}.")
    for folder, value in values:
        record(folder, value, date or datetime.now(UTC).date().isoformat())
