"""`qllava eval --benchmark`: a model's answers to the paper's questions, and what is made of them.

In: a model, the folder of the evaluation data. Out: for each benchmark a folder with `answers.jsonl`, the submission, and
`result.json`, which the scoreboard reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import console
from ..artifact.load import Loaded, find_artifact, load
from ..artifact.manifest import FILE as MANIFEST
from ..artifact.manifest import digest
from ..errors import UserError
from ..model.fingerprint import fingerprint
from .benchmarks import named
from .benchmarks.base import Benchmark, questions_of
from .generate import vision_dtype
from .question import Question
from .results import conclude
from .runner import answer, meet, together


def run_benchmarks(
    source: str | Path,
    names: Sequence[str],
    root: str | Path,
    out: str | Path | None = None,
    base: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
) -> dict[str, dict[str, Any]]:
    """A model's answers to the benchmarks' questions, greedy, scored where the score is made here.

    Args:
        names: of benchmarks, or `all`, or `present`: those whose data is under `root`; it says what keeps it from the others.
        root: folder of the evaluation data, in the layout of LLaVA's `playground/data/eval` or with hub data sets in it.
        out: folder for the results, one folder a benchmark in it; by default `runs/eval/` and the source's name.
        limit: ask only the first so many questions of each, to try it: nothing is scored or written for a server then.
        dtype: that the model computes in. Answers of batches are those of single questions in float32; in 16 bits the
            rounding of a larger batch can turn a near tie.

    Returns:
        By benchmark, what `result.json` holds.

    Raises:
        UserError: a name, the data or the model is wrong; nothing was asked then.
    """
    if (limit is not None and limit < 1) or batch_size < 1:
        raise UserError("limit and batch_size are numbers above 0.")
    chosen = named(names)
    root, folder = Path(root), place_of(source, out)
    asked = _questions(chosen, root, limit, "present" in names)  # all data is read before the model is
    loaded = as_original(load(source, base, dtype))
    settings = {
        "model": str(source),
        "base": base,
        "weights": identity(source, loaded),
        "dtype": str(vision_dtype(loaded.model)),
        "limit": limit,
    }
    results, failures = {}, []
    with together() as (rank, world):
        for b in (b for b in chosen if b.name in asked):
            place = folder / (b.name if limit is None else f"{b.name}-first-{limit}")
            done = answer(
                loaded, asked[b.name], place, settings | {"benchmark": b.name}, b.max_new_tokens, batch_size, b.title
            )
            results[b.name] = about = {
                "batch_size": batch_size, "seconds": round(done.seconds, 1), "asked_now": done.asked, "processes": world,
                "questions_per_second": None if done.rate is None else round(done.rate, 2),
            }  # fmt: skip
            if rank == 0:
                try:
                    results[b.name] = conclude(
                        b, root, asked[b.name], done.texts, place, {**settings, **about}, limit is None
                    )
                except UserError as error:  # the other benchmarks' answers are worth having
                    failures.append(f"{b.title}: {error} Its answers are kept in {place}.")
            meet(world)
    if failures:
        raise UserError("\n".join(failures))
    return results


def place_of(source: str | Path, out: str | Path | None) -> Path:
    """The folder of a model's results: `out`, or by default one under `runs/eval/`."""
    return Path(out) if out else Path("runs/eval") / source_name(source)


def _questions(chosen: Sequence[Benchmark], root: Path, limit: int | None, present: bool) -> dict[str, list[Question]]:
    """Of each benchmark, by name; what is missing is an error that names all of it, or with `present` a note."""
    asked, missing = {}, []
    for b in chosen:
        try:
            found = questions_of(b, root)[:limit]
            if b.needs is not None and limit is None:
                b.needs(root)
            asked[b.name] = found
        except UserError as error:
            missing.append(f"{b.title}: {error}" if len(chosen) > 1 else str(error))
    if missing and not (present and asked):
        raise UserError("\n".join(missing))
    for reason in missing:
        console.note(f"Left out: {reason}")
    return asked


def as_original(loaded: Loaded) -> Loaded:
    """The model with images as the original opens them: not turned as their EXIF says, which VizWiz's phone pictures have."""
    return replace(loaded, processing=replace(loaded.processing, exif=False))


def source_name(source: str | Path) -> str:
    """What a model's results are filed under: its run's or folder's name, or its hub id with `--` for the slash."""
    folder = Path(source)
    if folder.exists():
        folder = folder.resolve()
        return folder.parent.name if folder.name == "final" else folder.name
    return str(source).replace("/", "--")


def identity(source: str | Path, loaded: Loaded) -> str | None:
    """A digest that changes with the weights: of the artifact's manifest, or of the weight files; None where neither is."""
    folder = find_artifact(source) if loaded.manifest is not None else None
    if folder is not None:
        return digest(folder / MANIFEST)[:16]
    try:
        return fingerprint([str(source)])[:16]
    except UserError:
        return None
