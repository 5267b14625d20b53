"""`python -m benchmarks speed`: makes model and samples, holds the race, puts the result together."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..machine import commit, machine, versions
from . import contenders, figures, race
from .job import CLIP, LEARNING_RATE, LORA, SEED, Job
from .sets import SETS, make_set, single_tokens
from .shapes import SHAPES, base_folder

BATCH = {"one": 4, "four": 4, "eight": 8, "mixed-half": 4, "mix665k": 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="mid", help="of the model (random weights)")
    parser.add_argument("--data", choices=SETS, default="one", help="what the samples are like")
    parser.add_argument(
        "--contenders", nargs="+", default=list(contenders.DEFAULT), metavar="NAME", help=contenders.__doc__
    )
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar="WORD",
        help="a piece for qllava:PIECES: its name, then overrides of the recipe",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of base and computation")
    parser.add_argument("--tune", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--batch", type=int, help="samples in a step (default: by --data)")
    parser.add_argument("--micro-batch", type=int, help="samples at once (default: the batch)")
    parser.add_argument("--steps", type=int, default=5, help="counted steps (of each round)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them that are not counted")
    parser.add_argument("--alternate", choices=("steps", "rounds"), help="default: steps on a CPU, rounds on a GPU")
    parser.add_argument("--rounds", type=int, default=2, help="where they alternate by rounds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--vram-cap", type=float, default=0, metavar="GIB", help="GPU memory that a contender may take")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one step or the loading may take")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "qllava-speed", help="folder that keeps the models"
    )
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")


def measure(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Holds the race that the arguments describe; returns its result as plain values.

    Raises:
        ValueError: there is no such contender, or the batch does not fit the data.
    """
    batch = args.batch or BATCH[args.data]
    micro = args.micro_batch or batch
    if batch % micro:
        raise ValueError(f"--micro-batch {micro} does not divide --batch {batch}.")
    variants = {words[0]: tuple(words[1:]) for words in args.variant}
    chosen = [contenders.find(name, variants) for name in args.contenders]
    alternate = args.alternate or ("rounds" if args.device == "cuda" else "steps")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        note(f"Other work runs here (load {busy:.1f}); times will not be what they are on an idle machine.")
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qllava-speed-") as temporary:
        folder = Path(temporary)
        note(f"model {args.shape}")
        base = base_of(args, folder)
        data = make_set(args.data, folder / "set", words_for(base), batch, args.steps + args.warmup)
        order = order_of(data, batch)
        about = Job("rate", "rate", device=args.device, dtype=args.dtype, threads=args.threads)
        rate = race.ask(about, folder / "rate", args.timeout)["flops"]
        note(f"matrix product: {rate / 1e9:,.0f} GFLOP/s")
        jobs = [
            Job(
                c.name, c.kind, base=str(base), data=str(data), device=args.device, dtype=args.dtype, tune=args.tune,
                batch=batch, micro_batch=micro, steps=args.steps + args.warmup, threads=args.threads,
                vram_cap=args.vram_cap, overrides=c.overrides, order=order,
            )
            for c in chosen
        ]  # fmt: skip
        if alternate == "steps":
            seen = race.by_steps(jobs, folder, args.warmup, args.timeout, note)
        else:
            seen = race.by_rounds(jobs, folder, args.warmup, args.timeout, note, args.rounds)
    shape = SHAPES[args.shape]
    rows = [figures.row(s, c, shape, LORA["r"], batch, rate) for s, c in zip(seen, chosen, strict=True)]
    figures.add_ratios(rows)
    settings = {
        "shape": args.shape, "sizes": asdict(shape), "data": args.data, "batch": batch, "micro_batch": micro,
        "steps": args.steps, "warmup": args.warmup, "alternate": alternate,
        "rounds": args.rounds if alternate == "rounds" else 1, "device": args.device, "dtype": args.dtype,
        "tune": args.tune, "threads": args.threads, "vram_cap": args.vram_cap, "lora": LORA,
        "learning_rate": LEARNING_RATE, "max_grad_norm": CLIP,
    }  # fmt: skip
    return {
        "benchmark": "speed", "command": shlex.join(["python", "-m", "benchmarks", *command]),
        "date": time.strftime("%Y-%m-%d"), "commit": commit(race.ROOT), "machine": machine(args.device),
        "load_before": round(busy, 2),
        "versions": versions(), "settings": settings, "matmul_flops": rate, "contenders": rows,
        "checks": figures.checks(rows), "not_raced": contenders.not_raced(),
    }  # fmt: skip


def base_of(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model with random weights; made now if `--work` does not hold it."""
    there = base_folder(args.shape, args.work, args.device)
    if there.is_dir():
        return there
    job = Job(args.shape, "base", base=str(args.work), device=args.device, threads=args.threads)
    return Path(race.ask(job, folder / "base", args.timeout)["path"])


def words_for(base: Path) -> list[str]:
    """Words that are one token of the base's tokenizer each."""
    from qllava.model.inputs import load_processing

    return single_tokens(load_processing(str(base), "vicuna_v1", "pad").encoder)


def order_of(data: Path, batch: int) -> tuple[int, ...]:
    """The order in which qllava takes the samples in its first epoch, as it pairs and groups nothing."""
    from qllava.train.sampler import SeededSampler

    return tuple(SeededSampler([1] * len(json.loads(data.read_text())), batch, SEED))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
