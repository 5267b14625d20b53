"""JSON documents and lines that come from files, with errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.sample import is_text
from ..errors import UserError


def read_text(file: Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        UserError: it is missing or not in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"No file {file}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8: byte {error.start:,} is no character.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None


def parse(text: str, where: str) -> Any:
    """A JSON document.

    Args:
        where: for messages, such as `answers.jsonl, line 3`.

    Raises:
        UserError: it is none, or holds half of a surrogate pair, which is no character and could not be written again.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}.") from None
    if "\\u" in text and not is_text(json.dumps(found, ensure_ascii=False)):
        raise UserError(f"{where} holds half of a surrogate pair, which is no character.")
    return found


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is none.
    """
    found = parse(text, where)
    if not isinstance(found, dict):
        raise UserError(f"{where} is {type(found).__name__}, not an object.")
    return found
