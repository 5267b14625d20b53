"""Base, adapter, merged: the same answers, and the wrong base refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

from qllava.api import assemble, load, merge, train, verify
from qllava.artifact import stream
from qllava.artifact.manifest import read_manifest
from qllava.artifact.prove import Figures, judge
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


@pytest.mark.slow
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


@pytest.fixture
def trained(recipe_values, tmp_path):
    return train(resolve_recipe({**recipe_values, "tune": "qlora"})).artifact


def test_the_report_shows_all_targets_side_by_side(trained, tmp_path):
    report = read_manifest(merge(trained, tmp_path / "merged")).report
    assert report["target"] == report["recommended"] == "bf16-dequantized"
    targets = report["targets"]
    assert set(targets) == {"bf16", "bf16-dequantized", "nf4"} and targets["bf16-dequantized"] == report["proof"]
    assert (
        targets["bf16-dequantized"]["kl"] < targets["bf16"]["kl"]
        and targets["bf16-dequantized"]["kl"] < targets["nf4"]["kl"]
    )
    assert report["proof"]["greedy_agreement"] > 0.9 and report["effect"]["mean"] > 0.1
    assert report["peak_memory_mib_of_writing"] > 0


def test_four_bits_only_by_force_and_with_a_warning(trained, tmp_path):
    with pytest.raises(UserError, match="rounds a part of what was learned away"):
        merge(trained, tmp_path / "nf4", target="nf4")
    folder = merge(trained, tmp_path / "nf4", target="nf4", force=True)
    assert "rounded away" in read_manifest(folder).report["warning"] and "Warning" in (folder / "README.md").read_text()
    model = load(folder).model
    assert sum(type(m).__name__ == "Linear4bit" for m in model.modules()) == 28


@pytest.mark.slow
def test_a_merge_that_changed_nothing_or_too_much_fails_and_leaves_nothing(trained, tmp_path, monkeypatch):
    from qllava.artifact.delta import Change

    plain = Change.applied
    monkeypatch.setattr(Change, "applied", lambda self, weight: weight.float())
    monkeypatch.setattr("qllava.artifact.merge.read_projector", lambda folder: {})
    base = assemble("embedded", "embedded", tmp_path / "base", dtype="float32")
    whole = train_on(base, trained, tmp_path)
    with pytest.raises(RunError, match="The merge went wrong"):
        merge(whole, tmp_path / "nothing", dtype="float32")
    monkeypatch.setattr(Change, "applied", lambda self, weight: plain(self, weight) * 1.5)
    with pytest.raises(RunError, match="The merge went wrong"):
        merge(whole, tmp_path / "much", dtype="float32")
    assert not (tmp_path / "nothing").exists() and not (tmp_path / "much").exists()
    assert not list(tmp_path.glob(".*.partial"))


def train_on(base, trained, tmp_path):
    """A LoRA on a whole LLaVA, with the base's own projector."""
    recipe = read_manifest(trained).recipe
    values = {
        **recipe,
        "base": str(base),
        "tune": "lora",
        "output_dir": str(tmp_path / "whole"),
        "projector_learning_rate": 1e-12,
    }
    return train(resolve_recipe({k: v for k, v in values.items() if k != "quantization"})).artifact


def test_an_adapter_that_changes_nothing_is_told(trained, tmp_path):
    base = assemble("embedded", "embedded", tmp_path / "base", dtype="float32")
    recipe = {**read_manifest(trained).recipe, "base": str(base), "tune": "lora", "output_dir": str(tmp_path / "still")}
    recipe |= {"learning_rate": 1e-30, "projector_learning_rate": 1e-30, "max_steps": 1}
    still = train(resolve_recipe({k: v for k, v in recipe.items() if k != "quantization"})).artifact
    with pytest.raises(RunError, match="The adapter changes nothing"):
        merge(still, tmp_path / "merged", dtype="float32")


def test_shards_and_their_index(trained, tmp_path, monkeypatch):
    """Written in pieces of half a megabyte, and loaded whole."""
    monkeypatch.setattr(stream.write_shards, "__defaults__", (1 << 19,))
    folder = merge(trained, tmp_path / "merged", proof=False)
    assert (
        len(list(folder.glob("model-*-of-*.safetensors"))) > 5 and (folder / "model.safetensors.index.json").is_file()
    )
    monkeypatch.undo()
    one = merge(trained, tmp_path / "one", proof=False)
    assert torch.equal(logits(load(folder, dtype="float32")), logits(load(one, dtype="float32")))
    assert read_manifest(one).report["proof"] is None


FINE = Figures(0.01, 0.001, 0.0005, 1e-6, 1.0)
EFFECT = Figures(2.0, 0.3, 0.2, 0.1, 0.7)


@pytest.mark.parametrize(
    ("merged", "effect", "changed", "message"),
    [
        (FINE, EFFECT, EFFECT, None),
        (FINE, EFFECT, FINE, "The merge changed nothing"),
        (EFFECT, EFFECT, EFFECT, "The merge changed too much"),
        (FINE, Figures(0, 0, 0, 0, 1), FINE, "The adapter changes nothing"),
        (Figures(math.nan, math.nan, math.nan, math.nan, 1.0), EFFECT, EFFECT, "numbers that are none"),
    ],
)
def test_what_the_figures_say(merged, effect, changed, message):
    if message is None:
        judge(merged, effect, changed, "bfloat16")
    else:
        with pytest.raises(RunError, match=message):
            judge(merged, effect, changed, "bfloat16")


def test_numbers_that_are_none_are_not_merged(trained, tmp_path, monkeypatch):
    from qllava.artifact.delta import Change

    monkeypatch.setattr(Change, "applied", lambda self, weight: weight.float() * float("nan"))
    with pytest.raises(RunError, match="would hold numbers that are none"):
        merge(trained, tmp_path / "merged", proof=False)
    assert not (tmp_path / "merged").exists()


def test_nothing_is_written_into_an_artifact(trained):
    with pytest.raises(UserError, match="lies inside the artifact"):
        merge(trained, trained / "merged")
    assert verify(trained)
