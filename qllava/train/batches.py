"""How a run's rows become batches: in which order, how many at once, and laid out how. In: recipe and rows. Out: a sampler,
a function that puts a micro-batch together, and how large micro-batches will be.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from ..data.collate import collate
from ..data.pack import pack
from ..data.pairing import image_keys
from ..data.processing import Processing, in_rows
from ..data.rows import from_columns
from ..data.survey import each
from ..data.tokens import IGNORE
from ..recipe.schema import Recipe
from .memory import Batch
from .sampler import ImageSampler, OriginalSampler, SeededSampler

PAD_TO = 32  # positions; kernels are made once a shape, and tensor cores like multiples of 8
LOOKED_AT = 48  # micro-batches that are encoded to see how large the largest is: the longest by words
AVERAGED = 256  # samples, in whole global batches, that the average is taken over
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


def sampler_for(recipe: Recipe, rows: Dataset, fillers: int = 0) -> SeededSampler:
    """The order of the rows, without format, of which the last `fillers` are none."""
    real = len(rows) - fillers
    if recipe.pairing == "shared":
        return ImageSampler(image_keys(rows.select(range(real))), recipe.global_batch_size, recipe.seed, fillers)
    lengths = rows["words"][:real] if recipe.group_by_modality_length else [1] * real
    if recipe.order == "original":
        shares = recipe.global_batch_size // recipe.per_device_train_batch_size
        return OriginalSampler(lengths, recipe.per_device_train_batch_size, shares, recipe.seed, fillers)
    return SeededSampler(lengths, recipe.global_batch_size, recipe.seed, recipe.group_by_modality_length, fillers)


def together(recipe: Recipe, processing: Processing) -> Collate:
    """How the rows of a micro-batch become one batch."""
    if recipe.packing:
        return functools.partial(pack, processing=processing, shared=recipe.pairing == "shared", multiple=PAD_TO)
    return functools.partial(collate, processing=processing, multiple=PAD_TO)


def first_batches(recipe: Recipe, rows: Any, processing: Processing) -> DataLoader:
    """The training data in padded batches of a seeded order, the same in every process: for starts that look at it."""
    size = recipe.per_device_train_batch_size
    padded = functools.partial(collate, processing=processing, multiple=PAD_TO)
    return DataLoader(
        rows, batch_size=size, sampler=SeededSampler([1] * len(rows), size, recipe.seed), collate_fn=padded
    )


class Sizes:
    """How large a run's micro-batches will be, for any number of samples in them.

    Args:
        rows: as `dataset.select` gives them. None is taken for samples of one image and `max_length` positions each.
        patches: tokens that an image takes, of one in tiles the most.
        views: of an image for the vision tower; of one in tiles the most, which the largest micro-batch is taken to have.
    """

    def __init__(
        self, recipe: Recipe, rows: Dataset | None, processing: Processing | None, patches: int, views: int = 1
    ) -> None:
        self.recipe, self.rows, self.processing = recipe, rows, processing
        self.patches, self.views = patches, views
        if rows is not None:
            order = sampler_for(recipe.model_copy(update={"per_device_train_batch_size": 1}), rows)
            self.order = list(order)
            self.keys = image_keys(rows)
            self.words = [abs(n) for n in rows["words"]]

    @functools.cache  # noqa: B019 (lives as long as a plan)
    def of(self, samples: int) -> tuple[Batch, Batch]:
        """The largest micro-batch of so many samples, and the average one."""
        if self.rows is None:
            longest = Batch(
                samples * self.recipe.max_length,
                samples * self.views,
                samples * (self.recipe.max_length - self.patches),
            )
            return longest, longest
        batches = [self.order[i : i + samples] for i in range(0, len(self.order), samples)]
        by_words = sorted(range(len(batches)), key=lambda i: -self._rough(batches[i]))
        whole = self.recipe.global_batch_size
        starts = random.Random(0).sample(
            range(0, len(self.order), whole), min(-(-AVERAGED // whole), -(-len(self.order) // whole))
        )
        some = [
            i for start in starts for i in range(start // samples, min(-(-(start + whole) // samples), len(batches)))
        ]
        longest = [self._exact(batches[i], most=True) for i in by_words[:LOOKED_AT]]
        average = [self._exact(batches[i]) for i in some]
        mean = Batch(
            *(round(sum(getattr(b, n) for b in average) / len(average)) for n in ("positions", "images", "labels"))
        )
        return max(longest, key=lambda b: b.positions), mean

    def _rough(self, batch: list[int]) -> float:
        """Positions by the count of words."""
        shared = self.recipe.pairing == "shared"
        images = {(self.keys[i] if shared else i): len(self.keys[i]) - 1 for i in batch if self.keys[i]}
        longest = max(self.words[i] for i in batch) * len(batch)
        return 1.5 * (sum(self.words[i] for i in batch) if self.recipe.packing else longest) + self.patches * sum(
            images.values()
        )

    def _exact(self, batch: list[int], most: bool = False) -> Batch:
        """By encoding the samples; with `most`, as if every image in tiles were of the size that takes the most tokens."""
        made, tiling = [], self.processing.tiling
        for row, i in zip(each(self.rows.select(batch)), batch, strict=True):
            sample, root = from_columns(row)
            if tiling is None:
                sizes, counts = None, self.patches
            else:
                sizes = [tiling.most_size] * len(sample.images) if most else self.processing.sizes(sample.images, root)
                counts = tiling.tokens(sizes)
            tokens = self.processing.encoded(sample, counts, self.recipe.max_length)
            made.append(
                {
                    "input_ids": tokens.ids, "labels": tokens.labels, "images_key": self.keys[i],
                    "image_sizes": None if sizes is None else in_rows(sizes),
                }
            )  # fmt: skip
        laid = together(self.recipe, self.processing)(made)
        if tiling is None:
            images = int((laid["input_ids"] == self.processing.image_token_id).sum()) // self.patches
        else:
            images = sum(tiling.layout(w, h).views for h, w in laid.get("image_sizes", torch.empty(0, 2)).tolist())
        return Batch(laid["input_ids"].numel(), images, int((laid["labels"] != IGNORE).sum()))
