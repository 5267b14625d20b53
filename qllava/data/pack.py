"""Rows of features to one row without padding: samples one behind the other, what samples about one image share only once.

In: lists as `Processing.sample` makes them. Out: tensors [1, positions] and a `Layout` that says which position sees which.

With `shared`, samples about the same image become a tree: what their ids begin with alike (the image is in it) stands once,
and each sample goes on from there by itself. A position sees what it would see if its sample stood alone, at the same
position number, so the loss and its gradient are those of separate rows.

    ids         S I I I q a . q b b .        two samples about the image I
    positions   0 1 2 3 4 5 6 4 5 6 7
    group       (0, 4, 7, 11)                starts at 0, shared up to 4, branches up to 7 and 11
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .collate import IMAGE_KINDS, spread
from .processing import Processing
from .tokens import IGNORE

Group = tuple[int, ...]  # start, end of what is shared, end of each branch; (start, end) is a sample alone


@dataclass(frozen=True)
class Layout:
    """Who sees whom in a packed row: causal within a group, and a branch sees no other branch.

    Positions behind the last group are padding.
    """

    groups: tuple[Group, ...]
    samples: int  # that have a label


def pack(
    rows: Sequence[dict[str, Any]], processing: Processing, shared: bool = False, multiple: int = 1
) -> dict[str, Any]:
    """One batch: `input_ids`, `labels`, `position_ids`, `attention_mask` (1 where there is a sample) [1, positions];
    `predictors` [labels], the position from which each label is predicted; `layout`; and `pixel_values` [images, 3, edge,
    edge] or `image_features` [images, patches, width] if there are images.

    Args:
        rows: features, with `images_key` where samples may share their images.
        shared: whether samples with the same `images_key` do.
        multiple: pads the end to a multiple of so many positions, so that few shapes occur.
    """
    row = _Row()
    images: dict[str, list[torch.Tensor]] = {kind: [] for kind in IMAGE_KINDS}
    for members in _families(rows, shared):
        whole = [
            spread(r["input_ids"], [IGNORE, *r["labels"][1:]], processing.counts(r), processing.image_token_id)
            for r in members
        ]
        cut = _alike(whole) if len(whole) > 1 else 0
        together = len(whole) > 1 and not any(processing.image_token_id in ids[cut:] for ids, _ in whole)
        for several in [whole] if together else [[one] for one in whole]:
            row.put(several, cut if together else len(several[0][0]))
        for member in members[:1] if together else members:
            for kind, found in images.items():
                if member.get(kind) is not None:
                    found.append(torch.as_tensor(member[kind]))
    padding = -len(row.ids) % multiple
    batch = {
        "input_ids": torch.tensor([row.ids + [processing.pad_token_id] * padding]),
        "labels": torch.tensor([row.labels + [IGNORE] * padding]),
        "position_ids": torch.tensor([row.positions + [0] * padding]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * padding]),
        "predictors": torch.tensor(row.predictors, dtype=torch.long),
        "layout": Layout(tuple(row.groups), sum(any(n != IGNORE for n in r["labels"]) for r in rows)),
    }
    return batch | {kind: torch.cat(found) for kind, found in images.items() if found}


class _Row:
    """A packed row in the making."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.positions: list[int] = []
        self.predictors: list[int] = []
        self.groups: list[Group] = []

    def put(self, samples: Sequence[tuple[list[int], list[int]]], shared: int) -> None:
        """Adds a group: ids and labels of samples whose first `shared` positions are alike."""
        begin = len(self.ids)
        trunk = self._part(samples[0], 0, shared, begin)
        branches = [self._part(one, shared, len(one[0]), trunk) for one in samples] if len(samples) > 1 else []
        self.groups.append((begin, trunk, *branches))

    def _part(self, sample: tuple[list[int], list[int]], first: int, last: int, after: int) -> int:
        """Adds the sample's positions from `first` to `last`, which go on from what ends at `after`; gives the new end."""
        begin = len(self.ids)
        self.ids += sample[0][first:last]
        self.labels += sample[1][first:last]
        self.positions += range(first, last)
        for i, label in enumerate(sample[1][first:last]):
            if label != IGNORE:
                self.predictors.append(begin + i - 1 if i else after - 1)
        return len(self.ids)


def _families(rows: Sequence[dict[str, Any]], shared: bool) -> list[list[dict[str, Any]]]:
    """The rows, those about the same images together, in the order of their first."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for i, row in enumerate(rows):
        key = row.get("images_key") if shared else None
        found.setdefault(i if key is None else key, []).append(row)
    return list(found.values())


def _alike(rows: Sequence[tuple[list[int], list[int]]]) -> int:
    """How many ids all rows begin with alike, before the first label of any."""
    most = min(next(i for i, n in enumerate(labels) if n != IGNORE) for _, labels in rows)
    for i, column in enumerate(zip(*(ids for ids, _ in rows), strict=False)):
        if i == most or len(set(column)) > 1:
            return i
    return most
