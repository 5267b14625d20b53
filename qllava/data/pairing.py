"""Samples about the same image: which they are, and how they become one conversation.

In: a table of `rows.columns`. Out: a key for each row; or the table with one row an image.
"""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset

from .. import console
from .survey import each


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
    console.note(
        f"pairing: {len(table):,} samples of {name} are {len(joined):,} conversations, which a batch counts now."
    )
    return Dataset.from_list(list(joined.values()), features=table.features)


def tell_sharing(rows: Dataset, grouped: bool) -> None:
    """Says how many samples share how many images, and that the order goes by image.

    Args:
        grouped: whether batches of like lengths were asked for, which they will not be.
    """
    keys = [key for key in image_keys(rows) if key is not None]
    console.note(
        f"pairing: {len(keys):,} samples are about {len(set(keys)):,} images; those of one image follow one another"
        + (", and group_by_modality_length counts for nothing." if grouped else ".")
    )
