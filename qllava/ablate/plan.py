"""Which runs a study takes, in order, and what each of them is known again by. No run is started here.

Two arms whose chains begin alike share those runs: a run is what its recipe, seed and forerunners say, and is made once. One
that an earlier call has begun stays where it lies, whichever arms have joined the study since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..evaluate.benchmarks import benchmark
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe
from .study import DATA, Study, filled, words

FINAL = "final"  # in output_dir: the artifact, which is renamed there when it is whole
# Of a recipe, what cannot change its outcome.
FREE = {
    "output_dir", "logging_steps", "save_steps", "save_total_limit", "report_to", "dataloader_num_workers", "push_to_hub",
    "hub_private_repo", "ddp_timeout",
}  # fmt: skip


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One process: a stage of an arm with one seed, or the evaluation of a model."""

    name: str  # ARM/seed-N/STAGE
    folder: Path  # what it writes
    arguments: tuple[str, ...]  # of qllava
    values: dict[str, Any]  # what makes it the run it is
    needs: tuple[str, ...]  # runs that come before
    result: Path  # there when it has ended
    recipe: Recipe | None = None  # None for an evaluation

    @property
    def digest(self) -> str:
        return _digest(self.values)

    @property
    def record(self) -> Path:
        return self.folder.with_name(self.folder.name + ".json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


@dataclass(frozen=True)
class Plan:
    runs: dict[str, Run]  # by name, each after those that it needs
    scored: dict[tuple[str, int], dict[str, Run]]  # the evaluations of an arm with a seed


def plan(study: Study, out: Path, seeds: Sequence[int], only: Sequence[str] = ()) -> Plan:
    """The runs of a study in `out`.

    Args:
        only: arms; all of them if none is named.

    Raises:
        UserError: a recipe is wrong, or there is no such arm.
    """
    for name in only:
        if name not in study.arms:
            raise UserError(
                f"The study has no arm '{name}'.{nearest(name, study.arms)} It has {', '.join(study.arms)}."
            )
    known: dict[str, Run] = {}  # by digest
    begun = _begun(out)
    scored: dict[tuple[str, int], dict[str, Run]] = {}
    for arm in study.arms:
        for seed in seeds:
            chain = _chain(study, arm, seed, out, known, begun)
            scored[arm, seed] = {e: _evaluation(study, arm, seed, e, out, chain, known, begun) for e in study.evaluate}
    by_name: dict[str, Run] = {}
    for run in known.values():
        if by_name.setdefault(run.name, run) is not run:
            raise UserError(
                f"{run.folder} holds a run that two arms lay claim to now: one by its name, one by what it says. Name another "
                "--out, or give the arm that has changed a new name."
            )
    wanted = {k: v for k, v in scored.items() if not only or k[0] in only}
    needed: dict[str, Run] = {}

    def take(run: Run) -> None:
        for name in run.needs:
            take(by_name[name])
        needed.setdefault(run.name, run)

    for runs in wanted.values():
        for run in runs.values():
            take(run)
    return Plan(needed, wanted)


def _begun(out: Path) -> dict[str, Path]:
    """The folders of runs that earlier calls have begun, by digest."""
    folders: dict[str, Path] = {}
    for record in sorted(out.glob("*/seed-*/*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what it is instead, `belongs` says
            folders.setdefault(json.loads(record.read_text(encoding="utf-8"))["digest"], record.with_suffix(""))
    return folders


def _chain(
    study: Study, arm: str, seed: int, out: Path, known: dict[str, Run], begun: dict[str, Path]
) -> dict[str, Run]:
    """The arm's stages with this seed."""
    chain: dict[str, Run] = {}
    for name, stage in study.stages.items():
        change = study.arms[arm].stages.get(name)
        source = (change and change.recipe) or stage.recipe
        fields = {"seed": seed, **stage.overrides, **(change.overrides if change else {})}
        same = {s: f"{s} {run.digest}" for s, run in chain.items()}
        needs = tuple(run.name for s, run in chain.items() if s in words(fields))
        try:
            meant = load_recipe(source, written(filled(fields, same)))
        except UserError as error:
            raise UserError(f"{arm}, {name}: {error}") from None
        # Without defaults, so that a field that a later version brings makes no other run of it.
        values = {k: v for k, v in meant.model_dump(mode="json", exclude_defaults=True).items() if k not in FREE}
        values["prepare"] = study.prepare if DATA in words(fields) else None
        folder = begun.get(_digest(values), out / arm / f"seed-{seed}" / name)
        real = {s: str(run.folder) for s, run in chain.items()} | {DATA: str((out / DATA).resolve())}
        options = (*written(filled(fields, real)), f"output_dir={json.dumps(str(folder))}")
        run = Run(
            folder.relative_to(out).as_posix(), folder, ("train", source, *options), values, needs, folder / FINAL / "qllava.json",
            load_recipe(source, options),
        )  # fmt: skip
        chain[name] = known.setdefault(run.digest, run)
    return chain


def _evaluation(
    study: Study, arm: str, seed: int, name: str, out: Path, chain: dict[str, Run], known: dict[str, Run],
    begun: dict[str, Path],
) -> Run:  # fmt: skip
    model, asked = list(chain.values())[-1], study.evaluate[name]
    kept = {k: v for k, v in asked.model_dump(exclude_defaults=True).items() if k != "title"}
    values = {"model": model.digest, "evaluation": kept, "prepare": study.prepare}
    folder = begun.get(_digest(values), out / arm / f"seed-{seed}" / f"eval-{name}")
    real = filled(asked.model_dump(), {DATA: str((out / DATA).resolve())})
    options = ["--out", str(folder), "--batch-size", str(asked.batch_size)]
    if asked.benchmark is not None:
        benchmark(asked.benchmark)  # a wrong name is told now
        options += ["--benchmark", asked.benchmark, "--root", real["root"]]
        result = folder / asked.benchmark / "result.json"
    else:
        options += ["--data", real["data"], "--metric", asked.metric]
        for field in ("image_root", "limit", "max_new_tokens"):
            options += [f"--{field.replace('_', '-')}", str(real[field])] if real[field] is not None else []
        result = folder / "result.json"
    run = Run(
        folder.relative_to(out).as_posix(), folder, ("eval", str(model.folder), *options), values, (model.name,), result
    )
    return known.setdefault(run.digest, run)


def written(fields: dict[str, Any]) -> tuple[str, ...]:
    """Overrides as the command line takes them; JSON is YAML."""
    return tuple(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in fields.items())
