"""What all verbs share: the app, their common options, and how a result is printed."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="qllava",
    help="Fine-tune LLaVA-1.5 with LoRA and QLoRA, from the first command to the merged model. Start with: qllava demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, such as max_steps=100 or lora.r=64.")]
Base = Annotated[str | None, typer.Option(help="Where an adapter's base lies now, if not where its manifest says.")]


def show(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, default=str, ensure_ascii=False, allow_nan=False) + "\n")
