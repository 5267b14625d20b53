"""Anyone's own CSV and JSONL as sources of a mix."""

from __future__ import annotations

import pytest
from sets_raw import SHORT, built, put, row

from qllava.errors import UserError


def test_a_csv_of_questions(tmp_path):
    put(
        tmp_path / "raw",
        "mine.csv",
        'image,question,answer\na.png,"What, here?",cat\nb.png,Two\nlines?,x\n,Text alone?,yes\na.png,Color?,red\n'.replace(
            "Two\nlines?", '"Two\nlines?"'
        ),
    )
    rows, told = built(tmp_path, set="csv", files={"rows": "mine.csv"}, images="photos", prompt=SHORT)
    assert rows == [
        row("a.png", "photos/a.png", f"<image>\nWhat, here?\n{SHORT}", "cat", "Color?", "red"),
        row("b.png", "photos/b.png", f"<image>\nTwo\nlines?\n{SHORT}", "x"),
        row("3", None, f"Text alone?\n{SHORT}", "yes"),
    ]
    assert told["records"] == 4


def test_a_jsonl_with_its_own_names(tmp_path):
    put(
        tmp_path / "raw",
        "mine.jsonl",
        '{"file": "a.png", "q": "One?", "a": "1", "no": 7}\n{"file": "a.png", "q": "Two?", "a": "2", "no": 7}\n',
    )
    fields = {
        "set": "jsonl",
        "files": {"rows": ["mine.jsonl"]},
        "columns": {"image": "file", "question": "q", "answer": "a", "id": "no"},
    }
    assert built(tmp_path, **fields)[0] == [row("7", "a.png", "<image>\nOne?", "1", "Two?", "2")]
    assert [len(r["conversations"]) for r in built(tmp_path, merge=False, **fields)[0]] == [2, 2]
    with pytest.raises(UserError, match=r"columns\.img: there are id, image, question, answer\. Did you mean 'image'"):
        built(tmp_path, set="jsonl", files={"rows": "mine.jsonl"}, columns={"img": "file"})


def test_malformed_rows(tmp_path):
    put(tmp_path / "raw", "mine.csv", 'image,question,answer\na.png,"Two\nlines?",x\nb.png,One?\n')
    with pytest.raises(UserError, match=r"mine\.csv, record 2 \(line 4\): has no 'answer'"):
        built(tmp_path, set="csv", files={"rows": "mine.csv"})
    put(tmp_path / "raw", "mine.csv", 'image,question,answer\na.png,"One?,x\n')
    with pytest.raises(UserError, match=r"mine\.csv, line \d is no CSV"):
        built(tmp_path, set="csv", files={"rows": "mine.csv"})
    put(tmp_path / "raw", "mine.jsonl", '{"image": "a", "question": "q?", "answer": "x"}\n\n["no"]\n')
    with pytest.raises(UserError, match=r"mine\.jsonl, record 2 \(line 3\): is list, not an object"):
        built(tmp_path, set="jsonl", files={"rows": "mine.jsonl"})


def test_text_alone_is_never_merged(tmp_path):
    raw = tmp_path / "raw"
    put(raw, "a.csv", "id,image,question,answer\n,,A1?,x\n,,A2?,x\n3,,A3?,x\n")
    put(raw, "b.csv", "id,image,question,answer\n,,B1?,x\n3,,B2?,x\n")
    rows, _ = built(tmp_path, set="csv", files={"rows": ["a.csv", "b.csv"]})
    asked = [[t["value"] for t in r["conversations"][::2]] for r in rows]
    assert asked == [["A1?"], ["A2?"], ["A3?"], ["B1?"], ["B2?"]]
    put(raw, "a.jsonl", '{"question": "A?", "answer": "x", "id": 2}\n{"question": "B?", "answer": "x"}')
    assert len(built(tmp_path, set="jsonl", files={"rows": "a.jsonl"})[0]) == 2


def test_an_images_pairs_are_merged_whatever_their_ids(tmp_path):
    put(
        tmp_path / "raw", "a.csv", "id,image,question,answer\n7,a.png,1?,x\n8,b.png,2?,x\n9,a.png,3?,y\n10,a.png,4?,z\n"
    )
    fields = {"set": "csv", "files": {"rows": "a.csv"}}
    assert built(tmp_path, **fields)[0] == [
        row("7", "a.png", "<image>\n1?", "x", "3?", "y", "4?", "z"),
        row("8", "b.png", "<image>\n2?", "x"),
    ]
    assert [len(r["conversations"]) for r in built(tmp_path, per_image=2, **fields)[0]] == [4, 2]
    assert [(r["id"], len(r["conversations"])) for r in built(tmp_path, segment=2, **fields)[0]] == [
        ("7", 4),
        ("7", 2),
        ("8", 2),
    ]
    assert [r["id"] for r in built(tmp_path, merge=False, **fields)[0]] == ["7", "8", "9", "10"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "image,question,answer,question\na,b,c,d\n", r"a\.csv, line 1: the header has 'question' twice"),
        ("a.csv", "image,question,answer\na,b,c\na,b,c,d\n", r"a\.csv, record 2 \(line 3\): has 4 fields under a header of 3"),
        ("a.jsonl", '{"id": [1], "question": "q", "answer": "a"}', r"record 1 \(line 1\): 'id' is '\[1\]', neither a text nor a whole number"),
        ("a.jsonl", '{"id": true, "question": "q", "answer": "a"}', "'id' is 'True', neither"),
        ("a.jsonl", '{"id": 1.5, "question": "q", "answer": "a"}', "'id' is '1.5', neither"),
        ("a.jsonl", '{"image": "../a.png", "question": "q", "answer": "a"}', r"record 1 \(line 1\): image '\.\./a\.png' leaves the image folder"),
        ("a.jsonl", '{"image": "/etc/a.png", "question": "q", "answer": "a"}', "image '/etc/a.png' leaves the image folder"),
        ("a.csv", "image,question,answer\na/../../b.png,b,c\n", r"record 1 \(line 2\): image 'a/\.\./\.\./b\.png' leaves"),
        ("a.csv", "image,question,answer\nC:\\b.png,b,c\n", r"record 1 \(line 2\): image .* leaves"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_meant(tmp_path, name, text, says):
    put(tmp_path / "raw", name, text)
    with pytest.raises(UserError, match=says):
        built(tmp_path, set=name[2:], files={"rows": name})


def test_names_that_stay_in_the_folder(tmp_path):
    put(tmp_path / "raw", "a.csv", "image,question,answer,,\na..b/c..png,b,c,,\n")
    assert built(tmp_path, set="csv", files={"rows": "a.csv"})[0] == [
        row("a..b/c..png", "a..b/c..png", "<image>\nb", "c")
    ]
