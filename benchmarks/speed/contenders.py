"""Who takes part: names to jobs' kinds and overrides.

`trl`, `trl_no_gc` and `hf` are in `peers`; `qllava:PIECES` is qllava with pieces of `VARIANTS` joined by `+`, `qllava` alone is
`qllava:padded`. Other trainers are named with the reason why they are not raced.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VARIANTS: dict[str, tuple[str, ...]] = {
    "padded": ("packing=false", "fused_layers=false"),
    "packed": ("packing=true", "fused_layers=true"),
    "shared": ("pairing=shared", "packing=true", "fused_layers=true"),
    "fused": ("fused_layers=true",),
    "grouped": ("group_by_modality_length=true",),
    "gc": ("gradient_checkpointing=true",),
    "crops": ("image_cache=crops",),
    "features": ("image_cache=features",),
}
PEERS = ("trl", "trl_no_gc", "hf")
OTHERS = {
    "unsloth": "unsloth",
    "LLaMA-Factory": "llamafactory",
    "ms-swift": "swift",
    "axolotl": "axolotl",
}  # their modules
DEFAULT = (*PEERS, "qllava", "qllava:packed")


@dataclass(frozen=True)
class Contender:
    name: str
    kind: str
    overrides: tuple[str, ...] = ()

    def checkpointed(self, layers: int) -> float | None:
        """The share of the LLM's layers that is recomputed; None where the run decides it itself."""
        if self.kind != "qllava":
            return float(self.kind == "trl")
        values = [o.split("=", 1)[1] for o in self.overrides if o.startswith("gradient_checkpointing=")]
        value = values[-1].lower() if values else "false"
        if value in ("true", "false"):
            return float(value == "true")
        return min(1.0, int(value) / layers) if value.isdigit() else None


def find(name: str, variants: Mapping[str, Sequence[str]] | None = None) -> Contender:
    """The contender of that name.

    Raises:
        ValueError: there is none.
    """
    known = {**VARIANTS, **(variants or {})}
    if name in PEERS:
        return Contender(name, name)
    kind, _, pieces = name.partition(":")
    unknown = [p for p in pieces.split("+") if p and p not in known]
    if kind != "qllava" or unknown:
        raise ValueError(
            f"There is no contender {name!r}. There are {', '.join(PEERS)}, and qllava or qllava:PIECES of {', '.join(known)}."
        )
    return Contender(name, kind, tuple(o for p in pieces.split("+") if p for o in known[p]))


def not_raced() -> dict[str, str]:
    """Other trainers for LLaVA, and why they are not among the contenders."""
    return {
        name: "installed, but nothing here runs it yet" if importlib.util.find_spec(module) else "not installed"
        for name, module in OTHERS.items()
    }
