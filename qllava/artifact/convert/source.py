"""What a folder holds, told from what is in it. In: a folder, a file or a hub id. Out: `Source`. Names of folders mean nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from ...model.tiles import is_tiled
from ..load import find_artifact
from ..manifest import FILE, Manifest, read_manifest, verify_quick
from .read import first_file, read_json, weight_shards

Kind = Literal["adapter", "model", "hf", "original", "peft", "xtuner", "projector"]
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's weights
TRAINABLES = "non_lora_trainables.bin"  # what the original trains beside LoRA
PROJECTOR = "mm_projector.bin"  # what the original writes after stage 1
XTUNER = (
    "llm_adapter/adapter_config.json", "visual_encoder_adapter/adapter_config.json", "projector/model.safetensors",
    "projector/pytorch_model.bin",
)  # fmt: skip


@dataclass
class Source:
    """`adapter` and `model` are this package's artifacts; the others were written elsewhere.

    `hf` is a whole LLaVA of transformers in any key layout, `original` one of LLaVA's own code, `peft` an adapter in PEFT's
    format (the original's with its trainables too), `xtuner` XTuner's folders, `projector` a projector alone.
    """

    kind: Kind
    path: Path  # the folder; the file, where a projector's file was named
    config: dict[str, Any] = field(default_factory=dict)  # its config.json
    manifest: Manifest | None = None

    @property
    def is_llava(self) -> bool:
        """Whether an `original` is a LLaVA by its config, and not an LLM alone."""
        return any(n in self.config for n in ("mm_vision_tower", "mm_projector_type"))

    @property
    def whole(self) -> bool:
        return self.kind in ("model", "hf", "original")


def look(source: str | Path) -> Source:
    """What `source` holds.

    Raises:
        UserError: nothing is there, or nothing that this package knows.
        RunError: a file of an artifact is damaged.
    """
    local = Path(source).exists() or find_artifact(source) is not None
    folder = source if local else _fetched(str(source), "*.json", "*.model", "*.safetensors", "*.bin")
    found = None if folder is None else peek(folder)
    if found is None:
        raise UserError(
            f"{source} holds nothing that can be converted: no {FILE}, no config.json with weights, no adapter_config.json, no "
            f"{PROJECTOR}, and none of XTuner's folders."
        )
    if found.manifest is not None:
        verify_quick(found.path)
    return found


def peek(source: str | Path) -> Source | None:
    """As `look`, for what lies on this machine, but None where it would complain."""
    folder = find_artifact(source)
    if folder is not None:
        manifest = read_manifest(folder)
        return Source("adapter" if manifest.holds == "adapter" else "model", folder, _config(folder), manifest)
    folder = Path(source)
    if folder.is_file() and folder.suffix in (".bin", ".safetensors", ".pt", ".pth"):
        return Source("projector", folder)
    if not folder.is_dir():
        return None
    config = _config(folder)
    if first_file(folder, "adapter_config.json", TRAINABLES, *ADAPTERS):
        return Source("peft", folder, config)
    if first_file(folder, *XTUNER) and not weight_shards(folder):
        return Source("xtuner", folder, config)
    if config and weight_shards(folder):
        is_hf = (config.get("model_type") == "llava" or is_tiled(config)) and "text_config" in config
        return Source("hf" if is_hf else "original", folder, config)
    if first_file(folder, PROJECTOR):
        return Source("projector", folder, config)
    return None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _fetched(source: str, *patterns: str) -> Path | None:
    """The folder of a hub id with these of its files, out of the cache or from the hub; None if there is no such thing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (OSError, ValueError):  # no id at all, no such repository, no way there
        return None
