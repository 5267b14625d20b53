"""From reports to figures: medians, rates, memory, use of the device, ratios. In: what `race` saw. Out: plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .contenders import Contender
from .flops import recomputed, step_flops
from .race import Seen
from .shapes import Shape

PER_SAMPLE = ("tokens", "supervised", "positions", "images")


def row(seen: Seen, contender: Contender, shape: Shape, rank: int, batch: int, rate: float | None) -> dict[str, Any]:
    """One contender's figures. Seconds and rates are of the steps after the warm-up, losses of all steps.

    Args:
        batch: samples in a step.
        rate: floating-point operations per second of a matrix product on the same device.
    """
    found: dict[str, Any] = {
        "name": seen.name, "kind": contender.kind, "overrides": list(contender.overrides), "status": seen.status,
        "error": seen.error, "trainable": seen.ready.get("trainable"),
    }  # fmt: skip
    counted = [s for s in seen.steps if not s["warmup"]]
    if seen.status != "ok" or not counted:
        return found
    seconds = [s["seconds"] for s in counted]
    median = statistics.median(seconds)
    found["seconds"] = {"median": median, "min": min(seconds), "max": max(seconds), "all": seconds}
    found["samples_per_second"] = batch / median
    for name in ("tokens", "supervised"):
        found[f"{name}_per_second"] = statistics.median(s[name] / s["seconds"] for s in counted)
    found["per_step"] = {name: [s[name] for s in counted] for name in PER_SAMPLE}
    most = max(seen.steps, key=lambda s: s["peak"])
    peak, begin = most["peak"], most["begin"]
    found["memory"] = {"begin": begin, "peak": peak, "delta": peak - begin, "by": seen.ready["memory_by"]}
    found["data_wait_share"] = sum(s["waited"] for s in counted) / sum(seconds)
    found |= _use(counted, contender, shape, rank, batch, rate)
    found["losses"] = [s["loss"] for s in seen.steps]
    return found


def _use(
    counted: Sequence[Mapping[str, Any]], contender: Contender, shape: Shape, rank: int, batch: int, rate: float | None
) -> dict[str, float | None]:
    """Share of the device's rate: of what steps need (`mfu`), and of that and what was recomputed (`hfu`)."""
    if not rate:
        return {"mfu": None, "hfu": None}
    share = contender.checkpointed(shape.layers)
    needs, does = [], []
    for step in counted:
        # packed without positions: as if all samples were of one length
        fed = {**step, "pairs": step["pairs"] or step["tokens"] ** 2 // (2 * batch)}
        need = step_flops(shape, rank, fed)
        needs.append(need / step["seconds"] / rate)
        if share is not None:
            does.append((need + recomputed(shape, rank, fed, share)) / step["seconds"] / rate)
    return {"mfu": statistics.median(needs), "hfu": statistics.median(does) if does else None}


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Gives each row `versus`: how many times a qllava contender's median step and memory above the model it takes."""
    ours = [r for r in rows if r["kind"] == "qllava" and "seconds" in r]
    for each in rows:
        if "seconds" in each:
            each["versus"] = {
                r["name"]: {
                    "time": each["seconds"]["median"] / r["seconds"]["median"],
                    "memory": each["memory"]["delta"] / r["memory"]["delta"] if r["memory"]["delta"] > 0 else None,
                }
                for r in ours
            }


def checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether all that finished learned from as many tokens in every step, trained as much, and began at the same loss."""
    done = [r for r in rows if "seconds" in r]
    supervised = {r["name"]: r["per_step"]["supervised"] for r in done}
    first = [r["losses"][0] for r in done]
    return {
        "same_supervised_tokens": len({tuple(v) for v in supervised.values()}) <= 1,
        "supervised_tokens": {name: sum(v) for name, v in supervised.items()},
        "same_trainable": len({r["trainable"] for r in done}) <= 1,
        "first_loss_spread": max(first) - min(first) if first else None,
        "largest_loss_spread": max(
            (max(at) - min(at) for at in zip(*(r["losses"] for r in done), strict=False)), default=None
        ),
    }
