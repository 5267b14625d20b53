"""Pickles of plain values: lists, dictionaries, tuples, sets, texts and numbers. Nothing in them is ever called."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from ...errors import UserError


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain values are read")

    def persistent_load(self, identity: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside itself")


def load(path: Path) -> Any:
    """The pickle's value; texts that Python 2 wrote as bytes are read as UTF-8.

    Raises:
        UserError: it is none, or holds anything else than plain values.
    """
    try:
        return _Plain(io.BytesIO(path.read_bytes()), encoding="utf-8", errors="replace").load()
    except Exception as error:  # whatever broken bytes bring about
        raise UserError(f"{path} cannot be read as a pickle of plain values: {error}.") from None
