"""A mix of sources: its YAML, its files, its report, and the door."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import sets_raw
from conftest import ROOT
from sets_raw import SHORT, mix_of, put

from qllava.cli import main
from qllava.data.published import MIXES
from qllava.data.rows import rows_of
from qllava.data.sample import read_samples
from qllava.data.sources.build import build
from qllava.data.sources.mix import load_mix
from qllava.data.sources.sets import SETS
from qllava.errors import RunError, UserError
from qllava.recipe.schema import Source


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for make in (sets_raw.vqav2, sets_raw.gqa, sets_raw.okvqa, sets_raw.aokvqa, sets_raw.textcaps):
        make(folder)
    sets_raw.ocrvqa(folder, covers=30)
    return folder


CAPPED = {"set": "ocrvqa", "prompt": SHORT, "cap": 5}


def test_same_seed_same_bytes_and_other_seed_other_sample(tmp_path, raw):
    mix = str(mix_of(tmp_path, books=CAPPED, vqa={"set": "vqav2"}))
    made = [tmp_path / f"{i}.json" for i in range(3)]
    for out, seed in zip(made, (0, 0, 1), strict=True):
        build(mix, raw, out, seed)
    assert made[0].read_bytes() == made[1].read_bytes() != made[2].read_bytes()


def test_a_source_more_changes_no_other(tmp_path, raw):
    build(str(mix_of(tmp_path, books=CAPPED)), raw, tmp_path / "alone.json")
    report = build(str(mix_of(tmp_path, vqa={"set": "vqav2"}, books=CAPPED)), raw, tmp_path / "both.json")
    alone, both = (json.loads((tmp_path / n).read_text()) for n in ("alone.json", "both.json"))
    assert both[2:] == alone and len(both) == report["rows"] == 7


def test_each_source_as_a_file_and_only_some(tmp_path, raw):
    mix = str(mix_of(tmp_path, books=CAPPED, vqa={"set": "vqav2"}, gqa={"set": "gqa"}))
    report = build(mix, raw, tmp_path / "sets", per_set=True, only=["vqa", "books"])
    assert sorted(p.name for p in (tmp_path / "sets").iterdir()) == ["books.json", "vqa.json"]
    assert [s["name"] for s in report["sources"]] == ["books", "vqa"]
    build(mix, raw, tmp_path / "sets", per_set=True, only=["gqa"])
    with pytest.raises(UserError, match=r"books\.json is there already"):
        build(mix, raw, tmp_path / "sets", per_set=True)
    with pytest.raises(UserError, match="Did you mean 'books'"):
        build(mix, raw, tmp_path / "more", per_set=True, only=["book"])


def test_jsonl_and_rows_that_the_project_reads(tmp_path, raw):
    mix = str(
        mix_of(
            tmp_path,
            books=CAPPED,
            choice={"set": "aokvqa", "prompt": "Letter."},
            caps={"set": "textcaps", "prompt": "Caption."},
        )
    )
    build(mix, raw, tmp_path / "mix.jsonl")
    build(mix, raw, tmp_path / "mix.json")
    lines = [json.loads(t) for t in (tmp_path / "mix.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "mix.json").read_text())
    samples = list(read_samples(tmp_path / "mix.json"))
    assert len(samples) == len(lines) and all(s.turns[0].images == 1 and len(s.turns) % 2 == 0 for s in samples)
    rows = rows_of(Source(path=str(tmp_path / "mix.json"), image_root="images"))
    assert rows["error"] == [""] * len(lines) and all(rows["answered"])


def test_all_missing_files_at_once(tmp_path, raw):
    (raw / "gqa/train_balanced_questions.json").unlink()
    (raw / "okvqa/mscoco_train2014_annotations.json").unlink()
    with pytest.raises(UserError) as error:
        build(str(mix_of(tmp_path, g={"set": "gqa"}, o={"set": "okvqa"}, v={"set": "vqav2"})), raw, tmp_path / "o.json")
    assert "2 sources" in str(error.value) and "gqa/train_balanced_questions.json" in str(error.value)
    assert "OK-VQA's training questions" in str(error.value) and "vqav2" not in str(error.value)


def test_what_is_written_is_whole_or_not_there(tmp_path, raw):
    put(raw, "gqa/train_balanced_questions.json", '{"1": {"imageId": "1", "question": "a?", "answer": "b"}, "2": {}}')
    with pytest.raises(UserError, match="record 2"):
        build(str(mix_of(tmp_path, v={"set": "vqav2"}, g={"set": "gqa"})), raw, tmp_path / "sets", per_set=True)
    assert not list((tmp_path / "sets").iterdir())
    put(raw, "gqa/train_balanced_questions.json", '{"1": {"imageId": "1", "question": "a?", "answer": ""}}')
    with pytest.raises(RunError, match=r"g gives no row; left out: .*without a question or an answer"):
        build(str(mix_of(tmp_path, g={"set": "gqa"})), raw, tmp_path / "o.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mix.yaml", "raw", "sets"]


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({"a": {"set": "vqa2"}}, "sources.a.set: no set 'vqa2'. Did you mean 'vqav2'?"),
        ({"a": {"set": "gqa", "cap": 0}}, "sources.a.cap: Input should be greater than 0"),
        ({"a": {"set": "gqa", "cop": 1}}, "sources.a.cop: no such field. Did you mean 'cap'?"),
        ({"a": {"set": "gqa", "split": "val"}}, "sources.a.split: gqa does not take it"),
        ({"a": {"set": "gqa", "files": {"question": "x"}}}, "sources.a.files.question: gqa has questions. Did you mean 'questions'?"),
        ({"a": {"set": "gqa", "files": {"questions": None}}}, "sources.a.files.questions: is needed"),
        ({"a": {"set": "ocrvqa", "split": "dev"}}, "sources.a.split: no 'dev'; ocrvqa has train, val, test."),
        ({"a": {"set": "gqa", "prompt": "See <image>."}}, "sources.a.prompt: holds <image>, which"),
        ({"a": {"set": "textcaps", "prompt": ["P", "See\n<image>"]}}, "sources.a.prompt: holds <image>, which"),
        ({"a": {"set": "gqa", "prompt": "\ud83d"}}, "sources.a.prompt: holds half of a surrogate pair"),
        ({"a": {"set": "gqa", "images": "../../etc"}}, "sources.a.images: leaves the image root"),
        ({"a": {"set": "gqa", "images": "./mine"}}, "sources.a.images: leaves the image root"),
        ({"a": {"set": "gqa", "images": "mine/../.."}}, "sources.a.images: leaves the image root"),
        ({"a": {"set": "gqa", "images": "a\0b"}}, "sources.a.images: holds what is no character"),
        ({"a": {"set": "textcaps"}}, "sources.a.prompt: is what asks for the caption"),
        ({"../a": {"set": "gqa"}}, "sources.../a.name: may hold letters"),
        ({"a": None}, "sources: names none."),
    ],
)  # fmt: skip
def test_a_mistake_in_the_yaml_is_named(tmp_path, sources, says):
    with pytest.raises(UserError) as error:
        load_mix(str(mix_of(tmp_path, **sources)))
    assert says in str(error.value)


def test_a_mix_extends_another(tmp_path):
    (tmp_path / "under.yaml").write_text(
        mix_of(tmp_path, v={"set": "vqav2", "prompt": "P"}, g={"set": "gqa"}).read_text()
    )
    path = tmp_path / "over.yaml"
    path.write_text("extends: under.yaml\nsources:\n  v: {prompt: null}\n  g: null\n")
    mix = load_mix(str(path))
    assert list(mix.sources) == ["v"] and mix.sources["v"].prompt is None


def test_the_door(tmp_path, raw, capsys):
    mix, out = mix_of(tmp_path, v={"set": "vqav2", "published": 3}, b=CAPPED), tmp_path / "o.json"
    main_ends(0, "data", "build", mix, "--raw", raw, "--out", out, "--seed", 3)
    said = capsys.readouterr().out
    assert "mine: 7 rows" in said and "v: 2 rows, published 3 (-1), from 3 records" in said
    assert "left out: 25 conversations above the cap of 5" in said and "with seed 3" in said
    main_ends(2, "data", "build", mix, "--raw", raw, "--out", out)
    assert "is there already" in capsys.readouterr().err
    main_ends(0, "data", "build", mix, "--raw", raw, "--out", tmp_path / "two.jsonl", "--only", "v", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["published"], found["sources"][0]["records"]) == (2, 3, 3)


def main_ends(code, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    assert ended.value.code == code


def test_shipped_mixes_are_what_was_published():
    for name, published in MIXES.items():
        mix = load_mix(name)
        assert mix.title == published.title and sum(s.published for s in mix.sources.values()) == published.rows
    mix, rows = load_mix("llava-665k"), {}
    for source in mix.sources.values():
        images = SETS[source.set].images if source.images is None else source.images
        part = images.split("/")[0] or "text"
        rows[part] = rows.get(part, 0) + source.published
    assert rows == {name: part.rows for name, part in MIXES["llava-665k"].parts.items()}


def test_the_mix_of_the_docs(tmp_path):
    text = (ROOT / "docs/data.md").read_text().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    mix = load_mix(str(path))
    assert mix.title == "mine" and "sharegpt" not in mix.sources and mix.sources["vqav2"].prompt is None
    assert mix.sources["vqav2"].published == 82_783 and mix.sources["invoices"].files == {
        "rows": str(tmp_path / "invoices.csv")
    }
    for name in ("vqav2-unprompted", "llava-558k"):
        assert load_mix(name).sources


@pytest.mark.parametrize("links", [True, False])
def test_what_appears_at_out_meanwhile_stays(tmp_path, raw, monkeypatch, links):
    import qllava.data.sources.build as module

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(module.os, "link", refuse)
    mix, out = str(mix_of(tmp_path, a=CAPPED, v={"set": "vqav2"})), tmp_path / "sets"
    build(mix, raw, tmp_path / "whole", per_set=True)
    written = module._Writer.write

    def meanwhile(self, target, rows):
        (out / "v.json").parent.mkdir(exist_ok=True)
        (out / "v.json").write_text("another's")
        return written(self, target, rows)

    monkeypatch.setattr(module._Writer, "write", meanwhile)
    with pytest.raises(UserError, match=r"v\.json appeared while .*nothing of this build is kept"):
        build(mix, raw, out, per_set=True)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("v.json", "another's")]
    assert len(list((tmp_path / "whole").iterdir())) == 2


def test_leftovers_of_a_killed_build_go_and_those_of_a_running_one_stay(tmp_path, raw):
    mix, out = str(mix_of(tmp_path, v={"set": "vqav2"})), tmp_path / "o[1].json"
    killed, other = tmp_path / ".o[1].json.99.partial", tmp_path / ".o1.json.99.partial"
    killed.write_text("half")
    other.write_text("another's")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom qllava.data.sources.build import _Writer\n"
        "with _Writer() as w:\n w.write(Path(sys.argv[1]), [1]); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout.readline() == "ready\n"
            (held,) = set(tmp_path.glob(".o[[]1].json.*.partial")) - {killed}
            build(mix, raw, out)
            assert held.exists() and other.exists() and not killed.exists()
        finally:
            running.kill()
    out.unlink()
    build(mix, raw, out)
    assert not held.exists() and [p.name for p in tmp_path.glob(".*")] == [other.name]


def test_the_same_file_twice(tmp_path, raw):
    for files in (["a.json", "a.json"], ["a.json", str(raw / "a.json")], ["a.json", "x/../a.json"]):
        put(raw, "a.json", {"1": {}})
        put(raw, "x/b.json", {})
        with pytest.raises(UserError, match=r"v: files\.questions names .*a\.json twice"):
            build(str(mix_of(tmp_path, v={"set": "gqa", "files": {"questions": files}})), raw, tmp_path / "o.json")


def test_instances_that_two_sets_share_are_no_mistake(tmp_path, raw):
    sets_raw.refcoco(raw)
    files = {**sets_raw.REFCOCO["files"], "instances": ["refcoco/instances.json"] * 2}
    assert build(str(mix_of(tmp_path, r={**sets_raw.REFCOCO, "files": files})), raw, tmp_path / "o.json")["rows"] == 1


def test_what_is_no_mix(tmp_path, raw):
    path = tmp_path / "mix.yaml"
    for text, says in (
        ("", "is not a mix: it is empty"),
        ("- a", "is not a mix: it holds a list"),
        ("title: a\nsources: &a {x: *a}", "holds itself"),
        ("title: a\nsources: {a: {set: gqa}, a: {set: vqav2}}", "line 2: 'a' stands there a second time"),
        ("extends: llava-66k\ntitle: a", "No mix at .*llava-66k.* Did you mean 'llava-665k'"),
        (f"title: a\nsources: {{a: {{set: gqa, files: {{questions: {'x' * 5000}}}}}}}", "1 source are not there"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            build(str(path), raw, tmp_path / "o.json")
    with pytest.raises(UserError, match="No mix"):
        load_mix("x" * 5000)
    mix = str(mix_of(tmp_path, v={"set": "vqav2"}))
    for out in (tmp_path / f"{'x' * 5000}.json", tmp_path / ("x" * 5000) / "o.json", tmp_path / f"{'x' * 250}.json"):
        with pytest.raises(UserError, match="--out"):
            build(mix, raw, out)


def test_a_mix_extends_a_shipped_one_by_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: llava-665k\nsources: {sharegpt: null}\n")
    assert set(load_mix("llava-665k").sources) - set(load_mix(str(path)).sources) == {"sharegpt"}
