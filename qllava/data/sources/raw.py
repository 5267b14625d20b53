"""Raw files record by record, so that memory follows the largest record and a mistake is named with its place.

In: JSON (a list, a list under a key, or one object's entries), JSONL, CSV. Out: values, and for a bad one the file, its number and
its line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..json_list import WINDOW, Window

LARGEST = 10**7  # pixels; no image has more at a side


class Records:
    """The records of one file in order; `fail` names the one that was given last."""

    def __init__(self, path: Path, values: Iterable[Any], line: Callable[[], int | None] = lambda: None) -> None:
        self.path, self.number, self._values, self._line = path, 0, values, line

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self.number += 1
            yield value

    def fail(self, what: str) -> UserError:
        """The error that says so of the last record."""
        line = self._line()
        return UserError(f"{self.path}, record {self.number}{f' (line {line})' if line else ''}: {what}.")

    def field(self, record: Any, key: str) -> Any:
        """The record's field.

        Raises:
            UserError: it has none.
        """
        try:
            return record[key]
        except KeyError:
            raise self.fail(f"has no '{key}'") from None
        except (TypeError, IndexError):
            raise self.fail(f"is {type(record).__name__}, not an object with '{key}'") from None

    def text(self, record: Any, key: str) -> str:
        """A text without the space around it, perhaps an empty one."""
        value = self.field(record, key)
        if not isinstance(value, str):
            raise self.fail(f"'{key}' is {str(value)[:60]!r}, not a text")
        return value.strip()

    def name(self, record: Any, key: str) -> str:
        """A text that names something, so it is not empty."""
        value = self.text(record, key)
        if not value or "\0" in value:
            raise self.fail(f"'{key}' is {value!r}, which names nothing")
        return value

    def whole(self, record: Any, key: str) -> int:
        value = self.field(record, key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(f"'{key}' is {str(value)[:60]!r}, not a whole number")
        return value

    def natural(self, record: Any, key: str) -> int:
        """A whole number from 0 on."""
        value = self.whole(record, key)
        if value < 0:
            raise self.fail(f"'{key}' is {str(value)[:60]}, which is below 0")
        return value

    def label(self, record: Any, key: str) -> str:
        """A text or a whole number, as a text."""
        value = self.field(record, key)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.fail(f"'{key}' is {str(value)[:60]!r}, neither a text nor a whole number")
        return str(value)

    def many(self, record: Any, key: str, kind: type = object) -> list[Any]:
        value = self.field(record, key)
        if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
            raise self.fail(f"'{key}' is {str(value)[:60]!r}, not a list{' of texts' if kind is str else ''}")
        return value

    def box(self, record: Any, keys: tuple[str, str, str, str] | str) -> tuple[float, float, float, float]:
        """Left, top, width and height, in pixels."""
        if isinstance(keys, str):
            found = self.many(record, keys)
            if len(found) != 4:
                raise self.fail(f"'{keys}' holds {len(found)} numbers, not the 4 of a box")
        else:
            found = [self.field(record, k) for k in keys]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in found) or not is_box(*found):
            raise self.fail(f"{keys if isinstance(keys, str) else ', '.join(keys)}: {str(found)[:80]} is no box")
        return tuple(found)


def is_box(left: float, top: float, width: float, height: float) -> bool:
    """Whether the numbers can be a box's: finite (NaN is below nothing), and nothing wide or high is negative."""
    return -LARGEST < left < LARGEST and -LARGEST < top < LARGEST and 0 <= width < LARGEST and 0 <= height < LARGEST


