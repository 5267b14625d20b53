"""The base that a foreign adapter sits on. In: what was named. Out: a whole Hugging Face LLaVA, or the parts of one."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...model.base import locate, read_config
from ...model.projectors import KIND as QLLAVA
from ...model.tiles import is_tiled
from ...recipe.schema import Parts
from ..load import parse_base
from .original import find_tower, projector_of
from .source import Source, peek


def find_base(
    source: Source, named: str | Parts | None, vision_tower: str | None, projector: str | None = None
) -> str | Parts:
    """The base of the adapter in `source`.

    Args:
        named: a folder (also from the adapter's own), a hub id, or parts; an LLM alone is joined with the vision tower.
        vision_tower: for that; by default the one that the original's config names.
        projector: for that, the name of the adapter's; by default the one that the original's config names.

    Raises:
        UserError: none is named, it cannot be read, or it is no base.
    """
    if not named:
        raise UserError(f"{source.path} does not say what base it sits on. Name it with --base.")
    base = parse_base(named)
    if is_tiled(base):
        raise UserError(
            f"{named} is a LLaVA-1.5-HD, and what others wrote has no row-end token for it. Name a plain base."
        )
    if isinstance(base, Parts):
        return base
    base = str(base)
    if not Path(base).exists() and (source.path / base).is_dir():
        base = str((source.path / base).resolve())
    there = peek(base)
    if there is not None and there.manifest is not None:
        base = str(there.path)
    if there is not None and not there.whole:
        raise UserError(f"{base} is an adapter itself, no base. Name what it was trained on with --base.")
    if there is not None and there.kind == "original" and there.is_llava:
        raise UserError(
            f"The base {base} is in the original's layout. Convert it first: qllava convert {base} --to hf --out DIR; then "
            "name DIR with --base."
        )
    try:
        config = read_config(str(locate(base)))
    except UserError as error:
        raise UserError(f"The base of {source.path} cannot be read: {error} Name it with --base.") from None
    if config.model_type in ("llava", QLLAVA):
        return base
    try:
        tower = find_tower(source.config, source.path, vision_tower)
    except UserError:
        raise UserError(
            f"{base} is a {config.model_type} alone, no LLaVA. Name a whole one with --base, or its parts as "
            "{vision_tower: A, llm: B}."
        ) from None
    layer = source.config.get("mm_vision_select_layer", -2)
    return Parts(
        vision_tower=tower,
        llm=base,
        vision_feature_layer=layer,
        projector_type=projector or projector_of(source.config),
    )
