"""LLaVA JSON files to a `datasets.Dataset` that decodes images and encodes text only when a row is asked for.

In: the recipe's sources. Out: a dataset whose rows are features of `Processing.sample`. Every row is parsed, and every
image's file looked up, before the first is used, so that a run does not die of a bad row in its tenth hour.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..errors import UserError
from ..recipe.schema import Source
from .image import resolve
from .processing import Processing
from .sample import Sample, Turn, read_samples
from .template import Template


def columns(sample: Sample, root: Path) -> dict[str, Any]:
    """A sample as a row with a stable schema (text-only rows have an empty list of images)."""
    return {
        "id": sample.id,
        "root": str(root),
        "images": list(sample.images),
        "turns": [{"role": t.role, "text": t.text, "images": t.images} for t in sample.turns],
    }


def from_columns(row: dict[str, Any]) -> tuple[Sample, Path]:
    """The inverse of `columns`."""
    turns = tuple(Turn(t["role"], t["text"], t["images"]) for t in row["turns"])
    return Sample(row["id"], tuple(row["images"]), turns), Path(row["root"])


def read_sources(sources: Sequence[Source], template: Template | None = None) -> Dataset:
    """All samples of all sources, in order, as undecoded rows.

    Args:
        template: what every sample must be fit for, if it is to be trained on.

    Raises:
        UserError: a file is missing or no LLaVA JSON, a sample is malformed or has no answer, an image is missing.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for source in sources:
            path = Path(source.path)
            root = path.parent / source.image_root
            for sample in read_samples(path):
                try:
                    for image in sample.images:
                        resolve(image, root)
                    if template is not None:
                        template.pieces(sample.turns)
                        if not any(t.role == "assistant" for t in sample.turns):
                            raise UserError("it has no answer to learn from (no gpt turn after a human one).")
                except UserError as error:
                    raise UserError(f"{path.name}, sample {sample.id!r}: {error}") from None
                yield columns(sample, root)

    return Dataset.from_list(list(rows()))


def features(batch: dict[str, list], processing: Processing, max_length: int) -> dict[str, list]:
    """The transform of `training_set`: columns of a batch to features of a batch."""
    out: dict[str, list] = {"input_ids": [], "labels": [], "pixel_values": []}
    for i in range(len(batch["id"])):
        sample, root = from_columns({k: v[i] for k, v in batch.items()})
        for key, value in processing.sample(sample, root, max_length).items():
            out[key].append(value)
    return out


def training_set(sources: Sequence[Source], processing: Processing, max_length: int) -> Dataset:
    """The rows of `read_sources`, turned into features when they are read."""
    transform = functools.partial(features, processing=processing, max_length=max_length)
    return read_sources(sources, processing.template).with_transform(transform)
