"""The whole job: once in little, to see that it holds together, and once for real."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from qllava.api import demo, load, verify
from qllava.errors import UserError


def test_the_job_in_little(tmp_path, capsys):
    out = tmp_path / "demo"
    report = demo(out, recipe_overrides=("max_steps=2",), test_limit=12)
    assert json.loads((out / "report.json").read_text()) == report
    assert [s["questions"] for s in report["scores"].values()] == [9673, 12, 12, 12, 12]
    assert all(0 <= s["exact_match"] <= 1 for s in report["scores"].values())
    assert all(r["seconds"] >= 0 and r["peak_memory_mib"] > 100 for r in report["steps"])
    assert Image.open(report["sheet"]).size[0] > 1000
    assert verify(report["adapter"]).tune == "qlora" and verify(report["merged"]).kind == "model"
    err = capsys.readouterr().err
    assert all(f"qllava {verb}" in err for verb in ("chat", "train demo/instruct", "train llava15-7b/task-qlora"))
    again = demo(out, recipe_overrides=("max_steps=2",), test_limit=4)  # it clears what it made itself
    assert again["scores"]["merged"]["questions"] == 4
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds mine\.txt, which no demo made"):
        demo(out)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_job_for_real(tmp_path):
    report = demo(tmp_path / "demo")
    scores = {name: s["exact_match"] for name, s in report["scores"].items()}
    assert report["scores"]["merged"]["questions"] == 9673
    assert scores["merged"] >= 0.95 > scores["best answer without the image"] + 0.05
    assert scores["base"] < scores["after instruct, unmerged"]
    assert abs(scores["merged"] - scores["after instruct, unmerged"]) < 0.03
    assert load(report["merged"]).manifest.report["target"] == "bf16-dequantized"
