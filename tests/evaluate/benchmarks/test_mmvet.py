"""MM-Vet's questions, its judge's prompt and its scores."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sets_judged import MMVET_QUESTIONS, judge_server, make_mmvet

from qllava.errors import RunError, UserError
from qllava.evaluate.benchmarks.llava_bench import LLAVA_BENCH
from qllava.evaluate.benchmarks.mmvet import MMVET, PROMPT, judge_answers, parse, read_results
from qllava.evaluate.benchmarks.paper import MODELS

TEXTS = ["x = 3", "Ann", "Vermeer did", "red"]


@pytest.fixture
def served():
    with judge_server() as server:
        yield server


def test_questions(tmp_path):
    folder = make_mmvet(tmp_path)
    asked = MMVET.questions(tmp_path)
    assert [(q.id, q.images[0].name, q.shown) for q in asked] == [
        (n, f"v1_{n}.png", text) for n, (text, _, _) in enumerate(MMVET_QUESTIONS)
    ]
    assert MMVET.judged and MMVET.score is None and MMVET.max_new_tokens == 1024
    (folder / "images" / "v1_2.png").unlink()
    with pytest.raises(UserError, match=r"No image at .*v1_2\.png"):
        MMVET.questions(tmp_path)
    with pytest.raises(UserError, match="none of: mm-vet, mmvet"):
        MMVET.questions(tmp_path / "elsewhere")


def test_the_folder_of_llavas_docs(served, tmp_path):
    """They unpack the zip, which has a folder of its own, into `mmvet`; their script reads `mm-vet`."""
    folder = make_mmvet(tmp_path)
    (tmp_path / "mmvet" / "mm-vet").mkdir(parents=True)
    for name in ("images", "mm-vet.json"):
        (folder / name).rename(tmp_path / "mmvet" / "mm-vet" / name)
    asked = MMVET.questions(tmp_path)
    assert judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl").parts["all"] == 50.0
    (folder / "llava-mm-vet.jsonl").rename(tmp_path / "mmvet" / "llava-mm-vet.jsonl")
    folder.rmdir()
    assert MMVET.questions(tmp_path) == asked


def test_the_prompt_is_the_official_graders():
    """Its SHA-256 is that of the prompt in mm-vet_evaluator.py."""
    digest = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
    assert hashlib.sha256(PROMPT.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5), (" 1.0\nIt is right.", 1.0), ("0", 0.0), ("0.3 because", 0.3), ("", None), ("1.5", None),
        ("-0.1", None), ("nan", None), ("Score: 0.5", None), ("0.5.", None),
    ],
)  # fmt: skip
def test_parse(text, value):
    assert parse(text) == value


def test_the_judge_is_asked_as_by_the_official_grader(served, tmp_path):
    make_mmvet(tmp_path)
    judge_answers(tmp_path, MMVET.questions(tmp_path), TEXTS, served.judge(), tmp_path / "r.jsonl")
    assert served.prompts[0] == PROMPT + "\nWhat is x in the equation? | -1 <AND> -5 | x = 3 | "
    assert served.prompts[1] == PROMPT + "\nWhat is the name? | Ann <OR> Anna | Ann | "
    assert all(b["temperature"] == 0.0 and len(b["messages"]) == 1 for b in served.bodies)


def test_scores_by_capability_and_combination(served, tmp_path):
    make_mmvet(tmp_path)
    said = iter(["0.5", "1.0", "0.0", "green is right"])
    served.answer = lambda _: next(said)
    asked = MMVET.questions(tmp_path)
    score = judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")
    assert score.parts == {
        "all": 50.0, "rec": 0.0, "ocr": 75.0, "know": 0.0, "math": 50.0,
        "ocr+math": 50.0, "only ocr": 100.0, "rec+know": 0.0, "parse failures": 1.0,
    }  # fmt: skip
    assert any(note.startswith("1 of 4 reviews could not be parsed") for note in score.notes)
    assert judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl").parts == score.parts
    assert len(served.bodies) == 4


def test_a_judge_that_never_gives_scores(served, tmp_path):
    make_mmvet(tmp_path)
    served.answer = lambda _: "I cannot."
    with pytest.raises(RunError, match=r"None of 4 reviews.*'I cannot.'"):
        judge_answers(tmp_path, MMVET.questions(tmp_path), TEXTS, served.judge(), tmp_path / "r.jsonl")


def test_submission_is_the_official_form_and_published_ones_are_read(tmp_path):
    make_mmvet(tmp_path)
    asked = MMVET.questions(tmp_path)
    file = MMVET.submit(tmp_path, asked, TEXTS, tmp_path / "out")
    assert file.read_text().startswith('{\n  "v1_0": "x = 3",\n  "v1_1": "Ann",\n')
    assert read_results(file, asked) == TEXTS
    file.write_text(json.dumps({"v1_0": "x", "v1_2": "y"}))
    with pytest.raises(UserError, match="lacks 2 of 4 answers; the first is 'v1_1'"):
        read_results(file, asked)
    file.write_text("[1]")
    with pytest.raises(UserError, match="not in MM-Vet's form"):
        read_results(file, asked)


def test_ground_truth_is_missing(served, tmp_path):
    folder = make_mmvet(tmp_path)
    asked = MMVET.questions(tmp_path)
    for text, says in (("[]", "is not MM-Vet's"), ("{}", "no ground truth for question 0")):
        (folder / "mm-vet.json").write_text(text)
        with pytest.raises(UserError, match=says):
            judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")
    (folder / "mm-vet.json").unlink()
    with pytest.raises(UserError, match=r"none of: mm-vet/mm-vet\.json"):
        judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")


def test_the_hubs_copy_asks_the_same(served, tmp_path):
    official, hub = tmp_path / "a", tmp_path / "b"
    folder = make_mmvet(official)
    rows = [
        {"question_id": f"v1_{n}", "question": question, "answer": answer, "capability": ",".join(capability),
         "image": {"bytes": (folder / "images" / f"v1_{n}.png").read_bytes(), "path": f"v1_{n}.png"}}
        for n, (question, answer, capability) in enumerate(MMVET_QUESTIONS)
    ]  # fmt: skip
    (hub / "mm-vet" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), hub / "mm-vet" / "data" / "test-00000-of-00001.parquet")
    scores = [
        judge_answers(root, MMVET.questions(root), TEXTS, served.judge(), root / "r.jsonl").parts
        for root in (official, hub)
    ]
    assert served.prompts[:4] == served.prompts[4:] and scores[0] == scores[1]
    assert [q.id for q in MMVET.questions(hub)] == [0, 1, 2, 3]


def test_published_figures_are_the_papers():
    for benchmark, ours in ((LLAVA_BENCH, 65.4), (MMVET, 31.1)):
        assert set(benchmark.paper) <= set(MODELS) and benchmark.paper["llava-1.5-7b"] == {"all": ours}
