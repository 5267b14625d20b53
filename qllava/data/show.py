"""`qllava inspect`: a sample as the model gets it. In: a sample and how inputs are made. Out: a record, coloured text, a page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import console
from ..errors import UserError
from .image import read_image
from .processing import Processing
from .sample import Sample
from .tokens import IGNORE, IMAGE, Tokens

EDGE = 240  # pixels, of a picture on the page


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind."""

    kind: str  # "supervised", "context" or "image"
    text: str
    ids: tuple[int, ...]


def record(sample: Sample, tokens: Tokens) -> dict[str, Any]:
    """One line of `qllava inspect --all --json`: an image is a single -200; `supervised` counts tokens with a label."""
    return {
        "id": sample.id,
        "input_ids": tokens.ids,
        "labels": tokens.labels,
        "images": [i if isinstance(i, str) else f"<{len(i)} bytes>" for i in sample.images],
        "supervised": tokens.supervised,
        "truncated": tokens.truncated,
    }


def spans(tokens: Tokens, processing: Processing) -> Iterator[Span]:
    """The tokens in runs of one kind, with the text that they stand for."""

    def kind(pair: tuple[int, int]) -> str:
        return "image" if pair[0] == IMAGE else "context" if pair[1] == IGNORE else "supervised"

    tokenizer, counts = processing.encoder.tokenizer, iter(tokens.counts)
    for name, run in groupby(zip(tokens.ids, tokens.labels, strict=True), kind):
        ids = tuple(i for i, _ in run)
        if name == "image":
            for _ in ids:
                yield Span(name, f"<image: {next(counts)} tokens>", (IMAGE,))
            continue
        yield Span(name, "".join(written(tokenizer, ids)), ids)


def written(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """The characters of ids, every space and special token as it stands; bytes that make up no character as `<0x..>`."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    if any(
        "▁" in t or (t.startswith("<0x") and len(t) == 6)
        for t in tokenizer.convert_ids_to_tokens(range(min(600, len(tokenizer))))
    ):
        for is_byte, run in groupby(tokens, lambda t: len(t) == 6 and t.startswith("<0x") and t.endswith(">")):
            if is_byte:
                yield bytes(int(t[3:5], 16) for t in run).decode("utf-8", "backslashreplace")
            else:
                yield "".join(run).replace("▁", " ")
        return
    yield tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def text(sample: Sample, tokens: Tokens, processing: Processing, with_ids: bool = False) -> Any:
    """The sample as a `rich.text.Text`: supervised tokens green, images blue, the rest plain."""
    from rich.text import Text

    styles = {"supervised": "bold green", "context": "", "image": "bold blue"}
    out = Text(console.safe(sample.id), style="bold")
    cut = ", truncated" if tokens.truncated else ""
    out.append(f"  {tokens.length} tokens, {tokens.supervised} supervised{cut}\n", style="dim")
    for span in spans(tokens, processing):
        out.append(console.safe(span.text), style=styles[span.kind])
    if with_ids:
        out.append("\nids    ", style="dim").append(" ".join(map(str, tokens.ids)))
        out.append("\nlabels ", style="dim").append(" ".join(map(str, tokens.labels)))
    return out


PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}}
article{{border-top:1px solid #ccc;padding:1rem 0}}h2{{font-size:1rem;margin:0 0 .5rem}}small{{color:#666;font-weight:normal}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.7rem;margin:0}}img{{margin:0 .5rem .5rem 0}}
.supervised{{background:#c9efcb}}.image{{background:#cfe0fb}}.bad{{color:#a00}}</style>
<h1>{title}</h1><p><span class="supervised">Supervised</span> tokens have a label; <span class="image">images</span> are one
placeholder here and many tokens in the model; everything else is context.</p>
"""


def page(
    title: str, samples: Iterable[tuple[Sample, Path, Tokens | UserError]], processing: Processing
) -> Iterator[str]:
    """A page with pictures, complete in itself, in pieces."""
    yield PAGE.format(title=html.escape(title))
    for sample, root, tokens in samples:
        if isinstance(tokens, UserError):
            yield f'<article><h2>{html.escape(sample.id)}</h2><p class="bad">{html.escape(str(tokens))}</p></article>\n'
            continue
        cut = ", truncated" if tokens.truncated else ""
        about = f"{len(tokens.ids)} ids, {tokens.supervised} supervised{cut}"
        body = "".join(
            f'<span class="{s.kind}" title="{html.escape(" ".join(map(str, s.ids[:200])))}">{html.escape(s.text)}</span>'
            for s in spans(tokens, processing)
        )
        pictures = "".join(_picture(ref, root, processing) for ref in sample.images)
        yield f"<article><h2>{html.escape(sample.id)} <small>{about}</small></h2>{pictures}<pre>{body}</pre></article>\n"


def _picture(ref: str | bytes, root: Path, processing: Processing) -> str:
    try:
        image = read_image(ref, root, processing.exif)
    except UserError as error:
        return f'<p class="bad">{html.escape(str(error))}</p>'
    image.thumbnail((EDGE, EDGE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    name = ref if isinstance(ref, str) else ""
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
