"""`qllava train`: a recipe in, an artifact in `output_dir/final` out."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..artifact.load import FINAL, find_artifact
from ..artifact.manifest import Base, Manifest, read_manifest, writing
from ..data.collate import collate
from ..data.dataset import training_set
from ..errors import RunError, UserError
from ..model.adapt import audit, audit_rows, make_trainable
from ..model.build import load_model, load_processing, portable, sources
from ..model.device import pick_device, pick_dtype
from ..model.fingerprint import fingerprint
from ..model.projector import put_projector, read_projector
from ..recipe.schema import Recipe
from .checkpoint import checkpoints, newest_good, set_aside


@dataclass
class Result:
    """What a run left, and what was measured."""

    artifact: Path  # output_dir/final
    steps: int
    seconds: float
    peak_memory_mib: int
    loss: float  # of the last line of the log
    audit: list[dict[str, Any]]
    log: list[dict[str, Any]] = field(repr=False)


def train(recipe: Recipe, resume: bool = False) -> Result:
    """Runs the recipe.

    Args:
        resume: go on from the newest good checkpoint in `output_dir`.

    Raises:
        UserError: data, base or output_dir are not fit for the run.
        RunError: the run failed or was interrupted; the message says how to go on.
    """
    from transformers import set_seed

    out = Path(recipe.output_dir)
    _refuse_an_adapter_as_base(recipe)
    checkpoint = _where_to_start(out, resume)
    device = pick_device()
    dtype = pick_dtype(recipe.dtype, device)
    processing = load_processing(recipe.base, recipe.template, recipe.image_aspect_ratio)
    rows = training_set(recipe.data, processing, recipe.max_length)
    rows[0]  # the first sample is made before a model is read
    set_seed(recipe.seed)
    model = load_model(recipe.base, dtype, device, recipe.quantization if recipe.tune == "qlora" else None)
    if recipe.projector is not None:
        folder = find_artifact(recipe.projector) or Path(recipe.projector)
        put_projector(model, read_projector(folder), folder)
    model = make_trainable(model, recipe)
    parts = audit(model, recipe.tune)
    _show(parts)
    if recipe.gradient_checkpointing:
        _checkpoint_language_model(model)
    manifest = _manifest(recipe, dtype, parts)
    trainer, history, stop = _trainer(recipe, model, processing, rows, manifest, dtype, device)
    started = time.perf_counter()
    stop.install()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        raise RunError(_how_to_go_on(out)) from None
    finally:
        stop.restore()
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise RunError(_how_to_go_on(out))
    return _finish(trainer, out, manifest, history, time.perf_counter() - started, parts)


def _refuse_an_adapter_as_base(recipe: Recipe) -> None:
    folder = find_artifact(recipe.base) if isinstance(recipe.base, str) else None
    if folder is not None and read_manifest(folder).holds == "adapter":
        raise UserError(
            f"base {recipe.base} is an adapter, not a base. Merge it first (qllava merge {recipe.base} --out DIR), "
            "or, to start from its projector, name it as projector."
        )


def _where_to_start(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to begin; refuses to write over a run."""
    if resume:
        if (out / FINAL).exists():
            raise UserError(f"The run in {out} has ended; its artifact is {out / FINAL}.")
        found, complaints = newest_good(out)
        if found is None:
            reasons = "".join(f"\n  - {c}" for c in complaints.values())
            raise UserError(f"No good checkpoint in {out} to resume from.{reasons}\nBegin anew with another output_dir.")
        for folder, complaint in complaints.items():
            console.note(f"Passed over: {complaint} It is now {set_aside(folder)}.")
        console.note(f"Resuming from {found}.")
        return found
    if (out / FINAL).exists() or checkpoints(out):
        raise UserError(f"{out} holds a run already. Add --resume to go on with it, or name another output_dir.")
    return None


def _manifest(recipe: Recipe, dtype: torch.dtype, parts: list) -> Manifest:
    return Manifest(
        kind="model" if recipe.tune == "full" else "adapter",
        holds="model" if recipe.tune == "full" else "adapter",
        template=recipe.template,
        image_aspect_ratio=recipe.image_aspect_ratio,
        base=Base(source=portable(recipe.base), fingerprint=fingerprint(sources(recipe.base))),
        tune=recipe.tune,
        dtype=str(dtype).removeprefix("torch."),
        recipe=recipe.model_dump(mode="json"),
        report={"audit": audit_rows(parts)},
    )


def _trainer(
    recipe: Recipe, model: Any, processing: Any, rows: Any, manifest: Manifest, dtype: Any, device: Any
) -> Any:
    from accelerate import PartialState
    from transformers import PrinterCallback

    from .arguments import trainer_arguments
    from .callbacks import OrderlyStop, Progress
    from .trainer import LlavaTrainer

    history, stop = Progress(), OrderlyStop()
    trainer = LlavaTrainer(
        model=model,
        args=trainer_arguments(recipe, PartialState().num_processes, dtype, device),
        train_dataset=rows,
        data_collator=functools.partial(collate, processing=processing),
        processing_class=processing.encoder.tokenizer,
        callbacks=[history, stop],
        recipe=recipe,
        processing=processing,
        manifest=manifest,
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout
    return trainer, history, stop


def _checkpoint_language_model(model: Any) -> None:
    """Recomputes the LLM's activations, and leaves the frozen tower without a graph.

    Non-reentrant, so that no gradient has to enter at the embeddings: the hook for that would reach CLIP as well.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _finish(trainer: Any, out: Path, manifest: Manifest, history: Any, seconds: float, parts: list) -> Result:
    from .trainer import peak_memory

    losses = [entry["loss"] for entry in history.history]
    report = {
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "peak_memory_mib": peak_memory(),
        "loss": losses[-1] if losses else math.nan,
    }
    final = manifest.model_copy(update={"report": {**manifest.report, **report}})
    if trainer.args.should_save:
        with writing(out / FINAL, final) as folder:
            trainer.write_weights(folder)
    trainer.accelerator.wait_for_everyone()
    return Result(
        out / FINAL,
        report["steps"],
        report["seconds"],
        report["peak_memory_mib"],
        report["loss"],
        audit_rows(parts),
        history.history,
    )


def _how_to_go_on(out: Path) -> str:
    found, _ = newest_good(out)
    if found is None:
        return f"Interrupted before the first checkpoint; nothing was saved in {out}."
    return f"Interrupted. The last checkpoint is {found}. Go on with the same command and --resume."


def _show(parts: list) -> None:
    console.table(
        "What trains",
        ("part", "parameters", "trainable", "dtype", "4-bit linears", "LoRA modules"),
        [(p.part, p.parameters, p.trainable, p.dtype, p.quantized, p.lora) for p in parts],
    )
