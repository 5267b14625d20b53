"""`python -m benchmarks scaling`: LLaVA-1.5's stages on clusters, from the planner's formulas; writes docs/scaling.md whole.

In: the shipped recipes, the sizes of 7B and 13B (no weights), published counts of samples, results/held.json and planner_*.json. Out:
figures here, the page in `scaling_page`. No number of the page is typed by hand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .speed.sets import LONGEST, MIX
from .speed.shapes import SHAPES

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = ("7b", "13b")
RECIPES = ("align", "instruct-full", "instruct-lora", "instruct-qlora")
CLUSTERS = (("3090", 8), ("a100-40", 8), ("a100-80", 8), ("h100", 8), ("h100", 64))
# Published (LLaVA-1.5's paper and released JSONs): samples of the two stages.
SAMPLES = {"align": 558_128, "instruct": 665_298}
# Assumed, in tokens: the system prompt with <s>; the words of a template around a turn; a caption on average and at most.
SYSTEM, TURN, CAPTION, LONG_CAPTION = 36, 10, 16, 128
# LLaVA's README at c121f04: hours on 8 cards. Its scripts: ZeRO-2 for align, ZeRO-3 for instruct, every layer run again.
PUBLISHED = (
    ("7b", "align", "a100-80", "zero2", 3.5), ("13b", "align", "a100-80", "zero2", 5.5),
    ("7b", "instruct-full", "a100-40", "zero3", 10.0), ("13b", "instruct-full", "a100-80", "zero3", 20.0),
)  # fmt: skip
# The same README, on what LoRA fits (8 cards each).
FITS = (("7b", "instruct-lora", "3090"), ("13b", "instruct-lora", "a100-40"))
# llm-foundry's scripts/train/benchmarking: share of the card's rate that MPT of that size reaches at 2,048 tokens.
SHARES = (("a100-80", "7b", 0.642), ("a100-80", "13b", 0.596), ("h100", "7b", 0.464), ("h100", "13b", 0.398))


@dataclass(frozen=True)
class Lengths:
    """Micro-batches of samples of assumed lengths, as `train.batches.Sizes` gives them of data that is there."""

    largest: Any  # of one sample
    mean: Any  # in thousandths of a sample, for whole numbers

    def of(self, samples: int) -> tuple[Any, Any]:
        from qllava.train.memory import Batch

        longest = (samples * getattr(self.largest, n) for n in ("positions", "images", "labels"))
        mean = (max(1, round(samples * getattr(self.mean, n) / 1000)) for n in ("positions", "images", "labels"))
        return Batch(*longest), Batch(*mean)


def lengths(stage: str, max_length: int, patches: int) -> Lengths:
    """What samples of a stage are assumed to be."""
    from qllava.train.memory import Batch

    if stage == "align":
        mean = Batch(1000 * (patches + CAPTION), 1000, 1000 * CAPTION)
        return Lengths(Batch(patches + LONG_CAPTION, 1, LONG_CAPTION), mean)
    total = sum(p.samples for p in MIX)

    def over(value: Any) -> int:
        return round(1000 * sum(p.samples * value(p) for p in MIX) / total)

    def middle(span: tuple[int, int]) -> float:
        return sum(span) / 2

    def words(part: Any) -> float:
        return min(LONGEST, middle(part.turns) * (middle(part.question) + middle(part.answer)))

    mean = Batch(
        over(lambda p: SYSTEM + words(p) + TURN * middle(p.turns) + patches * p.image),
        over(lambda p: p.image),
        over(lambda p: middle(p.turns) * (middle(p.answer) + 1)),
    )
    return Lengths(Batch(max_length, 1, max_length - patches), mean)


def write_config(model: str, folder: Path) -> str:
    """A LLaVA's folder with its configuration alone."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    shape = SHAPES[model]
    llm = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, vocab_size=shape.vocabulary,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=shape.tower_hidden, intermediate_size=4 * shape.tower_hidden, num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads, image_size=shape.edge, patch_size=shape.patch,
    )  # fmt: skip
    LlavaConfig(vision_config=tower, text_config=llm, image_token_index=32_000).save_pretrained(folder / model)
    return str(folder / model)


class Job:
    """A shipped recipe on a model of given size."""

    def __init__(self, model: str, name: str, base: str) -> None:
        from qllava.recipe import load_recipe
        from qllava.train.plan import Known

        self.model, self.name = model, name
        self.recipe = load_recipe(f"llava15-{model}/{name}", [f"base={base}", "projector=null"])
        self.known = Known(self.recipe)
        self.lengths = lengths(self.recipe.stage, self.recipe.max_length, self.known.shape.patches)
        self.steps = -(-SAMPLES[self.recipe.stage] // self.recipe.global_batch_size)

    def hours(self, seconds: float) -> float:
        """Of all steps."""
        return self.steps * seconds / 3600


@dataclass
class Figures:
    """All that the page tells."""

    jobs: dict[tuple[str, str], Job]  # by model and recipe
    plans: dict[tuple[str, str, str, int], Any]  # `Across` by model, recipe, card and number of cards
    held: Mapping[str, Any] | None  # results/held.json
    planner: list[float]  # measured over foretold peaks, one process on a CPU

    @cached_property
    def published(self) -> list[tuple[Job, str, str, float, float]]:
        """Job, card, engine, published hours, the formula's for the original's settings."""
        from qllava.train.across import engine_named
        from qllava.train.cluster import cluster_of
        from qllava.train.engine import fit
        from qllava.train.plan import Planner

        rows = []
        for model, name, card, engine, hours in PUBLISHED:
            job, cluster, how = self.jobs[model, name], cluster_of(card, 8), engine_named(engine, 8)
            recipe = fit(job.recipe, how, torch.bfloat16)
            planner = Planner(
                recipe, None, None, torch.bfloat16, "cuda", how, None, cluster, job.known, job.lengths
            )  # fmt: skip
            size, layers = recipe.per_device_train_batch_size, planner.shape.layers
            said = planner.choice(size, layers, recipe.optim, cluster.card.memory)
            rows.append((job, card, engine, hours, job.hours(said.seconds)))
        return rows


def figures() -> Figures:
    from qllava.train.across import across
    from qllava.train.cluster import cluster_of

    jobs, plans = {}, {}
    with tempfile.TemporaryDirectory(prefix="qllava-scaling-") as temporary:
        for model in MODELS:
            base = write_config(model, Path(temporary))
            for name in RECIPES:
                job = jobs[model, name] = Job(model, name, base)
                for card, count in CLUSTERS:
                    plans[model, name, card, count] = across(
                        job.recipe, cluster_of(card, count), known=job.known, sizes=job.lengths
                    )
    file = RESULTS / "held.json"
    ratios = [
        row["peak"] / row["predicted"]
        for result in sorted(RESULTS.glob("planner_*.json"))
        for row in json.loads(result.read_text())["configurations"]
        if row["peak"]
    ]
    return Figures(jobs, plans, json.loads(file.read_text()) if file.is_file() else None, ratios)
