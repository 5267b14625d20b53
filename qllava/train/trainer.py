"""The trainer: TRL's `SFTTrainer` with LLaVA's optimizer groups, sampler, loss and artifacts in place of its own.

What is overridden, and why: `create_optimizer` (the projector has its own learning rate), `_get_train_sampler` (the order
must not depend on the number of processes), `compute_loss` (logits at labels only, weighted over the global batch),
`_get_grad_norm` (the guards look at a step before it is taken), `evaluate` (the loss over all held-out tokens, and nothing
drawn from the run's random streams), saving and loading (see `keeping`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import Trainer
from trl import SFTTrainer

from .. import console
from ..artifact.manifest import Manifest
from ..data.dataset import FILLER
from ..data.processing import Processing
from ..data.tokens import IGNORE
from ..model.attention import install_attention
from ..model.forward import install_loss
from ..model.fused import fuse
from ..model.projector import llava_of
from ..recipe.schema import Recipe
from .batches import sampler_for
from .callbacks import deaf
from .engine import Engine
from .guards import BadStep, Diverged, Divergence, check_gradients, check_step, starved
from .keeping import Keeping
from .measure import Counts, evaluations_since_best, peak_memory
from .optimizer import groups
from .sampler import SeededSampler
from .shards import Heard, cut_by_layers
from .watch import Watch


class LlavaTrainer(Keeping, SFTTrainer):
    """Trains what `model.adapt.make_trainable` switched on.

    Args:
        recipe: the run.
        processing: how inputs are made; saved with every artifact.
        manifest: of the artifacts, but for what is only known when one is written.
        engine: what the processes share the run by.
        watch: what is measured and asked during the run; None measures nothing.
    """

    def __init__(
        self, *args: Any, recipe: Recipe, processing: Processing, manifest: Manifest, engine: Engine,
        watch: Watch | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.recipe, self.processing, self.manifest, self.watch = recipe, processing, manifest, watch
        self.engine = engine
        self.counts = Counts()
        self.divergence = Divergence(recipe.divergence_factor)
        self._supervised = self._step_loss = 0  # of the step under way
        self._audited = self._warned = False
        self._heard: Heard | None = None
        self._line, self._line_started = Counts(), time.perf_counter()  # at the last line of the log
        model = kwargs["model"]
        quantized = recipe.tune == "qlora"
        masters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and quantized}
        super().__init__(*args, **kwargs)
        for name, parameter in model.named_parameters():  # TRL casts what trains to bfloat16 when the base is quantised
            if name in masters:
                parameter.data = masters[name].to(parameter.device)
        llava = llava_of(model)
        install_loss(llava, recipe.attention, engine.sharded)
        if engine.name == "fsdp2":
            cut_by_layers(self.accelerator.state.fsdp_plugin, llava)
        if recipe.packing:
            install_attention(llava.model.language_model)
        if recipe.fused_layers:
            fuse(llava.model.language_model)
        self.model_accepts_loss_kwargs = True  # so that the labels of a whole global batch are counted
        self.loss_is_scaled_for_ga = True

    # -- optimisation
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by part, as `optimizer.groups` makes them."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        made = groups(model, self.recipe, set(self.get_decay_parameter_names(model)))
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind(made, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        rows = (train_dataset if train_dataset is not None else self.train_dataset).with_format(None)
        recipe = self.recipe
        fillers = sum(
            place == FILLER for place in rows["where"][-self.args.world_size * recipe.per_device_train_batch_size :]
        )
        return sampler_for(recipe, rows, fillers)

    def get_train_dataloader(self) -> Any:
        """Its workers outlive the signals that end the run."""
        loader = super().get_train_dataloader()
        under = getattr(loader, "base_dataloader", loader)  # accelerate's own has torch's inside
        under.worker_init_fn = functools.partial(deaf, under.worker_init_fn)
        return loader

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over all supervised tokens of the global batch, so that its split does not matter; or the micro-batches'
        mean of means, as the recipe says."""
        labelled, counts = inputs["labels"] != IGNORE, self.counts
        numbers = (labelled[:, 1:].sum(), inputs["attention_mask"].sum(), labelled.any(1).sum())
        supervised, tokens, samples = torch.stack(numbers).tolist()  # at once: each look at a GPU waits for it
        counts.supervised += supervised
        counts.tokens += tokens
        counts.samples += (
            inputs["layout"].samples if "layout" in inputs else samples
        )  # rows that only fill a batch are none
        self._supervised += supervised
        if self.engine.deepspeed and not self._audited and self._heard is None:
            self._heard = Heard(self.accelerator.unwrap_model(model))
        each = self.recipe.loss_average == "per_micro_batch"
        with self._computing():
            outputs = model(**inputs, **({} if each else {"normalizer": num_items_in_batch}))
        if each:
            loss = outputs.loss / self.current_gradient_accumulation_steps
        else:
            loss = outputs.loss * self.accelerator.num_processes  # all engines take the mean over processes
        self._step_loss += loss.detach()
        return (loss, outputs) if return_outputs else loss

    def _computing(self) -> AbstractContextManager:
        """Autocast, which accelerate sees to unless the engine would cast what trains.

        It keeps nothing that it spelt out: at the end of the forward pass that would be every weight that trains, whole.
        """
        name = str(self.manifest.dtype)
        mixed = self.engine.casts and name != "float32"
        if not mixed:
            return nullcontext()
        return torch.autocast(self.args.device.type, getattr(torch, name), cache_enabled=False)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, and how long it took: the step waits for it."""
        started = time.perf_counter()
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self.counts.waited += time.perf_counter() - started

    def _get_grad_norm(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The gradient's norm, after the guards have looked at the step that it is for."""
        norm = super()._get_grad_norm(model, *args, **kwargs)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss, supervised = self._over_processes(self._step_loss, self._supervised)
        self._step_loss = self._supervised = 0
        step, scaled = self.state.global_step + 1, self.args.fp16
        try:
            check_step(step, loss, float(norm), supervised, scaled)
        except BadStep as error:
            raise (Diverged(str(error)) if self.engine.deepspeed else error) from None  # DeepSpeed has taken the step
        if not self._audited:
            if self._heard is not None:
                self._heard.check()
            else:
                check_gradients(self.accelerator.unwrap_model(model), finite=not scaled)
            self._audited, self._heard = True, None
        if reason := self.divergence.add(step, loss):
            raise Diverged(reason)
        return norm

    def _over_processes(self, loss: torch.Tensor, supervised: int) -> tuple[float, int]:
        """The step's loss and supervised tokens over all processes."""
        if self.accelerator.num_processes == 1:
            return float(loss), supervised
        both = torch.tensor([float(loss), float(supervised)], device=self.accelerator.device)
        mean = self.accelerator.reduce(both, "mean")
        return float(mean[0]), int(mean[1] * self.accelerator.num_processes)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, over all its supervised tokens, and the sample answers; decides on early stopping."""
        metrics = self.watch.look(self) if self.watch is not None else {}
        if metrics:
            self.log(metrics)
            since = evaluations_since_best(self.state)
            patience = self.recipe.early_stopping_patience
            if patience is not None and since == 0:
                self.control.should_save = True
            elif patience is not None and since >= patience:
                self.control.should_training_stop = True
                console.note(f"The held-out loss has not fallen for {patience} evaluations; the run ends here.")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._line_started = time.perf_counter()  # what it took is no training
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the projector's learning rate, supervised tokens (per second, and their share), the share of time spent waiting
        for data, and peak memory (MiB) to a line of the log."""
        if "loss" in logs:
            now, line = time.perf_counter(), self.counts.since(self._line)
            passed = now - self._line_started
            groups_ = self.optimizer.param_groups  # the projector's come last, and all follow one schedule
            speed = groups_[-1]["initial_lr"] / groups_[0]["initial_lr"]
            logs["projector_learning_rate"] = logs["learning_rate"] * speed
            logs["supervised_tokens_per_second"] = round(line.supervised * self.args.world_size / passed, 1)
            logs["supervised_share"] = round(line.supervised / max(1, line.tokens), 4)
            logs["data_wait_share"] = round(line.waited / passed, 4)
            logs["peak_memory_mib"] = peak_memory()
            word = starved(line.waited, passed, self.recipe.dataloader_num_workers)
            if word and not self._warned and self.state.global_step > 1:
                console.note(word)
                self._warned = True
            self._line, self._line_started = dataclasses.replace(self.counts), now
        Trainer.log(self, logs, start_time)
