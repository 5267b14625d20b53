"""A data set on disk, without a recipe: data verify, data build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import api
from ..errors import RunError
from .door import Json, app, show

data = typer.Typer(
    no_args_is_help=True, help="A data set on disk: whether it is whole, a mended copy, and one built from raw sets."
)
app.add_typer(data, name="data")

LAYOUT = """The published 665K mix wants these folders under the image root:

coco/train2017: COCO's train2017 images.

gqa/images: GQA's images.

ocr_vqa/images: OCR-VQA's images, by its own download script, each named .jpg. Part of them can no longer be downloaded.

textvqa/train_images: TextVQA's training and validation images.

vg/VG_100K and vg/VG_100K_2: Visual Genome's images, parts 1 and 2.

The 558K captions come with their images: the folders 00000 and on are the image root's own.

Example: qllava data verify playground/data/llava_v1_5_mix665k.json --image-root playground/data --mix llava-665k
"""


@data.command(epilog=LAYOUT)
def verify(
    file: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL.")],
    image_root: Annotated[Path, typer.Option(help="Folder that its image paths start from.")],
    mix: Annotated[str | None, typer.Option(help="llava-665k or llava-558k: what its row counts have to be.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode all pixels; otherwise headers are read.")] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write a JSON with the names of images that have another suffix on disk.")
    ] = None,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out of it rows whose image is missing or cannot be read.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="That share the work; by default one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Compares a data file with what was published and looks at each of its images once.

    Tells rows of each source, images that are missing, have another suffix or cannot be read, and the remedy. Exit code 1: FILE
    is not all right, also where a mended copy was written.
    """
    found = api.verify_data(file, image_root, mix, decode=decode, processes=processes, write=write, drop_missing=drop_missing)  # fmt: skip
    if as_json:
        show(found)
    else:
        from ..data.verdict import lines

        print("\n".join(lines(found)))
    if not found["ok"]:
        more = f" {write} is the mended copy." if write else ""
        raise RunError(f"{file} is not all right; what is wrong with it stands above.{more}")


RAW = """Shipped mixes: llava-665k (the instruction data) and llava-558k (the captions). What each source wants under --raw, and every
rule, is in docs/data.md; a file that is missing is named with what to get.

Example: qllava data build llava-665k --raw raw --out playground/data/mix.json --tokenizer lmsys/vicuna-7b-v1.5

Example: qllava data build mine.yaml --raw raw --out sets --per-set --only vqav2 --only gqa
"""


@data.command(epilog=RAW)
def build(
    mix: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped mix.")],
    raw: Annotated[Path, typer.Option(help="Folder with the raw sets.")],
    out: Annotated[Path, typer.Option(help=".json or .jsonl to write; with --per-set a folder.")],
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn; by default the mix's.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Build this source alone; may be given again.")] = None,
    per_set: Annotated[bool, typer.Option("--per-set", help="Write a file for each source.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id that counts tokens where a source ends after a number of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Builds a LLaVA JSON from raw data sets: VQAv2, GQA, … in their published layouts, or your own.

    Tells rows of each source beside the published counts, and what was left out and why. The same seed writes the same bytes.
    """
    found = api.build_data(mix, raw, out, seed=seed, only=only or (), per_set=per_set, tokenizer=tokenizer)
    if as_json:
        show(found)
    else:
        from ..data.sources.build import lines

        print("\n".join(lines(found)))
