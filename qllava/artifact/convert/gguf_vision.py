"""The vision tower and the projector of a GGUF: what llama.cpp calls mmproj.

In: a LLaVA's folder, config and weights. Out: a `Plan`. Layers above the one that LLaVA reads, and the tower's last norm,
are left out. llama.cpp's graph runs one layer less than the file's block_count unless the file names the feature layer, so
it is named (`clip.vision.feature_layer`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ...data.processing import load_image_processor
from ...errors import UserError
from .folder import TOWER, Weights
from .gguf_file import Piece, Plan, require

LAYER = {  # in a layer: llama.cpp's name, and transformers'
    "ln1": "layer_norm1",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
PROJECTOR = {"mm.0": "multi_modal_projector.linear_1", "mm.2": "multi_modal_projector.linear_2"}


def plan(folder: Path, config: Any, weights: Weights, gguf: ModuleType) -> Plan:
    """The mmproj's file.

    Raises:
        UserError: the tower or the projector is not LLaVA-1.5's, or weights do not fit the config.
    """
    vision = config.vision_config
    _check(folder, config)
    read = feature_layer(config)
    pieces = list(_pieces(read))
    patches = (vision.image_size // vision.patch_size) ** 2
    shapes = {
        f"{TOWER}embeddings.position_embedding.weight": (patches + 1, vision.hidden_size),
        "multi_modal_projector.linear_1.weight": (config.text_config.hidden_size, vision.hidden_size),
        "multi_modal_projector.linear_2.weight": (config.text_config.hidden_size,) * 2,
    }
    require(pieces, weights, shapes)
    processor = load_image_processor(str(folder))

    def describe(writer: Any) -> None:
        writer.add_type(gguf.GGUFType.MMPROJ)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_bool("clip.has_text_encoder", False)
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_bool("clip.has_llava_projector", True)
        writer.add_string("clip.projector_type", "mlp")
        writer.add_bool("clip.use_gelu", vision.hidden_act == "gelu")
        for name, number in (
            ("image_size", vision.image_size), ("patch_size", vision.patch_size), ("embedding_length", vision.hidden_size),
            ("feed_forward_length", vision.intermediate_size), ("block_count", read),
            ("attention.head_count", vision.num_attention_heads), ("projection_dim", config.text_config.hidden_size),
        ):  # fmt: skip
            writer.add_uint32(f"clip.vision.{name}", number)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
        writer.add_array("clip.vision.feature_layer", [read])
        writer.add_array("clip.vision.image_mean", [float(x) for x in processor.image_mean])
        writer.add_array("clip.vision.image_std", [float(x) for x in processor.image_std])

    return Plan(pieces, describe, {k for k in weights.files if k.startswith(TOWER)} & _unread(weights, read))


def feature_layer(config: Any) -> int:
    """How many of the tower's layers LLaVA's image features have passed."""
    layer, count = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return layer if layer >= 0 else count + 1 + layer  # hidden state 0 is the embeddings'


def _check(folder: Path, config: Any) -> None:
    vision = config.vision_config
    has = f"The model in {folder} has"
    if vision.model_type != "clip_vision_model":
        raise UserError(f"{has} the vision tower {vision.model_type}; llama.cpp's LLaVA has CLIP's.")
    if vision.hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{has} a vision tower with the activation {vision.hidden_act}; llama.cpp has quick_gelu and gelu."
        )
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise UserError(f"{has} another projector than LLaVA-1.5's two linears with biases and a GELU between.")
    if config.vision_feature_select_strategy != "default":
        raise UserError(f"{has} the class token among its image tokens; llama.cpp's LLaVA leaves it out.")
    if not isinstance(config.vision_feature_layer, int) or feature_layer(config) < 1:
        raise UserError(f"{has} vision_feature_layer {config.vision_feature_layer}; llama.cpp's LLaVA reads one layer.")


def _pieces(read: int) -> Iterator[Piece]:
    yield Piece("v.class_embd", f"{TOWER}embeddings.class_embedding", "f32")
    yield Piece("v.patch_embd.weight", f"{TOWER}embeddings.patch_embedding.weight", "f16")
    yield Piece("v.position_embd.weight", f"{TOWER}embeddings.position_embedding.weight", "f32")
    yield from _linear("v.pre_ln", f"{TOWER}pre_layrnorm", "f32")
    for layer in range(read):
        for name, own in LAYER.items():
            kind = "f32" if name.startswith("ln") else "f16"
            yield from _linear(f"v.blk.{layer}.{name}", f"{TOWER}encoder.layers.{layer}.{own}", kind)
    for name, own in PROJECTOR.items():
        yield from _linear(name, own, "f16")


def _linear(name: str, key: str, outtype: str) -> Iterator[Piece]:
    yield Piece(f"{name}.weight", f"{key}.weight", outtype)
    yield Piece(f"{name}.bias", f"{key}.bias", "f32")


def _unread(weights: Weights, read: int) -> set[str]:
    """Keys of the tower that nothing of LLaVA's depends on."""
    layers = f"{TOWER}encoder.layers."
    return {
        k
        for k in weights.files
        if (k.startswith(layers) and int(k.removeprefix(layers).split(".")[0]) >= read)
        or k.startswith((f"{TOWER}post_layernorm.", f"{TOWER}embeddings.position_ids"))
    }
