"""The order of samples: a function of seed, epoch and global batch alone, whatever the number of processes.

In: the lengths of all samples (negative for text alone). Out: indices. `grouped` keeps a global batch to one modality and
to like lengths, as the original's `group_by_modality_length`; the last, incomplete ones of each modality go last, together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def lengths_of(turns: Sequence[Sequence[dict]], images: Sequence[Sequence[str]]) -> list[int]:
    """The original's lengths: words of all turns, negative for a sample without an image (train.py, modality_lengths)."""
    words = [sum(len(t["text"].split()) for t in talk) or 1 for talk in turns]
    return [w if i else -w for w, i in zip(words, images, strict=True)]


class SeededSampler(Sampler[int]):
    """Indices of an epoch, shuffled by `seed` and the epoch's number.

    Args:
        lengths: of every sample, negative for text alone.
        global_batch_size: samples in an optimizer step.
        grouped: by modality and length.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int, grouped: bool = False) -> None:
        self.lengths, self.size, self.seed, self.grouped = lengths, global_batch_size, seed, grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if not self.grouped:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        batches, rest = [], []
        for images in (True, False):
            members = [i for i, n in enumerate(self.lengths) if (n > 0) == images]
            order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
            # sorted within stretches of fifty global batches: like lengths together, yet in a new order each epoch
            stretch = 50 * self.size
            for start in range(0, len(order), stretch):
                near = sorted(order[start : start + stretch], key=lambda i: -abs(self.lengths[i]))
                batches += [near[i : i + self.size] for i in range(0, len(near), self.size)]
        whole = [b for b in batches if len(b) == self.size]
        rest = [i for b in batches if len(b) < self.size for i in b]
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        return iter([i for b in shuffled for i in b] + rest)
