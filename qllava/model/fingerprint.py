"""A digest of a base's weights, by which an adapter knows its base again.

In: folders or hub ids. Out: a hex digest over every weight file's header and sampled blocks: quick on 7B, and the same
wherever the files lie and whatever the folder is called.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

BLOCK = 1 << 16  # bytes
SAMPLES = 64  # blocks read of each file, evenly spaced, its first and last among them
WHOLE = "model.safetensors"
PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def weight_files(source: str) -> list[Path]:
    """The weight files of a folder, or of a hub id as it lies in the cache.

    Raises:
        UserError: there are none.
    """
    folder = Path(source)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:
            folder = Path(cached_file(source, "config.json")).parent
        except (OSError, ValueError) as error:
            raise UserError(f"No model at {source}: {str(error).splitlines()[0]}") from None
    for index in sorted(folder.glob("*.index.json")):  # the files that transformers reads, and no stray ones
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if names and all((folder / name).is_file() for name in names):
            return sorted(folder / name for name in names)
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    for pattern in PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError(f"{source} holds no weights (safetensors or pytorch_model.bin).")


def fingerprint(sources: Sequence[str], exact: bool = False) -> str:
    """The digest of all weight files of all sources, as 32 hex digits.

    Args:
        exact: of every byte, instead of sizes, headers and sampled blocks; another digest than the quick one.
    """
    files = [file for source in sources for file in weight_files(source)]
    if exact:
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:32]
    stats = [(file, file.stat()) for file in files]
    return _sampled(tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@functools.lru_cache(maxsize=64)
def _sampled(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of files by path, size and time of change: computed once for each state of them."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(size.to_bytes(8, "little"))
        last = max(0, size - BLOCK)
        with Path(path).open("rb") as stream:
            for i in range(SAMPLES):
                stream.seek(last * i // (SAMPLES - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:32]
