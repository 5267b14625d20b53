"""A scoreboard as Markdown, JSON and a page in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import page
from .page import replace
from .scoreboard_chart import chart

Board = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def write(board: Board, out: Path) -> None:
    """scoreboard.json, .md, .html and chart.png in `out`, each put there whole.

    Raises:
        UserError: the folder cannot be written.
    """
    png = chart(board)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "chart.png", png)
        replace(out / "scoreboard.json", (json.dumps(board, indent=2, ensure_ascii=False) + "\n").encode())
        replace(out / "scoreboard.md", markdown(board).encode())
        replace(out / "scoreboard.html", as_html(board, png).encode())
    except OSError as error:
        raise UserError(f"Cannot write the scoreboard to {out}: {error}.") from None


def number(value: float | None) -> str:
    """One decimal, as the paper has them."""
    return "–" if value is None else f"{value:,.1f}"


def _scores(board: Board) -> tuple[Table, list[str]]:
    """Rows of our runs, then of published models, and for each row what it is."""
    benchmarks = board["benchmarks"]
    head = ["", *(b["title"] + ("†" if b["judged"] else "") for b in benchmarks)]
    rows, kinds = [], []
    for run in board["runs"]:
        cells = [run["cells"][b["name"]] for b in benchmarks]
        rows.append([run["name"], *(_ours(c, b["judged"]) for c, b in zip(cells, benchmarks, strict=True))])
        kinds.append("ours")
    for row in board["published"]:
        rows.append([row["title"], *(number(row["scores"].get(b["name"])) for b in benchmarks)])
        kinds.append("expected" if row["model"] == board["expect"] else "")
    return (head, rows), kinds


def _ours(cell: dict[str, Any], judged: bool) -> str:
    """A judged score stands beside others only with its judge and date."""
    if cell.get("score") is None:
        return cell["verdict"]
    if not judged:
        return number(cell["score"])
    return f"{number(cell['score'])} ({cell['judge']})" if cell["judge"] else "withheld: no judge and date"


def verdicts(board: Board, run: dict[str, Any]) -> Table:
    """A run's cells, one row a benchmark; the last column holds remarks."""
    head = ["benchmark", "ours", "expected", "difference", "band", "verdict", "remarks"]
    rows = []
    for b in board["benchmarks"]:
        c = run["cells"][b["name"]]
        delta = c.get("delta")
        remarks = [f"against {c['against']}"] if c.get("against") else []
        if c.get("submission") and c.get("score") is None:
            remarks.append(f"{b['server'] + ' takes' if b['server'] else 'to be scored:'} {c['submission']}")
        remarks += c.get("notes", [])
        rows.append([
            b["title"], number(None) if c.get("score") is None else _ours(c, b["judged"]), number(c.get("expected")),
            "–" if delta is None else f"{delta:+,.1f}", "–" if c.get("band") is None else f"±{c['band']:g}",
            c["verdict"] or "–", "; ".join(r.rstrip(".") for r in remarks),
        ])  # fmt: skip
    return head, rows


def _bands(board: Board) -> list[str]:
    found: dict[str, None] = {}
    for run in board["runs"]:
        for b in board["benchmarks"]:
            c = run["cells"][b["name"]]
            if c.get("band") is not None:
                found[f"{b['title']}: ±{c['band']:g}. {c['band_source']}."] = None
    return list(found)


def _differences(board: Board) -> list[str]:
    return [*board["differences"], *(f"{b['title']}: {d}" for b in board["benchmarks"] for d in b["differences"])]


def _parts(board: Board) -> Iterator[tuple[str, Any]]:
    """The page in order: what a part is, and what it holds."""
    yield "h1", "Scoreboard"
    if board["expect"]:
        yield "p", f"Compared with the published row {board['expect_title']} ({board['expect']})."
    else:
        yield "p", "Compared with no row; --expect names one."
    yield "chart", "Scores of the runs"
    for run in board["runs"]:
        yield "h2", f"Verdicts: {run['name']}"
        about = ", ".join([*run["sources"], *run["fingerprints"]])
        if about:
            yield "p", f"Model: {about}."
        yield "table", verdicts(board, run)
        for note in run["notes"]:
            yield "p", note
    yield "h2", "Scores"
    yield "scores", _scores(board)
    yield "p", "Published rows: arXiv 2310.03744, tables 3 and 4, and LLaVA's model zoo."
    if any(b["judged"] for b in board["benchmarks"]):
        yield (
            "p",
            "† Scored by a model. The published figures are by judges that are gone or changed (LLaVA-Bench: "
            "gpt-4-0314); ours names its judge and the date. Only answers that one judge scored can be compared.",
        )
    if bands := _bands(board):
        yield "h2", "Bands"
        yield (
            "p",
            "A score within the band differs no more than runs of the same recipe are known to differ or, where no "
            "two are published, than another draw of as many questions would make it differ. Bands from retrainings "
            "are of the 7B full recipe and stand in for other rows.",
        )
        yield "list", bands
    yield "h2", "Known differences between harnesses"
    yield "list", _differences(board)


def markdown(board: Board) -> str:
    """The scoreboard as Markdown."""
    return page.markdown(_parts(board))


def as_html(board: Board, png: bytes) -> str:
    """The scoreboard as one page."""
    return page.as_html(_parts(board), png, "Scoreboard")
