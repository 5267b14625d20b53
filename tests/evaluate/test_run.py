"""All benchmarks end to end, on small sets in their real layouts, with the embedded base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from sets_choice import make_mmbench, make_mmbench_cn, make_mme, make_pope, make_scienceqa, make_seed
from sets_judged import judge_server, make_llava_bench, make_mmvet
from sets_vqa import make_gqa, make_textvqa, make_vizwiz, make_vqav2

from qllava.api import assemble, benchmark, load, score, scoreboard
from qllava.data.sample import ask
from qllava.errors import UserError
from qllava.evaluate.benchmarks import BENCHMARKS
from qllava.evaluate.judge import Judge
from qllava.evaluate.question import Question, features_of
from qllava.evaluate.run import as_original, tell

MAKERS = (
    make_vqav2, make_gqa, make_vizwiz, make_scienceqa, make_textvqa, make_pope, make_mme, make_mmbench, make_mmbench_cn,
    make_seed, make_llava_bench, make_mmvet,
)  # fmt: skip
SERVERS = {"vqav2", "vizwiz", "mmbench", "mmbench_cn"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    for make in MAKERS:
        make(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return assemble("embedded", "embedded", tmp_path_factory.mktemp("model") / "tiny", dtype="float32")


@pytest.fixture(scope="module")
def done(base, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tiny"
    return out, benchmark(base, ["all"], root, out=out, batch_size=8, dtype="float32")


def test_all_of_them_run(done, root):
    out, results = done
    assert list(results) == list(BENCHMARKS) and len(results) == 13
    for name, result in results.items():
        assert json.loads((out / name / "result.json").read_text()) == json.loads(json.dumps(result))
        rows = [json.loads(line) for line in (out / name / "answers.jsonl").read_text().splitlines()]
        questions = BENCHMARKS[name].questions(root)
        assert [r["question_id"] for r in rows] == [q.id for q in questions] and len(rows) == result["questions"] > 2
        assert all("USER: " in r["metadata"]["sent"] and r["metadata"]["sent"].endswith("ASSISTANT:") for r in rows)
        scored = name not in SERVERS and not BENCHMARKS[name].judged
        assert (result["parts"] is not None) == scored and (name not in SERVERS or result["server"])
        assert not BENCHMARKS[name].judged or "waits for a judge" in tell(result)
        assert not scored or result["main"] in result["parts"]
        assert tell(result).startswith(result["title"])
    assert all(results[name]["submission"] for name in SERVERS | {"mmvet"})


def test_answers_are_scored_again_without_a_model(done, root, tmp_path):
    out, results = done
    for name in ("pope", "gqa", "scienceqa", "textvqa_ocr", "seed", "mme"):
        again = score(name, out / name / "answers.jsonl", root, out=tmp_path / name)
        assert again["parts"] == results[name]["parts"]
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join((out / "pope" / "answers.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"cut\.jsonl ends after line"):
        score("pope", cut, root)


def test_a_judge_compares_ours_and_the_published_answers(done, root, tmp_path):
    out, _ = done
    with judge_server() as server:
        for name in ("llava_bench", "mmvet"):
            place = tmp_path / name
            shutil.copytree(out / name, place)
            judge = server.judge(model="tiny-judge")
            found = score(name, place / "answers.jsonl", root, judge=judge, reference=place / "answers.jsonl")
            assert found["judge"]["model"] == "tiny-judge" and found["judge"]["date"]
            assert found["parts"]["all"] > 0 and found["reference"]["parts"] == found["parts"]
            assert json.loads((place / "result.json").read_text())["source"] == str(found["source"])
    with pytest.raises(UserError, match="needs no judge"):
        score("pope", out / "pope" / "answers.jsonl", root, judge=Judge("http://localhost:1", "m"))


def test_results_become_a_scoreboard(done, tmp_path):
    out, results = done
    board = scoreboard([out], "llava-1.5-7b-lora", tmp_path / "board")
    cells = board["runs"][0]["cells"]
    assert cells["vqav2"]["verdict"] == "waits for the server" and cells["mmvet"]["verdict"] == "waits for a judge"
    assert cells["pope"]["score"] == results["pope"]["parts"]["f1"]
    assert {p.name for p in (tmp_path / "board").iterdir()} == {
        "scoreboard.md", "scoreboard.json", "scoreboard.html", "chart.png",
    }  # fmt: skip
    copy = tmp_path / "tiny"
    shutil.copytree(out, copy)
    recorded = scoreboard([copy], "llava-1.5-7b-lora", record=["vqav2=79.0"])
    assert recorded["runs"][0]["cells"]["vqav2"]["verdict"] == "within the band"
    with pytest.raises(UserError, match="is no score such as"):
        scoreboard([copy], record=["vqav2"])


def test_what_is_wrong_is_said_before_a_model_is_read(root, tmp_path):
    with pytest.raises(UserError, match=r"No benchmark 'popo'\. Did you mean 'pope'"):
        benchmark("nowhere", ["popo"], root)
    with pytest.raises(UserError, match="No folder"):
        benchmark("nowhere", ["pope"], tmp_path / "none")
    with pytest.raises(UserError, match="pope"):
        benchmark("nowhere", ["pope"], tmp_path)


def test_a_trial_is_not_scored(base, root, tmp_path):
    found = benchmark(base, ["pope", "vqav2"], root, out=tmp_path / "o", limit=1, dtype="float32")
    assert found["pope"]["parts"] is None and found["vqav2"]["submission"] is None
    assert "not scored" in tell(found["pope"])
    assert (tmp_path / "o" / "pope-first-1" / "answers.jsonl").is_file()


def test_pictures_are_not_turned_by_their_exif(base, tmp_path):
    """The original opens them as they are stored."""
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[274] = 6  # a phone held upright
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "plain.png")
    loaded = load(base)
    turned, plain = (Question(1, ask("q", 1), (tmp_path / name,)) for name in ("turned.png", "plain.png"))
    assert not torch.equal(*(features_of(q, loaded.processing)["pixel_values"] for q in (turned, plain)))
    original = as_original(loaded).processing
    assert torch.equal(*(features_of(q, original)["pixel_values"] for q in (turned, plain)))
