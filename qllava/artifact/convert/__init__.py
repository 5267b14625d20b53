"""Weights of other layouts in and out: `qllava convert`. In: a folder, file or hub id, and a layout's name. Out: a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import console
from ...errors import UserError, nearest
from ..manifest import can_write
from .source import TRAINABLES, Source

LAYOUTS = ("hf", "original", "gguf", "vllm")


def convert(
    source: str | Path, to: str, out: str | Path, base: str | None = None, vision_tower: str | None = None, merge: bool = False,
    outtype: str = "f16",
) -> Path:  # fmt: skip
    """Writes `source` in another layout to `out` and returns that folder.

    Args:
        source: an artifact, or what LLaVA's own code, PEFT or XTuner wrote; what it is, its content says.
        to: `hf` (a Hugging Face LLaVA, or an adapter artifact), `original` (LLaVA's own code's), `gguf` (llama.cpp's two
            files) or `vllm` (the folder that it takes). What the last two do otherwise than training is said on stderr.
        base: what an adapter sits on, where it does not say so itself or lies elsewhere now.
        vision_tower: the CLIP of an original model, where its config names another place.
        merge: an adapter becomes one model with its base first.
        outtype: of a GGUF's matrices: f32, f16, bf16 or q8_0.

    Raises:
        UserError: `source` is nothing that can be converted so, or `out` is there already.
        RunError: a file of `source` is damaged.
    """
    if to not in LAYOUTS:
        raise UserError(f"No layout '{to}' to convert to.{nearest(to, LAYOUTS)} There are: {', '.join(LAYOUTS)}.")
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already; name another folder, or remove it.")
    if merge:
        return _merged(source, to, out, base, vision_tower, outtype)
    from .source import look

    found = look(source)
    if base is not None and found.whole:
        raise UserError(f"{source} is a whole model; --base goes with an adapter.")
    _refuse_tiles(found, to)
    if to == "original":
        return _to_original(found, out, base, vision_tower)
    if to in ("gguf", "vllm"):
        return _to_serve(found, to, out, outtype)
    return _to_hf(found, out, base, vision_tower)


def _refuse_tiles(found: Source, to: str) -> None:
    """Raises `UserError` where a LLaVA-1.5-HD, or an adapter on one, is to go where no tiles are known."""
    from ...model.tiles import is_tiled
    from .folder import TILED

    base = found.manifest.base.source if found.manifest is not None and found.manifest.base is not None else None
    if to != "hf" and (is_tiled(found.config) or is_tiled(base)):
        raise UserError(f"{found.path} is {TILED}")


def _to_original(found: Source, out: Path, base: str | None, vision_tower: str | None) -> Path:
    from .export import export_adapter, export_whole

    if found.kind == "original":
        raise UserError(f"{found.path} is in the original's layout already.")
    if found.whole:
        return export_whole(found, out, vision_tower)
    if found.kind == "adapter":
        return export_adapter(found.path, found.manifest, out, base, vision_tower)
    if (found.path / TRAINABLES).is_file() or found.kind == "projector":
        raise UserError(
            f"{found.path} is in the original's layout already. --merge makes one model of it and its base."
        )
    from .foreign import normalised

    with _scratch(out) as scratch:
        manifest = normalised(found, base, scratch / "adapter", vision_tower)
        return export_adapter(scratch / "adapter", manifest, out, None, vision_tower)


def _to_serve(found: Source, to: str, out: Path, outtype: str) -> Path:
    """The files of a runtime, and a word about each thing that it does otherwise."""
    from .gguf import lint_gguf, to_gguf
    from .vllm import to_vllm

    if to == "gguf":
        to_gguf(found.path, out, outtype)
        lines = lint_gguf(found.path)
    else:
        lines = to_vllm(found.path, out)
    for line in lines:
        console.note(f"  - {line}")
    return out


def _to_hf(found: Source, out: Path, base: str | None, vision_tower: str | None) -> Path:
    from .foreign import normalised
    from .original import rewrite, to_hf

    if found.kind == "original":
        return to_hf(found, out, vision_tower)
    if found.whole:
        return rewrite(found, out)
    if found.kind == "adapter":
        raise UserError(
            f"{found.path} is an adapter in this layout already. --merge makes one Hugging Face model of it and its base."
        )
    normalised(found, base, out, vision_tower)
    return out


def _merged(source: str | Path, to: str, out: Path, base: str | None, vision_tower: str | None, outtype: str) -> Path:
    """An adapter merged with its base, then in the layout asked for."""
    from ..merge import merge
    from .foreign import normalised
    from .source import look

    found = look(source)
    if found.whole:
        raise UserError(f"{source} is a whole model already; there is nothing to merge.")
    _refuse_tiles(found, to)
    with _scratch(out) as scratch:
        adapter = found.path
        if found.kind != "adapter":
            adapter = scratch / "adapter"
            normalised(found, base, adapter, vision_tower)
            base = None
        dtype = "float32" if to == "gguf" and outtype == "f32" else "auto"
        merge(adapter, scratch / "merged", dtype=dtype, base=base, origin=str(source))
        if to == "hf":
            return (scratch / "merged").rename(out)
        return convert(scratch / "merged", to, out, vision_tower=vision_tower, outtype=outtype)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone when the block ends."""
    partial = can_write(out)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
