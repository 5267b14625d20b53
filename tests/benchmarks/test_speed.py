"""The benchmark against peers: its arithmetic, and a small race in which all learn the same."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import machine, table
from benchmarks.speed import command, contenders, figures, flops, race, sets
from benchmarks.speed.job import Job
from benchmarks.speed.shapes import SHAPES, Shape, make_base
from benchmarks.speed.worker import out_of_memory

SMALL = Shape(hidden=4, layers=2, heads=2, mlp=8, vocabulary=10, tower_hidden=3, tower_layers=2, tower_heads=1, edge=28)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("work")
    make_base("tiny", work)
    words = ["--shape", "tiny", "--dtype", "float32", "--steps", "2", "--contenders", "trl_no_gc", "qllava"]
    words += ["--threads", "1", "--work", str(work)]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.measure(parser.parse_args(words), ["speed", *words])


@pytest.mark.slow
def test_all_learn_the_same_from_the_same(result):
    trl, ours = result["contenders"]
    assert (trl["status"], ours["status"]) == ("ok", "ok"), (trl["error"], ours["error"])
    assert trl["losses"] == pytest.approx(ours["losses"], abs=1e-4)
    assert trl["per_step"]["supervised"] == ours["per_step"]["supervised"] == [4 * 60] * 2
    assert trl["per_step"]["tokens"] == ours["per_step"]["tokens"]
    assert trl["trainable"] == ours["trainable"]
    assert result["checks"]["same_supervised_tokens"] and result["checks"]["same_trainable"]


def test_figures_are_there_and_fit_each_other(result):
    json.dumps(result)
    assert result["matmul_flops"] > 0
    assert {"processor", "cores", "memory_gib"} <= set(result["machine"])
    for row in result["contenders"]:
        seconds, memory = row["seconds"], row["memory"]
        assert seconds["min"] <= seconds["median"] <= seconds["max"] and len(seconds["all"]) == 2
        assert row["samples_per_second"] == pytest.approx(4 / seconds["median"])
        assert memory["delta"] == memory["peak"] - memory["begin"] > 0
        assert 0 < row["data_wait_share"] < 1
        assert 0 < row["mfu"] == row["hfu"] < 1
    trl, ours = result["contenders"]
    assert trl["versus"]["qllava"]["time"] == pytest.approx(trl["seconds"]["median"] / ours["seconds"]["median"])
    assert ours["versus"]["qllava"] == {"time": 1.0, "memory": 1.0}


def test_a_result_is_written_as_json_and_markdown(result, tmp_path):
    table.save(result, "race", tmp_path)
    (tmp_path / "other.json").write_text("{}")
    before = (tmp_path / "race.md").read_text()
    assert table.rewrite(tmp_path) == ["race"]
    assert (tmp_path / "race.md").read_text() == before
    assert before.count("\n| `") == 2 and "Not raced: unsloth" in before


# -- arithmetic
def test_flops_by_hand():
    # two layers of q, k, v, o [4, 4] and gate, up, down [4, 8]
    assert flops.llm_weights(SMALL) == 2 * (4 * 16 + 3 * 32) == 320
    # rank 2: 2 (4 + 4) on each of four, 2 (4 + 8) on each of three
    assert flops.lora_weights(SMALL, 2) == 2 * (4 * 16 + 3 * 24) == 272
    assert flops.projector_weights(SMALL) == 3 * 4 + 4 * 4
    # 4 patches and the class token through one of the two layers: 12 weights a squared width, attention 4 width places²
    tower = 2 * (3 * 14 * 14) * 3 * 4 + 2 * (12 * 9) * 5 + 4 * 3 * 25
    assert flops.tower_forward(SMALL) == tower
    fed = {"tokens": 7, "supervised": 3, "images": 1, "pairs": 28}
    assert flops.step_flops(SMALL, 2, fed) == (
        7 * (4 * 320 + 6 * 272) + 28 * 12 * 4 * 2 + 3 * 4 * 10 * 4 + 6 * 28 * 4 + tower
    )
    assert flops.recomputed(SMALL, 2, fed, 0.5) == (7 * 2 * (320 + 272) + 28 * 4 * 4 * 2) / 2


def test_7b_has_the_weights_of_vicuna():
    shape = SHAPES["7b"]
    assert flops.llm_weights(shape) == 6_476_005_376  # 6,738,415,616 without embeddings, head and norms
    assert flops.lora_weights(shape, 128) == 319_815_680


def test_what_a_batch_holds_is_counted_padded_packed_and_shared():
    import torch

    from benchmarks.speed.stopwatch import counted

    ids, labels = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[-100, 5, 6, -100], [-100, -100, 5, 6]])
    padded = counted({"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])})
    assert {k: int(v) for k, v in padded.items()} == {
        "positions": 8, "tokens": 7, "supervised": 4, "images": 0, "pairs": 6 + 10,
    }  # fmt: skip
    packed = counted(
        {"input_ids": torch.zeros(1, 7), "labels": None, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]])}
    )
    assert (int(packed["tokens"]), int(packed["pairs"])) == (7, 6 + 10)
    # a prefix of two and two endings of one each: the second ending does not see the first
    shared = counted({"input_ids": torch.zeros(1, 4), "position_ids": torch.tensor([[0, 1, 2, 2]])})
    assert int(shared["pairs"]) == 1 + 2 + 3 + 3


def step(seconds: float, peak: int, warmup: bool = False) -> dict:
    fed = {"tokens": 100, "supervised": 10, "positions": 120, "images": 1, "pairs": 5050}
    return {"seconds": seconds, "waited": seconds / 4, "loss": 1.0, "peak": peak, "begin": 100, "warmup": warmup, **fed}


def seen(name: str, *times: float, peak: int = 300) -> race.Seen:
    ready = {"memory": 100, "memory_by": "VmHWM", "trainable": 5}
    return race.Seen(name, ready=ready, steps=[step(9.0, peak, warmup=True), *(step(t, peak) for t in times)])


def test_ratios_and_medians():
    rows = [
        figures.row(seen("trl", 4.0, 6.0, 5.0), contenders.find("trl"), SMALL, 2, 4, 1e6),
        figures.row(seen("qllava", 2.5, 2.0, 8.0, peak=150), contenders.find("qllava"), SMALL, 2, 4, 1e6),
    ]
    figures.add_ratios(rows)
    assert rows[0]["seconds"]["median"] == 5.0 and rows[1]["seconds"]["median"] == 2.5
    assert rows[0]["versus"] == {"qllava": {"time": 2.0, "memory": 4.0}}
    assert rows[0]["supervised_per_second"] == 2.0 and rows[0]["data_wait_share"] == 0.25
    need = flops.step_flops(SMALL, 2, step(1, 1))
    assert rows[0]["mfu"] == pytest.approx(need / 5 / 1e6)
    assert rows[0]["hfu"] == pytest.approx((need + flops.recomputed(SMALL, 2, step(1, 1), 1.0)) / 5 / 1e6)
    assert rows[1]["mfu"] == rows[1]["hfu"]


# -- failures
def test_memory_that_is_out_is_a_row(result):
    out = race.Seen("trl")
    out.fail({"oom": True, "error": "OutOfMemoryError: CUDA out of memory."})
    row = figures.row(out, contenders.find("trl"), SMALL, 2, 4, 1e6)
    rows = [row, result["contenders"][1]]
    figures.add_ratios(rows)
    assert row["status"] == "OOM" and "versus" not in row
    assert figures.checks(rows)["same_supervised_tokens"]
    text = table.markdown({**result, "contenders": rows}, "x")
    assert "| `trl` | OOM |" in text


def test_lack_of_memory_is_told_from_other_errors():
    assert out_of_memory(MemoryError())
    wrapped = RuntimeError("the run failed")
    wrapped.__cause__ = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert out_of_memory(wrapped)
    assert not out_of_memory(ValueError("no such file"))


def test_a_contender_that_fails_says_why(tmp_path):
    job = Job("x", "rate", dtype="nonsense")
    (row,) = race.by_steps([job], tmp_path, 0, 60, lambda text: None)
    assert row.status == "failed" and "nonsense" in row.error


# -- names and sets
def test_names_of_contenders():
    found = contenders.find("qllava:shared+gc")
    assert found.overrides == (*contenders.VARIANTS["shared"], "gradient_checkpointing=true")
    assert [contenders.find(n).checkpointed(8) for n in ("trl", "trl_no_gc", "hf", "qllava:gc")] == [1.0, 0.0, 0.0, 1.0]
    half = contenders.find("qllava:some", {"some": ["gradient_checkpointing=4"]})
    assert half.checkpointed(8) == 0.5
    with pytest.raises(ValueError, match="no contender 'qllava:fast'"):
        contenders.find("qllava:fast")


def test_sets_have_the_questions_and_pictures_they_promise(tmp_path):
    words = ["red", "green", "blue"]
    for name, pictures in (("one", 8), ("four", 2), ("eight", 1), ("mixed-half", 4)):
        path = sets.make_set(name, tmp_path / name, words, 8, 3)
        rows = json.loads(path.read_text())
        assert len(rows) == 8
        assert len(list((path.parent / "images").iterdir())) == pictures
        assert {len(r["conversations"][1]["value"].split()) for r in rows} == {sets.ANSWER}
    with pytest.raises(ValueError, match="groups of 4"):
        sets.make_set("four", tmp_path / "x", words, 6, 1)


def test_the_mix_is_that_of_the_published_set(tmp_path):
    assert sum(part.samples for part in sets.MIX) == 665_298
    assert sum(sets.shares(sets.MIX, 17)) == 17
    rows = json.loads(sets.make_set("mix665k", tmp_path, ["red"], 20, 5).read_text())
    assert sum("image" not in r for r in rows) == 6  # 40,688 of 665,298
    assert max(sum(len(t["value"].split()) for t in r["conversations"]) for r in rows) <= sets.LONGEST + 1


def test_the_machine_is_named():
    assert machine.machine()["cores"] >= 1 and "torch" in machine.versions()
