"""Several adapters of one base as one. In: adapters and weights. Out: an adapter, and how far its parts agree.

What is combined is each module's whole change ΔW, never A and B apart, whose products would mix (PEFT's `linear` does that).
The exact sum is the concatenation of ranks: B A = Σ w·s·B_i A_i. A rank asked for is had by the best approximation (SVD), with
its error reported. TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099) work on the dense ΔW. Projectors, and vision towers that
were trained, are combined as differences from the base's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import console
from ..errors import UserError
from ..model import dialects
from ..model.base import portable
from ..model.projector import FILE as PROJECTOR_FILE
from ..model.projector import MARK, read_projector, runtime_name
from ..model.tower import FILE as TOWER_FILE
from ..model.tower import PREFIX as TOWER
from ..model.tower import read_tower
from ..recipe.schema import Quantization
from .card import model_card
from .conflicts import conflict_report, show_conflicts
from .delta import CONFIG, WEIGHTS, Change, read_changes, write_changes
from .load import as_artifact, base_of, find_artifact, quantization_of, same_base
from .manifest import Base, Manifest, verify, writing
from .stream import BaseTensors

METHODS = ("sum", "ties", "dare", "dare_ties")
Tensors = dict[str, torch.Tensor]


@dataclass
class Part:
    """One adapter that goes in, with its weight."""

    folder: Path
    manifest: Manifest
    weight: float
    changes: dict[str, Change]
    others: Tensors  # projector and tower by runtime name, float32


def combine(
    adapters: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None, method: str = "sum",
    rank: int | None = None, density: float = 0.5, seed: int = 0, base: str | None = None,
) -> Path:  # fmt: skip
    """Writes the combined adapter to `out` and returns its folder.

    Args:
        adapters: artifacts of adapters on the same base; one alone can be scaled.
        weights: of each; by default 1. A negative one subtracts.
        method: `sum` (exact), `ties`, `dare` or `dare_ties`.
        rank: of the result; by default what the exact sum needs. TIES and DARE need one.
        density: share of each ΔW's entries that TIES and DARE keep.
        seed: of what DARE drops.
        base: where the base lies now, if no longer where the manifests say.

    Raises:
        UserError: an adapter is none, they are on different bases, or what is asked for does not go together.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    _check(adapters, weights, method, rank, density, out)
    parts = [_read(source, weight, base) for source, weight in zip(adapters, weights, strict=True)]
    first = parts[0].manifest
    for part in parts[1:]:
        if not same_base(part.manifest.base, first.base):
            raise UserError(
                f"{part.folder} is on another base ({part.manifest.base.source}) than {parts[0].folder} ({first.base.source})."
            )
        if (part.manifest.template, part.manifest.image_aspect_ratio) != (first.template, first.image_aspect_ratio):
            console.note(
                f"{part.folder} was trained with other prompts or images than {parts[0].folder}, whose are kept."
            )
    quantization = _common_quantization(parts)
    source = base_of(first, base)
    original = BaseTensors(source)
    conflicts = conflict_report([(p.weight, p.changes) for p in parts], original)
    show_conflicts(conflicts)
    made, errors = _combine_changes(parts, method, rank, density, seed, original)
    others = _combine_others(parts, original)
    report = {
        "combined_from": [{"adapter": str(p.folder), "weight": p.weight} for p in parts],
        "method": method,
        "conflicts": conflicts,
        **({"truncation": errors} if errors else {}),
        **({"tower_changed": True} if any(n.startswith(TOWER) for n in others) else {}),
    }
    manifest = Manifest(
        kind="adapter", holds="adapter", template=first.template, image_aspect_ratio=first.image_aspect_ratio,
        after_eos=first.after_eos, exif_transpose=first.exif_transpose,
        base=Base(source=portable(source), fingerprint=first.base.fingerprint), tune=_tune(parts), dtype=first.dtype,
        recipe=None if quantization is None else {"quantization": quantization.model_dump()}, report=report,
    )  # fmt: skip
    with writing(Path(out), manifest) as folder:
        write_changes(made, folder)
        _write_others(others, folder)
        model_card(manifest, folder)
    if errors:
        console.note(f"At rank {rank} {100 * errors['relative']:.2g} % of the combined change (by its norm) is lost.")
    return Path(out)


