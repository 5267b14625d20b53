"""What vLLM takes of a folder, and what it passes over in silence; and a folder that it takes whole.

In: a whole model's folder, or an adapter. Out: lines to read, one a thing. What vLLM does is from its source and its issues
as of 2026 (`lora/peft_helper.py`, `config/lora.py`, `models/llava.py`, pull request 31513); it was not run here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ...data.processing import load_tokenizer
from ...errors import UserError
from ...model.base import read_config
from ...model.fingerprint import weight_files
from ...model.projector import read_projector
from ...model.projectors import kind_of
from ...model.tiles import is_tiled
from ...model.tower import FILE as TOWER_FILE
from ...recipe.projector import MLP
from ..delta import CONFIG, read_lora
from ..load import find_artifact
from ..manifest import FILE, Manifest, read_manifest, verify_quick, writing
from .folder import TILED, TOWER, chat_template, image_settings, pads, published, settings, whole_model

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices of --max-lora-rank; 16 is its default
MERGE = "Merge it first (qllava merge ADAPTER --out DIR), and serve DIR."
INDEX = "model.safetensors.index.json"


def to_vllm(source: str | Path, out: str | Path) -> list[str]:
    """Writes the folder that `vllm serve` takes to `out`: a copy of the model in the published key layout.

    Returns:
        What `lint_vllm` says of it.

    Raises:
        UserError: the source is an adapter, or no whole model; or `out` is there already.
        RunError: a file of the artifact is damaged.
    """
    folder, out = whole_model(source, MERGE), Path(out)
    for file in weight_files(str(folder)):
        if file.suffix != ".safetensors":
            raise UserError(f"{file} is no safetensors file; save the model as safetensors first.")
    manifest: Manifest | None = read_manifest(folder) if (folder / FILE).is_file() else None
    with writing(out, manifest) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILE, "*.safetensors"))
        for file in weight_files(str(folder)):
            _copy_weights(file, partial / file.name)
        _rename_index(partial / INDEX)
    return lint_vllm(out)


def _copy_weights(file: Path, to: Path) -> None:
    with safe_open(file, "pt") as tensors:
        renamed = any(published(key) != key for key in tensors.keys())  # noqa: SIM118 (not a mapping)
    if renamed:
        save_file({published(k): v for k, v in load_file(file).items()}, to, metadata={"format": "pt"})
    else:
        shutil.copyfile(file, to)


def _rename_index(file: Path) -> None:
    if index := settings(file):
        index["weight_map"] = {published(k): v for k, v in index["weight_map"].items()}
        file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def lint_vllm(folder: str | Path) -> list[str]:
    """What vLLM takes of the folder and what it ignores, most serious first.

    Args:
        folder: a whole model, an adapter, or a run's output_dir with either.

    Raises:
        UserError: it is neither.
        RunError: a file of the artifact is damaged.
    """
    artifact = find_artifact(folder)
    if artifact is not None and verify_quick(artifact).holds == "adapter":
        return _lint_adapter(artifact)
    return _lint_model(whole_model(folder, MERGE))


def _lint_adapter(folder: Path) -> list[str]:
    base = read_manifest(folder).base
    if base is not None and is_tiled(base.source):
        return [f"Refused: {folder} is {TILED}"]
    if (kind := kind_of(read_projector(folder))) != MLP:
        return [
            f"Refused: {folder} has the projector {kind}, and vLLM's LLaVA has {MLP} alone, merged or not. Serve it with qllava chat."
        ]
    lines = [
        "Ignored: projector.safetensors. vLLM serves LoRA alone, so this adapter would answer through the base's projector, "
        f"without an error. {MERGE}"
    ]
    if (folder / TOWER_FILE).is_file():
        lines.append(f"Ignored: {TOWER_FILE}. The base's vision tower would be used, without an error. {MERGE}")
    if not (folder / CONFIG).is_file():
        return [*lines, f"Refused: there is no LoRA in {folder}; only its projector trained. {MERGE}"]
    state, config = read_lora(folder)
    lines += _lint_lora(config)
    on_tower = [k for k in state if "vision_tower" in k or "multi_modal_projector" in k]
    if on_tower:
        lines.append(
            f"Ignored, by default: {len(on_tower)} LoRA tensors on the vision tower or the projector. vLLM serves the LLM's LoRA "
            "alone, unless a version that has it (2026) is started with --enable-tower-connector-lora. " + MERGE
        )
    rank = max(_ranks(config, state))
    if fitting := next((r for r in RANKS if r >= rank), None):
        flag = " (its default is 16)" if fitting > 16 else ""
        lines.append(
            f"Needed: --enable-lora --max-lora-rank {max(fitting, 16)}{flag}; the adapter's highest rank is {rank}."
        )
    else:
        lines.append(f"Refused: rank {rank} is above the highest that vLLM serves, {RANKS[-1]}. {MERGE}")
    lines.append(
        "Not certain: the LoRA's keys are those of transformers 5 (model.language_model...). A vLLM that does not map them finds "
        "none of them and answers as the base, without an error: compare an answer with that of qllava chat."
    )
    base = read_manifest(folder).base
    if base is not None and isinstance(base.source, dict):
        lines.append("Needed: the base as one folder; vLLM knows no parts. qllava assemble writes it.")
    return lines


def _ranks(config: Any, state: dict[str, Any]) -> list[int]:
    return [config.r, *(v.shape[0] for k, v in state.items() if k.endswith("lora_A.weight"))]


def _lint_lora(config: Any) -> list[str]:
    """Lines on variants of LoRA, from a `LoraConfig`."""
    lines = []
    if config.use_dora:
        lines.append(f"Refused: DoRA, which vLLM does not have. {MERGE}")
    if config.modules_to_save:
        lines.append(
            f"Refused: modules_to_save ({', '.join(config.modules_to_save)}), which vLLM does not take. {MERGE}"
        )
    if config.bias != "none":
        lines.append(f"Refused: biases that trained (bias: {config.bias}). {MERGE}")
    if config.rank_pattern or config.alpha_pattern:
        lines.append(
            "Wrong: vLLM scales every module by the one r and lora_alpha, and does not read rank_pattern and alpha_pattern: "
            f"those modules' LoRA would have another strength, without an error. {MERGE}"
        )
    if config.use_rslora:
        lines.append("Taken: rsLoRA's scaling.")
    return lines


def _lint_model(folder: Path) -> list[str]:
    config = read_config(str(folder))
    lines = [*_lint_config(folder, config), *_lint_tokens(folder, config), *_lint_images(folder)]
    if any(published(k) != k for k in _keys(folder)):
        lines.append(
            f"Not certain: the weights' names are not those of published checkpoints ({TOWER}...); older versions of vLLM know "
            "only these. Writing the folder for vLLM renames them."
        )
    return lines


def _keys(folder: Path) -> list[str]:
    found: list[str] = []
    for file in weight_files(str(folder)):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                found += tensors.keys()
    return found


def _lint_config(folder: Path, config: Any) -> list[str]:
    named = (config.architectures or ["none"])[0]
    lines = []
    if named != "LlavaForConditionalGeneration":
        lines.append(
            f"Refused: config.json names the architecture {named}; vLLM finds the model by LlavaForConditionalGeneration."
        )
    else:
        lines.append("Taken: the architecture, LlavaForConditionalGeneration.")
    dtype = str(config.dtype or "none").removeprefix("torch.")
    if dtype == "float32":
        lines.append("Changed: float32 weights are served in 16 bits unless vLLM is started with --dtype float32.")
    elif dtype == "none":
        lines.append("Not certain: config.json names no dtype; start vLLM with --dtype bfloat16 (or float16).")
    else:
        lines.append(f"Taken: the weights in {dtype}.")
    return lines


def _lint_tokens(folder: Path, config: Any) -> list[str]:
    try:
        tokenizer, _ = load_tokenizer(str(folder))
    except UserError as error:
        return [f"Refused: {error}"]
    lines, vocabulary, rows = [], tokenizer.get_vocab(), config.text_config.vocab_size
    if len(tokenizer) > rows:
        lines.append(
            f"Wrong: the tokenizer has {len(tokenizer)} tokens and the model {rows} rows; some tokens have none."
        )
    image = config.image_token_index
    if vocabulary.get("<image>") != image:
        lines.append(
            f"Refused: config.json says that an image is token {image}, and the tokenizer's <image> is "
            f"{vocabulary.get('<image>', 'missing')}; vLLM puts images where it finds that token."
        )
    else:
        lines.append(f"Taken: {len(tokenizer)} tokens in {rows} rows, <image> is {image}.")
    template = chat_template(folder)
    if template is None:
        lines.append("Missing: a chat template. Chat requests need vllm serve --chat-template FILE; completions work.")
    elif "bos_token" not in template and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        lines.append(
            f"Changed: the chat template does not write {tokenizer.bos_token}, and vLLM adds none to chat requests by default, so "
            'the model sees a prompt without it. Send "add_special_tokens": true with each chat request.'
        )
    return lines


def _lint_images(folder: Path) -> list[str]:
    values = image_settings(folder)
    if not values or not (folder / "processor_config.json").is_file():
        return [
            "Missing: processor files (processor_config.json, and the image processor's settings); vLLM makes its inputs with "
            "the folder's own processor."
        ]
    path = "padded to squares with the mean colour" if pads(folder) else "resized, and their middle cropped"
    lines = [f"Taken: the folder's processor. Images are {path}."]
    manifest = read_manifest(folder) if (folder / FILE).is_file() else None
    if manifest is not None and (manifest.image_aspect_ratio == "pad") != pads(folder):
        lines.insert(0, f"Wrong: the model was trained with image_aspect_ratio {manifest.image_aspect_ratio}, and its processor's do_pad says otherwise.")  # fmt: skip
    if pads(folder) and values.get("image_processor_type", "").startswith("CLIP"):
        lines.insert(
            0, "Wrong: do_pad is set on a CLIPImageProcessor, which does not pad; it must be a LlavaImageProcessor."
        )
    if pads(folder):
        lines.append(
            "Not certain: do_pad needs the LlavaImageProcessor of the transformers that vLLM runs on (4.49 or later); with an "
            "older one, images are cropped."
        )
    lines.append("Not certain: whether vLLM turns pictures as their EXIF says; send them upright.")
    return lines
