"""What all verbs share: the app, their common options, and how a result is printed."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ..console import first_process
from ..errors import UserError

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
    """One JSON document on stdout, of the first process alone where several run."""
    if not first_process():
        return
    sys.stdout.write(json.dumps(document, indent=2, default=str, ensure_ascii=False, allow_nan=False) + "\n")


def numbers(text: str | None) -> list[float] | None:
    """`0.7,0.3` as numbers; None stays None.

    Raises:
        UserError: it is something else.
    """
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is no list of numbers; write them with commas, such as 0.7,0.3.") from None


def named(pairs: list[str] | None) -> dict[str, str]:
    """`["a=runs/a"]` as `{"a": "runs/a"}`.

    Raises:
        UserError: one of them is no such pair.
    """
    found = {}
    for pair in pairs or ():
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise UserError(f"{pair!r} names no adapter; write NAME=PATH.")
        if name in found:
            raise UserError(f"{name!r} is named twice.")
        found[name] = path
    return found
