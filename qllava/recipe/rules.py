"""Rules that join several fields of a recipe. In: a recipe whose fields are each valid. Out: what is wrong, one line each."""

from __future__ import annotations

from collections.abc import Iterator

from .schema import Eva, Lora, Parts, Quantization, Recipe


def broken(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Pairs of field and message: what cannot work together, why, and the remedy."""
    if recipe.stage == "align" and recipe.tune != "projector":
        yield (
            "tune",
            f"stage 'align' trains the projector alone, so it cannot take tune '{recipe.tune}'. "
            "Write tune: projector, or stage: instruct.",
        )
    if (recipe.template == "plain") != (recipe.stage == "align"):
        yield (
            "template",
            "the template 'plain' (image, caption) belongs to stage 'align' and to no other. "
            f"Write template: {'plain' if recipe.stage == 'align' else 'vicuna_v1'}.",
        )
    if recipe.per_device_train_batch_size != "auto" and recipe.global_batch_size % recipe.per_device_train_batch_size:
        yield (
            "per_device_train_batch_size",
            f"{recipe.per_device_train_batch_size} does not divide global_batch_size {recipe.global_batch_size}, "
            "so no whole number of accumulation steps makes up the global batch.",
        )
    yield from _about_lora(recipe)
    yield from _about_starts(recipe)
    if recipe.stage == "align" and recipe.tune_vision_tower != "frozen":
        yield "tune_vision_tower", "stage 'align' trains the projector alone. Drop it, or write stage: instruct."
    if recipe.tune == "full" and recipe.tune_vision_tower == "lora":
        yield "tune_vision_tower", "tune 'full' saves a whole model, without LoRA. Write tune_vision_tower: full."
    if recipe.tune_vision_tower == "frozen" and recipe.vision_tower_learning_rate is not None:
        yield (
            "vision_tower_learning_rate",
            "the vision tower is frozen. Write tune_vision_tower: full or lora, or drop it.",
        )
    if recipe.image_cache == "features" and recipe.tune_vision_tower != "frozen":
        yield (
            "image_cache",
            f"with tune_vision_tower '{recipe.tune_vision_tower}' the tower makes something else of an image at each step. Write "
            "image_cache: crops, or tune_vision_tower: frozen.",
        )
    if recipe.early_stopping_patience and not recipe.eval_share:
        yield "early_stopping_patience", "needs samples to measure on. Write eval_share, such as eval_share: 2%."
    if recipe.eval_steps >= 1 and recipe.eval_steps != int(recipe.eval_steps):
        yield "eval_steps", "is a whole number of steps, or a share of all steps below 1."
    if recipe.sample_generations and recipe.stage == "align":
        yield "sample_generations", "stage 'align' knows no questions. Drop it."
    if recipe.tune != "qlora" and recipe.quantization != Quantization():
        yield "quantization", f"tune '{recipe.tune}' quantises nothing. Write tune: qlora, or drop the block."
    if recipe.max_steps == 0 or recipe.max_steps < -1:
        yield "max_steps", "is a number of steps above 0, or -1 to go by num_train_epochs."
    if recipe.save_steps >= 1 and recipe.save_steps != int(recipe.save_steps):
        yield "save_steps", "is a whole number of steps, or a share of all steps below 1."
    yield from _about_speed(recipe)
    if isinstance(recipe.base, Parts) and recipe.base.max_tiles and recipe.image_aspect_ratio != "pad":
        yield (
            "image_aspect_ratio",
            "base.max_tiles pads every picture. Write image_aspect_ratio: pad, or drop max_tiles.",
        )
    if recipe.order == "original" and not recipe.group_by_modality_length:
        yield "order", "'original' is an order of grouped batches. Write group_by_modality_length: true, or drop it."
    if recipe.data and all(source.replay is not None for source in recipe.data):
        yield "data", "every source is a replay, of nothing. Leave replay out of the one that the run is about."
    for i, source in enumerate(recipe.data):
        if source.replay is not None and (source.weight != 1.0 or source.max_samples is not None):
            yield f"data.{i}.replay", "says how many samples are taken, so weight and max_samples cannot too."


def _about_speed(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.pairing == "shared" and not recipe.packing:
        yield "packing", "samples share an image in a packed row alone. Write packing: true, or pairing: rows."
    if recipe.pairing == "shared" and recipe.order == "original":
        yield "order", "pairing 'shared' has an order of its own, by image. Write order: qllava."
    if recipe.order == "original" and recipe.per_device_train_batch_size == "auto":
        yield "per_device_train_batch_size", "the order 'original' depends on it, so it has to be a number."
    if recipe.pairing == "turns" and recipe.stage == "align":
        yield "pairing", "stage 'align' knows captions, no conversations. Write rows or shared."


def has_lora(recipe: Recipe) -> bool:
    """Whether anything of the model gets LoRA."""
    return recipe.tune in ("lora", "qlora") or recipe.tune_vision_tower == "lora"


def from_own_weights(recipe: Recipe) -> bool:
    """Whether LoRA starts from the base's own weights (PiSSA, OLoRA)."""
    return str(recipe.lora.init_lora_weights).startswith(("pissa", "olora"))


def _about_lora(recipe: Recipe) -> Iterator[tuple[str, str]]:
    lora, init = recipe.lora, recipe.lora.init_lora_weights
    if not has_lora(recipe):
        if lora != Lora():
            yield "lora", f"tune '{recipe.tune}' has no LoRA. Write tune: lora or qlora, or drop the block."
        if recipe.loraplus_lr_ratio is not None:
            yield "loraplus_lr_ratio", f"tune '{recipe.tune}' has no LoRA. Write tune: lora or qlora, or drop it."
        return
    if init is False:
        yield "lora.init_lora_weights", "false starts from a changed model. Write true."
    if init == "loftq" and (recipe.tune != "qlora" or recipe.tune_vision_tower == "lora"):
        yield (
            "lora.init_lora_weights",
            "loftq makes good what 4 bits lost, of the LLM alone. Write tune: qlora, or true.",
        )
    if init == "eva" and recipe.tune_vision_tower == "lora":
        yield "lora.init_lora_weights", "eva looks at text positions, which the vision tower has not. Write true."
    if init != "eva" and lora.eva_config != Eva():
        yield "lora.eva_config", "counts for init_lora_weights: eva alone. Drop it."
    if from_own_weights(recipe):
        if lora.use_dora:
            yield "lora.use_dora", f"goes with no start from the base's weights ({init}). Drop one of the two."
        if lora.lora_dropout:
            yield (
                "lora.lora_dropout",
                f"with {init} it would switch off parts of the base itself. Write lora_dropout: 0.0.",
            )


def _about_starts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.adapter is None:
        if recipe.adapter_start != "continue":
            yield "adapter_start", "says what adapter is for. Name one as adapter, or drop it."
        return
    if not has_lora(recipe) and recipe.adapter_start != "merge-then-new":
        yield (
            "adapter",
            f"tune '{recipe.tune}' trains no adapter. Write tune: lora or qlora, or adapter_start: merge-then-new.",
        )
    if recipe.projector is not None:
        yield "projector", "comes with the adapter. Write projector: null (projector=null), or drop the adapter."
    if recipe.adapter_start == "stack" and recipe.lora.use_dora:
        yield (
            "lora.use_dora",
            "a DoRA cannot be added to another adapter. Drop it, or write adapter_start: merge-then-new.",
        )
    if recipe.lora.init_lora_weights is not True and recipe.adapter_start != "merge-then-new":
        yield (
            "lora.init_lora_weights",
            f"with adapter_start: {recipe.adapter_start} LoRA starts from the adapter. Drop it.",
        )
