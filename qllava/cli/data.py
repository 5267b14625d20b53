"""A data set on disk, without a recipe: data verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import api
from ..errors import RunError
from .door import Json, app, show

data = typer.Typer(no_args_is_help=True, help="A data set on disk: whether it is whole, and a mended copy.")
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


@data.callback()
def group() -> None:
    """Keeps `verify` a word of its own while it is the only one."""


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
        raise RunError(f"{file} is not all right; what is wrong with it stands above.")
