"""A study: what differs, its arms, the stages that each arm runs through, and how the models are scored. In: YAML.

In a stage's overrides `$data` is the folder that `prepare` fills, and `$STAGE` the run of an earlier stage of the same arm
and seed. An arm's overrides are laid on those of the study's stage.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import UserError, nearest
from ..recipe.load import read_yaml
from ..recipe.schema import Block, Positive
from ..recipe.shipped import root

FOLDER = "studies"  # under recipes/
DATA = "data"  # the word for what `prepare` made, and its folder in a study's
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*")  # of an arm or a stage: a folder's name
WORD = re.compile(r"\$([A-Za-z0-9_-]+)")


class Stage(Block):
    """One run of a chain."""

    recipe: Annotated[str, Field(min_length=1)]
    """YAML file, or the name of a shipped recipe."""
    overrides: dict[str, Any] = Field(default={})
    """Fields by their dotted names: `lora.r: 64`. A `seed` here holds for every seed of the study."""


class Change(Block):
    """What an arm has of its own in one stage."""

    recipe: str | None = None
    overrides: dict[str, Any] = Field(default={})


class Arm(Block):
    """One of the things that are compared."""

    title: str | None = None
    """As the table has it; by default the arm's name."""
    stages: dict[str, Change] = Field(default={})
    paper: dict[str, float] = Field(default={})
    """The paper's own figures, by evaluation."""
    note: str | None = None


class Evaluation(Block):
    """How a model is scored: on a set of one's own, or on one of the paper's benchmarks."""

    data: str | None = None
    """LLaVA JSON with answers."""
    image_root: str | None = None
    """Folder that its image paths start from; by default the JSON's."""
    metric: Literal["exact_match", "vqa_accuracy", "rouge_l", "cider"] = "exact_match"
    """Of the set of one's own, told in percent; a benchmark has its own."""
    max_new_tokens: Positive | None = None
    benchmark: str | None = None
    root: str = "playground/data/eval"
    title: str | None = None
    limit: Positive | None = None
    batch_size: Positive = 32

    @model_validator(mode="after")
    def _one(self) -> Evaluation:
        if (self.data is None) == (self.benchmark is None):
            raise PydanticCustomError("one", "names either data, a set of one's own, or a benchmark")
        if self.benchmark is not None and self.limit is not None:
            raise PydanticCustomError("limit", "has a limit, under which a benchmark has no score")
        return self


class Study(Block):
    """What `qllava ablate` runs."""

    title: Annotated[str, Field(min_length=1)]
    axis: Annotated[str, Field(min_length=1)]
    """What differs between the arms, in a few words: the table's first column."""
    prepare: str | None = None
    """Demo data to make first: `captions`, `easyvqa`, `glyphs`; several with commas."""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    """The chain that every arm runs through, in order."""
    arms: Annotated[dict[str, Arm], Field(min_length=2)]
    reference: str | None = None
    """The arm that differences are taken from; by default the first."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (1, 2, 3)
    evaluate: Annotated[dict[str, Evaluation], Field(min_length=1)]
    source: str | None = None
    """Where the paper's figures stand."""
    notes: tuple[str, ...] = ()
    """Told under the table."""

    @property
    def against(self) -> str:
        return self.reference or next(iter(self.arms))


def load_study(source: str | Path) -> Study:
    """The study of a YAML file, or of a shipped study's name.

    Raises:
        UserError: there is none, or it is wrong; every mistake is named.
    """
    values = read_yaml(find_study(source), kind="study")
    try:
        study = Study.model_validate(values)
        wrong = broken(study)
    except ValidationError as error:
        wrong = [_explain(e) for e in error.errors()]
    if wrong:
        many = "s" * (len(wrong) > 1)
        raise UserError(f"{source} has {len(wrong)} mistake{many}:\n" + "\n".join(f"  - {w}" for w in wrong))
    return study


def list_studies() -> list[tuple[str, Path, str]]:
    """Name, file and first line of every shipped study."""
    files = sorted((root() / FOLDER).glob("*.yaml"))
    return [(f.stem, f, f.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()) for f in files]


def find_study(source: str | Path) -> Path:
    """The file of a study.

    Raises:
        UserError: there is none.
    """
    names = {name: path for name, path, _ in list_studies()}
    if str(source) in names:
        return names[str(source)]
    path = Path(source)
    if not path.is_file():
        near = nearest(str(source), names)
        raise UserError(f"No study '{source}'.{near} `qllava ablate --list` lists those that are shipped.")
    return path


def broken(study: Study) -> list[str]:
    """The rules that join several fields."""
    wrong, stages = [], list(study.stages)
    for kind, names in (("stages", stages), ("arms", study.arms), ("evaluate", study.evaluate)):
        wrong += [f"{kind}.{n}: is no name for a folder; use letters, digits, . _ % + and -." for n in names if not NAME.fullmatch(n)]  # fmt: skip
    if DATA in stages:
        wrong.append(f"stages.{DATA}: the word is taken; ${DATA} is what `prepare` made.")
    if study.against not in study.arms:
        wrong.append(f"reference: no arm '{study.against}'.{nearest(study.against, study.arms)}")
    if len(set(study.seeds)) < len(study.seeds):
        wrong.append("seeds: one of them stands twice.")
    for name, arm in study.arms.items():
        for stage in arm.stages:
            if stage not in stages:
                wrong.append(f"arms.{name}.stages.{stage}: no such stage.{nearest(stage, stages)}")
        for figure in arm.paper:
            if figure not in study.evaluate:
                wrong.append(f"arms.{name}.paper.{figure}: no such evaluation.{nearest(figure, study.evaluate)}")
    for number, stage in enumerate(stages):
        known = [*stages[:number], *([DATA] if study.prepare else [])]
        blocks = [study.stages[stage].overrides, *(a.stages[stage].overrides for a in study.arms.values() if stage in a.stages)]  # fmt: skip
        for word in sorted(set().union(*(words(b) for b in blocks))):
            if word not in known:
                hint = "`prepare` makes nothing" if word == DATA else f"there is {', '.join(known) or 'none'} before it"
                wrong.append(f"stages.{stage}: ${word} is not known there; {hint}.")
        if "output_dir" in {k for b in blocks for k in b}:
            wrong.append(f"stages.{stage}: output_dir is the study's to choose; drop it.")
    return wrong


def words(value: Any) -> set[str]:
    """The `$words` in the texts of a value."""
    if isinstance(value, dict):
        return set().union(*map(words, value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*map(words, value)) if value else set()
    return set(WORD.findall(value)) if isinstance(value, str) else set()


def filled(value: Any, meaning: dict[str, str]) -> Any:
    """The value with each `$word` in its texts replaced."""
    if isinstance(value, dict):
        return {k: filled(v, meaning) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [filled(v, meaning) for v in value]
    return WORD.sub(lambda m: meaning.get(m[1], m[0]), value) if isinstance(value, str) else value


def _explain(error: Any) -> str:
    where = [str(p) for p in error["loc"]]
    field = ".".join(where) or "study"
    if error["type"] == "extra_forbidden":
        block = {1: Study, 3: {"stages": Stage, "arms": Arm, "evaluate": Evaluation}.get(where[0], Study)}.get(len(where), Change)  # fmt: skip
        known = list(block.model_fields)
        return f"{field}: no such field." + (nearest(where[-1], known) or f" There are: {', '.join(known)}.")
    if error["type"] == "missing":
        return f"{field}: is missing."
    return f"{field}: {error['msg']} (got {str(error['input'])[:60]!r})."
