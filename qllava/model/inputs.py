"""How inputs for a base are made: its tokenizer, its image path and a template. In: a base or a recipe. Out: `Processing`."""

from __future__ import annotations

from ..data.processing import Processing, load_image_processor, load_tokenizer, make_template
from ..data.template import template_for
from ..data.tiles import Tiling
from ..data.tokens import AfterEos, Encoder
from ..errors import UserError
from ..recipe.projector import QUERIES, RESAMPLER
from ..recipe.schema import Parts, Recipe
from .base import PAD_TOKEN, extra_ids, llm_of, locate, read_config
from .projectors import projector_type
from .tiles import FIELD, check_tower
from .towers import check_kind, features_of, strategy_of, vision_of


def load_processing(
    base: str | Parts, template: str, image_aspect_ratio: str, after_eos: AfterEos = "current", exif: bool = True
) -> Processing:
    """How inputs for that base are made.

    Args:
        template: its name; `auto` is the one that belongs to the base's LLM, or else the LLM's own chat template.

    Raises:
        UserError: the base has no tokenizer or image processor, or there is no such template.
    """
    named, base = llm_of(base), locate(base)
    whole = isinstance(base, str)
    config = read_config(base if whole else base.vision_tower)
    vision = vision_of(config)
    asked = config.vision_feature_select_strategy if whole else base.vision_feature_select_strategy
    check_kind(vision, str(base) if whole else base.vision_tower)
    tokens = features_of(vision, strategy_of(vision, asked))
    if (whole and projector_type(config) == RESAMPLER) or (not whole and base.projector_type == RESAMPLER):
        tokens = config.projector_queries if whole else base.projector_queries or QUERIES
    most = getattr(config, FIELD, None) if whole else base.max_tiles
    if most is not None:
        check_tower(vision)
        if image_aspect_ratio != "pad":
            raise UserError("max_tiles pads every picture. Write image_aspect_ratio: pad, or drop max_tiles.")
    tokenizer, model_file = load_tokenizer(base if whole else base.llm)
    own = not whole and bool(tokenizer.chat_template)
    name = template_for(named, own) if template == "auto" else template
    image_token, pad_token = extra_ids(tokenizer)
    if whole:
        image_token = config.image_token_index
        pad_token = tokenizer.get_vocab().get(PAD_TOKEN, config.text_config.pad_token_id or 0)
    return Processing(
        encoder=Encoder(tokenizer, model_file, after_eos),
        image_processor=load_image_processor(base if whole else base.vision_tower),
        template=make_template(name, tokenizer),
        image_aspect_ratio=image_aspect_ratio,
        image_tokens=tokens,
        image_token_id=image_token,
        pad_token_id=pad_token,
        exif=exif,
        tiling=None if most is None else Tiling(most, vision.image_size, vision.patch_size),
    )


def processing_for(recipe: Recipe) -> Processing:
    """How the recipe's run makes its inputs; see `load_processing`."""
    return load_processing(
        recipe.base, recipe.template, recipe.image_aspect_ratio, recipe.after_eos, recipe.exif_transpose
    )
