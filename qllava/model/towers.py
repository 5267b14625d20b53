"""What a vision tower is, told from its configuration: CLIP of any size, or SigLIP.

In: a tower's config. Out: how many of its features an image has, which of them the projector reads, and the class of transformers
that holds it. CLIP puts a class token before the patches, which LLaVA leaves out (`default`); SigLIP has none (`full`).
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import UserError

Strategy = Literal["default", "full"]
CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
KINDS = (CLIP, SIGLIP)


def vision_of(config: Any) -> Any:
    """A tower's own config: that of the vision half where it comes with a text half, or inside a LLaVA."""
    return getattr(config, "vision_config", config)


def check_kind(vision: Any, source: str) -> None:
    """Raises `UserError` for a tower that is neither CLIP nor SigLIP."""
    if vision.model_type not in KINDS:
        raise UserError(
            f"{source} is a {vision.model_type}, and a vision tower is a CLIP or a SigLIP, such as openai/clip-vit-large-patch14-336 "
            "or google/siglip-so400m-patch14-384."
        )


def strategy_of(vision: Any, asked: Strategy | None) -> Strategy:
    """Which features the projector reads: those of the patches (`default`), or all that the tower has (`full`).

    Raises:
        UserError: the tower has no class token that could be left out.
    """
    if vision.model_type == SIGLIP and asked == "default":
        raise UserError(
            "vision_feature_select_strategy: default leaves the first feature out, CLIP's class token, and a SigLIP has none: "
            "that of a patch would be lost. Write full, or drop it."
        )
    return asked or ("full" if vision.model_type == SIGLIP else "default")


def check_layer(vision: Any, layer: int) -> None:
    """Raises `UserError` where the tower has no such hidden state."""
    count = vision.num_hidden_layers
    if not -count - 1 <= layer <= count:
        raise UserError(
            f"vision_feature_layer {layer}: the tower has {count} layers, so {-count - 1} (the embeddings) to -1 (the last), or 0 to {count}."
        )


def features_of(vision: Any, strategy: Strategy) -> int:
    """Features that the projector reads of an image."""
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + class_tokens(vision) if strategy == "full" else patches


def class_tokens(vision: Any) -> int:
    """Features before those of the patches."""
    return 0 if vision.model_type == SIGLIP else 1


def tower_class(vision: Any) -> type:
    """The class of transformers that holds the tower."""
    from transformers import CLIPVisionModel, SiglipVisionModel

    return SiglipVisionModel if vision.model_type == SIGLIP else CLIPVisionModel
