"""From YAML to a `Recipe`: `extends`, dotted overrides, and all errors at once.

In: a path (or a shipped recipe's name) and overrides like `lora.r=64`. Out: a `Recipe`. Paths inside a recipe are taken
relative to the folder of the YAML file that names them, when they start with `./` or `../`; all others stay as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError, nearest
from .rules import broken
from .schema import Recipe
from .shipped import find_shipped, list_shipped

REMEDIES = {  # names that people bring from elsewhere, and what they are here
    "warmup_ratio": "transformers 5 calls it warmup_steps: below 1 it is the share of all steps.",
    "gradient_accumulation_steps": "set global_batch_size; accumulation follows from it and the number of processes.",
    "train_batch_size": "set global_batch_size and per_device_train_batch_size.",
    "mm_projector_lr": "it is called projector_learning_rate here.",
    "mm_vision_tower_lr": "it is called vision_tower_learning_rate here.",
    "unfreeze_mm_vision_tower": "write tune_vision_tower: full.",
    "eval_strategy": "write eval_share, and eval_steps for how often.",
    "hub_model_id": "write push_to_hub: owner/name.",
    "lora_r": "write lora.r.",
    "lora_alpha": "write lora.lora_alpha.",
    "lora_dropout": "write lora.lora_dropout.",
    "bits": "write tune: qlora for 4 bits.",
    "bf16": "write dtype: bfloat16.",
    "fp16": "write dtype: float16.",
    "version": "the prompt is called template here (v1 is vicuna_v1).",
    "model_max_length": "it is called max_length here.",
    "model_name_or_path": "it is called base here.",
    "data_path": "write data: [{path: …, image_root: …}].",
    "image_folder": "write data: [{path: …, image_root: …}].",
}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of a shipped recipe's name, with overrides applied last.

    Raises:
        UserError: the file is missing or no mapping, or the recipe is wrong; every mistake is named.
    """
    return resolve_recipe(read_yaml(_find(source)), overrides, str(source))


def resolve_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "recipe") -> Recipe:
    """A recipe from its values and overrides like `learning_rate=1e-4` or `lora.r=64`.

    Raises:
        UserError: every mistake of the recipe at once, each with the nearest valid name or the remedy.
    """
    merged = dict(values)
    for override in overrides:
        merged = merge(merged, parse_override(override))
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        raise UserError(_report(name, [_explain(e) for e in error.errors() if not _other_form(e)])) from None
    wrong = [f"{field}: {message}" for field, message in broken(recipe)]
    if wrong:
        raise UserError(_report(name, wrong))
    return recipe


