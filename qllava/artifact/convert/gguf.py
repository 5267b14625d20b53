"""A whole model as the two files that llama.cpp reads: the LLM, and the vision tower with the projector (mmproj).

In: a LLaVA's folder in the Hugging Face layout. Out: a folder with `NAME-f16.gguf` and `mmproj-NAME-f16.gguf`. Weights go
from file to file one at a time. Names and rules follow llama.cpp's own converters (`conversion/`, `tools/mtmd/`).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ...errors import UserError
from ...model.base import read_config
from ..manifest import FILE, read_manifest, writing
from . import gguf_llm, gguf_vision
from .folder import Weights, name_of, pads, whole_model
from .gguf_file import OUTTYPES, write

REMEDY = "Merge it into its base first: qllava merge ADAPTER --out DIR."


def to_gguf(source: str | Path, out: str | Path, outtype: str = "f16") -> Path:
    """Writes `NAME-OUTTYPE.gguf` and `mmproj-NAME-f16.gguf` into the new folder `out` and returns it.

    Args:
        source: a whole LLaVA: an artifact that holds one, a run's output_dir with one, or any Hugging Face folder.
        outtype: of the LLM's matrices: f32, f16, bf16 or q8_0. Its norms are float32; the mmproj is always f16.

    Raises:
        UserError: the source is an adapter, or something that llama.cpp's LLaVA does not have; or `out` is there already.
        RunError: a file is damaged, or a weight does not fit into the type.
    """
    gguf = import_gguf()
    if outtype not in OUTTYPES:
        raise UserError(f"No outtype '{outtype}'. There are: {', '.join(OUTTYPES)}.")
    folder = whole_model(source, REMEDY)
    config, weights, name = read_config(str(folder)), Weights(folder), name_of(folder)
    llm = gguf_llm.plan(folder, config, weights, outtype, gguf)
    vision = gguf_vision.plan(folder, config, weights, gguf)
    left = set(weights.files) - {p.key for p in (*llm.pieces, *vision.pieces)} - llm.unused - vision.unused
    if left:
        raise UserError(f"{folder} holds weights that no LLaVA-1.5 has: {sorted(left)[:3]}.")
    with writing(Path(out), None) as partial:
        write(partial / f"{name}-{outtype}.gguf", "llama", name, llm, weights, gguf)
        write(partial / f"mmproj-{name}-f16.gguf", "clip", name, vision, weights, gguf)
    return Path(out)


def lint_gguf(source: str | Path) -> list[str]:
    """What llama.cpp does otherwise than training did, one line a thing, most serious first.

    Measured with llama-cpp-python 0.3.36; figures are in benchmarks/LOG.md.

    Raises:
        UserError: the source is no whole model.
    """
    folder = whole_model(source, REMEDY)
    lines = [
        "llama.cpp since May 2025 puts the vision tower's class token last and so shifts every patch's position by one (its "
        "issue 25814, for every LLaVA-1.5): image features differ from training's; on the demo one answer of 400 did. The file "
        "is right, and needs no change once llama.cpp is mended.",
        "The mmproj names the vision layer that LLaVA reads; a llama.cpp from before February 2025 does not look at that and "
        "stops one layer early.",
    ]
    if not pads(folder):
        lines.insert(
            0,
            "llama.cpp pads images to squares, and this model's processor crops their middle: pictures that are not square "
            "are seen otherwise than in training. Give it pictures cropped to squares.",
        )
    if not (folder / FILE).is_file() or read_manifest(folder).after_eos != "legacy":
        lines.append(
            "After an answer's </s>, llama.cpp starts the next turn with a space (as after_eos: legacy does); this model was "
            "trained without. Single questions are the same token for token."
        )
    return lines


def import_gguf() -> ModuleType:
    """The `gguf` package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("Writing GGUF needs the package gguf: pip install 'qllava[gguf]'.") from None
    return gguf
