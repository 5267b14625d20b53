"""What a model says: chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import api
from ..errors import UserError
from .door import Base, Json, app, named, show


@app.command(epilog="Example: qllava chat runs/mine --image photo.png --prompt 'What is this?'")
def chat(
    source: Annotated[str, typer.Argument(help="Artifact, run, folder of a Hugging Face LLaVA, or hub id.")],
    image: Annotated[Path | None, typer.Option(help="Image to talk about.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this once and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of one more adapter on the same base, to /use; may come several times."),
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Talk about an image with a base, an adapter or a merged model."""
    if as_json and prompt is None:
        raise UserError("--json answers one --prompt; name it.")
    conversation = api.chat(source, image, base, max_new_tokens, named(adapter))
    if prompt is None:
        from ..serve.chat import talk

        talk(conversation)
    elif as_json:
        show({"prompt": prompt, "image": image, "answer": conversation.ask(prompt)})
    else:
        conversation.ask(prompt, lambda piece: print(piece, end="", flush=True))
        print()
