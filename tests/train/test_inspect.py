"""`qllava inspect` and `qllava check`, as a user runs them."""

from __future__ import annotations

import json

import pytest
from test_cli import run

from qllava.errors import UserError
from qllava.model.base import EMBEDDED
from qllava.train.inspect import of_file

LLM = EMBEDDED / "llm"


def arguments(scenes, *more):
    return ("inspect", "--data", scenes, "--images", scenes.parent / "images", "--tokenizer", LLM, "--template", "vicuna_v1", "--image-tokens", 64, *more)  # fmt: skip


def test_all_as_json_is_a_line_for_each_sample(capsys, scenes):
    code, out, _ = run(capsys, *arguments(scenes, "--all", "--json"))
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [r["id"] for r in records] == [r["id"] for r in json.loads(scenes.read_text())]
    for record in records:
        assert set(record) == {"id", "input_ids", "labels", "images", "supervised", "truncated"}
        assert len(record["input_ids"]) == len(record["labels"])
        assert record["input_ids"].count(-200) == len(record["images"]) == (record["id"][0] == "s")
        assert record["supervised"] == sum(label != -100 for label in record["labels"]) > 0
        assert record["truncated"] is False


def test_one_sample_is_one_document(capsys, scenes):
    code, out, _ = run(capsys, *arguments(scenes, "--sample", "s3", "--json"))
    assert code == 0 and json.loads(out)["id"] == "s3"
    code, out, err = run(capsys, *arguments(scenes, "--sample", "nobody"))
    assert code == 2 and "No sample that is taken has the id 'nobody'" in err


def test_without_all_it_is_the_first_few(capsys, scenes):
    assert [r["id"] for r in json.loads(run(capsys, *arguments(scenes, "--json"))[1])] == ["s0", "s1", "s2"]
    assert len(json.loads(run(capsys, *arguments(scenes, "--json", "--limit", 5))[1])) == 5


def test_people_see_the_text_and_the_image_collapsed(capsys, scenes):
    code, out, _ = run(capsys, *arguments(scenes, "--sample", "s0", "--ids"))
    assert code == 0 and "USER: <image: 64 tokens>" in out and "ASSISTANT: red</s>" in out
    assert " -200 " in out and "2 supervised" in out


def test_the_page_holds_pictures_and_nothing_of_a_users_markup(capsys, scenes, tmp_path):
    rows = json.loads(scenes.read_text())
    rows[0]["conversations"][1]["value"] = "<script>alert(1)</script>"
    scenes.write_text(json.dumps(rows))
    code, out, _ = run(capsys, *arguments(scenes, "--html", tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and out == "" and page.count("data:image/png;base64,") == 3
    assert "<script>" not in page and "&lt;script&gt;" in page and 'class="supervised"' in page


def test_a_bad_sample_is_shown_as_such(capsys, scenes):
    rows = json.loads(scenes.read_text())
    rows[1]["conversations"][0]["from"] = "robot"
    scenes.write_text(json.dumps(rows))
    code, out, err = run(capsys, *arguments(scenes, "--all", "--json"))
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and len(records) == 16 and "turn 1" in records[1]["error"] and "1 of the samples" in err


def test_a_recipe_says_everything_itself(capsys, scenes, tmp_path):
    data = f"data=[{{path: {scenes}, image_root: images}}]"
    code, out, _ = run(capsys, "inspect", "demo/instruct", data, "projector=null", "--json")
    assert code == 0 and len(json.loads(out)) == 3
    code, _, err = run(capsys, "inspect", "demo/instruct", "--template", "plain")
    assert code == 2 and "The recipe says template itself" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "lacking: --data, --tokenizer, --template"),
        (("--data", "x.json"), "lacking: --tokenizer, --template"),
        (("--data", "x.json", "--tokenizer", LLM, "--template", "vicuna_v2"), "Did you mean 'vicuna_v1'"),
        (("--data", "gone.json", "--tokenizer", LLM, "--template", "vicuna_v1"), "No data file at gone.json"),
        (("--data", "x.json", "--tokenizer", "gone", "--template", "vicuna_v1"), "No tokenizer in gone"),
        (("--data", "x.json", "--tokenizer", LLM, "--template", "vicuna_v1", "--after-eos", "5"), "after_eos is one of"),
    ],
)  # fmt: skip
def test_mistakes(capsys, options, message):
    code, out, err = run(capsys, "inspect", *options)
    assert code == 2 and out == "" and message in " ".join(err.split())


