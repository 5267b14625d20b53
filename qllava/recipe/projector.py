"""What a projector is, by its name, without torch: `linear` (LLaVA), `mlp2x_gelu` (LLaVA-1.5), `mlp3x_gelu` and deeper, and
`resampler`, the counter-example of the paper: a fixed number of learned queries instead of a token for each patch.
"""

from __future__ import annotations

import re

LINEAR, MLP, RESAMPLER = "linear", "mlp2x_gelu", "resampler"
DEEPEST = 16
PATTERN = r"^(linear|mlp([2-9]|1[0-6])x_gelu|resampler)$"
LEAST_QUERIES, QUERIES, MOST_QUERIES = 32, 64, 144


def depth_of(projector_type: str) -> int:
    """How many linears a `linear` or an MLP has; 0 for a resampler."""
    if projector_type == RESAMPLER:
        return 0
    found = re.fullmatch(r"mlp(\d+)x_gelu", projector_type)
    return int(found[1]) if found else 1


def named(depth: int) -> str:
    """The name of so many linears."""
    return LINEAR if depth == 1 else f"mlp{depth}x_gelu"
