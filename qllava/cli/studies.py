"""Runs that differ in one thing: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import api
from ..console import first_process, note, table
from ..errors import UserError
from .door import Json, app, show


@app.command(epilog="Example: qllava ablate demo-shares --out runs/shares")
def ablate(
    study: Annotated[str | None, typer.Argument(help="YAML file, or the name of a shipped study.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs and their table; by default runs/ablate/STUDY.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="This arm alone; may come several times.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Instead of the study's own: a number of them, or such as 1,2,3.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="So many runs at a time.")] = 1,
    launcher: Annotated[
        str | None,
        typer.Option(help="What starts a run instead of this Python, such as 'torchrun --nproc-per-node 8'."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, check the recipes, run nothing.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the shipped studies.")] = False,
    as_json: Json = False,
) -> None:
    """Runs recipes that differ in one thing, over seeds, and writes one table and one chart of how they came out.

    The same command again goes on where an earlier one was cut off. Exit code 1: a run failed; the others are in the table.
    """
    if listed or study is None:
        if not listed:
            raise UserError("Name a study; `qllava ablate --list` lists those that are shipped.")
        _list(as_json)
        return
    options = {"only": only or (), "seeds": _seeds(seeds, study), "launcher": launcher}
    if dry_run:
        found = api.try_study(study, out, **options)
        if as_json:
            show(found)
        else:
            for run in found["runs"]:
                state = "done" if run["done"] else run.get("check")
                print(f"# {run['name']}" + (f": {state}" if state else "") + f"\n{run['command']}")
        return
    document = api.ablate(study, out, jobs=jobs, **options)
    if as_json:
        show(document)
    elif first_process():
        from ..ablate.run import place_of
        from ..ablate.write import rows

        for evaluation in document["evaluations"]:
            head, cells = rows(document, evaluation["name"])[0]
            table(evaluation["title"], head, cells)
        note(f"The table, the chart and the page are in {place_of(study, out)}.")


def _list(as_json: bool) -> None:
    from ..ablate.study import list_studies

    found = list_studies()
    if as_json:
        show([{"name": name, "about": about, "path": path} for name, path, about in found])
    else:
        from rich.console import Console

        table("Shipped studies", ("name", "what it compares"), [(n, about) for n, _, about in found], Console())


def _seeds(text: str | None, study: str) -> list[int] | None:
    """`2` is the study's first two (counted on from its last where it has fewer), `4,5` are those."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes a number of seeds, or such as 1,2,3, not {text!r}.") from None
    if min(numbers) < (1 if len(numbers) == 1 and "," not in text else 0) or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds takes a number of seeds, or different ones such as 1,2,3, not {text!r}.")
    if "," in text:
        return numbers
    from ..ablate.study import load_study

    own = list(load_study(study).seeds)
    return (own + [max(own) + 1 + i for i in range(numbers[0])])[: numbers[0]]
