"""Samples about the same image: which they are, and how they become one conversation.

In: a table of `rows.columns`. Out: a key for each row; or the table with one row an image.
"""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset

from .. import console
from .dataset import each


def image_keys(rows: Dataset) -> list[tuple | None]:
    """For each row its image root and images, a whole file as its digest; None for text alone."""
    return [_key(row) for row in each(rows.select_columns(["root", "images"]))]


def _key(row: dict[str, Any]) -> tuple | None:
    images = tuple(i["path"] or hashlib.sha256(i["bytes"]).hexdigest() for i in row["images"])
    return (row["root"], *images) if images else None


def join_turns(table: Dataset, name: str) -> Dataset:
    """One conversation for each image, in the place of its first sample, with the questions in their order; text alone stays
    as it is. So does a table that holds conversations of several turns about images: its makers have done it.

    Args:
        name: of the table, for the message.
    """
    if any(len(row["turns"]) > 2 and row["images"] for row in each(table)):
        console.note(f"pairing: {name} holds conversations of several turns already and stays as it is.")
        return table
    keys = image_keys(table)
    joined: dict[Any, dict[str, Any]] = {}
    for i, (row, key) in enumerate(zip(each(table), keys, strict=True)):
        first = joined.setdefault(("text", i) if key is None else key, row)
        if first is not row:
            first["turns"] += [{**turn, "images": 0} for turn in row["turns"]]
            first["words"] += row["words"] - len(row["images"])  # the placeholders, which are words, stand once
    console.note(f"pairing: {len(table):,} samples of {name} are {len(joined):,} conversations.")
    return Dataset.from_list(list(joined.values()), features=table.features)
