"""The 665K mix in little: its shape is the published one, and two processes get to their first batch."""

from __future__ import annotations

import argparse
import json
from collections import Counter

import pytest

from benchmarks import data_scale
from benchmarks.speed.sets import MIX
from qllava.data.mixture import kind_of
from qllava.data.published import MIXES


def test_the_mix_has_the_published_parts(tmp_path):
    counts = Counter()
    for part in MIX:
        folder = data_scale.FOLDERS.get(part.name, data_scale.COCO) if part.image else None
        counts[kind_of(f"{folder}/a.jpg" if folder else None)] += part.samples
    assert counts == {name: part.rows for name, part in MIXES["llava-665k"].parts.items()}
    path = data_scale.make(tmp_path, 0.0005)
    rows = json.loads(path.read_text())
    assert abs(len(rows) - 333) < 12 and all((tmp_path / "images" / r["image"]).is_file() for r in rows if "image" in r)
    folders = {f for p in MIXES["llava-665k"].parts.values() for f in p.folders}
    assert folders == {r["image"].rpartition("/")[0] for r in rows if "image" in r}
    assert "\U0001f600" in path.read_text()


@pytest.mark.slow
def test_two_processes_are_measured(tmp_path):
    parser = argparse.ArgumentParser()
    data_scale.add_arguments(parser)
    words = ["--share", "0.0005", "--processes", "2", "--folder", str(tmp_path)]
    result = data_scale.measure(parser.parse_args(words), ["data_scale", *words])
    for name in ("2_processes_first", "2_processes_again"):
        assert len(result[name]) == 2 and all(
            0 < r["own_mib"] <= r["peak_mib"] and r["rows"] > 300 for r in result[name]
        )
    assert result["verify"]["ok"] and result["verify_decode"]["images"] == result["images"]
    assert not list(tmp_path.iterdir())
