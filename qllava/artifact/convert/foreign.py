"""Adapters that others wrote, as this package's: LoRA by today's keys, the projector beside it, and a manifest.

In: what LLaVA's own code (LoRA folder, `mm_projector.bin`), plain PEFT (keys of transformers 4 or 5) or XTuner wrote, and the
base it sits on. Out: an adapter artifact. Every tensor finds its place, or the source is refused and its keys are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ...errors import RunError, UserError
from ...model import dialects
from ...model.base import config_of, portable, skeleton, sources
from ...model.fingerprint import fingerprint
from ...model.lora import LANGUAGE
from ...model.projector import FILE as PROJECTOR_FILE
from ...model.projector import MARK, read_projector
from ...model.projectors import described, kind_of
from ...recipe.projector import DEEPEST
from ...recipe.schema import Parts
from ..delta import CONFIG, WEIGHTS, Change, scaling_of
from ..load import find_artifact
from ..manifest import Base, Manifest, read_manifest, writing
from .base import find_base
from .original import RECORD, aspect_ratio, check_config
from .peft_config import plain_config
from .read import State, first_file, read_json, read_tensors
from .source import ADAPTERS, PROJECTOR, TRAINABLES, Source, look

LORA = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
SEQUENTIAL = {f"model.{2 * n - 2}.": f"linear_{n}." for n in range(1, DEEPEST + 1)}  # XTuner's projector


@dataclass
class Gathered:
    """A foreign adapter's tensors."""

    lora: dict[str, State] = field(default_factory=dict)  # by module path in memory: {".lora_A.weight": tensor}
    projector: State = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # adapter_config.json
    strange: list[str] = field(default_factory=list)  # keys, as they were, that have no place


