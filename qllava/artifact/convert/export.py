"""A LLaVA or an adapter in LLaVA's own layout, as its loader reads it.

In: an artifact, or a Hugging Face LLaVA. Out: of a whole model, a folder with `model_type: llava_llama`; of an adapter,
`adapter_model.bin`, `non_lora_trainables.bin` (torch's format is the original's there) and the configs. What an import kept
in the manifest comes back as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import LlavaConfig

from ... import console
from ...data.processing import load_image_processor, load_tokenizer
from ...errors import UserError
from ...model import dialects
from ...model.base import config_of, locate
from ...model.lora import LANGUAGE
from ...model.projector import MARK, read_projector
from ...model.projectors import kind_of, projector_type
from ...model.tower import FILE as TOWER_FILE
from ...recipe.projector import LINEAR
from ...recipe.schema import Parts
from ..delta import CONFIG, read_lora
from ..load import base_of, find_artifact
from ..manifest import Manifest, read_manifest, writing
from .original import RECORD, check_state, published
from .original_config import check_projector, flat_config, own_size, write_tokenizer
from .peft_config import alpha_of
from .read import State, read_whole_state
from .source import PROJECTOR, TRAINABLES, Source

TOWER = "model.vision_tower.vision_tower.vision_model."
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def _lineage(manifest: Manifest | None) -> Iterator[tuple[Manifest, Any]]:
    """The manifest and those of what it was made from, each with the base or the parts that it names."""
    for _ in range(8):
        if manifest is None:
            return
        merged_from = (manifest.report.get("base") or {}).get("source")
        named = manifest.base.source if manifest.base is not None else merged_from or manifest.report.get("parts")
        yield manifest, named
        folder = find_artifact(named) if isinstance(named, str) else None
        manifest = None if folder is None else read_manifest(folder)


def recorded(manifest: Manifest | None) -> dict[str, Any]:
    """What an import of the original kept: in this manifest, or in that of what it was made from; {} if nothing."""
    records = (m.report.get(RECORD, {}) for m, _ in _lineage(manifest))
    return next((r for r in records if r.get("config")), {})


def tower_of(manifest: Manifest | None) -> str | None:
    """The vision tower that was taken once, by its hub id or folder; None if nothing says."""
    if named := recorded(manifest).get("config", {}).get("mm_vision_tower"):
        return named
    parts = next((named for _, named in _lineage(manifest) if isinstance(named, dict)), None)
    return None if parts is None else locate(Parts(**parts)).vision_tower


def _tower_trained(manifest: Manifest | None) -> bool:
    line = [m for m, _ in _lineage(manifest)]
    by_recipe = any((m.recipe or {}).get("tune_vision_tower", "frozen") != "frozen" for m in line)
    return by_recipe or any(m.report.get("tower_changed") for m in line)


def export_whole(source: Source, out: Path, vision_tower: str | None = None) -> Path:
    """Writes a whole model in the original's layout, its vocabulary without the rows that only transformers needs.

    The tower's weights go along if they came along or were trained. Where nothing says which tower it is, it is written
    beside the model, and named.

    Raises:
        UserError: it has a part that the original's code does not know.
        RunError: a file is damaged.
    """
    config = config_of(str(source.path))
    record = recorded(source.manifest)
    tokenizer, model_file = load_tokenizer(str(source.path))
    size = own_size(tokenizer, record)
    state = published(read_whole_state(source.path))
    check_state(state, config, source.path)  # 4-bit weights do not pass
    linear = check_projector(projector_type(config)) == LINEAR
    state = {dialects.to_original(dialects.to_runtime(k), linear): v for k, v in state.items()}
    size = min(size, len(state[TABLES[0]]))
    tower = {k: v for k, v in state.items() if k.startswith("model.vision_tower.")}
    state = {k: v[:size].clone() if k in TABLES else v.contiguous() for k, v in state.items() if k not in tower}
    trained = _tower_trained(source.manifest)
    named = vision_tower or tower_of(source.manifest)
    if record.get("tower_in_weights") or trained:
        state |= tower
    with writing(out, None) as partial:
        if named is None:
            named = str((out / "vision_tower").resolve())
            _write_tower(tower, config, source.path, partial / "vision_tower")
            console.note(
                f"Nothing says which vision tower this is, so it is written to {named}, and named by that path."
            )
        flat = flat_config(config, record.get("config"), size, named, _ratio(source.manifest))
        if "torch_dtype" not in flat or flat["torch_dtype"] is not None:  # null there: whatever the files have
            flat["torch_dtype"] = str(state[TABLES[0]].dtype).removeprefix("torch.")
        if trained:
            flat["unfreeze_mm_vision_tower"] = True  # else the original's loader passes over the tower's weights
        save_torch_state_dict(state, partial, max_shard_size="5GB")
        _write_json(flat, partial / "config.json")
        write_tokenizer(tokenizer, model_file, source.path, partial)
    _warn_of_path(named)
    return out


def _ratio(manifest: Manifest | None) -> str:
    return manifest.image_aspect_ratio if manifest is not None else "pad"


def _write_tower(state: State, config: LlavaConfig, source: Path, folder: Path) -> None:
    folder.mkdir()
    save_file({k.removeprefix(TOWER.removesuffix("vision_model.")): v.contiguous() for k, v in state.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    vision = {**config.vision_config.to_dict(), "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    vision.pop("dtype", None)
    vision["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    _write_json(vision, folder / "config.json")
    images = load_image_processor(str(source)).to_dict()
    _write_json({**images, "image_processor_type": "CLIPImageProcessor"}, folder / "preprocessor_config.json")


def _warn_of_path(tower: str) -> None:
    if tower.startswith("."):
        console.note(
            f"mm_vision_tower is {tower}, which the original looks for from where it is started; --vision-tower names another."
        )


def _write_json(value: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


# -- adapters
def export_adapter(
    folder: Path, manifest: Manifest, out: Path, base: str | None = None, vision_tower: str | None = None
) -> Path:
    """Writes an adapter as the original does: LoRA and what else was trained, or a projector alone as `mm_projector.bin`.

    Raises:
        UserError: it changes the vision tower, which an adapter of the original cannot; or its base cannot be read.
        RunError: a file is damaged.
    """
    if (folder / TOWER_FILE).is_file():
        raise UserError(
            f"{folder} has a vision tower of its own, which the original's adapters cannot hold. Add --merge."
        )
    own = manifest.report.get(RECORD, {})
    dtype = getattr(torch, own.get("projector_dtype", "float32"))
    held = read_projector(folder)
    linear = check_projector(kind_of(held)) == LINEAR
    projector = {dialects.to_original(f"model.{MARK}{k}", linear): v.to(dtype) for k, v in held.items()}
    flat = _adapter_config(manifest, base, vision_tower)
    if flat is not None and _tower_trained(manifest):
        flat["unfreeze_mm_vision_tower"] = True  # its base's weights hold the tower
    lora = (folder / CONFIG).is_file()
    if lora and flat is None:
        raise UserError(f"{folder} names no base. Name it with --base.")
    state, config = _lora(folder, manifest, own, flat) if lora else ({}, {})
    with writing(out, None) as partial:
        if flat is not None:
            _write_json(flat, partial / "config.json")
        if lora:
            torch.save(state, partial / "adapter_model.bin")
            _write_json(config, partial / CONFIG)
            torch.save({dialects.PEFT + k: v for k, v in projector.items()}, partial / TRAINABLES)
        else:
            torch.save(projector, partial / PROJECTOR)
    return out


def _adapter_config(manifest: Manifest, base: str | None, vision_tower: str | None) -> dict[str, Any] | None:
    """The original's config.json of the whole model that an adapter makes; None where the base is not known."""
    record, named = recorded(manifest), vision_tower or tower_of(manifest)
    if record.get("config"):
        return flat_config(None, record["config"], None, named, manifest.image_aspect_ratio)
    if manifest.base is None:
        return None
    on = locate(base_of(manifest, base))
    if named is None:
        raise UserError(f"Nothing says which vision tower {on} has. Name it with --vision-tower, a hub id or a folder.")
    tokenizer, _ = load_tokenizer(on.llm if isinstance(on, Parts) else on)
    return flat_config(config_of(on), None, own_size(tokenizer, {}), named, manifest.image_aspect_ratio)


