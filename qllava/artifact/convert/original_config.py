"""The config and the tokenizer of a model in the original's layout, as its loader reads them (transformers 4.31 to 4.37)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import LlavaConfig

from ...errors import UserError
from ...model.base import IMAGE_TOKEN, PAD_TOKEN
from ...model.projectors import projector_type
from ...model.towers import CLIP
from ...recipe.projector import MLP, RESAMPLER

LLAMA = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias", "tie_word_embeddings", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
KEPT = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "added_tokens.json")


def own_size(tokenizer: Any, record: dict[str, Any]) -> int:
    """Rows of the vocabulary that the LLM had before `<image>` and `<pad>` came after them."""
    if recorded := record.get("config", {}).get("vocab_size"):
        return recorded
    size, known = len(tokenizer), tokenizer.get_vocab()
    last = {known.get(t) for t in (IMAGE_TOKEN, PAD_TOKEN)}
    while size - 1 in last:
        size -= 1
    return size


def check_projector(kind: str | None) -> str:
    """The projector's name, which the original's code has too.

    Raises:
        UserError: it has no such projector.
    """
    if kind is None or kind == RESAMPLER:
        raise UserError(f"The original's code has linear and mlpNx_gelu projectors, and this is {kind or 'another'}.")
    return kind


def flat_config(
    config: LlavaConfig | None, recorded: dict[str, Any] | None, size: int | None, tower: str, ratio: str
) -> dict[str, Any]:
    """The original's config.json: the one that was imported with what may have changed, or made from the model's config.

    Args:
        config: needed where none was imported.
        size: rows of the vocabulary.
        tower: what is to stand as `mm_vision_tower`.

    Raises:
        UserError: the model has what the original's code does not know.
    """
    if recorded is not None:
        same = (recorded.get("image_aspect_ratio") or "square") == ratio and recorded.get("mm_vision_tower") == tower
        return dict(recorded) if same else {**recorded, "mm_vision_tower": tower, "image_aspect_ratio": ratio}
    text, vision = config.text_config, config.vision_config
    if text.model_type != "llama" or not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"The original's code reads LLaVA-1.5 on a Llama with one layer of the tower; this is a {text.model_type} with "
            f"vision_feature_layer {config.vision_feature_layer}."
        )
    if vision.model_type != CLIP:
        raise UserError(f"The original's code knows CLIP towers alone; this one is a {vision.model_type}.")
    projector = check_projector(projector_type(config))
    if projector == MLP and config.projector_hidden_act != "gelu":
        raise UserError(f"The original's projector has a GELU; this one has {config.projector_hidden_act}.")
    rope = dict(getattr(text, "rope_parameters", None) or {})
    theta, kind = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    flat = {name: getattr(text, name) for name in LLAMA}
    return flat | {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "vocab_size": size, "pad_token_id": None,
        "rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope}, "use_cache": True,
        "mm_vision_tower": tower, "mm_hidden_size": vision.hidden_size, "mm_projector_type": projector,
        "mm_vision_select_layer": config.vision_feature_layer, "mm_patch_merge_type": "flat",
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False, "use_mm_proj": True, "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False, "image_aspect_ratio": ratio, "tokenizer_padding_side": "right",
    }  # fmt: skip


def write_tokenizer(tokenizer: Any, model_file: Path | None, source: Path, folder: Path) -> None:
    """The tokenizer as it was before `<image>` and `<pad>` were added, for its loader makes as many rows as it has tokens."""
    new = {t for t in (IMAGE_TOKEN, PAD_TOKEN) if tokenizer.get_vocab().get(t, -1) >= own_size(tokenizer, {})}
    if model_file is not None:
        tokens = {f"{n}_token": str(getattr(tokenizer, f"{n}_token")) for n in ("bos", "eos", "unk")}
        extra = [t for t in tokenizer.get_added_vocab() if t not in {*new, *tokens.values()}]
        if not extra:
            shutil.copyfile(model_file, folder / "tokenizer.model")
            limit = min(tokenizer.model_max_length, 1 << 20)
            values = {
                "tokenizer_class": "LlamaTokenizer", "legacy": bool(tokenizer.init_kwargs.get("legacy", False)), "add_bos_token": True, "add_eos_token": False, **tokens,
                "pad_token": tokens["unk_token"], "clean_up_tokenization_spaces": False, "model_max_length": limit,
                "padding_side": "right",
            }  # fmt: skip
            (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n")
            return
        shutil.copyfile(model_file, folder / "tokenizer.model")
    for name in KEPT:
        if (source / name).is_file():
            text = json.loads((source / name).read_text(encoding="utf-8"))
            (folder / name).write_text(
                json.dumps(_without(text, new), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )


def _without(value: Any, tokens: set[str]) -> Any:
    """A tokenizer's JSON without these tokens, wherever it lists, names or maps to them."""

    def gone(v: Any) -> bool:
        return (isinstance(v, str) and v in tokens) or (isinstance(v, dict) and v.get("content") in tokens)

    if isinstance(value, dict):
        return {k: _without(v, tokens) for k, v in value.items() if k not in tokens and not gone(v)}
    if isinstance(value, list):
        return [_without(v, tokens) for v in value if not gone(v)]
    return value
