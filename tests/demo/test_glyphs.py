"""The glyphs: seeded, as large as told, undecided without the picture, and lost at one view's size."""

from __future__ import annotations

import json
import random

from PIL import Image

from qllava.demo import glyphs
from qllava.demo.world import SHORT


def read(tmp_path, **options):
    train, test = glyphs.write(tmp_path, **options)
    return json.loads(train.read_text()), json.loads(test.read_text())


def test_the_same_seed_makes_the_same_set(tmp_path):
    first, second, other = (read(tmp_path / n, train=10, test=5, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert first == second != other
    for name in ("glyphs_train/3.png", "glyphs_test/3.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "glyphs_train/3.png").read_bytes() != (tmp_path / "a" / "glyphs_test/3.png").read_bytes()


def test_rows_are_conversations_about_pictures_of_many_shapes(tmp_path):
    train, test = read(tmp_path, train=20, test=10)
    assert all(len(r["conversations"]) == 4 for r in train) and all(len(r["conversations"]) == 2 for r in test)
    assert train[0]["conversations"][0]["value"].startswith(f"<image>\n{glyphs.SHAPE}")
    assert train[0]["conversations"][0]["value"].endswith(SHORT)
    assert {t["value"] for r in train for t in r["conversations"][1:2]} <= set(glyphs.SHAPES)
    sizes = {Image.open(tmp_path / "glyphs_train" / r["image"]).size for r in train}
    assert sizes == set(glyphs.SIZES)


def test_without_the_picture_one_in_four_is_right(tmp_path):
    train, test = read(tmp_path, train=300, test=300)
    assert glyphs.blind_score(train, test) < 0.32


def test_a_glyph_lies_inside_and_is_small():
    for number in range(300):
        size = glyphs.SIZES[number % len(glyphs.SIZES)]
        thing = glyphs.glyph(random.Random(number), size)
        assert thing.half < thing.x < size[0] - thing.half and thing.half < thing.y < size[1] - thing.half
        assert 2 * thing.half * 64 / max(size) < 4.4  # pixels in one view of the embedded tower
        assert 2 * thing.half >= 10  # in a tile
