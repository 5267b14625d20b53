"""The items of a JSON list one by one, read through a window, so that memory follows the largest item and not the file.

In: a UTF-8 file. Out: what `json.loads` would give, with its messages: lines, columns and characters are those of the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

WINDOW = 1 << 20  # bytes that are read at a time; for a larger item as many again as it has already
EDGE = 16  # characters before the window's end in which a word, a number or an escape may be cut: `-Infinity`, `1.5e-`
SPACE = re.compile(r"[ \t\n\r]*")
NUMBER = frozenset("0123456789+-.eE")


def items(path: Path, window: int = WINDOW) -> Iterator[Any]:
    """Every item of the list that the file holds.

    Raises:
        UserError: it is empty, is not UTF-8, is no JSON or is no list. What stands before the place has been given by then.
    """
    with path.open("rb") as file:
        reader = Window(file, path, window)
        first = reader.peek()
        if not first:
            raise UserError(f"{path} is empty.")
        if first != "[":
            value = reader.value()
            if reader.peek():
                raise reader.broken(json.JSONDecodeError("Extra data", reader.text, reader.at))
            raise UserError(f"{path} holds {type(value).__name__}, not a list of samples, so it is not a LLaVA JSON.")
        reader.at += 1
        if reader.peek() == "]":
            raise UserError(f"{path} holds no samples.")
        while True:
            yield reader.value()
            following = reader.peek()
            if following == "]":
                break
            if following != ",":
                raise reader.broken(f"expected a comma or the list's end at character {reader.place}")
            reader.at += 1
            reader.peek()  # so that a message names the next item's place and not the space before it
        ended = reader.place
        reader.at += 1
        if reader.peek():
            raise reader.broken(f"more follows after the list's end at character {ended}")


class Window:
    """A stretch of the file's text, and a place in it."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.text, self.at, self.ended = "", 0, False
        self.before, self.lines, self.line_began = (
            0,
            0,
            0,
        )  # characters and line feeds before the text; the line's begin
        self.began = 0  # where in the text the last value stands
        self._read, self._decoder, self._json = 0, codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder()

    @property
    def place(self) -> int:
        """Characters of the file before `at`."""
        return self.before + self.at

    @property
    def line(self) -> int:
        """The line on which the last value begins; only until anything more is read."""
        return self.lines + self.text.count("\n", 0, self.began) + 1

    def peek(self) -> str:
        """The next character that is no space, with `at` on it; nothing at the file's end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def value(self) -> Any:
        """The value that begins at `at`, which then is behind it."""
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if self.ended or not self._cut(error):
                    raise self.broken(error) from None
            else:
                if self.ended or end < len(self.text) - EDGE:
                    self.began, self.at = self.at, end
                    return value
            self.more()

    def _cut(self, error: Exception) -> bool:
        """Whether the error may only be that the window ends here."""
        if isinstance(error, json.JSONDecodeError):
            return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - EDGE
        return isinstance(error, ValueError) and self.text[-1:] in NUMBER  # too long for an int, or half of a float

    def more(self) -> None:
        """Drops what is before `at`, and reads on."""
        gone = self.text[: self.at]
        self.lines += gone.count("\n")
        if "\n" in gone:
            self.line_began = self.before + gone.rindex("\n") + 1
        self.before += self.at
        data = self.file.read(max(self.size, len(self.text) - self.at))
        self.ended = not data
        pending = len(self._decoder.getstate()[0])
        try:
            added = self._decoder.decode(data, self.ended)
        except UnicodeDecodeError as error:
            start, end = (self._read - pending + n for n in (error.start, error.end))
            bad = f"byte 0x{error.object[error.start]:02x} in position {start}"
            if end - start > 1:
                bad = f"bytes in position {start}-{end - 1}"
            raise UserError(
                f"{self.path} is not UTF-8 ('utf-8' codec can't decode {bad}: {error.reason}). Save it as UTF-8."
            ) from None
        self._read += len(data)
        if not self.before and not self.text:
            added = added.removeprefix("\ufeff")
        self.text, self.at = self.text[self.at :] + added, 0

    def broken(self, reason: object) -> UserError:
        """The error that says so, with places in the file instead of in the window."""
        if isinstance(reason, json.JSONDecodeError):
            lines, line_began = self.lines + reason.doc.count("\n", 0, reason.pos), self.line_began
            if lines > self.lines:
                line_began = self.before + reason.doc.rindex("\n", 0, reason.pos) + 1
            place = self.before + reason.pos
            reason = f"{reason.msg}: line {lines + 1} column {place - line_began + 1} (char {place})"
        return UserError(f"{self.path} is not valid JSON: {reason}.")
