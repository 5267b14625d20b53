"""Bad and odd images: the message that the user gets for each, or the picture that it becomes."""

from __future__ import annotations

import io
import json
import re

import datasets
import pytest
import torch
from PIL import Image, features

from qllava.data.dataset import select, training_set
from qllava.data.image import check_image, open_image, read_image, to_pixels
from qllava.errors import UserError
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Recipe, Source

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")
RED, BLUE = (255, 0, 0), (0, 0, 255)
TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dot."}]


@pytest.fixture(scope="module")
def processing():
    return load_processing(EMBEDDED, "vicuna_v1", "pad")


def recipe(path, on_bad):
    return Recipe(
        stage="instruct", tune="projector", base=EMBEDDED, output_dir="x", learning_rate=1e-3, global_batch_size=4,
        per_device_train_batch_size=4, data=(Source(path=str(path)),), on_bad=on_bad,
    )  # fmt: skip


def sandwich(folder, image):
    """A LLaVA JSON of three samples, of which the one in the middle is about `image`."""
    Image.new("RGB", (8, 8), RED).save(folder / "good.png")
    names = {"first": "good.png", "odd": image, "last": "good.png"}
    path = folder / "set.json"
    path.write_text(json.dumps([{"id": k, "image": v, "conversations": TALK} for k, v in names.items()]))
    return path


def assert_dropped(path, processing, message):
    """Only the good samples are left, and the list of dropped ones names the other."""
    selection = select(recipe(path, "drop"), processing)
    assert list(selection.rows["id"]) == ["first", "last"]
    (bad,) = selection.dropped
    assert (bad.source, bad.where, bad.id) == (str(path), "set.json, sample 2", "odd")
    assert re.search(message, bad.reason)
    assert training_set(selection.rows, processing, 2048)[1]["pixel_values"].shape == (1, 3, 64, 64)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


DETAIL = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 100)
PNG, JPEG = encoded(DETAIL, "PNG"), encoded(DETAIL, "JPEG")
GIF = encoded(Image.new("RGB", (4, 4), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), BLUE)])
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="4" height="4"/></svg>'
NONE = r"is not an image that Pillow can read\."
DEEP = r"has more than 8 bits a channel \(mode %s\).* Convert it to 8 bits with the window that matters\."

