"""LLaVA's own layout: what its config says, and a whole model of it as a Hugging Face LLaVA.

In: the original's folder (`model_type: llava_llama`, the tower in it or named by it). Out: an artifact that plain
transformers loads. The config that was read stays in the manifest (`report.original`), so that the way back gives the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import LlamaConfig, LlavaConfig

from ... import console
from ...errors import UserError
from ...model import dialects
from ...model.base import PADDED, extra_ids, llava_config, plain_generation, read_config, skeleton
from ...model.build import HARMLESS, load_tower
from ...model.inputs import load_processing
from ...model.projectors import with_projector
from ...model.whole import save_settings
from ...recipe.projector import DEEPEST, LINEAR, PATTERN, RESAMPLER, named
from ...recipe.schema import Parts
from ..manifest import Manifest, writing
from .read import State, read_whole_state
from .source import Source

EXPECTED = {  # what makes it a LLaVA-1.5; a field that is absent has the first value
    "model_type": ("llava_llama", "llava", "llama"),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("square", "pad"),
    "mm_use_im_start_end": (False,),
    "s2": (False,),
}
TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
RECORD = "original"  # where a manifest's report keeps what came from the original


def check_config(config: dict[str, Any], folder: Path) -> None:
    """Raises `UserError` where a config of the original is of another model than LLaVA-1.5 on a Llama."""
    for name, good in EXPECTED.items():
        value = config.get(name)
        if (good[0] if value is None else value) not in good:
            raise UserError(
                f"{folder} is no LLaVA-1.5: its config.json has {name}: {value!r}, where only "
                f"{' or '.join(map(repr, good))} can be converted."
            )
    kind = projector_of(config)
    if re.fullmatch(PATTERN, kind) is None or kind == RESAMPLER:
        raise UserError(
            f"{folder} is no LLaVA-1.5: its config.json has mm_projector_type: {kind!r}, where only 'linear' and 'mlp2x_gelu' to "
            f"'{named(DEEPEST)}' can be converted."
        )


def projector_of(config: dict[str, Any]) -> str:
    """The projector's name; LLaVA's builder takes `linear` where nothing is said."""
    return config.get("mm_projector_type") or LINEAR


def aspect_ratio(config: dict[str, Any]) -> str:
    """How the model's images are made square; the original's loader takes `square` where nothing is said."""
    return config.get("image_aspect_ratio") or "square"


def find_tower(config: dict[str, Any], folder: Path, vision_tower: str | None) -> str:
    """The vision tower: the one given, or the config's, a path from the checkpoint's folder or a hub id.

    Raises:
        UserError: none is named.
    """
    named = vision_tower or config.get("mm_vision_tower") or config.get("vision_tower")
    if not named:
        raise UserError(f"{folder}: its config.json names no mm_vision_tower. Name the tower with --vision-tower DIR.")
    if vision_tower is None and (folder / named).is_dir():
        return str((folder / named).resolve())
    return str(named)


def llama_config(config: dict[str, Any]) -> LlamaConfig:
    """The LLM's config out of the original's flat one."""
    known = {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling", "torch_dtype"} - {"model_type", "architectures"}
    fields = {k: v for k, v in config.items() if k in known and v is not None}
    return LlamaConfig(**fields, architectures=["LlamaForCausalLM"])


def check_state(state: State, config: LlavaConfig, source: Path) -> None:
    """Makes sure that the weights, by published keys, are those of this config's model.

    Raises:
        UserError: a key is missing or has no place, or a shape differs.
    """
    own = {dialects.to_published(k): v.shape for k, v in skeleton(config).state_dict().items()}
    if config.tie_word_embeddings and TABLES[1] not in state:
        del own[TABLES[1]]
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unexpected:
        raise UserError(
            f"The weights in {source} are not those of a LLaVA-1.5: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} without a place {unexpected[:3]}."
        )
    for key, shape in own.items():
        if state[key].shape != shape:
            raise UserError(
                f"The weights in {source} do not fit its config.json: {key} is {list(state[key].shape)} instead of {list(shape)}."
            )


def widen(state: State, size: int) -> None:
    """Gives the tables of embeddings `size` rows; the new ones are zeros, which nothing ever reads."""
    for key in TABLES:
        if key in state and len(state[key]) < size:
            table = state[key]
            state[key] = torch.cat([table, table.new_zeros(size - len(table), *table.shape[1:])])


def published(state: State) -> State:
    """The weights by published keys, without the buffers that older checkpoints carry."""
    return {dialects.to_published(dialects.to_runtime(k)): v for k, v in state.items() if not HARMLESS.search(k)}


def to_hf(source: Source, out: Path, vision_tower: str | None = None) -> Path:
    """Writes an original model as a Hugging Face LLaVA, every tensor in the dtype of its file.

    Raises:
        UserError: it is no LLaVA-1.5, lacks a tokenizer or weights, or its tower cannot be had.
        RunError: a file is damaged.
    """
    check_config(source.config, source.path)
    tower_source = find_tower(source.config, source.path, vision_tower)
    parts = Parts(
        vision_tower=tower_source,
        llm=str(source.path),
        vision_feature_layer=source.config.get("mm_vision_select_layer", -2),
    )
    tower = _tower_config(tower_source, source.path)
    processing = _processing(parts, source)
    state = published(read_whole_state(source.path))
    own_tower = any(k.startswith("vision_tower.") for k in state)
    if not own_tower:
        model = load_tower(tower_source, "auto")
        state |= {dialects.to_published(f"model.vision_tower.{_inner(k)}"): v for k, v in model.state_dict().items()}
    text = llama_config(source.config)
    image_token, pad_token = extra_ids(processing.encoder.tokenizer)
    if text.vocab_size <= pad_token:
        text.vocab_size = -(-(pad_token + 1) // PADDED) * PADDED
        widen(state, text.vocab_size)
    text.pad_token_id = pad_token
    plain = llava_config(tower, text, image_token, parts.vision_feature_layer)
    config = with_projector(plain, projector_of(source.config), None)
    check_state(state, config, source.path)
    dtype = str(state[TABLES[0]].dtype).removeprefix("torch.")
    manifest = Manifest(
        kind="model", holds="model", template="vicuna_v1", image_aspect_ratio=aspect_ratio(source.config), dtype=dtype,
        report={"converted_from": str(source.path.resolve()), RECORD: {"config": source.config, "tower_in_weights": own_tower}},
    )  # fmt: skip
    with writing(out, manifest) as partial:
        write_whole(state, config, processing, partial)
    return out


def _tower_config(tower: str, folder: Path) -> Any:
    try:
        config = read_config(tower)
    except UserError as error:
        raise UserError(
            f"The vision tower of {folder} cannot be read. {error} Name it with --vision-tower DIR."
        ) from None
    return getattr(config, "vision_config", config)


def _processing(parts: Parts, source: Source) -> Any:
    try:
        return load_processing(parts, "vicuna_v1", aspect_ratio(source.config))
    except UserError as error:
        if "tokenizer" not in str(error):
            raise
        raise UserError(
            f"{error} Copy its LLM's tokenizer.model and tokenizer_config.json into {source.path}, and convert again."
        ) from None


def _inner(key: str) -> str:
    return key.removeprefix("vision_model.")


def write_whole(state: State, config: LlavaConfig, processing: Any, folder: Path) -> None:
    """Weights as they are, configs and processor into `folder`; the config's dtype is that of the LLM's weights."""
    save_torch_state_dict({k: v.contiguous() for k, v in state.items()}, folder, max_shard_size="5GB")
    save_settings(config, plain_generation(config), processing, folder, state[TABLES[0]].dtype)


def rewrite(source: Source, out: Path) -> Path:
    """Writes a Hugging Face LLaVA of any key layout in the published one, and nothing else changed.

    Raises:
        UserError: the weights are not those of its config.
        RunError: a file is damaged.
    """
    config = read_config(str(source.path))
    old = source.manifest
    manifest = (
        Manifest(kind="model", holds="model", template="vicuna_v1", image_aspect_ratio="pad") if old is None else old
    )
    manifest = manifest.model_copy(update={"report": {**manifest.report, "converted_from": str(source.path.resolve())}})
    processing = load_processing(
        str(source.path), manifest.template, manifest.image_aspect_ratio, manifest.after_eos, manifest.exif_transpose
    )
    state = published(read_whole_state(source.path))
    check_state(state, config, source.path)
    if old is None:
        console.note(f"{source.path} does not say how its images are made square; taken: pad, as LLaVA-1.5 has it.")
    with writing(out, manifest) as partial:
        write_whole(state, config, processing, partial)
        if (source.path / "generation_config.json").is_file():
            (partial / "generation_config.json").write_bytes((source.path / "generation_config.json").read_bytes())
    return out
