"""What an audit found, as one document and as text for people. In: `Audit`s by source. Out: a dictionary, lines, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .. import console
from .audit import BINS, SHORT_WORDS, Audit
from .dataset import Bad

SHOWN = 5  # examples of anything


def summary(audits: Mapping[str, Audit], bad: Sequence[Bad], taken: Sequence[int], max_length: int) -> dict[str, Any]:
    """Everything, as `--json` prints it.

    Args:
        audits: of each source, by its path.
        bad: every sample that cannot be used.
        taken: samples that the recipe takes of each source.
    """
    found = list(audits.values())
    good = sum(a.samples for a in found) - len(bad)
    tokens, supervised = sum(a.tokens for a in found), sum(a.supervised for a in found)
    lengths: Counter = sum((a.lengths for a in found), Counter())
    seconds = sum(a.seconds for a in found)
    samples = sum(a.samples for a in found)
    return {
        "samples": samples,
        "usable": good,
        "taken": dict(zip(audits, taken, strict=True)),
        "images": sum(a.images for a in found),
        "text_only": sum(a.text_only for a in found),
        "bad": [vars(b) for b in bad],
        "warnings": warnings(audits, max_length),
        "tokens": tokens,
        "supervised": supervised,
        "supervised_share": round(supervised / tokens, 4) if tokens else 0.0,
        "longest": max((a.longest for a in found), default=0),
        "truncated": sum(a.truncated for a in found),
        "truncated_share": round(sum(a.truncated for a in found) / good, 4) if good else 0.0,
        "lengths": {f"<= {b}" if b else f"> {BINS[-1]}": lengths[b] for b in (*BINS, 0) if lengths[b]},
        "kinds": dict(sum((a.kinds for a in found), Counter()).most_common()),
        "duplicate_ids": [i for a in found for i in a.duplicates],
        "unknown_sources": [k for a in found for k in a.unknown],
        "short_answers_without_format_prompt": sum(len(a.unprompted) for a in found),
        "seconds": round(seconds, 1),
        "rows_per_second": round(samples / seconds) if seconds else 0,
    }


def warnings(audits: Mapping[str, Audit], max_length: int) -> list[str]:
    """What is likely a mistake, though training would run, with the remedy."""
    lines = []
    for path, a in audits.items():
        if a.unknown:
            lines.append(
                f"{path}: unknown source{_s(a.unknown)} {_some(a.unknown)}: no such folder under its image_root."
            )
        if a.duplicates:
            lines.append(
                f"{path}: {len(a.duplicates):,} {'ids stand' if len(a.duplicates) > 1 else 'id stands'} more than once: {_some(a.duplicates)}."
            )
        if a.blind:
            lines.append(
                f"{path}: {len(a.blind):,} samples have '<image>' in their text and no image, so it is read as text: "
                f"{_some(a.blind)}. The image's path belongs under 'image'."
            )
        if a.empty:
            lines.append(
                f"{path}: {len(a.empty):,} samples have an answer of nothing, from which the model learns to say nothing: "
                f"{_some(a.empty)}."
            )
        if a.unprompted:
            lines.append(
                f"{path}: {len(a.unprompted):,} samples have short answers only (up to {SHORT_WORDS} words) and no "
                f"response-format prompt: {_some(a.unprompted)}. Without one the model learns to be curt everywhere; write "
                "'Answer the question using a single word or phrase.' after the question."
            )
        if a.truncated:
            lines.append(f"{path}: {a.truncated:,} samples are longer than max_length {max_length} and lose their end.")
    return lines


def _s(things: Sequence) -> str:
    return "s" if len(things) > 1 else ""


def _some(things: Sequence[str]) -> str:
    return ", ".join(map(repr, things[:SHOWN])) + (", …" if len(things) > SHOWN else "")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The document as text."""
    out = [
        f"{found['samples']:,} samples, {found['usable']:,} usable; {found['images']:,} image files; "
        f"{found['text_only']:,} samples of text alone",
        f"{found['tokens']:,} tokens, {100 * found['supervised_share']:.1f} % supervised; longest {found['longest']:,}; "
        f"{found['truncated']:,} truncated ({100 * found['truncated_share']:.2f} %)",
    ]
    out += [f"{path}: {count:,} samples taken" for path, count in found["taken"].items()]
    most = max(found["lengths"].values(), default=1)
    out += [f"{name:>8} {'█' * max(1, 40 * n // most)} {n:,}" for name, n in found["lengths"].items()]
    if found.get("disk"):
        out.append(f"disk needed: {found['disk']['bytes'] / 2**20:,.0f} MiB ({found['disk']['what']})")
    out += [f"Warning: {w}" for w in found["warnings"]]
    out += [f"Bad: {b['reason']}" for b in found["bad"][:20]]
    if len(found["bad"]) > 20:
        out.append(f"Bad: and {len(found['bad']) - 20:,} more (--json lists them)")
    out.append(f"checked in {found['seconds']:.1f} s, {found['rows_per_second']:,} rows a second")
    return [console.safe(line) for line in out]
