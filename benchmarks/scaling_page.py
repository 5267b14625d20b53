"""docs/scaling.md: its tables. In: figures of `scaling`, and the text in scaling.template.md. Out: Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .scaling import CLUSTERS, FITS, MODELS, RECIPES, SAMPLES, SHARES, Figures, figures

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
GIB = 2**30
TEMPLATE = Path(__file__).with_name("scaling.template.md")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Markdown; the first `left` columns to the left, the others to the right."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page(found: Figures) -> str:
    """The whole document.

    Raises:
        RuntimeError: results/held.json is not there.
    """
    from qllava.train import cluster, memory, plan, remedies
    from qllava.train.engine import SHARDED, TITLES

    if found.held is None:
        raise RuntimeError(
            "benchmarks/results/held.json is missing: python -m benchmarks held > benchmarks/results/held.json"
        )
    job, box = found.jobs["7b", "instruct-full"], found.held["machine"]
    cards = {c: cluster.CARDS[c] for c, _ in CLUSTERS}
    return TEMPLATE.read_text().format(
        machine=f"{box['cores']} cores of {box['processor']} without a GPU", answer=answer(found), whole=whole(found),
        words=words(found), align=SAMPLES["align"], instruct=SAMPLES["instruct"], held=held_table(found),
        held_processes=" and ".join(sorted({str(c["processes"]) for c in found.held["cells"]})),
        held_commit=found.held["commit"], between=between(found), accuracy=accuracy(found), published=published(found), fits=fits(found),
        share=cluster.SHARE, shares=shares(), layers=" and ".join(str(found.jobs[m, "align"].known.shape.layers) for m in MODELS),
        clusters=clusters(found), parts=parts(found), loading=loading(found), first=" and ".join(TITLES[e] for e in SHARDED),
        rates=", ".join(f"{c.title} {c.rate / 1e12:.0f} TFLOP/s" for c in cards.values()), linked=cluster.LINKED,
        links=", ".join(f"{c.title} {c.link / 1e9:.0f} GB/s each way ({c.linked_by})" for c in cards.values()),
        network=cluster.NETWORK / 1e9, hidden=cluster.HIDDEN, pcie=cluster.LINKED * cluster.PCIE / 1e9, host=cluster.HOST / 1e9,
        mean=round(job.lengths.mean.positions / 1000), longest=f"{job.lengths.largest.positions:,} a sample",
        caption=round(found.jobs["7b", "align"].lengths.mean.positions / 1000),
        long_caption=found.jobs["7b", "align"].lengths.largest.positions, spelling=plan.SPELLING["cuda"],
        context=memory.RUNTIME["cuda"] / 2**20, slack=remedies.SLACK - 1,
    )  # fmt: skip


def answer(found: Figures) -> str:
    rows = []
    for card, count in CLUSTERS:
        for model in MODELS:
            cells = [_short(found, model, name, card, count) for name in RECIPES]
            rows.append([_title(found, card, count), model.upper(), *cells])
    return table(("cards", "model", *(f"`{r}`" for r in RECIPES)), rows, 6)


def _title(found: Figures, card: str, count: int) -> str:
    return found.plans["7b", "align", card, count].cluster.title


def _short(found: Figures, model: str, name: str, card: str, count: int) -> str:
    best = found.plans[model, name, card, count].chosen
    if best is None:
        return "does not fit"
    chosen = best.plan.chosen
    hours = found.jobs[model, name].hours(chosen.seconds)
    size = chosen.per_device_train_batch_size
    away = f" and {best.host / GIB:.0f} a node" if best.held.host else ""
    return f"**{hours:.1f} h** {best.engine}, {size}, {chosen.memory.peak / GIB:.0f} GiB{away}"


def _hours(found: Figures, model: str, name: str, card: str, count: int) -> float | None:
    best = found.plans[model, name, card, count].chosen
    return None if best is None else found.jobs[model, name].hours(best.plan.chosen.seconds)


def whole(found: Figures) -> str:
    rows = []
    for card, count in CLUSTERS:
        for model in MODELS:
            first = _hours(found, model, "align", card, count)
            both = [_hours(found, model, name, card, count) for name in RECIPES[1:]]
            cells = ["does not fit" if first is None or h is None else f"{first + h:.1f}" for h in both]
            rows.append([_title(found, card, count), model.upper(), *cells])
    return table(("cards", "model", "full", "LoRA", "QLoRA"), rows, 2)


def words(found: Figures) -> str:
    """What does not fit anywhere, told with what it lacks."""
    lines = []
    for (model, name, card, count), plans in found.plans.items():
        if plans.chosen is None:
            shared = min((s for s in plans.engines if s.plan), key=_least)
            need = f"{_least(shared) / GIB:.1f} GiB under {shared.engine}"
            lines.append(
                f"- {model.upper()} `{name}` does not fit {_title(found, card, count)}: {need} at the least, of "
                f"{plans.cluster.card.memory / GIB:.1f}."
            )
    return "\n".join(lines) or "Everything fits, under some engine."


def _least(shared: Any) -> float:
    """Bytes that it needs of a card, with what is left free."""
    from qllava.train.remedies import SLACK

    return max(SLACK * min(c.memory.peak for c in shared.plan.choices), shared.start.card)


def held_table(found: Figures) -> str:
    rows = []
    for c in found.held["cells"]:
        measured, formula = sum(c["measured"].values()), sum(c["formula"].values())
        parts_ = [f"{c['measured'][p] / 1e6:.2f}" for p in c["measured"]]
        numbers = [*parts_, f"{measured / 1e6:.2f}", f"{formula / 1e6:.2f}", f"{measured / formula:.3f}"]
        numbers += [f"{c['checkpoint'] / 1e6:.2f}", f"{c['checkpoint_formula'] / 1e6:.2f}"]
        rows.append([c["engine"], f"`{c['tune']}`", c["processes"], *numbers])
    head = (
        "engine",
        "tune",
        "processes",
        "frozen",
        "trained",
        "copy",
        "gradients",
        "optimizer",
        "all",
        "formula",
        "ratio",
        "checkpoint on disk",
        "its formula",
    )
    return table(head, rows, 2)


def between(found: Figures) -> str:
    """What the same runs tell of gradients and autocast."""
    cells = found.held["cells"]
    whole_ = max((c["between"] - c["rest"]) / c["formula"]["gradients"] for c in cells if c["engine"] == "fsdp2")
    keeps = sorted({c["engine"] for c in cells if c["autocast_keeps"]})
    return (
        f"In the same runs FSDP2 holds {whole_:.2f} times its piece of the gradients between micro-batches, at the most; autocast keeps "
        f"the weights that it spells out under {' and '.join(keeps) or 'no engine'}, which the formula counts."
    )


def accuracy(found: Figures) -> str:
    low, high = min(found.planner), max(found.planner)
    return (
        f"**Activations: measured on one process.** Peaks of {len(found.planner)} configurations on a CPU are {low:.2f} to {high:.2f} times "
        "what the planner foretells (`python -m benchmarks planner`, `results/planner_*.json`)."
    )


def published(found: Figures) -> str:
    rows = [
        [
            j.model.upper(),
            f"`{j.name}`",
            _title(found, card, 8),
            engine,
            f"{hours:g} h",
            f"{said:.1f} h",
            f"{said / hours:.2f}",
        ]
        for j, card, engine, hours, said in found.published
    ]
    return table(("model", "recipe", "cards", "engine", "published", "formula", "formula / published"), rows, 4)


def fits(found: Figures) -> str:
    told = []
    for model, name, card in FITS:
        plans = found.plans[model, name, card, 8]
        best = plans.chosen
        said = f"under {best.engine}" if best else "not, by the formula"
        told.append(f"{model.upper()} on {plans.cluster.title} (here it fits {said})")
    return ", ".join(told)


def shares() -> str:
    from qllava.train.cluster import CARDS, SHARE

    rows = [
        [f"8 × {CARDS[card].title}", size.upper(), f"{said:.1%}", f"{SHARE:.0%}", f"{SHARE / said:.2f}"]
        for card, size, said in SHARES
    ]
    return table(("cards", "size", "published", "assumed", "assumed / published"), rows, 2)


def clusters(found: Figures) -> str:
    from qllava.train.across import ENGINES

    tables = []
    for card, count in CLUSTERS:
        rows = []
        for model in MODELS:
            for name in RECIPES:
                plans = found.plans[model, name, card, count]
                cells = [_cell(s, plans.chosen) for s in plans.engines]
                rows.append([model.upper(), f"`{name}`", *cells])
        tables += [f"### {_title(found, card, count)}", table(("model", "recipe", *ENGINES), rows, 7)]
    return "\n\n".join(tables)


def _cell(shared: Any, chosen: Any) -> str:
    if shared.plan is None:
        return "refused"
    if not shared.fits:
        return f"no: {_least(shared) / GIB:.0f} GiB"
    best = shared.plan.chosen
    again = best.gradient_checkpointing
    layers = "all" if again is True else int(again)
    size, most = (
        best.per_device_train_batch_size,
        max(c.per_device_train_batch_size for c in shared.plan.choices if c.fits),
    )
    text = f"{best.memory.peak / GIB:.0f} GiB, {size} ({most}), {layers}, {best.seconds:.3g} s"
    return f"**{text}**" if shared is chosen else text


def parts(found: Figures) -> str:
    rows = []
    for (model, name, card, count), plans in found.plans.items():
        if (card, count) != ("a100-80", 8):
            continue
        for shared in plans.engines:
            if shared.held is not None:
                h = shared.held
                numbers = (h.frozen, h.trained, h.masters, h.gradients, h.optimizer, h.buffers)
                rows.append([model.upper(), f"`{name}`", shared.engine, *(f"{n / GIB:.2f}" for n in numbers)])
    return table(
        ("model", "recipe", "engine", "frozen", "trained", "copy", "gradients", "optimizer", "buffers"), rows, 3
    )


def loading(found: Figures) -> str:
    rows = []
    for model, name in found.jobs:
        engines = {s.engine: s for s in found.plans[model, name, "a100-80", 8].engines}
        each, one, away = (engines[e] for e in ("ddp", "fsdp2", "zero3-offload"))
        cells = [f"{s.start.host / GIB:.0f}" if s.start else "refused" for s in (each, one)]
        cells.append(f"{8 * away.held.host / GIB:.0f}" if away.held else "refused")
        plans = (engines[e].plan for e in ("ddp", "zero2", "zero3"))
        disks = [f"{int(p.disk['bytes']) / GIB:.1f}" if p else "refused" for p in plans]
        rows.append([model.upper(), f"`{name}`", *cells, *disks, each.plan.disk["what"]])
    head = (
        "model", "recipe", "each reads", "the first reads", "offload", "disk: ddp, fsdp2", "zero2", "zero3", "of which, under ddp",
    )  # fmt: skip
    return table(head, rows, 2)


def write() -> dict[str, str]:
    """Writes the page; returns where it is."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(figures()))
    return {"written": str(PAGE)}
