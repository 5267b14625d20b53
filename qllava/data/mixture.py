"""Which samples of which source are taken: caps, weights, replay, and nested subsets. Numbers in, indices out.

Every choice is a prefix of one seeded order of a source's samples, so that a smaller choice lies in a larger one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..recipe.schema import Source

TEXT = "text"  # the kind of samples without an image


def kind_of(image: str | None) -> str:
    """The kind of a sample by its first image's path: the first folder (`coco`, `gqa`, …), or `text` without one."""
    if image is None:
        return TEXT
    return image.lstrip("./").split("/")[0] if "/" in image else "image"


def order(count: int, seed: int, source: int) -> list[int]:
    """The order in which samples of a source are taken."""
    indices = list(range(count))
    random.Random(f"{seed}:{source}").shuffle(indices)
    return indices


def choose(kinds: Sequence[Sequence[str]], sources: Sequence[Source], subset: float, seed: int) -> list[list[int]]:
    """The indices taken from each source, ascending; an index stands there once for each time that it is taken.

    Args:
        kinds: of each source, the kind of each of its samples.
        sources: what is asked of each.
        subset: share of each kind of each source.
        seed: of every random choice.
    """
    taken: list[list[int]] = [[] for _ in sources]
    for i, (each, source) in enumerate(zip(kinds, sources, strict=True)):
        if source.replay is not None:
            continue
        pool = order(len(each), seed, i)
        if source.weight < 1:
            pool = pool[: max(1, round(len(pool) * source.weight))]
        if source.max_samples is not None:
            pool = pool[: source.max_samples]
        whole, part = divmod(max(1.0, source.weight), 1)
        once_more = set(pool[: round(len(pool) * part)])  # of all, so that it does not depend on the subset
        pool = stratified(pool, each, subset)
        taken[i] = sorted(pool * int(whole) + [j for j in pool if j in once_more])
    others = sum(map(len, taken))
    for i, (each, source) in enumerate(zip(kinds, sources, strict=True)):
        if source.replay is not None:
            taken[i] = sorted(order(len(each), seed, i)[: max(1, round(others * source.replay))])
    return taken


def stratified(pool: Sequence[int], kinds: Sequence[str], share: float) -> list[int]:
    """The first `share` of each kind in `pool`, at least one of each, in the pool's order."""
    if share == 1:
        return list(pool)
    room: dict[str, int] = {}
    for i in pool:
        room[kinds[i]] = room.get(kinds[i], 0) + 1
    room = {kind: max(1, round(count * share)) for kind, count in room.items()}
    chosen = []
    for i in pool:
        if room[kinds[i]] > 0:
            room[kinds[i]] -= 1
            chosen.append(i)
    return chosen
