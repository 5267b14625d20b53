"""What a run leaves: merge, assemble, convert, verify; and version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__, api
from ..console import note
from .door import Base, Json, app, numbers, show


@app.command(epilog="Example: qllava merge runs/mine --out runs/mine-merged")
def merge(
    adapter: Annotated[str, typer.Argument(help="Adapter, checkpoint, or the output_dir of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="bf16 (the original weights), bf16-dequantized (as QLoRA saw them) or nf4; by default what training saw."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    base: Base = None,
    force: Annotated[
        bool, typer.Option("--force", help="Merge into nf4, which rounds a part of what was learned away.")
    ] = False,
    proof: Annotated[
        bool,
        typer.Option(
            "--proof/--no-proof", help="Compare what was written with base and adapter; needs both in memory."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Writes adapter and base as one plain Hugging Face LLaVA that transformers loads without qllava, and proves it right."""
    folder = api.merge(adapter, out, target, dtype, base, force=force, proof=proof)
    if as_json:
        show({"model": folder, **api.verify(folder).report})
    note(f"Merged into {folder}")


@app.command(epilog="Example: qllava combine runs/a runs/b --weights 0.7,0.3 --out runs/both")
def combine(
    adapters: Annotated[list[str], typer.Argument(help="Adapters on the same base; one alone can be scaled.")],
    out: Annotated[Path, typer.Option(help="Folder for the combined adapter.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each, with commas: 0.7,0.3. A negative one subtracts; 1 by default.")
    ] = None,
    method: Annotated[str, typer.Option(help="sum (exact), ties, dare or dare_ties.")] = "sum",
    rank: Annotated[int | None, typer.Option(help="Of the result; by default what the exact sum needs.")] = None,
    density: Annotated[float, typer.Option(help="Share of each change that TIES and DARE keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what DARE drops.")] = 0,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Makes one adapter of several, projectors included, and shows where they disagree."""
    options = {"method": method, "rank": rank, "density": density, "seed": seed, "base": base}
    folder = api.combine(adapters, out, numbers(weights), **options)
    if as_json:
        show({"adapter": folder, **api.verify(folder).report})
    note(f"Combined into {folder}")


@app.command(
    epilog="Example: qllava assemble --vision-tower openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out base"
)
def assemble(
    vision_tower: Annotated[
        str, typer.Option(help="Folder or hub id of a CLIP or SigLIP vision tower, or `embedded`.")
    ],
    llm: Annotated[str, typer.Option(help="Folder or hub id of a Llama-family LLM, or `embedded`.")],
    out: Annotated[Path, typer.Option(help="Folder for the LLaVA.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    max_tiles: Annotated[
        int | None, typer.Option(min=1, max=6, help="LLaVA-1.5-HD: tiles of an image; the paper's 6.")
    ] = None,
    projector_type: Annotated[
        str | None, typer.Option(help="linear, mlp2x_gelu (LLaVA-1.5's), mlp3x_gelu and deeper, or resampler.")
    ] = None,
    projector_queries: Annotated[
        int | None, typer.Option(help="Of a resampler: tokens of an image, 32 to 144.")
    ] = None,
    vision_feature_layer: Annotated[
        int | None, typer.Option(help="Hidden state of the tower that the projector reads; -2.")
    ] = None,
    vision_feature_select_strategy: Annotated[
        str | None, typer.Option(help="default (without CLIP's class token) or full; by default what fits the tower.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="How conversations are written for the LLM; auto is the LLM's own.")
    ] = "vicuna_v1",
    as_json: Json = False,
) -> None:
    """Joins a vision tower and an LLM by a new projector into one LLaVA."""
    folder = api.assemble(
        vision_tower, llm, out, template=template, dtype=dtype, max_tiles=max_tiles, projector_type=projector_type,
        projector_queries=projector_queries, vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
    )  # fmt: skip
    if as_json:
        show({"model": folder})
    note(f"Assembled into {folder}")


@app.command(epilog="Example: qllava convert liuhaotian/llava-v1.5-7b --to hf --out llava-v1.5-7b-hf")
def convert(
    source: Annotated[str, typer.Argument(help="Artifact, or what LLaVA's own code, PEFT or XTuner wrote.")],
    to: Annotated[str, typer.Option(help="hf, original (LLaVA's own code), gguf (llama.cpp) or vllm.")],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    base: Annotated[str | None, typer.Option(help="What an adapter sits on, if not what it names itself.")] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="CLIP of an original model, if not where its config says.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make one model of an adapter and its base first.")] = False,
    outtype: Annotated[str, typer.Option(help="Of a GGUF's matrices: f32, f16, bf16 or q8_0.")] = "f16",
    as_json: Json = False,
) -> None:
    """Brings weights of other layouts in, and takes them out: LLaVA's own code, PEFT, XTuner, Hugging Face, GGUF, vLLM."""
    folder = api.convert(source, to, out, base, vision_tower, merge, outtype)
    if as_json:
        show({"folder": folder})
    note(f"Converted to {folder}")


@app.command(epilog="Example: qllava verify runs/mine/final")
def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact, or the output_dir of a run.")], as_json: Json = False
) -> None:
    """Checks every file of an artifact against its manifest."""
    manifest = api.verify(artifact)
    if as_json:
        show(manifest.model_dump(mode="json", exclude_none=True))
    else:
        print(f"{artifact}: {manifest.kind}, {len(manifest.files)} files, all as they were written")


@app.command(epilog="Example: qllava fingerprint llava-hf/llava-1.5-7b-hf")
def fingerprint(
    base: Annotated[str, typer.Argument(help="Folder, hub id, or {vision_tower: A, llm: B}.")],
    exact: Annotated[bool, typer.Option("--exact", help="Of every byte, instead of headers and samples.")] = False,
    as_json: Json = False,
) -> None:
    """The digest by which adapters know their base again."""
    digest = api.fingerprint(base, exact)
    if as_json:
        show({"base": base, "exact": exact, "fingerprint": digest})
    else:
        print(digest)


@app.command(epilog="Example: qllava version")
def version(as_json: Json = False) -> None:
    """Versions of qllava and of the packages it stands on."""
    from ..artifact.manifest import versions

    found = {"qllava": __version__, **versions()}
    if as_json:
        show(found)
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))
