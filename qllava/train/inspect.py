"""`qllava inspect`: samples as the model gets them, of a recipe or of a file with a tokenizer and a template.

In: a recipe; or data, tokenizer and template. Out: samples one by one, each with its tokens or with what is wrong with it.
No weight is read, and no image until it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from datasets import Dataset

from .. import console
from ..data import show
from ..data.mixture import choose
from ..data.processing import Processing, load_tokenizer, make_template
from ..data.rows import from_columns, rows_of
from ..data.sample import Sample
from ..data.survey import each, survey
from ..data.template import template_for
from ..data.tokens import AfterEos, Encoder, Tokens
from ..errors import UserError
from ..model.inputs import processing_for
from ..recipe.schema import Recipe, Source
from .start import settle_base

Shown = tuple[Sample, Path, Tokens | UserError]  # a sample, its image root, and its tokens or why it has none


@dataclass
class Inspection:
    """Samples and how inputs are made of them."""

    name: str
    tables: list[Dataset]
    chosen: list[list[int]]  # of each table: the rows that are taken, and those that cannot be used
    bad: list[dict[int, str]]  # of each table: rows that cannot be used, and why
    processing: Processing
    max_length: int

    def samples(self, only: str | None = None) -> Iterator[Shown]:
        """Every sample, in the sources' order, or those whose id is `only`.

        Raises:
            UserError: none has that id.
        """
        found = False
        for table, chosen, bad in zip(self.tables, self.chosen, self.bad, strict=True):
            for i, row in zip(chosen, each(table.select(chosen)), strict=True):
                if only is not None and row["id"] != only:
                    continue
                found = True
                sample, root = from_columns(row)
                try:
                    if i in bad:
                        raise UserError(bad[i])
                    yield sample, root, self.processing.tokens(sample, self.max_length, root)
                except UserError as error:
                    yield sample, root, error
        if only is not None and not found:
            raise UserError(f"No sample that is taken has the id {only!r}.")

    def write(
        self, only: str | None = None, limit: int | None = 3, lines: bool = False, ids: bool = False,
        html: Path | None = None, json: bool = False,
    ) -> int:  # fmt: skip
        """Shows samples on stdout, or in a page; returns how many of them cannot be used.

        Args:
            only: the sample with this id alone.
            limit: the first so many; None for all.
            lines: with `json`, one line for each sample instead of one document.
            ids: show ids and labels, too.
            html: a page with pictures, written to this file instead.
            json: records instead of coloured text.
        """
        bad = 0

        def counted() -> Iterator[Shown]:
            nonlocal bad
            for one in islice(self.samples(only), limit):
                bad += isinstance(one[2], UserError)
                yield one

        if html is not None:
            self._page(html, counted())
        elif json:
            self._json(counted(), lines, only is not None)
        else:
            from rich.console import Console

            out = Console(soft_wrap=True, highlight=False)
            for sample, _, tokens in counted():
                if isinstance(tokens, UserError):
                    out.print(console.safe(str(tokens)), style="red", markup=False)
                else:
                    out.print(show.text(sample, tokens, self.processing, ids), end="\n\n")
        return bad

    def _json(self, shown: Iterator[Shown], lines: bool, single: bool) -> None:
        import json

        records = (
            {"id": s.id, "error": str(t)} if isinstance(t, UserError) else show.record(s, t) for s, _, t in shown
        )
        if lines:
            for one in records:
                sys.stdout.write(json.dumps(one, ensure_ascii=False) + "\n")
            return
        every = list(records)
        sys.stdout.write(json.dumps(every[0] if single else every, ensure_ascii=False, indent=2) + "\n")

    def _page(self, file: Path, shown: Iterator[Shown]) -> None:
        try:
            if file.exists() and not file.read_bytes()[:200].decode("utf-8", "replace").startswith(show.PAGE[:15]):
                raise UserError(f"{file} is there already and no page of qllava's; name another file.")
            with file.open("w", encoding="utf-8") as out:
                out.writelines(show.page(self.name, shown, self.processing))
        except OSError as error:
            raise UserError(f"Cannot write {file}: {error}.") from None
        console.note(f"Written to {file}")


def of_recipe(recipe: Recipe) -> Inspection:
    """What the recipe trains on."""
    recipe = settle_base(recipe)
    processing = processing_for(recipe)
    return _inspection(recipe.data, processing, recipe.max_length, recipe.subset, recipe.seed)


def _inspection(
    sources: Sequence[Source], processing: Processing, max_length: int, subset: float = 1.0, seed: int = 0,
    images: bool = True,
) -> Inspection:  # fmt: skip
    """What is taken of the sources; `images` says whether their files have to be there."""
    tables = [rows_of(source) for source in sources]
    bad = [survey(table, processing.template, images) for table in tables]
    good = [[i for i in range(len(t)) if i not in b] for t, b in zip(tables, bad, strict=True)]
    kinds = [[kind[i] for i in g] for kind, g in zip((t["kind"][:] for t in tables), good, strict=True)]
    taken = choose(kinds, sources, subset, seed)
    chosen = [sorted([g[i] for i in n] + list(b)) for g, n, b in zip(good, taken, bad, strict=True)]
    return Inspection(", ".join(Path(s.path).name for s in sources), tables, chosen, bad, processing, max_length)


def of_file(
    data: str, tokenizer: str, template: str, images: str | None = None, max_length: int = 2048, image_tokens: int = 576,
    after_eos: AfterEos = "current",
) -> Inspection:  # fmt: skip
    """A file without a recipe.

    Args:
        data: as a recipe's `path`.
        tokenizer: folder or hub id.
        template: a template's name.
        images: folder that image paths start from, in which they have to be; without it, nobody looks for them.
        max_length: positions after which a sample is cut, an image counted with all its `image_tokens`.

    Raises:
        UserError: there is no such tokenizer or template.
    """
    if after_eos not in get_args(AfterEos):
        raise UserError(f"after_eos is one of {', '.join(get_args(AfterEos))}, not {after_eos!r}.")
    found, model_file = load_tokenizer(tokenizer)
    named = template_for(tokenizer, bool(found.chat_template)) if template == "auto" else template
    processing = Processing(
        encoder=Encoder(found, model_file, after_eos), image_processor=None, template=make_template(named, found),
        image_aspect_ratio="pad", image_tokens=image_tokens, image_token_id=-1, pad_token_id=-1,
    )  # fmt: skip
    root = "." if images is None else str(Path(images).resolve())
    return _inspection((Source(path=data, image_root=root),), processing, max_length, images=images is not None)
