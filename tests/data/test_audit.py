"""`qllava check`'s eyes: every image decoded once, every sample encoded, likely mistakes named."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from qllava.data import audit as module
from qllava.data import cores
from qllava.data.audit import audit, short_answers
from qllava.data.cores import spread
from qllava.data.report import lines, summary
from qllava.data.rows import rows_of
from qllava.data.sample import parse
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Source


@pytest.fixture(scope="module")
def processing():
    return load_processing(Parts(vision_tower="embedded", llm="embedded"), "vicuna_v1", "pad")


def table(path, root="images"):
    return rows_of(Source(path=str(path), image_root=root))


def test_everything_is_counted(scenes, processing):
    found = audit(table(scenes), processing, 2048)
    rows = [processing.tokens(parse(r), 2048) for r in json.loads(scenes.read_text())]
    assert (found.samples, found.images, found.text_only, found.bad) == (16, 14, 2, {})
    assert found.supervised == sum(r.supervised for r in rows)
    assert found.tokens == sum(len(r.ids) + 63 * r.ids.count(-200) for r in rows)  # an image takes 64 positions
    assert sum(found.lengths.values()) == 16 and found.truncated == 0 and found.longest > 64


def test_several_processes_find_the_same(scenes, processing, monkeypatch):
    (scenes.parent / "images" / "5.png").write_text("no image")
    alone = audit(table(scenes), processing, 2048, processes=1)
    monkeypatch.setattr(cores, "FEW", 0)
    monkeypatch.setattr(cores, "CHUNK", 3)
    together = audit(table(scenes), processing, 2048, processes=2)
    assert list(together.bad) == [5] and "5.png is not an image" in together.bad[5]
    assert {k: v for k, v in vars(together).items() if k != "seconds"} == {
        k: v for k, v in vars(alone).items() if k != "seconds"
    }


def test_spread_covers_everything_in_order(monkeypatch):
    monkeypatch.setattr(cores, "FEW", 0)
    assert [i for part in spread(list, 1000, 2) for i in part] == list(range(1000))


def test_an_image_is_decoded_once(scenes, processing, monkeypatch):
    rows = json.loads(scenes.read_text())
    for row in rows[:14]:
        row["image"] = "0.png"
    scenes.write_text(json.dumps(rows))
    seen = []
    monkeypatch.setattr(module, "check_image", lambda ref, *_: seen.append(ref))
    audit(table(scenes), processing, 2048)
    assert seen == ["0.png"]


def test_cuts_are_seen_before_they_happen(scenes, processing):
    first = processing.tokens(parse(json.loads(scenes.read_text())[0]), None)
    limit = len(first.ids) + 63 - first.supervised  # up to where the first answer begins
    found = audit(table(scenes), processing, limit)
    lost = [r for r in found.bad.values() if f"max_length {limit} leaves nothing of its answer" in r]
    assert lost and "(id 's0')" in lost[0] and found.longest <= limit
    assert len(lost) + sum(found.lengths.values()) == 16
    assert audit(table(scenes), processing, limit + 2).truncated == 7  # the samples with two questions


def test_duplicate_ids_and_unknown_sources(tmp_path, scenes, processing):
    rows = json.loads(scenes.read_text())
    rows[1]["id"] = rows[2]["id"] = rows[0]["id"]
    rows[3]["image"] = "ocr_vqa/3.png"
    scenes.write_text(json.dumps(rows))
    found = audit(table(scenes), processing, 2048)
    assert found.duplicates == ["s0"] and found.unknown == ["ocr_vqa"]
    assert list(found.bad) == [3] and found.kinds == {"image": 13, "text": 2}
    report = summary({"x.json": found}, [], [15], 2048)
    assert any("unknown source 'ocr_vqa'" in w for w in report["warnings"])
    assert any("1 id stands more than once: 's0'" in w for w in report["warnings"])


@pytest.mark.parametrize(
    ("question", "answer", "image", "expected"),
    [
        ("What color?\nAnswer the question using a single word or phrase.", "red", True, (True, True)),
        ("What color?", "red", True, (True, False)),
        ("What color?", "The car in front is red.", True, (False, False)),
        ("What color?", "red", False, (False, False)),
        ("A. cat\nB. dog\nAnswer with the option's letter from the given choices directly.", "B", True, (True, True)),
        ("Provide a short description for this region. [0.1, 0.2]", "a dog", True, (True, True)),
    ],
)
def test_short_answers_want_a_format_prompt(question, answer, image, expected):
    value = "<image>\n" * image + question
    row = {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]}
    assert short_answers(parse(row | ({"image": "x.png"} if image else {}))) == expected


def test_the_linter_reaches_the_report(scenes, processing):
    rows = json.loads(scenes.read_text())
    for row in rows[:3]:
        row["conversations"][0]["value"] = "<image>\nWhich color?"
    scenes.write_text(json.dumps(rows))
    found = audit(table(scenes), processing, 2048)
    assert found.unprompted == ["s0", "s1", "s2"] and found.short == 14
    report = summary({"x.json": found}, [], [16], 2048)
    assert report["short_answers_without_format_prompt"] == 3
    assert "3 samples have short answers only" in report["warnings"][0]
    text = "\n".join(lines(report))
    assert "16 samples, 16 usable" in text and "Warning: x.json: 3 samples" in text


def test_a_truncated_jpeg_is_found_at_an_eighth_of_its_size(tmp_path, processing):
    (tmp_path / "images").mkdir()
    Image.effect_noise((256, 256), 90).convert("RGB").save(tmp_path / "images" / "a.jpg")
    whole = (tmp_path / "images" / "a.jpg").read_bytes()
    (tmp_path / "images" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    rows = [{"id": n, "image": f"{n}.jpg", "conversations": talk} for n in "ab"]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    found = audit(table(tmp_path / "d.json"), processing, 2048)
    assert list(found.bad) == [1] and "b.jpg cannot be decoded" in found.bad[1]


def test_a_misspelt_image_field_is_noticed(scenes, processing):
    rows = json.loads(scenes.read_text())
    for row in rows[:2]:
        row["img"] = row.pop("image")
    scenes.write_text(json.dumps(rows))
    found = audit(table(scenes), processing, 2048)
    assert found.blind == ["s0", "s1"] and found.bad == {}
    (warning,) = summary({"x.json": found}, [], [16], 2048)["warnings"]
    assert "2 samples have '<image>' in their text and no image" in warning and "under 'image'" in warning
