"""Kept crops: the same pixels bit for bit, found by what made them, and no half, damaged or stale file is ever read."""

from __future__ import annotations

import collections
import dataclasses
import io
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qllava.data import cache
from qllava.data.cache import Crops, image_key, keep_crops, make_room, open_crops, places
from qllava.data.dataset import training_set
from qllava.data.image import open_image, to_pixels
from qllava.data.rows import rows_of
from qllava.errors import UserError
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Source

MODES = ("RGB", "RGBA", "P", "L", "CMYK", "1", "LA")
EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept")


def processor(edge: int = 32, **values) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, **values
    )  # fmt: skip


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.frombytes("RGB", (width, height), os.urandom(3 * width * height)).convert(mode)


def files(crops: Crops) -> list[Path]:
    return [f for f in crops.store.folder.rglob("*") if f.is_file()]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), mode=st.sampled_from(MODES), turn=st.integers(1, 8),
    aspect=st.sampled_from(["pad", "square"]), exif=st.booleans(), edge=st.sampled_from([14, 32, 45]),
)  # fmt: skip
def test_pixels_of_a_kept_crop_are_the_same_bits(tmp_path_factory, width, height, mode, turn, aspect, exif, edge):
    folder = tmp_path_factory.mktemp("crops")
    orientation = Image.Exif()
    orientation[0x0112] = turn
    file = folder / ("a.tiff" if mode == "CMYK" else "a.png")
    noise(width, height, mode).save(file, exif=orientation)
    crops = open_crops(processor(edge), aspect, exif)
    crops = dataclasses.replace(crops, store=dataclasses.replace(crops.store, folder=folder / "kept"))
    content = file.read_bytes()
    for ref, opened in ((file.name, file), (content, content)):  # Pillow turns some TIFFs by bytes alone
        expected = to_pixels(open_image(opened, exif), crops.processor, aspect)
        made, kept = crops.load(ref, folder), crops.load(ref, folder)
        assert made.dtype == kept.dtype == torch.float32
        assert torch.equal(made, expected) and torch.equal(kept, expected)
    assert len(files(crops)) == 2


def test_other_means_and_scales_are_the_same_bits_too(tmp_path):
    noise(50, 41).save(tmp_path / "a.png")
    ways = (
        {"image_mean": [0.5] * 3, "image_std": [0.25, 0.5, 1.0]},
        {"rescale_factor": 1 / 127.5},
        {"do_normalize": False},
    )
    for values in ways:
        crops = open_crops(processor(**values), "pad", True)
        expected = to_pixels(open_image(tmp_path / "a.png"), crops.processor, "pad")
        assert torch.equal(crops.load("a.png", tmp_path), expected) and torch.equal(
            crops.load("a.png", tmp_path), expected
        )


def test_a_kept_crop_is_not_made_again(tmp_path, monkeypatch):
    noise(50, 41).save(tmp_path / "a.png")
    crops = open_crops(processor(), "pad", True)
    first = crops.load("a.png", tmp_path)
    monkeypatch.setattr(cache, "read_image", lambda *_: pytest.fail("it was decoded again"))
    assert torch.equal(crops.load("a.png", tmp_path), first)
    assert [f.stat().st_size for f in files(crops)] == [crops.store.size] == [3 * 32 * 32 + 4]


def test_a_changed_image_has_another_key(tmp_path):
    file = tmp_path / "a.png"
    noise(9, 9).save(file)
    crops, before = open_crops(processor(), "pad", True), image_key("a.png", tmp_path)
    crops.load("a.png", tmp_path)
    stat = file.stat()
    content = bytearray(file.read_bytes())
    noise(9, 9).save(file)
    assert image_key("a.png", tmp_path) != before
    assert torch.equal(crops.load("a.png", tmp_path), to_pixels(open_image(file), crops.processor, "pad"))
    file.write_bytes(content)  # the same size and time of change, as a copying tool would leave them
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and image_key("a.png", tmp_path) != before
    assert image_key(bytes(content), tmp_path) == image_key(bytes(content), Path("/")) != image_key(b"other", tmp_path)
    with pytest.raises(UserError, match="No image"):
        image_key("none.png", tmp_path)


def test_another_preprocessing_has_another_folder(monkeypatch):
    ways = [
        (processor(), "pad", True),
        (processor(), "square", True),
        (processor(), "pad", False),
        (processor(14), "pad", True),
    ]
    ways += [(processor(image_mean=[0.5] * 3), "pad", True), (processor(resample=2), "pad", True)]
    folders = {open_crops(*way).store.folder for way in ways}
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert len(folders | {open_crops(*ways[0]).store.folder}) == len(ways) + 1
    assert open_crops(*ways[0]).store.folder == open_crops(*ways[0]).store.folder


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "flipped", "zeros"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    noise(50, 41).save(tmp_path / "a.png")
    crops = open_crops(processor(), "pad", True)
    expected = crops.load("a.png", tmp_path)
    (file,) = files(crops)
    whole = file.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    file.write_bytes(
        {"empty": b"", "cut": whole[:1000], "longer": whole + b"x", "flipped": flipped, "zeros": bytes(len(whole))}[
            damage
        ]
    )
    assert crops.store.read(image_key("a.png", tmp_path)) is None
    assert torch.equal(crops.load("a.png", tmp_path), expected)
    assert file.read_bytes() == whole and files(crops) == [file]


