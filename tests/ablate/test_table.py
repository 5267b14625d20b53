"""Figures by hand, and what the table, the chart and the page hold."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image

from qllava.ablate.chart import chart
from qllava.ablate.table import cell
from qllava.ablate.write import write


def test_mean_spread_and_difference_by_hand():
    found = cell({1: 90.0, 2: 94.0, 3: 98.0}, {1: 80.0, 2: 82.0, 3: 81.0}, own=False)
    assert (found["n"], found["mean"], found["spread"]) == (3, 94.0, 4.0)  # √((16 + 0 + 16) / 2)
    assert found["difference"] == 13.0


def test_a_seed_that_one_arm_lacks_counts_in_no_difference():
    found = cell({1: 90.0, 2: 100.0}, {1: 80.0, 2: None}, own=False)
    assert found["mean"] == 95.0 and found["difference"] == 10.0
    assert math.isclose(found["spread"], math.sqrt(50))


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert cell({1: 7.0}, {}, own=False) == {
        "values": {1: 7.0},
        "n": 1,
        "mean": 7.0,
        "spread": None,
        "difference": None,
    }
    assert cell({1: None}, {1: 2.0}, own=False)["mean"] is None
    assert cell({1: 7.0}, {1: 7.0}, own=True)["difference"] is None


@pytest.fixture
def document() -> dict:
    def scores(values, reference, own, paper):
        return {"gqa": cell(values, reference, own) | {"paper": paper}}

    slow = {1: 62.0, 2: 63.0}
    return {
        "title": "A <b>study</b>", "axis": "rate", "reference": "slow", "seeds": [1, 2], "source": "table 2",
        "evaluations": [{"name": "gqa", "title": "GQA", "unit": "GQA"}], "notes": ["a note"], "failures": [],
        "arms": [
            {"name": "slow", "title": "slow", "note": None, "scores": scores(slow, slow, True, 62.0), "seconds": 12.0},
            {"name": "fast", "title": "f|st", "note": "odd", "scores": scores({1: 60.0, 2: None}, slow, False, None), "seconds": None},
        ],
    }  # fmt: skip


def test_writes_the_table_the_chart_and_the_page(document, tmp_path):
    write(document, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| slow | 62.5 ± 0.7 | 2 | reference | 62.0 | 62.0, 63.0 | 12.0 |" in text
    assert "| f\\|st | 60.0 | 1 | -2.0 | – | 60.0 | – |" in text
    assert (
        "# A &lt;b&gt;study&lt;/b&gt;" in text and "The paper's figures: table 2." in text and "- f\\|st: odd" in text
    )
    page = (tmp_path / "page.html").read_text()
    assert "<b>study" not in page and 'src="data:image/png;base64,' in page and "62.5 ± 0.7" in page
    assert Image.open(tmp_path / "chart.png").width > 800


def test_without_the_papers_figures_there_is_no_column_for_them(document, tmp_path):
    document["arms"][0]["scores"]["gqa"]["paper"] = None
    write(document, tmp_path)
    assert "the paper |" not in (tmp_path / "table.md").read_text()


def test_the_chart_takes_arms_without_a_value(document):
    document["arms"][1]["scores"]["gqa"] |= {"values": {}, "mean": None, "spread": None}
    assert Image.open(io.BytesIO(chart(document))).format == "PNG"
