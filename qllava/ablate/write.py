"""A study's results as Markdown, a chart and a page in one file, put there whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..evaluate.page import Part, as_html, markdown, replace
from .chart import chart

DASH = "–"


def write(document: dict[str, Any], out: Path) -> None:
    """`table.md`, `chart.png` and `page.html` in `out`."""
    png = chart(document)
    replace(out / "chart.png", png)
    replace(out / "table.md", markdown(parts(document)).encode())
    replace(out / "page.html", as_html(parts(document), png, document["title"]).encode())


def parts(document: dict[str, Any]) -> Iterator[Part]:
    """The page in order."""
    seeds = ", ".join(map(str, document["seeds"]))
    yield "h1", document["title"]
    yield "p", f"Seeds {seeds}: mean ± sample standard deviation over n of them."
    yield "p", f"The difference is from {_title(document)}, over the seeds that both have."
    yield "chart", document["title"]
    for evaluation in document["evaluations"]:
        title, unit = evaluation["title"], evaluation["unit"]
        yield "h2", title if unit == title else f"{title} ({unit})"
        yield "scores", rows(document, evaluation["name"])
    if document["source"]:
        yield "p", f"The paper's figures: {document['source']}."
    notes = [*document["notes"], *(f"{a['title']}: {a['note']}" for a in document["arms"] if a["note"])]
    notes += [f"{f['run']} failed; its log is {f['log']}." for f in document["failures"]]
    if notes:
        yield "list", notes


def _title(document: dict[str, Any]) -> str:
    return next((a["title"] for a in document["arms"] if a["name"] == document["reference"]), document["reference"])


def rows(document: dict[str, Any], evaluation: str) -> tuple[tuple[list[str], list[list[str]]], list[str]]:
    """The table of an evaluation, and for each row what it is."""
    cells = [a["scores"][evaluation] for a in document["arms"]]
    printed = any(c["paper"] is not None for c in cells)
    head = [
        document["axis"],
        "mean ± spread",
        "n",
        "difference",
        *(["the paper"] if printed else []),
        "by seed",
        "seconds",
    ]
    lines = []
    for arm, c in zip(document["arms"], cells, strict=True):
        reference = arm["name"] == document["reference"]
        lines.append([
            arm["title"], _mean(c), str(c["n"]), "reference" if reference else _number(c["difference"], "+"),
            *([_number(c["paper"])] if printed else []),
            ", ".join(_number(v) for v in c["values"].values()) or DASH, _number(arm["seconds"]),
        ])  # fmt: skip
    kinds = ["expected" if a["name"] == document["reference"] else "" for a in document["arms"]]
    return (head, lines), kinds


def _mean(found: dict[str, Any]) -> str:
    return _number(found["mean"]) + (f" ± {found['spread']:,.1f}" if found["spread"] is not None else "")


def _number(value: float | None, sign: str = "") -> str:
    return DASH if value is None else f"{value:{sign},.1f}"
