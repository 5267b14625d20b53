"""Any artifact, or any Hugging Face LLaVA, as a model ready to answer.

In: a folder or hub id. Out: `Loaded`: the model, how its inputs are made, and its manifest. What it is, its manifest says,
or, where there is none, its config; an adapter that others wrote is read through a copy in this package's layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from .. import console
from ..data.processing import Processing
from ..errors import UserError
from ..model.base import sources
from ..model.build import load_model
from ..model.device import pick_device, pick_dtype
from ..model.fingerprint import fingerprint
from ..model.inputs import load_processing
from ..recipe.schema import Parts, Quantization
from .adapter import put_adapter
from .manifest import FILE, Base, Manifest, read_manifest, verify_quick

FINAL = "final"


@dataclass
class Loaded:
    model: torch.nn.Module  # LlavaForConditionalGeneration, or a PeftModel around it; in evaluation mode
    processing: Processing
    manifest: Manifest | None  # None for a plain Hugging Face folder

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def find_artifact(source: str | Path) -> Path | None:
    """The artifact's folder: `source` itself, or the `final` artifact of a run's output_dir. None if it is neither."""
    try:
        for folder in (Path(source), Path(source) / FINAL):
            if (folder / FILE).is_file():
                return folder
    except (OSError, ValueError, TypeError):  # no path at all
        return None
    return None


@contextmanager
def as_artifact(source: str | Path, base: str | None = None) -> Iterator[tuple[Path | None, str | None]]:
    """Gives the artifact at `source`, and the base to be named for it: while the block lasts, a foreign adapter too.

    An artifact is given as it is, with `base`. An adapter that others wrote is given as a copy in this package's layout,
    which names its base, so with None. None and `base` for everything else.

    Raises:
        UserError: a foreign adapter has tensors without a place, or no base; a whole model is to be converted first.
        RunError: one of its files is damaged.
    """
    from .convert.source import peek

    folder = find_artifact(source)
    foreign = None if folder is not None else peek(source)
    if foreign is not None and foreign.kind == "original" and foreign.is_llava:
        raise UserError(
            f"{source} is a model in the original's layout. Convert it first: qllava convert {source} --to hf --out DIR"
        )
    if foreign is None or foreign.whole:
        yield folder, base
        return
    from .convert.foreign import normalised

    with tempfile.TemporaryDirectory(prefix="qllava-") as scratch:
        manifest = normalised(foreign, base, Path(scratch) / "adapter")
        if manifest.base is None:
            raise UserError(f"{source} does not say what base it sits on. Name it with --base.")
        console.note(f"{source} is bound to no fingerprint: that {manifest.base.source} is its base is taken on trust.")
        yield Path(scratch) / "adapter", None


def base_of(manifest: Manifest, override: str | None = None) -> str | Parts:
    """The base that an adapter's manifest names, or the one given in its place, after comparing fingerprints.

    Raises:
        UserError: it is not the base that the adapter was trained on.
    """
    if manifest.base is None and override:  # a projector that was converted without one
        return parse_base(override)
    if manifest.base is None:
        raise UserError("The manifest names no base. Name one with --base.")
    named = manifest.base.source
    base: str | Parts = parse_base(override) if override else (Parts(**named) if isinstance(named, dict) else named)
    check_base(base, manifest.base)
    return base


def parse_base(text: str | Parts) -> str | Parts:
    """A folder or hub id, or the parts written as in a recipe: `{vision_tower: A, llm: B}`."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return text
    try:
        return Parts.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(
            f"{text!r} names no base; write a folder, a hub id or {{vision_tower: A, llm: B}}. {error}"
        ) from None


