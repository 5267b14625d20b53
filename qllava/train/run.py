"""`qllava train`: a recipe in, an artifact in `output_dir/final` out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .. import console
from ..artifact.card import model_card
from ..artifact.load import FINAL
from ..artifact.manifest import Base, Manifest, verify, writing
from ..data.cache import keep_crops
from ..data.dataset import Selection, hold_out, numbered, select, training_set
from ..data.pairing import tell_sharing
from ..errors import RunError, UserError, plain
from ..model.adapt import audit, audit_rows
from ..model.base import config_of, portable, sources
from ..model.device import pick_device, pick_dtype
from ..model.feature_cache import keep_features
from ..model.fingerprint import fingerprint
from ..model.inputs import processing_for
from ..model.llms import check_rows
from ..recipe.schema import Recipe
from . import card
from .batches import first_batches, together
from .begin import begin
from .engine import Engine, fit, launched
from .explain import explained, how_to_go_on, kept
from .optimizer import rates
from .peers import Peers, joined
from .plan import after_running_out, settle_sizes
from .start import (
    check_device,
    check_projector,
    merge_first,
    only_run,
    same_data,
    settle_adapter,
    settle_base,
    steps_done,
    steps_wanted,
    where_to_start,
)


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


def train(recipe: Recipe, resume: bool = False, callbacks: Sequence[Any] = ()) -> Result:
    """Runs the recipe.

    Args:
        resume: go on from the newest good checkpoint in `output_dir`.
        callbacks: transformers' `TrainerCallback`s that take part, such as a stopwatch.

    Raises:
        UserError: data, base or output_dir are not fit for the run.
        RunError: the run failed or was interrupted; the message says how to go on.
    """
    with joined(recipe.ddp_timeout) as peers, ExitStack() as until_end:
        return _train(recipe, resume, callbacks, peers, until_end)


def _train(recipe: Recipe, resume: bool, callbacks: Sequence[Any], peers: Peers, until_end: ExitStack) -> Result:
    from transformers import set_seed

    from .arguments import trainer_arguments
    from .dry import dry_save

    out = Path(recipe.output_dir)
    asked = recipe = settle_base(recipe)
    device = pick_device()
    engine = launched(device.type == "cpu")
    recipe, adapter = settle_adapter(recipe, engine.reads)
    until_end.enter_context(only_run(out, peers))
    checkpoint = where_to_start(recipe, resume, peers, engine.reads, engine)
    if checkpoint is None and engine.reads:
        check_projector(recipe)
    card.check_hub(recipe)
    dtype = pick_dtype(recipe.dtype, device)
    check_device(recipe, dtype, device)
    recipe, processes = fit(recipe, engine, dtype), engine.processes
    started_from = adapter
    if adapter is not None and recipe.adapter is None:  # it is in the new base
        alone = recipe.model_copy(update={"per_device_train_batch_size": 1})
        with trainer_arguments(alone, engine, dtype, device).main_process_first(local=False, desc="merging"):
            merge_first(recipe, adapter, asked.base)
        adapter = None
    processing = processing_for(recipe)
    check_rows(config_of(recipe.base), recipe.max_length, recipe.packing)
    selection = select(recipe, processing)
    if checkpoint is not None:
        same_data(checkpoint, selection.digest)
    chosen, held = hold_out(selection.rows, recipe.eval_share, recipe.seed)
    if recipe.pairing == "shared":
        tell_sharing(chosen, recipe.group_by_modality_length)
    if recipe.image_cache == "crops":
        processing = keep_crops(processing, [chosen, held])
    recipe = settle_sizes(recipe, chosen, processing, dtype, device, engine)
    arguments = trainer_arguments(recipe, engine, dtype, device)
    evenly = processes * recipe.per_device_train_batch_size
    rows = training_set(chosen, processing, recipe.max_length, evenly)
    rows[0]  # the first sample is made before a model is read
    peers.meet("data")
    set_seed(recipe.seed)
    model = begin(recipe, dtype, device, first_batches(recipe, rows, processing), adapter, checkpoint, engine)
    if recipe.image_cache == "features":
        processing = keep_features(model, processing, [chosen, held], dtype, device, recipe.dataloader_num_workers)
        rows = training_set(chosen, processing, recipe.max_length, evenly)
    put_together = together(recipe, processing)
    parts = audit(model, recipe)
    _show(parts, rates(model, recipe))
    digest = fingerprint(sources(recipe.base)) if engine.reads else ""  # the first process writes it
    manifest = _manifest(recipe, dtype, parts, processing.template.name, selection, digest)
    manifest.report["held_out"] = 0 if held is None else len(held)
    if started_from is not None:
        manifest.report |= {"started_from": str(started_from), "how": asked.adapter_start}
    if checkpoint is not None:
        manifest.report["resumed_from_step"] = steps_done(checkpoint)
    watch = _watch(recipe, processing, chosen, held)
    trainer, history, stop = _trainer(
        recipe, model, processing, rows, put_together, manifest, arguments, watch, engine, peers
    )
    meter = card.Meter()
    if checkpoint is not None and steps_done(checkpoint) >= steps_wanted(checkpoint, recipe):
        trainer.restore(checkpoint)  # it had ended but for its artifact
        return _finish(trainer, out, manifest, history, meter, parts)
    for callback in callbacks:
        trainer.add_callback(callback)
    dry_save(trainer, out)
    peers.meet("training")
    stop.install()
    try:
        smaller = functools.partial(after_running_out, recipe, chosen, processing, dtype, device, engine)
        with explained(trainer, out, smaller), _stdout_kept(engine):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        stop.restore()
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise RunError(how_to_go_on(out))
    return _finish(trainer, out, manifest, history, meter, parts)


def _stdout_kept(engine: Engine) -> AbstractContextManager:
    """DeepSpeed says there what it builds, and stdout is for results."""
    return redirect_stdout(sys.stderr) if engine.deepspeed else nullcontext()


def _watch(recipe: Recipe, processing: Any, chosen: Any, held: Any) -> Any:
    from .watch import Watch, choose_questions

    if held is None and not recipe.sample_generations:
        return None
    pool = chosen if held is None else held
    features = None if held is None else training_set(held, processing, recipe.max_length)
    return Watch(features, choose_questions(pool, recipe.sample_generations, recipe.seed))


def _manifest(
    recipe: Recipe, dtype: torch.dtype, parts: list, template: str, selection: Selection, digest: str
) -> Manifest:
    return Manifest(
        kind="model" if recipe.tune == "full" else "adapter",
        holds="model" if recipe.tune == "full" else "adapter",
        template=template,
        image_aspect_ratio=recipe.image_aspect_ratio,
        after_eos=recipe.after_eos,
        exif_transpose=recipe.exif_transpose,
        base=Base(source=portable(recipe.base), fingerprint=digest),
        tune=recipe.tune,
        dtype=str(dtype).removeprefix("torch."),
        recipe=recipe.model_dump(mode="json"),
        report={
            "audit": audit_rows(parts),
            "data_digest": selection.digest,
            "samples": numbered([s.path for s in recipe.data], selection.taken),
            "dropped": [vars(b) for b in selection.dropped],
        },
    )


def _trainer(
    recipe: Recipe, model: Any, processing: Any, rows: Any, put_together: Any, manifest: Manifest, arguments: Any, watch: Any,
    engine: Engine, peers: Peers,
) -> Any:  # fmt: skip
    from transformers import PrinterCallback

    from .callbacks import OrderlyStop, Progress
    from .trainer import LlavaTrainer

    history, stop = Progress(), OrderlyStop(peers)
    trainer = LlavaTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows if watch is not None else None,  # what is held out, `watch` knows
        data_collator=put_together,
        processing_class=processing.encoder.tokenizer,
        callbacks=[history, stop],
        recipe=recipe,
        processing=processing,
        manifest=manifest,
        watch=watch,
        engine=engine,
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout
    together = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if together != recipe.global_batch_size:
        raise RunError(
            f"{arguments.world_size} process(es) make batches of {together}, not of global_batch_size "
            f"{recipe.global_batch_size}. Launch with torchrun, which tells each process how many there are."
        )
    return trainer, history, stop


def _finish(trainer: Any, out: Path, manifest: Manifest, history: Any, meter: card.Meter, parts: list) -> Result:
    from .measure import best_step

    recipe = trainer.recipe
    best = best_step(trainer.state) if recipe.early_stopping_patience else None
    if best is not None:
        best = _restore_best(trainer, out / f"checkpoint-{best}", best)
    report = meter.report(trainer, best)
    final = manifest.model_copy(update={"report": {**manifest.report, **report}})
    with trainer.gathered():
        if trainer.args.should_save:
            _write(trainer, out, final)
    trainer.accelerator.wait_for_everyone()
    return Result(
        out / FINAL, report["steps"], report["seconds"], report["peak_memory_mib"], report["loss"], audit_rows(parts),
        history.history,
    )  # fmt: skip


def _write(trainer: Any, out: Path, final: Manifest) -> None:
    try:
        with writing(out / FINAL, final) as folder:
            trainer.write_weights(folder)
            model_card(final, folder)
        card.run_card(final, trainer.state.log_history, out)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(
            f"{out / FINAL} could not be written: {str(error).splitlines()[0]}. {kept(out)} Make room, then end the run "
            "with --resume."
        ) from None
    card.push(trainer.recipe, out / FINAL)


def _restore_best(trainer: Any, checkpoint: Path, best: int) -> int | None:
    """Takes the best state's weights; None, with a word, where its checkpoint is no longer whole."""
    try:
        verify(checkpoint)
    except (UserError, RunError) as error:
        console.note(f"The held-out loss was lowest at step {best}, but {plain(str(error))} The last weights are kept.")
        return None
    trainer.restore_weights(checkpoint)
    console.note(f"The held-out loss was lowest at step {best}; the artifact has the weights of then.")
    return best


def _show(parts: list, speeds: dict[str, tuple[str, str]]) -> None:
    console.table(
        "What trains",
        ("part", "linears", "parameters", "trainable", "dtype", "rate", "decay"),
        [
            (
                p.part,
                p.quantized or p.lora or "",
                p.parameters,
                p.trainable,
                _short(p.dtype),
                *speeds.get(p.part, ("", "")),
            )
            for p in parts
        ],
    )


def _short(dtype: str) -> str:
    return dtype.replace("bfloat16", "bf16").replace("float16", "fp16").replace("float32", "fp32")
