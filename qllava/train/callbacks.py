"""What happens beside the steps: the progress bar with the log, and an orderly stop on Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import distributed_c10d
from transformers import TrainerCallback

from .. import console
from ..model.device import pick_device
from .engine import launched_processes
from .peers import Peers

SHOWN = (
    "loss",
    "learning_rate",
    "projector_learning_rate",
    "grad_norm",
    "supervised_tokens_per_second",
    "peak_memory_mib",
)
ECHO = 3.0  # seconds in which a launcher passes on a signal that the process got by itself as well


class Progress(TrainerCallback):
    """A bar on a terminal, and a line for every entry of the log."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self._bar: Any = None
        self._advance: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = console.progress("training", state.max_steps)
            self._advance = self._bar.__enter__()
            self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._advance:
            self._advance(1)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last loss is told, whatever logging_steps
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.history.append({"step": state.global_step, **logs})
            shown = "  ".join(f"{k} {logs[k]:.4g}" for k in SHOWN if k in logs)
            console.note(f"step {state.global_step}/{state.max_steps}  {shown}")

        if state.is_world_process_zero and logs and "eval_loss" in logs:
            console.note(f"step {state.global_step}/{state.max_steps}  held-out loss {logs['eval_loss']:.4g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.__exit__(None, None, None)
            self._bar = None


class OrderlyStop(TrainerCallback):
    """The first Ctrl-C (or SIGTERM) ends the run after the step under way, with a checkpoint; the second ends it at once.

    Under a launcher only a second Ctrl-C does: launcher and scheduler tell each for itself, and end in earnest by SIGKILL.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers, self.asked, self._since = peers, False, 0.0
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.peers.failure():  # torchrun sends SIGTERM where another process has failed
            raise KeyboardInterrupt
        if self.asked:
            if "WORLD_SIZE" in os.environ and (number == signal.SIGTERM or time.monotonic() - self._since < ECHO):
                return
            raise KeyboardInterrupt
        self.asked, self._since = True, time.monotonic()
        console.note("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if launched_processes() > 1:  # groups that DeepSpeed made for itself have torch's default
            for group in list(distributed_c10d._world.pg_map):
                distributed_c10d._set_pg_timeout(args.ddp_timeout_delta, group)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if anywhere(self.asked):
            if not self.asked:  # a launcher on another machine was told, and this may be the process that people read
                console.note("Stopping after this step, with a checkpoint: another process was told to.")
            self.asked = True
            control.should_save = control.should_training_stop = True
        return control


def deaf(before: Callable[[int], None] | None, number: int) -> None:
    """A data loader's worker at its start: it ends when its run says so, not by signals that the run saves a checkpoint upon."""
    if before is not None:
        before(number)
    if not hasattr(signal, "sigwaitinfo"):
        return
    names, run = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}, os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, names)

    def listen() -> None:
        while True:
            heard = signal.sigwaitinfo(names)
            if heard.si_signo == signal.SIGTERM and heard.si_pid == run:
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def anywhere(asked: bool) -> bool:
    """Whether any process has been asked: all of them have to stop after the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return asked
    flag = torch.tensor([int(asked)], device=pick_device())
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