def _check(adapters: Sequence, weights: list[float], method: str, rank: int | None, density: float, out: Any) -> None:
    if not adapters:
        raise UserError("Name the adapters that are to be combined.")
    if len(weights) != len(adapters):
        raise UserError(f"{len(adapters)} adapters and {len(weights)} weights; each adapter has one.")
    if method not in METHODS:
        raise UserError(f"No method '{method}'. There are: {', '.join(METHODS)}.")
    if not all(math.isfinite(w) for w in weights):
        raise UserError(f"Weights are finite numbers, not {weights}.")
    if not 0 < density <= 1:
        raise UserError(f"density is a share above 0 and up to 1, not {density:g}.")
    if rank is not None and rank < 1:
        raise UserError("rank is a number above 0.")
    if method != "sum" and rank is None:
        raise UserError(
            f"{method} makes a full ΔW, which has to be cut to a rank again. Write --rank, such as --rank 64."
        )
    if Path(out).exists():
        raise UserError(f"{out} is there already; name another folder, or remove it.")


def _read(source: str | Path, weight: float, base: str | None) -> Part:
    with as_artifact(source, base) as (folder, _):
        if folder is None:
            raise UserError(f"{source} is not an artifact.")
        manifest = verify(folder)
        if manifest.holds != "adapter" or manifest.base is None:
            raise UserError(f"{folder} is no adapter, or is bound to no base.")
        changes = read_changes(folder) if (folder / CONFIG).is_file() else {}
        others = {runtime_name(k): v.float() for k, v in read_projector(folder).items()}
        if (folder / TOWER_FILE).is_file():
            others |= {TOWER + k: v.float() for k, v in read_tower(folder).items()}
        named = folder if find_artifact(source) is not None else Path(source)
        return Part(named, manifest, weight, changes, others)


def _common_quantization(parts: Sequence[Part]) -> Quantization | None:
    """How the parts' base was quantised.

    Raises:
        UserError: in different ways.
    """
    ways = {p.folder: quantization_of(p.manifest) for p in parts}
    real = {repr(q): q for q in ways.values() if q is not None}
    if len(real) > 1:
        raise UserError(
            f"The adapters were trained on a base quantised in different ways: {', '.join(map(str, ways))}."
        )
    if real and None in ways.values():
        console.note("Some were trained on a base in 4 bits and some were not; the result is taken as one of 4 bits.")
    return next(iter(real.values()), None)


def _tune(parts: Sequence[Part]) -> str:
    kinds = {p.manifest.tune for p in parts}
    return kinds.pop() if len(kinds) == 1 else "qlora" if "qlora" in kinds else "lora"


# -- the LLM's changes
def _combine_changes(
    parts: Sequence[Part], method: str, rank: int | None, density: float, seed: int, base: BaseTensors
) -> tuple[dict[str, Change], dict[str, Any]]:
    modules = sorted({m for p in parts if p.weight for m in p.changes})
    made, lost, whole, worst = {}, 0.0, 0.0, ("", 0.0)
    kept = method == "sum" and _only_one_counts(parts, rank)
    if (
        not kept
        and rank is None
        and any(c.magnitude is not None for p in parts if p.weight for c in p.changes.values())
    ):
        raise UserError(
            "A DoRA's change has the full rank of its weight, so the sum has to be cut to one. Write --rank, such as --rank 64."
        )
    for module in modules:
        there = [(p, p.changes[module]) for p in parts if module in p.changes]
        own = [(p.weight, c) for p, c in there if p.weight]
        dora = any(c.magnitude is not None for _, c in own)
        if kept:
            made[module] = own[0][1]  # bit for bit, DoRA or not
            continue
        if method == "sum" and not dora and (rank is None or rank >= sum(c.rank for _, c in own)):
            made[module] = _concatenated(own)
            continue
        weight = base.weight(module) if dora else None
        deltas = [w * c.delta(weight) for w, c in own]
        keys = [f"{seed}:{module}:{p.manifest.files[WEIGHTS].sha256}" for p, _ in there if p.weight]
        dense = sum(deltas) if method == "sum" else _sparse(deltas, method, density, keys)
        made[module], gone = _truncated(dense, rank)
        lost, whole = lost + gone**2, whole + float(dense.norm()) ** 2
        share = gone / max(float(dense.norm()), 1e-30)
        worst = max(worst, (module, share), key=lambda pair: pair[1])
    if whole == 0:
        return made, {}
    return made, {"relative": (lost / whole) ** 0.5, "worst_module": worst[0], "worst_relative": worst[1]}


