"""LLaVA-1.5-HD as a model: what the LLM reads of a picture is what its layout says, and nothing of padding alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextForConditionalGeneration

from qllava.data.collate import collate
from qllava.data.pack import pack
from qllava.data.sample import Turn
from qllava.data.tiles import Tiling, grids
from qllava.errors import UserError
from qllava.model.base import config_of
from qllava.model.build import load_model
from qllava.model.features import install_features, tower_features
from qllava.model.forward import install_loss
from qllava.model.inputs import load_processing
from qllava.model.projector import put_projector, read_projector, save_projector
from qllava.model.tiles import pack_views, tiling_of
from qllava.recipe.schema import Parts

TILED = Parts(vision_tower="embedded", llm="embedded", max_tiles=6)
PLAIN = Parts(vision_tower="embedded", llm="embedded")
SIZES = [(1, 1), (64, 64), (100, 30), (300, 200), (3, 700), (4000, 300)]


@pytest.fixture(scope="module")
def model():
    return load_model(TILED, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def processing():
    return load_processing(TILED, "vicuna_v1", "pad")


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def prompt(processing, *sizes):
    turns = [Turn("user", "What is it?", len(sizes))]
    return processing.prompt(turns, [picture(*size) for size in sizes])


def test_it_is_a_llava_next(model):
    assert type(model) is LlavaNextForConditionalGeneration
    config = config_of(TILED)
    assert config.max_tiles == 6 and [64, 64] in config.image_grid_pinpoints and len(config.image_grid_pinpoints) == 14
    assert tiling_of(config) == tiling_of(model.config) and tiling_of(config_of(PLAIN)) is None
    again = load_model(TILED, torch.float32, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_as_many_as_features(model, processing, size):
    """From 1×1 to 4000×300, through tower, projector and LLM."""
    batch = collate([prompt(processing, size)], processing)
    places = int((batch["input_ids"] == processing.image_token_id).sum())
    assert places == processing.tiling.layout(*size).tokens
    batch.pop("labels")
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
        answer = model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] == batch["input_ids"].shape[1] + 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=4))
def test_packed_features_are_the_layouts(sizes):
    """Every patch in its place: features that carry their own address come out row by row."""
    tiling = tiling_of(config_of(TILED))
    found = [tiling.layout(*size) for size in sizes]
    views = torch.zeros(sum(f.views for f in found), 64, 2)
    start = 0
    for layout in found:
        for tile in range(layout.tiles):
            row, column = divmod(tile, layout.columns)
            y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
            views[start + tile] = torch.stack([y + 8 * row, x + 8 * column], -1).flatten(0, 1)
        views[start + layout.tiles] = -1
        start += layout.views
    sizes_ = torch.tensor([[h, w] for w, h in sizes])
    packed = pack_views(views, sizes_, torch.tensor([-2.0, -2.0]), tiling)
    assert [len(p) for p in packed] == [f.tokens for f in found]
    for one, layout in zip(packed, found, strict=True):
        expected = [
            place
            for y in range(*layout.patch_rows)
            for place in [*((y, x) for x in range(*layout.patch_columns)), (-2, -2)]
        ]
        assert one[:-64].tolist() == [list(map(float, place)) for place in expected]
        assert (one[-64:] == -1).all()


@torch.no_grad()
def test_features_of_padding_never_reach_the_llm(model, processing):
    """What the tower makes of patches without any picture is changed beyond recognition: not one bit of the logits moves. A
    change of any other patch moves them."""
    for size in ((100, 30), (128, 100), (20, 500)):
        batch = collate([prompt(processing, size)], processing)
        batch.pop("labels")
        layout = processing.tiling.layout(*size)
        features = tower_features(model, batch.pop("pixel_values"))
        y, x = torch.meshgrid(torch.arange(layout.rows * 8), torch.arange(layout.columns * 8), indexing="ij")
        inside = (y >= layout.patch_rows[0]) & (y < layout.patch_rows[1])
        inside &= (x >= layout.patch_columns[0]) & (x < layout.patch_columns[1])
        tiled = inside.unflatten(0, (layout.rows, 8)).unflatten(2, (layout.columns, 8)).permute(0, 2, 1, 3)
        padding = ~tiled.reshape(layout.tiles, 64)
        assert padding.any() and not padding.all()
        said = model(**batch, pixel_values=features).logits
        changed = features.clone()
        changed[:-1][padding] = 1e4
        assert torch.equal(model(**batch, pixel_values=changed).logits, said)
        seen = features.clone()
        seen[:-1][tuple((~padding).nonzero()[0])] += 1
        assert not torch.equal(model(**batch, pixel_values=seen).logits, said)


def test_a_picture_is_seen_finer_than_by_the_plain_model(processing):
    """Two pictures that are the same once shrunk to one tile differ in their tiles."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    views = processing.pictures([Image.fromarray(stripes)])["pixel_values"]
    assert views[:-1].std() > 3 * views[-1].std()


def rows_of(processing, sizes):
    rows = []
    for i, size in enumerate(sizes):
        made = prompt(processing, *([size] if size else []))
        rows.append(made | {"labels": [-100] * (len(made["input_ids"]) - 2) + made["input_ids"][-2:], "images_key": i})
    return rows


