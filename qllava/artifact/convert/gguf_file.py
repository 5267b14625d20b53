"""A GGUF file, written one tensor at a time.

In: a plan (tensors by llama.cpp's names, and the metadata) and the weights that it names. Out: the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ...errors import RunError, UserError
from .folder import Weights

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
BLOCK = 32  # numbers that q8_0 gives one scale


@dataclass(frozen=True)
class Piece:
    """One tensor of a GGUF file."""

    name: str  # llama.cpp's
    key: str  # of the source, as published
    outtype: str  # one of OUTTYPES
    heads: int = 0  # of a query's or key's rows, which are put in the order of llama.cpp's rope; 0 leaves them


@dataclass
class Plan:
    """A GGUF file to be written."""

    pieces: Sequence[Piece]
    describe: Callable[[Any], None]  # puts the metadata into a GGUFWriter
    unused: set[str]  # keys of the source that are left out knowingly


def require(pieces: Sequence[Piece], weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises `UserError` where a weight is missing or has another shape than the config says.

    Args:
        shapes: by key, those to compare.
    """
    if missing := [p.key for p in pieces if p.key not in weights]:
        raise UserError(f"{weights.folder} lacks {len(missing)} weights of its config's model: {missing[:3]}.")
    for key, shape in shapes.items():
        if weights.shapes[key] != shape:
            raise UserError(f"{key} in {weights.folder} is {weights.shapes[key]}; by its config it is {shape}.")


def write(path: Path, architecture: str, name: str, plan: Plan, weights: Weights, gguf: ModuleType) -> None:
    """Writes one GGUF file, holding one tensor in memory at a time.

    Raises:
        RunError: a weight does not fit into its type.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    plan.describe(writer)
    for piece in plan.pieces:
        kind, shape = kind_of(piece, weights.shapes[piece.key], gguf), weights.shapes[piece.key]
        bytes_shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        raw = kind not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor_info(
            piece.name, bytes_shape if raw else shape,
            np.dtype(np.uint8 if raw else np.float16 if kind == gguf.GGMLQuantizationType.F16 else np.float32),
            int(np.prod(bytes_shape)), kind,
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in plan.pieces:
        writer.write_tensor_data(encoded(weights(piece.key), piece, gguf))
    writer.close()


def kind_of(piece: Piece, shape: tuple[int, ...], gguf: ModuleType) -> Any:
    """The piece's GGML type; rows that q8_0 cannot divide into blocks are f16, as in llama.cpp."""
    if piece.outtype == "q8_0" and shape[-1] % BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[piece.outtype.upper()]


def encoded(tensor: torch.Tensor, piece: Piece, gguf: ModuleType) -> np.ndarray:
    """The tensor as the file's bytes are to be.

    Raises:
        RunError: it holds what its type cannot hold.
    """
    if piece.heads:
        tensor = permuted(tensor, piece.heads)
    kind = kind_of(piece, tuple(tensor.shape), gguf)
    written = tensor.to(torch.float16) if kind == gguf.GGMLQuantizationType.F16 else tensor.float()
    if not torch.isfinite(written).all():
        largest = tensor.float().abs().max().item()
        raise RunError(
            f"{piece.key} does not fit into {kind.name.lower()}: its largest value is {largest:g}. Try bf16."
        )
    array = written.contiguous().numpy()
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return array
    return gguf.quants.quantize(array, kind)


def permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """A query's or key's rows [heads * width, ...] in llama.cpp's order: each number beside the one it is rotated with.

    transformers rotates the first half of a head with its second half.
    """
    width = tensor.shape[0] // heads
    return tensor.reshape(heads, 2, width // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
