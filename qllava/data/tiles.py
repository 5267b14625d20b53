"""LLaVA-1.5-HD's geometry: which grid of tiles a picture gets, where it lies on it, and how many tokens that makes.

In: a picture's width and height. Out: a `Layout`, all in whole numbers, which data (token counts and cutting), the model
(what it packs) and the planner share. Worked by hand in docs/hd.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .image import check_size, to_crop, to_pixels

MOST = 6  # tiles, in the paper
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Layout:
    """A picture on its grid. Patches are counted over the whole grid from its upper left corner."""

    rows: int  # of tiles
    columns: int
    fit: Size  # what the picture is resized to
    left: int  # pixels of padding before it
    top: int
    patch_rows: tuple[int, int]  # the first with any picture in it, and the one behind the last
    patch_columns: tuple[int, int]
    global_tokens: int  # of the global view

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    @property
    def views(self) -> int:
        """Images for the vision tower: the tiles, row by row, and the global view behind them."""
        return self.tiles + 1

    @property
    def map_rows(self) -> int:
        return self.patch_rows[1] - self.patch_rows[0]

    @property
    def map_columns(self) -> int:
        return self.patch_columns[1] - self.patch_columns[0]

    @property
    def tokens(self) -> int:
        """Positions of the LLM: the map's patches, a row-end token for each of its rows, and the global view."""
        return self.map_rows * (self.map_columns + 1) + self.global_tokens


@dataclass(frozen=True)
class Tiling:
    """How pictures are tiled for one model."""

    max_tiles: int
    edge: int  # pixels of a tile, the vision tower's image size
    patch: int  # pixels of a patch, which `edge` is a multiple of

    def layout(self, width: int, height: int) -> Layout:
        """The picture's layout: see `choose` and `fit`."""
        return _layout(self, width, height)

    def tokens(self, sizes: Sequence[Size]) -> list[int]:
        """Tokens of pictures of these sizes."""
        return [self.layout(*size).tokens for size in sizes]

    @property
    def most_size(self) -> Size:
        """The picture that takes the most tokens: it fills a grid, and of the largest grids the highest has most row ends."""
        return self.edge, self.max_tiles * self.edge

    @property
    def most_tokens(self) -> int:
        return self.layout(*self.most_size).tokens


def grids(max_tiles: int) -> list[tuple[int, int]]:
    """Rows and columns of every grid of at most so many tiles; for 6: 1x1 to 1x6, 2x2, 2x3 and their transposes."""
    every = [(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles + 1) if r * c <= max_tiles]
    return sorted(every, key=lambda grid: (grid[0] * grid[1], grid))


def fit(size: Size, frame: Size) -> Size:
    """The largest size of the picture's proportions within the frame, in pixels rounded half up, at least one each way."""
    (width, height), (most_width, most_height) = size, frame
    if most_width * height <= most_height * width:  # its width is what fills the frame
        return most_width, max(1, (2 * height * most_width + width) // (2 * width))
    return max(1, (2 * width * most_height + height) // (2 * height)), most_height


def choose(size: Size, edge: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns of the grid that shows the most detail without waste.

    Detail is the number of pixels that the picture has on the grid, but no more than it has itself; of grids with equally
    much the one with the fewest tiles, and so the fewest pixels that say nothing.
    """

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        width, height = fit(size, (grid[1] * edge, grid[0] * edge))
        return min(width * height, size[0] * size[1]), -grid[0] * grid[1]

    return max(grids(max_tiles), key=worth)


@functools.lru_cache(maxsize=1 << 16)
def _layout(tiling: Tiling, width: int, height: int) -> Layout:
    edge, patch = tiling.edge, tiling.patch
    rows, columns = choose((width, height), edge, tiling.max_tiles)
    inner = fit((width, height), (columns * edge, rows * edge))
    left, top = (columns * edge - inner[0]) // 2, (rows * edge - inner[1]) // 2
    return Layout(
        rows, columns, inner, left, top,
        patch_rows=(top // patch, -(-(top + inner[1]) // patch)),
        patch_columns=(left // patch, -(-(left + inner[0]) // patch)),
        global_tokens=(edge // patch) ** 2,
    )  # fmt: skip


def to_views(image: Image.Image, processor: Any, tiling: Tiling) -> torch.Tensor:
    """What the vision tower sees of a picture: float32 [tiles + 1, 3, edge, edge], the padded global view last.

    Args:
        image: RGB.
        processor: a `CLIPImageProcessorPil`.
    """
    return torch.cat([_processed(image, processor, tiling), to_pixels(image, processor, "pad")[None]])


def to_crops(image: Image.Image, processor: Any, tiling: Tiling) -> torch.Tensor:
    """What `to_views` makes of the picture before its numbers are rescaled and normalised: uint8, of the same shape."""
    options = {"do_rescale": False, "do_normalize": False}
    return torch.cat([_processed(image, processor, tiling, **options), to_crop(image, processor, "pad")[None]])


def _processed(image: Image.Image, processor: Any, tiling: Tiling, **options: bool) -> torch.Tensor:
    tiles = _cut(image, processor, tiling)
    made = processor.preprocess(tiles, do_resize=False, do_center_crop=False, return_tensors="pt", **options)
    return torch.as_tensor(made["pixel_values"])


def _cut(image: Image.Image, processor: Any, tiling: Tiling) -> list[Image.Image]:
    """The picture, resized and centred on its grid in the processor's mean colour, as tiles, row by row."""
    check_size(*image.size, "pad")
    found, edge = tiling.layout(*image.size), tiling.edge
    canvas = Image.new(
        "RGB", (found.columns * edge, found.rows * edge), tuple(int(c * 255) for c in processor.image_mean)
    )
    canvas.paste(image.resize(found.fit, Image.Resampling(int(processor.resample))), (found.left, found.top))
    return [
        canvas.crop((c * edge, r * edge, (c + 1) * edge, (r + 1) * edge))
        for r in range(found.rows)
        for c in range(found.columns)
    ]
