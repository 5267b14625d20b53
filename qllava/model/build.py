"""From checkpoints to a whole LLaVA with the inputs made for it.

In: a base (a LLaVA's folder or hub id, or the parts of one). Out: `LlavaForConditionalGeneration` and its `Processing`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, GenerationConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..data.processing import Processing, load_image_processor, load_tokenizer, make_template
from ..data.template import template_for
from ..data.tokens import AfterEos, Encoder
from ..errors import UserError
from ..recipe.schema import Parts, Quantization, Recipe
from . import quantize

EMBEDDED = Path(__file__).resolve().parent.parent / "demo" / "assets" / "base"
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
PADDED = 64  # the vocabulary is made a multiple of this
HARMLESS = re.compile(r"position_ids|rotary_emb\.inv_freq")  # buffers that older checkpoints carry


def locate(base: str | Parts) -> str | Parts:
    """The base with `embedded` replaced by the folders of the base that travels with the package."""
    if isinstance(base, str):
        return base
    paths = {
        "vision_tower": str(EMBEDDED / "vision_tower") if base.vision_tower == "embedded" else base.vision_tower,
        "llm": str(EMBEDDED / "llm") if base.llm == "embedded" else base.llm,
    }
    return base.model_copy(update=paths)


def sources(base: str | Parts) -> list[str]:
    """The folders or hub ids that the base's weights come from."""
    base = locate(base)
    return [base] if isinstance(base, str) else [base.vision_tower, base.llm]


def llm_of(base: str | Parts) -> str:
    """The base's LLM, as it was named; of a whole LLaVA, the whole."""
    return base if isinstance(base, str) else base.llm


def portable(base: str | Parts) -> str | dict[str, Any]:
    """The base as a manifest names it: local folders by their whole path, hub ids and `embedded` as they are."""

    def whole(source: str) -> str:
        return str(Path(source).resolve()) if source != "embedded" and Path(source).is_dir() else source

    if isinstance(base, str):
        return whole(base)
    return base.model_copy(update={"vision_tower": whole(base.vision_tower), "llm": whole(base.llm)}).model_dump()


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


def plain_generation(config: LlavaConfig) -> GenerationConfig:
    """Greedy generation. A Vicuna's own settings (temperature without sampling) are refused by transformers when a finished
    run is saved."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )


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


def _from_pretrained(kind: type, source: str, **options: Any) -> Any:
    """`kind.from_pretrained` where a missing or unexpected key is an error.

    Raises:
        UserError: nothing is there, or its weights are not this model's.
    """
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"Cannot load {source}: {str(error).splitlines()[0]}") from None
    missing = sorted(k for k in info["missing_keys"] if not HARMLESS.search(k))
    unexpected = sorted(k for k in info["unexpected_keys"] if not HARMLESS.search(k))
    if missing or (unexpected and kind is not CLIPVisionModel):  # a whole CLIP's text half is left out
        raise UserError(
            f"The weights in {source} are not those of a {kind.__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )
    return model


def _load_whole(source: str, dtype: torch.dtype, device: torch.device, quantization: Quantization | None) -> Llava:
    config = read_config(source)
    if config.model_type != "llava":
        raise UserError(
            f"{source} is a {config.model_type}, not a Hugging Face LLaVA. Name its parts as base: {{vision_tower, llm}}."
        )
    model = _from_pretrained(Llava, source, **_options(dtype, device, quantization, whole=True))
    return model.to(device) if quantization is None else model


def read_config(source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"No model at {source}: {str(error).splitlines()[0]}") from None


def assembled_config(parts: Parts) -> LlavaConfig:
    """The configuration of the LLaVA that is assembled from the parts, with room for `<image>` and `<pad>` in the vocabulary,
    padded as llava-hf pads it.

    Raises:
        UserError: a part has no configuration or no tokenizer.
    """
    parts = locate(parts)
    tower, llm = read_config(parts.vision_tower), read_config(parts.llm)
    tower = getattr(tower, "vision_config", tower)
    tokenizer, _ = load_tokenizer(parts.llm)
    image_token, pad_token = extra_ids(tokenizer)
    llm.pad_token_id = pad_token
    if llm.vocab_size <= pad_token:
        llm.vocab_size = -(-(pad_token + 1) // PADDED) * PADDED
    return llava_config(tower, llm, image_token, parts.vision_feature_layer)


def _assemble(parts: Parts, dtype: torch.dtype, device: torch.device, quantization: Quantization | None) -> Llava:
    """Tower and LLM around a new projector (nn.Linear's own initialisation, as the original's)."""
    if read_config(parts.llm).model_type == "llava":
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
        projector = LlavaMultiModalProjector(config)
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, llm.model, llm.lm_head
    model.model.multi_modal_projector = projector.to(dtype)
    if quantization is not None:
        for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer"):
            setattr(model, name, getattr(llm, name))
        model.config.quantization_config = llm.config.quantization_config
        model.hf_device_map = {"": device}
    tower.to(device), model.model.multi_modal_projector.to(device)
    return model if quantization is not None else model.to(device)


def load_tower(source: str, dtype: torch.dtype | str) -> CLIPVisionModel:
    """The CLIP vision tower at `source`; dtype `auto` is that of its files.

    Raises:
        UserError: there is none.
    """
    return _from_pretrained(CLIPVisionModel, source, dtype=dtype)


def llava_config(tower: Any, llm: Any, image_token: int, vision_feature_layer: int = -2) -> LlavaConfig:
    """The config of a LLaVA of these two configs; `image_token` is the id that stands for one patch."""
    return LlavaConfig(
        vision_config={k: v for k, v in tower.to_dict().items() if k != "_name_or_path"},
        text_config=llm.to_dict(),
        image_token_index=image_token,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        vision_feature_layer=vision_feature_layer,
        tie_word_embeddings=llm.tie_word_embeddings,
    )


def skeleton(config: LlavaConfig) -> Llava:
    """The model without weights: its modules' names and shapes."""
    with torch.device("meta"):
        return Llava(config)


