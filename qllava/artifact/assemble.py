"""A vision tower, an LLM and a new projector as one folder: `qllava assemble`. In: the parts. Out: an artifact (base)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ..errors import UserError
from ..model.base import sources
from ..model.build import load_model
from ..model.device import dtype_of
from ..model.fingerprint import fingerprint
from ..model.inputs import load_processing
from ..model.whole import save_whole
from ..recipe.schema import Parts
from .manifest import Manifest, writing


def assemble(
    vision_tower: str, llm: str, out: str | Path, template: str = "vicuna_v1", image_aspect_ratio: str = "pad",
    dtype: str = "bfloat16", **shape: Any,
) -> Path:  # fmt: skip
    """Writes a LLaVA whose projector has not learned anything yet to `out`, a folder that transformers loads.

    Args:
        shape: other fields of `Parts`: `projector_type`, `vision_feature_layer`, `max_tiles` and others.

    Raises:
        UserError: a part is missing or of another kind, or `out` is there already.
    """
    written = dtype_of(dtype)
    parts = _parts({"vision_tower": vision_tower, "llm": llm, **{k: v for k, v in shape.items() if v is not None}})
    processing = load_processing(parts, template, image_aspect_ratio)
    manifest = Manifest(
        kind="base", holds="model", template=processing.template.name, image_aspect_ratio=image_aspect_ratio, dtype=dtype,
        report={"parts": parts.model_dump(), "fingerprint": fingerprint(sources(parts))},
    )  # fmt: skip
    with writing(Path(out), manifest) as partial:
        save_whole(load_model(parts, written, torch.device("cpu")), processing, partial, written)
    return Path(out)


def _parts(values: dict[str, Any]) -> Parts:
    try:
        return Parts.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the base'}: {e['msg']}" for e in error.errors())
        raise UserError(f"These parts make no LLaVA: {told}.") from None
