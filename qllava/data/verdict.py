"""What `verify` found, in words: what is wrong with the remedy, what is worth knowing, and lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import console
from .published import COVERS, MIXES, Mix, Part

STATES = ("missing", "renamed", "damaged", "mistitled")  # of images, beside fine
SHOWN = 3  # examples of anything


def troubles(sources: dict, examples: dict, malformed: list[str], root: Path, mix: Mix | None) -> list[str]:
    """What is wrong, with the remedy."""
    said = []
    if malformed:
        said.append(f"rows that are no samples: {len(malformed):,} ({' '.join(malformed[:SHOWN])}) Mend them by hand.")
    for name, counts in sources.items():
        shown = examples[name]
        if mix and counts["rows"] != counts["published"]:
            said.append(
                f"{name}: {counts['rows']:,} rows, and the published {mix.title} has {counts['published']:,}: another "
                "file, or one that was cut or changed. Get it anew, or leave --mix away for a mix of your own."
            )
        part = mix.parts.get(name) if mix else None
        for folder in part.folders if part else ():
            if not (root / folder).is_dir():
                said.append(f"{name}: there is no folder {root / folder}. It holds {part.get}.")
        if counts["missing"]:
            said.append(
                f"{name}: missing images: {counts['missing']:,} ({_some(shown['missing'])}). {_get(name, part)}"
            )
        if counts["renamed"]:
            said.append(
                f"{name}: images with another suffix on disk: {counts['renamed']:,} ({_some(shown['renamed'], ' as ')}). "
                "Rename the files (a GIF may be called .jpg, its content tells), or write a JSON with their names by "
                "--write FIXED.json."
            )
        if counts["damaged"]:
            said.append(
                f"{name}: images that cannot be read: {counts['damaged']:,} ({' '.join(w for _, w in shown['damaged'])}) Get them "
                "anew, or leave their rows out: --write FIXED.json --drop-missing."
            )
    return said


def _get(name: str, part: Part | None) -> str:
    leave = "leave their rows out: --write FIXED.json --drop-missing."
    if name == COVERS:
        return (
            "Part of OCR-VQA's covers can no longer be downloaded: take them from a copy that somebody made in time, or "
            + leave
        )
    return f"Get {part.get if part and part.get else 'them'}, or {leave}"


def notes(sources: dict, doubled: int, mix: Mix | None) -> list[str]:
    """What a user may want to know, though nothing is wrong."""
    said = []
    for name, counts in sources.items():
        if counts["mistitled"]:
            said.append(
                f"{name}: images of another format than their suffix says: {counts['mistitled']:,}; they are read by "
                "their content."
            )
    if doubled:
        said.append(f"ids that stand more than once: {doubled:,}, as happens where several sources share an image.")
    if mix is None:
        said.append(f"Row counts were compared with nothing; --mix {' or '.join(MIXES)} names what was published.")
    return said


def _some(pairs: list[tuple[str, str]], between: str = "") -> str:
    return ", ".join(p + (f"{between}{Path(s).name}" if between else "") for p, s in pairs)


def lines(document: dict[str, Any]) -> list[str]:
    """The table of sources goes to stderr; the rest as lines."""
    columns = ("rows", "published", "images", *STATES, "rows_without_image")
    rows = [(n, *("" if c[k] is None else c[k] for k in columns)) for n, c in document["sources"].items()]
    console.table(f"{document['file']}", ("source", *(c.replace("_", " ") for c in columns)), rows)
    out = [f"Wrong: {t}" for t in document["troubles"]] + [f"Note: {n}" for n in document["notes"]]
    if written := document.get("written"):
        out.append(
            f"{written['file']}: {written['rows']:,} rows, {written['mended']:,} with mended names; {written['dropped']:,} left out."
        )
    verdict = "all right" if document["ok"] else "not all right"
    depth = "decoded" if document["decoded"] else "by their headers"
    out.append(
        f"{document['rows']:,} rows and {document['images']:,} images ({depth}): {verdict}, {document['seconds']:.1f} s"
    )
    return [console.safe(line) for line in out]