def normalised(
    source: str | Path | Source, base: str | Parts | None, out: Path, vision_tower: str | None = None
) -> Manifest:
    """Writes a foreign adapter as an adapter artifact to `out`, and returns its manifest.

    Args:
        base: what it sits on; by default what its adapter_config.json names. An LLM alone is joined with the vision tower
            that the original's config names. A projector alone needs none, and then serves as a recipe's `projector`.

    Raises:
        UserError: it has tensors without a place, or no base can be found.
        RunError: a file is damaged.
    """
    source = source if isinstance(source, Source) else look(source)
    found = gather(source)
    if found.strange:
        _refuse(source, found.strange)
    if source.config and "mm_projector_type" in source.config:
        check_config(source.config, source.path)
    if found.projector and kind_of(found.projector) is None:
        raise UserError(
            f"The projector in {source.path} is no mlp2x_gelu of LLaVA-1.5, nor another of LLaVA's: it has {sorted(found.projector)}."
        )
    given = base or found.config.get("base_model_name_or_path")
    alone = not found.lora and given is None
    whole = None if alone else find_base(source, given, vision_tower, kind_of(found.projector))
    dtypes = {str(v.dtype).removeprefix("torch.") for v in found.projector.values()}
    if not found.projector:
        found.projector = _bases_projector(source, whole)
    found.projector = {k: v.float() for k, v in found.projector.items()}
    config = None
    if whole is not None:
        config = _fit(source, found, whole)
    record = {"projector_dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    if source.config.get("mm_vision_tower"):
        record["config"] = source.config
    if (source.path / TRAINABLES).is_file():
        record["adapter_config"] = found.config
    manifest = _manifest(source, found, whole, record)
    with writing(out, manifest) as partial:
        save_file(found.projector, partial / PROJECTOR_FILE, metadata={"format": "pt"})
        if config is not None:
            state = {f"{dialects.PEFT}{m}{end}": v.contiguous() for m, t in found.lora.items() for end, v in t.items()}
            save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
            config.save_pretrained(partial)
    return manifest


# -- reading
def gather(source: Source) -> Gathered:
    """All tensors of a foreign adapter, sorted by where they belong.

    Raises:
        UserError: it is no adapter.
        RunError: a file is damaged or missing.
    """
    found = Gathered()
    if source.kind == "projector":
        file = source.path if source.path.is_file() else source.path / PROJECTOR
        _sort(read_tensors(file), found)
        if not found.projector and not found.strange:
            raise UserError(f"{file} holds no projector.")
    elif source.kind == "peft":
        _peft(source.path, found)
    elif source.kind == "xtuner":
        _xtuner(source.path, found)
    else:
        raise UserError(f"{source.path} is a whole model, no adapter.")
    return found


def _peft(folder: Path, found: Gathered) -> None:
    weights = first_file(folder, *ADAPTERS)
    trained = first_file(folder, TRAINABLES)
    if weights is not None and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has {weights.name} but no {CONFIG}, which says how the LoRA is scaled.")
    if weights is None and (trained is None or (folder / CONFIG).is_file()):
        raise RunError(f"{folder} is not whole: it has no {' or '.join(ADAPTERS)}.")
    if (folder / CONFIG).is_file():
        found.config = read_json(folder / CONFIG)
    for file in (weights, trained):
        if file is not None:
            _sort(read_tensors(file), found)


def _xtuner(folder: Path, found: Gathered) -> None:
    if (folder / "visual_encoder_adapter").exists():
        raise UserError(
            f"{folder} has LoRA on the vision tower (visual_encoder_adapter), which cannot be placed: merge it into the tower "
            "with XTuner first, and name that as the base's vision_tower."
        )
    if (folder / "llm_adapter").is_dir():
        _peft(folder / "llm_adapter", found)
    if (folder / "projector").is_dir():
        file = first_file(folder / "projector", "model.safetensors", "pytorch_model.bin")
        if file is None:
            raise RunError(f"{folder} is not whole: projector/ holds no weights.")
        for key, tensor in read_tensors(file).items():
            name = next((new + key[len(old) :] for old, new in SEQUENTIAL.items() if key.startswith(old)), None)
            if name is None:
                found.strange.append(f"projector/{key}")
            else:
                found.projector[name] = tensor


def _sort(state: State, found: Gathered) -> None:
    for key, tensor in state.items():
        name = dialects.adapter_to_runtime(key).removeprefix(dialects.PEFT)
        end = next((e for e in LORA if name.endswith(e)), None)
        if end is not None:
            found.lora.setdefault(name.removesuffix(end), {})[end] = tensor
        elif name.startswith(f"model.{MARK}") and "lora_" not in name:
            found.projector[name.split(MARK, 1)[1].replace("base_layer.", "")] = tensor
        else:
            found.strange.append(key)


def _refuse(source: Source, keys: list[str]) -> None:
    tower = any("vision" in k or "visual" in k for k in keys)
    raise UserError(
        f"{source.path} holds {len(keys)} tensor(s) that have no place in an adapter (LoRA on the LLM's linears, and the "
        f"projector): {', '.join(keys[:3])}. Nothing is left out in silence, so it is refused."
        + (" Merge what sits on the vision tower into a base of its own first." if tower else "")
    )


# -- fitting
def _bases_projector(source: Source, base: str | Parts | None) -> State:
    if base is None or isinstance(base, Parts):
        raise UserError(
            f"{source.path} holds no projector, and neither does a base of parts. Name a whole LLaVA with --base."
        )
    return read_projector(_folder(base))


def _folder(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base)
    from ...model.fingerprint import weight_files

    return weight_files(base)[0].parent


def _fit(source: Source, found: Gathered, base: str | Parts) -> Any:
    """Checks that all has its place in the base, and gives the `LoraConfig` of what is there; None without LoRA.

    LoRA on the projector, which is always stored whole, is added to its weights.
    """
    model = skeleton(config_of(base))
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for module in [m for m in found.lora if m.startswith(f"model.{MARK}") and m in linears]:
        _fold(source, found, module)
    strange = [m for m in found.lora if not (m.startswith(LANGUAGE) and m in linears)]
    if strange:
        _refuse(source, [f"LoRA on {m}" for m in strange])
    for module, tensors in found.lora.items():
        if not {LORA[0], LORA[1]} <= set(tensors):
            raise RunError(f"{source.path} is not whole: LoRA on {module} has {sorted(tensors)} only.")
        a, b, linear = tensors[LORA[0]], tensors[LORA[1]], linears[module]
        if a.shape[1] != linear.in_features or b.shape[0] != linear.out_features or a.shape[0] != b.shape[1]:
            raise UserError(
                f"{source.path} does not fit the base {portable(base)}: LoRA on {module} is for a linear of "
                f"{a.shape[1]} to {b.shape[0]}, and the base's is of {linear.in_features} to {linear.out_features}."
            )
    own = {k: v.shape for k, v in model.model.multi_modal_projector.state_dict().items()}
    given = {k: v.shape for k, v in found.projector.items()}
    if own != given:
        raise UserError(
            f"The projector in {source.path} does not fit the base {portable(base)}: it is {described(given)}, and the base's is "
            f"{described(own)}."
        )
    if not found.lora:
        return None
    ranks = {module: tensors[LORA[0]].shape[0] for module, tensors in found.lora.items()}
    language = [n for n in linears if n.startswith(LANGUAGE)]
    return plain_config(found.config, ranks, language, base if isinstance(base, str) else None, source.path)


def _fold(source: Source, found: Gathered, module: str) -> None:
    tensors = found.lora.pop(module)
    name = f"{module.split(MARK, 1)[1]}.weight"
    if not {LORA[0], LORA[1]} <= set(tensors):
        raise RunError(f"{source.path} is not whole: LoRA on {module} has {sorted(tensors)} only.")
    a, b = tensors[LORA[0]].float(), tensors[LORA[1]].float()
    rank = a.shape[0]
    config = plain_config(found.config, {module: rank}, [module], None, source.path)
    magnitude = next((tensors[e].float().flatten() for e in LORA[2:] if e in tensors), None)
    found.projector[name] = Change(a, b, scaling_of(config, module, rank), magnitude).applied(found.projector[name])


def _manifest(source: Source, found: Gathered, base: str | Parts | None, record: dict[str, Any]) -> Manifest:
    artifact = find_artifact(base) if isinstance(base, str) else None
    like = read_manifest(artifact) if artifact is not None else None
    if source.config.get("mm_vision_tower"):
        ratio = aspect_ratio(source.config)
    else:
        ratio = like.image_aspect_ratio if like is not None else "pad"
    template = like.template if like is not None and like.template != "plain" else "vicuna_v1"
    return Manifest(
        kind="adapter", holds="adapter", template=template if found.lora else "plain", image_aspect_ratio=ratio,
        base=None if base is None else Base(source=portable(base), fingerprint=fingerprint(sources(base))),
        tune="lora" if found.lora else "projector", report={"converted_from": str(source.path.resolve()), RECORD: record},
    )  # fmt: skip