@pytest.mark.parametrize("sizes", [[(100, 30), None, (300, 200)], [None, None]], ids=["mixed", "text alone"])
def test_packed_and_padded_rows_have_one_loss(processing, sizes):
    """Of text and images mixed, and of text alone, where the row-end token gets a gradient of zero."""
    from qllava.model.attention import install_attention

    model = load_model(TILED, torch.float32, torch.device("cpu"))
    install_loss(model)
    rows = rows_of(processing, sizes)
    for part in (model.model.multi_modal_projector, model.model):
        for parameter in part.parameters(recurse=False) if part is model.model else part.parameters():
            parameter.requires_grad_(True)

    def look(batch):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    loss, grads = look(collate(rows, processing, multiple=8))
    install_attention(model.model.language_model)
    packed, others = look(pack(rows, processing))
    assert torch.allclose(loss, packed, rtol=1e-5)
    assert len(grads) == 5 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))
    assert bool(model.model.image_newline.grad.any()) == any(sizes)


def test_samples_about_one_picture_share_its_tiles(processing):
    from qllava.model.attention import install_attention

    model = load_model(TILED, torch.float32, torch.device("cpu"))
    install_loss(model)
    one = rows_of(processing, [(100, 30)])[0]
    pair = [one, one | {"input_ids": [*one["input_ids"], 40, 50], "labels": [*one["labels"], 40, 50]}]
    separate = collate(pair, processing)
    install_attention(model.model.language_model)
    shared = pack(pair, processing, shared=True)
    assert shared["image_sizes"].tolist() == [[30, 100]] and separate["image_sizes"].tolist() == [[30, 100]] * 2
    with torch.no_grad():
        assert torch.allclose(model(**shared).loss, model(**pack(pair, processing)).loss, rtol=1e-5)


def test_the_row_end_token_is_saved_with_the_projector(tmp_path, model):
    other = load_model(TILED, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        other.model.image_newline += 1
    save_projector(other, tmp_path)
    fresh = load_model(TILED, torch.float32, torch.device("cpu"))
    put_projector(fresh, read_projector(tmp_path))
    assert torch.equal(fresh.model.image_newline, other.model.image_newline)
    assert not torch.equal(fresh.model.image_newline, model.model.image_newline)


def test_a_projector_with_and_without_row_ends(tmp_path, model):
    plain = load_model(PLAIN, torch.float32, torch.device("cpu"))
    for name, one in (("plain", plain), ("tiled", model)):
        (tmp_path / name).mkdir()
        save_projector(one, tmp_path / name)
    with pytest.raises(UserError, match="with max_tiles"):
        put_projector(plain, read_projector(tmp_path / "tiled"))
    with pytest.raises(UserError, match="without max_tiles"):
        put_projector(model, read_projector(tmp_path / "plain"))
    before = model.model.image_newline.clone()
    put_projector(model, read_projector(tmp_path / "plain"), first=True)  # stage 1's, to begin with
    assert torch.equal(model.model.image_newline, before)


def test_what_cannot_be_tiled(tmp_path):
    with pytest.raises(UserError, match="image_aspect_ratio: pad"):
        load_processing(TILED, "vicuna_v1", "square")
    config = config_of(TILED)
    config.vision_config.patch_size = 7
    with pytest.raises(UserError, match="64 is none of 7"):
        tiling_of(config)
    config = config_of(TILED)
    del config.max_tiles
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a LLaVA-NeXT"):
        config_of(str(tmp_path))


def test_a_projector_without_patches_cannot_be_tiled():
    with pytest.raises(UserError, match="64 patches, and this one gives 32"):
        pack_views(torch.zeros(2, 32, 4), torch.tensor([[64, 64]]), torch.zeros(4), Tiling(6, 64, 8))


def test_installing_twice_changes_nothing(model, processing):
    batch = collate([prompt(processing, (100, 30))], processing)
    batch.pop("labels")
    with torch.no_grad():
        before = model(**batch).logits
        install_features(model)
        assert torch.equal(model(**batch).logits, before)


def test_where_llava_next_differs_as_the_docs_say():
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tiling = Tiling(6, 224, 14)
    grids_ = [[rows * 224, columns * 224] for rows, columns in grids(6)]
    for (width, height), theirs, ours in (((1021, 1022), (3, 2), (2, 2)), ((1, 1811), (1, 1), (6, 1))):
        assert tuple(n // 224 for n in select_best_resolution((height, width), grids_)) == theirs
        assert (tiling.layout(width, height).rows, tiling.layout(width, height).columns) == ours
    assert unpad_image(torch.empty(1, 32, 48), (480, 640)).shape[1:] == (32, 42)
    found = tiling.layout(640, 480)
    assert (found.map_rows, found.map_columns) == (32, 44)


@torch.no_grad()
def test_llava_nexts_own_packing_says_something_else(processing):
    """Else there would be no need for the card's lines."""
    model = load_model(TILED, torch.float32, torch.device("cpu"))
    made = prompt(processing, (128, 128))
    batch = collate([made], processing)
    batch.pop("labels")
    ours = model(**batch).logits
    del model.model.get_image_features, model.model.get_placeholder_mask
    views = batch["pixel_values"]
    batch["pixel_values"] = torch.cat([views[-1:], views[:-1]])
    theirs = model(**batch).logits
    assert theirs.shape == ours.shape and not torch.allclose(theirs, ours, atol=1e-2)
