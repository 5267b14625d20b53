"""A folder that one process at a time writes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError


@contextmanager
def alone(folder: Path, taken: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the folder, made where it is not there, while the block lasts. However a process ends, the system lets go for it.

    The file `.lock` stays: one that is removed may be held by two, by its old and its new name.

    Args:
        taken: what is said where another process holds it.
        patience: seconds that one which is about to end gets.

    Raises:
        UserError: another process holds the folder, or nothing can be written to it.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(taken) from None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write to {folder}: {getattr(error, 'strerror', None) or error}.") from None
    try:
        yield
    finally:
        lock.release()
