"""Verdicts beside the published rows, what a server's score changes, and a page that shows what files say as text."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace

import pytest
from PIL import Image

from qllava import api
from qllava.errors import UserError
from qllava.evaluate import bands
from qllava.evaluate.benchmarks.base import Benchmark, Score
from qllava.evaluate.record import record, record_scores
from qllava.evaluate.scoreboard import scoreboard, slug

FULL, LORA = "llava-1.5-7b", "llava-1.5-7b-lora"


def benchmark(name, full=None, lora=None, main="accuracy", local=True, **more):
    paper = {m: {main: v} for m, v in ((FULL, full), (LORA, lora)) if v is not None}
    score = (lambda root, questions, texts: Score({}, 0)) if local else None
    return Benchmark(name, name.upper(), main, paper, lambda root: [], 128, score, **more)


BENCHMARKS = {
    b.name: b
    for b in (
        benchmark("gqa", 62.0, 63.0),
        benchmark("pope", 85.9, 86.4, main="f1", differences=("lmms-eval takes yes and no <exactly>.",)),
        benchmark("mme", 1510.7, 1476.9, main="perception"),
        benchmark("scienceqa", 66.8),
        benchmark("textvqa_noocr"),
        benchmark("vqav2", 78.5, 79.1, local=False, server="EvalAI"),
        benchmark("mmbench", 64.3, 66.1, local=False, server="the MMBench server"),
        benchmark("mmvet", 31.1, 30.2, main="total", local=False, judged=True),
        benchmark("seed", 58.6, 60.1),
    )
}


def put(run, name, value=None, **more):
    main = BENCHMARKS[name].main if name in BENCHMARKS else "accuracy"
    result = {
        "benchmark": name, "source": "runs/a/final", "weights": "f00d", "questions": 1000, "main": main,
        "parts": None if value is None else {main: value, "other": None}, "notes": [], "judge": None, "reference": None,
        "submission": None, "batch_size": 1, "dtype": "float16", "max_new_tokens": 128, "date": "2026-01-02",
    } | more  # fmt: skip
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def board(run, expect=LORA, out=None):
    return scoreboard([run], expect, out, BENCHMARKS)


def cell(run, name, expect=LORA):
    return board(run, expect)["runs"][0]["cells"][name]


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("gqa", 63.6, "within the band"), ("gqa", 63.61, "above"), ("gqa", 62.39, "below"),
        ("mme", 1423.9, "within the band"), ("mme", 1423.8, "below"), ("scienceqa", 68.0, "no published figure"),
        ("textvqa_noocr", 47.0, "another task"), ("vqav2", None, "waits for the server"),
        ("mmvet", None, "waits for a judge"), ("gqa", None, "not scored"),
    ],
)  # fmt: skip
def test_verdicts(tmp_path, name, value, verdict):
    put(tmp_path, name, value)
    assert cell(tmp_path, name)["verdict"] == verdict
    assert cell(tmp_path, "seed")["verdict"] == "not run"


def test_without_a_row_to_expect_there_is_no_verdict_on_a_score(tmp_path):
    put(tmp_path, "gqa", 61.0)
    assert cell(tmp_path, "gqa", None)["verdict"] is None


def test_a_band_is_of_retrainings_or_of_the_number_of_questions(tmp_path):
    put(tmp_path, "pope", 86.0, questions=8910)
    put(tmp_path, "mmbench", None, questions=4377)
    record(tmp_path / "mmbench", 64.0, "2026-01-31")
    pope, mmbench = cell(tmp_path, "pope"), cell(tmp_path, "mmbench")
    assert pope["band"] == pytest.approx(196 * math.sqrt(0.864 * 0.136 / 8910), abs=0.005)
    assert "8,910 questions" in pope["band_source"] and "1,164 questions" in mmbench["band_source"]
    assert mmbench["verdict"] == "within the band" and mmbench["delta"] == pytest.approx(-2.1)
    assert "#680" in bands.band("gqa", 62.0, 0).source
    assert bands.band("pope", 85.9, 0) is None and bands.band("llava_bench", 65.4, 60) is None


def test_a_judged_score_is_compared_only_with_what_its_judge_scored(tmp_path):
    judge = {"model": "gpt-x", "url": "http://x", "date": "2026-01-02"}
    put(tmp_path, "mmvet", 27.0, questions=218, judge=judge)
    assert cell(tmp_path, "mmvet", FULL)["verdict"] == "another judge: not comparable"
    again = {"name": "data/mm-vet/results/llava-v1.5-7b.json", "parts": {"total": 27.9}}
    put(tmp_path, "mmvet", 27.0, questions=218, judge=judge, reference=again)
    found = cell(tmp_path, "mmvet", FULL)
    assert found["verdict"] == "within the band" and found["expected"] == 27.9 and found["delta"] == pytest.approx(-0.9)
    assert cell(tmp_path, "mmvet", LORA)["verdict"] == "the reference is another model"
    assert cell(tmp_path, "mmvet", LORA)["delta"] == pytest.approx(-0.9)
    put(tmp_path, "mmvet", 27.0, questions=218, judge=judge, reference=again | {"name": "theirs.jsonl"})
    assert cell(tmp_path, "mmvet", LORA)["verdict"] == "within the band"
    assert cell(tmp_path, "mmvet", LORA)["against"] == "theirs.jsonl, by the same judge"
    put(tmp_path, "mmvet", 27.0, reference=again, judge=judge | {"date": None})
    assert cell(tmp_path, "mmvet", FULL)["verdict"] == "another judge: not comparable"
    board(tmp_path, FULL, tmp_path / "out")
    page = (tmp_path / "out" / "scoreboard.md").read_text()
    assert "27.0" not in page and "withheld" in page
    assert slug("a/llava-v1.5-13b-lora.jsonl") == "llava-1.5-13b-lora"


def test_a_servers_score_is_recorded_once_the_server_gave_it(tmp_path, capsys):
    folder = put(tmp_path, "vqav2")
    record(folder, 79.0, "2026-01-31")
    assert json.loads((folder / "result.json").read_text())["server_score"] == 79.0
    assert cell(tmp_path, "vqav2")["score"] == 79.0 and not list(folder.glob("*.new"))
    record(folder, 79.2, "2026-02-01")
    assert cell(tmp_path, "vqav2")["server_date"] == "2026-02-01"
    assert "79.2 takes the place of 79.0, recorded 2026-01-31" in " ".join(capsys.readouterr().err.split())
    for wrong in (784.0, -1.0, math.inf):
        with pytest.raises(UserError, match="from 0 to 100"):
            record(folder, wrong, "2026-02-01")
    with pytest.raises(UserError, match="no date"):
        record(folder, 79.0, "yesterday")
    with pytest.raises(UserError, match="no score"):
        record(folder, math.nan, "2026-01-31")
    with pytest.raises(UserError, match="scored already"):
        record(put(tmp_path, "gqa", 60.0), 61.0, "2026-01-31")
    with pytest.raises(UserError, match="No file"):
        record(tmp_path / "seed", 61.0, "2026-01-31")


def test_several_scores_are_recorded_or_none(tmp_path):
    put(tmp_path, "vqav2")
    put(tmp_path, "mmbench")
    for wrong, message in (
        ("mmbnch=64", "Did you mean 'mmbench'"),
        ("mmbench", "no score such as"),
        ("=3", "no result"),
        ("mmbench=101", "from 0 to 100"),
    ):
        with pytest.raises(UserError, match=message):
            record_scores([tmp_path], ["vqav2=79.0", wrong])
    with pytest.raises(UserError, match="one run"):
        record_scores([tmp_path, tmp_path], ["vqav2=79.0"])
    assert cell(tmp_path, "vqav2")["score"] is None
    record_scores([tmp_path], ["vqav2=79.0", "mmbench=66"], "2026-01-31")
    record_scores([], [])
    assert cell(tmp_path, "mmbench")["score"] == 66.0 and cell(tmp_path, "vqav2")["server_date"] == "2026-01-31"


def test_the_row_must_be_a_published_one(tmp_path):
    put(tmp_path, "gqa", 60.0)
    with pytest.raises(UserError, match=r"Did you mean 'llava-1.5-7b-lora'"):
        board(tmp_path, "llava-1.5-7b-lroa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"accuracy": "high"}}, "'accuracy' is 'high', not a number"), ({"parts": [1]}, "'parts' is list"),
        ({"parts": {"accuracy": True}}, "not a number"), ({"parts": {"accuracy": math.nan}}, "not a number"),
        ({"main": "f1"}, "its score is 'f1'; gqa's is 'accuracy'"), ({"main": None}, "no 'main'"),
        ({"benchmark": "gqua"}, "unknown benchmark 'gqua'. Did you mean 'gqa'"), ({"benchmark": 3}, "no 'benchmark'"),
        ({"questions": "many"}, "no count of 'questions'"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_named(tmp_path, change, message):
    folder = put(tmp_path, "gqa", 60.0, **change)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        board(tmp_path)
    assert str(folder / "result.json") in str(error.value)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        board(tmp_path)
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"gqa/result.json is no JSON"):
        board(tmp_path)


def test_a_trial_run_is_left_out_and_other_settings_are_told(tmp_path):
    put(tmp_path, "seed", 60.0, whole=False, questions=7)
    put(tmp_path, "gqa", 63.0, batch_size=32, dtype="torch.bfloat16")
    put(tmp_path, "pope", 86.0, source="runs/b/final")
    run = board(tmp_path)["runs"][0]
    assert run["cells"]["seed"]["verdict"] == "only the first 7 asked" and run["cells"]["mme"]["verdict"] == "not run"
    assert "not all of one model" in run["notes"][0] and len(run["notes"]) == 1
    assert run["cells"]["gqa"]["notes"] == [
        "batch_size 32; the original: 1",
        "dtype torch.bfloat16; the original: float16",
    ]
    assert run["cells"]["pope"]["notes"] == []


@pytest.mark.parametrize("expect", [LORA, None])
def test_the_page_shows_numbers_and_no_foreign_markup(tmp_path, expect):
    evil = tmp_path / "<img src=x onerror=alert(1)> $\\frac{ | `x`"
    put(evil, "gqa", 62.5, notes=["<script>alert(1)</script>\x1b[31m"])
    put(evil, "mme", 1234.5)
    put(evil, "vqav2", submission="<b>.json")
    put(tmp_path / "second", "gqa", 64.9)
    scoreboard([evil, tmp_path / "second"], expect, tmp_path / "out", BENCHMARKS)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "scoreboard.md", "scoreboard.json", "scoreboard.html", "chart.png",
    }  # fmt: skip
    page = (tmp_path / "out" / "scoreboard.html").read_text()
    text = (tmp_path / "out" / "scoreboard.md").read_text()
    for shown in (page, text):
        assert "<script" not in shown and "<img src=x" not in shown and "<b>" not in shown and "\x1b" not in shown
        assert "62.5" in shown and "1,234.5" in shown and "1,510.7" in shown and "64.9" in shown
        assert "lmms-eval takes yes and no &lt;exactly&gt;." in shown
        assert "http" not in shown
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table[:5]}) == 1
    picture = (tmp_path / "out" / "chart.png").read_bytes()
    assert base64.b64encode(picture).decode() in page
    with Image.open(io.BytesIO(picture)) as image:
        image.verify()
        assert image.format == "PNG" and image.width > 1000
    data = json.loads((tmp_path / "out" / "scoreboard.json").read_text())
    assert data["runs"][0]["cells"]["gqa"]["score"] == 62.5 and data["expect"] == expect


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for parent in "ab":
        put(tmp_path / parent / "eval", "gqa", 63.0)
    found = scoreboard([tmp_path / p / "eval" for p in "ab"], None, None, BENCHMARKS)
    assert [r["name"] for r in found["runs"]] == [str(tmp_path / p / "eval") for p in "ab"]


def test_what_all_cells_note_is_the_runs(tmp_path):
    put(tmp_path, "gqa", 63.0, batch_size=32)
    put(tmp_path, "pope", 86.0, batch_size=32, dtype="float32")
    run = board(tmp_path)["runs"][0]
    assert run["notes"] == ["batch_size 32; the original: 1"]
    assert run["cells"]["gqa"]["notes"] == [] and len(run["cells"]["pope"]["notes"]) == 1


def test_a_part_of_a_set_gets_no_verdict(tmp_path):
    """Neither a sampling band nor one from retrainings is that of a few questions."""
    sizes = BENCHMARKS | {n: replace(BENCHMARKS[n], official=1001) for n in ("gqa", "pope")}
    put(tmp_path, "gqa", 63.0)
    put(tmp_path, "pope", 86.0, questions=1001)
    cells = scoreboard([tmp_path], LORA, None, sizes)["runs"][0]["cells"]
    assert cells["gqa"]["verdict"] == "a part of the set" and cells["gqa"]["band"] is None
    assert (
        cells["gqa"]["notes"] == ["1,000 of the set's 1,001 questions"]
        and cells["pope"]["verdict"] == "within the band"
    )


def test_a_set_of_ones_own_below_a_run_is_left_out(tmp_path):
    put(tmp_path, "gqa", 63.0)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "result.json").write_text(json.dumps({"source": "a", "data": "test.json", "exact_match": 1.0}))
    found = board(tmp_path)["runs"][0]
    assert found["cells"]["gqa"]["score"] == 63.0 and "test is of a set of your own (test.json)" in found["notes"][0]


def test_nothing_is_recorded_for_a_row_that_is_not_there(tmp_path):
    folder = put(tmp_path, "vqav2")
    with pytest.raises(UserError, match="No published row"):
        api.scoreboard([tmp_path], "nobody", record=["vqav2=78.0"])
    assert "server_score" not in json.loads((folder / "result.json").read_text())


def test_a_run_named_twice_is_one(tmp_path):
    put(tmp_path, "gqa", 63.0)
    assert len(scoreboard([tmp_path, tmp_path / "."], None, None, BENCHMARKS)["runs"]) == 1
