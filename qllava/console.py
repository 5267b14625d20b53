"""What people see, on stderr: tables, progress bars, notes. Stdout belongs to results and to `--json`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def first_process() -> bool:
    """Whether this is the process of a launch that speaks for all (the only one without a launcher)."""
    return os.environ.get("RANK", "0") == "0"


err = Console(stderr=True, highlight=False)


# What moves a terminal's cursor, colours or reading direction instead of being shown; line breaks and tabs are left.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """The text with control characters written out (`\\x1b`), so that data cannot drive the terminal."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def note(message: str) -> None:
    """One plain line."""
    if not first_process():
        return
    err.print(safe(message), markup=False, soft_wrap=True)


def error(message: str) -> None:
    """One line about what went wrong, of any process."""
    err.print(f"Error: {safe(message)}", markup=False, style="red", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], to: Console = err) -> None:
    """A table; whole numbers get thousands separators and stand right."""
    if not first_process():
        return
    grid = Table(title=Text(safe(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [list(r) for r in rows]
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(r[i], int | float) for r in rows)
        grid.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        cells = (f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else safe(str(v)) for v in row)
        grid.add_row(*map(Text, cells))  # no markup: what is in brackets may come from files
    to.print(grid)


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """A bar; the block gets `advance(steps, note)`. Off a terminal it prints nothing."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=err, disable=not err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)
