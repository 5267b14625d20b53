"""The trainer's half that writes and reads: every checkpoint is an artifact, written at once or not at all.

What is overridden, and why: `save_model` (what an engine holds in pieces is put together first), `_save` (an adapter and the
projector, or a whole model, in this package's form), `_save_checkpoint` (out of sight, then moved into place), `_load_from_checkpoint`,
and for DeepSpeed and FSDP2 their own checkpoints of the optimizer, without frozen weights.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from transformers import Trainer, TrainerState

from .. import console
from ..artifact.adapter import fill, save_adapter
from ..artifact.manifest import writing
from ..errors import RunError
from ..model.whole import read_whole, save_whole
from .checkpoint import SAVING, rotate
from .guards import ADVICE
from .measure import best_step
from .peers import broken
from .shards import gathered, load_pieces, save_pieces, send_pieces, whole_state


def restore_weights(model: torch.nn.Module, checkpoint: Path, whole: bool) -> None:
    """Puts a checkpoint's weights into a model that trains what its run trained.

    Args:
        whole: it holds the whole model, and not an adapter.

    Raises:
        RunError: one came back in another dtype than it trains in.
    """
    if whole:
        model.load_state_dict(read_whole(checkpoint), strict=True)
        return
    fill(model, checkpoint)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise RunError(f"{name} came back from {checkpoint} in {parameter.dtype} instead of float32.")


class Keeping:
    """Of a `Trainer` with `recipe`, `processing`, `manifest`, `engine` and `divergence`."""

    _saving_in: Path | None = None
    _whole: dict[str, torch.Tensor] | None = None  # of `gathered`, for what trains whole

    def restore_weights(self, checkpoint: Path) -> None:
        """Takes the weights from a checkpoint, while the model is whole."""
        restore_weights(self.accelerator.unwrap_model(self.model), checkpoint, self.manifest.holds == "model")

    def keep_good_state(self) -> None:
        """Writes a checkpoint of the last whole step, for a run that stops before the next one is taken."""
        if self.state.global_step:
            try:
                self._save_checkpoint(self.model, None)
            except RunError as error:
                console.note(str(error))

    def restore(self, checkpoint: Path) -> None:
        """Takes the step count from a checkpoint, to end a run that had only its artifact left to write."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def gathered(self) -> AbstractContextManager:
        """What was trained is whole in every process while the block lasts; all have to come here."""
        model = self.accelerator.unwrap_model(self.model)
        if self.manifest.holds == "model":
            self._whole = whole_state(model, self.engine)
            return nullcontext()
        return gathered(model, self.engine)

    def write_weights(self, folder: Path) -> None:
        """What was trained: an adapter, or for `full` the whole model in float32."""
        model = self.accelerator.unwrap_model(self.model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad} if self._whole is None else self._whole
        bad = [n for n, p in trained.items() if not torch.isfinite(p).all()]
        if bad:
            raise RunError(f"{len(bad)} trained tensors are not finite ({bad[0]}), so nothing was written. {ADVICE}")
        if self.manifest.holds == "adapter":
            save_adapter(model, folder)
        else:
            save_whole(model, self.processing, folder, torch.float32, self._whole)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into `output_dir`, by the first process, once the others have given their pieces."""
        with self.gathered():
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.engine.casts:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.engine.deepspeed:
            save_pieces(self.model_wrapped, output_dir)
        else:  # transformers' own would add all weights, the frozen ones too
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if self.engine.name == "zero3":
            send_pieces(self.model, self.engine, self.accelerator)
        if not (self.engine.deepspeed and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # transformers would ask for the frozen weights too, which no checkpoint holds
        found = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_pieces(self.model_wrapped, resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.write_weights(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_in or self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Lets transformers fill a folder out of sight, and moves it into place as an artifact when it is whole."""
        out, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        if (out / name).exists():  # a resumed run comes by where it was before
            return
        self._saving_in = out / SAVING
        try:
            Trainer._save_checkpoint(self, model, trial)  # not TRL's, which writes a model card of its own
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoint = self.manifest.model_copy(
                    update={"kind": "checkpoint", "report": {**self.manifest.report, "step": self.state.global_step}}
                )
                with writing(out / name, checkpoint) as partial:
                    for file in (self._saving_in / name).iterdir():
                        file.rename(partial / file.name)
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk
            if isinstance(error, RunError) or broken(error):
                raise
            raise RunError(
                f"{out / name} could not be written: {str(error).splitlines()[0]}. Is the disk full?"
            ) from None
        finally:
            if self.args.should_save:
                shutil.rmtree(self._saving_in, ignore_errors=True)
            self._saving_in = None
        if self.args.should_save:
            best = best_step(self.state) if self.recipe.early_stopping_patience else None
            rotate(out, self.recipe.save_total_limit, {self.divergence.good} | ({best} - {None}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Nothing: the run has begun with its weights."""
