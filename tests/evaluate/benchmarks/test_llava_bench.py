"""LLaVA-Bench's questions, its judge's prompt and its score."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sets_judged import CAPTIONS, LLAVA_QUESTIONS, judge_server, make_llava_bench

from qllava.errors import RunError, UserError
from qllava.evaluate.answers import read_answers
from qllava.evaluate.benchmarks.llava_bench import LLAVA_BENCH, RULE, SYSTEM, judge_answers, parse

TEXTS = ["A square.", "It is red.", "It is not.", "Blue."]


@pytest.fixture
def served():
    with judge_server() as server:
        yield server


def test_questions(tmp_path):
    folder = make_llava_bench(tmp_path)
    asked = LLAVA_BENCH.questions(tmp_path)
    assert [(q.id, q.images[0].name, q.shown, q.group) for q in asked] == LLAVA_QUESTIONS
    assert all(q.turns[0].images == 1 and len(q.turns) == 1 for q in asked)
    assert LLAVA_BENCH.judged and LLAVA_BENCH.score is None and LLAVA_BENCH.max_new_tokens == 1024
    (folder / "images" / "002.jpg").unlink()
    with pytest.raises(UserError, match=r"No image at .*002\.jpg"):
        LLAVA_BENCH.questions(tmp_path)


def test_the_rule_is_the_originals():
    """Its SHA-256 is that of the three llava_bench_* prompts in LLaVA's rule.json."""
    digest = "2ce22b562d6008864970ea863ac8a4d385ea6f2e64ab1313a23f825202a9529d"
    assert hashlib.sha256(RULE.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("8 7\nBoth are good.", (8, 7)), ("8,7", (8, 7)), ("8.5 7.25", (8.5, 7.25)), ("0 10", (0, 10)), ("-1 -1", None),
        ("8, 7", None), ("8 7 ", None), (" 8 7", None), ("", None), ("8", None), ("8 of 10\n8 7", None), ("nan 7", None),
        ("Assistant 1", None), ("1 2 3", None), ("11 5", None), ("1e308 1e308", None),
    ],
)  # fmt: skip
def test_parse(text, pair):
    assert parse(text) == pair


def test_the_judge_is_asked_as_in_the_original(served, tmp_path):
    make_llava_bench(tmp_path)
    asked = LLAVA_BENCH.questions(tmp_path)
    score = judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")
    for number, (_, image, text, _) in enumerate(LLAVA_QUESTIONS):
        caption = CAPTIONS[image] if image == "001.jpg" else "A blue square.\nIt is not funny."
        assert served.prompts[number] == (
            f"[Context]\n{caption}\n\n[Question]\n{text}\n\n"
            f"[Assistant 1]\nReference {number}.\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{TEXTS[number]}\n\n[End of Assistant 2]\n\n[System]\n{RULE}\n\n"
        )
    assert all(b["messages"][0] == {"role": "system", "content": SYSTEM} for b in served.bodies)
    assert all(b["temperature"] == 0.2 and b["max_tokens"] == 1024 for b in served.bodies)
    assert score.parts == {"all": 75.0, "conv": 75.0, "detail": 75.0, "complex": 75.0, "parse failures": 0.0}
    assert score.questions == 4 and any("small-judge" in note for note in score.notes)


def test_a_review_that_cannot_be_parsed_is_counted_and_in_no_mean(served, tmp_path):
    make_llava_bench(tmp_path)
    said = iter(["9 8\nfine", "I would say 7 and 9.", "8 3", "7 7"])
    served.answer = lambda _: next(said)
    asked = LLAVA_BENCH.questions(tmp_path)
    score = judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")
    # means of 9, 8, 7 and of 8, 3, 7; conv's of 9, 7 and of 8, 7
    assert score.parts == {"all": 75.0, "conv": 93.8, "complex": 37.5, "parse failures": 1.0}
    assert any(note.startswith("1 of 4 reviews could not be parsed") for note in score.notes)
    assert judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl").parts == score.parts
    assert len(served.bodies) == 4


def test_a_judge_that_never_gives_scores(served, tmp_path):
    make_llava_bench(tmp_path)
    served.answer = lambda _: "I cannot."
    with pytest.raises(RunError, match=r"None of 4 reviews.*'I cannot.'"):
        judge_answers(tmp_path, LLAVA_BENCH.questions(tmp_path), TEXTS, served.judge(), tmp_path / "r.jsonl")


def test_submission_and_published_answers(served, tmp_path):
    folder = make_llava_bench(tmp_path)
    asked = LLAVA_BENCH.questions(tmp_path)
    file = LLAVA_BENCH.submit(tmp_path, asked, TEXTS, tmp_path / "out")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert rows[2]["prompt"] == "Why is it funny?" and len({r["answer_id"] for r in rows}) == 4
    assert read_answers(file, asked) == TEXTS
    published = read_answers(folder / "answers_gpt4.jsonl", asked)
    judge_answers(tmp_path, asked, published, served.judge(), tmp_path / "r.jsonl")
    assert "[Assistant 2]\nReference 3.\n" in served.prompts[3]


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("context.jsonl", {"image": "001.jpg", "caption": "x"}, "does not describe"),
        ("answers_gpt4.jsonl", {"question_id": 0, "text": "x"}, "no answer to question 1"),
        ("answers_gpt4.jsonl", {"question_id": 0}, "has no text"),
    ],
)
def test_what_the_judge_needs_is_missing(served, tmp_path, name, row, says):
    folder = make_llava_bench(tmp_path)
    asked = LLAVA_BENCH.questions(tmp_path)
    (folder / name).write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=says):
        judge_answers(tmp_path, asked, TEXTS, served.judge(), tmp_path / "r.jsonl")
    assert not served.bodies


def test_the_hubs_copy_asks_the_same(served, tmp_path):
    official, hub = tmp_path / "a", tmp_path / "b"
    folder = make_llava_bench(official)
    rows = [
        {"question_id": str(number), "question": text, "category": category, "gpt_answer": f"Reference {number}.",
         "image": {"bytes": (folder / "images" / image).read_bytes(), "path": image},
         "caption": "\n".join([CAPTIONS[image]] if image == "001.jpg" else CAPTIONS[image])}
        for number, image, text, category in LLAVA_QUESTIONS
    ]  # fmt: skip
    with pytest.raises(UserError, match="llava-bench-in-the-wild"):
        LLAVA_BENCH.questions(hub)
    (hub / "llava-bench-in-the-wild" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"neither questions\.jsonl nor the parquet"):
        LLAVA_BENCH.questions(hub)
    pq.write_table(
        pa.Table.from_pylist(rows), hub / "llava-bench-in-the-wild" / "data" / "train-00000-of-00001.parquet"
    )
    for root in (official, hub):
        judge_answers(root, LLAVA_BENCH.questions(root), TEXTS, served.judge(), root / "r.jsonl")
    assert served.prompts[:4] == served.prompts[4:]
    assert LLAVA_BENCH.questions(hub)[0].images[0] == (folder / "images" / "001.jpg").read_bytes()


def test_an_unknown_category(tmp_path):
    folder = make_llava_bench(tmp_path)
    row = {"question_id": 0, "image": "001.jpg", "text": "x", "category": "coding"}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1 has the category 'coding'"):
        LLAVA_BENCH.questions(tmp_path)
