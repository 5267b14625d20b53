"""Runs with every lever take the same steps as the plain ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qllava.api import plan, train
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe
from qllava.train import batches
from qllava.train import trainer as trainer_module

PLAIN = {"packing": False, "fused_layers": False, "gradient_checkpointing": False}
LEVERS = {"packing": True, "fused_layers": True, "gradient_checkpointing": 1}


@pytest.fixture
def questions(tmp_path):
    """Six images with one to five questions each, and four samples of text alone."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = []
    for i in range(6):
        noise = np.random.default_rng(i).normal(128, 60, (80, 60 + 9 * i))  # Pillow's own is another in every process
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / f"{i}.png")
        for j in range(1 + i % 5):
            talk = [
                {"from": "human", "value": f"<image>\nWhat is it, {'and where, ' * j}please?"},
                {"from": "gpt", "value": ["red", "a blue one", "nothing"][(i + j) % 3] + " there" * (i % 3)},
            ]
            rows.append({"id": f"{i}.{j}", "image": f"{i}.png", "conversations": talk})
    for i in range(4):
        talk = [{"from": "human", "value": "Hello " * (i + 1)}, {"from": "gpt", "value": "Hi " * (4 - i)}]
        rows.append({"id": f"t{i}", "conversations": talk})
    path = folder / "questions.json"
    path.write_text(json.dumps(rows))
    return path


def run(recipe_values, questions, tmp_path, name, **changes):
    values = {
        **recipe_values, "data": [{"path": str(questions), "image_root": "."}], "output_dir": str(tmp_path / name),
        "learning_rate": 1e-3, "max_steps": 20, "save_steps": 100, "global_batch_size": 8,
        "per_device_train_batch_size": 4, "warmup_steps": 0,
    }  # fmt: skip
    return train(resolve_recipe(values | changes))


