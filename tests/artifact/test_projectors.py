"""Other projectors in and out of the original's layout, and what refuses them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qllava.api import assemble, combine, convert, load, merge, train
from qllava.artifact.convert.vllm import lint_vllm
from qllava.artifact.switch import Switch
from qllava.errors import UserError
from qllava.model.base import EMBEDDED
from qllava.recipe import resolve_recipe

KEYS = {
    "linear": {"model.mm_projector.weight", "model.mm_projector.bias"},
    "mlp3x_gelu": {f"model.mm_projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")},
}


def tensors_of(folder):
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.parametrize("kind", KEYS)
def test_a_model_to_the_original_s_layout_and_back_bit_for_bit(tmp_path, kind):
    base = assemble("embedded", "embedded", tmp_path / "base", projector_type=kind)
    there = convert(base, "original", tmp_path / "there")
    assert {k for k in tensors_of(there) if "mm_projector" in k} == KEYS[kind]
    assert json.loads((there / "config.json").read_text())["mm_projector_type"] == kind
    back = convert(there, "hf", tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["projector_type"] == kind
    before, after = tensors_of(base), tensors_of(back)
    assert before.keys() == after.keys()
    unlike = [k for k in before if not torch.equal(before[k], after[k])]
    assert all(k.startswith("vision_tower.") or "embed_tokens" in k or "lm_head" in k for k in unlike), unlike
    for table in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        rows = min(len(before[table]), len(after[table])) - 64  # those of <image> and <pad> mean nothing
        assert torch.equal(before[table][:rows], after[table][:rows])


@pytest.mark.parametrize("kind", KEYS)
def test_an_adapter_there_and_back(recipe_values, tmp_path, kind):
    base = {"vision_tower": "embedded", "llm": "embedded", "projector_type": kind}
    result = train(resolve_recipe({**recipe_values, "base": base, "tune": "lora", "max_steps": 1}))
    there = convert(result.artifact, "original", tmp_path / "there")
    held = torch.load(there / "non_lora_trainables.bin", weights_only=True)
    assert {k.removeprefix("base_model.model.") for k in held} == KEYS[kind]
    whole = assemble("embedded", "embedded", tmp_path / "base", dtype="float32", projector_type=kind)
    back = convert(there, "hf", tmp_path / "back", base=str(whole))
    mine, theirs = load_file(result.artifact / "projector.safetensors"), load_file(back / "projector.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_resampler_stays_here(recipe_values, tmp_path):
    base = {"vision_tower": "embedded", "llm": "embedded", "projector_type": "resampler", "projector_queries": 32}
    result = train(resolve_recipe({**recipe_values, "base": base, "tune": "lora", "max_steps": 3}))
    whole = merge(result.artifact, tmp_path / "merged")
    for source in (result.artifact, whole):
        with pytest.raises(UserError, match="resampler"):
            convert(source, "original", tmp_path / "x")
    for to in ("gguf", "vllm"):
        with pytest.raises(UserError, match="resampler"):
            convert(whole, to, tmp_path / f"x.{to}")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "mlp3x_gelu", "resampler"])
def test_transformers_own_class_does_not_make_up_a_projector(tmp_path, kind):
    folder = assemble("embedded", "embedded", tmp_path / "base", projector_type=kind)
    code = f"from transformers import LlavaForConditionalGeneration as L; L.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "qllava" in done.stderr.splitlines()[-1]


def test_a_type_of_the_original_s_that_is_not_known_is_refused(tmp_path):
    base = assemble("embedded", "embedded", tmp_path / "base")
    there = convert(base, "original", tmp_path / "there")
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**config, "mm_projector_type": "identity"}))
    with pytest.raises(UserError, match="identity"):
        convert(there, "hf", tmp_path / "back")


def run(values, kind, out, **queries):
    base = {"vision_tower": "embedded", "llm": "embedded", "projector_type": kind, **queries}
    values = {**values, "base": base, "tune": "lora", "max_steps": 2, "output_dir": str(out)}
    return train(resolve_recipe(values)).artifact


def test_adapters_of_two_projectors_are_neither_combined_nor_switched(recipe_values, tmp_path):
    linear, mlp = (run(recipe_values, k, tmp_path / k) for k in ("linear", "mlp2x_gelu"))
    few, more = (run(recipe_values, "resampler", tmp_path / f"{n}", projector_queries=n) for n in (32, 33))
    for one, other in ((linear, mlp), (few, more)):
        with pytest.raises(UserError, match="on another base"):
            combine([one, other], tmp_path / "x")
        switch = Switch({"one": one})
        with pytest.raises(UserError, match="on another base"):
            switch.add("other", other)
    both = combine([few, few], tmp_path / "both", [0.5, 0.5])
    mine, made = (load_file(f / "projector.safetensors") for f in (few, both))
    assert mine.keys() == made.keys() and all(torch.allclose(mine[k], made[k], atol=1e-6) for k in mine)


def test_64_queries_are_those_that_are_left_out(recipe_values, tmp_path):
    artifact = run(recipe_values, "resampler", tmp_path / "run")
    named = "{vision_tower: embedded, llm: embedded, projector_type: resampler%s}"
    assert load(artifact, base=named % "").processing.image_tokens == 64
    assert load(artifact, base=named % ", projector_queries: 64").processing.image_tokens == 64
    with pytest.raises(UserError, match="projector_queries 64"):
        load(artifact, base=named % ", projector_queries: 65")
    with pytest.raises(UserError, match="projector_queries"):
        load(artifact, base=named % ", projector_queries: 0")


@pytest.mark.parametrize("kind", [*KEYS, "mlp2x_gelu"])
def test_an_adapter_without_a_config_says_its_projector_itself(recipe_values, tmp_path, kind):
    artifact = run(recipe_values, kind, tmp_path / "run")
    there = convert(artifact, "original", tmp_path / "there")
    (there / "config.json").unlink()
    parts = {"base": str(EMBEDDED / "llm"), "vision_tower": str(EMBEDDED / "vision_tower")}
    back = convert(there, "hf", tmp_path / "back", **parts)
    mine, theirs = load_file(artifact / "projector.safetensors"), load_file(back / "projector.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    other = assemble("embedded", "embedded", tmp_path / "base", projector_type="mlp5x_gelu")
    with pytest.raises(UserError, match=rf"{kind} of .* and the base's is mlp5x_gelu"):
        convert(there, "hf", tmp_path / "x", base=str(other))


@pytest.mark.parametrize("kind", [*KEYS, "resampler", "mlp2x_gelu"])
def test_a_card_says_what_loads_it_and_vllm_what_it_takes(recipe_values, tmp_path, kind):
    artifact = run(recipe_values, kind, tmp_path / "run")
    merged = merge(artifact, tmp_path / "merged")
    card = (merged / "README.md").read_text()
    plain = kind == "mlp2x_gelu"
    assert ("Loads with `transformers.Llava" in card) == plain == (f"projector is `{kind}`" not in card)
    assert ("plain Hugging Face LLaVA" in (artifact / "README.md").read_text()) == plain
    refused = [line for line in lint_vllm(artifact) if line.startswith("Refused") and kind in line]
    assert bool(refused) != plain