def _lora(folder: Path, manifest: Manifest, own: dict[str, Any], flat: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """LoRA's tensors by the original's keys, and an adapter_config.json that PEFT reads from 0.4 on."""
    state, config = read_lora(folder)
    paths = {k.removeprefix(dialects.PEFT).split(".lora_")[0]: v.shape[0] for k, v in state.items() if ".lora_A." in k}
    if strange := sorted(p for p in paths if not p.startswith(LANGUAGE)):
        raise UserError(f"{folder} has LoRA on {strange[0]}, which the original's adapters cannot hold. Add --merge.")
    state = {
        dialects.PEFT + dialects.to_original(k.removeprefix(dialects.PEFT)): v.contiguous() for k, v in state.items()
    }
    if own.get("adapter_config"):
        return state, own["adapter_config"]
    ends = {p.rsplit(".", 1)[1] for p in paths}
    layers = {int(m[1]) for p in paths if (m := re.search(r"\.layers\.(\d+)\.", p))}
    even = len(paths) == len(ends) * len(layers) and layers == set(range(flat["num_hidden_layers"]))
    known = {p: dialects.to_original(p) for p in paths}
    alphas = {p: alpha_of(config.to_dict(), p, config.lora_alpha) for p in paths}
    base = manifest.base.source if manifest.base is not None else None
    plain: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.get("llm") if isinstance(base, dict) else base,
        "inference_mode": True, "r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
        "target_modules": sorted(ends) if even else sorted(known.values()),
    }  # fmt: skip
    later = {
        "rank_pattern": {known[p]: r for p, r in paths.items() if r != config.r},
        "alpha_pattern": {known[p]: a for p, a in alphas.items() if a != config.lora_alpha},
        "use_rslora": bool(config.use_rslora), "use_dora": bool(config.use_dora),
    }  # fmt: skip
    return state, plain | {k: v for k, v in later.items() if v}  # PEFT before 0.7 knows none of these
