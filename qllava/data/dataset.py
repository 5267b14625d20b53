"""A recipe's sources to a `datasets.Dataset` that decodes images and encodes text only when a row is asked for.

In: the recipe's sources. Out: a dataset whose rows are features of `Processing.sample`, and what was left out. Every row is
parsed, and every image's file looked up, before the first is used, so that a run does not die of a bad row in its tenth hour.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from .. import console
from ..errors import UserError
from ..recipe.schema import Recipe, Source
from .mixture import choose
from .once import for_launch
from .processing import Processing
from .rows import from_columns, rows_of
from .survey import each, survey
from .tokens import IGNORE

FILLER = ""  # the place of a row that is none


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used."""

    source: str
    where: str  # file and number
    id: str
    reason: str


@dataclass
class Selection:
    """The samples of a run."""

    rows: Dataset  # as `rows.columns` makes them
    dropped: list[Bad] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)  # of each source
    digest: str = ""  # of what was chosen, in its order: by it a resumed run knows its data again


def named(source: Source, table: Dataset, bad: Mapping[int, str]) -> list[Bad]:
    """The rows of these numbers, each with what is wrong with it."""
    numbers = sorted(bad)
    rows = each(table.select(numbers)) if numbers else ()
    return [Bad(source.path, row["where"], row["id"], bad[i]) for i, row in zip(numbers, rows, strict=True)]


def without(table: Dataset, bad: Mapping[int, str]) -> Dataset:
    """The table's other rows."""
    return table.select([i for i in range(len(table)) if i not in bad]) if bad else table


def refuse(bad: Sequence[Bad]) -> None:
    """Raises `UserError` that names the first bad samples, if there is one."""
    if bad:
        shown = "\n".join(f"  - {b.reason}" for b in bad[:5])
        more = f"\n  - and {len(bad) - 5:,} more; `qllava check` lists them all." if len(bad) > 5 else ""
        raise UserError(
            f"{len(bad):,} sample{'s' * (len(bad) > 1)} cannot be used:\n{shown}{more}\n"
            "Mend the data, or leave such samples out with on_bad=drop."
        )


def select(recipe: Recipe, processing: Processing) -> Selection:
    """The samples that the recipe takes of its sources, in the sources' order.

    With `on_bad: drop` or `report`, everything is decoded and encoded once before, so that nothing bad is met later.

    Raises:
        UserError: a source cannot be read, a sample is bad and `on_bad` is `error`, or nothing is left.
    """
    tables = [rows_of(source) for source in recipe.data]
    dropped: list[Bad] = []
    found = for_launch(
        lambda: [list(_bad(recipe, processing, *pair).items()) for pair in zip(recipe.data, tables, strict=True)]
    )
    for i, (source, table) in enumerate(zip(recipe.data, tables, strict=True)):
        bad = dict(found[i])
        dropped += named(source, table, bad)
        tables[i] = without(table, bad)
    if recipe.on_bad == "error":
        refuse(dropped)
    elif dropped:
        console.note(f"{len(dropped):,} samples cannot be used and are left out; the artifact lists them.")
        if recipe.on_bad == "report":
            for one in dropped:
                console.note(f"  - {one.reason}")
    for source, table in zip(recipe.data, tables, strict=True):
        if not len(table):
            raise UserError(f"No sample of {source.path} can be used.")
    if recipe.pairing == "turns":
        from .pairing import join_turns

        tables = [join_turns(t, s.path) for t, s in zip(tables, recipe.data, strict=True)]
    return mix(tables, recipe.data, recipe.subset, recipe.seed, dropped)


def _bad(recipe: Recipe, processing: Processing, source: Source, table: Dataset) -> dict[int, str]:
    """Rows of the source that cannot be used, and why."""
    if recipe.on_bad == "error":
        return survey(table, processing.template)
    from .audit import audit

    return audit(table, processing, recipe.max_length, title=source.path).bad


