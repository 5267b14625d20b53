"""A base that is named by its parts, and what of its shape no weight of them shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .projector import LEAST_QUERIES, MLP, MOST_QUERIES, PATTERN, QUERIES, RESAMPLER, depth_of


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Parts(Block):
    """A base assembled from a vision tower and an LLM, with a new projector between them."""

    vision_tower: str
    """Folder or hub id of a CLIP or SigLIP vision tower, or `embedded`."""
    llm: str
    """Folder or hub id of a Llama-family LLM, or `embedded`."""
    vision_feature_layer: int = -2
    """Which hidden state of the tower the projector reads; LLaVA-1.5 takes the last but one."""
    vision_feature_select_strategy: Literal["default", "full"] | None = None
    """`default`: without CLIP's class token, as LLaVA; `full`: all that the tower has. Left out: what fits the tower."""
    projector_type: Annotated[str, Field(pattern=PATTERN)] = MLP
    """`linear` (LLaVA), `mlp2x_gelu` (LLaVA-1.5), `mlp3x_gelu` and deeper, or `resampler`: learned queries. All but LLaVA-1.5's own are
    saved as models of type `qllava`, which transformers alone does not load."""
    projector_queries: Annotated[int, Field(ge=LEAST_QUERIES, le=MOST_QUERIES)] | None = None
    """Tokens that a resampler makes of an image; 64 where it is not given."""
    max_tiles: Annotated[int, Field(ge=1, le=6)] | None = None
    """LLaVA-1.5-HD: an image goes in at most so many tiles of the tower's size (6 in the paper) and as a whole. Without it, as
    a whole alone. See docs/hd.md."""

    @property
    def shape(self) -> dict[str, Any]:
        """The fields that no weight of the parts shows; where the parts lie is none of them."""
        return self.model_dump(exclude={"vision_tower", "llm"})

    @model_validator(mode="before")
    @classmethod
    def _counts(cls, values: Any) -> Any:
        """A resampler whose queries are left out is the one of 64, wherever the two are compared."""
        short = (
            isinstance(values, dict)
            and values.get("projector_type") == RESAMPLER
            and values.get("projector_queries") is None
        )
        return {**values, "projector_queries": QUERIES} if short else values

    @model_validator(mode="after")
    def _fits(self) -> Parts:
        if self.projector_queries is not None and self.projector_type != RESAMPLER:
            raise PydanticCustomError(
                "queries",
                "has projector_queries, which are a resampler's. Write projector_type: resampler, or drop them",
            )
        if self.max_tiles is not None and depth_of(self.projector_type) != 2:
            raise PydanticCustomError(
                "tiles", "has max_tiles, and LLaVA-1.5-HD has LLaVA-1.5's projector. Drop max_tiles or projector_type"
            )
        return self
