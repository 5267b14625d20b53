"""LLaVA-1.5-HD as a model: its configuration, and how the features of a picture's views become what the LLM reads.

In: a plain config, or features of views. Out: transformers' `LlavaNextConfig` with `max_tiles` in it, and one map a picture:
the tiles' patches as they lie in the picture, without those of padding alone, a row-end token after each row, and the global
view behind it. docs/hd.md says where `LlavaNextForConditionalGeneration` does otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextForConditionalGeneration as LlavaNext

from ..data.tiles import Layout, Tiling, grids
from ..errors import UserError
from .projectors import KIND as QLLAVA
from .projectors import QllavaForConditionalGeneration
from .towers import CLIP

FIELD = "max_tiles"  # of the config
ROW_END = "image_newline"  # LlavaNext's name for the row-end token
KIND = "llava_next"
SHARED = (
    "image_token_index",
    "image_seq_length",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "tie_word_embeddings",
)


def tiling_of(config: Any) -> Tiling | None:
    """How the model's pictures are tiled; None where they are not.

    Raises:
        UserError: a tile is no whole number of patches.
    """
    most = getattr(config, FIELD, None)
    if most is None:
        return None
    vision = config.vision_config
    check_tower(vision)
    return Tiling(most, vision.image_size, vision.patch_size)


def check_tower(vision: Any) -> None:
    """Raises `UserError` where a tile of this tower is no whole number of patches."""
    if vision.model_type != CLIP:
        raise UserError(
            f"max_tiles is the paper's LLaVA-1.5-HD, whose tower is a CLIP; this one is a {vision.model_type}. Drop max_tiles."
        )
    if vision.image_size % vision.patch_size:
        raise UserError(
            f"max_tiles needs a vision tower whose edge is a multiple of its patch, and {vision.image_size} is none of "
            f"{vision.patch_size}. Name one such as openai/clip-vit-large-patch14 (224 and 14), or drop max_tiles."
        )


def tiled_config(plain: LlavaConfig, max_tiles: int) -> LlavaNextConfig:
    """The configuration of the same parts with tiles."""
    check_tower(plain.vision_config)
    edge = plain.vision_config.image_size
    return LlavaNextConfig(
        vision_config=plain.vision_config.to_dict(), text_config=plain.text_config.to_dict(),
        image_grid_pinpoints=[[rows * edge, columns * edge] for rows, columns in grids(max_tiles)],
        **{name: getattr(plain, name) for name in SHARED}, **{FIELD: max_tiles},
    )  # fmt: skip


def check_known(config: Any, source: str) -> None:
    """Raises `UserError` for a LLaVA-NeXT that is no LLaVA-1.5-HD: another model, packed in another way."""
    if config.model_type == KIND and getattr(config, FIELD, None) is None:
        raise UserError(
            f"{source} is a LLaVA-NeXT (no {FIELD} in its config), not a LLaVA-1.5 or LLaVA-1.5-HD. Name the parts as base: "
            "{vision_tower, llm, max_tiles}."
        )


def is_tiled(base: Any) -> bool:
    """Whether a base, as a recipe or a manifest names it, is a LLaVA-1.5-HD: parts, their values, or a folder here."""
    if isinstance(base, dict):
        return base.get(FIELD) is not None
    if isinstance(base, str):
        file = Path(base) / "config.json"
        return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get(FIELD) is not None
    return getattr(base, FIELD, None) is not None


def layouts(tiling: Tiling, image_sizes: torch.Tensor | Sequence[Sequence[int]]) -> list[Layout]:
    """Of pictures by height and width."""
    sizes = image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes
    return [tiling.layout(width, height) for height, width in sizes]


def new_row_end(config: Any) -> torch.nn.Parameter:
    """A row-end token that has not learned anything, as LlavaNext begins with one: [width]."""
    width = config.text_config.hidden_size
    return torch.nn.Parameter(torch.randn(width) / width**0.5)


def pack_views(
    features: torch.Tensor, image_sizes: torch.Tensor, row_end: torch.Tensor, tiling: Tiling
) -> list[torch.Tensor]:
    """What the LLM reads of each picture: [tokens, width].

    Args:
        features: projected, of all pictures' views [views, patches, width].
        image_sizes: [pictures, 2], height and width.
        row_end: [width].

    Raises:
        UserError: the projector gives something else than a feature for each patch.
    """
    found, side, start = [], tiling.edge // tiling.patch, 0
    if features.shape[1] != side * side:
        raise UserError(
            f"max_tiles needs a projector with a feature for each of a tile's {side * side} patches, and this one gives "
            f"{features.shape[1]}. Take an MLP (or a linear one), or drop max_tiles."
        )
    row_end = row_end.to(features.dtype)
    for layout in layouts(tiling, image_sizes):
        tiles, whole = features[start : start + layout.tiles], features[start + layout.tiles]
        start += layout.views
        # [rows, columns, side, side, width] to [rows, side, columns, side, width]: patches as they lie in the picture
        laid = tiles.unflatten(0, (layout.rows, layout.columns)).unflatten(2, (side, side)).transpose(1, 2)
        laid = laid.flatten(2, 3).flatten(0, 1)[slice(*layout.patch_rows), slice(*layout.patch_columns)]
        ends = row_end.expand(len(laid), 1, -1)
        found.append(torch.cat([torch.cat([laid, ends], 1).flatten(0, 1), whole]))
    if start != len(features):
        raise ValueError(f"{len(features)} views for pictures that have {start}.")
    return found


def model_class(config: Any) -> type:
    """The class that holds the model's weights: of transformers, but for other projectors."""
    from transformers import LlavaForConditionalGeneration

    if config.model_type == QLLAVA:
        return QllavaForConditionalGeneration
    return LlavaNext if config.model_type == KIND else LlavaForConditionalGeneration