def _only_one_counts(parts: Sequence[Part], rank: int | None) -> bool:
    """Whether one part with weight 1 is all there is, so that it is given back as it is."""
    real = [p for p in parts if p.weight]
    one = len(real) == 1 and real[0].weight == 1.0
    return one and (rank is None or all(rank >= c.rank for c in real[0].changes.values()))


def _concatenated(own: Sequence[tuple[float, Change]]) -> Change:
    """The exact weighted sum."""
    if len(own) == 1:
        weight, change = own[0]
        return Change(change.a, weight * change.b, change.scaling)
    return Change(torch.cat([c.a for _, c in own]), torch.cat([w * c.scaling * c.b for w, c in own], 1), 1.0)


def _truncated(dense: torch.Tensor, rank: int) -> tuple[Change, float]:
    """The nearest change of that rank, and the norm of what is lost."""
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    root = s[:rank].sqrt()
    return Change(root[:, None] * v[:rank], u[:, :rank] * root, 1.0), float(s[rank:].norm())


def _sparse(deltas: list[torch.Tensor], method: str, density: float, keys: list[str]) -> torch.Tensor:
    """TIES and DARE on weighted dense changes [out, in]; what DARE drops of each follows from its key, not from the order."""
    if method.startswith("dare"):
        draws = [torch.Generator().manual_seed(int(hashlib.sha256(k.encode()).hexdigest()[:15], 16)) for k in keys]
        deltas = [
            d * (torch.rand(d.shape, generator=g) < density) / density for d, g in zip(deltas, draws, strict=True)
        ]
    else:
        kept = max(1, round(density * deltas[0].numel()))
        deltas = [d * (d.abs() >= d.abs().flatten().kthvalue(d.numel() - kept + 1).values) for d in deltas]
    if method == "dare":
        return sum(deltas)
    stacked = torch.stack(deltas)
    sign = stacked.sum(0).sign()  # the side with more mass
    agrees = (stacked.sign() == sign) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)


# -- projector and tower
def _combine_others(parts: Sequence[Part], base: BaseTensors) -> Tensors:
    """Base + Σ w·(theirs − base); without a base's own, and where one part alone counts, its tensor as it is."""
    made = {}
    for name in sorted({n for p in parts for n in p.others}):
        own = [(p.weight, p.others[name]) for p in parts if name in p.others]
        real = [(w, t) for w, t in own if w]
        if len(real) == 1 and real[0][0] == 1.0:
            made[name] = real[0][1]
            continue
        key = dialects.to_published(name)
        if key not in base:  # a new projector: there is nothing to differ from
            total = sum(w for w, _ in own)
            if total <= 0:
                raise UserError(
                    "The base is in parts and has no projector of its own, so projectors are averaged, for which the weights must "
                    "come to more than 0."
                )
            made[name] = sum(w * t for w, t in own) / total
            continue
        start = base[key].float()
        made[name] = start + sum(w * (t - start) for w, t in own)
    return made


def _write_others(others: Tensors, folder: Path) -> None:
    for tower, file in ((False, PROJECTOR_FILE), (True, TOWER_FILE)):
        state = {
            n.removeprefix(TOWER).removeprefix("model.").removeprefix(MARK): t.contiguous().clone()
            for n, t in others.items()
            if n.startswith(TOWER) == tower
        }
        if state:
            save_file(state, folder / file, metadata={"format": "pt"})
