"""Projectors other than LLaVA-1.5's two linears, and the model that holds one.

In: a plain config and a projector's name. Out: a config of model type `qllava`, which transformers alone refuses instead of reading it
wrongly, and the class that holds its weights. `mlp2x_gelu` stays transformers' own config, class and keys.

`linear` and the MLPs are `mm_projector_type` of LLaVA's builder. The resampler is a Perceiver's (Flamingo; Q-Former is its kin): learned
queries look at the patches' features, at which places their position embeddings say, through a few layers of cross-attention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..recipe.projector import MLP, RESAMPLER, depth_of, named
from .towers import features_of

KIND = "qllava"
UNLIKE = (
    "model_type",
    "architectures",
    "transformers_version",
    "projector_hidden_act",
)  # of a config and its plain one
LAYERS, HEAD = 2, 64  # of the resampler: layers, and width of an attention head


class QllavaConfig(LlavaConfig):
    """A LLaVA's, with the projector's name, and for a resampler its number of queries."""

    model_type = KIND
    projector_type: str = MLP
    projector_queries: int | None = None
    projector_hidden_act: str = (
        KIND  # unknown to transformers, whose own class would else load the rest and make this up
    )


class Linears(nn.Module):
    """Linears with a GELU between each two: [images, patches, width of the tower] to [images, patches, width of the LLM]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.depth = config.text_config.hidden_size, depth_of(config.projector_type)
        for number in range(1, self.depth + 1):
            read = config.vision_config.hidden_size if number == 1 else width
            setattr(self, f"linear_{number}", nn.Linear(read, width))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        found = self.linear_1(image_features)
        for number in range(2, self.depth + 1):
            found = getattr(self, f"linear_{number}")(nn.functional.gelu(found))
        return found


class Resampler(nn.Module):
    """Learned queries that look at an image's features: [images, features, width of the tower] to [images, queries, width of the LLM]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        vision, width = config.vision_config, config.vision_config.hidden_size
        count = features_of(vision, config.vision_feature_select_strategy)
        self.queries = nn.Parameter(torch.randn(config.projector_queries, width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(count, width) * width**-0.5)
        self.features_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(width, math.gcd(width, max(1, width // HEAD))) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        seen = self.features_norm(image_features)
        placed = seen + self.positions
        queries = self.queries.expand(len(image_features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, placed, seen)
        return self.out(self.norm(queries))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        asked = self.q_proj(self.attention_norm(queries))
        split = [
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (asked, self.k_proj(keys), self.v_proj(values))
        ]
        found = nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        queries = queries + self.o_proj(found)
        return queries + self.down(nn.functional.gelu(self.up(self.mlp_norm(queries))))


class QllavaForConditionalGeneration(LlavaForConditionalGeneration):
    """A LLaVA with the projector that its config names."""

    config_class = QllavaConfig
    config: QllavaConfig

    def __init__(self, config: QllavaConfig) -> None:
        config.projector_hidden_act = "gelu"  # while the parent makes a projector, which is thrown away
        super().__init__(config)
        config.projector_hidden_act = KIND
        self.model.multi_modal_projector = new_projector(config)


def new_projector(config: Any) -> nn.Module:
    """The config's projector, with nn.Linear's own initialisation, as the original's."""
    kind = projector_type(config)
    if kind == MLP:
        return LlavaMultiModalProjector(config)
    return Resampler(config) if kind == RESAMPLER else Linears(config)


def projector_type(config: Any) -> str:
    """The name of a config's projector."""
    return getattr(config, "projector_type", MLP)


def features_shape(projector: nn.Module) -> tuple[int, int]:
    """Features and width of the least that the projector reads of an image."""
    if isinstance(projector, Resampler):
        return tuple(projector.positions.shape)
    return 1, projector.linear_1.in_features


def described(shapes: Mapping[str, Sequence[int]]) -> str:
    """What projector tensors of these names and shapes are, in words."""
    if "queries" in shapes:
        return (
            f"a resampler of {shapes['queries'][0]} queries, {shapes['queries'][1]} to {shapes['out.weight'][0]} wide"
        )
    kind = kind_of(shapes)
    if kind is None:
        return f"no projector that is known ({', '.join(sorted(shapes))})"
    linears = [tuple(reversed(shapes[f"linear_{n}.weight"])) for n in range(1, depth_of(kind) + 1)]
    return f"{kind} of {', '.join(f'{a} to {b}' for a, b in linears)}"


def kind_of(names: Iterable[str]) -> str | None:
    """The name of the projector whose tensors have these names; None where it is none that is known."""
    names = set(names)
    if "queries" in names:
        return RESAMPLER
    depth = len([n for n in names if re.fullmatch(r"linear_\d+\.weight", n)])
    whole = {f"linear_{n}.{kind}" for n in range(1, depth + 1) for kind in ("weight", "bias")}
    return named(depth) if depth and names == whole else None


def with_projector(plain: LlavaConfig, kind: str, queries: int | None) -> LlavaConfig:
    """The configuration of the same parts with this projector: the same object for LLaVA-1.5's own."""
    if kind == MLP:
        return plain
    values = {k: v for k, v in plain.to_dict().items() if k not in UNLIKE}
    config = QllavaConfig(**values, projector_type=kind, projector_queries=queries if kind == RESAMPLER else None)
    config.image_seq_length = image_tokens(config)
    return config


def image_tokens(config: Any) -> int:
    """Tokens that an image takes in the LLM (with tiles, its global view)."""
    if projector_type(config) == RESAMPLER:
        return config.projector_queries
    return features_of(config.vision_config, config.vision_feature_select_strategy)


class Work(NamedTuple):
    """What a projector does with one image."""

    multiplications: int  # of the forward pass
    kept: int  # numbers that the backward pass reads, with what comes in


def work_of(config: Any) -> Work:
    """The work of the config's projector: linears see each patch; a resampler's keys and values do, all else of it each query."""
    vision, wide = config.vision_config, config.text_config.hidden_size
    count, width = features_of(vision, config.vision_feature_select_strategy), vision.hidden_size
    depth = depth_of(projector_type(config))
    if depth:
        return Work(count * (width * wide + (depth - 1) * wide * wide), count * (width + (2 * depth - 1) * wide))
    queries = config.projector_queries
    layer = 2 * count * width**2 + 10 * queries * width**2 + 2 * queries * count * width
    kept = count * (3 + 2 * LAYERS) * width + queries * (LAYERS * 16 * width + 3 * wide)
    return Work(LAYERS * layer + queries * width * wide, kept)


AutoConfig.register(KIND, QllavaConfig, exist_ok=True)
register_checkpoint_conversion_mapping(KIND, get_checkpoint_conversion_mapping("llava"), overwrite=True)
