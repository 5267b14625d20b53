"""A whole model's folder as converters read it: its weights one at a time under published names, its config, its image path.

In: a folder in the Hugging Face layout, whichever of the key layouts its files have. Out: tensors, a `LlavaConfig`, facts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import UserError
from ...model import dialects
from ...model.base import read_config
from ...model.fingerprint import weight_files
from ...model.projectors import KIND as QLLAVA
from ...model.tiles import is_tiled
from ..load import FINAL, find_artifact
from ..manifest import verify_quick
from .read import read_json

TOWER = "vision_tower.vision_model."
TILED = (  # behind the folder's name
    "a LLaVA-1.5-HD, whose tiles neither the original's code nor llama.cpp nor vLLM can pack. Serve it with qllava chat; its merged "
    "model's README.md has lines for plain transformers."
)
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def published(key: str) -> str:
    """A key as the hub's files have it, whatever the layout it comes from."""
    return dialects.to_published(dialects.to_runtime(key))


def whole_model(source: str | Path, remedy: str) -> Path:
    """The folder of a whole Hugging Face LLaVA: `source` itself, or the `final` artifact of a run that made one.

    Args:
        remedy: what to do with an adapter, as the end of an error's message.

    Raises:
        UserError: it is an adapter, another kind of model, quantised, or nothing.
        RunError: a file of the artifact is damaged.
    """
    artifact = find_artifact(source)
    folder = artifact or Path(source)
    if artifact is not None and verify_quick(artifact).holds != "model":
        raise UserError(f"{folder} is an adapter, not a whole model. {remedy}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model's folder: it has no config.json. {remedy}")
    config = read_config(str(folder))
    if is_tiled(str(folder)):
        raise UserError(f"{folder} is {TILED}")
    if config.model_type == QLLAVA:
        raise UserError(
            f"{folder} has the projector {config.projector_type}, and the LLaVA of llama.cpp and of vLLM has mlp2x_gelu alone. "
            "`--to original` writes linear and deeper MLPs for LLaVA's own code."
        )
    if config.model_type != "llava":
        raise UserError(f"{folder} is a {config.model_type}, not a LLaVA in the Hugging Face layout.")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"The weights in {folder} are quantised; convert the model in 16 bits.")
    return folder


def name_of(folder: Path) -> str:
    """What to call files made from the folder: its name, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == FINAL else folder.name


def settings(file: Path) -> dict[str, Any]:
    """The file's JSON object; empty where there is no file."""
    return read_json(file) if file.is_file() else {}


def image_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings, which transformers 5 writes into the processor's file and 4 into one of their own."""
    for name in PROCESSORS:
        values = settings(folder / name)
        values = values.get("image_processor", values)
        if "image_processor_type" in values or "image_mean" in values:
            return values
    return {}


def pads(folder: Path) -> bool:
    """Whether the folder's own processor pads images to squares, as LLaVA-1.5 was trained; else it crops their middle."""
    return bool(image_settings(folder).get("do_pad", False))


def chat_template(folder: Path) -> str | None:
    """The folder's chat template, as Jinja; None where it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if isinstance(found := settings(folder / name).get("chat_template"), str):
            return found
    return None


class Weights:
    """The folder's tensors by published key, read from disk one by one.

    Raises:
        UserError: they are no safetensors, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, tuple[Path, str]] = {}  # published key: the file, and the key in it
        for file in weight_files(str(folder)):
            if file.suffix != ".safetensors":
                raise UserError(f"{file} is no safetensors file; save the model as safetensors first.")
            try:
                with safe_open(file, "pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                        self.files[published(key)] = (file, key)
                        self.shapes[published(key)] = tuple(tensors.get_slice(key).get_shape())
            except SafetensorError as error:
                raise UserError(f"{file} is damaged: {error}.") from None

    def __call__(self, key: str) -> torch.Tensor:
        file, own = self.files[key]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(own)

    def __contains__(self, key: str) -> bool:
        return key in self.files
