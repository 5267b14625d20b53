"""A whole LLaVA as a folder that plain `transformers` loads: weights, configs, processor, tokenizer.

In: a model and its `Processing`. Out: files in a folder. The processor is written so that its image path is the one that
the model was trained with.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from transformers import AddedToken, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..data.processing import Processing
from ..recipe.projector import MLP
from . import dialects
from .base import IMAGE_TOKEN, PAD_TOKEN
from .projectors import projector_type
from .tiles import model_class
from .towers import class_tokens

CHAT_TEMPLATES = {  # single-turn and multi-turn prompts as in LLaVA's conversation.py, for transformers' own users
    "vicuna_v1": (
        "{{ '%s' }}{% for m in messages %}{% if m.role == 'user' %}{{ ' ' if loop.first else '' }}{{ 'USER: ' }}"
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
        "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
        "{% else %}{{ ' ASSISTANT: ' }}{% generation %}"
        "{{ (m.content if m.content is string else m.content[0].text) + eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    )
}


def save_whole(
    model: LlavaForConditionalGeneration, processing: Processing, folder: Path, dtype: torch.dtype,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Writes `model` in `dtype` into `folder`, in the published key layout, in shards of at most 5 GB.

    Args:
        state: its weights by name, where the model itself does not hold them whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tied = model.config.tie_word_embeddings
    state = {
        dialects.to_published(k): v.detach().to("cpu", dtype).contiguous()
        for k, v in (model.state_dict() if state is None else state).items()
        if not (tied and k == "lm_head.weight")
    }
    save_torch_state_dict(state, folder, max_shard_size="5GB")
    save_settings(model.config, model.generation_config, processing, folder, dtype)


def save_settings(
    config: LlavaConfig, generation: GenerationConfig, processing: Processing, folder: Path, dtype: torch.dtype
) -> None:
    """Writes all of a whole LLaVA's folder but its weights: configs, processor, tokenizer."""
    config = type(config).from_dict(config.to_dict())
    config.architectures = [model_class(config).__name__]
    for each in (config, config.text_config, config.vision_config):
        each.dtype = dtype
        if getattr(each, "quantization_config", None) is not None or "quantization_config" in vars(each):
            del each.quantization_config
    config.save_pretrained(folder)
    generation, ends = copy.deepcopy(generation), processing.end_ids
    generation.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    generation.save_pretrained(folder)
    save_processor(processing, folder, config)


def save_processor(processing: Processing, folder: Path, config: Any) -> None:
    """Writes the tokenizer, its `tokenizer.model` and a `LlavaProcessor` into `folder`; with tiles, which no processor of
    transformers cuts (nor does any count a resampler's tokens), the tower's own image processor instead."""
    clip, tokenizer = processing.image_processor, processing.encoder.tokenizer
    known = tokenizer.get_vocab()
    new = [AddedToken(t, special=True, normalized=False) for t in (IMAGE_TOKEN, PAD_TOKEN) if t not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    chat = CHAT_TEMPLATES.get(processing.template.name)
    chat = chat.replace("%s", processing.template.system.replace("'", "\\'"), 1) if chat else None
    if processing.tiling is not None or projector_type(config) != MLP:
        tokenizer.chat_template = chat or tokenizer.chat_template
        tokenizer.save_pretrained(folder)
        clip.save_pretrained(folder)
    else:
        images = LlavaImageProcessorPil(
            do_pad=processing.image_aspect_ratio == "pad",
            size=clip.size,
            crop_size=clip.crop_size,
            image_mean=clip.image_mean,
            image_std=clip.image_std,
        )
        LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=IMAGE_TOKEN,
            num_additional_image_tokens=class_tokens(config.vision_config),
            chat_template=chat,
        ).save_pretrained(folder)
    if processing.encoder.model_file is not None:
        shutil.copyfile(processing.encoder.model_file, folder / "tokenizer.model")


def read_whole(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder that `save_whole` wrote, by their runtime keys."""
    return {
        dialects.to_runtime(k): v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
