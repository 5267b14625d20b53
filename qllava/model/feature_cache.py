"""A pass before training that keeps what a frozen vision tower makes of every image, where it is not kept yet.

In: the model, and rows with images. Out: files in `Features`' store, found by image, preprocessing and the tower's weights.
Every process of a launch makes its share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from .. import console
from ..data.cache import Features, Store, digest_of, make_room, places, preprocessing_key, together
from ..data.once import for_launch, root_folder
from ..data.processing import Processing
from ..data.rows import from_columns
from ..errors import RunError, UserError, plain
from .features import layers_read, tower_features
from .projector import llava_of
from .tower import tower_tensors
from .towers import features_of

AT_ONCE = 16  # images
SHAPING = ("hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")  # and no weight shows it


def tower_digest(model: nn.Module) -> str:
    """32 hex digits for the tower's weights as they are in memory, those that the projector's input depends on."""
    found = hashlib.sha256()
    for name, parameter in tower_tensors(model).items():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def open_features(model: nn.Module, processing: Processing, dtype: torch.dtype, device: torch.device) -> Features:
    """The features that belong to this tower, preprocessing, dtype and kind of device.

    Args:
        dtype: in which the run computes: the projector casts what it reads to that.
    """
    config = llava_of(model).config
    tower, layers, strategy = config.vision_config, layers_read(config), config.vision_feature_select_strategy
    made_by = [
        preprocessing_key(processing.image_processor, processing.image_aspect_ratio, processing.exif, processing.tiling),
        tower_digest(model), [getattr(tower, name, None) for name in SHAPING], layers, strategy, str(dtype), device.type,
    ]  # fmt: skip
    patches = features_of(tower, strategy)
    most = 0 if processing.tiling is None else processing.tiling.max_tiles + 1
    shape = (patches, tower.hidden_size * len(layers))
    return Features(Store(root_folder() / "features" / digest_of(made_by), shape, dtype, most))


def keep_features(
    model: nn.Module, processing: Processing, tables: Sequence[Dataset | None], dtype: torch.dtype, device: torch.device,
    workers: int = 0,
) -> Processing:  # fmt: skip
    """Makes what is missing, and returns a `Processing` that reads features instead of images.

    Args:
        tables: rows of `rows.FEATURES`.
        workers: processes that decode images.

    Raises:
        UserError: the disk has no room, or an image cannot be read.
        RunError: the features cannot be written.
    """
    rows, features = together(tables), open_features(model, processing, dtype, device)
    every = for_launch(lambda: _room_for(features.store, rows))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    share = every[rank::world]  # the same for all processes, whatever is missing when they look
    mine = [(key, row, number) for key, row, number in share if not features.store.has(key)]
    try:
        _make(llava_of(model), _Pictures(rows, mine, processing), features.store, device, workers)
    except OSError as error:
        raise RunError(
            f"image_cache: {features.store.folder} could not be written: {error.strerror or error}. Make room, or write "
            "image_cache: none."
        ) from None
    except UserError as error:
        raise UserError(plain(str(error))) from None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    return dataclasses.replace(processing, cache=features)


def _room_for(store: Store, rows: Dataset) -> list[tuple[str, int, int]]:
    """Every different image of the rows as its key, row and number there, once there is room for what is made of them."""
    every = places(rows)
    make_room(store, every, "features")
    return [(key, *place) for key, place in every.items()]


class _Pictures(torch.utils.data.Dataset):
    """Keys and pixels of images, given by key, row and number in the row."""

    def __init__(self, rows: Dataset, wanted: Sequence[tuple[str, int, int]], processing: Processing) -> None:
        self.rows, self.wanted, self.processing = rows, wanted, dataclasses.replace(processing, cache=None)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> tuple[str, torch.Tensor]:
        key, number, which = self.wanted[i]
        row: dict[str, Any] = self.rows[number]
        sample, root = from_columns(row)
        try:
            return key, self.processing.images([sample.images[which]], Path(root))["pixel_values"]
        except UserError as error:
            raise UserError(f"{row['where']} (id {sample.id!r}): {error}") from None


@torch.no_grad()
def _make(llava: nn.Module, pictures: _Pictures, store: Store, device: torch.device, workers: int) -> None:
    """Puts the pictures' features into the store, computed as a step of training computes them."""
    tower, dtype = llava.model.vision_tower, store.dtype
    training = tower.training
    tower.eval()
    none = torch.Generator()  # so that nothing is drawn from the run's random stream
    loader = torch.utils.data.DataLoader(
        pictures, batch_size=AT_ONCE, num_workers=workers, generator=none, collate_fn=list
    )
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    try:
        with console.progress("Images through the vision tower", total=len(pictures)) as advance, autocast:
            for pictures_ in loader:
                pixels = torch.cat([views for _, views in pictures_])
                made = tower_features(llava, pixels.to(device)).to(dtype).cpu()
                for key, views in pictures_:
                    own, made = made[: len(views)], made[len(views) :]
                    store.write(key, own if store.most else own[0])
                advance(len(pictures_))
    finally:
        tower.train(training)
