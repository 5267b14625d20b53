"""The door: help with an example, exit codes, JSON alone on stdout, and one clear message for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qllava.cli import main
from qllava.recipe.shipped import list_shipped

VERBS = (
    "demo",
    "train",
    "plan",
    "ablate",
    "check",
    "inspect",
    "recipes",
    "merge",
    "eval",
    "chat",
    "assemble",
    "convert",
    "verify",
    "version",
)


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    try:
        main([str(a) for a in arguments])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"Example: qllava {verb}" in " ".join(out.split())


def test_a_data_set_has_verbs_of_its_own(capsys):
    code, out, _ = run(capsys, "data", "verify", "--help")
    text = " ".join(out.split())
    assert code == 0 and "Example: qllava data verify" in text and "--json" in text and "vg/VG_100K_2" in text
    assert " data " in run(capsys, "--help")[1] and " verify " in run(capsys, "data", "--help")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reports_in_json(capsys, verb):
    assert "--json" in run(capsys, verb, "--help")[1]


def test_version_and_recipes_print_one_json_document(capsys):
    code, out, _ = run(capsys, "version", "--json")
    assert code == 0 and json.loads(out)["torch"]
    code, out, _ = run(capsys, "recipes", "--json")
    assert code == 0 and len(json.loads(out)) == len(list_shipped())
    code, out, _ = run(capsys, "recipes", "--schema")
    assert code == 0 and "learning_rate" in json.loads(out)["properties"]
    code, out, _ = run(capsys, "recipes", "demo/align")
    assert code == 0 and json.loads(out)["tune"] == "projector"


def mistakes(tmp_path, scenes):
    (tmp_path / "wrong.yaml").write_text("stage: instruct\ntune: qlor\nlearning_rat: 1\n")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "plain.json").write_text('{"a": 1}')
    (tmp_path / "empty").mkdir()
    broken = json.loads(scenes.read_text())
    broken[0]["conversations"][0]["from"] = "robot"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    data = f"data=[{{path: {tmp_path}/%s, image_root: images}}]"
    embedded = ("demo/align", f"output_dir={tmp_path}/run")
    return {
        "wrong recipe": (("train", tmp_path / "wrong.yaml"), "mistakes"),
        "missing recipe": (("train", tmp_path / "gone.yaml"), "No recipe at"),
        "missing data": (("train", *embedded, data % "gone.json"), "No data file"),
        "no LLaVA JSON": (("train", *embedded, data % "plain.json"), "not a LLaVA JSON"),
        "malformed turn": (("train", *embedded, data % "broken.json"), "sample 1 (id 's0'), turn 1"),
        "override without =": (("train", "demo/align", "max_steps"), "is no override"),
        "nothing to resume": (("train", *embedded, data % "scenes.json", "--resume"), "No good checkpoint"),
        "missing base": (("train", *embedded, data % "scenes.json", f"base={tmp_path}/gone"), "No model at"),
        "not an artifact to merge": (("merge", tmp_path / "empty", "--out", tmp_path / "m"), "is not an artifact"),
        "not an artifact to verify": (("verify", tmp_path / "empty"), "is not an artifact"),
        "not a model to chat with": (("chat", tmp_path / "empty", "--prompt", "hi"), "neither an artifact"),
        "missing model": (("chat", tmp_path / "gone", "--prompt", "hi"), "No model at"),
        "image that is none": (("chat", tmp_path / "empty", "--image", tmp_path / "text.png", "--prompt", "x"), "is not an image"),
        "json without a prompt": (("chat", tmp_path / "empty", "--json"), "--prompt"),
        "eval without data": (("eval", tmp_path / "empty", "--data", tmp_path / "gone.json"), "No data file"),
        "unknown recipe to copy": (("recipes", "demo/aling", "--copy-to", tmp_path), "Did you mean 'demo/align'"),
        "missing part": (("assemble", "--vision-tower", tmp_path / "x", "--llm", "embedded", "--out", tmp_path / "b"), "No model at"),
        "a dtype that is none": (("assemble", "--vision-tower", "embedded", "--llm", "embedded", "--out", tmp_path / "b", "--dtype", "int3"), "int3"),
        "somebody's folder for the demo": (("demo", "--out", tmp_path), "which no demo made"),
    }  # fmt: skip


NAMES = (
    "wrong recipe", "missing recipe", "missing data", "no LLaVA JSON", "malformed turn", "override without =",
    "nothing to resume", "missing base", "not an artifact to merge", "not an artifact to verify",
    "not a model to chat with", "missing model", "image that is none", "json without a prompt", "eval without data",
    "unknown recipe to copy", "missing part", "a dtype that is none", "somebody's folder for the demo",
)  # fmt: skip


def test_the_list_of_mistakes_is_whole(tmp_path, scenes):
    assert set(mistakes(tmp_path, scenes)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_gets_one_clear_message(capsys, tmp_path, scenes, name):
    arguments, message = mistakes(tmp_path, scenes)[name]
    code, out, err = run(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert err.count("Error") == 1


def test_an_image_that_is_none_in_the_data_is_named(capsys, tmp_path, scenes):
    """Met by a worker process of the data loader, in the middle of a run."""
    (scenes.parent / "images" / "9.png").write_text("no image")
    data = f"data=[{{path: {scenes}, image_root: images}}]"
    extra = (
        "template=vicuna_v1",
        "stage=instruct",
        "dataloader_num_workers=1",
        "per_device_train_batch_size=1",
        "global_batch_size=16",
    )
    code, _, err = run(capsys, "train", "demo/align", data, f"output_dir={tmp_path}/run", *extra)
    assert code == 2
    assert "9.png is not an image that Pillow can read." in err and "Traceback" not in err


def test_a_wrong_option_is_exit_code_2(capsys):
    assert run(capsys, "train")[0] == 2
    assert run(capsys, "merge", "x")[0] == 2
    assert run(capsys, "fly")[0] == 2


def test_a_damaged_artifact_is_exit_code_1(capsys, tmp_path):
    code, out, _ = run(
        capsys, "assemble", "--vision-tower", "embedded", "--llm", "embedded", "--out", tmp_path / "b", "--json"
    )
    assert code == 0 and json.loads(out) == {"model": str(tmp_path / "b")}
    code, out, _ = run(capsys, "verify", tmp_path / "b", "--json")
    assert code == 0 and json.loads(out)["kind"] == "base"
    (tmp_path / "b" / "config.json").write_text("{}")
    code, out, err = run(capsys, "verify", tmp_path / "b")
    assert code == 1 and "config.json is not the file that was written" in err and out == ""


def test_no_traceback_from_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qllava", "train", str(tmp_path / "gone.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: No recipe at") and "Traceback" not in done.stderr
