"""From a recipe to an artifact: demo, train, plan, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import api
from ..console import note, table
from ..errors import RunError, UserError
from .door import Json, Overrides, app, show


@app.command(epilog="Example: qllava demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """The whole job on a laptop: align, instruct with QLoRA, merge, evaluate; on easy-VQA, in minutes."""
    result = api.demo(out)
    if as_json:
        show(result)


@app.command(epilog="Example: qllava train demo/instruct output_dir=runs/mine learning_rate=1e-4")
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest good checkpoint in output_dir.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs a recipe and leaves its artifact in output_dir/final."""
    result = api.train(recipe, overrides or (), resume)
    if as_json:
        show({k: v for k, v in vars(result).items() if k != "log"})
    note(f"Done: {result.steps} steps in {result.seconds:.0f} s. The artifact is {result.artifact}")


@app.command(epilog="Example: qllava plan llava15-13b/instruct-full --card a100-80 --processes 8")
def plan(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    vram: Annotated[
        str | None, typer.Option(help="Memory of the card, such as 8GB, 12GB, 24GB or 80GB; by default this machine's.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="What the card reaches in a large matrix product; measured here.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Plan for cards of this kind: 3090, a100-40, a100-80, h100; see also --vram.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="One a card, in all nodes together; with --card.")] = 1,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="By default as many as it takes with 8 cards each; with --card.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="ddp, zero2, fsdp2, zero3 or zero3-offload; by default each of them; with --card."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Says before a weight is read what a recipe takes: memory by part, time, disk, and the sizes that fit."""
    if card is not None:
        _plan_across(recipe, overrides, as_json, card, processes, nodes, engine, vram, tflops)
        return
    if processes > 1 or nodes or engine:
        raise UserError("Say which cards the processes have: --card 3090, a100-40, a100-80 or h100.")
    found = api.plan(recipe, overrides or (), vram, tflops)
    if as_json:
        show(found.as_values())
    else:
        from rich.console import Console

        from ..train.plan_text import show_plan

        show_plan(found, Console(highlight=False))
    if found.chosen is None:
        raise RunError(found.remedy)


def _plan_across(recipe: str, overrides: list[str] | None, as_json: bool, *asked: Any) -> None:
    found = api.plan_across(recipe, overrides or (), *asked)
    if as_json:
        show(found.as_values())
    else:
        from rich.console import Console

        from ..train.across_text import show_across

        show_across(found, Console(highlight=False))
    if found.chosen is None:
        raise RunError(f"Nothing fits {found.cluster.title}. {found.engines[-1].why_not}")


@app.command(epilog="Example: qllava recipes llava15-7b/task-qlora --copy-to mine.yaml")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, whole; without a name, list all.")] = None,
    copy_to: Annotated[Path | None, typer.Option(help="Write a copy to start from.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """Lists the shipped recipes, prints one, or copies one out."""
    from ..recipe import Recipe, copy_shipped, list_shipped, load_recipe

    if schema:
        show(Recipe.model_json_schema())
    elif copy_to is not None:
        if name is None:
            raise UserError("Name the recipe to copy; `qllava recipes` lists them.")
        written = copy_shipped(name, copy_to)
        if as_json:
            show({"recipe": written})
        note(f"Written to {written}")
    elif name is not None:
        show(load_recipe(name).model_dump(mode="json"))
    elif as_json:
        show([{"name": r.name, "about": r.about, "path": r.path} for r in list_shipped()])
    else:
        from rich.console import Console

        table("Shipped recipes", ("name", "what it does"), [(r.name, r.about) for r in list_shipped()], Console())
