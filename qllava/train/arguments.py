"""A recipe as TRL's `SFTConfig`. In: the recipe, the number of processes, the dtype. Out: the trainer's arguments."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig

from ..errors import UserError
from ..recipe.schema import Recipe
from .engine import Engine

SAME = (  # fields that go over under their own names
    "output_dir", "seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "adam_beta1", "adam_beta2",
    "adam_epsilon", "dataloader_num_workers", "logging_steps", "save_steps", "ddp_timeout",
)  # fmt: skip


def accumulation(recipe: Recipe, world_size: int) -> int:
    """Micro-batches of each process in one optimizer step.

    Raises:
        UserError: the processes cannot share the global batch evenly.
    """
    at_once = recipe.per_device_train_batch_size * world_size
    if recipe.global_batch_size % at_once:
        raise UserError(
            f"global_batch_size {recipe.global_batch_size} cannot be shared by {world_size} process(es) with "
            f"per_device_train_batch_size {recipe.per_device_train_batch_size}: {at_once} does not divide it."
        )
    return recipe.global_batch_size // at_once


def trainer_arguments(recipe: Recipe, engine: Engine, dtype: torch.dtype, device: torch.device) -> SFTConfig:
    """The arguments; whatever the recipe does not name is set so that TRL adds nothing of its own."""
    known = get_available_reporting_integrations()
    if unknown := sorted(set(recipe.report_to) - set(known)):
        raise UserError(
            f"report_to: {', '.join(unknown)} is not installed or not known. There are: {', '.join(known) or 'none'}."
        )
    try:
        arguments = _config(recipe, engine, dtype, device)
        if engine.deepspeed:  # its engine cuts the model, later; transformers would cut it while it is loaded
            unset_hf_deepspeed_config()
        return arguments
    except (ValueError, ImportError) as error:
        raise UserError(f"The recipe asks for what the trainer has not: {str(error)[:300]}") from None


def _config(recipe: Recipe, engine: Engine, dtype: torch.dtype, device: torch.device) -> SFTConfig:
    # their own bf16 would round what trains; the trainer computes in an autocast of its own there
    mixed = not engine.casts
    if device.type == "cpu" and engine.processes > 1:  # else its groups have torch's own timeout, whatever ddp_timeout
        PartialState(cpu=True, timeout=timedelta(seconds=recipe.ddp_timeout))
    return SFTConfig(
        **{name: getattr(recipe, name) for name in SAME},
        gradient_accumulation_steps=accumulation(recipe, engine.processes),
        report_to=list(recipe.report_to) or "none",
        bf16=mixed and dtype == torch.bfloat16,
        fp16=mixed and dtype == torch.float16,
        tf32=True if device.type == "cuda" else None,
        use_cpu=device.type == "cpu",
        save_strategy="steps",  # and no save_total_limit: transformers would delete a checkpoint that is to be kept
        logging_strategy="steps",
        eval_strategy="steps" if recipe.eval_share or recipe.sample_generations else "no",
        eval_steps=recipe.eval_steps,
        per_device_eval_batch_size=recipe.per_device_train_batch_size,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # its default logs a loss of 0.0 where there is NaN
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,  # lengths are the data path's
        packing=False,
        gradient_checkpointing=False,  # switched on for the LLM alone, in run.py
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_persistent_workers=recipe.dataloader_num_workers > 0,
        ddp_find_unused_parameters=False,
        # FSDP2 would hold the gradients of all micro-batches but the last whole in every process
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": engine.name == "fsdp2"}},
    )
