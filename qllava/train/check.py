"""`qllava check`: what a run would meet, before any weight is read.

In: a recipe. Out: one document: samples that cannot be used, token lengths, what is supervised, likely mistakes, disk needed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.audit import Audit, audit
from ..data.dataset import Bad, mix, named, without
from ..data.report import summary
from ..data.rows import rows_of
from ..errors import UserError
from ..model.base import config_of
from ..model.inputs import processing_for
from ..model.llms import check_rows
from ..model.size import disk_needed
from ..recipe.schema import Recipe
from .start import check_projector, settle_base


def check(recipe: Recipe, processes: int | None = None) -> dict[str, Any]:
    """The whole report; see `data.report.summary`, and `disk` beside it.

    Args:
        processes: that share the work; by default one a core.

    Raises:
        UserError: a source or the base's tokenizer cannot be read.
    """
    recipe = settle_base(recipe)
    processing = processing_for(recipe)
    check_rows(config_of(recipe.base), recipe.max_length, recipe.packing)
    if recipe.projector is not None and Path(recipe.projector).exists():  # else stage align is yet to run
        check_projector(recipe)
    audits: dict[str, Audit] = {}
    bad: list[Bad] = []
    tables = []
    for source in recipe.data:
        table = rows_of(source)
        found = audit(table, processing, recipe.max_length, processes, Path(source.path).name)
        audits[source.path if source.path not in audits else f"{source.path} ({len(audits) + 1})"] = found
        bad += named(source, table, found.bad)
        tables.append(without(table, found.bad))
    taken, unusable = [0] * len(tables), [s.path for s, t in zip(recipe.data, tables, strict=True) if not len(t)]
    if not unusable:
        taken = mix(tables, recipe.data, recipe.subset, recipe.seed, bad).taken
    report = summary(audits, bad, taken, recipe.max_length)
    report["on_bad"] = recipe.on_bad
    report["unusable_sources"] = unusable
    report["bad_by_source"] = dict(Counter(b.source for b in bad))
    try:
        report["disk"] = disk_needed(recipe)
    except UserError as error:
        report["warnings"].append(f"The disk needed is unknown: {error}")
        return report
    out = Path(recipe.output_dir).resolve()
    free = report["disk"]["free"] = shutil.disk_usage(next(p for p in (out, *out.parents) if p.exists())).free
    if free < report["disk"]["bytes"]:
        report["warnings"].append(
            f"{recipe.output_dir} has {free / 2**30:.1f} GiB free and the run may need {report['disk']['bytes'] / 2**30:.1f}."
        )
    return report
