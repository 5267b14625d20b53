"""OCR-VQA and TextCaps in their published layouts."""

from __future__ import annotations

import pytest
import sets_raw
from sets_raw import SHORT, built, put, row

from qllava.errors import UserError

CAPTION = "Provide a one-sentence caption for the provided image."


def test_ocrvqa_takes_its_training_split(tmp_path):
    sets_raw.ocrvqa(tmp_path / "raw")
    rows, told = built(tmp_path, set="ocrvqa", prompt=SHORT)
    assert rows == [
        row("0700000000", "ocr_vqa/images/0700000000.jpg", f"<image>\nWho wrote this book?\n{SHORT}", "An Author",
            "What is the title of this book?", "Book 0", "Is this a comedy?", "No"),
    ]  # fmt: skip
    assert told["left_out"] == {"covers of other splits than train": 1}
    assert [r["id"] for r in built(tmp_path, set="ocrvqa", split="test")[0]] == ["1780000000"]


def test_a_cap_draws_conversations_by_seed(tmp_path):
    sets_raw.ocrvqa(tmp_path / "raw", covers=40)
    fields = {"set": "ocrvqa", "prompt": SHORT, "cap": 10}
    first, told = built(tmp_path, **fields)
    assert len(first) == 10 and first == built(tmp_path, **fields)[0]
    assert [r["id"] for r in first] == sorted(r["id"] for r in first)
    assert first != built(tmp_path, seed=1, **fields)[0]
    assert told["left_out"]["conversations above the cap of 10"] == 30


def test_textcaps_one_caption_an_image_with_its_ocr(tmp_path):
    sets_raw.textcaps(tmp_path / "raw", captions=1)
    rows, _ = built(tmp_path, set="textcaps", prompt=CAPTION, per_image=1)
    assert rows == [
        row("011e7e629fb9ae7b", "textvqa/train_images/011e7e629fb9ae7b.jpg",
            f"<image>\n{CAPTION}\nReference OCR token: ZERO, Stop", "Caption 0 of 011e7e629fb9ae7b."),
        row("0054c91397f2fe05", "textvqa/train_images/0054c91397f2fe05.jpg",
            f"<image>\n{CAPTION}\nReference OCR token:", "Caption 0 of 0054c91397f2fe05."),
    ]  # fmt: skip


def test_textcaps_without_ocr_and_with_a_drawn_caption(tmp_path):
    sets_raw.textcaps(tmp_path / "raw", captions=5)
    (tmp_path / "raw/textcaps/TextVQA_Rosetta_OCR_v0.2_train.json").unlink()
    fields = {"set": "textcaps", "prompt": CAPTION, "per_image": 1, "files": {"ocr": None}}
    seen = set()
    for seed in range(8):
        rows, _ = built(tmp_path, seed=seed, **fields)
        assert [r["conversations"][0]["value"] for r in rows] == [f"<image>\n{CAPTION}"] * 2
        seen.add(rows[0]["conversations"][1]["value"])
    assert len(seen) > 2


def test_malformed_records(tmp_path):
    raw = tmp_path / "raw"
    put(
        raw,
        "ocrvqa/dataset.json",
        '{"1": {"split": 1,\n "questions": ["a?"], "answers": ["a"]},\n"2": {"split": 1,\n "questions": ["a?"], "answers": []}}',
    )
    with pytest.raises(UserError, match=r"dataset\.json, record 2 \(line 3\): 2 has 1 questions and 0 answers"):
        built(tmp_path, set="ocrvqa")
    sets_raw.textcaps(raw)
    put(
        raw,
        "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json",
        {"data": [{"image_id": "011e7e629fb9ae7b", "ocr_tokens": []}]},
    )
    with pytest.raises(UserError, match=r"record 3 \(line 1\): image 0054c91397f2fe05 is not in TextVQA_Rosetta"):
        built(tmp_path, set="textcaps", prompt=CAPTION)


def test_every_file_of_a_list_is_read(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.ocrvqa(raw)
    put(raw, "more.json", {"5": sets_raw.ocrvqa_record(1, ["a?"], ["b"])})
    rows, told = built(tmp_path, set="ocrvqa", files={"dataset": ["ocrvqa/dataset.json", "more.json"]})
    assert [r["id"] for r in rows] == ["0700000000", "5"] and told["records"] == 3
    put(raw, "more.json", {"5": {"split": 1}})
    with pytest.raises(UserError, match=r"more\.json, record 1 \(line 1\): has no 'questions'"):
        built(tmp_path, set="ocrvqa", files={"dataset": ["ocrvqa/dataset.json", "more.json"]})
