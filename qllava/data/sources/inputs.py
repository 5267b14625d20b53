"""What a reader gets: where its files are, what its source says of them, and where it notes what it leaves out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import raw

LEAVES = re.compile(r"^(?:[/\\]|[A-Za-z]:[/\\])|(?:^|[/\\])\.\.(?:[/\\]|$)")  # an absolute path, or .. on the way


@dataclass
class Inputs:
    files: dict[str, list[Path]]  # by what they are
    images: str = ""  # folder before an image's name
    split: str | None = None
    length: Callable[[str], int] = len  # tokens of a text
    columns: dict[str, str] = field(default_factory=dict)  # a table's own names of id, image, question, answer
    left: Counter[str] = field(default_factory=Counter)  # why records, pairs or conversations are not in the result
    records: int = 0  # that were read
    _reading: raw.Records | None = None  # what the record is of

    def has(self, role: str) -> bool:
        return bool(self.files.get(role))

    def named(self, role: str) -> str:
        """The names of the role's files, for a message."""
        return ", ".join(path.name for path in self.files[role])

    def listed(self, role: str, key: str | None = None) -> raw.Records:
        """The items of the lists of all files that the role has."""
        return raw.Joined([raw.listed(path, key) for path in self.files[role]])

    def entries(self, role: str) -> raw.Records:
        """Pairs of key and value of the objects in all files that the role has."""
        return raw.Joined([raw.entries(path) for path in self.files[role]])

    def counted(self, records: raw.Records) -> Iterator[Any]:
        """The records, counted."""
        self._reading = records
        for record in records:
            self.records += 1
            yield record

    def image(self, name: str) -> str:
        """The image's path under the image root.

        Raises:
            UserError: the record's name for it leaves the folder, so that training would read what lies elsewhere.
        """
        if LEAVES.search(name) and self._reading is not None:
            raise self._reading.fail(
                f"image {name[:60]!r} leaves the image folder; name it from there, without .. or / before it"
            )
        return f"{self.images}/{name}" if self.images else name

    def coco(self, number: int) -> str:
        """COCO's image by its number, as train2017 names it."""
        return self.image(f"{number:012d}.jpg")
