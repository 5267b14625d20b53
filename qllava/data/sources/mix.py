"""A mix: which sets, from which files, under which rules. YAML in, checked against what each set takes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import UserError, nearest
from ...recipe.load import read_yaml
from ...recipe.shipped import root
from ..sample import PLACEHOLDER, is_text
from .own import COLUMNS
from .rules import REGION
from .sets import SETS

Positive = Annotated[int, Field(gt=0)]
Files = dict[str, str | list[str] | None]
COMMON = {"set", "files", "images", "cap", "published"}  # fields that every set takes


class Source(BaseModel):
    """One source of a mix. Which fields a set takes beside the common ones, `sets.py` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    set: str  # how its files are read
    files: Files = {}  # under --raw, by what they are; what is left out lies where the set's own layout has it
    images: str | None = None  # folder before its images' names, under the image root
    prompt: str | list[str] | None = None  # of the response format
    prompt_on: Literal["first", "every"] = "first"  # question of a conversation
    split: str | None = None
    merge: bool = True  # the pairs of an image are one conversation
    per_image: Positive | None = None  # so many pairs of an image, drawn
    segment: Positive | None = None  # so many pairs a conversation at most
    each_choice: bool = True  # of multiple choice, each question once for every choice
    max_tokens: Positive | None = None  # after which a conversation ends, at a turn's border
    tokenizer: str | None = None  # that counts them
    columns: dict[str, str] = {}  # a table's own names of id, image, question and answer
    cap: Positive | None = None  # so many conversations, drawn
    published: Positive | None = None  # rows of this source in the published file, for the report


class Mix(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    title: str
    seed: int = 0
    sources: dict[str, Source | None]


def load_mix(name: str) -> Mix:
    """The mix of a YAML file, or of a shipped one's name.

    Raises:
        UserError: there is none, or it is wrong; every mistake is named.
    """
    values = read_yaml(find_mix(name), kind="mix", named=_shipped())
    try:
        mix = Mix.model_validate(values)
    except ValidationError as error:
        wrong = [_explain(e) for e in error.errors()]
    else:
        mix.sources = {k: v for k, v in mix.sources.items() if v is not None}  # taken out by a mix that extends another
        wrong = [f"sources.{k}.{w}" for k, source in mix.sources.items() for w in _broken(k, source)]
        if not mix.sources:
            wrong.append("sources: names none.")
    if wrong:
        raise UserError(
            f"{name} has {len(wrong)} mistake{'s' * (len(wrong) > 1)}:\n" + "\n".join(f"  - {w}" for w in wrong)
        )
    return mix


def find_mix(name: str) -> Path:
    """The file.

    Raises:
        UserError: there is none.
    """
    shipped = _shipped()
    with suppress(OSError, ValueError):  # a name that no file can have
        if Path(name).is_file():
            return Path(name)
    if name not in shipped:
        raise UserError(
            f"No mix {name[:80]!r}.{nearest(name, shipped)} Shipped are {', '.join(shipped)}; any other is a YAML file."
        )
    return shipped[name]


def _shipped() -> dict[str, Path]:
    return {p.stem: p for p in sorted((root() / "mixes").glob("*.yaml"))}


def _broken(name: str, source: Source) -> list[str]:
    """What is wrong with a source beyond its types."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        return ["name: may hold letters, digits, - and _, since files are named after it."]
    kind = SETS.get(source.set)
    if kind is None:
        return [f"set: no set {source.set!r}.{nearest(source.set, SETS)} There are {', '.join(SETS)}."]
    wrong = [
        f"files.{role}: {source.set} has {', '.join(kind.files)}.{nearest(role, kind.files)}"
        for role in source.files
        if role not in kind.files
    ]
    wrong += [f"{field}: {source.set} does not take it; it takes {', '.join(sorted(COMMON | kind.takes))}."
              for field in sorted(source.model_fields_set - COMMON - kind.takes)]  # fmt: skip
    wrong += [
        f"files.{role}: is needed, so it cannot be null."
        for role, v in source.files.items()
        if not v and role in kind.files and role not in kind.optional
    ]
    lost = [r for r, path in kind.files.items() if not path and not source.files.get(r)]
    wrong += [
        f"files.{role}: is missing; {source.set} lies nowhere of itself." for role in lost if role not in source.files
    ]
    wrong += [
        f"columns.{c}: there are {', '.join(COLUMNS)}.{nearest(c, COLUMNS)}" for c in source.columns if c not in COLUMNS
    ]
    if source.split is not None and kind.splits and source.split not in kind.splits:
        wrong.append(f"split: no {source.split!r}; {source.set} has {', '.join(kind.splits)}.")
    prompts = source.prompt if isinstance(source.prompt, list) else [source.prompt] * (source.prompt is not None)
    if kind.kind == "regions" and (len(prompts) != 2 or not all(REGION in p for p in prompts)):
        wrong.append(f"prompt: is a list of two, to describe a region and to locate one, each with {REGION} in it.")
    if kind.kind == "captions" and not prompts:
        wrong.append("prompt: is what asks for the caption, so it cannot be left out.")
    if any(PLACEHOLDER in p for p in prompts):
        wrong.append(f"prompt: holds {PLACEHOLDER}, which is put before the first question anyway; leave it out.")
    if not all(map(is_text, prompts)):
        wrong.append("prompt: holds half of a surrogate pair, which is no character.")
    images = source.images or ""
    if images.startswith("/") or ".." in images.replace("\\", "/").split("/"):  # ./ has become this file's folder
        wrong.append("images: leaves the image root; name a folder in it, without / or ./ before it.")
    if not is_text(images) or "\0" in images:
        wrong.append("images: holds what is no character.")
    if isinstance(source.prompt, list) and kind.kind not in ("regions", "captions"):
        wrong.append("prompt: is one text.")
    return wrong


def _explain(error: Any) -> str:
    field = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "missing":
            return f"{field}: is missing."
        case "extra_forbidden":
            known = Source.model_fields if len(error["loc"]) > 1 else Mix.model_fields
            return f"{field}: no such field.{nearest(str(error['loc'][-1]), known)} There are: {', '.join(known)}."
        case _:
            return f"{field}: {error['msg']} (got {str(error['input'])[:60]!r})."
