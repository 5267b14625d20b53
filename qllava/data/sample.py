"""One entry of a LLaVA JSON as a value: id, images, turns.

In: a parsed JSON object, as LLaVA's `train.py` reads it (`id`, `image`, `conversations` of `from`/`value`). Out: a `Sample`
whose turns hold plain text, with the images of a turn counted apart, so that no text is ever searched for `<image>` again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .json_list import items

PLACEHOLDER = "<image>"
HALVES = re.compile("[\ud800-\udfff]")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class Turn:
    role: str  # "user" or "assistant"
    text: str
    images: int = 0  # images in front of the text


@dataclass(frozen=True)
class Sample:
    id: str
    images: tuple[str | bytes, ...]  # paths under the image root, or whole files
    turns: tuple[Turn, ...]


def ask(text: str, images: int = 0) -> tuple[Turn, ...]:
    """The turns of one open question about `images` images, ready for generation."""
    return (Turn("user", text, images),)


def parse(row: Any, where: str = "sample") -> Sample:
    """A `Sample` from one JSON object; `where` names it in errors.

    As the original does (train.py, preprocess_multimodal): in a sample with images, `<image>` moves to the front of its
    message; in a sample without, it is text. Unlike the original, a number of placeholders other than the number of
    images is refused: there, the images of every later sample in the batch would shift.

    Raises:
        UserError: the object is not a LLaVA sample.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, not an object with 'conversations'.")
    named = row.get("id") is not None
    name = str(row["id"]) if named else where
    if not is_text(name):
        raise UserError(f"{where}: its id holds half of a surrogate pair, which is no character.")
    where = f"{where} (id {row['id']!r})" if named else where
    images = _images(row, where)
    talk = row.get("conversations")
    if not isinstance(talk, list) or not talk:
        found = "is missing or empty" if not talk else f"is {str(talk)[:60]!r}"
        raise UserError(f"{where}: 'conversations' {found}; a LLaVA JSON has a list of from/value turns there.")
    turns = [_turn(t, f"{where}, turn {i + 1}", bool(images)) for i, t in enumerate(talk)]
    if turns[0].role == "assistant":  # the original drops an opening answer
        turns = turns[1:]
    if not turns:
        raise UserError(f"{where} has no human turn.")
    for i, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[i % 2]:
            raise UserError(
                f"{where}: turns must alternate between human and gpt, but turn {i + 1} is {turn.role}'s again."
            )
    placeholders = sum(t.images for t in turns)
    if placeholders != len(images):
        raise UserError(
            f"{where} has {len(images)} image(s) and {placeholders} '<image>' placeholder(s); "
            "write one placeholder for each image."
        )
    return Sample(name, images, tuple(turns))


def _images(row: dict, where: str) -> tuple[str | bytes, ...]:
    """The images under `image` (the original's key) or `images`; null and an empty list are no image."""
    found = []
    for key in ("image", "images"):
        value = row.get(key)
        refs = [value] if isinstance(value, str | bytes) else [] if value is None else value
        if not isinstance(refs, list) or not all(map(_is_ref, refs)):
            raise UserError(f"{where}: '{key}' must be a path or a list of paths, not {str(value)[:60]!r}.")
        if refs:
            found.append(tuple(refs))
    if len(set(found)) > 1:
        raise UserError(f"{where}: 'image' and 'images' name different files; keep one of them.")
    return found[0] if found else ()


def _is_ref(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, str) and bool(value) and "\0" not in value and is_text(value))


def is_text(text: str) -> bool:
    """Whether every character is one; half of a surrogate pair (`"\\ud83d"` in a JSON, a stray byte typed) is none."""
    return HALVES.search(text) is None


def _turn(turn: Any, where: str, multimodal: bool) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or str(turn.get("from")) not in ROLES:
        raise UserError(f"{where}: expected {{'from': 'human' or 'gpt', 'value': text}}, got {turn!r:.80}.")
    role, text = ROLES[str(turn["from"])], turn["value"]
    if not is_text(text):
        raise UserError(f"{where}: the text holds half of a surrogate pair, which is no character.")
    if not multimodal or PLACEHOLDER not in text:
        return Turn(role, text)
    if role == "assistant":
        raise UserError(f"{where}: an answer cannot hold '<image>'.")
    return Turn(role, text.replace(PLACEHOLDER, "").strip(), text.count(PLACEHOLDER))


def iter_rows(path: Path) -> Iterator[Any]:
    """The values of a LLaVA JSON (one list) or JSONL (one object a line), one at a time.

    A line of a JSONL that is no JSON is given as the `UserError` that says so, and the next one follows.

    Raises:
        UserError: the file is missing, or is neither.
    """
    if not path.is_file():
        raise UserError(f"No data file at {path}.")
    if path.suffix.lower() == ".jsonl":
        yield from _lines(path)
        return
    yield from items(path)


def _lines(path: Path) -> Iterator[Any]:
    empty = True
    with path.open("rb") as file:  # bytes, so that only line feeds end a line
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            empty = False
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield UserError(f"{path.name}, line {number} is not valid JSON: {error}.")
    if empty:
        raise UserError(f"{path} holds no samples.")


def read_samples(path: Path) -> Iterator[Sample]:
    """Every sample of a LLaVA JSON or JSONL file, in order.

    Raises:
        UserError: the file is missing or is neither, or one of them is no LLaVA sample.
    """
    for i, row in enumerate(iter_rows(path)):
        if isinstance(row, UserError):
            raise row
        yield parse(row, f"{path.name}, sample {i + 1}")
