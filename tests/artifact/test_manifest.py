"""An artifact is whole or it is not there, and a changed file does not pass."""

from __future__ import annotations

import pytest

from qllava.artifact.manifest import FILE, Manifest, read_manifest, verify, writing
from qllava.errors import RunError, UserError

MANIFEST = Manifest(kind="adapter", holds="adapter", template="vicuna_v1", image_aspect_ratio="pad")


def make(folder):
    with writing(folder, MANIFEST) as partial:
        (partial / "a.txt").write_text("hello")
        (partial / "sub").mkdir()
        (partial / "sub" / "b.txt").write_text("there")
    return folder


def test_written_and_verified_whatever_its_name(tmp_path):
    folder = make(tmp_path / "x")
    folder.rename(tmp_path / "some other name")
    manifest = verify(tmp_path / "some other name")
    assert set(manifest.files) == {"a.txt", "sub/b.txt"}
    assert manifest.versions["torch"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), writing(tmp_path / "x", MANIFEST) as partial:
        (partial / "a").write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path):
    make(tmp_path / "x")
    with pytest.raises(UserError, match="is there already"):
        make(tmp_path / "x")


@pytest.mark.parametrize("damage", ["flip", "remove", "grow"])
def test_damage_is_named(tmp_path, damage):
    file = make(tmp_path / "x") / "sub" / "b.txt"
    if damage == "remove":
        file.unlink()
    else:
        file.write_text({"flip": "thera", "grow": "there!"}[damage])
    with pytest.raises(RunError, match=r"sub/b\.txt"):
        verify(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", '{"format": 2}', '{"kind": "adapter", "extra": 1}'])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="damaged or of another version"):
        read_manifest(tmp_path)


def test_a_folder_without_one_is_no_artifact(tmp_path):
    with pytest.raises(UserError, match="is not an artifact"):
        verify(tmp_path)


def test_an_added_file_is_named(tmp_path):
    (make(tmp_path / "x") / "adapter_model.safetensors").touch()
    with pytest.raises(RunError, match="was not there when it was written"):
        verify(tmp_path / "x")


def test_somebodys_folder_beside_it_stays(tmp_path):
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".x.partial" / "mine").touch()
    make(tmp_path / "x")
    assert (tmp_path / ".x.partial" / "mine").exists()
