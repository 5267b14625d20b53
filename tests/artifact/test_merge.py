"""Base, adapter, merged: the same answers, and the wrong base refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from qllava.api import assemble, load, merge, train
from qllava.data.collate import collate
from qllava.data.sample import ask
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe


@pytest.fixture(params=["qlora", "lora", "projector"])
def adapter(request, recipe_values):
    """An adapter trained for a few steps at a high rate, so that it changes the base plainly."""
    values = {**recipe_values, "tune": request.param}
    if request.param == "projector":
        del values["lora"]
    return train(resolve_recipe(values)).artifact


def logits(loaded) -> torch.Tensor:
    prompt = loaded.processing.prompt(ask("Which color?", 1), [Image.new("RGB", (70, 64), "red")])
    batch = collate([prompt], loaded.processing)
    batch.pop("labels")
    with torch.no_grad():
        return loaded.model(**batch).logits


def test_merged_equals_base_and_adapter(adapter, tmp_path):
    unmerged = logits(load(adapter))
    base = logits(load(assemble("embedded", "embedded", tmp_path / "base", dtype="float32")))
    merged = logits(load(merge(adapter, tmp_path / "merged", dtype="float32"), dtype="float32"))
    change = (unmerged - base).abs().max()
    assert change > 0.1  # the adapter does something
    assert (merged - unmerged).abs().max() < 1e-4 * max(1.0, unmerged.abs().max())


def test_plain_transformers_loads_the_merged_model(adapter, tmp_path):
    merged = merge(adapter, tmp_path / "merged", dtype="float32")
    ours = load(merged, dtype="float32")
    code = f"""
import sys, torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
model, info = LlavaForConditionalGeneration.from_pretrained({str(merged)!r}, output_loading_info=True, dtype=torch.float32)
assert not info["missing_keys"] and not info["unexpected_keys"], info
processor = AutoProcessor.from_pretrained({str(merged)!r})
talk = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "Which color?"}}]}}]
text = processor.apply_chat_template(talk, add_generation_prompt=True)
inputs = processor(images=Image.new("RGB", (70, 64), "red"), text=text, return_tensors="pt")
torch.save({{"logits": model(**inputs).logits, "pixels": inputs["pixel_values"]}}, {str(tmp_path / "theirs.pt")!r})
assert "qllava" not in sys.modules
print(text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("USER: <image>\nWhich color? ASSISTANT:")
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    prompt = ours.processing.prompt(ask("Which color?", 1), [Image.new("RGB", (70, 64), "red")])
    torch.testing.assert_close(theirs["pixels"], prompt["pixel_values"], atol=1e-5, rtol=0)
    # transformers leaves out one ▁ beside the image, so the last logits are near, not equal
    assert theirs["logits"][0, -1].argmax() == logits(ours)[0, -1].argmax()


def test_the_wrong_base_is_refused_and_both_are_named(recipe_values, tmp_path):
    adapter = train(resolve_recipe(recipe_values)).artifact
    other = assemble("embedded", "embedded", tmp_path / "other")
    for verb in (lambda: load(adapter, base=str(other)), lambda: merge(adapter, tmp_path / "m", base=str(other))):
        with pytest.raises(UserError, match="Wrong base") as caught:
            verb()
        assert "embedded" in str(caught.value) and str(other) in str(caught.value)


def test_what_cannot_be_merged(recipe_values, tmp_path):
    adapter = train(resolve_recipe(recipe_values)).artifact
    base = assemble("embedded", "embedded", tmp_path / "base")
    (tmp_path / "taken").mkdir()
    for source, out, complaint in (
        (base, "m", "whole model already"), (tmp_path / "gone", "m", "is not an artifact"), (adapter, "taken", "is there already"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=complaint):
            merge(source, tmp_path / out)
    with pytest.raises(UserError, match="No merge target"):
        merge(adapter, tmp_path / "m", target="int8")
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError, match="adapter_model"):
        merge(adapter, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_adapter_is_a_valid_peft_adapter(recipe_values, tmp_path):
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    adapter = train(resolve_recipe({**recipe_values, "tune": "lora"})).artifact
    base = assemble("embedded", "embedded", tmp_path / "base", dtype="float32")
    model = PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base), adapter)
    ours = {n: p for n, p in load(adapter).model.named_parameters() if "lora_" in n}
    theirs = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert ours.keys() == theirs.keys() and len(ours) == 56
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
