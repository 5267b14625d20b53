"""`qllava check`: everything that a run would meet in its data, met before it.

In: rows of a source and how inputs are made. Out: which rows cannot be used and why, token lengths, what is supervised, and
what looks like a mistake. Images are decoded once each, by several processes; none is kept.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from .. import console
from ..errors import UserError
from .cores import CHUNK, cores, spread
from .image import Ref, check_image
from .processing import Processing
from .rows import from_columns
from .sample import PLACEHOLDER, Sample
from .survey import each, survey

# The response-format prompts of LLaVA-1.5's mix and of its evaluation (paper, tables 7 and 8).
FORMAT_PROMPTS = re.compile(
    r"single word or phrase|option's letter|one-sentence caption|short description for this region|"
    r"bounding box coordinate of the region|respond with 'Unanswerable'|in one word|yes or no|briefly|short answer",
    re.IGNORECASE,
)
SHORT_WORDS = 3  # an answer of at most so many words is short
BINS = (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096)


@dataclass
class Audit:
    """What was found in a source, or in several together."""

    samples: int = 0
    text_only: int = 0
    images: int = 0  # different files
    bad: dict[int, str] = field(default_factory=dict)  # row: why it cannot be used
    tokens: int = 0  # with every image's
    supervised: int = 0
    longest: int = 0
    truncated: int = 0
    lengths: Counter = field(default_factory=Counter)  # upper end of the bin (0: beyond the last): samples
    blind: list[str] = field(default_factory=list)  # ids of samples with `<image>` in their text and no image
    empty: list[str] = field(default_factory=list)  # ids of samples with an answer of nothing
    unprompted: list[str] = field(default_factory=list)  # ids of samples with short answers and no format prompt
    short: int = 0  # samples whose first answer is short
    duplicates: list[str] = field(default_factory=list)  # ids that stand more than once
    kinds: Counter = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)  # kinds whose folder is not under the image root
    seconds: float = 0.0


def audit(
    table: Dataset, processing: Processing, max_length: int, processes: int | None = None, title: str = "check"
) -> Audit:
    """Everything about one source's rows.

    Args:
        table: as `rows.rows_of` gives it.
        max_length: positions after which a sample is cut.
        processes: that share the work; by default one a core.
    """
    started = time.perf_counter()
    found = Audit(samples=len(table), bad=survey(table, processing.template))
    roots: dict[str, str] = {}
    images: dict[tuple[str, str], str] = {}
    ids: set[str] = set()
    doubled: set[str] = set()
    for i, row in enumerate(each(table.select_columns(["id", "root", "kind", "images"]))):
        (doubled if row["id"] in ids else ids).add(row["id"])
        roots.setdefault(row["kind"], row["root"])
        for image in row["images"] if i not in found.bad else ():
            if image["path"] is not None:
                images[row["root"], image["path"]] = ""
    found.duplicates = sorted(doubled)
    found.unknown = sorted(
        k for k, root in roots.items() if k not in ("", "image", "text") and not (Path(root) / k).is_dir()
    )
    found.images = len(images)
    processes = processes or cores()
    names = list(images)
    with console.progress(f"{title}: images", len(names)) as advance:
        for reasons in spread(partial(_decode, names, processing.image_aspect_ratio), len(names), processes):
            for i, reason in reasons:
                images[names[i]] = reason
            advance(min(CHUNK, len(names)))
    broken = {key: reason for key, reason in images.items() if reason}
    with console.progress(f"{title}: samples", len(table)) as advance:
        judge = partial(_judge, table, processing, max_length, broken, frozenset(found.bad))
        for records in spread(judge, len(table), processes):
            for record in records:
                _count(found, record)
            advance(len(records))
    found.kinds = Counter(k for i, k in enumerate(table["kind"][:]) if i not in found.bad)
    found.seconds = time.perf_counter() - started
    return found


def _decode(names: Sequence[tuple[str, Ref]], aspect: str, stretch: range) -> list[tuple[int, str]]:
    """Numbers of the images in the stretch that cannot be used, with the reason."""
    wrong = []
    for i in stretch:
        root, ref = names[i]
        try:
            check_image(ref, Path(root), aspect)
        except UserError as error:
            wrong.append((i, str(error)))
    return wrong


@dataclass(frozen=True)
class Record:
    """What one row turned out to be."""

    row: int
    reason: str = ""  # why it cannot be used
    length: int = 0  # positions, with every image's
    supervised: int = 0
    truncated: bool = False
    text_only: bool = False
    short: bool = False
    blind: str = ""  # its id, if it has `<image>` in its text and no image
    empty: str = ""  # its id, if an answer is nothing
    unprompted: str = ""  # its id, if its short answers have no format prompt


def _judge(
    table: Dataset, processing: Processing, max_length: int, broken: dict, bad: frozenset[int], stretch: range
) -> list[Record]:
    rows = each(table.select(stretch))
    return [
        Record(i) if i in bad else _record(i, row, processing, max_length, broken)
        for i, row in zip(stretch, rows, strict=True)
    ]


def _record(i: int, row: dict[str, Any], processing: Processing, max_length: int, broken: dict) -> Record:
    sample, root = from_columns(row)
    try:
        for ref in sample.images:
            if isinstance(ref, bytes):
                check_image(ref, root, processing.image_aspect_ratio)
            elif reason := broken.get((str(row["root"]), ref)):
                raise UserError(reason)
        tokens = processing.tokens(sample, max_length, root)
    except UserError as error:
        return Record(i, reason=f"{row['where']} (id {sample.id!r}): {error}")
    short, prompted = short_answers(sample)
    unprompted = sample.id if short and not prompted and processing.template.name != "plain" else ""
    blind = sample.id if not sample.images and any(PLACEHOLDER in t.text for t in sample.turns) else ""
    empty = sample.id if any(t.role == "assistant" and not t.text.strip() for t in sample.turns) else ""
    return Record(
        i, "", tokens.length, tokens.supervised, tokens.truncated, not sample.images, short, blind, empty, unprompted
    )


def short_answers(sample: Sample) -> tuple[bool, bool]:
    """Whether every answer about an image is short, and whether a response-format prompt asks for that."""
    answers = [t.text for t in sample.turns if t.role == "assistant"]
    asked = any(FORMAT_PROMPTS.search(t.text) for t in sample.turns if t.role == "user")
    short = bool(sample.images) and all(len(a.split()) <= SHORT_WORDS for a in answers)
    return short, asked


def _count(found: Audit, record: Record) -> None:
    if record.reason:
        found.bad[record.row] = record.reason
    if record.row in found.bad:
        return
    found.tokens += record.length
    found.supervised += record.supervised
    found.longest = max(found.longest, record.length)
    found.truncated += record.truncated
    found.text_only += record.text_only
    found.lengths[next((b for b in BINS if record.length <= b), 0)] += 1
    found.short += record.short
    if record.blind:
        found.blind.append(record.blind)
    if record.empty:
        found.empty.append(record.empty)
    if record.unprompted:
        found.unprompted.append(record.unprompted)
