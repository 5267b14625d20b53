"""The door: one short function a verb. Each reads its arguments, calls `qllava.api`, and shows what came back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, api
from .console import err, note, table
from .errors import RunError, UserError

app = typer.Typer(
    name="qllava",
    help="Fine-tune LLaVA-1.5 with LoRA and QLoRA, from the first command to the merged model. Start with: qllava demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Base = Annotated[str | None, typer.Option(help="Where an adapter's base lies now, if not where its manifest says.")]


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, default=str, ensure_ascii=False, allow_nan=False) + "\n")


@app.command(epilog="Example: qllava demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """The whole job on a laptop: align, instruct with QLoRA, merge, evaluate; on easy-VQA, in minutes."""
    result = api.demo(out)
    if as_json:
        _print(result)


@app.command(epilog="Example: qllava train demo/instruct output_dir=runs/mine learning_rate=1e-4")
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as max_steps=100 or lora.r=64.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest good checkpoint in output_dir.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs a recipe and leaves its artifact in output_dir/final."""
    result = api.train(recipe, overrides or (), resume)
    if as_json:
        _print({k: v for k, v in vars(result).items() if k != "log"})
    note(f"Done: {result.steps} steps in {result.seconds:.0f} s. The artifact is {result.artifact}")


@app.command(epilog="Example: qllava recipes llava15-7b/task-qlora --copy-to mine.yaml")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, whole; without a name, list all.")] = None,
    copy_to: Annotated[Path | None, typer.Option(help="Write a copy to start from.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """Lists the shipped recipes, prints one, or copies one out."""
    from .recipe import Recipe, copy_shipped, list_shipped, load_recipe

    if schema:
        _print(Recipe.model_json_schema())
    elif copy_to is not None:
        if name is None:
            raise UserError("Name the recipe to copy; `qllava recipes` lists them.")
        written = copy_shipped(name, copy_to)
        if as_json:
            _print({"recipe": written})
        note(f"Written to {written}")
    elif name is not None:
        _print(load_recipe(name).model_dump(mode="json"))
    elif as_json:
        _print([{"name": r.name, "about": r.about, "path": r.path} for r in list_shipped()])
    else:
        from rich.console import Console

        table("Shipped recipes", ("name", "what it does"), [(r.name, r.about) for r in list_shipped()], Console())


@app.command(epilog="Example: qllava merge runs/mine --out runs/mine-merged")
def merge(
    adapter: Annotated[str, typer.Argument(help="Adapter, checkpoint, or the output_dir of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="bf16 (the original weights) or bf16-dequantized (as QLoRA saw them); by default what training saw."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Writes adapter and base as one plain Hugging Face LLaVA that transformers loads without qllava."""
    folder = api.merge(adapter, out, target, dtype, base)
    if as_json:
        _print({"model": folder})
    note(f"Merged into {folder}")


@app.command("eval", epilog="Example: qllava eval runs/mine --data test.json --image-root images")
def evaluate(
    source: Annotated[str, typer.Argument(help="Artifact, run, folder of a Hugging Face LLaVA, or hub id.")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON or JSONL with answers.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from; by default the JSON's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the answers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Exact match of greedy answers on a LLaVA JSON."""
    options = {"out": out, "limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "base": base}
    result = api.evaluate(source, data, image_root, **options)
    if as_json:
        _print(result)
    else:
        print(f"exact match {100 * result['exact_match']:.2f} % ({result['correct']:,} of {result['questions']:,})")


@app.command(epilog="Example: qllava chat runs/mine --image photo.png --prompt 'What is this?'")
def chat(
    source: Annotated[str, typer.Argument(help="Artifact, run, folder of a Hugging Face LLaVA, or hub id.")],
    image: Annotated[Path | None, typer.Option(help="Image to talk about.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this once and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Talk about an image with a base, an adapter or a merged model."""
    if as_json and prompt is None:
        raise UserError("--json answers one --prompt; name it.")
    conversation = api.chat(source, image, base, max_new_tokens)
    if prompt is None:
        from .serve.chat import talk

        talk(conversation)
    elif as_json:
        _print({"prompt": prompt, "image": image, "answer": conversation.ask(prompt)})
    else:
        conversation.ask(prompt, lambda piece: print(piece, end="", flush=True))
        print()


@app.command(
    epilog="Example: qllava assemble --vision-tower openai/clip-vit-large-patch14-336 --llm lmsys/vicuna-7b-v1.5 --out base"
)
def assemble(
    vision_tower: Annotated[str, typer.Option(help="Folder or hub id of a CLIP vision tower, or `embedded`.")],
    llm: Annotated[str, typer.Option(help="Folder or hub id of a Llama-family LLM, or `embedded`.")],
    out: Annotated[Path, typer.Option(help="Folder for the LLaVA.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Joins a vision tower and an LLM by a new projector into one LLaVA."""
    folder = api.assemble(vision_tower, llm, out, dtype=dtype)
    if as_json:
        _print({"model": folder})
    note(f"Assembled into {folder}")


@app.command(epilog="Example: qllava verify runs/mine/final")
def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact, or the output_dir of a run.")], as_json: Json = False
) -> None:
    """Checks every file of an artifact against its manifest."""
    manifest = api.verify(artifact)
    if as_json:
        _print(manifest.model_dump(mode="json", exclude_none=True))
    else:
        print(f"{artifact}: {manifest.kind}, {len(manifest.files)} files, all as they were written")


@app.command(epilog="Example: qllava version")
def version(as_json: Json = False) -> None:
    """Versions of qllava and of the packages it stands on."""
    from .artifact.manifest import versions

    found = {"qllava": __version__, **versions()}
    if as_json:
        _print(found)
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))


def quiet() -> None:
    """Keeps the libraries' own notices off the terminal; set QLLAVA_VERBOSE to see them."""
    if os.environ.get("QLLAVA_VERBOSE"):
        return
    import logging
    import warnings

    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_NO_TQDM": "1", "TQDM_DISABLE": "1",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    for name in ("bitsandbytes", "accelerate", "trl", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0 done, 1 what was run or checked failed, 2 the command or its input is wrong."""
    quiet()
    try:
        app(args=arguments, standalone_mode=True)
    except UserError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except OSError as error:
        _fail(f"The system refused: {error}", 1)
    except KeyboardInterrupt:
        _fail("Interrupted.", 1)


def _fail(error: object, code: int) -> None:
    message = str(error)
    if "Original Traceback" in message:  # raised in a worker of the data loader, which wraps it
        message = message.rsplit("Error: ", 1)[-1].strip()
    err.print(f"Error: {message}", markup=False, style="red", soft_wrap=True)
    sys.exit(code)
