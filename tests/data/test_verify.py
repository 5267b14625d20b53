"""`qllava data verify` on a small set in the published layout: each trouble once, with its remedy; and what it mends."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from qllava.api import verify_data
from qllava.cli import main
from qllava.data import cores, published
from qllava.data.published import MIXES, Mix, Part
from qllava.errors import RunError, UserError

COUNTS = {"coco": 3, "vg": 3, "ocr_vqa": 3, "gqa": 3, "textvqa": 3, "text": 2}


def test_the_published_counts_add_up_to_the_files():
    mix = MIXES["llava-665k"]
    assert mix.rows == 665_298 and MIXES["llava-558k"].rows == 558_128
    assert {n: p.rows for n, p in mix.parts.items()} == {
        "coco": 364_100, "vg": 86_417, "ocr_vqa": 80_000, "gqa": 72_140, "textvqa": 21_953, "text": 40_688,
    }  # fmt: skip


def row(name, image=None):
    talk = [{"from": "human", "value": "<image>\nWhat?" if image else "What?"}, {"from": "gpt", "value": "It."}]
    return {"id": name, **({"image": image} if image else {}), "conversations": talk}


@pytest.fixture
def mix(tmp_path, monkeypatch):
    """The 665K mix in little: its JSON, `images/` in the published layout, and counts to match."""
    parts = {n: Part(COUNTS[n], p.folders, p.get) for n, p in MIXES["llava-665k"].parts.items()}
    monkeypatch.setitem(published.MIXES, "llava-665k", Mix("the mix", parts))
    rows = [row(f"text{i}") for i in range(COUNTS["text"])]
    for name, part in parts.items():
        for folder in part.folders:
            (tmp_path / "images" / folder).mkdir(parents=True)
        for i in range(COUNTS[name] if part.folders else 0):
            file = f"{part.folders[i % len(part.folders)]}/{i}.jpg"
            Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "images" / file)
            rows.append(row(f"{name}{i}", file))
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def run(mix, capsys):
    """`qllava data verify`: exit code, stdout, stderr."""

    def call(*options, file=mix, root=mix.parent / "images", published="llava-665k"):
        capsys.readouterr()
        named = ["--mix", published] if published else []
        try:
            main([str(o) for o in ("data", "verify", file, "--image-root", root, *named, *options)])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def found_by(run, *options, **where):
    code, out, _ = run("--json", *options, **where)
    return code, json.loads(out)


def test_a_whole_mix_is_all_right(run):
    for options in ((), ("--decode",)):
        code, found = found_by(run, *options)
        assert code == 0 and found["ok"] and not found["troubles"] and not found["notes"]
        assert (found["rows"], found["published"], found["images"]) == (17, 17, 15)
        assert found["sources"]["vg"] == {
            "rows": 3, "published": 3, "images": 3, "missing": 0, "renamed": 0, "damaged": 0, "mistitled": 0,
            "rows_without_image": 0,
        }  # fmt: skip
    code, out, err = run()
    assert code == 0 and out.startswith("17 rows and 15 images (by their headers): all right") and "ocr_vqa" in err


def damage_png(file):
    Image.effect_noise((40, 30), 50).save(file, "PNG")


IMAGE = "ocr_vqa/images/1.jpg"
TROUBLES = {  # what is done to the image: its state, what is said of it, in what message, whether --decode alone sees it
    "gone": (lambda f: f.unlink(), "missing", "missing images: 1 (ocr_vqa/images/1.jpg). Part of OCR-VQA's covers can no longer be downloaded", False),
    "a gif": (lambda f: f.unlink() or Image.new("P", (4, 4)).save(f.with_suffix(".gif")), "renamed", "1.jpg as 1.gif). Rename the files", False),
    "a large png": (lambda f: f.unlink() or damage_png(f.with_suffix(".PNG")), "renamed", "1.jpg as 1.PNG)", False),
    "a page": (lambda f: f.write_text("<html>404</html>"), "damaged", "1.jpg is not an image that Pillow can read", False),
    "empty": (lambda f: f.write_bytes(b""), "damaged", "1.jpg is not an image that Pillow can read", False),
    "cut in its header": (lambda f: f.write_bytes(f.read_bytes()[:30]), "damaged", "1.jpg ", False),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-200]), "damaged", "1.jpg cannot be decoded", True),
    "a folder": (lambda f: f.unlink() or f.mkdir(), "missing", "missing images: 1", False),
    "a page with another suffix": (lambda f: f.rename(f.with_suffix(".gif")).write_text("404"), "missing", "missing images: 1", False),
    "a link out of the root": (lambda f: f.unlink() or f.symlink_to(f.parents[3] / "mix.json"), "damaged", "leaves the image root", False),
}  # fmt: skip


@pytest.mark.parametrize("alone", [True, False], ids=["one process", "two"])
@pytest.mark.parametrize(("change", "state", "message", "decode"), TROUBLES.values(), ids=TROUBLES)
def test_each_trouble_is_told_with_its_remedy(mix, run, monkeypatch, change, state, message, decode, alone):
    if not alone:
        monkeypatch.setattr(cores, "FEW", 0)
        monkeypatch.setattr(cores, "CHUNK", 4)
    change(mix.parent / "images" / IMAGE)
    workers = ("--processes", "1" if alone else "2")
    if decode:
        assert found_by(run, *workers)[0] == 0
    code, found = found_by(run, *workers, *(["--decode"] if decode else []))
    assert code == 1 and not found["ok"] and list(found[state]) == [IMAGE]
    (trouble,) = found["troubles"]
    assert trouble.startswith("ocr_vqa: ") and message in trouble and "--write FIXED.json" in trouble
    counts = found["sources"]["ocr_vqa"]
    assert counts[state] == 1 and counts["rows_without_image"] == 1 and counts["images"] == 3
    assert sum(c[s] for c in found["sources"].values() for s in ("missing", "renamed", "damaged", "mistitled")) == 1
    code, out, err = run(*workers, *(["--decode"] if decode else []))
    assert code == 1 and "Wrong: ocr_vqa: " in out and "is not all right" in err


def test_a_gif_named_jpg_is_read_by_its_content(mix, run):
    Image.new("P", (4, 4)).save(mix.parent / "images" / IMAGE, "GIF")
    code, found = found_by(run, "--decode")
    assert code == 0 and found["mistitled"] == {IMAGE: "GIF"} and found["sources"]["ocr_vqa"]["rows_without_image"] == 0
    assert found["notes"] == ["ocr_vqa: images of another format than their suffix says: 1; they are read by their content."]  # fmt: skip


def test_counts_are_compared_with_the_published_ones(mix, run):
    rows = json.loads(mix.read_text())
    mix.write_text(json.dumps([*rows[:-1], row("x", "other/x.jpg"), rows[0]]))
    code, found = found_by(run)
    said = " ".join(found["troubles"])
    assert code == 1 and "textvqa: 2 rows, and the published the mix has 3" in said
    assert " text: 3 rows, and the published the mix has 2" in said and "vg: 3 rows, " not in said.replace(
        "textvqa", ""
    )
    assert found["sources"]["other"]["published"] == 0 and "other: 1 rows, and the published the mix has 0" in said
    assert found["duplicate_ids"] == 1 and "ids that stand more than once: 1," in found["notes"][0]


def test_without_a_mix_nothing_is_compared(mix, run):
    code, found = found_by(run, published=None)
    assert code == 0 and found["published"] is None and found["sources"]["coco"]["published"] is None
    assert "--mix llava-665k or llava-558k" in found["notes"][0]


def test_a_folder_that_is_not_there_is_named_with_what_it_holds(mix, run):
    folder = mix.parent / "images" / "vg" / "VG_100K_2"
    folder.rename(folder.with_name("elsewhere"))
    code, found = found_by(run)
    assert code == 1 and f"there is no folder {folder}. It holds Visual Genome's images" in found["troubles"][0]
    assert "missing images: 1 (vg/VG_100K_2/1.jpg). Get Visual Genome's" in found["troubles"][1]


def test_captions_are_one_source(tmp_path, mix, run, monkeypatch):
    monkeypatch.setitem(published.MIXES, "llava-558k", Mix("the captions", {"captions": Part(2, (), "its images")}))
    for i in range(2):
        (tmp_path / "c" / f"0000{i}").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "c" / f"0000{i}" / "a.jpg")
    mix.write_text(json.dumps([row(str(i), f"0000{i}/a.jpg") for i in range(2)]))
    code, found = found_by(run, root=tmp_path / "c", published="llava-558k")
    assert code == 0 and found["sources"]["captions"]["rows"] == 2
    (tmp_path / "c" / "00001" / "a.jpg").unlink()
    code, found = found_by(run, root=tmp_path / "c", published="llava-558k")
    assert code == 1 and found["troubles"][0].startswith("captions: missing images: 1 (00001/a.jpg). Get its images")


def test_malformed_rows_are_told(mix, run):
    mix.write_text(json.dumps([*json.loads(mix.read_text()), {"id": "bad", "image": IMAGE}]))
    code, found = found_by(run)
    assert (
        code == 1 and found["rows"] == 18 and "rows that are no samples: 1 (mix.json, sample 18" in found["troubles"][0]
    )


def trouble(mix):
    """One image of each kind of trouble, and one that several share."""
    images = mix.parent / "images"
    (images / "coco/train2017/0.jpg").unlink()
    (images / "gqa/images/0.jpg").write_text("404")
    (images / IMAGE).rename(images / "ocr_vqa/images/1.gif")
    rows = json.loads(mix.read_text())
    rows.append({**row("two"), "images": [IMAGE, "vg/VG_100K/0.jpg"]})
    rows[-1]["conversations"][0]["value"] = "<image><image>"
    rows.append({"odd": [1.5, None, "\ud83d"]})
    mix.write_text(json.dumps(rows))
    return rows


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_names_are_mended_and_rows_left_out(mix, run, suffix):
    rows, out = trouble(mix), mix.with_name(f"fixed.{suffix}")
    code, found = found_by(run, "--write", out)
    assert code == 1 and found["written"] == {"file": str(out), "rows": 19, "mended": 2, "dropped": 0}
    text = out.read_text()
    written = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    renamed = json.loads(json.dumps(rows).replace(IMAGE, "ocr_vqa/images/1.gif"))
    assert written == renamed
    out.unlink()
    code, found = found_by(run, "--write", out, "--drop-missing")
    assert code == 1 and found["written"] == {"file": str(out), "rows": 17, "mended": 2, "dropped": 2}
    text = out.read_text()
    written = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert written == [r for r in renamed if r.get("id") not in ("coco0", "gqa0")]
    code, found = found_by(run, file=out, published=None)
    assert [t[:25] for t in found["troubles"]] == ["rows that are no samples:"]  # the odd one, which was left as it is
    assert {p.name for p in mix.parent.iterdir()} == {"images", "mix.json", out.name}


def test_a_line_that_is_no_json_is_left_out(mix, run):
    file = mix.with_suffix(".jsonl")
    file.write_text(f"{json.dumps(row('a'))}\n{{broken\n{json.dumps(row('b'))}\n")
    code, found = found_by(run, "--write", mix.with_name("out.json"), file=file, published=None)
    assert code == 1 and found["written"]["dropped"] == 1
    assert json.loads(mix.with_name("out.json").read_text()) == [row("a"), row("b")]


def test_nothing_is_left_where_writing_fails(mix, monkeypatch):
    trouble(mix)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        verify_data(mix, mix.parent / "images", write=mix.with_name("out.json"))
    mix.write_text(json.dumps([row("a", "coco/train2017/gone.jpg")]))
    with pytest.raises(RunError, match="no row would be left"):
        monkeypatch.undo()
        verify_data(mix, mix.parent / "images", write=mix.with_name("out.json"), drop_missing=True)
    assert {p.name for p in mix.parent.iterdir()} == {"images", "mix.json"}


def test_a_file_that_changes_meanwhile_is_an_error(mix, monkeypatch):
    from qllava.data import verify

    survey = verify._survey

    def changing(*arguments):
        mix.write_text(json.dumps([row("a")]))
        return survey(*arguments)

    monkeypatch.setattr(verify, "_survey", changing)
    with pytest.raises(UserError, match="was changed while it was read"):
        verify_data(mix, mix.parent / "images")


def test_bad_calls(mix, run):
    out = mix.with_name("out.json")
    for options, where, message in (
        ((), {"published": "llava-1m"}, "There is no published mix 'llava-1m'. There are: llava-665k, llava-558k."),
        ((), {"file": mix.with_name("gone.json")}, "No data file at"),
        ((), {"file": mix.with_suffix(".parquet")}, "by its suffix"),
        ((), {"root": mix.with_name("gone")}, "There is no folder"),
        (("--drop-missing",), {}, "add --write FIXED.json"),
        (("--write", mix), {}, "is the file that is read"),
        (("--write", mix.with_name("text.txt")), {}, "ends in .json or .jsonl"),
        (("--write", mix.with_name("gone") / "a.json"), {}, "nothing can be written in"),
    ):
        mix.with_suffix(".parquet").write_text("")
        code, text, err = run(*options, **where)
        assert (code, text) == (2, "") and message in " ".join(err.split())
    out.write_text("mine")
    assert "there already" in run("--write", out)[2] and out.read_text() == "mine"
