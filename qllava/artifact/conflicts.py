"""Where adapters agree and disagree. In: their changes and weights. Out: figures for each layer and pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import console
from .delta import Change
from .stream import BaseTensors


def conflict_report(parts: Sequence[tuple[float, dict[str, Change]]], base: BaseTensors) -> list[dict[str, Any]]:
    """For each layer and pair of adapters: the cosine of their changes, and the share of entries whose signs disagree."""
    found: dict[tuple[int, int, str], list[tuple[float, float, int]]] = {}
    for i, (one, mine) in enumerate(parts):
        for j in range(i + 1, len(parts)):
            other, theirs = parts[j]
            for module in sorted(set(mine) & set(theirs)):
                a, b = mine[module], theirs[module]
                weight = base.weight(module) if (a.magnitude is not None or b.magnitude is not None) else None
                a, b = one * a.delta(weight), other * b.delta(weight)
                cosine = float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))
                disagree = float(((a * b) < 0).float().mean())
                layer = module.rsplit(".layers.", 1)[-1].split(".")[0] if ".layers." in module else module
                found.setdefault((i, j, layer), []).append((cosine, disagree, a.numel()))
    rows = []
    for (i, j, layer), values in found.items():
        size = sum(n for *_, n in values)
        rows.append({
            "adapters": [i, j], "layer": layer, "cosine": sum(c * n for c, _, n in values) / size,
            "sign_disagreement": sum(d * n for _, d, n in values) / size,
        })  # fmt: skip
    return sorted(rows, key=lambda r: (r["adapters"], int(r["layer"]) if r["layer"].isdigit() else -1))


def show_conflicts(rows: list[dict[str, Any]]) -> None:
    """The report as a table on stderr."""
    if rows:
        console.table(
            "Where they agree (cosine 1) and disagree",
            ("adapters", "layer", "cosine", "signs that disagree"),
            [
                (
                    f"{r['adapters'][0] + 1} and {r['adapters'][1] + 1}",
                    r["layer"],
                    f"{r['cosine']:.3f}",
                    f"{100 * r['sign_disagreement']:.1f} %",
                )
                for r in rows
            ],
        )
