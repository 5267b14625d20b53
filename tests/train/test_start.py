"""Where a run starts: only with its own checkpoint, and not past its end."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qllava.api import train
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe


@pytest.fixture
def cut(recipe_values, tmp_path):
    """The values of a run of 3 steps that has all its checkpoints and lacks its artifact; and what the artifact held."""
    values = {
        **recipe_values,
        "tune": "lora",
        "max_steps": 3,
        "save_steps": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    artifact = train(resolve_recipe(values)).artifact
    weights = load_file(artifact / "projector.safetensors")
    shutil.rmtree(artifact)
    return values, weights


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-5},
        {"lora": {"r": 4, "lora_alpha": 99}},
        {"lora": {"r": 8}},
        {"seed": 7},
        {"tune": "qlora"},
        {"global_batch_size": 8},
    ],
    ids=lambda c: next(iter(c)),
)
def test_another_recipe_is_refused_by_name(cut, change):
    values, _ = cut
    with pytest.raises(UserError, match=f"is of another run(.|\n)*- {next(iter(change))}: "):
        train(resolve_recipe({**values, **change}), resume=True)


def test_another_base_is_refused(cut, tmp_path):
    from qllava.api import assemble

    values, _ = cut
    other = assemble("embedded", "embedded", tmp_path / "other", dtype="float32")
    with pytest.raises(UserError, match="- base: "):
        train(resolve_recipe({**values, "base": str(other)}), resume=True)


def test_a_run_that_had_ended_but_for_its_artifact_takes_no_step_more(cut):
    values, weights = cut
    result = train(resolve_recipe(values), resume=True)
    again = load_file(result.artifact / "projector.safetensors")
    assert result.steps == 3 and all(torch.equal(again[k], weights[k]) for k in weights)


def test_a_checkpoint_past_the_end_is_refused(cut):
    values, _ = cut
    with pytest.raises(UserError, match="is past 2"):
        train(resolve_recipe({**values, "max_steps": 2}), resume=True)


def test_a_loss_that_is_no_number_stops_the_run(recipe_values, tmp_path):
    good = train(resolve_recipe({**recipe_values, "max_steps": 1, "output_dir": str(tmp_path / "a")})).artifact
    folder = tmp_path / "nan"
    folder.mkdir()
    state = load_file(good / "projector.safetensors")
    state["linear_1.weight"][0, 0] = float("nan")
    save_file(state, folder / "projector.safetensors")
    with pytest.raises(
        RunError, match=r"none before the first step, such as .*linear_1\.weight: what the run starts from"
    ):
        train(resolve_recipe({**recipe_values, "projector": str(folder)}))
    assert not (tmp_path / "run" / "final").exists()


def test_a_damaged_projector_is_refused(recipe_values, tmp_path):
    good = train(resolve_recipe({**recipe_values, "max_steps": 1, "output_dir": str(tmp_path / "a")})).artifact
    file = good / "projector.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"projector\.safetensors is not the file"):
        train(resolve_recipe({**recipe_values, "projector": str(good)}))


def test_an_output_dir_that_cannot_be_written_is_met_first(recipe_values, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write to"):
        train(resolve_recipe({**recipe_values, "output_dir": str(tmp_path / "file")}))


def test_an_optimizer_that_is_none(recipe_values):
    with pytest.raises(UserError, match="the trainer has not"):
        train(resolve_recipe({**recipe_values, "optim": "foo"}))


def test_the_output_dir_of_a_full_run_is_a_base(recipe_values, tmp_path):
    values = {k: v for k, v in recipe_values.items() if k != "lora"} | {"max_steps": 1}
    train(resolve_recipe({**values, "tune": "full", "output_dir": str(tmp_path / "full")}))
    result = train(resolve_recipe({**values, "tune": "projector", "base": str(tmp_path / "full")}))
    manifest = json.loads((result.artifact / "qllava.json").read_text())
    assert manifest["base"]["source"] == str(tmp_path / "full" / "final")


def test_other_data_is_refused(cut, scenes):
    values, _ = cut
    rows = json.loads(scenes.read_text())
    scenes.write_text(json.dumps(rows[::-1]))
    with pytest.raises(UserError, match="was trained on other samples than this recipe takes now"):
        train(resolve_recipe({**values, "max_steps": 4}), resume=True)
    with pytest.raises(UserError, match="was trained on other samples"):
        data = [{**values["data"][0], "weight": 2}]
        train(resolve_recipe({**values, "max_steps": 4, "data": data}), resume=True)
    scenes.write_text(json.dumps(rows))
    assert train(resolve_recipe({**values, "max_steps": 4}), resume=True).steps == 4


def test_the_originals_order_is_bound_to_its_split(recipe_values):
    values = {
        **recipe_values,
        "tune": "projector",
        "group_by_modality_length": True,
        "order": "original",
        "save_steps": 1,
    }
    values = {k: v for k, v in values.items() if k != "lora"} | {"max_steps": 1}
    artifact = train(resolve_recipe(values)).artifact
    shutil.rmtree(artifact)
    with pytest.raises(UserError, match="per_device_train_batch_size: 2 then, 1 now"):
        train(resolve_recipe({**values, "max_steps": 2, "per_device_train_batch_size": 1}), resume=True)


def test_a_tracker_that_is_none(recipe_values):
    with pytest.raises(UserError, match=r"report_to: nosuch is not installed or not known\. There are: .*tensorboard"):
        train(resolve_recipe({**recipe_values, "report_to": ["nosuch"]}))


def test_check_and_inspect_take_a_finished_full_run_as_base(recipe_values, tmp_path):
    from qllava.api import check, inspect

    values = {k: v for k, v in recipe_values.items() if k != "lora"} | {"max_steps": 1}
    train(resolve_recipe({**values, "tune": "full", "output_dir": str(tmp_path / "full")}))
    again = resolve_recipe({**values, "tune": "projector", "base": str(tmp_path / "full")})
    assert check(again)["samples"] == 16 and next(iter(inspect(again).samples()))[0].id
