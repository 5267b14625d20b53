"""A LLaVA JSON written anew, with other names for some images and without the rows of others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from ..errors import RunError, UserError
from .rows import IMAGE_KEYS
from .sample import iter_rows


def can_write(out: Path, source: Path) -> None:
    """Raises `UserError` where `mend` could not write."""
    if out.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"--write {out}: name a file that ends in .json or .jsonl.")
    if out.exists():
        same = "the file that is read" if source.exists() and out.samefile(source) else "there already"
        raise UserError(f"--write {out} is {same}; name another file.")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--write {out}: nothing can be written in {out.parent}.")


def mend(source: Path, out: Path, names: Mapping[str, str], lost: Set[str]) -> dict[str, Any]:
    """Writes `out`, which is there when it is whole; rows are read and written one by one.

    Args:
        names: other names of images.
        lost: images without whose rows it is written.

    Raises:
        RunError: no row would be left.
    """
    counts = {"rows": 0, "mended": 0, "dropped": 0}
    lines = out.suffix.lower() == ".jsonl"
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in _mended(source, names, lost, counts):
                counts["rows"] += 1
                file.write(("" if lines else "[\n" if counts["rows"] == 1 else ",\n") + json.dumps(row) + "\n" * lines)
            file.write("" if lines else "\n]\n")
            file.flush()
            os.fsync(file.fileno())
        if not counts["rows"]:
            raise RunError(f"{out} is not written: no row would be left.")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {"file": str(out), **counts}


def _mended(source: Path, names: Mapping[str, str], lost: Set[str], counts: dict[str, int]) -> Iterator[Any]:
    for row in iter_rows(source):
        images = {k: row[k] for k in IMAGE_KEYS if row.get(k) is not None} if isinstance(row, dict) else {}
        refs = [r for v in images.values() for r in (v if isinstance(v, list) else [v]) if isinstance(r, str)]
        if isinstance(row, UserError) or not lost.isdisjoint(refs):  # a line of a JSONL that is no JSON is no row
            counts["dropped"] += 1
            continue
        if not names.keys().isdisjoint(refs):
            counts["mended"] += 1
            row = row | {k: _renamed(v, names) for k, v in images.items()}
        yield row


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(v, names) for v in value]
    return names.get(value, value) if isinstance(value, str) else value
