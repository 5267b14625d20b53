"""All benchmarks end to end, on small sets in their real layouts, with the embedded base."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sets_choice import make_mmbench, make_mmbench_cn, make_mme, make_pope, make_scienceqa, make_seed
from sets_judged import judge_server, make_llava_bench, make_mmvet
from sets_vqa import make_gqa, make_textvqa, make_vizwiz, make_vqav2

from qllava.api import assemble, benchmark, load, score, scoreboard
from qllava.cli import main, scores
from qllava.data.sample import ask
from qllava.errors import UserError
from qllava.evaluate.benchmarks import BENCHMARKS
from qllava.evaluate.benchmarks.base import questions_of
from qllava.evaluate.judge import Judge
from qllava.evaluate.metrics import METRICS
from qllava.evaluate.question import Question, features_of
from qllava.evaluate.results import tell
from qllava.evaluate.run import as_original

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


def test_what_is_present_is_asked(base, root, tmp_path, capsys):
    """VQAv2 has its questions here, and not the list that a submission answers in whole."""
    shutil.copytree(root / "vqav2", tmp_path / "vqav2", ignore=shutil.ignore_patterns("*test2015.jsonl"))
    shutil.copy(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", tmp_path / "vqav2")
    for name in ("pope", "textvqa"):
        (tmp_path / name).symlink_to(root / name)
    out = tmp_path / "out"
    found = benchmark(base, ["present"], tmp_path, out=out)
    assert list(found) == ["textvqa_ocr", "textvqa_noocr", "pope"]
    told = capsys.readouterr().err
    assert "Left out: GQA" in told and "Left out: VQAv2" in told and "Left out: POPE" not in told
    with pytest.raises(UserError, match=r"(?s)GQA.*MM-Vet"):
        benchmark(base, ["present"], tmp_path / "out")


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
    cell = recorded["runs"][0]["cells"]["vqav2"]
    assert cell["verdict"] == "a part of the set" and cell["score"] == 79.0
    with pytest.raises(UserError, match="is no score such as"):
        scoreboard([copy], record=["vqav2"])


def test_what_servers_and_judges_said_stays_with_the_same_answers(done, base, root, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(done[0], out)
    scoreboard([out], record=["vqav2=79.0"])
    with judge_server() as server:
        judged = score("mmvet", out / "mmvet" / "answers.jsonl", root, judge=server.judge())
    again = benchmark(base, ["vqav2", "mmvet"], root, out=out, dtype="float32")  # all is answered there
    assert again["vqav2"]["asked_now"] == 0 and again["vqav2"]["server_score"] == 79.0
    assert again["mmvet"]["parts"] == judged["parts"] and again["mmvet"]["judge"] == judged["judge"]
    other = out / "vqav2" / "other.jsonl"
    other.write_text((out / "vqav2" / "answers.jsonl").read_text().replace('"text": "', '"text": "x'))
    held = (out / "vqav2" / "result.json").read_bytes()
    with pytest.raises(UserError, match="is the result of other answers"):
        score("vqav2", other, root)
    assert (out / "vqav2" / "result.json").read_bytes() == held
    assert "server_score" not in score("vqav2", other, root, out=tmp_path / "other")
    same = score("vqav2", out / "vqav2" / "answers.jsonl", root, out=tmp_path / "." / "tiny" / "vqav2")
    assert same["weights"] == again["vqav2"]["weights"] and same["server_score"] == 79.0


def test_the_door_tells_verdicts_and_where_things_lie(done, root, tmp_path, capsys):
    out = tmp_path / "tiny"
    shutil.copytree(done[0], out)
    main_(["scoreboard", out, "--expect", "llava-1.5-7b-lora", "--record", "vqav2=79", "--out", tmp_path / "b"])
    told, err = capsys.readouterr()
    assert "VQAv2" in told and "a part of the set" in told and "waits for a judge" in told and "---" not in told
    assert "Written to" in err and "Recorded in" in err
    main_(["score", "vqav2", out / "vqav2" / "answers.jsonl", "--root", root])
    told, err = capsys.readouterr()
    assert "vqav2.json" in told and "a second" not in told and "score" not in err
    main_(["score", "pope", out / "pope" / "answers.jsonl", "--root", root])
    assert "f1" in capsys.readouterr().err


def main_(words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


def test_the_door_names_all_benchmarks():
    assert tuple(BENCHMARKS) == scores.BENCHMARKS and scores.UNITS.keys() == METRICS.keys()


def test_a_submission_that_cannot_be_written(base, root, tmp_path, monkeypatch):
    data = tmp_path / "eval"
    shutil.copytree(root, data)
    (data / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl").unlink()
    with pytest.raises(UserError, match=r"every question of test2015"):  # before anything is asked
        benchmark("nowhere", ["vqav2", "pope"], data)
    monkeypatch.setitem(BENCHMARKS, "vqav2", replace(BENCHMARKS["vqav2"], needs=None))  # as if found out only then
    with pytest.raises(UserError, match=r"VQAv2: .*test2015.* Its answers are kept in"):
        benchmark(base, ["vqav2", "pope"], data, out=tmp_path / "o", dtype="float32")
    assert (tmp_path / "o" / "pope" / "result.json").is_file() and (
        tmp_path / "o" / "vqav2" / "answers.jsonl"
    ).is_file()


def test_seed_without_its_videos_is_scored_and_not_submitted(base, root, tmp_path):
    data = tmp_path / "eval"
    shutil.copytree(root, data)
    file = data / "seed_bench" / "llava-seed-bench.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    found = benchmark(base, ["seed"], data, out=tmp_path / "o", dtype="float32")["seed"]
    assert found["parts"]["all"] >= 0 and found["submission"] is None
    assert any(note.startswith("No submission: ") for note in found["notes"])


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("llava_bench", "llava-bench-in-the-wild/questions.jsonl", '{"question_id": 1.5, "image": "001.jpg", "text": "q", "category": "conv"}', "1.5 is no question_id"),
        ("pope", "pope/llava_pope_test.jsonl", '{"question_id": true, "image": "a.jpg", "text": "q", "category": "random"}', ""),
        ("mmvet", "mm-vet/llava-mm-vet.jsonl", '{"question_id": 1, "image": 5, "text": "q"}', "MM-Vet"),
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", '{"question_id": "\\ud83d"}', "half of a surrogate pair"),
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", b"\xff\xfe", "not in UTF-8"),
        ("seed", "seed_bench/SEED-Bench.json", '{"question_type": {"a": [1]}, "questions": []}', "SEED-Bench"),
    ],
)  # fmt: skip
def test_damaged_evaluation_data_is_one_clear_error(root, tmp_path, name, file, text, message):
    data = tmp_path / "eval"
    shutil.copytree(root, data)
    (data / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        benchmark("nowhere", [name], data)


def test_what_is_wrong_is_said_before_a_model_is_read(root, tmp_path):
    with pytest.raises(UserError, match=r"No benchmark 'popo'\. Did you mean 'pope'"):
        benchmark("nowhere", ["popo"], root)
    with pytest.raises(UserError, match="No folder"):
        benchmark("nowhere", ["pope"], tmp_path / "none")
    with pytest.raises(UserError, match="pope"):
        benchmark("nowhere", ["pope"], tmp_path)
    with pytest.raises(UserError) as error:
        benchmark("nowhere", ["all"], tmp_path)
    assert all(b.title in str(error.value) for b in BENCHMARKS.values())
    assert "llava_gqa_testdev_balanced.jsonl" in str(error.value)
    with pytest.raises(UserError, match="No benchmark 'all'"):
        score("all", tmp_path / "a.jsonl", root)
    with pytest.raises(UserError, match="No folder"):
        score("pope", tmp_path / "a.jsonl", tmp_path / "none")


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


def test_pictures_may_be_links_and_scoring_needs_none(done, root, tmp_path):
    """Downloaded sets are made of links; who scores answers, ours or published ones, opens no picture."""
    data, store = tmp_path / "eval", tmp_path / "store"
    shutil.copytree(root, data)
    shutil.move(data / "pope" / "val2014", store)
    (data / "pope" / "val2014").mkdir()
    for file in store.iterdir():
        (data / "pope" / "val2014" / file.name).symlink_to(file)
    assert len(questions_of(BENCHMARKS["pope"], data)) == done[1]["pope"]["questions"]
    shutil.rmtree(store)
    with pytest.raises(UserError, match="No image at"):
        benchmark("nowhere", ["pope"], data)
    again = score("pope", done[0] / "pope" / "answers.jsonl", data, out=tmp_path / "again")
    assert again["parts"] == done[1]["pope"]["parts"]


def test_figures_are_kept_unrounded(root, tmp_path):
    """Printed with two decimals they are the original's; rounded twice they would not always be."""
    questions = BENCHMARKS["pope"].questions(root)
    rows = [{"question_id": q.id, "text": "yes", "prompt": q.shown} for q in questions]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score("pope", tmp_path / "a.jsonl", root)["parts"]
    assert found == BENCHMARKS["pope"].score(root, questions, ["yes"] * len(questions)).parts
    assert any(value != round(value, 4) for value in found.values())