def losses(result):
    return torch.tensor([line["loss"] for line in result.log], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tune", ["projector", "lora", "qlora", "full"])
def test_twenty_steps_with_every_lever_equal_the_plain_ones(recipe_values, questions, tmp_path, tune, dtype):
    """In bfloat16 the levers stay as near to the float32 run as the plain path does."""
    common = {"tune": tune, "learning_rate": 1e-4 if tune == "full" else 3e-4} | (
        {} if "lora" in tune else {"lora": {}}
    )
    exact = losses(run(recipe_values, questions, tmp_path, "exact", **PLAIN, **common, dtype="float32"))
    levers = losses(run(recipe_values, questions, tmp_path, "levers", **LEVERS, **common, dtype=dtype))
    tolerance = 1e-4
    if dtype == "bfloat16":
        plain = losses(run(recipe_values, questions, tmp_path, "plain", **PLAIN, **common, dtype=dtype))
        tolerance = 1.5 * float(((plain - exact) / exact).abs().max())
        assert tolerance < 0.2
    assert len(levers) == 20 and float(exact[-1]) < float(exact[0])
    assert float(((levers - exact) / exact).abs().max()) < tolerance


def test_samples_that_share_their_image_take_the_steps_of_separate_rows(
    recipe_values, questions, tmp_path, monkeypatch
):
    shared = run(recipe_values, questions, tmp_path, "shared", **LEVERS, pairing="shared", tune="lora")
    together = batches.together
    seen = []

    def separate(recipe, processing):
        """The same order of samples, in padded rows, one a sample."""
        put = together(recipe.model_copy(update={"packing": False}), processing)
        return lambda rows: seen.append(len(rows)) or put(rows)

    monkeypatch.setattr("qllava.train.run.together", separate)
    monkeypatch.setattr(trainer_module, "fuse", lambda model: 0)
    rows = run(recipe_values, questions, tmp_path, "rows", **LEVERS, pairing="shared", tune="lora")
    assert set(seen) == {4}
    difference = ((losses(shared) - losses(rows)) / losses(rows)).abs()
    assert float(difference.max()) < 1e-4


def test_sharing_needs_fewer_positions(recipe_values, questions, tmp_path):
    counts = {}
    for pairing in ("rows", "shared"):
        result = run(recipe_values, questions, tmp_path, pairing, pairing=pairing, tune="lora", max_steps=4)
        counts[pairing] = json.loads((result.artifact.parent / "run.json").read_text())
    assert counts["shared"]["tokens_per_second"] * counts["shared"]["seconds"] < 0.7 * (
        counts["rows"]["tokens_per_second"] * counts["rows"]["seconds"]
    )


def test_sizes_are_found_where_they_are_left_open(recipe_values, questions, tmp_path, monkeypatch):
    """Much memory: the whole global batch at once; little: less, or with layers run again; too little: said before any weight."""
    auto = {"per_device_train_batch_size": "auto", "gradient_checkpointing": "auto", "tune": "lora", "max_steps": 2}

    def sizes(name, **changes):
        found = run(recipe_values, questions, tmp_path, name, **{**auto, **changes}).artifact.parent / "run.json"
        recipe = json.loads(found.read_text())["recipe"]
        return recipe["per_device_train_batch_size"], recipe["gradient_checkpointing"]

    assert sizes("much") == (8, False)
    assert sizes("set", gradient_checkpointing=2) == (8, 2)  # what is set stays
    values = {**recipe_values, "data": [{"path": str(questions), "image_root": "."}], "global_batch_size": 8, **auto}
    peaks = {c.per_device_train_batch_size: c.memory.peak for c in plan(resolve_recipe(values)).choices}
    monkeypatch.setattr("qllava.train.plan.machine_memory", lambda device=None: int(1.04 * (peaks[8] + peaks[1]) / 2))
    size, again = sizes("little")
    assert size < 8 or again
    monkeypatch.setattr("qllava.train.plan.machine_memory", lambda device=None: 100 << 20)
    with pytest.raises(UserError, match=r"needs 0.* GiB at the least, with 4% to spare, of 0\.10 GiB: frozen weights"):
        sizes("none")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")], ids=["cuda", "python", "cpu"])  # fmt: skip
def test_running_out_of_memory_names_the_field_that_would_have_fitted(
    recipe_values, questions, tmp_path, monkeypatch, error
):
    calls = []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise error
        return real(self, *args, **kwargs)

    real = trainer_module.LlavaTrainer.compute_loss
    monkeypatch.setattr(trainer_module.LlavaTrainer, "compute_loss", fail)
    with pytest.raises(RunError, match="Out of memory in step 2") as caught:
        run(recipe_values, questions, tmp_path, "out", tune="lora", per_device_train_batch_size=4, save_steps=1)
    assert "would take" in str(caught.value)
    assert "checkpoint-1" in str(caught.value)


def test_where_no_smaller_size_is_found_the_error_still_says_what_happened(
    recipe_values, questions, tmp_path, monkeypatch
):
    def fail(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def lost(*args, **kwargs):
        raise UserError("an image is gone")

    monkeypatch.setattr(trainer_module.LlavaTrainer, "compute_loss", fail)
    monkeypatch.setattr("qllava.train.run.after_running_out", lost)
    with pytest.raises(RunError, match=r"Out of memory in step 1.*\n.*an image is gone.*\nNo checkpoint"):
        run(recipe_values, questions, tmp_path, "out", tune="lora")


def test_float16_is_refused_without_a_gpu(recipe_values, questions, tmp_path):
    with pytest.raises(UserError, match="float16 trains on a GPU alone"):
        run(recipe_values, questions, tmp_path, "half", tune="lora", dtype="float16")


def test_flex_attention_is_refused_without_a_gpu(recipe_values, questions, tmp_path):
    with pytest.raises(UserError, match="no backward pass on a CPU"):
        run(recipe_values, questions, tmp_path, "flex", tune="lora", attention="flex")


def test_another_runtime_error_is_not_taken_for_it(recipe_values, questions, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer_module.LlavaTrainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(recipe_values, questions, tmp_path, "else", tune="lora")


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_optimizers_in_8_bits_learn_and_resume(recipe_values, questions, tmp_path, optim):
    whole = run(recipe_values, questions, tmp_path, "whole", tune="lora", optim=optim, max_steps=6, save_steps=3)
    assert float(losses(whole)[-1]) < float(losses(whole)[0])
    import shutil

    shutil.rmtree(tmp_path / "whole" / "final")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-6")
    values = {
        **recipe_values, "data": [{"path": str(questions), "image_root": "."}], "output_dir": str(tmp_path / "whole"),
        "learning_rate": 1e-3, "max_steps": 6, "save_steps": 3, "global_batch_size": 8, "tune": "lora",
        "per_device_train_batch_size": 4, "warmup_steps": 0, "optim": optim,
    }  # fmt: skip
    resumed = train(resolve_recipe(values), resume=True)
    assert torch.allclose(losses(resumed), losses(whole)[3:], rtol=1e-6)
