"""Work that one process of a node does, and whose result the others read: files that are kept, and what holds for a launch."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from .. import console
from ..errors import RunError, UserError

POLL = 0.02  # seconds between looks at whether the first process is ready
DAY = 86400.0  # seconds
_calls = itertools.count()


def root_folder() -> Path:
    """Where everything is kept: in the cache of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "qllava"


def temporary_folder() -> Path:
    """This user's own folder among the temporary ones of this machine.

    Raises:
        UserError: it is another user's, or open to others.
    """
    folder = Path(tempfile.gettempdir()) / f"qllava-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
        raise UserError(f"{folder} can be written by others, so nothing is kept there. Remove it, or set TMPDIR.")
    return folder


def kept(name: str, write: Callable[[Path], None], title: str) -> Path:
    """A file that is made once and found again by its name, in the cache or, where nothing can be written there, in the
    temporary folder.

    Args:
        name: of the file; it holds a digest of all that the content depends on.
        write: makes it under the path that it is given.
        title: what is read for it, for the message.

    Raises:
        UserError: there is no room for it, or `write` raises it.
    """
    file = root_folder() / name
    if not whole(file) and not _can_write(file.parent):
        file = temporary_folder() / name
        if not whole(file):
            console.note(
                f"Nothing can be kept in {root_folder()} (HF_DATASETS_CACHE says where), so {file.parent} is used."
            )
    if not whole(file):
        console.note(f"Reading {title}; this is done once.")
        with FileLock(file.with_suffix(".lock")):
            if not whole(file):
                _write(file, write)
    return file


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def whole(file: Path) -> bool:
    """Whether the kept file is there, in the size that was noted when it was written."""
    try:
        return file.stat().st_size == int(file.with_suffix(".size").read_text())
    except (OSError, ValueError):
        return False


def _write(file: Path, write: Callable[[Path], None]) -> None:
    """The file, which is there when it is whole."""
    partial = file.with_suffix(".partial")
    try:
        write(partial)
        file.with_suffix(".size").write_text(str(partial.stat().st_size))
        partial.rename(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{file.parent} has no room for what is read. Name a folder with room as HF_DATASETS_CACHE."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def for_launch(make: Callable[[], Any]) -> Any:
    """What `make` gives, plain values that JSON can hold: the first process of each node works, the others wait for it.

    All processes have to call this equally often. Nothing stays for the next launch, which looks anew.

    Raises:
        UserError, RunError: `make` did, in whichever process.
    """
    call, processes = next(_calls), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes < 2:
        return make()
    folder = temporary_folder() / "launches"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{_launch()}-{call}-{rank}.json" for rank in range(processes)]
    own = files[int(os.environ.get("LOCAL_RANK", 0))]
    if own == files[0]:
        try:
            made = make()
            _leave(files, {"made": made})
            return made
        except (UserError, RunError) as error:
            _leave(files, {type(error).__name__: str(error)})
            raise
        except BaseException as error:
            _leave(files, {"RunError": f"The first process failed: {error!r}"})
            raise
    launcher = os.getppid()
    while not own.exists():
        if os.getppid() != launcher:
            raise RunError("The launcher has ended while its first process was preparing the data.")
        time.sleep(POLL)
    ((kind, found),) = json.loads(own.read_text()).items()
    own.unlink()
    if kind == "made":
        return found
    raise (UserError if kind == "UserError" else RunError)(found)


def _leave(files: Sequence[Path], content: Any) -> None:
    """Writes it for each of the other processes, which takes its name for it away again."""
    first, *others = files
    for old in first.parent.iterdir():  # of processes that were killed
        with suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - DAY:
                old.unlink()
    first.write_text(json.dumps(content))
    for file in others:
        file.hardlink_to(first)
    first.unlink()


def _launch() -> str:
    """What the processes of this launch on this node have in common, and no others: the launcher, and its try."""
    launcher = psutil.Process(os.getppid())
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    known = [socket.gethostname(), launcher.pid, launcher.create_time(), *map(os.environ.get, names)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:20]


def stamp_of(files: Sequence[Path]) -> str:
    """What tells the files from others, and from themselves after a change."""
    stats = [(f, f.stat()) for f in files]
    return json.dumps([[str(f.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in stats])


@contextmanager
def unchanged(files: Sequence[Path], stamp: str, name: str) -> Iterator[None]:
    """Raises `UserError` where the files are no longer what they were at the stamp when the block ends, however it ends."""

    def check() -> None:
        try:
            same = stamp_of(files) == stamp
        except OSError:
            same = False
        if not same:
            raise UserError(f"{name} was changed while it was read. Start again when nothing writes to it any more.")

    try:
        yield
    except UserError:
        check()
        raise
    check()