def mix(
    tables: Sequence[Dataset], sources: Sequence[Source], subset: float, seed: int, dropped: list[Bad]
) -> Selection:
    """What `mixture.choose` takes of the tables, as one dataset."""
    taken = choose([t["kind"][:] for t in tables], sources, subset, seed)
    if all(len(t) == len(n) and n == list(range(len(t))) for t, n in zip(tables, taken, strict=True)):
        chosen = list(tables)
    else:
        chosen = [t.select(n) for t, n in zip(tables, taken, strict=True)]
    rows = concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]
    return Selection(rows, dropped, [len(n) for n in taken], digest(rows))


def hold_out(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """The rows without, and with only, a random share of the samples; a sample taken twice stays on one side.

    Raises:
        UserError: one of the two would be empty.
    """
    if not share:
        return rows, None
    places = rows["where"][:]
    different = sorted(set(places))
    held = set(random.Random(f"held out:{seed}").sample(different, max(1, round(len(different) * share))))
    inside = [i for i, place in enumerate(places) if place in held]
    outside = [i for i, place in enumerate(places) if place not in held]
    if not outside:
        raise UserError(f"With {len(different)} samples, eval_share {share:g} leaves none to train on.")
    return rows.select(outside), rows.select(inside)


def digest(rows: Dataset) -> str:
    """A digest of the rows in their order: ids, words, and the lengths of all texts."""
    found = hashlib.sha256()
    for batch in rows.select_columns(["id", "words", "turns"]).with_format("arrow").iter(batch_size=10_000):
        texts = pc.struct_field(pc.list_flatten(batch["turns"]), "text")
        for column in (batch["id"], batch["words"], pc.binary_length(texts)):
            found.update(json.dumps(column.to_pylist()).encode())
    return found.hexdigest()[:20]


def features(batch: dict[str, list], processing: Processing, max_length: int) -> dict[str, list]:
    """The transform of `training_set`: columns of a batch to features of a batch. Images that rows share are decoded once."""
    made, known = [], {}
    for i in range(len(batch["id"])):
        if batch["where"][i] == FILLER:
            made.append({"input_ids": [processing.encoder.bos or 0] * 2, "labels": [IGNORE] * 2})
            continue
        sample, root = from_columns({k: v[i] for k, v in batch.items()})
        key = (str(root), sample.images) if sample.images else None
        try:
            tokens = processing.tokens(sample, max_length, root)
            if key is not None and key not in known:
                known[key] = processing.images(sample.images, root)
            if (
                key is not None
                and processing.tiling is not None
                and tuple(processing.counts(known[key])) != tokens.counts
            ):
                raise UserError("an image's header tells another size than the image has; save it anew")
        except UserError as error:
            raise UserError(f"{batch['where'][i]} (id {sample.id!r}): {error}") from None
        made.append({"input_ids": tokens.ids, "labels": tokens.labels, "images_key": key} | known.get(key, {}))
    columns = ["input_ids", "labels", "images_key", *processing.image_names]
    return {name: [row.get(name) for row in made] for name in columns}


def numbered(paths: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values by path; a path that comes again gets a number."""
    found: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        name, count = path, 1
        while name in found:
            count += 1
            name = f"{path} ({count})"
        found[name] = value
    return found


def training_set(rows: Dataset, processing: Processing, max_length: int, multiple: int = 1) -> Dataset:
    """The rows of a `Selection`, turned into features when they are read.

    Args:
        multiple: of which the number of rows is to be one: rows of nothing that is supervised follow, so that several
            processes share the last batch without repeating a sample.
    """
    missing = -len(rows) % multiple
    if missing:
        blank = {**rows[0], "where": FILLER, "images": [], "turns": [{**rows[0]["turns"][0], "images": 0}], "words": 0}
        rows = concatenate_datasets([rows, Dataset.from_list([blank] * missing, features=rows.features)])
    return rows.with_transform(functools.partial(features, processing=processing, max_length=max_length))
