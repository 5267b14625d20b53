"""`qllava data build` at full size: both shipped mixes from raw sets in their published layouts and sizes, made here (data_raw).

In: a share of the size. Out: rows beside the published counts, seconds, and the memory of the process at its peak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import data_raw, machine
from .data_scale import ROOT

MIXES = ("llava-665k", "llava-558k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", type=float, default=1.0, help="of the sets' sizes; the published counts need all")
    parser.add_argument("--tokenizer", help="folder that counts ShareGPT's tokens; by default they are estimated")
    parser.add_argument("--again", action="store_true", help="build the first mix once more and compare the bytes")
    parser.add_argument("--folder", type=Path, help="where the sets are made (5 GiB); by default a temporary one")


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The benchmark's document.

    Raises:
        RuntimeError: a build failed, or a second one wrote other bytes.
    """
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks", *words]), "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(ROOT), "machine": machine.machine(), "python": machine.versions()["python"],
        "load_before": round(os.getloadavg()[0], 1), "share": args.share,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        raw, began = Path(temporary) / "raw", time.monotonic()
        data_raw.make(raw, args.share)
        result["raw_mib"] = sum(p.stat().st_size for p in raw.rglob("*") if p.is_file()) >> 20
        print(f"The raw sets: {result['raw_mib']:,} MiB in {time.monotonic() - began:.0f} s.", file=sys.stderr)
        for mix in MIXES:
            out = Path(temporary) / f"{mix}.json"
            result[mix] = built(mix, raw, out, args.tokenizer)
            if args.again and mix == MIXES[0]:
                other = out.with_name("again.json")
                built(mix, raw, other, args.tokenizer)
                if digest(out) != digest(other):
                    raise RuntimeError("The same seed gave other bytes.")
                result[mix]["same_bytes_again"] = True
    return result


def built(mix: str, raw: Path, out: Path, tokenizer: str | None) -> dict[str, Any]:
    """One build in a process of its own, with that process's memory at its peak."""
    words = [sys.executable, "-m", "qllava", "data", "build", mix, "--raw", raw, "--out", out, "--json"]
    words += ["--tokenizer", tokenizer] if tokenizer else []
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(list(map(str, words)), stdout=said, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"qllava data build {mix} failed; what it said stands above.")
        said.seek(0)
        found = json.loads(said.read())
    sources = [{k: s[k] for k in ("name", "rows", "published", "records", "left_out")} for s in found["sources"]]
    return {
        "rows": found["rows"], "published": found["published"], "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_mib": usage.ru_maxrss >> 10,
        "file_mib": out.stat().st_size >> 20, "sources": sources,
    }  # fmt: skip


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
