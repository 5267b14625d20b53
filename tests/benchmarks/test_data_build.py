"""The raw sets that are made in miniature give what the shares of the published counts are."""

from __future__ import annotations

import argparse
import math

import pytest

from benchmarks import data_build, data_raw


def test_a_thousandth_of_both_mixes(tmp_path):
    parser = argparse.ArgumentParser()
    data_build.add_arguments(parser)
    words = ["--share", "0.001", "--folder", str(tmp_path), "--again"]
    result = data_build.measure(parser.parse_args(words), ["data_build", *words])
    rows = {s["name"]: s["rows"] for s in result["llava-665k"]["sources"]}
    assert rows == {
        "llava-instruct": 158, "sharegpt": 57, "vqav2": 83, "gqa": 72, "okvqa": 9, "ocrvqa": 166, "aokvqa": 68, "textcaps": 22,
        "refcoco": 48, "vg": 108,
    }  # fmt: skip  # caps, which are of the full size, take nothing away here
    assert result["llava-558k"]["rows"] == 558 and result["llava-665k"]["same_bytes_again"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [1, 0.1, 0.01])
def test_expressions_give_the_published_rows(share):
    total, rows, images = (round(n * share) for n in (321_327, data_raw.SEGMENTS, data_raw.REFERRED))
    counts = data_raw.expressions(total, rows, images)
    assert sum(counts) == total and sum(math.ceil(n / 9) for n in counts) == rows and min(counts) > 0
