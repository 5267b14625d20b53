"""Two processes under each engine that this machine can run take the same steps as one, save the same, and go on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from launching import launched, values_of
from safetensors.torch import load_file

from qllava.api import load, train, verify
from qllava.recipe import resolve_recipe

pytestmark = pytest.mark.slow


def losses(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [e["loss"] for e in state["log_history"] if "loss" in e]


def run(tmp_path, name, engine, values, *more, processes=2):
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / name)}))
    done = launched(engine, recipe, *more, processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]
    return tmp_path / name


CELLS = [
    ("lora", "zero2"), ("lora", "zero3"), ("qlora", "zero2"), ("projector", "zero2"), ("projector", "zero3"), ("full", "ddp"),
    ("full", "zero2"), ("full", "zero3"), ("projector", "fsdp2"), ("full", "fsdp2"), ("lora", "fsdp2"), ("qlora", "ddp"),
    ("projector", "ddp"),
]  # fmt: skip


@pytest.mark.parametrize(("tune", "engine"), CELLS, ids=["-".join(c) for c in CELLS])
def test_two_processes_equal_one(recipe_values, tmp_path, tune, engine):
    """Images and text alone are mixed: a micro-batch of one sample has no image in some processes at some steps."""
    more = {"per_device_train_batch_size": 1, "global_batch_size": 8, "max_steps": 3, "save_steps": 3}
    values = values_of(recipe_values, tune, **more)
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    out = run(tmp_path, "two", engine, values)
    assert losses(out / "checkpoint-3") == pytest.approx([e["loss"] for e in one.log], rel=2e-4)
    verify(out)
    for file in sorted(one.artifact.glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(out / "final" / file.name)
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():  # Adam turns a rounding of a gradient near zero into a whole step
            assert (tensor - theirs[name]).abs().max() <= 3 * 2.1e-3, name
            assert (tensor - theirs[name]).abs().mean() <= 2e-4, name
    assert load(out, dtype="float32").model is not None


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_bfloat16_keeps_what_trains_in_float32(recipe_values, tmp_path, engine):
    """At small rates: at larger ones what bfloat16 rounds off, which kernels do each in their way, has grown to a tenth of the loss
    after two steps, under DDP as under the others."""
    rates = {"learning_rate": 2e-4, "projector_learning_rate": 2e-5}
    values = values_of(recipe_values, "lora", dtype="bfloat16", max_steps=3, save_steps=3, **rates)
    plain = run(tmp_path, "ddp", "ddp", values)
    out = run(tmp_path, "out", engine, values)
    mine, theirs = losses(out / "checkpoint-3"), losses(plain / "checkpoint-3")
    assert mine[:2] == pytest.approx(theirs[:2], rel=2e-2) and mine[2] == pytest.approx(theirs[2], rel=0.1)
    held, other = (load_file(f / "final" / "adapter_model.safetensors") for f in (out, plain))
    assert all(t.dtype.itemsize == 4 for t in held.values())
    assert any((t.bfloat16().float() != t).any() for t in held.values())
    # B begins as nothing: what it holds is what was learned
    learned = [torch.cat([w[k].flatten() for k in sorted(w) if "lora_B" in k]) for w in (held, other)]
    assert torch.cosine_similarity(*learned, dim=0) > 0.9


@pytest.mark.parametrize(
    ("tune", "engine"), [("lora", "zero2"), ("full", "zero3"), ("lora", "fsdp2"), ("full", "fsdp2")]
)
def test_a_checkpoint_goes_on(recipe_values, tmp_path, tune, engine):
    values = values_of(recipe_values, tune, max_steps=4, save_steps=2)
    whole = run(tmp_path, "whole", engine, values)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-4")
    verify(cut / "checkpoint-2")
    run(tmp_path, "cut", engine, values, "--resume")
    assert losses(cut / "checkpoint-4") == pytest.approx(losses(whole / "checkpoint-4"), rel=1e-5)
    for file in sorted((whole / "final").glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(cut / "final" / file.name)
        assert all((mine[k] - theirs[k]).abs().max() <= 1e-5 for k in mine)


@pytest.mark.parametrize(
    ("tune", "engine", "processes"),
    [("lora", "ddp", 4), ("lora", "fsdp2", 4), ("full", "zero2", 1), ("lora", "zero2", 3), ("full", "zero3", 3)],
)
def test_a_checkpoint_goes_on_with_another_number_of_processes(recipe_values, tmp_path, tune, engine, processes):
    more = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 1, "global_batch_size": 12}
    values = values_of(recipe_values, tune, **more)
    whole = run(tmp_path, "whole", engine, values)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-4")
    run(tmp_path, "cut", engine, values, "--resume", processes=processes)
    assert losses(cut / "checkpoint-4") == pytest.approx(losses(whole / "checkpoint-4"), rel=2e-4)
    for file in sorted((whole / "final").glob("*.safetensors")):  # without Adam's averages they would lie further apart
        mine, theirs = load_file(file), load_file(cut / "final" / file.name)
        assert all((mine[k] - theirs[k]).abs().mean() <= 1e-4 for k in mine)
    verify(cut / "checkpoint-4")
    assert [p.name for p in cut.iterdir() if p.name.startswith(".")] == [".lock"]


@pytest.mark.parametrize(("wrote", "takes"), [("zero2", "ddp"), ("ddp", "zero2")])
def test_an_optimizer_that_an_engine_cannot_read_is_refused(recipe_values, tmp_path, wrote, takes):
    """transformers would go on without it, and with the schedule from its beginning, and say nothing."""
    values = values_of(recipe_values, "lora", max_steps=2, save_steps=1)
    out = run(tmp_path, "out", wrote, values)
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoint-2")
    done = launched(takes, tmp_path / "out.yaml", "--resume")
    told = " ".join(done.stderr.split())
    assert done.returncode != 0 and "cannot read that" in told
    assert ("zero2.yaml" in told) == (wrote == "zero2")


def test_zero_s_other_stage_goes_on(recipe_values, tmp_path):
    values = values_of(recipe_values, "lora", max_steps=3, save_steps=2)
    whole = run(tmp_path, "whole", "zero2", values)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-3")
    run(tmp_path, "cut", "zero3", values, "--resume")
    assert losses(cut / "checkpoint-3") == pytest.approx(losses(whole / "checkpoint-3"), rel=2e-4)


def test_four_processes_and_accumulation_are_the_same_run(recipe_values, tmp_path):
    """One process of eight samples, two of four, four of two; by accumulation or at once."""
    values = values_of(recipe_values, "lora", max_steps=3, save_steps=3, global_batch_size=8)
    one = train(resolve_recipe({**values, "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "one")}))
    wanted = [e["loss"] for e in one.log]
    for processes, each in ((2, 4), (4, 2), (2, 1)):
        name = f"{processes}x{each}"
        out = run(tmp_path, name, "ddp", {**values, "per_device_train_batch_size": each}, processes=processes)
        assert losses(out / "checkpoint-3") == pytest.approx(wanted, rel=2e-4), name


def test_a_recipe_that_an_engine_cannot_run_is_refused_before_a_model_is_read(recipe_values, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "base": str(tmp_path / "nowhere")}))
    done = launched("zero3", recipe)
    assert done.returncode != 0 and "does not run under ZeRO-3" in " ".join(done.stderr.split())
