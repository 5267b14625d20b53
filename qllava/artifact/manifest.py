"""The manifest: what an artifact is, where it comes from, and the size and SHA-256 of every file in it.

A folder becomes an artifact at once: it is written under another name, its manifest last, synced, then renamed. What a
folder is called means nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import RunError, UserError

FILE = "qllava.json"
PACKAGES = ("qllava", "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")


class File(BaseModel):
    size: int  # bytes
    sha256: str


class Base(BaseModel):
    """What an adapter was trained on, and the digest by which that is known again."""

    source: str | dict[str, Any]
    fingerprint: str


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Literal["base", "adapter", "model", "checkpoint"]
    holds: Literal["adapter", "model"]  # what the weights are: parts to put on a base, or a whole model
    template: str
    image_aspect_ratio: Literal["pad", "square"]
    after_eos: Literal["current", "legacy", "4.31"] = "current"
    exif_transpose: bool = True
    base: Base | None = None
    tune: str | None = None
    dtype: str | None = None  # in which frozen weights were held, and the computation done
    recipe: dict[str, Any] | None = None
    report: dict[str, Any] = {}  # what was measured while it was made
    versions: dict[str, str] = {}
    created: str = ""
    files: dict[str, File] = {}


def versions() -> dict[str, str]:
    """The installed versions of the packages that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing(folder: Path, manifest: Manifest | None) -> Iterator[Path]:
    """Gives a folder to fill; when the block ends well, it becomes `folder`, with its manifest. Else nothing is left.

    Args:
        manifest: None for a folder in another tool's layout, which is no artifact.

    Raises:
        UserError: `folder` is there already.
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already; name another folder, or remove it.")
    if outer := next((p for p in folder.resolve().parents if (p / FILE).is_file()), None):
        raise UserError(f"{folder} lies inside the artifact {outer}, which it would damage; name a folder elsewhere.")
    partial = can_write(folder)
    try:
        yield partial
        if manifest is None:
            sync(partial)
        else:
            seal(partial, manifest)
        partial.chmod(0o755)
        for file in partial.rglob("*"):  # safetensors writes for its owner alone
            file.chmod(0o755 if file.is_dir() else 0o644)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def can_write(folder: Path) -> Path:
    """An empty folder beside `folder`, under a name of its own; proof, before the work, that the work can be kept.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write to {folder}: {error}.") from None


def seal(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder's files into it, and syncs everything to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FILE)
    listed = {p.relative_to(folder).as_posix(): File(size=p.stat().st_size, sha256=digest(p)) for p in files}
    full = manifest.model_copy(
        update={"files": listed, "versions": versions(), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    (folder / FILE).write_text(json.dumps(full.model_dump(mode="json", exclude_none=True), indent=2) + "\n")
    sync(folder)


def sync(folder: Path) -> None:
    """Sees the folder's files through to the disk."""
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest.

    Raises:
        UserError: there is none, or it is not one that this version reads.
    """
    try:
        return Manifest.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{folder} is not an artifact: it has no {FILE}.") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"The manifest {folder / FILE} is damaged or of another version: {str(error)[:200]}") from None


QUICK = 2 << 30  # bytes that are read twice without a thought


def verify_quick(folder: Path) -> Manifest:
    """As `verify`, but above 2 GB the sizes have to do (`qllava verify` compares the contents)."""
    total = sum(file.size for file in read_manifest(folder).files.values())
    return verify(folder, contents=total <= QUICK)


def verify(folder: Path, contents: bool = True) -> Manifest:
    """The manifest, after comparing every file with it: its size and, unless told otherwise, its contents.

    Raises:
        UserError: there is no manifest.
        RunError: a file is missing, added, or other than when it was written.
    """
    manifest = read_manifest(folder)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if added := sorted(there - set(manifest.files) - {FILE}):
        raise RunError(f"{folder} is damaged: {added[0]} was not there when it was written.")
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise RunError(f"{folder} is damaged: {name} is missing.")
        if path.stat().st_size != file.size or (contents and digest(path) != file.sha256):
            raise RunError(f"{folder} is damaged: {name} is not the file that was written.")
    return manifest
