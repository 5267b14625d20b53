"""Weights and configs out of files that others wrote. In: a file or folder. Out: tensors by key; nothing in a file is run."""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...errors import RunError, UserError

State = dict[str, torch.Tensor]
WHOLE = ("model*.safetensors", "pytorch_model*.bin")  # weights of a whole model; the first pattern that is there counts


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RunError: it holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise RunError(f"{file} is damaged: it holds no JSON object.")
    return value


def read_tensors(file: Path) -> State:
    """The tensors of a safetensors file, or of a `.bin` that holds tensors alone.

    Raises:
        RunError: the file is damaged.
        UserError: it is a pickle that holds anything else, such as code.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file} is damaged: {error}.") from None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _calls(file):
            raise UserError(
                f"{file} holds more than tensors, which would be run as it is read: refused. Ask its author for safetensors."
            ) from None
        raise RunError(f"{file} is damaged: it is no file of tensors.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged: {(str(error) or type(error).__name__).splitlines()[0][:200]}.") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{file} is no set of weights: it does not hold tensors by their names.")
    return {str(k): v.detach() for k, v in state.items()}


def _calls(file: Path) -> bool:
    """Whether a bare pickle names something to be called."""
    try:
        with file.open("rb") as stream:
            return any(op.name in ("GLOBAL", "STACK_GLOBAL", "INST") for op, _, _ in pickletools.genops(stream))
    except Exception:  # no pickle at all
        return False


def first_file(folder: Path, *names: str) -> Path | None:
    """The first of these files that is in the folder."""
    return next((folder / n for n in names if (folder / n).is_file()), None)


def weight_shards(folder: Path) -> list[Path]:
    """The files with a whole model's weights, as its index lists them where there is one; empty if it holds none.

    Raises:
        RunError: the index names a file that is not there, or is damaged.
    """
    for pattern in WHOLE:
        for index in sorted(folder.glob(f"{pattern}.index.json")):
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise RunError(f"{index} is damaged: it lists no weights.")
            files = [folder / Path(str(n)).name for n in sorted({str(n) for n in names.values()})]
            if gone := [f.name for f in files if not f.is_file()]:
                raise RunError(f"{folder} is not whole: {index.name} lists {gone[0]}, which is missing.")
            return files
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def read_whole_state(folder: Path) -> State:
    """All weights of a model's folder, by the keys of its files.

    Raises:
        UserError: it holds none.
        RunError: a file is missing or damaged.
    """
    files = weight_shards(folder)
    if not files:
        raise UserError(f"{folder} holds no weights ({' or '.join(WHOLE)}).")
    return {k: v for file in files for k, v in read_tensors(file).items()}
