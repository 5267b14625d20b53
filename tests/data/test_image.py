"""Images: what opens, what is refused by name, and where they may lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qllava.data.image import open_image, resolve, to_square
from qllava.errors import UserError


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (5, 3)).save(tmp_path / f"a.{suffix}")
    image = open_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_gif_named_jpg_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "GIF", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 0, 0)


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (4, 8)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    for name, complaint in (
        ("text.png", "is not an image"),
        ("empty.png", "is not an image"),
        ("cut.jpg", "cannot be decoded"),
        ("gone.png", "No image at"),
    ):
        with pytest.raises(UserError, match=complaint) as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (40, 40)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")


def test_paths_stay_under_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(UserError, match="leaves the image root"):
            resolve(path, root)


@given(st.integers(1, 40), st.integers(1, 40))
def test_padding_keeps_every_pixel_in_the_middle(width, height):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    square = np.asarray(to_square(Image.fromarray(pixels), (122, 116, 104)))
    edge = max(width, height)
    top, left = (edge - height) // 2, (edge - width) // 2
    assert square.shape == (edge, edge, 3)
    assert (square[top : top + height, left : left + width] == pixels).all()
    outside = np.ones((edge, edge), bool)
    outside[top : top + height, left : left + width] = False
    assert (square[outside] == (122, 116, 104)).all()
