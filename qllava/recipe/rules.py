"""Rules that join several fields of a recipe. In: a recipe whose fields are each valid. Out: what is wrong, one line each."""

from __future__ import annotations

from collections.abc import Iterator

from .schema import Lora, Quantization, Recipe


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
    if recipe.global_batch_size % recipe.per_device_train_batch_size:
        yield (
            "per_device_train_batch_size",
            f"{recipe.per_device_train_batch_size} does not divide global_batch_size {recipe.global_batch_size}, "
            "so no whole number of accumulation steps makes up the global batch.",
        )
    if recipe.tune not in ("lora", "qlora") and recipe.lora != Lora():
        yield "lora", f"tune '{recipe.tune}' has no LoRA. Write tune: lora or qlora, or drop the block."
    if recipe.tune != "qlora" and recipe.quantization != Quantization():
        yield "quantization", f"tune '{recipe.tune}' quantises nothing. Write tune: qlora, or drop the block."
    if recipe.max_steps == 0 or recipe.max_steps < -1:
        yield "max_steps", "is a number of steps above 0, or -1 to go by num_train_epochs."
    if recipe.save_steps >= 1 and recipe.save_steps != int(recipe.save_steps):
        yield "save_steps", "is a whole number of steps, or a share of all steps below 1."
    if recipe.order == "original" and not recipe.group_by_modality_length:
        yield "order", "'original' is an order of grouped batches. Write group_by_modality_length: true, or drop it."
    if recipe.data and all(source.replay is not None for source in recipe.data):
        yield "data", "every source is a replay, of nothing. Leave replay out of the one that the run is about."
    for i, source in enumerate(recipe.data):
        if source.replay is not None and (source.weight != 1.0 or source.max_samples is not None):
            yield f"data.{i}.replay", "says how many samples are taken, so weight and max_samples cannot too."
