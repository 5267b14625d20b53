"""`python -m benchmarks planner`: how much memory runs take, beside what `qllava.api.plan` foretells.

Each configuration of qllava (overrides of a recipe) runs three steps in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machine import commit, machine
from .speed import race
from .speed.command import BATCH, base_of, note, words_for
from .speed.job import Job
from .speed.sets import IMAGES_OF, make_set
from .speed.shapes import SHAPES, make_base

STEPS = 3
CONFIGURATIONS = ("", "gradient_checkpointing=true", "packing=true fused_layers=true")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", type=Path, metavar="RESULT", help="foretell anew what this file has measured")
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--data", choices=IMAGES_OF, default="one")
    parser.add_argument("--batches", type=int, nargs="+", help="samples at once (default: by --data)")
    parser.add_argument(
        "--config", action="append", metavar="OVERRIDES", help="of the recipe, with spaces between; can be given again"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--tune", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--vram-cap", type=float, default=0, metavar="GIB")
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qllava-speed")


def foretell(result: Path, work: Path) -> dict[str, Any]:
    """A result with its measured peaks, and what the planner says of them now."""
    found = json.loads(result.read_text())
    base = make_base(found["shape"], work, "cpu")
    with tempfile.TemporaryDirectory(prefix="qllava-planner-") as temporary:
        for row in found["configurations"]:
            data = make_set(
                found["data"], Path(temporary) / f"set-{row['batch']}", words_for(base), row["batch"], STEPS
            )
            job = Job(
                "again", "qllava", base=str(base), data=str(data), out=temporary, device="cpu", dtype=found["dtype"],
                tune=found["tune"], batch=row["batch"], micro_batch=row["batch"], steps=STEPS, threads=1,
                overrides=tuple(row["overrides"].split()),
            )  # fmt: skip
            row["predicted"] = predicted(job)
            row["off_by"] = row["peak"] / row["predicted"] - 1 if row["peak"] else None
    return found | {"foretold_at": commit(race.ROOT)}


def measure(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Runs each configuration with each batch; returns their peaks in bytes, measured and foretold.

    Raises:
        ValueError: a batch does not fit the data.
    """
    args.work.mkdir(parents=True, exist_ok=True)
    if args.again:
        return foretell(args.again, args.work)
    rows = []
    with tempfile.TemporaryDirectory(prefix="qllava-planner-") as temporary:
        folder = Path(temporary)
        base = base_of(args, folder)
        words = words_for(base)
        for batch in args.batches or [BATCH[args.data]]:
            data = make_set(args.data, folder / f"set-{batch}", words, batch, STEPS)
            for text in args.config or CONFIGURATIONS:
                name = f"batch {batch}, {text or 'as it is'}"
                job = Job(
                    name, "qllava", base=str(base), data=str(data), out=str(folder / "plan"), device=args.device,
                    dtype=args.dtype, tune=args.tune, batch=batch, micro_batch=batch, steps=STEPS, threads=args.threads,
                    vram_cap=args.vram_cap, overrides=tuple(text.split()),
                )  # fmt: skip
                (seen,) = race.by_rounds([job], folder / f"run-{len(rows)}", 0, args.timeout, note, rounds=1)
                rows.append(_row(seen, batch, text, predicted(job)))
    return {
        "benchmark": "planner", "command": shlex.join(["python", "-m", "benchmarks", *command]), "commit": commit(race.ROOT),
        "machine": machine(args.device), "shape": args.shape, "data": args.data, "dtype": args.dtype, "tune": args.tune,
        "configurations": rows,
    }  # fmt: skip


def predicted(job: Job) -> int:
    """What the planner says the run's peak will be with the sizes that its recipe names, in bytes."""
    from qllava import api

    return api.plan(job.recipe()).choices[0].memory.peak


def _row(seen: race.Seen, batch: int, text: str, foretold: Any) -> dict[str, Any]:
    peak = max((s["peak"] for s in seen.steps), default=None) if seen.status == "ok" else None
    begin = seen.ready.get("memory")
    return {
        "batch": batch, "overrides": text, "status": seen.status, "error": seen.error, "begin": begin, "peak": peak,
        "delta": peak - begin if peak is not None else None, "predicted": foretold,
        "off_by": peak / foretold - 1 if peak and isinstance(foretold, int | float) and foretold else None,
    }  # fmt: skip
