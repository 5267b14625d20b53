"""The digest knows a base again, wherever it lies, and tells it from another."""

from __future__ import annotations

import shutil

import pytest

from qllava.errors import UserError
from qllava.model.base import EMBEDDED
from qllava.model.fingerprint import fingerprint


def test_same_weights_same_digest_whatever_the_name(tmp_path):
    shutil.copytree(EMBEDDED / "llm", tmp_path / "other")
    assert fingerprint([str(tmp_path / "other")]) == fingerprint([str(EMBEDDED / "llm")])


def test_one_byte_makes_another_base(tmp_path):
    shutil.copytree(EMBEDDED / "vision_tower", tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint([str(tmp_path / "x")]) != fingerprint([str(EMBEDDED / "vision_tower")])


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        fingerprint([str(tmp_path)])
