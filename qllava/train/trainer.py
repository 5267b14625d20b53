"""The trainer: TRL's `SFTTrainer` with LLaVA's optimizer groups, sampler, loss and artifacts in place of its own.

What is overridden, and why: `create_optimizer` (the projector has its own learning rate), `_get_train_sampler` (the order
must not depend on the number of processes), `compute_loss` (logits at labels only, weighted over the global batch), saving
and loading (every checkpoint is an artifact, written at once or not at all).
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from ..artifact.adapter import check_loaded, save_adapter
from ..artifact.manifest import Manifest, writing
from ..data.processing import Processing
from ..data.tokens import IGNORE
from ..errors import RunError
from ..model.forward import install_loss
from ..model.projector import put_projector, read_projector
from ..model.whole import read_whole, save_whole
from ..recipe.schema import Recipe
from .sampler import OriginalSampler, SeededSampler

ADVICE = "Go on from the last checkpoint with a lower learning_rate; 1e-4 or less where 2e-4 blew up."


class LlavaTrainer(SFTTrainer):
    """Trains what `model.adapt.make_trainable` switched on.

    Args:
        recipe: the run.
        processing: how inputs are made; saved with every artifact.
        manifest: of the artifacts, but for what is only known when one is written.
    """

    def __init__(self, *args: Any, recipe: Recipe, processing: Processing, manifest: Manifest, **kwargs: Any) -> None:
        self.recipe, self.processing, self.manifest = recipe, processing, manifest
        self.supervised, self.started = 0, time.perf_counter()  # since the last line of the log
        self._saving_in: Path | None = None
        model = kwargs["model"]
        masters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(*args, **kwargs)
        for name, parameter in model.named_parameters():  # TRL casts what trains to bfloat16 when the base is quantised
            if name in masters:
                parameter.data = masters[name].to(parameter.device)
        install_loss(model.get_base_model() if hasattr(model, "get_base_model") else model)
        self.model_accepts_loss_kwargs = True  # so that the labels of a whole global batch are counted
        self.loss_is_scaled_for_ga = True

    # -- optimisation
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Four groups: the projector and the rest, each with and without weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        rates = {
            True: self.recipe.projector_learning_rate or self.recipe.learning_rate,
            False: self.recipe.learning_rate,
        }
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {
                "params": [
                    p for n, p in trainable if ("multi_modal_projector" in n) == projector and (n in decayed) == decay
                ],
                "lr": rates[projector],
                "weight_decay": self.args.weight_decay if decay else 0.0,
            }
            for projector in (False, True)
            for decay in (True, False)
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind([g for g in groups if g["params"]], **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        rows = (train_dataset if train_dataset is not None else self.train_dataset).with_format(None)
        recipe = self.recipe
        if recipe.order == "original":
            together = self.args.world_size * self.args.gradient_accumulation_steps
            return OriginalSampler(rows["words"][:], recipe.per_device_train_batch_size, together, recipe.seed)
        lengths = rows["words"][:] if recipe.group_by_modality_length else [1] * len(rows)
        return SeededSampler(lengths, recipe.global_batch_size, recipe.seed, recipe.group_by_modality_length)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over all supervised tokens of the global batch, so that its split does not matter."""
        self.supervised += int((inputs["labels"][:, 1:] != IGNORE).sum())
        outputs = model(**inputs, normalizer=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    def restore(self, checkpoint: Path) -> None:
        """Takes weights and step count from a checkpoint, to end a run that had only its artifact left to write."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the projector's learning rate, supervised tokens per second and peak memory (MiB) to a line of the log."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise RunError(f"The loss is {logs['loss']} at step {self.state.global_step}. {ADVICE}")
            now = time.perf_counter()
            groups = self.optimizer.param_groups  # the projector's come last, and all follow one schedule
            logs["projector_learning_rate"] = logs["learning_rate"] * groups[-1]["initial_lr"] / groups[0]["initial_lr"]
            logs["supervised_tokens_per_second"] = round(
                self.supervised * self.args.world_size / (now - self.started), 1
            )
            logs["peak_memory_mib"] = peak_memory()
            self.supervised, self.started = 0, now
        Trainer.log(self, logs, start_time)

    # -- artifacts
    def write_weights(self, folder: Path) -> None:
        """What was trained: an adapter, or for `full` the whole model in float32."""
        model = self.accelerator.unwrap_model(self.model)
        bad = [n for n, p in model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if bad:
            raise RunError(f"{len(bad)} trained tensors are not finite ({bad[0]}), so nothing was written. {ADVICE}")
        if self.manifest.holds == "adapter":
            save_adapter(model, folder)
        else:
            save_whole(model, self.processing, folder, torch.float32)

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
        self._saving_in = out / ".saving"
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
        finally:
            if self.args.should_save:
                shutil.rmtree(self._saving_in, ignore_errors=True)
            self._saving_in = None
        if self.args.should_save:
            rotate_checkpoints(output_dir=str(out), save_total_limit=self.args.save_total_limit, use_mtime=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder, model = Path(resume_from_checkpoint), self.model if model is None else model
        if self.manifest.holds == "model":
            model.load_state_dict(read_whole(folder), strict=True)
            return
        put_projector(model, read_projector(folder), folder)
        if hasattr(model, "peft_config"):
            model.load_adapter(str(folder), model.active_adapter, is_trainable=True)
            check_loaded(model, folder)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise RunError(f"{name} came back from {folder} in {parameter.dtype} instead of float32.")


def peak_memory() -> int:
    """The most memory this process has held, in MiB: on its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