def test_truncation_is_shown(scenes):
    shown = of_file(str(scenes), str(LLM), "vicuna_v1", str(scenes.parent / "images"), 130, image_tokens=64)
    cut = [t for _, _, t in shown.samples() if not isinstance(t, UserError) and t.truncated]
    assert cut and all(len(t.ids) + 63 * t.ids.count(-200) == 130 for t in cut)


def check(capsys, scenes, *more):
    return run(
        capsys, "check", "demo/instruct", f"data=[{{path: {scenes}, image_root: images}}]", "projector=null", *more
    )


def test_check_reports_and_says_by_its_exit_code(capsys, scenes):
    code, out, _ = check(capsys, scenes, "--json")
    found = json.loads(out)
    assert code == 0 and found["samples"] == found["usable"] == 16 and found["bad"] == []
    assert found["disk"]["bytes"] > 0 and found["rows_per_second"] > 0
    (scenes.parent / "images" / "4.png").write_text("no image")
    code, out, err = check(capsys, scenes, "--json")
    assert code == 1 and [b["id"] for b in json.loads(out)["bad"]] == ["s4"] and "1 samples cannot be used" in err
    code, out, _ = check(capsys, scenes, "--on-bad", "drop")
    assert code == 0 and "15 usable" in out and "4.png is not an image" in out
    assert check(capsys, scenes, "--on-bad", "ignore")[0] == 2


def test_check_reads_no_weight(capsys, scenes, tmp_path):
    """Configurations, a tokenizer and an image processor are all that it needs of a base."""
    import shutil

    for part in ("llm", "vision_tower"):
        shutil.copytree(EMBEDDED / part, tmp_path / part, ignore=shutil.ignore_patterns("*.safetensors"))
    base = f"base={{vision_tower: {tmp_path}/vision_tower, llm: {tmp_path}/llm}}"
    assert check(capsys, scenes, base)[0] == 0


def test_inspect_shows_what_the_recipe_takes(capsys, scenes):
    (scenes.parent / "images" / "3.png").unlink()
    data = f"data=[{{path: {scenes}, image_root: images}}]"
    code, out, _ = run(capsys, "inspect", "demo/instruct", data, "projector=null", "--all", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and len(records) == 16 and "No image at" in records[3]["error"]
    _, out, _ = run(capsys, "inspect", "demo/instruct", data, "projector=null", "subset=40%", "--all", "--json")
    taken = [r for r in map(json.loads, out.splitlines()) if "error" not in r]
    assert len(taken) == 5 + 1  # of 13 pictures and 2 texts


def test_data_cannot_drive_the_terminal(capsys, scenes):
    rows = json.loads(scenes.read_text())
    rows[0]["id"] = "x\x1b[2J\x1b]0;PWNED"
    rows[0]["conversations"][1]["value"] = "red\u202e \x9b31m"
    rows[1]["image"] = "no\x1b[31mfile.png"
    scenes.write_text(json.dumps(rows))
    _, out, err = run(capsys, *arguments(scenes, "--all"))
    _, checked, complaint = check(capsys, scenes)
    for text in (out, err, checked, complaint):
        assert not any(c in text for c in "\x1b\x9b\u202e")
    assert "x\\x1b[2J" in out and "red\\u202e \\x9b31m" in out and "no\\x1b[31mfile.png" in checked


def test_a_page_is_not_written_over_what_is_none(capsys, scenes, tmp_path):
    before = scenes.read_text()
    code, _, err = run(capsys, *arguments(scenes, "--html", scenes))
    assert code == 2 and "is there already" in err and scenes.read_text() == before
    for _ in range(2):  # its own page it may write anew
        assert run(capsys, *arguments(scenes, "--html", tmp_path / "p.html"))[0] == 0


def test_check_fails_where_nothing_can_be_used(capsys, scenes, tmp_path):
    (tmp_path / "gone.json").write_text(json.dumps([{"id": "a", "image": "gone.png", "conversations": []}]))
    data = f"data=[{{path: {scenes}, image_root: images}}, {{path: {tmp_path}/gone.json}}]"
    code, _, err = run(capsys, "check", "demo/instruct", data, "projector=null", "--on-bad", "drop")
    assert code == 1 and "gone.json can be used" in err


def test_an_override_needs_a_recipe(capsys, scenes):
    code, _, err = run(capsys, *arguments(scenes, "subset=1%"))
    assert code == 2 and "with --data there is no recipe" in err
