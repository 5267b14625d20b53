"""Tiles: the cases worked by hand in docs/hd.md, what holds for every size, and the pixels that are cut."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qllava.data.image import open_image, size_of, to_pixels
from qllava.data.tiles import Tiling, choose, fit, grids, to_crops, to_views

PAPER = Tiling(6, 224, 14)
SMALL = Tiling(6, 32, 8)
CLIP = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def worked() -> list[list[int]]:
    """The numbers of the table in docs/hd.md, a list for each case."""
    lines = (ROOT / "docs" / "hd.md").read_text(encoding="utf-8").splitlines()
    return [[int(n) for n in re.findall(r"\d+", line)] for line in lines if re.match(r"\| \d+ \| \d+×\d+ \|", line)]


def test_there_are_twelve_cases():
    assert [case[0] for case in worked()] == list(range(1, 13))


@pytest.mark.parametrize("case", worked(), ids=lambda case: f"{case[1]}x{case[2]}")
def test_worked_by_hand(case):
    """Of each: size, grid (rows, columns), fitted size, offset, patch rows and columns kept, tokens of the map and in all."""
    _, width, height, rows, columns, *fitted, left, top, map_rows, map_columns, of_map, every = case
    found = PAPER.layout(width, height)
    assert (found.rows, found.columns) == (rows, columns)
    assert found.fit == tuple(fitted) and (found.left, found.top) == (left, top)
    assert (found.map_rows, found.map_columns) == (map_rows, map_columns)
    assert of_map == map_rows * (map_columns + 1) and found.tokens == every == of_map + 256


def test_grids_are_the_papers():
    lines = {(1, n) for n in range(1, 7)}
    assert set(grids(6)) == lines | {(c, r) for r, c in lines} | {(2, 2), (2, 3), (3, 2)}
    assert grids(1) == [(1, 1)]
    assert PAPER.most_tokens == 96 * 17 + 256 == max(PAPER.layout(c * 224, r * 224).tokens for r, c in grids(6))


@given(SIZES, st.integers(1, 6))
@example((1, 1), 6)
@example((4000, 1), 6)
@example((1, 4000), 6)
@example((4000, 300), 6)
def test_what_holds_for_every_size(size, most):
    """No other grid shows more; the picture lies inside; what is kept is exactly what has picture in it; the turned picture
    gets the turned grid."""
    tiling = Tiling(most, 224, 14)
    found = tiling.layout(*size)
    whole = (found.columns * 224, found.rows * 224)

    def detail(grid):
        width, height = fit(size, (grid[1] * 224, grid[0] * 224))
        return min(width * height, size[0] * size[1])

    shown = detail((found.rows, found.columns))
    assert all(detail(g) < shown or (detail(g) == shown and g[0] * g[1] >= found.tiles) for g in grids(most))
    assert found.left >= 0 and found.left + found.fit[0] <= whole[0] and found.top + found.fit[1] <= whole[1]
    assert found.fit[0] == whole[0] or found.fit[1] == whole[1]
    for start, length, (first, last), patches in (
        (found.top, found.fit[1], found.patch_rows, found.rows * 16),
        (found.left, found.fit[0], found.patch_columns, found.columns * 16),
    ):
        touched = [p for p in range(patches) if p * 14 < start + length and (p + 1) * 14 > start]
        assert touched == list(range(first, last)) and touched
    assert found.tokens <= tiling.most_tokens
    turned = tiling.layout(*reversed(size))
    assert (turned.rows, turned.columns, turned.fit) == (found.columns, found.rows, found.fit[::-1])


@given(SIZES)
def test_small_pictures_get_no_more_tiles_than_they_fill(size):
    """A picture that lies inside a grid at its own size gets none with more tiles."""
    rows, columns = choose(size, 224, 6)
    inside = [r * c for r, c in grids(6) if size[0] <= c * 224 and size[1] <= r * 224]
    assert rows * columns <= min(inside, default=6)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (64, 32), (50, 90), (4000, 300), (3, 700)])
def test_views_are_the_picture_in_pieces(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, found = Image.fromarray(noise), SMALL.layout(*size)
    views = to_views(image, CLIP, SMALL)
    assert views.shape == (found.views, 3, 32, 32) and views.dtype == torch.float32
    assert torch.equal(views[-1], to_pixels(image, CLIP, "pad"))
    whole = views[:-1].reshape(found.rows, found.columns, 3, 32, 32).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(3, found.rows * 32, found.columns * 32)
    mean = torch.tensor([int(c * 255) / 255 for c in CLIP.image_mean]) - torch.tensor(CLIP.image_mean)
    padding = (mean / torch.tensor(CLIP.image_std))[:, None, None].expand_as(whole)
    across = slice(found.left, found.left + found.fit[0]), slice(found.top, found.top + found.fit[1])
    resized = image.resize(found.fit, Image.Resampling.BICUBIC)
    plain = CLIP.preprocess(resized, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
    expected = padding.clone()
    expected[:, across[1], across[0]] = torch.as_tensor(plain)
    assert torch.allclose(whole, expected, atol=1e-6)
    crops = to_crops(image, CLIP, SMALL)
    assert crops.dtype == torch.uint8 and crops.shape == views.shape


@pytest.mark.parametrize("turn", [None, 1, 3, 6, 8])
def test_the_header_tells_the_size_as_it_will_be(tmp_path, turn):
    image, exif = Image.new("RGB", (60, 20), "red"), Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    image.save(tmp_path / "a.jpg", exif=exif)
    for upright in (True, False):
        assert size_of(tmp_path / "a.jpg", upright) == open_image(tmp_path / "a.jpg", upright).size
