"""A process's line to the launch's store: a small server of torch's, in torchrun or in the first process, that every process reaches
without a collective.

In: the environment as torchrun leaves it. Out: who is in the launch, who lives, and what ended it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import PeerError, first_on_host

LISTEN = 5.0  # seconds for an answer where something has gone wrong already
FAILED = "failed"
Answer = TypeVar("Answer")
_runs = itertools.count()  # of this process, so that none reads the keys of the one before


@dataclass(frozen=True)
class Failure:
    """What ends a launch: whose it is, and how it is told."""

    rank: int
    host: str
    message: str
    code: int


class Line:
    """Args:
        rank, processes: this one's number, and how many there are.
        patience: seconds after which the others count as not coming.

    Raises:
        PeerError: some have not come.
    """

    def __init__(self, rank: int, processes: int, patience: float) -> None:
        self.rank, self.processes = rank, processes
        # torchrun's number of the host as well: containers may share a name
        self.host = f"{os.environ.get('GROUP_RANK', '')}:{socket.gethostname()}"
        self.where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        limit = timedelta(seconds=patience)
        try:
            store = next(dist.rendezvous("env://", timeout=limit))[0]
        except (RuntimeError, ValueError) as error:
            raise _apart(
                f"Process {rank} on {socket.gethostname()} does not reach the first one at {self.where}: "
                f"{str(error).splitlines()[0][:200]} Launch with torchrun, on all hosts with the same --rdzv_endpoint (or "
                "--master_addr and --master_port)."
            ) from None
        # on one host, torchrun may start its processes anew beside the same store; over hosts it makes a new one
        alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
        self.store = dist.PrefixStore(f"qllava/{again}/{next(_runs)}", store)
        self.store.set(f"host/{rank}", self.host)
        self.store.set(f"again/{rank}", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.beat(self.store, 0)
        try:
            self.store.wait(self.of_each("beat"), limit)
        except RuntimeError:
            missing = [str(r) for r, key in enumerate(self.of_each("beat")) if not self.store.check([key])]
            raise _apart(
                f"Process {', '.join(missing)} of {processes} has not come to {self.where} within {patience:g} s (ddp_timeout). "
                "See what its host says."
            ) from None
        self.hosts = [h.decode() for h in self.store.multi_get(self.of_each("host"))]
        self.restarted = any(
            int(n) for n in self.store.multi_get(self.of_each("again"))
        )  # by torchrun's --max-restarts

    def of_each(self, what: str) -> list[str]:
        """The keys that each process has for something."""
        return [f"{what}/{r}" for r in range(self.processes)]

    def names(self, ranks: Sequence[int]) -> str:
        """`process 3 on node7`, of each."""
        return ", ".join(f"process {r} on {self.hosts[r].partition(':')[2]}" for r in ranks)

    def beat(self, store: Any, number: int) -> None:
        """A sign of life."""
        store.set(f"beat/{self.rank}", str(number))

    def beats(self, store: Any = None) -> list[bytes]:
        """The last sign of life of each process."""
        return (store or self.store).multi_get(self.of_each("beat"))

    def failure(self, store: Any = None) -> Failure | None:
        """What ended the launch."""
        store = store or self.store
        return Failure(**json.loads(store.get(FAILED))) if store.check([FAILED]) else None

    def claim(self, message: str, code: int) -> Failure:
        """Ends the launch with this message, unless another has ended it already; returns what ended it."""
        own = Failure(self.rank, self.host, message, code)
        found = within(LISTEN, lambda: self.store.compare_set(FAILED, "", json.dumps(asdict(own))))
        return own if found is None else Failure(**json.loads(found))

    def told(self, failure: Failure) -> PeerError:
        """The failure as this process's error: told by whose it is, and by the first process of every other host."""
        elsewhere = failure.host != self.host and first_on_host()
        return PeerError(failure.message, failure.code, loud=elsewhere or failure.rank == self.rank)

    def leave(self, patience: float) -> None:
        """Nothing is asked any more. Where the store ends with this process, this waits until the others have left, too."""
        within(LISTEN, lambda: self.store.set(f"left/{self.rank}", ""))
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            within(patience, lambda: self.store.wait(self.of_each("left"), timedelta(seconds=patience)))


def _apart(message: str) -> PeerError:
    return PeerError(message, 1, loud=first_on_host())


def within(seconds: float, question: Callable[[], Answer]) -> Answer | None:
    """The answer; None where there is none in time: the socket to a host that is gone says so after many minutes only."""
    box: list[Answer] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # torch's, of a connection that is gone
            box.append(question())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else None