DAMAGED = {
    "empty file": ("a.png", b"", NONE),
    "text named jpg": ("a.jpg", b"hello", NONE),
    "SVG": ("a.svg", SVG, NONE),
    "page of an error named jpg": ("a.jpg", b"<!DOCTYPE html><title>404 Not Found</title>", NONE),
    "zeros": ("a.jpg", bytes(4096), NONE),
    "JPEG cut in its header": ("a.jpg", JPEG[:100], "cannot be decoded: Truncated File Read"),
    "JPEG cut in its middle": ("a.jpg", JPEG[: len(JPEG) // 2], "cannot be decoded: image file is truncated"),
    "JPEG without its end": ("a.jpg", JPEG[:-2], "cannot be decoded: image file is truncated"),
    "PNG cut in its middle": ("a.png", PNG[: len(PNG) // 2], "cannot be decoded: image file is truncated"),
    "PNG with a bad header chunk": ("a.png", flipped(PNG, PNG.index(b"IHDR") + 6), NONE),
    "PNG with a bad data chunk": ("a.png", flipped(PNG, PNG.index(b"IDAT") + 40), "cannot be decoded: .*data stream"),
    "GIF cut": ("a.gif", GIF[:30], "cannot be decoded|is not an image"),
    "WebP cut": ("a.webp", encoded(DETAIL, "WEBP")[:200], "cannot be decoded|is not an image"),
    "BMP cut": ("a.bmp", encoded(DETAIL, "BMP")[:2000], "cannot be decoded: image file is truncated"),
    "16-bit PNG": ("a.png", encoded(Image.new("I;16", (4, 4)), "PNG"), DEEP % "I;16"),
    "16-bit TIFF": ("a.tif", encoded(Image.new("I;16", (4, 4)), "TIFF"), DEEP % "I;16"),
    "32-bit TIFF": ("a.tif", encoded(Image.new("I", (4, 4)), "TIFF"), DEEP % "I"),
    "float TIFF": ("a.tif", encoded(Image.new("F", (4, 4)), "TIFF"), DEEP % "F"),
}
if features.check("avif"):
    AVIF = encoded(DETAIL, "AVIF")
    DAMAGED["AVIF cut"] = ("a.avif", AVIF[:-20], "cannot be decoded: Failed to decode")
    DAMAGED["AVIF with bad colours"] = ("a.avif", flipped(AVIF, -20), "cannot be decoded: Failed to decode")


@pytest.mark.parametrize(("name", "data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_decoded_is_named(tmp_path, processing, name, data, message):
    """When it is read, with on_bad=error; before, with on_bad=drop."""
    file = tmp_path / name
    file.write_bytes(data)
    for read in (lambda: open_image(file), lambda: check_image(name, tmp_path)):
        with pytest.raises(UserError, match=f"^{re.escape(str(file))} ({message})"):
            read()
    path = sandwich(tmp_path, name)
    rows = training_set(select(recipe(path, "error"), processing).rows, processing, 2048)
    assert rows[0]["pixel_values"].shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match=rf"set\.json, sample 2 \(id 'odd'\): .*{name}.*({message})"):
        rows[1]
    assert_dropped(path, processing, rf"^set\.json, sample 2 \(id 'odd'\): .*{name}.*({message})")


@pytest.mark.parametrize("data", [b"", b"hello", JPEG[:700], DAMAGED["16-bit PNG"][1]], ids=len)
def test_bytes_that_are_no_image_are_named_by_their_number(tmp_path, data):
    with pytest.raises(UserError, match=f"^An image of {len(data)} bytes "):
        read_image(data, tmp_path)


def test_bytes_of_a_parquet_file(tmp_path, processing, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    stored = [{"bytes": b, "path": None} for b in (PNG, JPEG[:700], PNG)]
    columns = {"id": ["first", "odd", "last"], "image": stored, "conversations": [TALK] * 3}
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(path)
    rows = training_set(select(recipe(path, "error"), processing).rows, processing, 2048)
    message = r"^set\.parquet, sample 2 \(id 'odd'\): An image of 700 bytes cannot be decoded"
    with pytest.raises(UserError, match=message):
        rows[1]
    selection = select(recipe(path, "drop"), processing)
    assert list(selection.rows["id"]) == ["first", "last"]
    assert [(b.where, b.id) for b in selection.dropped] == [("set.parquet, sample 2", "odd")]


LOST = {
    "missing": ("gone.png", r"No image at .*/root/gone\.png\."),
    "a directory": ("folder", r"No image at .*/root/folder\."),
    "under a file": ("good.png/a.png", "No image at|is none: Not a directory"),
    "an address": ("https://example.com/a.png", r"No image at .*example\.com/a\.png\."),
    "above the root": ("../secret.png", r"'\.\./secret\.png' leaves the image root .*paths must stay under it"),
    "above by a detour": ("folder/../../secret.png", "leaves the image root"),
    "absolute": ("{outside}/secret.png", "secret.png' leaves the image root"),
    "a loop of links": ("loop.png", r"'loop\.png' is none: Symlink loop|No image at"),
    "a name too long": ("a" * 300, r"'a{80}' is none: File name too long\."),
    "a path too long": ("a/" * 3000, r"'(a/){40}' is none: File name too long\."),
    "a null byte": ("good\0.png", r"'image' must be a path or a list of paths, not 'good\\x00\.png'\."),
}
LINKS = {"a link out": "link.png", "a folder's link out": "linked/secret.png"}


@pytest.fixture
def root(tmp_path):
    """An image root with a folder, links out of it, and a picture beside it."""
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    Image.new("RGB", (8, 8), BLUE).save(tmp_path / "secret.png")
    for name, target in {"link.png": tmp_path / "secret.png", "linked": tmp_path, "loop.png": "loop.png"}.items():
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(("image", "message"), LOST.values(), ids=LOST)
def test_a_path_that_leads_to_no_image_is_named_before_anything_is_read(root, processing, image, message):
    path = sandwich(root, image.format(outside=root.parent))
    with pytest.raises(UserError, match=rf"sample 2 \(id 'odd'\): .*({message})") as caught:
        select(recipe(path, "error"), processing)
    assert str(caught.value).startswith("1 sample cannot be used:\n")
    assert str(caught.value).endswith("Mend the data, or leave such samples out with on_bad=drop.")
    assert len(str(caught.value)) < 500
    assert_dropped(path, processing, message)


@pytest.mark.parametrize("image", LINKS.values(), ids=LINKS)
def test_a_link_out_of_the_root_is_not_followed(root, processing, image):
    path = sandwich(root, image)
    with pytest.raises(UserError, match=f"'{image}' leaves the image root"):
        read_image(image, root)
    assert_dropped(path, processing, f"'{image}' leaves the image root")


@pytest.mark.parametrize("image", LINKS.values(), ids=LINKS)
def test_a_link_out_of_the_root_is_named_before_anything_is_read(root, processing, image):
    with pytest.raises(UserError, match="leaves the image root"):
        select(recipe(sandwich(root, image), "error"), processing)


def palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", transparency=1)


ODD = {
    "GIF named jpg": ("a.jpg", encoded(Image.new("RGB", (4, 4), RED), "GIF"), (4, 4), RED),
    "animated GIF": ("a.gif", GIF, (4, 4), RED),
    "palette with transparency": ("a.png", palette(), (4, 4), (10, 20, 30)),
    "RGBA, transparent": ("a.png", encoded(Image.new("RGBA", (4, 3), (200, 100, 50, 0)), "PNG"), (4, 3), (200, 100, 50)),
    "LA": ("a.png", encoded(Image.new("LA", (4, 3), (90, 7)), "PNG"), (4, 3), (90, 90, 90)),
    "8-bit grey": ("a.png", encoded(Image.new("L", (4, 3), 90), "PNG"), (4, 3), (90, 90, 90)),
    "1 bit": ("a.png", encoded(Image.new("1", (4, 3), 1), "PNG"), (4, 3), (255, 255, 255)),
    "CMYK JPEG": ("a.jpg", encoded(Image.new("CMYK", (8, 4), (0, 255, 255, 0)), "JPEG"), (8, 4), (255, 0, 0)),
    "progressive JPEG": ("a.jpg", encoded(Image.new("RGB", (9, 7), RED), "JPEG", progressive=True), (9, 7), (254, 0, 0)),
    "WebP": ("a.webp", encoded(Image.new("RGB", (4, 3), BLUE), "WEBP", lossless=True), (4, 3), BLUE),
    "BMP": ("a.bmp", encoded(Image.new("RGB", (4, 3), BLUE), "BMP"), (4, 3), BLUE),
    "PNG without its end": ("a.png", encoded(Image.new("RGB", (4, 3), BLUE), "PNG")[:-12], (4, 3), BLUE),
    "one pixel": ("a.png", encoded(Image.new("RGB", (1, 1), RED), "PNG"), (1, 1), RED),
    "odd name": ("a b #%?é\n.png", encoded(Image.new("RGB", (4, 3), BLUE), "PNG"), (4, 3), BLUE),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "size", "color"), ODD.values(), ids=ODD)
def test_an_odd_image_is_taken(tmp_path, processing, name, data, size, color):
    (tmp_path / name).write_bytes(data)
    image = open_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", size) == ("RGB", check_image(name, tmp_path))
    assert max(abs(a - b) for a, b in zip(image.getpixel((0, 0)), color, strict=True)) <= 2
    path = sandwich(tmp_path, name)
    for on_bad in ("error", "drop"):
        selection = select(recipe(path, on_bad), processing)
        assert len(selection.rows) == 3 and not selection.dropped
    pixels = training_set(selection.rows, processing, 2048)[1]["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64) and pixels.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)], ids=str)
def test_pixels_of_tiny_and_long_images(processing, size):
    """`square` crops to the picture alone; `pad` leaves it in the middle of CLIP's mean colour."""
    processor, image = processing.image_processor, Image.new("RGB", size, RED)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    red = ((torch.tensor(RED)[:, None, None] / 255 - mean) / std).expand(3, 64, 64)
    torch.testing.assert_close(to_pixels(image, processor, "square"), red, atol=1e-4, rtol=0)
    pad = to_pixels(image, processor, "pad")
    torch.testing.assert_close(pad, red if size == (1, 1) else torch.zeros_like(red), atol=0.25, rtol=0)
    if size != (1, 1):
        across = pad[0].mean(0 if size[0] == 1 else 1)
        assert across.argmax() in (31, 32) and across.max() > across[0]


HUGE = {
    "a decompression bomb": ((15, 14), "cannot be decoded: .*decompression bomb"),
    "a line": ((1, 21), "An image of 1 by 21 pixels is too long to be made a square"),
}


@pytest.mark.parametrize(("size", "message"), HUGE.values(), ids=HUGE)
def test_too_many_pixels(tmp_path, processing, monkeypatch, size, message):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", size, BLUE).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        to_pixels(open_image(tmp_path / "a.png"), processing.image_processor, "pad")
    assert_dropped(sandwich(tmp_path, "a.png"), processing, message)


def test_up_to_twice_as_many_pixels_are_taken_without_a_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (14, 14), BLUE).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == check_image("a.png", tmp_path) == (14, 14)
    assert not recwarn.list


def turned(**tags):
    """A red and blue JPEG that is to be turned by a quarter."""
    image, exif = Image.new("RGB", (32, 16), RED), Image.Exif()
    image.paste(BLUE, (16, 0, 32, 16))
    exif[0x0112], exif[0x0128] = 6, 2  # orientation, unit of the resolution
    return encoded(image, "JPEG", exif=exif, quality=100, subsampling=0)


@pytest.mark.parametrize(("exif", "size", "far"), [(True, (16, 32), (2, 29)), (False, (32, 16), (29, 2))])
def test_exif_turns_the_picture_if_it_may(tmp_path, exif, size, far):
    (tmp_path / "a.jpg").write_bytes(turned())
    image = open_image(tmp_path / "a.jpg", exif)
    assert image.size == size and image.getpixel((2, 2))[0] > 200 and image.getpixel(far)[2] > 200
    plain, other = (load_processing(EMBEDDED, "vicuna_v1", "pad", "current", e) for e in (exif, not exif))
    rows = select(recipe(sandwich(tmp_path, "a.jpg"), "error"), plain).rows
    own, others = (training_set(rows, p, 2048)[1]["pixel_values"] for p in (plain, other))
    torch.testing.assert_close(own[0], to_pixels(image, plain.image_processor, "pad"))
    assert not torch.allclose(own, others)


def test_what_the_check_lets_through_can_be_read(tmp_path):
    broken = bytearray(turned())
    broken[broken.index(b"\x01\x28\x00\x03") + 3] = 2  # the unit as text
    (tmp_path / "a.jpg").write_bytes(broken)
    assert check_image("a.jpg", tmp_path) == (32, 16)
    assert open_image(tmp_path / "a.jpg").size == (16, 32)
