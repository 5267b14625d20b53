"""Every kind of source becomes the same rows: JSON, JSONL, parquet, folders, saved data sets; large ones are kept."""

from __future__ import annotations

import json
import os

import datasets
import pytest
from PIL import Image

from qllava.data import rows
from qllava.data.rows import as_llava, from_columns, rows_of
from qllava.errors import UserError
from qllava.recipe.schema import Source

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dot."}]


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "dot.png"
    Image.new("RGB", (8, 8), "red").save(file)
    return file


def samples(path, **values):
    return [from_columns(row)[0] for row in rows_of(Source(path=str(path), **values))]


def talk_of(sample):
    return [(t.role, t.text, t.images) for t in sample.turns]


EXPECTED = [("user", "What is it?", 1), ("assistant", "A dot.", 0)]


def test_json_and_jsonl_are_the_same(tmp_path, picture):
    line = {"id": "a", "image": picture.name, "conversations": TALK}
    (tmp_path / "a.json").write_text(json.dumps([line, line]))
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}\n")
    first, second = samples(tmp_path / "a.json"), samples(tmp_path / "a.jsonl")
    assert first == second and len(first) == 2 and talk_of(first[0]) == EXPECTED and first[0].images == ("dot.png",)


def table(picture, **columns):
    """Two rows about the picture, which is stored in them."""
    made = datasets.Dataset.from_dict({"image": [{"bytes": picture.read_bytes(), "path": None}] * 2, **columns})
    return made.cast_column("image", datasets.Image())


MESSAGES = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dot."}]},
]


@pytest.mark.parametrize(
    "columns",
    [
        {"conversations": [TALK, TALK]},
        {"messages": [MESSAGES, MESSAGES]},
        {"question": ["What is it?"] * 2, "answer": ["A dot."] * 2},
    ],
    ids=["conversations", "messages", "question and answer"],
)
def test_parquet_carries_its_images(tmp_path, picture, columns):
    table(picture, **columns).to_parquet(tmp_path / "set.parquet")
    found = samples(tmp_path / "set.parquet")
    assert [talk_of(s) for s in found] == [EXPECTED] * 2
    assert found[0].images == (picture.read_bytes(),)


def test_a_folder_of_parquet_files(tmp_path, picture):
    (tmp_path / "set").mkdir()
    for i in range(2):
        table(picture, caption=["a dot"] * 2).to_parquet(tmp_path / "set" / f"{i}.parquet")
    found = samples(tmp_path / "set")
    assert len(found) == 4 and talk_of(found[3]) == [("user", "", 1), ("assistant", "a dot", 0)]


def test_a_saved_data_set(tmp_path, picture):
    table(picture, conversations=[TALK, TALK]).save_to_disk(tmp_path / "saved")
    assert [talk_of(s) for s in samples(tmp_path / "saved")] == [EXPECTED] * 2


def test_a_folder_of_images_with_their_metadata(tmp_path, picture):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture.rename(folder / picture.name)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "dot.png", "text": "a red dot"}) + "\n")
    (found,) = samples(folder)
    assert talk_of(found)[1] == ("assistant", "a red dot", 0) and len(found.images) == 1


def test_a_folder_of_nothing_known(tmp_path, picture):
    with pytest.raises(UserError, match=r"neither parquet files nor a metadata\.jsonl"):
        rows_of(Source(path=str(tmp_path)))


def test_a_malformed_row_is_a_row_with_its_reason(tmp_path):
    good = {"id": "g", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n{{broken\n{json.dumps({'id': 'x', 'conversations': []})}\n")
    found = rows_of(Source(path=str(tmp_path / "a.jsonl")))
    assert [bool(e) for e in found["error"]] == [False, True, True]
    assert "line 2 is not valid JSON" in found["error"][1] and "is missing or empty" in found["error"][2]
    assert list(found["id"])[::2] == ["g", "x"]


def test_large_files_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    talk = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": f"r{i}", "conversations": talk} for i in range(2500)]))
    first = rows_of(Source(path=str(path)))
    assert len(first) == 2500 and first["id"][2499] == "r2499" and first["words"][7] == -3
    monkeypatch.setattr(rows, "_rows", lambda *_: pytest.fail("read again"))
    assert rows_of(Source(path=str(path)))["id"][:] == first["id"][:]
    monkeypatch.undo()
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path.write_text(json.dumps([{"id": "new", "conversations": talk}]))
    os.utime(path, (1, 1))
    assert rows_of(Source(path=str(path)))["id"][:] == ["new"]


def test_a_large_file_that_is_no_json_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.json").write_text('[{"id": "x", "conversations": []}, {"broken')
    for _ in range(2):
        with pytest.raises(UserError, match="is not valid JSON"):
            rows_of(Source(path=str(tmp_path / "a.json")))
    assert not list((tmp_path / "cache").rglob("*.arrow")) and not list((tmp_path / "cache").rglob("*.partial"))


def test_the_originals_lengths_are_kept(tmp_path, picture):
    row = {"id": "a", "image": "dot.png", "conversations": TALK}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert rows_of(Source(path=str(tmp_path / "a.json")))["words"][:] == [6]  # `<image>` is one of them


def test_other_layouts_are_left_alone():
    assert as_llava([1]) == [1] and as_llava({"text": "no image"}) == {"text": "no image"}


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-8]], ids=["empty", "half", "end"]
)
def test_damaged_kept_rows_are_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    talk = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": f"r{i}", "conversations": talk} for i in range(2100)]))
    assert len(rows_of(Source(path=str(path)))) == 2100
    (kept,) = (tmp_path / "cache").rglob("*.arrow")
    kept.write_bytes(damage(kept.read_bytes()))
    assert len(rows_of(Source(path=str(path)))) == 2100


def test_columns_of_turns_are_turns():
    talk = {"from": ["human", "gpt"], "value": ["a", "b"]}
    assert as_llava({"conversations": talk})["conversations"] == [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
    ]


def test_a_placeholder_in_the_question_is_not_doubled():
    row = as_llava({"image": "0.png", "question": "<image>\nWhat?", "answer": "x"})
    assert row["conversations"][0]["value"] == "<image>\nWhat?"
    row = as_llava({"image": [], "images": ["0.png"], "question": "What?", "answer": "x"})
    assert row["conversations"][0]["value"] == "<image>\nWhat?"


def test_whole_paths_under_the_root_have_a_kind(tmp_path, picture):
    folder = tmp_path / "pictures" / "dots"
    folder.mkdir(parents=True)
    picture.rename(folder / picture.name)
    (folder.parent / "metadata.jsonl").write_text(json.dumps({"file_name": "dots/dot.png", "text": "a dot"}) + "\n")
    assert rows_of(Source(path=str(folder.parent)))["kind"][:] == ["dots"]
