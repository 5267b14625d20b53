"""`qllava data verify`: whether a LLaVA JSON and its images are all there, before anything is trained on them.

In: a JSON and the folder that its image paths start from. Out: one document: rows of each source beside the published ones,
images that are missing, have another suffix or cannot be read, and what to do. Each image is looked at once.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from os.path import isfile, join
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from .. import console
from ..errors import UserError
from ..recipe.schema import Source
from .cores import CHUNK, cores, spread
from .image import look_at, resolve
from .mixture import kind_of
from .once import stamp_of, unchanged
from .published import MIXES, Mix
from .rows import inside, rows_of
from .survey import each
from .verdict import SHOWN, STATES, notes, troubles

SUFFIXES = (".jpg", ".gif", ".png", ".jpeg", ".webp", ".bmp")  # that downloads and conversions leave
TRIED = tuple(s for suffix in SUFFIXES for s in (suffix, suffix.upper()))
MEANT = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP",
}  # fmt: skip  # what Pillow calls a file's content, by its suffix


def verify(
    path: Path, root: Path, mix: str | None = None, decode: bool = False, processes: int | None = None,
    write: Path | None = None, drop_missing: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Everything about the file and its images, as `--json` prints it; `ok` says whether all is right.

    Args:
        path: a LLaVA JSON or JSONL.
        root: the folder that image paths start from.
        mix: a name of `published.MIXES` whose counts the file has to have.
        decode: whether all pixels are decoded; otherwise only headers are read.
        processes: that share the work; by default one a core.
        write: where a file goes in which names with another suffix are mended.
        drop_missing: leave out of it the rows whose images are missing or cannot be read.

    Raises:
        UserError: a path or the mix's name is wrong, or the file changes while it is read.
    """
    from .mend import can_write, mend

    if mix is not None and mix not in MIXES:
        raise UserError(f"There is no published mix {mix!r}. There are: {', '.join(MIXES)}.")
    if not path.is_file():
        raise UserError(f"No data file at {path}.")
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"{path} is no LLaVA JSON or JSONL by its suffix; other sources are checked by qllava check.")
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; --image-root names the one that the image paths start from.")
    if drop_missing and write is None:
        raise UserError("--drop-missing leaves rows out of the file that --write names; add --write FIXED.json.")
    if write is not None:
        can_write(write, path)
    started, root = time.perf_counter(), root.resolve()
    with unchanged([path], stamp_of([path]), str(path)):
        table = rows_of(Source(path=str(path), image_root=str(root)))
        found = _survey(table, root, decode, processes or cores())
        document = _document(table, root, found, MIXES.get(mix or ""))
        if write is not None:
            lost = {*found["missing"], *found["damaged"]} if drop_missing else set()
            document["written"] = mend(path, write, found["renamed"], lost)
    head = {"file": str(path), "image_root": str(root), "mix": mix, "decoded": decode}
    return {**head, **document, "seconds": round(time.perf_counter() - started, 1)}


def _survey(table: Dataset, root: Path, decode: bool, processes: int) -> dict[str, dict[str, str]]:
    """For each of `STATES` the images in it, each with what is to be said: where it is, why not, or what it is. `fine` has
    the others."""
    paths = pc.unique(pc.struct_field(pc.list_flatten(table.data["images"]), "path")).to_pylist()
    found: dict[str, dict[str, str]] = {state: {} for state in (*STATES, "fine")}
    found["fine"] = dict.fromkeys(paths, "")
    with console.progress("Images", len(paths)) as advance:
        for wrong in spread(partial(_look, paths, root, decode), len(paths), processes):
            for i, state, said in wrong:
                found[state][paths[i]] = said
                found["fine"].pop(paths[i])
            advance(CHUNK)
    return found


def _look(paths: list[str], root: Path, decode: bool, stretch: range) -> list[tuple[int, str, str]]:
    """Numbers of the stretch's images that are not fine, with their state and what is to be said of it."""
    wrong = []
    for i in stretch:
        try:
            form, _ = look_at(paths[i], root, decode=decode)
        except UserError as error:
            wrong.append((i, *_why(paths[i], root, str(error))))
            continue
        meant = MEANT.get(Path(paths[i]).suffix.lower())
        if meant is not None and meant != ("JPEG" if form == "MPO" else form):
            wrong.append((i, "mistitled", form))
    return wrong


def _why(path: str, root: Path, error: str) -> tuple[str, str]:
    """State of an image that cannot be had, and what is to be said of it."""
    if isfile(join(root, path)):  # noqa: PTH113, PTH118  # Path's own raise for a path that is too long
        return "damaged", error
    stem = path.removesuffix(Path(path).suffix)
    for other in (stem + suffix for suffix in TRIED):
        if isfile(join(root, other)):  # noqa: PTH113, PTH118
            try:
                look_at(other, root, decode=False)
            except UserError:
                continue
            return "renamed", other
    try:
        resolve(path, root)
    except UserError as why:
        return "missing", str(why)
    return "missing", error


def _document(table: Dataset, root: Path, found: dict[str, dict[str, str]], mix: Mix | None) -> dict[str, Any]:
    """What was found, counted by source."""

    def part(kind: str) -> str:
        return mix.part_of(kind) if mix else kind

    rows, without, images = Counter(), Counter(), {state: Counter() for state in found}
    for state, paths in found.items():
        for path in paths:
            images[state][part(kind_of(inside(path, str(root))))] += 1
    lost = found["missing"].keys() | found["damaged"].keys() | found["renamed"].keys()
    ids, doubled, malformed = set(), set(), []
    for row in each(table.select_columns(["id", "kind", "images", "error"])):
        (doubled if row["id"] in ids else ids).add(row["id"])
        if row["error"]:
            malformed.append(row["error"])
            continue
        name = part(row["kind"])
        rows[name] += 1
        without[name] += any(image["path"] in lost for image in row["images"])
    names = [*(mix.parts if mix else ()), *(n for n, _ in rows.most_common() if not mix or n not in mix.parts)]
    sources = {
        name: {
            "rows": rows[name],
            "published": (mix.parts[name].rows if name in mix.parts else 0) if mix else None,
            "images": sum(count[name] for count in images.values()),
            **{state: images[state][name] for state in STATES},
            "rows_without_image": without[name],
        }
        for name in names
    }
    examples = {
        name: {
            state: [(p, said) for p, said in found[state].items() if part(kind_of(inside(p, str(root)))) == name][
                :SHOWN
            ]
            for state in STATES
            if images[state][name]
        }
        for name in names
    }
    wrong = troubles(sources, examples, malformed, root, mix)
    return {
        "rows": len(table),
        "published": mix.rows if mix else None,
        "images": sum(map(len, found.values())),
        "sources": sources,
        "ok": not wrong,
        "troubles": wrong,
        "notes": notes(sources, len(doubled), mix),
        "malformed": malformed,
        "duplicate_ids": len(doubled),
        **{state: found[state] if state != "missing" else list(found[state]) for state in STATES},
    }
