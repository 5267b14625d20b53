"""What a base is, before a weight is read: where its parts lie, and the configuration that it has or will have.

In: a base (a LLaVA's folder or hub id, or the parts of one). Out: its sources, and its `LlavaConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from ..data.processing import load_tokenizer
from ..errors import UserError
from ..recipe.projector import QUERIES
from ..recipe.schema import Parts
from .llms import check_llm
from .projectors import KIND as QLLAVA
from .projectors import with_projector
from .tiles import KIND, check_known, model_class, tiled_config
from .towers import Strategy, check_kind, check_layer, features_of, strategy_of, vision_of

EMBEDDED = Path(__file__).resolve().parent.parent / "demo" / "assets" / "base"
KINDS = ("llava", KIND, QLLAVA)  # model types of whole LLaVAs
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
PADDED = 64  # the vocabulary is made a multiple of this


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


def read_config(source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"No model at {source}: {str(error).splitlines()[0]} Name a folder (base=FOLDER), or, for nodes without network, "
            "download it where there is one: HF_HOME is where it is looked for."
        ) from None


def config_of(base: str | Parts) -> LlavaConfig:
    """The config that the base has, or will have once it is assembled.

    Raises:
        UserError: it is no LLaVA, nor the parts of one.
    """
    base = locate(base)
    if not isinstance(base, str):
        return assembled_config(base)
    config = read_config(base)
    check_known(config, base)
    if config.model_type not in KINDS:
        raise UserError(
            f"{base} is a {config.model_type}, not a Hugging Face LLaVA. Name its parts as base: {{vision_tower, llm}}."
        )
    return config


def assembled_config(parts: Parts) -> LlavaConfig:
    """The configuration of the LLaVA that is assembled from the parts, with room for `<image>` and `<pad>` in the vocabulary,
    padded as llava-hf pads it.

    Raises:
        UserError: a part has no configuration or no tokenizer.
    """
    parts = locate(parts)
    tower, llm = read_config(parts.vision_tower), read_config(parts.llm)
    tower = vision_of(tower)
    check_kind(tower, parts.vision_tower)
    check_llm(llm, parts.llm)
    tokenizer, _ = load_tokenizer(parts.llm)
    image_token, pad_token = extra_ids(tokenizer)
    llm.pad_token_id = pad_token
    if llm.vocab_size <= pad_token:
        llm.vocab_size = -(-(pad_token + 1) // PADDED) * PADDED
    plain = llava_config(tower, llm, image_token, parts.vision_feature_layer, parts.vision_feature_select_strategy)
    return shaped(plain, parts)


def shaped(plain: LlavaConfig, parts: Parts) -> LlavaConfig:
    """The configuration with the parts' projector and tiles."""
    if parts.max_tiles is not None:
        return tiled_config(plain, parts.max_tiles)
    return with_projector(plain, parts.projector_type, parts.projector_queries or QUERIES)


def llava_config(
    tower: Any, llm: Any, image_token: int, vision_feature_layer: int = -2, strategy: Strategy | None = None
) -> LlavaConfig:
    """The config of a LLaVA of these two configs; `image_token` is the id that stands for one feature of an image.

    Raises:
        UserError: the tower has no such layer, or no class token to leave out.
    """
    check_layer(tower, vision_feature_layer)
    strategy = strategy_of(tower, strategy)
    return LlavaConfig(
        vision_config={k: v for k, v in tower.to_dict().items() if k != "_name_or_path"},
        text_config=llm.to_dict(),
        image_token_index=image_token,
        image_seq_length=features_of(tower, strategy),
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=llm.tie_word_embeddings,
    )


def skeleton(config: LlavaConfig) -> Llava:
    """The model without weights: its modules' names and shapes."""
    with torch.device("meta"):
        return model_class(config)(config)


def extra_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of `<image>` and `<pad>`: the tokenizer's own where it has them, else the first free ones."""
    known, free = tokenizer.get_vocab(), len(tokenizer)
    ids = []
    for token in (IMAGE_TOKEN, PAD_TOKEN):
        ids.append(known.get(token, free))
        free += token not in known
    return ids[0], ids[1]


def plain_generation(config: LlavaConfig) -> GenerationConfig:
    """Greedy generation. A Vicuna's own settings (temperature without sampling) are refused by transformers when a finished
    run is saved."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
