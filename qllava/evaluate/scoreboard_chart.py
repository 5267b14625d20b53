"""The scoreboard's chart: each benchmark's score around the expected row, in half-widths of its band."""

from __future__ import annotations

import io
from typing import Any

from ..console import safe

COLORS = ("#1f5fa8", "#c8551b", "#2b8a3e", "#7b3fa0", "#8a6d00", "#b02a5b")
MARKS = "osD^vP"
REACH = 4.0  # half-widths to either side; what lies further is drawn at the edge as an arrow


def label(text: str) -> str:
    """Text that matplotlib shows as it is: no formulas, no control characters, not longer than the page."""
    text = " ".join(safe(text).split()).replace("$", r"\$")
    return text if len(text) <= 48 else text[:47] + "…"


def chart(board: dict[str, Any]) -> bytes:
    """A PNG of what any of the runs has. Without an expected row, scores stand among all published ones instead."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = board["runs"]
    benchmarks = [b for b in board["benchmarks"] if any(r["cells"][b["name"]]["verdict"] != "not run" for r in runs)]
    height = max(0.42, 0.2 * len(runs) + 0.16)
    figure = Figure(figsize=(11, 1.6 + height * max(1, len(benchmarks)) + 0.22 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (_around if board["expect"] else _among)(axes, board | {"benchmarks": benchmarks})
    axes.set_yticks(range(len(benchmarks)), [label(b["title"]) for b in benchmarks])
    axes.set_ylim(len(benchmarks) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    # Names that begin with _ would be left out of a legend that gathers them itself.
    handles = [axes.plot([], [], MARKS[i % 6], color=COLORS[i % 6])[0] for i in range(len(runs))]
    figure.legend(handles, [label(r["name"]) for r in runs], loc="outside lower left", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _offset(number: int, of: int) -> float:
    return (number - (of - 1) / 2) * 0.64 / max(of, 2)


def _around(axes: Any, board: dict[str, Any]) -> None:
    runs = board["runs"]
    for y, b in enumerate(board["benchmarks"]):
        cells = [run["cells"][b["name"]] for run in runs]
        axes.plot([-REACH, REACH], [y, y], color="#eeeeee", linewidth=1, zorder=0)
        if any(c.get("band") for c in cells):
            axes.barh(y, 2, left=-1, height=0.72, color="#cfe0f3", zorder=1)
        for i, c in enumerate(cells):
            at = y + _offset(i, len(runs))
            if c.get("band"):
                x = c["delta"] / c["band"]
                mark = MARKS[i % 6] if abs(x) <= REACH else "<" if x < 0 else ">"
                axes.plot(max(-REACH, min(REACH, x)), at, mark, color=COLORS[i % 6], markersize=7, zorder=3)
                words = f"{c['score']:,.1f} for {c['expected']:,.1f} ({c['delta']:+,.1f}, band ±{c['band']:g})"
                words += ", re-scored" * bool(c["against"])
            else:
                words = c["verdict"] or ""
            axes.text(
                REACH + 0.25, at, label(words), va="center", fontsize=8.5,
                color=COLORS[i % 6] if c.get("band") else "#777777",
            )  # fmt: skip
    axes.axvline(0, color="#444444", linewidth=1, zorder=2)
    axes.set_xlim(-REACH - 0.2, REACH + 4.6)
    axes.set_xticks(range(-4, 5))
    axes.set_xlabel("difference from the expected row, in half-widths of the band (shaded)", loc="left")
    axes.set_title(label(f"Against {board['expect_title']}"), loc="left")


def _among(axes: Any, board: dict[str, Any]) -> None:
    """From the lowest of all scores of a benchmark (0) to the highest (1)."""
    runs = board["runs"]
    for y, b in enumerate(board["benchmarks"]):
        theirs = [row["scores"][b["name"]] for row in board["published"] if b["name"] in row["scores"]]
        cells = [run["cells"][b["name"]] for run in runs]
        # A judge's scores are no other judge's; alone a score has no place.
        shown = [bool(theirs) and not b["judged"] and c.get("score") is not None for c in cells]
        every = [*theirs, *(c["score"] for c, s in zip(cells, shown, strict=True) if s)]
        low, high = min(every, default=0), max(every, default=1)
        span = high - low or 1
        axes.plot([0, 1], [y, y], color="#eeeeee", linewidth=1, zorder=0)
        axes.plot([(v - low) / span for v in theirs], [y] * len(theirs), "|", color="#888888", markersize=11, zorder=2)
        for i, (c, s) in enumerate(zip(cells, shown, strict=True)):
            at = y + _offset(i, len(runs))
            if s:
                axes.plot((c["score"] - low) / span, at, MARKS[i % 6], color=COLORS[i % 6], markersize=7, zorder=3)
            words = f"{c['score']:,.1f}, of {low:,.1f} to {high:,.1f}" if s and high > low else c["verdict"] or ""
            axes.text(1.05, at, label(words), va="center", fontsize=8.5, color=COLORS[i % 6] if s else "#777777")
    axes.set_xlim(-0.05, 1.6)
    axes.set_xticks([0, 1], ["lowest", "highest"])
    axes.set_xlabel("among the published scores (grey)", loc="left")
