"""LLaVA-1.5's own loss and gradient, on the tiny model that the original code made (conformance/, in its own layout)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qllava.api import train
from qllava.data.collate import collate
from qllava.data.dataset import select, training_set
from qllava.model.build import load_model
from qllava.model.inputs import processing_for
from qllava.model.projector import projector_of, put_projector, read_projector
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts


@pytest.fixture
def original(shared, tmp_path):
    """The original's checkpoint as the parts of a base and a projector."""
    state = load_file(shared / "conformance" / "original_full" / "model.safetensors")
    config = json.loads((shared / "conformance" / "original_full" / "config.json").read_text())
    llm, projector = tmp_path / "llm", tmp_path / "projector"
    shutil.copytree(shared / "llama_tokenizer", llm)
    (llm / "config.json").write_text(
        json.dumps({**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    save_file({k: v for k, v in state.items() if "mm_projector" not in k}, llm / "model.safetensors", {"format": "pt"})
    projector.mkdir()
    names = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}
    own = {new + k.removeprefix(old): v for old, new in names.items() for k, v in state.items() if k.startswith(old)}
    save_file(own, projector / "projector.safetensors")
    return Parts(vision_tower=str(shared / "conformance" / "clip"), llm=str(llm)), projector


def build(original):
    base, projector = original
    model = load_model(base, torch.float32, torch.device("cpu"))
    put_projector(model, read_projector(projector))
    return model


def test_it_is_the_originals_model(shared, original):
    folder = shared / "conformance"
    ids = json.loads((folder / "checkpoint_ids.json").read_text())["input_ids"]
    expected = load_file(folder / "checkpoint_logits.safetensors")
    model = build(original)
    spread = [j for i in ids for j in ([model.config.image_token_index] * 16 if i == -200 else [i])]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([spread]), pixel_values=expected["pixel_values"]).logits
    torch.testing.assert_close(logits[..., :32000:25], expected["logits_full"], atol=1e-4, rtol=1e-4)


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for i, (question, answer) in enumerate(
        [("What is this?", "A cat."), ("And the color?", "It is black."), ("Hi", "Hello there!")]
    ):
        image = {}
        if i < 2:
            Image.effect_noise((70, 50 + i), 90).convert("RGB").save(folder / f"{i}.png")
            image, question = {"image": f"{i}.png"}, f"<image>\n{question}"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(i), "conversations": talk, **image})
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("average", ["global_batch", "per_micro_batch"])
def test_one_step_of_plain_sgd(original, samples, tmp_path, average):
    """The loss is that of the full logits, and the projector moves by the rate times the gradient of a plain backward pass.

    Three samples, one by one: the mean over all their tokens, or the mean of their means.
    """
    base, projector = original
    recipe = resolve_recipe({
        "stage": "instruct", "tune": "projector", "base": base.model_dump(), "projector": str(projector), "dtype": "float32",
        "data": [{"path": str(samples), "image_root": "images"}], "output_dir": str(tmp_path / "run"), "max_steps": 1,
        "global_batch_size": 3, "per_device_train_batch_size": 1, "learning_rate": 1.0, "warmup_steps": 0,
        "lr_scheduler_type": "constant", "optim": "sgd", "loss_average": average, "max_length": 512,
    })  # fmt: skip
    result = train(recipe)
    model, processing = build(original), processing_for(recipe)
    weights = projector_of(model).requires_grad_(True)
    rows = training_set(select(recipe, processing).rows, processing, recipe.max_length)
    sums, counts = [], []
    for i in range(3):
        batch = collate([rows[i]], processing)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        sums.append(torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
        counts.append(int((labels[0, 1:] != -100).sum()))
    assert len(set(counts)) > 1
    loss = (
        sum(sums) / sum(counts)
        if average == "global_batch"
        else sum(s / n for s, n in zip(sums, counts, strict=True)) / 3
    )
    loss.backward()
    assert result.loss == pytest.approx(float(loss), rel=1e-6)
    before, after = read_projector(projector), load_file(result.artifact / "projector.safetensors")
    for name, parameter in weights.named_parameters():
        torch.testing.assert_close(before[name] - after[name], parameter.grad, atol=1e-5, rtol=1e-4)
        assert parameter.grad.abs().max() > 1e-4
