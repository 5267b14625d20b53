"""Which rows of a source cannot be used, told without decoding anything: half a million of them take seconds.

In: rows as `rows.rows_of` gives them. Out: numbers of rows, each with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os.path import isfile, islink  # unlike Path.is_file, False for a path that is too long
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..errors import UserError
from .image import resolve
from .rows import from_columns
from .template import OWN, Template

STRICT = ("plain", OWN)  # templates that refuse conversations
THREADS = 16  # that wait for the file system
CHUNK = 1000  # images that a thread looks at in one go


def survey(table: Dataset, template: Template | None, images: bool = True) -> dict[int, str]:
    """Rows that cannot be used, and why: malformed, not fit for the template, or with an image that is not there.

    Nothing is decoded, and rows are only looked at one by one where something is wrong, so that half a million of them take
    seconds.

    Args:
        table: as `rows.rows_of` gives it.
        template: what every sample must be fit for, if it is to be trained on.
        images: whether the images' files have to be there.
    """
    columns = table.data
    bad = {i: columns["error"][i].as_py() for i in _where(pc.not_equal(columns["error"], ""))}
    if template is not None:
        for i in _where(pc.invert(columns["answered"])):
            bad.setdefault(i, _named(table[i], "it has no answer to learn from (no gpt turn after a human one)."))
        if template.name in STRICT:
            for i, row in enumerate(each(table)):
                try:
                    if i not in bad:
                        template.pieces(from_columns(row)[0].turns)
                except UserError as error:
                    bad[i] = _named(row, str(error))
    missing = _missing(columns) if images else {}
    for i, row in enumerate(each(table) if missing else ()):
        reasons = [missing[key] for image in row["images"] if (key := (row["root"], image["path"])) in missing]
        if reasons:
            bad.setdefault(i, _named(row, reasons[0]))
    return bad


def _where(mask: pa.ChunkedArray) -> list[int]:
    return pc.indices_nonzero(mask).to_pylist()


def _named(row: dict[str, Any], reason: str) -> str:
    return f"{row['where']} (id {row['id']!r}): {reason}"


def each(table: Dataset) -> Iterator[dict[str, Any]]:
    """The table's rows as dictionaries, read a thousand at a time."""
    for batch in table.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _missing(columns: pa.Table) -> dict[tuple[str, str], str]:
    """Images, as root and path, whose file cannot be had, and why. Each different one is looked up once, several at a time,
    as a file system of a network takes its time for each.
    """
    wrong = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for root in pc.unique(columns["root"]).to_pylist():
            mine = columns["images"].filter(pc.equal(columns["root"], root))
            paths = pc.unique(pc.struct_field(pc.list_flatten(mine), "path")).to_pylist() if len(mine) else []
            look = functools.partial(_look, root, _Links(Path(root)))
            for found in threads.map(look, (paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK))):
                wrong |= found
    return wrong


def _look(root: str, links: _Links, paths: list[str | None]) -> dict[tuple[str, str], str]:
    """Those of the paths that cannot be had, and why."""
    wrong = {}
    for path in paths:
        if path is None or (isfile(f"{root}/{path}") and links.stays_inside(path)):  # noqa: PTH113
            continue
        try:
            resolve(path, Path(root))
        except UserError as error:
            wrong[root, path] = str(error)
    return wrong


class _Links:
    """Whether paths stay under a root, links followed. A folder is resolved once, however many files lie in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole, self.folders = root, root.resolve(), {}

    def stays_inside(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder not in self.folders:
            self.folders[folder] = (self.root / folder).resolve().is_relative_to(self.whole)
        return self.folders[folder] and not islink(f"{self.root}/{path}")  # noqa: PTH114
