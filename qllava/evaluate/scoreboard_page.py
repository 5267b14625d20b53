"""A scoreboard as Markdown, JSON and a page in one file. Names come from files, so all text is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..console import safe
from ..errors import UserError
from .scoreboard_chart import chart

Board = dict[str, Any]
Table = tuple[list[str], list[list[str]]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #1a1a1a; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; font-size: 1.2em; }
.wide { overflow-x: auto; font-size: 13px; } table { border-collapse: collapse; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top; } th { border-bottom: 2px solid #888; } img { max-width: 100%; }
tr.ours td { background: #eef4fb; font-weight: 600; } tr.expected td { background: #f3f3f3; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e6e6e6; } th, td { border-color: #444; }
tr.ours td { background: #1d2c3d; } tr.expected td { background: #26282d; } img { background: #fff; } }
"""


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


def replace(file: Path, content: bytes) -> None:
    """The file, whole or as it was."""
    new = file.with_name(file.name + ".new")
    try:
        new.write_bytes(content)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


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
    def escape(text: str) -> str:
        text = " ".join(safe(text).split())
        for sign in "\\`*_[]|<>":
            text = text.replace(sign, {"<": "&lt;", ">": "&gt;"}.get(sign, "\\" + sign))
        return text

    lines: list[str] = []
    for kind, held in _parts(board):
        if kind in ("h1", "h2"):
            lines += [("# " if kind == "h1" else "## ") + escape(held), ""]
        elif kind == "p":
            lines += [escape(held), ""]
        elif kind == "chart":
            lines += [f"![{held}](chart.png)", ""]
        elif kind == "list":
            lines += [*(f"- {escape(item)}" for item in held), ""]
        else:
            head, rows = held[0] if kind == "scores" else held
            grid = [head, ["---"] * len(head), *rows]
            lines += ["| " + " | ".join(map(escape, row)) + " |" for row in grid] + [""]
    return "\n".join(lines)


def as_html(board: Board, png: bytes) -> str:
    escape: Callable[[str], str] = lambda text: html.escape(safe(text), quote=True)  # noqa: E731
    picture = base64.b64encode(png).decode()
    body: list[str] = []
    for kind, held in _parts(board):
        if kind in ("h1", "h2", "p"):
            body.append(f"<{kind}>{escape(held)}</{kind}>")
        elif kind == "chart":
            body.append(f'<p><img alt="{escape(held)}" src="data:image/png;base64,{picture}"></p>')
        elif kind == "list":
            body.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in held) + "</ul>")
        else:
            (head, rows), kinds = held if kind == "scores" else (held, [""] * len(held[1]))
            cells = "".join(f"<th>{escape(c)}</th>" for c in head)
            trs = (
                f'<tr class="{k}">' + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>"
                for row, k in zip(rows, kinds, strict=True)
            )
            body.append(f'<div class="wide"><table><tr>{cells}</tr>' + "\n".join(trs) + "</table></div>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Scoreboard</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
