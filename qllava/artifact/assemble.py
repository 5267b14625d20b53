"""A vision tower, an LLM and a new projector as one folder: `qllava assemble`. In: the parts. Out: an artifact (base)."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model.build import load_model, load_processing, sources
from ..model.device import dtype_of
from ..model.fingerprint import fingerprint
from ..model.whole import save_whole
from ..recipe.schema import Parts
from .manifest import Manifest, writing


def assemble(
    vision_tower: str, llm: str, out: str | Path, template: str = "vicuna_v1", image_aspect_ratio: str = "pad",
    dtype: str = "bfloat16",
) -> Path:  # fmt: skip
    """Writes a LLaVA whose projector has not learned anything yet to `out`, a folder that transformers loads.

    Raises:
        UserError: a part is missing or of another kind, or `out` is there already.
    """
    written = dtype_of(dtype)
    parts = Parts(vision_tower=vision_tower, llm=llm)
    processing = load_processing(parts, template, image_aspect_ratio)
    manifest = Manifest(
        kind="base", holds="model", template=processing.template.name, image_aspect_ratio=image_aspect_ratio, dtype=dtype,
        report={"parts": parts.model_dump(), "fingerprint": fingerprint(sources(parts))},
    )  # fmt: skip
    with writing(Path(out), manifest) as partial:
        save_whole(load_model(parts, written, torch.device("cpu")), processing, partial, written)
    return Path(out)
