"""The key layouts of a LLaVA's weights: the hub's files' (published), the one in memory (runtime), and LLaVA's own (original).

In: a key. Out: the same tensor's key in the other layout. Folders are written in the published layout, which transformers
4 and 5 and other tools read; transformers 5 alone would leave out a level of the vision tower's names for a model that was
built from parts. No key of one layout can be taken for one of another, so a key of any is read without knowing which it is.
"""

from __future__ import annotations

from ..recipe.projector import DEEPEST

PAIRS = (  # (published prefix, runtime prefix)
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)
ORIGINAL = (  # (the original's prefix, runtime prefix)
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    *((f"model.mm_projector.{2 * n - 2}.", f"model.multi_modal_projector.linear_{n}.") for n in range(1, DEEPEST + 1)),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
)
VARIANTS = (  # what some versions of transformers wrote beside these
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
)
LINEAR = ("model.mm_projector.", "model.multi_modal_projector.linear_1.")  # the original's bare one has no number
PEFT = "base_model.model."  # before every key of an adapter


def to_published(key: str) -> str:
    """A runtime key as the hub's files have it."""
    return next((p + key[len(r) :] for p, r in PAIRS if key.startswith(r)), key)


def to_runtime(key: str) -> str:
    """A key of any layout as it is in memory."""
    return next((r + key[len(p) :] for p, r in (*PAIRS, *ORIGINAL, *VARIANTS, LINEAR) if key.startswith(p)), key)


def to_original(key: str, linear: bool = False) -> str:
    """A runtime key as LLaVA's own code has it.

    Args:
        linear: the projector is a bare linear.
    """
    if linear and key.startswith(LINEAR[1]):
        return LINEAR[0] + key[len(LINEAR[1]) :]
    return next((o + key[len(r) :] for o, r in ORIGINAL if key.startswith(r)), key)


def adapter_to_runtime(key: str) -> str:
    """An adapter's key, in any layout and as any PEFT wrote it, as today's PEFT has it for the model in memory."""
    bare = key.removeprefix(PEFT).replace(".modules_to_save.", ".").replace(".default.", ".")
    return PEFT + to_runtime(bare.removesuffix(".default"))
