"""Results as Markdown: `python -m benchmarks table` writes one beside each result of a race."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = (
    "contender", "s/step (min–max)", "samples/s", "tokens/s", "supervised/s", "peak MiB", "above the model MiB", "waiting",
    "MFU", "HFU", "time ×", "memory ×", "loss, first → last",
)  # fmt: skip


def save(result: Mapping[str, Any], name: str, folder: Path = RESULTS) -> None:
    """Writes `NAME.json` and `NAME.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(result, name))


def rewrite(folder: Path = RESULTS) -> list[str]:
    """Writes the Markdown of all races in the folder anew; returns their names."""
    names = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        if result.get("benchmark") == "speed":
            file.with_suffix(".md").write_text(markdown(result, file.stem))
            names.append(file.stem)
    return names


def markdown(result: Mapping[str, Any], name: str) -> str:
    """One race as a table, with what it was run on and how.

    The ratios are to the first qllava contender: how many times its time, and its memory above the loaded model.
    """
    how, box = result["settings"], result["machine"]
    rows = result["contenders"]
    reference = next((r["name"] for r in rows if r["kind"] == "qllava" and "seconds" in r), None)
    device = box.get("gpu") or f"{box['processor']}, {box['cores']} cores, {how['threads']} threads"
    rate = result["matmul_flops"]
    lines = [
        f"# {name}",
        "",
        f"Shape `{how['shape']}`, data `{how['data']}`, batch {how['batch']} in micro-batches of {how['micro_batch']}, "
        f"{how['dtype']}, {how['tune']}. {device}"
        + (f", {rate / 1e9:,.0f} GFLOP/s in a matrix product" if rate else "")
        + (f", held to {how['vram_cap']} GiB" if how.get("vram_cap") else "")
        + f". {result['date']}, commit {result['commit']}.",
        "",
        f"    {result['command']}",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
        *(f"| {' | '.join(_cells(row, reference))} |" for row in rows),
        "",
    ]
    if reference:
        lines += [
            f"× is to `{reference}`. Medians of {how['steps']} steps a round, after {how['warmup']} for warm-up.",
            "",
        ]
    if not result["checks"]["same_supervised_tokens"]:
        lines += [f"Supervised tokens differ: {result['checks']['supervised_tokens']}.", ""]
    lines += [f"Not raced: {', '.join(f'{n} ({why})' for n, why in result['not_raced'].items())}.", ""]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], reference: str | None) -> list[str]:
    if "seconds" not in row:
        why = "OOM" if row["status"] == "OOM" else f"{row['status']}: {row['error']}"
        return [f"`{row['name']}`", why, *[""] * (len(HEAD) - 2)]
    seconds, memory, ratio = row["seconds"], row["memory"], row.get("versus", {}).get(reference, {})
    return [
        f"`{row['name']}`",
        f"{seconds['median']:.2f} ({seconds['min']:.2f}–{seconds['max']:.2f})",
        f"{row['samples_per_second']:.2f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['supervised_per_second']:,.0f}",
        f"{memory['peak'] / 2**20:,.0f}",
        f"{memory['delta'] / 2**20:,.0f}",
        f"{row['data_wait_share']:.1%}",
        _share(row["mfu"]),
        _share(row["hfu"]),
        _times(ratio.get("time")),
        _times(ratio.get("memory")),
        f"{row['losses'][0]:.4f} → {row['losses'][-1]:.4f}",
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
