"""The order of samples: a function of seed, epoch and global batch alone, whatever the number of processes.

In: the lengths of all samples (words, negative for text alone, as the original counts). Out: indices. `grouped` keeps a global batch to one modality and
to like lengths, as the original's `group_by_modality_length`; the last, incomplete ones of each modality go last, together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class SeededSampler(Sampler[int]):
    """Indices of an epoch, shuffled by `seed` and the epoch's number.

    Args:
        lengths: of every sample, negative for text alone.
        global_batch_size: samples in an optimizer step.
        grouped: by modality and length.
        fillers: rows behind the samples that only fill the last batch; they come last.
    """

    def __init__(
        self, lengths: Sequence[int], global_batch_size: int, seed: int, grouped: bool = False, fillers: int = 0
    ) -> None:
        self.lengths, self.size, self.seed, self.grouped = lengths, global_batch_size, seed, grouped
        self.epoch, self.fillers = 0, fillers

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[int]:
        real = len(self.lengths)
        return iter([*self._order(), *range(real, real + self.fillers)])

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

    def _order(self) -> list[int]:
        generator = self._generator()
        if not self.grouped:
            return torch.randperm(len(self.lengths), generator=generator).tolist()
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
        return [i for b in shuffled for i in b] + rest


class ImageSampler(SeededSampler):
    """Samples about one image one behind the other, so that a packed row can share it: images in a new order each epoch, and
    the samples of each, too. A global batch may end between two samples of an image.

    Args:
        keys: of every sample, the same for those about the same images; None for text alone.
    """

    def __init__(self, keys: Sequence[Hashable], global_batch_size: int, seed: int, fillers: int = 0) -> None:
        super().__init__(range(len(keys)), global_batch_size, seed, fillers=fillers)
        families: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            families.setdefault(("text", i) if key is None else key, []).append(i)
        self.families = list(families.values())

    def _order(self) -> list[int]:
        generator = self._generator()
        order = torch.randperm(len(self.families), generator=generator).tolist()
        families = [self.families[i] for i in order]
        return [f[i] for f in families for i in torch.randperm(len(f), generator=generator).tolist()]


class OriginalSampler(SeededSampler):
    """The original's order (llava_trainer.py, LengthGroupedSampler with group_by_modality), for parity.

    It depends on how the global batch is split, and its last batch joins what was left of both modalities. Two streams of
    random numbers, as there: one for the shuffles within a modality, one for the order of the global batches. There, the
    first is torch's global one, so that the order hangs on everything drawn before; here both start from seed and epoch.

    Args:
        lengths: of every sample, negative for text alone.
        batch_size: of a process.
        world_size: processes times accumulation steps.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, world_size: int, seed: int, fillers: int = 0) -> None:
        super().__init__(lengths, batch_size * world_size, seed, grouped=True, fillers=fillers)
        self.batch_size, self.world_size = batch_size, world_size

    def _order(self) -> list[int]:
        seed = self.seed + self.epoch
        within, batches = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        return original_order(list(self.lengths), self.batch_size, self.world_size, within, batches)


def original_order(
    lengths: Sequence[int], batch_size: int, world_size: int, within: torch.Generator, batches: torch.Generator
) -> list[int]:
    """Indices in the original's order, for the states of its two random streams (`within` a modality, of `batches`)."""
    modalities = [[i for i, n in enumerate(lengths) if (n > 0) == sign] for sign in (True, False)]
    size = batch_size * world_size
    if not all(modalities):
        return _by_length([abs(n) for n in lengths], size, world_size, batches)
    whole: list[list[int]] = []
    rest: list[int] = []
    for members in modalities:
        shuffled = [members[i] for i in _by_length([abs(lengths[i]) for i in members], size, world_size, within)]
        cut = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        whole += cut[:-1]
        rest += cut[-1]
    mixed = [whole[i] for i in torch.randperm(len(whole), generator=batches).tolist()]
    return [i for batch in mixed for i in batch] + sorted(rest)


def _by_length(lengths: Sequence[int], size: int, world_size: int, generator: torch.Generator) -> list[int]:
    """Shuffled, then within each global batch shared out so that every process gets about the same number of words."""
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    out: list[int] = []
    for start in range(0, len(shuffled), size):
        batch = sorted(shuffled[start : start + size], key=lambda i: -lengths[i])
        out += [i for share in _shares(batch, lengths, world_size) for i in share]
    return out


def _shares(batch: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """The batch in `count` shares of like total length: each index goes to the shortest share that still has room."""
    if len(batch) % count:
        return [list(batch[i::count]) for i in range(count)]
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for index in batch:
        shortest = totals.index(min(totals))
        shares[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(shares[shortest]) == len(batch) // count:
            totals[shortest] = float("inf")
    return shares