class Joined(Records):
    """The records of several files, one file after another; `fail` names the file as well."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self._parts, self._at = parts, parts[0]

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            self._at = part
            yield from part

    def fail(self, what: str) -> UserError:
        return self._at.fail(what)


def listed(path: Path, key: str | None = None, window: int = WINDOW) -> Records:
    """The items of the list that the file is, or that it holds under `key`."""
    return _walk(path, lambda reader: _items(reader, path, key), window)


def entries(path: Path, window: int = WINDOW) -> Records:
    """Pairs of key and value of the object that the file is."""
    return _walk(path, lambda reader: _members(reader, path, lambda name: iter(((name, reader.value()),))), window)


def lines(path: Path) -> Records:
    """The objects of a JSONL, one a line."""
    place = [0]

    def values() -> Iterator[Any]:
        for place[0], line in _text_lines(path):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {place[0]} is not valid JSON: {error}.") from None

    return Records(path, values(), lambda: place[0])


def table(path: Path) -> Records:
    """The rows of a CSV with a header, as objects."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = [name for name in reader.fieldnames or () if name]
            rows = [(row, reader.line_num) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {reader.line_num + 1} is no CSV in UTF-8: {error}.") from None
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"{path}, line 1: the header has {twice[0]!r} twice; each column needs a name of its own.")
    place, width = [0], len(reader.fieldnames or ())

    def values() -> Iterator[Any]:
        for number, (row, place[0]) in enumerate(rows, 1):
            if None in row:
                raise UserError(
                    f"{path}, record {number} (line {place[0]}): has {width + len(row[None])} fields under a header of {width}; "
                    "put a text with commas in quotes."
                )
            yield {k: v for k, v in row.items() if v is not None}

    return Records(path, values(), lambda: place[0])


def samples(path: Path) -> Records:
    """The rows of a LLaVA JSON or JSONL."""
    return lines(path) if path.suffix.lower() == ".jsonl" else listed(path)


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number} is not UTF-8: {error}. Save it as UTF-8.") from None


def _walk(path: Path, walk: Callable[[Window], Iterator[Any]], window: int) -> Records:
    readers: list[Window] = []

    def values() -> Iterator[Any]:
        with path.open("rb") as file:
            readers.append(Window(file, path, window))
            yield from walk(readers[0])
            if readers[0].peek():
                raise readers[0].broken(f"more follows after its end at character {readers[0].place}")

    return Records(path, values(), lambda: readers[0].line if readers else None)


def _items(reader: Window, path: Path, key: str | None) -> Iterator[Any]:
    if key is None:
        yield from _list(reader, path, "the file")
        return
    found = False

    def member(name: str) -> Iterator[Any]:
        nonlocal found
        if name != key:
            _pass(reader)
            return iter(())
        found = True
        return _list(reader, path, f"'{key}'")

    yield from _members(reader, path, member)
    if not found:
        raise UserError(f"{path} has no '{key}', so it is not the file that was published under this name.")


def _pass(reader: Window) -> None:
    """Reads over a value, over a list item by item."""
    if reader.peek() != "[":
        reader.value()
        return
    for _ in _between(reader, "]", reader.value):
        pass


def _list(reader: Window, path: Path, name: str) -> Iterator[Any]:
    if reader.peek() != "[":
        raise UserError(f"{path}: {name} is no list, so this is not the file that was published under this name.")
    yield from _between(reader, "]", reader.value)


def _members(reader: Window, path: Path, member: Callable[[str], Iterator[Any]]) -> Iterator[Any]:
    if reader.peek() != "{":
        raise UserError(f"{path} is no JSON object, so it is not the file that was published under this name.")

    def one() -> Iterator[Any]:
        if reader.peek() != '"':
            raise reader.broken(f"expected a name in quotes at character {reader.place}")
        name = reader.value()
        if reader.peek() != ":":
            raise reader.broken(f"expected a colon at character {reader.place}")
        reader.at += 1
        reader.peek()
        return member(name)

    for values in _between(reader, "}", one):
        yield from values


def _between(reader: Window, end: str, one: Callable[[], Any]) -> Iterator[Any]:
    """What stands between a bracket and its end, comma by comma."""
    reader.at += 1
    if reader.peek() == end:
        reader.at += 1
        return
    while True:
        yield one()
        following = reader.peek()
        reader.at += following in (",", end)
        if following == end:
            return
        if following != ",":
            raise reader.broken(f"expected a comma or '{end}' at character {reader.place}")
        reader.peek()
