"""Single weights of a base as its files have them, without loading the base. In: a base. Out: tensors by module path."""

from __future__ import annotations

import torch
from safetensors import safe_open

from ..errors import UserError
from ..recipe.schema import Parts
from . import dialects
from .build import sources
from .fingerprint import weight_files
from .lora import LANGUAGE


class Originals:
    """Gives a weight [out, in] of the LLM in the dtype of its file, by its module's path in the LLaVA.

    Raises:
        UserError: the base's weights are no safetensors, or one is missing.
    """

    def __init__(self, base: str | Parts) -> None:
        self.source = sources(base)[-1]
        self.files = {}
        for file in weight_files(self.source):
            if file.suffix != ".safetensors":
                raise UserError(f"{file} is no safetensors file, so single weights cannot be read from it.")
            with safe_open(file, "pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)

    def __call__(self, module: str) -> torch.Tensor:
        runtime = f"{module}.weight"
        alone = runtime.removeprefix(LANGUAGE)  # in an LLM's own files
        for key in (dialects.to_published(runtime), runtime, f"model.{alone}", alone):
            if key in self.files:
                with safe_open(self.files[key], "pt") as tensors:
                    return tensors.get_tensor(key)
        raise UserError(f"{self.source} has no weight for {module}.")