def config_of(base: str | Parts) -> LlavaConfig:
    """The config that the base has, or will have once it is assembled.

    Raises:
        UserError: it is no LLaVA, nor the parts of one.
    """
    base = locate(base)
    if not isinstance(base, str):
        return assembled_config(base)
    config = read_config(base)
    if config.model_type != "llava":
        raise UserError(
            f"{base} is a {config.model_type}, not a Hugging Face LLaVA. Name its parts as base: {{vision_tower, llm}}."
        )
    return config


def extra_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of `<image>` and `<pad>`: the tokenizer's own where it has them, else the first free ones."""
    known, free = tokenizer.get_vocab(), len(tokenizer)
    ids = []
    for token in (IMAGE_TOKEN, PAD_TOKEN):
        ids.append(known.get(token, free))
        free += token not in known
    return ids[0], ids[1]


def load_processing(
    base: str | Parts, template: str, image_aspect_ratio: str, after_eos: AfterEos = "current", exif: bool = True
) -> Processing:
    """How inputs for that base are made.

    Args:
        template: its name; `auto` is the one that belongs to the base's LLM.

    Raises:
        UserError: the base has no tokenizer or image processor, or there is no such template.
    """
    name = template_for(llm_of(base)) if template == "auto" else template
    base = locate(base)
    whole = isinstance(base, str)
    config = read_config(base if whole else base.vision_tower)
    vision = getattr(config, "vision_config", config)
    tokenizer, model_file = load_tokenizer(base if whole else base.llm)
    image_token, pad_token = extra_ids(tokenizer)
    if whole:
        image_token = config.image_token_index
        pad_token = tokenizer.get_vocab().get(PAD_TOKEN, config.text_config.pad_token_id or 0)
    return Processing(
        encoder=Encoder(tokenizer, model_file, after_eos),
        image_processor=load_image_processor(base if whole else base.vision_tower),
        template=make_template(name, tokenizer),
        image_aspect_ratio=image_aspect_ratio,
        image_tokens=(vision.image_size // vision.patch_size) ** 2,
        image_token_id=image_token,
        pad_token_id=pad_token,
        exif=exif,
    )


def processing_for(recipe: Recipe) -> Processing:
    """How the recipe's run makes its inputs; see `load_processing`."""
    return load_processing(
        recipe.base, recipe.template, recipe.image_aspect_ratio, recipe.after_eos, recipe.exif_transpose
    )