def _load_again_and_again(crops: Crops, root: Path, expected: torch.Tensor, wrong) -> None:
    for i in range(300):
        if i % 3 == 0:
            crops.store.file(image_key("a.png", root)).unlink(missing_ok=True)
        if not torch.equal(crops.load("a.png", root), expected):
            wrong.value += 1


def test_processes_that_write_the_same_file_do_no_harm(tmp_path):
    noise(50, 41).save(tmp_path / "a.png")
    crops = open_crops(processor(), "pad", True)
    expected = to_pixels(open_image(tmp_path / "a.png"), crops.processor, "pad")
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    both = [context.Process(target=_load_again_and_again, args=(crops, tmp_path, expected, wrong)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert wrong.value == 0 and all(one.exitcode == 0 for one in both)
    assert {f.name[0] for f in files(crops)} <= set("0123456789abcdef")  # and no file of another name is left


def test_workers_of_a_data_loader_share_the_crops(scenes):
    processing = load_processing(EMBEDDED, "vicuna_v1", "pad")
    table = rows_of(Source(path=str(scenes), image_root="images"))
    kept = keep_crops(processing, [table, None])
    twice = table.select([i for i in range(len(table)) for _ in (0, 1)])  # each worker meets every image
    loader = torch.utils.data.DataLoader(
        training_set(twice, kept, 2048), batch_size=1, num_workers=2, collate_fn=lambda rows: rows[0]
    )
    plain = training_set(twice, processing, 2048)
    for _ in range(2):
        for got, expected in zip(loader, plain, strict=True):
            if expected["pixel_values"] is None:
                assert got["pixel_values"] is None
            else:
                assert torch.equal(got["pixel_values"], expected["pixel_values"])
    assert len(files(kept.cache)) == 14


def test_a_full_disk_during_the_run_only_costs_time(tmp_path, monkeypatch):
    noise(50, 41).save(tmp_path / "a.png")
    crops = open_crops(processor(), "pad", True)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert torch.equal(crops.load("a.png", tmp_path), to_pixels(open_image(tmp_path / "a.png"), crops.processor, "pad"))
    assert not files(crops)


def test_images_are_counted_once_and_room_is_asked_for_what_is_missing(scenes, monkeypatch, capsys):
    processing = load_processing(EMBEDDED, "vicuna_v1", "pad")
    table = rows_of(Source(path=str(scenes), image_root="images"))
    twice = table.select([*range(len(table)), *range(len(table))])
    crops, keys = open_crops(processing.image_processor, "pad", True), places(twice)
    assert list(keys.values()) == [(i, 0) for i in range(14)]
    disk = collections.namedtuple("disk", "total used free")
    block = 3 * 4096 + 4096  # of 3 * 64 * 64 + 4 bytes
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: disk(0, 0, 13 * block))
    with pytest.raises(UserError, match=r"crops of 14 images need 0.2 MB more .*HF_DATASETS_CACHE.*image_cache: none"):
        make_room(crops.store, keys, "crops")
    crops.load("0.png", scenes.parent / "images")
    assert len(make_room(crops.store, keys, "crops")) == 13
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "image_cache: crops of 14 images take 0.2 MB in" in said
        and "of which 0.0 MB are there; 0.2 MB are free" in said
    )
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: disk(0, 0, 13 * block - 1))
    with pytest.raises(UserError, match="13 images need"):
        make_room(crops.store, keys, "crops")


def test_a_folder_that_nothing_can_be_kept_in_is_an_error(tmp_path):
    (tmp_path / "kept").write_text("a file")
    crops = open_crops(processor(), "pad", True)
    with pytest.raises(UserError, match="nothing can be kept in"):
        make_room(crops.store, [], "crops")


def test_images_of_bytes_are_known_by_their_content():
    def png() -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (5, 4), "red").save(sink, "PNG")
        return sink.getvalue()

    from datasets import Dataset

    from qllava.data.rows import FEATURES

    row = {
        "id": "a", "where": "x, sample 1", "root": "", "images": [{"path": None, "bytes": png()}] * 2, "kind": "", "words": 1,
        "turns": [{"role": "user", "text": "x", "images": 2}], "answered": False, "error": "",
    }  # fmt: skip
    assert list(places(Dataset.from_list([row, row], features=FEATURES)).values()) == [(0, 0)]
