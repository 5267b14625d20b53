"""Rows of features to one batch of tensors. In: lists with one -200 an image. Out: padded tensors for the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from .processing import Processing
from .tokens import IGNORE, IMAGE

IMAGE_KINDS = ("pixel_values", "image_features", "image_sizes")


def spread(
    ids: Sequence[int], labels: Sequence[int], count: int | Sequence[int], token: int
) -> tuple[list[int], list[int]]:
    """Each -200 becomes `count` times `token` (of each image its own, or all alike), unlabelled."""
    out_ids, out_labels = [], []
    counts = itertools.repeat(count) if isinstance(count, int) else iter(count)
    for i, label in zip(ids, labels, strict=True):
        positions = next(counts) if i == IMAGE else 1
        out_ids += [token if i == IMAGE else i] * positions
        out_labels += [IGNORE if i == IMAGE else label] * positions
    return out_ids, out_labels


def collate(
    rows: Sequence[dict[str, Any]], processing: Processing, side: str = "right", multiple: int = 1
) -> dict[str, torch.Tensor]:
    """One batch: `input_ids`, `attention_mask`, `labels` [rows, longest]; `pixel_values` [images, 3, edge, edge] or
    `image_features` [images, patches, width] if any, and of tiled ones `image_sizes` [images, 2].

    Args:
        rows: features of `Processing.sample` or `Processing.prompt`.
        side: where padding goes: `right` to train, `left` to generate.
        multiple: pads on to a multiple of so many positions, so that few shapes occur.
    """
    spread_rows = [
        spread(
            r["input_ids"],
            r.get("labels") or [IGNORE] * len(r["input_ids"]),
            processing.counts(r),
            processing.image_token_id,
        )
        for r in rows
    ]
    longest = -(-max(len(ids) for ids, _ in spread_rows) // multiple) * multiple
    ids = torch.full((len(rows), longest), processing.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for i, (row, row_labels) in enumerate(spread_rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where], mask[i, where], labels[i, where] = torch.tensor(row), 1, torch.tensor(row_labels)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    for name in IMAGE_KINDS:
        images = [r[name] for r in rows if r.get(name) is not None]
        if images:
            batch[name] = torch.cat([torch.as_tensor(i) for i in images])
    return batch
