"""Anyone's own questions and answers: a CSV with a header, or a JSONL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import raw
from .inputs import Inputs
from .rules import Talk

COLUMNS = ("id", "image", "question", "answer")


def csv(inputs: Inputs) -> Iterator[Talk]:
    """A CSV's rows."""
    return _rows(inputs, raw.table)


def jsonl(inputs: Inputs) -> Iterator[Talk]:
    """A JSONL's objects."""
    return _rows(inputs, raw.lines)


def _rows(inputs: Inputs, read: Callable[[Path], raw.Records]) -> Iterator[Talk]:
    column = {name: inputs.columns.get(name, name) for name in COLUMNS}
    for path in inputs.files["rows"]:
        file = read(path)
        for record in inputs.counted(file):
            pair = file.text(record, column["question"]), file.text(record, column["answer"])
            image = file.name(record, column["image"]) if _has(record, column["image"]) else ""
            name = file.label(record, column["id"]) if _has(record, column["id"]) else image or str(file.number)
            yield Talk(name, inputs.image(image) if image else None, [pair])


def _has(record: Any, column: str) -> bool:
    return record.get(column) not in (None, "")
