"""The data of demo studies: made once, whole or not at all."""

from __future__ import annotations

import pytest

from qllava.ablate import prepare as room
from qllava.ablate.prepare import prepare
from qllava.errors import UserError


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Makers that leave a file each; the names of those that were called."""
    called: list[str] = []

    def maker(name):
        def make(out):
            called.append(name)
            (out / name).write_text(name)
            if name == "broken":
                raise OSError("no space")

        return make

    monkeypatch.setattr(room, "MAKERS", {name: maker(name) for name in ("captions", "glyphs", "broken")})
    return called


def test_is_made_once(made, tmp_path):
    for _ in range(2):
        prepare("captions, glyphs", tmp_path / "data")
    assert made == ["captions", "glyphs"] and (tmp_path / "data" / "glyphs").is_file()


def test_what_broke_off_leaves_nothing_that_passes_for_data(made, tmp_path):
    with pytest.raises(OSError, match="no space"):
        prepare("captions,broken", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    prepare("captions", tmp_path / "data")
    assert sorted(f.name for f in (tmp_path / "data").iterdir()) == ["captions", "made.json"]


def test_other_data_and_unknown_makers_are_refused(made, tmp_path):
    prepare("captions", tmp_path / "data")
    with pytest.raises(UserError, match="holds other data than glyphs"):
        prepare("glyphs", tmp_path / "data")
    with pytest.raises(UserError, match="Did you mean 'glyphs'"):
        prepare("glyps", tmp_path / "other")
    assert not (tmp_path / "other").exists()
