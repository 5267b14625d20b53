"""The key layouts of a LLaVA's weights. Here: the one that the hub's files have (published) and the one in memory (runtime).

In: a key. Out: the same tensor's key in the other layout. Folders are written in the published layout, which transformers
4 and 5 and other tools read; transformers 5 alone would leave out a level of the vision tower's names for a model that was
built from parts. (The original code's layout moves in beside these two.)
"""

from __future__ import annotations

PAIRS = (  # (published prefix, runtime prefix)
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def to_published(key: str) -> str:
    """A runtime key as the hub's files have it."""
    return next((p + key[len(r) :] for p, r in PAIRS if key.startswith(r)), key)


def to_runtime(key: str) -> str:
    """A published key as it is in memory."""
    return next((r + key[len(p) :] for p, r in PAIRS if key.startswith(p)), key)