def read_yaml(
    path: Path, seen: tuple[Path, ...] = (), kind: str = "recipe", named: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """The file's values on top of those of the file it `extends`.

    Args:
        kind: what the file is, for messages.
        named: files that `extends` may name by a word.

    Raises:
        UserError: it is missing, is not YAML, is not a mapping, names a key twice, or extends or holds itself.
    """
    try:
        path = path.resolve()
    except (OSError, ValueError) as error:
        raise UserError(f"No {kind} at {str(path)[:80]!r}: {error}.") from None
    if path in seen:
        raise UserError(f"{path} extends itself, by way of {', '.join(p.name for p in seen)}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"No {kind} at {path}.{_shipped(path, named)}") from None
    except _Doubled as error:
        raise UserError(f"{path}, {error}") from None
    except (yaml.YAMLError, ValueError, IndexError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        holds = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UserError(f"{path} is not a {kind}: it {holds}, and should hold fields with values.")
    try:
        values = _anchor(values, path.parent)
    except RecursionError:
        raise UserError(f"{path}: an alias (*) in it stands for what it is in, so that it holds itself.") from None
    parent = values.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{path}: extends names one YAML file, not {str(parent)[:60]!r}.")
    if parent is None:
        return values
    return merge(read_yaml((named or {}).get(parent, path.parent / parent), (*seen, path), kind, named), values)


def _shipped(path: Path, named: Mapping[str, Path] | None) -> str:
    """What is meant, perhaps, by a file that is not there."""
    if named is not None:
        return f"{nearest(path.name.removesuffix('.yaml'), named)} Shipped are {', '.join(named)}."
    near = nearest("/".join(path.parts[-2:]).removesuffix(".yaml"), [s.name for s in list_shipped()])
    return f"{near} `qllava recipes` lists those that are shipped."


class _Doubled(yaml.YAMLError):
    """A key that stands twice in a mapping: YAML itself forbids it, and the reader would take the last."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-5` as a string; here it is a number. A key that stands twice is refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in known:
                    raise _Doubled(f"line {key.start_mark.line + 1}: {key.value!r} stands there a second time.")
                known.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping; anything else is replaced whole."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """`{"lora": {"r": 64}}` from `lora.r=64`; the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(
            f"'{text}' is no override; write key=value, for example learning_rate=1e-4 or "
            "lora.r=64; a value with spaces goes in quotes: 'data=[{path: mine.json, image_root: images}]'."
        )
    try:
        parsed: Any = yaml.load(value, Loader=_Loader)
    except _Doubled as error:
        raise UserError(f"'{text[:80]}': {error}") from None
    except yaml.YAMLError:
        parsed = value
    for key in reversed(path.strip().split(".")):
        parsed = {key: parsed}
    return parsed


def _find(source: str | Path) -> Path:
    path = Path(source)
    try:
        return path if path.exists() else find_shipped(str(source)) or path
    except (OSError, ValueError) as error:
        raise UserError(f"No recipe at {str(source)[:80]!r}: {error}.") from None


def _anchor(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):  # `image_root` starts from the JSON's folder, whatever file names it
        return {k: v if k in ("extends", "image_root") else _anchor(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_anchor(v, folder) for v in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((folder / value).resolve())
    return value


def _other_form(error: Mapping[str, Any]) -> bool:
    """Of a base that is written as parts, that it is no text."""
    return tuple(error["loc"]) == ("base", "str") and isinstance(error["input"], Mapping)


def _report(name: str, wrong: Sequence[str]) -> str:
    return f"{name} has {len(wrong)} mistake{'s' * (len(wrong) > 1)}:\n" + "\n".join(f"  - {w}" for w in wrong)


def _explain(error: Mapping[str, Any]) -> str:
    loc = error["loc"]
    where = [
        str(p) for i, p in enumerate(loc) if not (i == 1 and loc[0] == "base" and (p == "str" or "Parts" in str(p)))
    ]
    field = ".".join(where)
    match error["type"]:
        case "extra_forbidden":
            known = list(_fields_at(where[:-1]))
            if where[-1] in REMEDIES:
                return f"{field}: no such field; {REMEDIES[where[-1]]}"
            close = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
            return f"{field}: no such field." + (
                f" Did you mean '{close[0]}'?" if close else f" There are: {', '.join(known)}."
            )
        case "missing":
            return f"{field}: is missing."
        case "literal_error":
            allowed = error["ctx"]["expected"]
            close = difflib.get_close_matches(
                str(error["input"]), [a.strip(" '") for a in allowed.replace(" or ", ",").split(",")], 1, 0.4
            )
            return f"{field}: {error['input']!r} is none of {allowed}." + (
                f" Did you mean '{close[0]}'?" if close else ""
            )
        case _:
            return f"{field}: {error['msg']} (got {str(error['input'])[:60]!r})."


def _fields_at(path: Sequence[str]) -> Sequence[str]:
    """Names of the fields of the block at that path."""
    block: type[BaseModel] = Recipe
    for key in path:
        if key.isdigit():
            continue
        annotation = block.model_fields[key].annotation
        candidates = [annotation, *get_args(annotation)]
        block = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(block.model_fields)
