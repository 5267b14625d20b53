"""The processes of a launch beside their collectives: the failure of one becomes the failure of all, in its words.

In: a launch. Out: an error that every process ends with, and that every host tells once. Each process says every second that it
lives, waits for the others between the phases of a run, and leaves its message in the launch's store before it ends. So none
waits in a collective for one that is gone, whatever carries the collectives.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from .. import console
from ..errors import PeerError, RunError, UserError, plain, refused
from .engine import launched_processes
from .line import LISTEN, Failure, Line, within

BEAT = 1.0  # seconds between two signs of life
GRACE = 15.0  # seconds that a process gets to end by itself once another has failed
Made = TypeVar("Made")


class Gone(RunError):
    """A process ended without a word, or its host is gone."""


class Peers:
    """This process among those of its launch; alone without a launcher.

    Args:
        patience: seconds after which a silent process, or a silent store, counts as gone (`ddp_timeout`).

    Raises:
        PeerError: some have not come within `patience`.
    """

    def __init__(self, patience: float) -> None:
        self.processes, self.rank, self.patience = launched_processes(), int(os.environ.get("RANK", 0)), patience
        self.line = Line(self.rank, self.processes, patience) if self.processes > 1 else None
        self.restarted = bool(self.line and self.line.restarted)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look_after, daemon=True)
        if self.line:
            self._thread.start()

    def meet(self, phase: str) -> None:
        """Waits until all processes have come here, however long that takes them while they live.

        Raises:
            PeerError: one of them has failed.
        """
        if self.line:
            self._ask(lambda line: line.store.set(f"{phase}/{self.rank}", ""))
            self._until(self.line.of_each(phase))

    def from_first(self, what: str, make: Callable[[], Made]) -> Made:
        """What `make` returns in the first process, which goes over as JSON; the others wait for it.

        Raises:
            PeerError: one of them has failed.
        """
        if self.line is None:
            return make()
        if self.rank == 0:
            made = make()
            self._ask(lambda line: line.store.set(what, json.dumps(made)))
            return made
        self._until([what])
        return json.loads(self._ask(lambda line: line.store.get(what)))

    def failure(self) -> Failure | None:
        """What ended the launch, if anything has and the store still answers."""
        return within(LISTEN, self.line.failure) if self.line else None

    def settled(self, error: BaseException) -> BaseException:
        """What this process ends with, whose run ended with `error`: that, or what ended another process before."""
        failure = self.failure()
        if failure is None:
            failure = self._find_out(error) if broken(error) else self.line.claim(*self._words(error))
        if failure.rank != self.rank or broken(error) or isinstance(error, Gone):
            return self.line.told(failure)
        if isinstance(error, UserError):
            return UserError(failure.message)
        if isinstance(error, RunError | OSError | KeyboardInterrupt):
            return RunError(failure.message)
        console.error(f"{self._name} failed:")
        return error

    def leave(self) -> None:
        """Nothing of this process is awaited any more."""
        if self.line and not self._left.is_set():
            self._left.set()
            self._thread.join(2 * BEAT)
            self.line.leave(LISTEN)

    @property
    def _name(self) -> str:
        return f"process {self.rank} on {socket.gethostname()}"

    def _words(self, error: BaseException) -> tuple[str, int]:
        """How an error of this process is told in all, and its exit code."""
        if isinstance(error, UserError | RunError):
            words = plain(str(error))
        elif isinstance(error, KeyboardInterrupt):
            words = "Interrupted."
        else:
            words = refused(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return f"{self._name}: {words}", 2 if isinstance(error, UserError) else 1

    def _ask(self, question: Callable[[Line], Made]) -> Made:
        found = within(self.patience, lambda: (question(self.line),))
        if found is None:
            raise Gone(self._no_store())
        return found[0]

    def _until(self, keys: list[str]) -> None:
        while not self._ask(lambda line: line.store.check(keys)):
            if failure := self._ask(Line.failure):
                raise self.line.told(failure)
            time.sleep(0.1)

    def _find_out(self, error: BaseException) -> Failure:
        """What ended the launch, where a collective broke: a message that comes yet, or who gives no sign of life."""
        before, end = within(LISTEN, self.line.beats), time.monotonic() + LISTEN
        while before is not None and time.monotonic() < end:
            if failure := self.failure():
                return failure
            time.sleep(0.5)
        after = within(LISTEN, self.line.beats)
        if before is None or after is None:
            return self.line.claim(self._no_store(), 1)
        silent = [r for r in range(self.processes) if before[r] == after[r] and r != self.rank]
        who = self.line.names(silent) if silent else "A process of this run"
        return self.line.claim(_gone(who, plain(str(error)).splitlines()[0][:200]), 1)

    def _no_store(self) -> str:
        return _gone(self.line.names([0]), f"nothing answers at {self.line.where}")

    def _look_after(self) -> None:
        """Gives signs of life, and ends this process when another has failed or is silent and it does not end by itself."""
        store, heard = self.line.store.clone(), {}
        for number in itertools.count(1):
            if self._left.wait(BEAT):
                return
            found = within(self.patience, lambda: self._round(store, number))  # noqa: B023 (over before the next)
            failure, beats = found or (None, [])
            now = time.monotonic()
            heard |= {r: (b, now) for r, b in enumerate(beats) if heard.get(r, (None,))[0] != b}
            silent = [r for r, (_, since) in heard.items() if now - since > self.patience]
            if failure is None and (found is None or silent):
                why = _gone(self.line.names(silent), f"silent for {self.patience:g} s, ddp_timeout")
                failure = self.line.claim(why if found else self._no_store(), 1)
            if failure is None:
                continue
            if not self._left.wait(GRACE):
                error = self.line.told(failure)
                if error.loud:
                    console.error(str(error))
                os._exit(error.code)
            return

    def _round(self, store: Any, number: int) -> tuple[Failure | None, list[bytes]]:
        self.line.beat(store, number)
        return self.line.failure(store), self.line.beats(store)


@contextmanager
def joined(patience: float) -> Iterator[Peers]:
    """The processes of this launch, for a run: an error of one ends all of them, and every host tells it once.

    Raises:
        PeerError: another process failed; its words.
    """
    peers = Peers(patience)
    try:
        yield peers
    except BaseException as error:
        if peers.line is None or isinstance(error, PeerError):
            raise
        with _undisturbed():  # torchrun sends SIGTERM as soon as another process has ended
            settled = peers.settled(error)
            peers.leave()
        if settled is error:
            raise
        raise settled from None
    finally:
        peers.leave()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal to stop interrupts the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def broken(error: BaseException) -> bool:
    """Whether this is what a collective raises when another process is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text))


def _gone(who: str, sign: str) -> str:
    return (
        f"{who} has ended without a word (killed, or out of memory), or its host is gone ({sign}). Go on with the same command and "
        "--resume from the newest checkpoint."
    )
