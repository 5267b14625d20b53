"""RefCOCO, RefCOCO+, RefCOCOg and Visual Genome in their published layouts, and pickles that may hold plain values alone."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import sets_raw
from sets_raw import REFCOCO, built, put

from qllava.data.sources import plain_pickle
from qllava.errors import UserError

DESCRIBE, LOCATE = REFCOCO["prompt"]
# 640 × 480 padded to 640 × 640: 80 above. [64, 0, 128, 240] is 64…192 of 640 across and 80…320 down.
BLUE = "[0.1, 0.12, 0.3, 0.5]"
# [320.5, 120, 400, 400] ends at the border: 320.5…640 across, 200…560 down.
HAT = "[0.5, 0.31, 1.0, 0.88]"
EITHER = {
    frozenset({(DESCRIBE.replace("{region}", BLUE), "The lady in blue."), (LOCATE.replace("{region}", "the lady in blue"), BLUE)}),
    frozenset({(DESCRIBE.replace("{region}", BLUE), "Lady."), (LOCATE.replace("{region}", "lady"), BLUE)}),
    frozenset({(DESCRIBE.replace("{region}", HAT), "A man with a hat."), (LOCATE.replace("{region}", "a man with a hat"), HAT)}),
}  # fmt: skip


def pairs_of(row):
    texts = [t["value"].removeprefix("<image>\n") for t in row["conversations"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_refcocos_expressions_of_an_image_together(tmp_path):
    sets_raw.refcoco(tmp_path / "raw")
    seen = set()
    for seed in range(12):
        (row,), told = built(tmp_path, seed=seed, segment=9, **REFCOCO)
        assert (row["id"], row["image"]) == ("000000581857", "coco/train2017/000000581857.jpg")
        assert row["conversations"][0]["value"].startswith("<image>\nPlease")
        pairs = pairs_of(row)
        assert len(pairs) == 3 and all(len(one & set(pairs)) == 1 for one in EITHER)
        seen.add(tuple(pairs))
    assert len(seen) > 4  # both ways, in any order
    assert told["left_out"] == {"objects of other splits than train": 1} and told["records"] == 3


def test_refcoco_in_segments_from_json_and_another_split(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.refcoco(raw)
    rows, _ = built(tmp_path, segment=2, **REFCOCO)
    assert [len(pairs_of(r)) for r in rows] == [2, 1]
    refs = pickle.loads((raw / "refcoco/refs(unc).p").read_bytes())
    put(raw, "refs.json", refs)
    files = {"refs": "refs.json", "instances": "refcoco/instances.json"}
    rows, _ = built(tmp_path, **{**REFCOCO, "files": files, "split": "testA"})
    assert [r["id"] for r in rows] == ["000000098304"] and pairs_of(rows[0])[0] in {
        (DESCRIBE.replace("{region}", "[0.0, 0.0, 0.01, 0.01]"), "X."), (LOCATE.replace("{region}", "x"), "[0.0, 0.0, 0.01, 0.01]"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda refs: refs[1].pop("split"), r"refs\(unc\)\.p, record 2: has no 'split'"),
        (lambda refs: refs[0].update(ann_id=5), r"record 1: image 581857 or annotation 5 is not in .*instances\.json"),
        (lambda refs: refs[0]["sentences"].append(3), r"record 1: is int, not an object with 'sent'"),
        (
            lambda refs: refs.append(os.system),
            r"refs\(unc\)\.p cannot be read as a pickle of plain values: it names \w+\.system",
        ),
    ],
)
def test_malformed_references(tmp_path, change, says):
    sets_raw.refcoco(tmp_path / "raw")
    path = tmp_path / "raw/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(UserError, match=says):
        built(tmp_path, **REFCOCO)


def test_malformed_instances(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.refcoco(raw)
    text = (
        (raw / "refcoco/instances.json")
        .read_text()
        .replace('"bbox"', '\n"bbox"')
        .replace("[320.5, 120, 400, 400]", "[1, 2, 3]")
    )
    put(raw, "refcoco/instances.json", text)
    with pytest.raises(UserError, match=r"instances\.json, record 3 \(line 3\): 'bbox' holds 3 numbers"):
        built(tmp_path, **REFCOCO)
    with pytest.raises(UserError, match="2 refs and 1 instances"):
        built(tmp_path, **{**REFCOCO, "files": {**REFCOCO["files"], "instances": "refcoco/instances.json"}})


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate((Runs(), [{"a": Runs()}], {"x": pickle.PickleBuffer}, pytest)):
        path = tmp_path / f"{number}.p"
        try:
            path.write_bytes(pickle.dumps(value))
        except TypeError:  # a module cannot be written
            continue
        with pytest.raises(UserError, match="only plain values are read"):
            plain_pickle.load(path)
    assert not (tmp_path / "made-by-a-pickle").exists()
    path.write_bytes(b"(dp0\nS'a'\np1\nI1\n")
    with pytest.raises(UserError, match="cannot be read"):
        plain_pickle.load(path)


def test_python_2_wrote_it(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'split'\np4\nVtrain\np5\nsS'n'\nL5L\nsa.")
    assert plain_pickle.load(path) == [{"sent": "café", "split": "train", "n": 5}]


VG = {"set": "visual_genome", "prompt": [DESCRIBE, LOCATE]}


def test_visual_genome_ten_regions_an_image(tmp_path):
    sets_raw.visual_genome(tmp_path / "raw", regions=25)
    rows, told = built(tmp_path, per_image=10, **VG)
    assert [(r["id"], r["image"], len(pairs_of(r))) for r in rows] == [
        ("1", "vg/VG_100K_2/1.jpg", 10),
        ("2", "vg/VG_100K/2.jpg", 1),
    ]
    # 100 × 200 padded to 200 × 200: 50 at the left. x 8, width 40 is 58…98 of 200.
    assert pairs_of(rows[1])[0] in {
        (DESCRIBE.replace("{region}", "[0.29, 0.0, 0.49, 0.25]"), "Phrase 8."), (LOCATE.replace("{region}", "phrase 8"), "[0.29, 0.0, 0.49, 0.25]"),
    }  # fmt: skip
    assert told["left_out"] == {"records without a question": 1, "pairs above 10 an image": 15}
    phrases = {tuple(sorted(json.dumps(p).lower().split("phrase ")[1][:2] for p in pairs_of(built(tmp_path, seed=s, per_image=10, **VG)[0][0]))) for s in range(4)}  # fmt: skip
    assert len(phrases) > 1  # other seeds draw other regions


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("region_descriptions", '"x": 1', '"y": 1', "record 1 (line 1): has no 'x'"),
        (
            "region_descriptions",
            '"x": 1',
            '"x": "1"',
            "record 1 (line 1): x, y, width, height: ['1', 0, 40, 50] is no box",
        ),
        ("region_descriptions", '"id": 2', '"id": 9', "record 2 (line 1): image 9 is not in image_data.json"),
        ("image_data", '"height": 200', '"height": 0', "record 1 (line 1): an image of 100 × 0 pixels"),
        (
            "image_data",
            "https://x.y/u/VG_100K_2/1.jpg",
            "1.jpg",
            "record 1 (line 1): 'url' is '1.jpg', which names no folder",
        ),
    ],
)
def test_malformed_visual_genome(tmp_path, name, old, new, says):
    sets_raw.visual_genome(tmp_path / "raw")
    path = tmp_path / f"raw/vg/{name}.json"
    put(tmp_path, f"raw/vg/{name}.json", path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as error:
        built(tmp_path, **VG)
    assert says in str(error.value)


def test_prompts_of_regions_are_two(tmp_path):
    sets_raw.visual_genome(tmp_path / "raw")
    for prompt in (None, "one {region}", ["a", "b {region}"]):
        with pytest.raises(UserError, match="is a list of two"):
            built(tmp_path, set="visual_genome", prompt=prompt)


@pytest.mark.parametrize(
    "box", ["NaN, 0, 9, 9", "0, 0, Infinity, 9", "0, 0, -1, 9", "0, 0, 9, -0.5", "0, 1" + "0" * 400 + ", 9, 9"]
)
def test_boxes_that_are_none(tmp_path, box):
    raw = tmp_path / "raw"
    sets_raw.refcoco(raw)
    text = (raw / "refcoco/instances.json").read_text().replace("320.5, 120, 400, 400", box)
    put(raw, "refcoco/instances.json", text)
    with pytest.raises(UserError, match=r"instances\.json, record 3 \(line 1\): bbox: .* is no box"):
        built(tmp_path, **REFCOCO)
    sets_raw.visual_genome(raw)
    x, y, width, height = box.split(", ")
    region = f'"width": {width}, "height": {height}, "image_id": 2, "phrase": "p", "y": {y}, "x": {x}'
    put(raw, "vg/region_descriptions.json", f'[{{"regions": [{{{region}}}], "id": 2}}]')
    with pytest.raises(
        UserError, match=r"region_descriptions\.json, record 1 \(line 1\): x, y, width, height: .* is no box"
    ):
        built(tmp_path, **VG)


def test_an_image_of_a_size_that_none_has(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.visual_genome(raw)
    path = raw / "vg/image_data.json"
    put(raw, "vg/image_data.json", path.read_text().replace('"width": 100', '"width": 1' + "0" * 400, 1))
    with pytest.raises(UserError, match=r"image_data\.json, record 1 \(line 1\): an image of 10+ × 200 pixels"):
        built(tmp_path, **VG)


def test_regions_outside_their_image_and_phrases_without_a_word_are_left_out(tmp_path):
    raw = tmp_path / "raw"
    regions = [
        {"x": x, "y": y, "width": w, "height": h, "image_id": 1, "phrase": p}
        for x, y, w, h, p in (
            (100, 0, 5, 5, "right"), (0, 200, 5, 5, "below"), (-9, 0, 9, 5, "left"), (0, -9, 5, 8.5, "above"), (1, 1, 5, 5, "."),
            (1, 1, 5, 5, " ... "), (-9, -9, 10, 10, "corner"), (99, 199, 50, 50, "other corner"), (0, 0, 0, 0, "point"),
        )
    ]  # fmt: skip
    sets_raw.visual_genome(raw)
    put(raw, "vg/region_descriptions.json", [{"regions": regions, "id": 1}])
    (row,), told = built(tmp_path, **VG)
    assert len(pairs_of(row)) == 3 and all(
        any(w in f"{q}{a}".lower() for w in ("corner", "other corner", "point")) for q, a in pairs_of(row)
    )
    assert told["left_out"] == {
        "pairs whose region lies outside its image": 4,
        "pairs without a question or an answer": 2,
    }


def test_every_file_of_a_list_is_read(tmp_path):
    raw = tmp_path / "raw"
    sets_raw.visual_genome(raw)
    whole = built(tmp_path, **VG)[0]
    for name in ("region_descriptions", "image_data"):
        content = json.loads((raw / f"vg/{name}.json").read_text())
        put(raw, f"{name}-a.json", content[:1])
        put(raw, f"{name}-b.json", content[1:])
    files = {
        role: [f"{n}-a.json", f"{n}-b.json"]
        for role, n in (("regions", "region_descriptions"), ("images", "image_data"))
    }
    rows, told = built(tmp_path, files=files, **VG)
    assert rows == whole and len(rows) == 2 and told["records"] == 3
