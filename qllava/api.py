"""The verbs as Python functions, under the names that they have on the command line.

    from qllava.api import train, merge, chat

    result = train("demo/instruct", ["output_dir=runs/mine"])
    model = merge(result.artifact, "runs/mine-merged")
    print(chat(model, image="photo.png").ask("What is this?"))

Everything heavy is imported inside, so that importing this costs nothing. All raise `qllava.errors.UserError` for input
that the user can mend and `RunError` for a run or a check that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact.load import Loaded
    from .artifact.manifest import Manifest
    from .artifact.switch import Switch
    from .recipe import Recipe
    from .serve.chat import Chat
    from .train.across import Across
    from .train.inspect import Inspection
    from .train.plan import Plan
    from .train.run import Result

Source = str | Path


def train(recipe: Source | Recipe, overrides: Sequence[str] = (), resume: bool = False) -> Result:
    """Runs a recipe: a YAML file, a shipped recipe's name, or a `Recipe`. See `qllava.train.run.train`."""
    resolved = _resolve(recipe, overrides)
    from .train.run import train as run

    return run(resolved, resume)


def _resolve(recipe: Source | Recipe, overrides: Sequence[str]) -> Recipe:
    from .errors import PeerError, UserError, first_on_host
    from .recipe import Recipe, load_recipe, resolve_recipe

    try:
        if isinstance(recipe, Recipe):
            return resolve_recipe(recipe.model_dump(exclude_unset=True), overrides)
        return load_recipe(recipe, overrides)
    except UserError as error:
        if first_on_host():
            raise
        raise PeerError(str(error), 2, loud=False) from None  # the host's first process says the same


def plan(
    recipe: Source | Recipe, overrides: Sequence[str] = (), vram: str | None = None, tflops: float | None = None
) -> Plan:
    """What a recipe takes on a card of `vram` (`12GB`), or on this machine. See `qllava.train.plan.plan`.

    Args:
        tflops: what that card reaches in a large matrix product, in 10¹² operations a second.
    """
    resolved = _resolve(recipe, overrides)
    from .train.plan import plan as run
    from .train.plan import read_size

    return run(resolved, None if vram is None else read_size(vram), None if tflops is None else tflops * 1e12)


def plan_across(
    recipe: Source | Recipe, overrides: Sequence[str] = (), card: str = "a100-80", processes: int = 8,
    nodes: int | None = None, engine: str | None = None, vram: str | None = None, tflops: float | None = None,
) -> Across:  # fmt: skip
    """What a recipe takes on many cards, under one engine or each. See `qllava.train.across`.

    Args:
        processes: one a card, in all nodes together.
        tflops: what a card reaches in a large matrix product, in 10¹² operations a second; by default assumed.
    """
    from .train.across import ENGINES, across
    from .train.cluster import cluster_of

    cluster, engines = cluster_of(card, processes, nodes), (engine,) if engine else ENGINES
    resolved = _resolve(recipe, overrides)
    from .train.plan import read_size, samples_of

    budget = None if vram is None else read_size(vram)
    rate = None if tflops is None else tflops * 1e12
    return across(resolved, cluster, *samples_of(resolved), engines=engines, budget=budget, rate=rate)


def check(recipe: Source | Recipe, overrides: Sequence[str] = (), processes: int | None = None) -> dict[str, Any]:
    """What a run would meet in its data, before any weight is read. See `qllava.train.check.check`."""
    resolved = _resolve(recipe, overrides)
    from .train.check import check as run

    return run(resolved, processes)


def verify_data(
    file: Source, image_root: Source, mix: str | None = None, write: Source | None = None, **options: Any
) -> dict[str, Any]:
    """`qllava data verify`: a LLaVA JSON beside what was published, and each of its images. See `qllava.data.verify.verify`."""
    from .data.verify import verify as run

    return run(Path(file), Path(image_root), mix, write=None if write is None else Path(write), **options)


def build_data(mix: Source, raw: Source, out: Source, **options: Any) -> dict[str, Any]:
    """`qllava data build`: a LLaVA JSON from raw data sets. See `qllava.data.sources.build.build`."""
    from .data.sources.build import build as run

    return run(str(mix), Path(raw), Path(out), **options)


def inspect(recipe: Source | Recipe | None = None, overrides: Sequence[str] = (), **options: Any) -> Inspection:
    """Samples as the model gets them: of a recipe, or with `data`, `tokenizer`, `template`. See `qllava.train.inspect`."""
    from .errors import UserError

    if recipe is not None and options:
        raise UserError(f"The recipe says {', '.join(options)} itself; write key=value to change it.")
    if recipe is not None:
        resolved = _resolve(recipe, overrides)
        from .train.inspect import of_recipe

        return of_recipe(resolved)
    lacking = [f"--{name}" for name in ("data", "tokenizer", "template") if name not in options]
    if lacking:
        raise UserError(
            f"Name a recipe, or a file with --data, --tokenizer and --template; lacking: {', '.join(lacking)}."
        )
    from .train.inspect import of_file

    return of_file(**options)


