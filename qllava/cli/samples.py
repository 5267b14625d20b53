"""What a recipe trains on: check, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import api
from ..errors import RunError, UserError
from .door import Json, Overrides, app, show


@app.command(epilog="Example: qllava check demo/instruct")
def check(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    on_bad: Annotated[
        str | None, typer.Option(help="error: bad samples end with exit code 1; drop or report: they are counted.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="That share the work; by default one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Reads all data of a recipe as a run would, before any weight is read: images, turns, lengths, likely mistakes."""
    found = api.check(recipe, [*(overrides or ()), *([f"on_bad={on_bad}"] if on_bad else [])], processes)
    if as_json:
        show(found)
    else:
        from ..data.report import lines

        print("\n".join(lines(found)))
    if found["unusable_sources"]:
        raise RunError(f"No sample of {', '.join(found['unusable_sources'])} can be used.")
    if found["bad"] and found["on_bad"] == "error":
        raise RunError(f"{len(found['bad']):,} samples cannot be used. Mend them, or leave them out with on_bad=drop.")


@app.command(
    epilog="Example: qllava inspect demo/instruct  or: qllava inspect --data mine.json --images photos --tokenizer DIR --template vicuna_v1"
)
def inspect(
    recipe: Annotated[str | None, typer.Argument(help="YAML file, or the name of a shipped recipe.")] = None,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="Without a recipe: LLaVA JSON, JSONL, parquet or folder.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that image paths start from; by default the file's.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of the LLM's tokenizer.")] = None,
    template: Annotated[str | None, typer.Option(help="Name of the template, such as vicuna_v1.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Positions after which a sample is cut; 2048.")] = None,
    image_tokens: Annotated[int | None, typer.Option(min=1, help="Positions that an image takes; 576.")] = None,
    after_eos: Annotated[str | None, typer.Option(help="current, legacy or 4.31; current.")] = None,
    sample: Annotated[str | None, typer.Option(help="Only the sample with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first so many samples.")] = 3,
    every: Annotated[bool, typer.Option("--all", help="All samples; with --json one line each.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Show ids and labels too.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures instead.")] = None,
    as_json: Json = False,
) -> None:
    """Shows samples as the model gets them: what is supervised, where images stand, what is cut."""
    options = {
        "data": data, "images": images, "tokenizer": tokenizer, "template": template, "max_length": max_length,
        "image_tokens": image_tokens, "after_eos": after_eos,
    }  # fmt: skip
    if data is not None and recipe is not None and "=" in recipe:
        raise UserError(f"{recipe} changes a recipe's field, and with --data there is no recipe.")
    shown = api.inspect(recipe, overrides or (), **{k: v for k, v in options.items() if v is not None})
    bad = shown.write(
        only=sample, limit=None if every or sample else limit, lines=every, ids=ids, html=html, json=as_json
    )
    if bad:
        raise RunError(f"{bad:,} of the samples shown cannot be used.")
