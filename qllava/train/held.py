"""What one process holds of a run's weights, gradients and optimizer, under each engine.

In: numbers of parameters, the engine, how many processes share it. Out: bytes by part, on the card and in main memory. What
trains is float32 under every engine and what is frozen has the run's dtype (or 4 bits); the engines differ in what they share out
and in what they keep beside it. `python -m benchmarks held` counts the tensors of real processes and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .engine import Engine

FLOAT = 4  # bytes of a weight that trains, and of its gradient
# DeepSpeed's own settings, of which the recipes in recipes/cluster change none
BUCKET = 500_000_000 * FLOAT  # reduce_bucket_size: gradients on their way; taken whole however small the run
LIVE = 1_000_000_000  # stage3_max_live_parameters: gathered weights that ZeRO-3 keeps at a time
WHOLE = 100_000  # stage3_param_persistence_threshold: smaller tensors are never cut


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, and bytes of those that are frozen."""

    trained: int
    frozen: int
    frozen_bytes: int
    layer: int = 0  # bytes of one of the LLM's layers, as it is gathered
    layer_trained: int = 0  # parameters of it that train
    ends: int = 0  # bytes of the last norm and the head, which FSDP2 gathers once a micro-batch
    small: int = 0  # bytes of the tensors of at most `WHOLE` numbers


@dataclass(frozen=True)
class Held:
    """Bytes of one process as long as the run lasts; `buffers` is what the engine takes for a moment."""

    frozen: int
    trained: int
    masters: int  # ZeRO's second copy of its part of the weights that train
    gradients: int
    optimizer: int
    buffers: int = 0
    host: int = 0  # in main memory instead of on the card

    @property
    def learning(self) -> int:
        """What trains: weights, gradients, optimizer."""
        return self.trained + self.masters + self.gradients + self.optimizer


def held(counts: Counts, engine: Engine, state: float) -> Held:
    """What one process holds.

    Args:
        state: bytes of the optimizer for each parameter that trains.
    """
    shared = engine.processes
    whole, moments = FLOAT * counts.trained, int(state * counts.trained)
    alone = Held(counts.frozen_bytes, whole, 0, whole, moments)
    if engine.name == "single":
        return alone
    if engine.name == "ddp":  # its reducer's buckets are a second copy of all gradients
        return replace(alone, buffers=whole)
    piece = whole // shared
    if engine.name == "zero2":  # at the step, a flat copy of the gradients; by then the bucket is free
        mine = Held(counts.frozen_bytes, whole, piece, piece, moments // shared, buffers=max(BUCKET, piece))
        away = mine.masters + mine.gradients + mine.optimizer
        return replace(mine, masters=0, gradients=0, optimizer=0, host=away) if engine.offload else mine
    frozen = counts.frozen_bytes // shared
    if engine.name == "fsdp2":  # this layer and the next; gradients of a layer before and after they are shared out
        gathered = 2 * counts.layer + counts.ends + 2 * FLOAT * counts.layer_trained
        return Held(frozen, piece, 0, piece, moments // shared, buffers=gathered)
    total = counts.trained + counts.frozen
    live = min(1.0, LIVE / total) * (whole + counts.frozen_bytes) + counts.small
    mine = Held(frozen, piece, piece, piece, moments // shared, buffers=BUCKET + max(int(live), piece))
    if not engine.offload:
        return mine
    away = mine.frozen + mine.learning
    return Held(0, 0, 0, 0, 0, buffers=BUCKET + int(live), host=away)


@dataclass(frozen=True)
class Start:
    """Bytes that loading takes, before the first step."""

    card: int
    host: int  # of the node that takes most


def start(counts: Counts, engine: Engine, read: int, per_node: int) -> Start:
    """Each process reads the base and puts it on its card; where the first alone reads, it holds it in main memory, with what
    trains in float32, and no card ever has more than its part.

    Args:
        read: bytes of the base as it is read.
        per_node: processes of a node.
    """
    whole = counts.frozen_bytes + FLOAT * counts.trained
    if engine.sharded:
        return Start(0, max(read, whole))
    return Start(whole, per_node * read)
