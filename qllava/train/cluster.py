"""Cards and what joins them: what a step takes on many of them.

In: a card's name, how many, the engine, a model's numbers. Out: bytes that each card sends in a step, and seconds. The rates of cards and
links are their makers' figures; the shares of them that a step reaches are assumptions, which the constants name.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError, nearest
from .engine import Engine
from .held import FLOAT, Counts

A_NODE = 8  # cards of a node, where nobody says how many nodes there are
SHARE = 0.4  # assumed: of a card's rate, what a step reaches in its long micro-batches
LINKED = 0.7  # assumed: of a link's rate, what a collective reaches
HIDDEN = 0.5  # assumed: the share of computing behind which communication is hidden
NETWORK = 50e9  # bytes a second and card, each way, between nodes: 400 Gb/s InfiniBand for each card
PCIE = 32e9  # bytes a second each way between a card and main memory: PCIe 4.0 x16
HOST = 200e9  # assumed: bytes a second of a node's main memory, in which an optimizer works that is offloaded
ADAM = 28  # bytes that Adam reads and writes for each parameter: weight, two moments, gradient


@dataclass(frozen=True)
class Card:
    title: str
    memory: int  # bytes, as torch sees them
    rate: float  # operations a second in bfloat16, without sparsity
    link: float  # bytes a second each way to the other cards of its node
    linked_by: str


CARDS = {
    # NVIDIA's whitepaper on GA102, appendix A; cards of a board share PCIe 4.0 x16 two by two (assumed)
    "3090": Card("RTX 3090", int(23.6 * 2**30), 71e12, 16e9, "PCIe 4.0"),
    # NVIDIA's data sheets: 312 and 989 TFLOP/s; NVLink of 600 and 900 GB/s, both ways together
    "a100-40": Card("A100 40 GB", int(39.4 * 2**30), 312e12, 300e9, "NVLink"),
    "a100-80": Card("A100 80 GB", int(79.1 * 2**30), 312e12, 300e9, "NVLink"),
    "h100": Card("H100 80 GB", int(79.1 * 2**30), 989e12, 450e9, "NVLink"),
}


@dataclass(frozen=True)
class Cluster:
    """So many cards, in nodes of equal size."""

    card: Card
    processes: int  # one a card, in all nodes together
    nodes: int = 1

    @property
    def per_node(self) -> int:
        return self.processes // self.nodes

    @property
    def title(self) -> str:
        return f"{self.processes} × {self.card.title}" + (f" in {self.nodes} nodes" if self.nodes > 1 else "")

    @property
    def bandwidth(self) -> float:
        """Bytes a second that each card sends in a collective of all; rings cross between nodes by all cards' networks."""
        return LINKED * (self.card.link if self.nodes == 1 else min(self.card.link, self.per_node * NETWORK))

    def step(self, engine: Engine, counts: Counts, micro_batches: int, computing: float) -> float:
        """Seconds of an optimizer step.

        Args:
            micro_batches: of each process.
            computing: seconds of it that a card computes.
        """
        sending = sent(engine, counts, micro_batches) / self.bandwidth
        seconds = computing + max(0.0, sending - HIDDEN * computing)
        return seconds + (self._away(engine, counts, micro_batches) if engine.offload else 0.0)

    def _away(self, engine: Engine, counts: Counts, micro_batches: int) -> float:
        """Seconds that main memory adds: the step is taken there, gradients go there and weights come back."""
        piece = FLOAT * counts.trained / engine.processes
        passed = micro_batches * piece + (piece if engine.name == "zero2" else 0.0)
        if engine.sharded:  # its part of the weights, forward and backward
            passed += 2 * micro_batches * (piece + counts.frozen_bytes / engine.processes)
        stepping = ADAM * counts.trained / engine.processes * self.per_node / HOST
        return passed / (LINKED * PCIE) + stepping


def cluster_of(card: str, processes: int, nodes: int | None = None) -> Cluster:
    """The cluster of that many cards, in as many nodes of 8 as it takes where nobody says how many.

    Raises:
        UserError: there is no such card, or nodes do not share the processes evenly.
    """
    if card not in CARDS:
        raise UserError(f"No card {card!r} is known.{nearest(card, CARDS)} There are {', '.join(CARDS)}.")
    nodes = nodes or -(-processes // A_NODE)
    if processes % nodes:
        raise UserError(f"{nodes} nodes cannot share {processes} processes evenly. --processes are those of all nodes.")
    return Cluster(CARDS[card], processes, nodes)


def sent(engine: Engine, counts: Counts, micro_batches: int) -> float:
    """Bytes that each process sends in an optimizer step, by rings: a gathering or a scattering of n bytes over p processes
    sends n (p - 1) / p from each, and adding up is both."""
    part = (engine.processes - 1) / engine.processes
    trained = FLOAT * counts.trained
    weights = trained + counts.frozen_bytes
    if engine.name == "ddp":  # at the last micro-batch alone
        return part * 2 * trained
    if engine.name == "zero2":  # gradients after each micro-batch, weights after the step
        return part * (micro_batches + 1) * trained
    if engine.sharded:  # weights for the forward and for the backward pass, gradients after that
        return part * micro_batches * (2 * weights + trained)
    return 0.0
