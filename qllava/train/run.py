"""`qllava train`: a recipe in, an artifact in `output_dir/final` out."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..artifact.load import FINAL, find_artifact
from ..artifact.manifest import Base, Manifest, verify_quick, writing
from ..data.collate import collate
from ..data.dataset import Selection, select, training_set
from ..errors import RunError, UserError, plain
from ..model.adapt import audit, audit_rows, make_trainable
from ..model.build import load_model, portable, processing_for, sources
from ..model.device import pick_device, pick_dtype
from ..model.fingerprint import fingerprint
from ..model.projector import put_projector, read_projector
from ..recipe.schema import Recipe
from .checkpoint import newest_good
from .start import same_data, settle_base, steps_done, steps_wanted, where_to_start

PAD_TO = 32  # positions; kernels are made once a shape, and tensor cores like multiples of 8


@dataclass
class Result:
    """What a run left, and what was measured."""

    artifact: Path  # output_dir/final
    steps: int
    seconds: float
    peak_memory_mib: int
    loss: float | None  # of the last line of the log; None where none was written
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

    from .arguments import launched_processes, trainer_arguments

    out = Path(recipe.output_dir)
    recipe = settle_base(recipe)
    checkpoint = where_to_start(recipe, resume)
    device = pick_device()
    dtype = pick_dtype(recipe.dtype, device)
    arguments = trainer_arguments(recipe, launched_processes(), dtype, device)
    processing = processing_for(recipe)
    selection = select(recipe, processing)
    if checkpoint is not None:
        same_data(checkpoint, selection.digest)
    rows = training_set(selection.rows, processing, recipe.max_length)
    rows[0]  # the first sample is made before a model is read
    set_seed(recipe.seed)
    model = load_model(recipe.base, dtype, device, recipe.quantization if recipe.tune == "qlora" else None)
    if recipe.projector is not None:
        artifact = find_artifact(recipe.projector)
        if artifact is not None:
            verify_quick(artifact)
        folder = artifact or Path(recipe.projector)
        put_projector(model, read_projector(folder), folder)
    model = make_trainable(model, recipe)
    parts = audit(model, recipe.tune)
    _show(parts)
    if recipe.gradient_checkpointing:
        _checkpoint_language_model(model)
    manifest = _manifest(recipe, dtype, parts, processing.template.name, selection)
    trainer, history, stop = _trainer(recipe, model, processing, rows, manifest, arguments)
    started = time.perf_counter()
    if checkpoint is not None and steps_done(checkpoint) >= steps_wanted(checkpoint, recipe):
        trainer.restore(checkpoint)  # it had ended but for its artifact
        return _finish(trainer, out, manifest, history, time.perf_counter() - started, parts)
    stop.install()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        raise RunError(_how_to_go_on(out)) from None
    except UserError as error:  # a sample that could not be made
        found, _ = newest_good(out)
        kept = f"The last checkpoint is {found}." if found else f"Nothing was saved in {out}."
        raise UserError(
            f"{plain(str(error))}\n{kept} Mend that and go on with --resume, or begin with on_bad=drop, which leaves such "
            "samples out."
        ) from None
    finally:
        stop.restore()
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise RunError(_how_to_go_on(out))
    return _finish(trainer, out, manifest, history, time.perf_counter() - started, parts)


def _manifest(recipe: Recipe, dtype: torch.dtype, parts: list, template: str, selection: Selection) -> Manifest:
    return Manifest(
        kind="model" if recipe.tune == "full" else "adapter",
        holds="model" if recipe.tune == "full" else "adapter",
        template=template,
        image_aspect_ratio=recipe.image_aspect_ratio,
        after_eos=recipe.after_eos,
        exif_transpose=recipe.exif_transpose,
        base=Base(source=portable(recipe.base), fingerprint=fingerprint(sources(recipe.base))),
        tune=recipe.tune,
        dtype=str(dtype).removeprefix("torch."),
        recipe=recipe.model_dump(mode="json"),
        report={
            "audit": audit_rows(parts),
            "data_digest": selection.digest,
            "samples": dict(zip((s.path for s in recipe.data), selection.taken, strict=True)),
            "dropped": [vars(b) for b in selection.dropped],
        },
    )


def _trainer(recipe: Recipe, model: Any, processing: Any, rows: Any, manifest: Manifest, arguments: Any) -> Any:
    from transformers import PrinterCallback

    from .callbacks import OrderlyStop, Progress
    from .trainer import LlavaTrainer

    history, stop = Progress(), OrderlyStop()
    trainer = LlavaTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=functools.partial(collate, processing=processing, multiple=PAD_TO),
        processing_class=processing.encoder.tokenizer,
        callbacks=[history, stop],
        recipe=recipe,
        processing=processing,
        manifest=manifest,
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout
    together = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if together != recipe.global_batch_size:
        raise RunError(
            f"{arguments.world_size} process(es) make batches of {together}, not of global_batch_size "
            f"{recipe.global_batch_size}. Launch with torchrun, which tells each process how many there are."
        )
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
        "loss": losses[-1] if losses else None,
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