def check_base(base: str | Parts, expected: Base) -> None:
    """Raises `UserError`, naming both, when `base` has other weights than the expected one."""
    if isinstance(expected.source, dict) and isinstance(base, Parts):
        before = Parts(**expected.source).shape
        for field, now in base.shape.items():
            if (was := before[field]) != now:
                raise UserError(
                    f"Wrong base: this adapter was trained with {field} {was or 'left out'}, and the base named has {now or 'none'}. "
                    f"Name it with{'out it' if was is None else f' {field}: {was}'}."
                )
    if isinstance(base, str) and (artifact := find_artifact(base)) is not None:
        verify_quick(artifact)
    found = fingerprint(sources(base))
    if found != expected.fingerprint:
        raise UserError(
            f"Wrong base: this adapter was trained on {expected.source} (fingerprint {expected.fingerprint}), "
            f"but {base} has fingerprint {found}. Name the right one with --base, or base= of a recipe (parts as "
            "{vision_tower: A, llm: B})."
        )


def same_base(one: Base, other: Base) -> bool:
    """Whether two adapters sit on the same weights in the same shape: parts alone do not show their projector or tiles."""

    def shape(base: Base) -> dict[str, Any] | None:
        return Parts(**base.source).shape if isinstance(base.source, dict) else None

    return one.fingerprint == other.fingerprint and shape(one) == shape(other)


def load(
    source: str | Path, base: str | None = None, dtype: str = "auto", device: torch.device | None = None
) -> Loaded:
    """The artifact or Hugging Face LLaVA at `source`, ready to answer.

    Args:
        source: artifact, output_dir of a run, adapter that others wrote, folder of a Hugging Face LLaVA, or hub id.
        base: where an adapter's base lies now, if no longer where its manifest says; of a foreign adapter, the base.
        dtype: of the weights that are not quantised; an adapter made by QLoRA gets its base in 4 bits, as it was trained.

    Raises:
        UserError: it is nothing that can be loaded, or the base is another than the adapter's.
        RunError: a file of the artifact is damaged.
    """
    device = device or pick_device()
    with as_artifact(source, base) as (folder, base):
        return _load(source, folder, base, dtype, device)


def _load(source: str | Path, folder: Path | None, base: str | None, dtype: str, device: torch.device) -> Loaded:
    if folder is None:
        checkpoints = sorted(Path(source).glob("checkpoint-*")) if Path(source).is_dir() else []
        if checkpoints:
            raise UserError(
                f"{source} is a run that has not ended. Name one of its checkpoints, such as {checkpoints[-1]}."
            )
        if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
            raise UserError(f"{source} is neither an artifact (no {FILE}) nor a Hugging Face model (no config.json).")
        if base is not None:
            raise UserError(f"{source} is a whole model; --base goes with an adapter.")
        model = load_model(str(source), pick_dtype(dtype, device), device)
        return Loaded(model, load_processing(str(source), "vicuna_v1", "pad"), None)
    manifest = read_manifest(folder)
    verify_quick(folder)
    if manifest.holds == "model":
        if base is not None:
            raise UserError(f"{folder} is a whole model; --base goes with an adapter.")
        model = load_model(str(folder), pick_dtype(dtype, device), device)
        return Loaded(model, processing_of(manifest, str(folder)), manifest)
    source_base = base_of(manifest, base)
    # as it was trained, unless this machine cannot: a dtype of a GPU is slow on a CPU but right
    kept = pick_dtype(manifest.dtype or "auto", device) if dtype == "auto" else pick_dtype(dtype, device)
    model = load_model(source_base, kept, device, quantization_of(manifest))
    model = put_adapter(model, folder).eval()
    return Loaded(model, processing_of(manifest, source_base), manifest)


def processing_of(manifest: Manifest, base: str | Parts, keep_plain: bool = False) -> Processing:
    """Inputs as the artifact's manifest says, with the tokenizer and the image processor of `base`.

    Args:
        keep_plain: leave the template `plain` of stage 1, which cannot hold a question; else it becomes `vicuna_v1`.
    """
    template = "vicuna_v1" if manifest.template == "plain" and not keep_plain else manifest.template
    return load_processing(base, template, manifest.image_aspect_ratio, manifest.after_eos, manifest.exif_transpose)


def quantization_of(manifest: Manifest) -> Quantization | None:
    """How the adapter's base was quantised while it was trained; None if it was not."""
    if manifest.tune != "qlora":
        return None
    return Quantization(**(manifest.recipe or {}).get("quantization", {}))
