"""Samples about one image: found, and joined to conversations where that is asked for."""

from __future__ import annotations

import json

from datasets import Dataset

from qllava.data.pairing import image_keys, join_turns
from qllava.data.rows import FEATURES, from_columns, rows_of
from qllava.recipe.schema import Source


def pair(number, image, question="q", answer="a"):
    row = {"id": str(number), "conversations": [
        {"from": "human", "value": ("<image>\n" if image else "") + question}, {"from": "gpt", "value": answer},
    ]}  # fmt: skip
    return row | ({"image": image} if image else {})


def table(tmp_path, rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return rows_of(Source(path=str(path)))


def test_questions_about_one_image_become_turns_in_their_order(tmp_path):
    rows = [
        pair(0, "a.png", "one"),
        pair(1, None, "text"),
        pair(2, "b.png"),
        pair(3, "a.png", "two", "b"),
        pair(4, None, "text"),
    ]
    joined = join_turns(table(tmp_path, rows), "rows")
    samples = [from_columns(row)[0] for row in joined]
    assert [s.id for s in samples] == ["0", "1", "2", "4"]
    assert [(t.role, t.text, t.images) for t in samples[0].turns] == [
        ("user", "one", 1), ("assistant", "a", 0), ("user", "two", 0), ("assistant", "b", 0),
    ]  # fmt: skip
    # as the whole would be counted: '<image> one', 'a', 'two', 'b'
    assert joined[0]["words"] == 5 and joined[1]["words"] == -2


def test_a_set_of_conversations_stays_as_it_is(tmp_path):
    talk = pair(0, "a.png")
    talk["conversations"] += [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "no"}]
    rows = table(tmp_path, [talk, pair(1, "a.png"), pair(2, "a.png")])
    assert join_turns(rows, "rows") is rows


def test_keys_tell_images_and_roots_apart():
    def row(root, **image):
        empty = {"id": "", "where": "", "turns": [], "kind": "", "words": 1, "answered": True, "error": ""}
        return {**empty, "root": root, "images": [{"path": None, "bytes": None, **image}] if image else []}

    rows = [
        row("r", path="a"),
        row("r", path="a"),
        row("s", path="a"),
        row("r", bytes=b"1"),
        row("r", bytes=b"2"),
        row("r"),
    ]
    keys = image_keys(Dataset.from_list(rows, features=FEATURES))
    assert keys[0] == keys[1] and len(set(keys)) == 5 and keys[-1] is None
