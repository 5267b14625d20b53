"""TextVQA with OCR tokens and without: questions of both layouts, annotations found, and scores."""

from __future__ import annotations

import json

import pytest
from sets_vqa import SHORT, TEXTVQA_ANSWERS, make_textvqa, picture, put_parquet, textvqa_annotations

from qllava.errors import UserError
from qllava.evaluate.answers import keys
from qllava.evaluate.benchmarks.textvqa import ANNOTATIONS, QUESTIONS, TEXTVQA_NOOCR, TEXTVQA_OCR, question_in

IMAGES = ["003a8ae2ef43b901", "003a8ae2ef43b901", "b9dc400eb20bad64", "2b538a43dd933fc1"]


def test_with_ocr(tmp_path):
    make_textvqa(tmp_path)
    found = TEXTVQA_OCR.questions(tmp_path)
    assert [q.id for q in found] == IMAGES and len(set(keys(found))) == 4
    assert found[0].shown == (
        "What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL"
        "\nAnswer the question using a single word or phrase."
    )
    assert found[3].shown == "What does the sign say?\nReference OCR token: " + SHORT
    assert found[0].images == ((tmp_path / "textvqa/train_images/003a8ae2ef43b901.jpg").resolve(),)
    assert found[0].turns[0].images == 1
    assert [q.answer for q in found] == [tuple(a) for a in TEXTVQA_ANSWERS]


def test_without_ocr(tmp_path):
    make_textvqa(tmp_path)
    (tmp_path / QUESTIONS).unlink()
    found = TEXTVQA_NOOCR.questions(tmp_path)
    assert [q.id for q in found] == IMAGES
    assert found[1].shown == "Which word is on the left?" + SHORT
    assert found[2].images == ((tmp_path / "textvqa/train_images/b9dc400eb20bad64.jpg").resolve(),)
    assert [q.answer for q in found] == [tuple(a) for a in TEXTVQA_ANSWERS]
    assert not TEXTVQA_NOOCR.paper and TEXTVQA_OCR.paper["llava-1.5-7b"] == {"accuracy": 58.2}


@pytest.mark.parametrize("benchmark", [TEXTVQA_OCR, TEXTVQA_NOOCR], ids=lambda b: b.name)
def test_score(tmp_path, benchmark):
    """1 of 10 gives 0.3, 2 give 0.6, 6 (`10,000` is `10000`) and 10 give 1."""
    make_textvqa(tmp_path)
    found = benchmark.questions(tmp_path)
    score = benchmark.score(tmp_path, found, ["Clos Culombu", "The Dakota-Digital.", "10,000", "no idea"])
    assert score.questions == 4 and score.parts == pytest.approx({"accuracy": 100 * (0.3 + 0.6 + 1 + 0) / 4})


def test_hub_layout(tmp_path):
    tokens = (["DAKOTA", "DIGITAL"], ["A,B", "c"], ["10,000"], [])
    rows = [row | {"ocr_tokens": found} for row, found in zip(textvqa_annotations(), tokens, strict=True)]
    put_parquet(tmp_path / "textvqa/data/validation-00000-of-00001.parquet", rows)
    put_parquet(tmp_path / "textvqa/data/test-00000-of-00001.parquet", rows[:1])
    with_ocr, without = TEXTVQA_OCR.questions(tmp_path), TEXTVQA_NOOCR.questions(tmp_path)
    assert [q.id for q in with_ocr] == [q.id for q in without] == IMAGES
    assert with_ocr[1].shown == "Which word is on the left?\nReference OCR token: A,B, c" + SHORT
    assert with_ocr[3].shown == "What does the sign say?\nReference OCR token: " + SHORT
    assert without[1].shown == "Which word is on the left?" + SHORT
    assert with_ocr[2].images == (picture(2),) and with_ocr[2].answer == tuple(TEXTVQA_ANSWERS[2])


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What Is it?\nReference OCR token: a, b" + SHORT, "what is it?"),
        ("Reference OCR token: a\nWhat is it?" + SHORT, "what is it?"),
        ("What is it?" + SHORT, "what is it?"),
        ("OCR tokens: a, b. Question: What is it? Short answer:", "what is it?"),
        ("OCR tokens: a, b.", None),
        ("What is it?", None),
        ("What is it?\nOCR: a" + SHORT, None),
    ],
)
def test_the_question_in_a_prompt(prompt, question):
    assert question_in(prompt) == question


def change(root, file, old, new):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


def test_missing_annotations(tmp_path):
    make_textvqa(tmp_path)
    change(tmp_path, ANNOTATIONS, "what number is shown?", "what else?")
    with pytest.raises(UserError, match=r"val.json has no 'what number is shown\?' about image 'b9dc400eb20bad64'"):
        TEXTVQA_OCR.questions(tmp_path)
    (tmp_path / ANNOTATIONS).unlink()
    with pytest.raises(UserError, match=r"No file .*TextVQA_0\.5\.1_val\.json"):
        TEXTVQA_OCR.questions(tmp_path)
    with pytest.raises(UserError, match=r"neither textvqa/TextVQA_0.5.1_val.json nor parquet"):
        TEXTVQA_NOOCR.questions(tmp_path)


def test_malformed_data(tmp_path):
    make_textvqa(tmp_path)
    change(tmp_path, QUESTIONS, "What number is shown?\\nReference OCR token: ", "What number is shown? ")
    with pytest.raises(UserError, match=r"has no 'what number is shown\? 10,000'"):
        TEXTVQA_OCR.questions(tmp_path)
    change(tmp_path, QUESTIONS, "What number is shown? 10,000\\n", "What number is shown? ")
    with pytest.raises(UserError, match="question 'b9dc400eb20bad64' has no prompt of a known form"):
        TEXTVQA_OCR.questions(tmp_path)
    rows = textvqa_annotations()
    rows[1]["answers"] = ["x"] * 9
    (tmp_path / ANNOTATIONS).write_text(json.dumps({"data": rows}))
    with pytest.raises(UserError, match=r"val.json, data\[1\] needs 10 answers"):
        TEXTVQA_NOOCR.questions(tmp_path)
    (tmp_path / ANNOTATIONS).write_text("[]")
    with pytest.raises(UserError, match="no list of annotations under 'data'"):
        TEXTVQA_NOOCR.questions(tmp_path)


def test_missing_image(tmp_path):
    make_textvqa(tmp_path)
    (tmp_path / "textvqa/train_images/2b538a43dd933fc1.jpg").unlink()
    with pytest.raises(UserError, match=r"ocr.jsonl, line 4: No image"):
        TEXTVQA_OCR.questions(tmp_path)
    with pytest.raises(UserError, match=r"val.json, data\[3\]: No image"):
        TEXTVQA_NOOCR.questions(tmp_path)
