"""LLaVA JSON to samples: what is taken, what is refused, and how it is said."""

from __future__ import annotations

import json

import pytest

from qllava.data.sample import Turn, parse, read_samples
from qllava.errors import UserError


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]


def test_image_goes_to_the_front_as_in_the_original():
    sample = parse({"id": 1, "image": "a.png", "conversations": talk("What is it?\n<image>", "A cat.")})
    assert sample.turns == (Turn("user", "What is it?", 1), Turn("assistant", "A cat."))
    assert (sample.id, sample.images) == ("1", ("a.png",))


def test_image_in_a_text_sample_is_text():
    assert parse({"conversations": talk("Say <image>", "ok")}).turns[0] == Turn("user", "Say <image>", 0)


def test_opening_answer_is_dropped():
    row = {"conversations": [{"from": "gpt", "value": "Hi"}, *talk("a", "b")]}
    assert [t.text for t in parse(row).turns] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("text", "is str, not an object"),
        ({"id": "x"}, "'conversations' is missing"),
        ({"conversations": []}, "'conversations' is missing or empty"),
        ({"conversations": ["a"]}, "turn 1: expected"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "turn 1: expected"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 1: expected"),
        ({"conversations": talk("a", "b")[:1] * 2}, "must alternate"),
        ({"image": "a.png", "conversations": talk("a", "b")}, "1 image.s. and 0 '<image>'"),
        ({"image": "a.png", "conversations": talk("<image><image>", "b")}, "1 image.s. and 2 '<image>'"),
        ({"image": ["a", "b"], "conversations": talk("<image>", "b")}, "2 image.s. and 1 '<image>'"),
        ({"image": "a.png", "conversations": talk("<image>", "<image>")}, "answer cannot hold"),
        ({"image": 7, "conversations": talk("<image>", "b")}, "'image' must be a path"),
        ({"image": "", "conversations": talk("<image>", "b")}, "'image' must be a path"),
        ({"image": "a", "images": ["b"], "conversations": talk("<image>", "b")}, "name different files"),
        ({"image": "a\0b", "conversations": talk("<image>", "b")}, "'image' must be a path"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "turn 1: expected"),
        ({"conversations": talk("\ud83d", "b")}, "half of a surrogate pair"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "has no human turn"),
    ],
)
def test_refused_with_the_reason(row, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(row, "row 9")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.json", "{", "is not valid JSON"),
        ("a.json", '{"id": 1}', "not a list of samples"),
        ("a.json", "[]", "holds no samples"),
        ("a.json", "[1]", "a.json, sample 1 is int"),
        ("a.jsonl", '{"conversations": 1}\n', "sample 1: 'conversations'"),
    ],
)
def test_files_that_are_no_llava_json(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        list(read_samples(tmp_path / name))


def test_images_count_where_image_is_null():
    assert parse({"image": None, "images": ["a.png"], "conversations": talk("<image>", "b")}).images == ("a.png",)
    assert parse({"image": [], "images": ["a.png"], "conversations": talk("<image>", "b")}).images == ("a.png",)


def test_jsonl_with_line_separators_inside_a_text(tmp_path):
    row = {"conversations": talk("a\u2028b\u0085c", "d")}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert next(read_samples(tmp_path / "a.jsonl")).turns[0].text == "a\u2028b\u0085c"


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No data file"):
        list(read_samples(tmp_path / "gone.json"))


def test_jsonl_and_byte_order_mark(tmp_path):
    row = {"id": "a", "conversations": talk("q", "a")}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n", encoding="utf-8-sig")
    assert len(list(read_samples(tmp_path / "a.jsonl"))) == 2
