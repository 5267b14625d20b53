"""A study's chart: a panel an evaluation, each arm's mean with its spread, every seed, and the paper's figure."""

from __future__ import annotations

import io
from typing import Any

from ..evaluate.scoreboard_chart import COLORS, label

OURS, PAPER = COLORS[0], COLORS[1]


def chart(document: dict[str, Any]) -> bytes:
    """A PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms, evaluations = document["arms"], document["evaluations"]
    figure = Figure(figsize=(9, 1.2 + len(evaluations) * (0.9 + 0.42 * len(arms))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(evaluations), 1, squeeze=False)[:, 0]
    for axes, evaluation in zip(panels, evaluations, strict=True):
        _panel(axes, [(a["title"], a["scores"][evaluation["name"]]) for a in arms])
        unit = "" if evaluation["unit"] == evaluation["title"] else f" ({evaluation['unit']})"
        axes.set_title(label(evaluation["title"] + unit), loc="left", fontsize=10)
    figure.suptitle(label(document["title"]), x=0.01, ha="left")
    handles = [
        panels[0].plot([], [], "o", color=OURS, label="mean, with the standard deviation over seeds")[0],
        panels[0].plot([], [], "|", color=OURS, alpha=0.6, markersize=9, label="a seed")[0],
    ]
    if any(a["scores"][e["name"]]["paper"] is not None for a in arms for e in evaluations):
        handles.append(panels[0].plot([], [], "D", color=PAPER, mfc="none", label="the paper")[0])
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _panel(axes: Any, rows: list[tuple[str, dict[str, Any]]]) -> None:
    for y, (_, found) in enumerate(rows):
        axes.axhline(y, color="#eeeeee", linewidth=1, zorder=0)
        if found["mean"] is not None:
            values = list(found["values"].values())
            axes.plot(values, [y] * len(values), "|", color=OURS, alpha=0.6, markersize=12, zorder=2)
            axes.errorbar(found["mean"], y, xerr=found["spread"] or 0, fmt="o", color=OURS, capsize=4, zorder=3)
            axes.annotate(
                f"{found['mean']:,.1f}", (found["mean"], y), (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        if found["paper"] is not None:
            axes.plot(found["paper"], y, "D", color=PAPER, mfc="none", markersize=7, zorder=3)
    axes.set_yticks(range(len(rows)), [label(title) for title, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