def merge(
    adapter: Source,
    out: Source,
    target: str | None = None,
    dtype: str = "bfloat16",
    base: str | None = None,
    **options: Any,
) -> Path:
    """An adapter and its base as one plain Hugging Face model in `out`, compared with both. See `qllava.artifact.merge.merge`."""
    from .artifact.merge import merge as run

    return run(adapter, out, target, dtype, base, **options)


def combine(adapters: Sequence[Source], out: Source, weights: Sequence[float] | None = None, **options: Any) -> Path:
    """Several adapters of one base as one. See `qllava.artifact.combine.combine`."""
    from .artifact.combine import combine as run

    return run(adapters, out, weights, **options)


def switch(adapters: Mapping[str, Source], base: str | None = None) -> Switch:
    """Several adapters by name on one base in memory. See `qllava.artifact.switch.Switch`."""
    from .artifact.switch import Switch as Board

    return Board(adapters, base)


def convert(
    source: Source, to: str, out: Source, base: str | None = None, vision_tower: str | None = None, merge: bool = False,
    outtype: str = "f16",
) -> Path:  # fmt: skip
    """Weights of another layout in or out: LLaVA's own code's, PEFT's, XTuner's, GGUF. See `qllava.artifact.convert.convert`."""
    from .artifact.convert import convert as run

    return run(source, to, out, base, vision_tower, merge, outtype)


def evaluate(source: Source, data: Source, image_root: Source | None = None, **options: Any) -> dict[str, Any]:
    """A model's answers to a LLaVA JSON, compared with its own. See `qllava.evaluate.own.evaluate`."""
    from .evaluate.own import evaluate as run

    return run(source, data, image_root, **options)


def benchmark(source: Source, names: Sequence[str], root: Source, **options: Any) -> dict[str, dict[str, Any]]:
    """A model's answers to the paper's benchmarks. See `qllava.evaluate.run.run_benchmarks`."""
    from .evaluate.benchmarks import named

    named(names)  # a wrong name is told before the seconds that the libraries take
    from .evaluate.run import run_benchmarks

    return run_benchmarks(source, names, root, **options)


def score(name: str, answers: Source, root: Source, **options: Any) -> dict[str, Any]:
    """An answer file's score, and its submission. See `qllava.evaluate.results.score_answers`."""
    from .evaluate.results import score_answers

    return score_answers(name, answers, root, **options)


def scoreboard(
    runs: Sequence[Source], expect: str | None = None, out: Source | None = None, record: Sequence[str] = ()
) -> dict[str, Any]:
    """Results beside the paper's. See `qllava.evaluate.scoreboard.scoreboard`.

    Args:
        record: scores that servers gave to the answers of the only run, as `vqav2=78.4`, to be kept with it first.
    """
    from .evaluate.record import record_scores
    from .evaluate.scoreboard import scoreboard as run

    if record:
        run(runs, expect)  # whatever is wrong is said before a score is written
        record_scores(runs, record)
    return run(runs, expect, out)


def chat(
    source: Source, image: Source | None = None, base: str | None = None, max_new_tokens: int = 512,
    adapters: Mapping[str, Source] | None = None,
) -> Chat:  # fmt: skip
    """A conversation with a model; `.ask(text)` answers, `.use(name)` switches adapters. See `qllava.serve.chat`."""
    from .serve.chat import open_chat

    return open_chat(source, image, base, max_new_tokens, adapters)


def assemble(vision_tower: str, llm: str, out: Source, **options: Any) -> Path:
    """A vision tower and an LLM as one LLaVA with a new projector. See `qllava.artifact.assemble.assemble`."""
    from .artifact.assemble import assemble as run

    return run(vision_tower, llm, out, **options)


def load(source: Source, base: str | None = None, dtype: str = "auto") -> Loaded:
    """Any artifact or Hugging Face LLaVA as a model with its inputs. See `qllava.artifact.load.load`."""
    from .artifact.load import load as run

    return run(source, base, dtype)


def verify(artifact: Source) -> Manifest:
    """The manifest of an artifact, after comparing every file with it. See `qllava.artifact.manifest.verify`."""
    from .artifact.load import find_artifact
    from .artifact.manifest import verify as run

    return run(find_artifact(artifact) or Path(artifact))


def fingerprint(base: str, exact: bool = False) -> str:
    """The digest by which adapters know a base again; `exact` reads every byte. See `qllava.model.fingerprint`."""
    from .artifact.load import parse_base
    from .model.base import sources
    from .model.fingerprint import fingerprint as run

    return run(sources(parse_base(base)), exact)


def demo(out: Source = "runs/demo", **options: Any) -> dict[str, Any]:
    """The whole job on the embedded base and easy-VQA. See `qllava.demo.run.demo`."""
    from .demo.run import demo as run

    return run(out, **options)


def ablate(study: Source, out: Source | None = None, **options: Any) -> dict[str, Any]:
    """Runs that differ in one thing, over seeds, as a table and a chart. See `qllava.ablate.run.ablate`."""
    from .ablate.run import ablate as run

    return run(study, out, **options)


def try_study(study: Source, out: Source | None = None, **options: Any) -> dict[str, Any]:
    """The commands of a study and what is missing for them; nothing is run. See `qllava.ablate.trial.trial`."""
    from .ablate.trial import trial

    return trial(study, out, **options)
