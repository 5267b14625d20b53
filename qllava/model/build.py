"""From checkpoints to a whole LLaVA.

In: a base (a LLaVA's folder or hub id, or the parts of one). Out: `LlavaForConditionalGeneration`, frozen.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers import LlavaForConditionalGeneration as Llava

from ..errors import UserError
from ..recipe.schema import Parts, Quantization
from . import quantize
from .base import KINDS, assembled_config, config_of, locate, plain_generation, read_config, skeleton
from .features import install_features
from .projectors import new_projector
from .tiles import model_class, new_row_end, tiling_of
from .towers import check_kind, tower_class, vision_of

HARMLESS = re.compile(r"position_ids|rotary_emb\.inv_freq")  # buffers that older checkpoints carry


def load_model(
    base: str | Parts, dtype: torch.dtype, device: torch.device, quantization: Quantization | None = None
) -> Llava:
    """The base as one model on `device`, in evaluation mode, frozen.

    Args:
        quantization: loads the LLM's linears in 4 bits; None leaves them in `dtype`.

    Raises:
        UserError: the base is missing, is no LLaVA, or lacks weights.
        RunError: what came out quantised is not what was asked for.
    """
    base = locate(base)
    build = _load_whole if isinstance(base, str) else _assemble
    model = build(base, dtype, device, quantization)
    if quantization is not None:
        quantize.guard(model)
        quantize.check(model)
    if tiling_of(model.config) is not None:  # transformers' own class packs the tiles otherwise
        install_features(model)
    model.generation_config = plain_generation(model.config)
    return model.requires_grad_(False).eval()


def empty_model(base: str | Parts, dtype: torch.dtype) -> Llava:
    """What `load_model` makes of the base, without its weights (on `meta`): only its configuration is read.

    Raises:
        UserError: the base has none, or is no LLaVA.
    """
    model = skeleton(config_of(base)).to(dtype)
    model.generation_config = plain_generation(model.config)
    return model.requires_grad_(False).eval()


def _options(
    dtype: torch.dtype, device: torch.device, quantization: Quantization | None, whole: bool
) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        options |= {
            "quantization_config": quantize.bits_config(quantization, dtype, whole),
            "device_map": {"": device},
        }
    return options


def _from_pretrained(kind: type, source: str, vision: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained` where a missing key is an error, and an unexpected one in all but a vision tower.

    Raises:
        UserError: nothing is there, or its weights are not this model's.
    """
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"Cannot load {source}: {str(error).splitlines()[0]}") from None
    missing = sorted(k for k in info["missing_keys"] if not HARMLESS.search(k))
    unexpected = sorted(k for k in info["unexpected_keys"] if not HARMLESS.search(k))
    if missing or (unexpected and not vision):  # the text half of a whole CLIP or SigLIP is left out
        raise UserError(
            f"The weights in {source} are not those of a {kind.__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )
    return model


def _load_whole(source: str, dtype: torch.dtype, device: torch.device, quantization: Quantization | None) -> Llava:
    model = _from_pretrained(
        model_class(config_of(source)), source, **_options(dtype, device, quantization, whole=True)
    )
    return model.to(device) if quantization is None else model


def _assemble(parts: Parts, dtype: torch.dtype, device: torch.device, quantization: Quantization | None) -> Llava:
    """Tower and LLM around a new projector (nn.Linear's own initialisation, as the original's)."""
    if read_config(parts.llm).model_type in KINDS:
        raise UserError(f"{parts.llm} is a whole LLaVA; name it as base: {parts.llm}.")
    tower = load_tower(parts.vision_tower, dtype)
    llm = _from_pretrained(AutoModelForCausalLM, parts.llm, **_options(dtype, device, quantization, whole=False))
    config, old = assembled_config(parts), llm.config.vocab_size
    if config.text_config.vocab_size > old:  # the new rows start as zeros: nothing ever reads them
        llm.resize_token_embeddings(config.text_config.vocab_size, mean_resizing=False)
        for table in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            table.weight.data[old:] = 0
    llm.config.pad_token_id = config.text_config.pad_token_id
    model = skeleton(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = new_projector(config)
        if parts.max_tiles is not None:
            model.model.image_newline = new_row_end(config)
            model.model.image_newline.data = model.model.image_newline.data.to(device, dtype)
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, llm.model, llm.lm_head
    model.model.multi_modal_projector = projector.to(dtype)
    if quantization is not None:
        for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer"):
            setattr(model, name, getattr(llm, name))
        model.config.quantization_config = llm.config.quantization_config
        model.hf_device_map = {"": device}
    tower.to(device), model.model.multi_modal_projector.to(device)
    return model if quantization is not None else model.to(device)


def load_tower(source: str, dtype: torch.dtype | str) -> Any:
    """The vision tower at `source`, a CLIP or a SigLIP; dtype `auto` is that of its files.

    Raises:
        UserError: there is none.
    """
    vision = vision_of(read_config(source))
    check_kind(vision, source)
    return _from_pretrained(tower_class(vision), source, vision=True, dtype=dtype)
