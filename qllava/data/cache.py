"""What is kept of images on disk, so that the next epoch, and the next run, need not make it again.

In: images as samples name them. Out: the tensors made of them. Two kinds: `Crops`, what CLIP's preprocessing makes of an image
before it scales the numbers, written by whatever process needs an image first; and `Features`, what a frozen vision tower
makes of it, written before a run by `model.feature_cache`. A file is there when it is whole, and its CRC-32 is checked when
it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import uuid
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from PIL import Image

from .. import console
from ..errors import RunError, UserError
from .image import Ref, read_image, resolve, to_crop
from .once import for_launch, root_folder
from .tiles import Tiling, to_crops

if TYPE_CHECKING:
    from datasets import Dataset

    from .processing import Processing

VERSION = 1  # of what is kept, and of its layout
BLOCK = 4096  # bytes; disks give room in such pieces
CHECK = 4  # bytes of the CRC-32 behind the tensor


@dataclass(frozen=True)
class Store:
    """A folder of tensors of one shape and dtype, found by key: one file each, its numbers and their CRC-32."""

    folder: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    most: int = 0  # a file holds at most so many of that shape, one behind the other; 0: one, as it is

    @property
    def size(self) -> int:
        """Bytes of a file, at most."""
        return self._bytes(self.most or 1)

    def _bytes(self, count: int) -> int:
        return math.prod((count, *self.shape)) * self.dtype.itemsize + CHECK

    def _whole(self, size: int) -> bool:
        """Whether a file of so many bytes can be one."""
        return size in map(self._bytes, range(1, (self.most or 1) + 1))

    def file(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether it is there in its full length."""
        try:
            return self._whole(self.file(key).stat().st_size)
        except OSError:
            return False

    def read(self, key: str) -> torch.Tensor | None:
        """The tensor; None where it is not there. A damaged file is removed."""
        file = self.file(key)
        try:
            content = bytearray(file.read_bytes())
        except OSError:
            return None
        numbers = memoryview(content)[:-CHECK]
        if not self._whole(len(content)) or zlib.crc32(numbers).to_bytes(CHECK, "little") != content[-CHECK:]:
            with suppress(OSError):  # a cache that may only be read
                file.unlink()
            return None
        count = len(numbers) // self.dtype.itemsize
        found = torch.frombuffer(content, dtype=self.dtype, count=count)
        return found.reshape(-1, *self.shape) if self.most else found.reshape(self.shape)

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """Keeps the tensor. Several processes may do so at once: each writes its own file and gives it the name.

        Raises:
            OSError: it cannot be written.
        """
        if tuple(tensor.shape[1:] if self.most else tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(f"{tuple(tensor.shape)} {tensor.dtype} is not {self.shape} {self.dtype}.")
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        file = self.file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{key}.{uuid.uuid4().hex}")
        try:
            with partial.open("wb") as sink:
                sink.write(numbers)
                sink.write(zlib.crc32(numbers).to_bytes(CHECK, "little"))
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def image_key(ref: Ref, root: Path) -> str:
    """What an image is known by, 32 hex digits: a file by its place, size and times of change, bytes by their SHA-256.

    Raises:
        UserError: there is no such file.
    """
    if isinstance(ref, bytes):
        return hashlib.sha256(ref).hexdigest()[:32]
    file = resolve(ref, root)
    stat = file.stat()
    return digest_of([str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])


def digest_of(values: Any) -> str:
    """32 hex digits for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


def preprocessing_key(processor: Any, aspect: str, exif: bool, tiling: Tiling | None = None) -> str:
    """What tells the ways apart in which a crop is made: all the processor's values, aspect, EXIF, tiles, and Pillow's
    version."""
    tiles = [] if tiling is None else [dataclasses.astuple(tiling)]
    return digest_of([VERSION, type(processor).__name__, processor.to_dict(), aspect, exif, PIL.__version__, *tiles])


@dataclass(frozen=True)
class Crops:
    """Pixel tensors by way of kept crops, bit-identical to `image.to_pixels`, or to `tiles.to_views`."""

    store: Store  # of uint8 [3, edge, edge]
    processor: Any  # CLIPImageProcessorPil
    aspect: str
    exif: bool
    table: np.ndarray  # float32 [3, 256]: the pixel that each 8-bit value of a channel becomes
    tiling: Tiling | None = None

    name = "pixel_values"  # under which a row of features has them

    def load(self, ref: Ref, root: Path) -> torch.Tensor:
        """The image's pixel tensor, float32 [3, edge, edge], or that of its views [views, 3, edge, edge]; what it is made of is kept if it was not.

        Raises:
            UserError: `open_image` or `to_pixels` would refuse the image.
        """
        key = image_key(ref, root)
        crop = self.store.read(key)
        if crop is None:
            image = read_image(ref, root, self.exif)
            if self.tiling is None:
                crop = to_crop(image, self.processor, self.aspect)
            else:
                crop = to_crops(image, self.processor, self.tiling)
            with contextlib.suppress(OSError):  # on a full disk it is made anew each time, and the run goes on
                self.store.write(key, crop)
        pixels = np.empty(crop.shape, np.float32)
        views = (crop.numpy().reshape(-1, *crop.shape[-2:]), pixels.reshape(-1, *crop.shape[-2:]))
        for channel, values, out in zip(itertools.cycle(self.table), *views, strict=False):
            np.take(channel, values, out=out, mode="clip")  # the quickest mode; nothing is out of range
        return torch.from_numpy(pixels)


def open_crops(processor: Any, aspect: str, exif: bool, tiling: Tiling | None = None) -> Crops:
    """The crops that belong to a way of preprocessing."""
    scale = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    table = processor.preprocess(scale, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"]
    edge = to_crop(Image.new("RGB", (8, 8)), processor, aspect).shape
    folder = root_folder() / "crops" / preprocessing_key(processor, aspect, exif, tiling)
    store = Store(folder, tuple(edge), torch.uint8, 0 if tiling is None else tiling.max_tiles + 1)
    return Crops(store, processor, aspect, exif, table[0, :, 0], tiling)


@dataclass(frozen=True)
class Features:
    """What the vision tower made of images, for the projector to read."""

    store: Store  # [patches, width], or one for each view, in the run's dtype

    name = "image_features"

    def load(self, ref: Ref, root: Path) -> torch.Tensor:
        """The image's features, [patches, width], or [views, patches, width].

        Raises:
            UserError: there is no such file.
            RunError: they are not there, or no longer whole.
        """
        found = self.store.read(image_key(ref, root))
        if found is None:
            raise RunError(
                f"What the vision tower made of {'an image' if isinstance(ref, bytes) else ref} is missing or damaged in "
                f"{self.store.folder}, or the image has changed. The next start makes it again: go on with --resume."
            )
        return found


def places(rows: Dataset) -> dict[str, tuple[int, int]]:
    """Every different image of the rows (of `rows.FEATURES`) by its key: the first row that has it, and its
    number there.

    Raises:
        UserError: an image's file is not there.
    """
    found: dict[str, tuple[int, int]] = {}
    seen: set[tuple[str, str]] = set()
    start = 0
    for batch in rows.select_columns(["root", "images"]).iter(batch_size=100):
        for row, (root, images) in enumerate(zip(batch["root"], batch["images"], strict=True), start):
            for number, image in enumerate(images):
                ref = image["bytes"] if image["path"] is None else image["path"]
                if isinstance(ref, str) and (root, ref) in seen:
                    continue
                if isinstance(ref, str):
                    seen.add((root, ref))
                found.setdefault(image_key(ref, Path(root)), (row, number))
        start += len(batch["root"])
    return found


def together(tables: Sequence[Dataset | None]) -> Dataset:
    """The tables that there are, as one."""
    from datasets import concatenate_datasets

    return concatenate_datasets([table for table in tables if table is not None])


def keep_crops(processing: Processing, tables: Sequence[Dataset | None]) -> Processing:
    """A `Processing` that keeps crops of the images of these tables (rows of `rows.FEATURES`).

    Raises:
        UserError: the disk has no room for them.
    """
    crops = open_crops(processing.image_processor, processing.image_aspect_ratio, processing.exif, processing.tiling)
    for_launch(lambda: len(make_room(crops.store, places(together(tables)), "crops")))
    return dataclasses.replace(processing, cache=crops)


def make_room(store: Store, keys: Iterable[str], kind: str) -> list[str]:
    """The keys whose tensors are not there yet; says how much room all of them take.

    Args:
        kind: `crops` or `features`.

    Raises:
        UserError: the disk has no room for what is not there, or nothing can be written.
    """
    keys = list(keys)
    missing = [key for key in keys if not store.has(key)]
    each = -(-store.size // BLOCK) * BLOCK
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(store.folder).free
    except OSError as error:
        raise UserError(
            f"image_cache: nothing can be kept in {store.folder}: {error.strerror}. Name another folder as "
            "HF_DATASETS_CACHE, or write image_cache: none."
        ) from None
    at_most = "at most " if store.most else ""
    there = f", of which {amount(each * (len(keys) - len(missing)))} are there" if len(missing) < len(keys) else ""
    console.note(
        f"image_cache: {kind} of {len(keys):,} images take {at_most}{amount(each * len(keys))} in {store.folder}{there}; "
        f"{amount(free)} are free there."
    )
    if each * len(missing) > free:
        raise UserError(
            f"image_cache: {kind} of {len(missing):,} images need {amount(each * len(missing))} more in {store.folder}, and "
            f"{amount(free)} are free. Make room, name a folder on another disk as HF_DATASETS_CACHE, or write image_cache: "
            f"{'crops or none' if kind == 'features' else 'none'}."
        )
    return missing


def amount(size: int) -> str:
    """Bytes in words: 1.6 GB, 20 MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
