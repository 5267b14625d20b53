"""A base's weights one by one, and a model written shard by shard, so that memory stays near the largest shard.

In: a base (a LLaVA, or the parts of one). Out: its tensors by their published keys, as `model.build.load_model` would have
them in memory; and back to safetensors files with an index, in the form that transformers reads.
"""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..model import dialects
from ..model.base import assembled_config, locate, read_config
from ..model.build import HARMLESS
from ..model.fingerprint import weight_files
from ..recipe.schema import Parts

SHARD = 2 << 30  # bytes
TEXT_HALF = ("text_model.", "visual_projection", "text_projection", "logit_scale")  # of a whole CLIP
EMBEDDINGS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


class BaseTensors:
    """The tensors of a base. `config` is its `LlavaConfig`.

    Raises:
        UserError: there are no weights.
    """

    def __init__(self, base: str | Parts) -> None:
        base = locate(base)
        self._reads: dict[str, Callable[[], torch.Tensor]] = {}
        if isinstance(base, str):
            self.config = read_config(base)
            self._index(base, _published)
        else:
            self.config = assembled_config(base)
            self._index(base.vision_tower, _of_tower)
            self._index(base.llm, _of_llm)
        self.rows = self.config.text_config.vocab_size
        if self.config.tie_word_embeddings:
            self._reads.pop(EMBEDDINGS[1], None)

    def _index(self, source: str, name: Callable[[str], str | None]) -> None:
        for file in weight_files(source):
            if file.suffix == ".safetensors":
                with _opened(file) as tensors:
                    found = {k: (lambda file=file, k=k: _read(file, k)) for k in tensors.keys()}  # noqa: SIM118
            else:
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
                found = {k: (lambda v=v: v.clone()) for k, v in state.items()}
            self._reads |= {
                n: read for k, read in found.items() if not HARMLESS.search(k) and (n := name(k)) is not None
            }

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Pairs of published key and tensor, in the dtype of their files."""
        for key in sorted(self._reads):
            yield key, self[key]

    def __contains__(self, key: str) -> bool:
        return key in self._reads

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._reads[key]()
        if key in EMBEDDINGS and tensor.shape[0] < self.rows:  # room for <image> and <pad>, which nothing reads
            tensor = torch.cat([tensor, tensor.new_zeros(self.rows - tensor.shape[0], tensor.shape[1])])
        return tensor

    def weight(self, module: str) -> torch.Tensor:
        """A linear's weight [out, in], by its path in memory.

        Raises:
            UserError: the base has no such module.
        """
        key = dialects.to_published(f"{module}.weight")
        if key not in self:
            raise UserError(f"The base has no {module}.")
        return self[key]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}.") from None


def _read(file: Path, key: str) -> torch.Tensor:
    with _opened(file) as tensors:
        return tensors.get_tensor(key)


def _published(key: str) -> str | None:
    return dialects.to_published(dialects.to_runtime(key))


def _of_tower(key: str) -> str | None:
    alone = key.removeprefix("vision_tower.").removeprefix("vision_model.")
    return None if alone.startswith(TEXT_HALF) else f"vision_tower.vision_model.{alone}"


def _of_llm(key: str) -> str | None:
    return f"language_model.{key}"


def write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, limit: int = SHARD) -> int:
    """Writes the tensors as `model.safetensors`, or as shards of at most `limit` bytes with their index; returns the bytes.

    Raises:
        UserError: a key comes twice.
    """
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, int] = {}
    total, held, files = 0, 0, []

    def flush() -> None:
        nonlocal shard, held
        files.append(folder / f"shard-{len(files)}.safetensors")
        save_file(shard, files[-1], metadata={"format": "pt"})
        shard, held = {}, 0

    for key, tensor in tensors:
        if key in places:
            raise UserError(f"The weights hold {key} twice.")
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > limit:
            flush()
        shard[key], places[key] = tensor.contiguous(), len(files)
        held, total = held + size, total + size
    flush()
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
        return total
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {key: names[i] for key, i in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that tells the most memory (MiB, resident) held since the block began; of the whole process where the
    system cannot start counting anew."""
    status, anew = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        anew.write_text("5")
        counted = True
    except OSError:
        counted = False

    def tell() -> int:
        if counted:
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) >> 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    yield tell
