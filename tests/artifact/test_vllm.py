"""What is said of a folder before vLLM gets it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qllava.api import assemble, load, merge, train, verify
from qllava.artifact.convert.vllm import lint_vllm, to_vllm
from qllava.errors import UserError
from qllava.recipe import resolve_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return assemble("embedded", "embedded", tmp_path_factory.mktemp("vllm") / "base")


def kinds(lines: list[str]) -> set[str]:
    return {line.split(":")[0] for line in lines}


def said(lines: list[str], start: str, what: str) -> bool:
    return any(line.startswith(start) and what in line for line in lines)


def plain(base, folder, **changes):
    """A copy without the manifest, with other values at the top of config.json."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("qllava.json"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


def test_a_whole_model_is_taken(base):
    lines = lint_vllm(base)
    assert kinds(lines) <= {"Taken", "Not certain", "Changed"}
    assert said(lines, "Taken", "bfloat16") and said(lines, "Taken", "padded to squares")
    assert said(lines, "Taken", "2050 tokens in 2112 rows, <image> is 2048")
    assert said(lines, "Changed", "add_special_tokens")  # the template has no <s>


@pytest.mark.parametrize(
    ("changes", "start", "what"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "Refused", "LlamaForCausalLM"),
        ({"dtype": "float32"}, "Changed", "16 bits"),
        ({"image_token_index": 7}, "Refused", "token 7"),
    ],
)
def test_what_a_config_says(base, tmp_path, changes, start, what):
    assert said(lint_vllm(plain(base, tmp_path / "model", **changes)), start, what)


def test_processor_template_and_vocabulary(base, tmp_path):
    folder = plain(base, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert said(lint_vllm(folder), "Missing", "chat template")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 2049
    (folder / "config.json").write_text(json.dumps(config))
    assert said(lint_vllm(folder), "Wrong", "2050 tokens")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["image_processor_type"] = "CLIPImageProcessor"
    (folder / "processor_config.json").write_text(json.dumps(settings))
    assert said(lint_vllm(folder), "Wrong", "CLIPImageProcessor")
    settings["image_processor"]["do_pad"] = False
    (folder / "processor_config.json").write_text(json.dumps(settings))
    assert said(lint_vllm(folder), "Taken", "middle cropped")
    (folder / "processor_config.json").unlink()
    assert said(lint_vllm(folder), "Missing", "processor")


def test_an_adapter_is_better_merged(recipe_values, tmp_path):
    adapter = train(resolve_recipe(recipe_values)).artifact
    lines = lint_vllm(adapter)
    assert lines[0].startswith("Ignored: projector.safetensors") and "qllava merge" in lines[0]
    assert said(lines, "Needed", "--max-lora-rank 16; the adapter's highest rank is 4")
    assert said(lines, "Needed", "qllava assemble") and "Refused" not in kinds(lines)
    with pytest.raises(UserError, match="qllava merge"):
        to_vllm(adapter, tmp_path / "out")
    lines = to_vllm(merge(adapter, tmp_path / "merged"), tmp_path / "out")
    assert kinds(lines) <= {"Taken", "Not certain", "Changed"} and verify(tmp_path / "out").kind == "model"


def test_a_projector_alone_and_a_trained_tower(recipe_values):
    del recipe_values["lora"]
    lines = lint_vllm(train(resolve_recipe({**recipe_values, "tune": "projector"})).artifact)
    assert said(lines, "Refused", "only its projector")


@pytest.mark.parametrize(
    ("changes", "start", "what"),
    [
        ({"use_dora": True}, "Refused", "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "Refused", "modules_to_save (lm_head)"),
        ({"bias": "all"}, "Refused", "biases"),
        ({"r": 1024}, "Refused", "rank 1024"),
        ({"r": 24}, "Needed", "--max-lora-rank 32 (its default is 16)"),
        ({"alpha_pattern": {"q_proj": 2}}, "Wrong", "alpha_pattern"),
        ({"use_rslora": True}, "Taken", "rsLoRA"),
    ],
)
def test_variants_of_lora(recipe_values, changes, start, what):
    adapter = train(resolve_recipe({**recipe_values, "tune": "lora", "max_steps": 1})).artifact
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    manifest = json.loads((adapter / "qllava.json").read_text())
    del manifest["files"]["adapter_config.json"]  # made anew below
    (adapter / "qllava.json").unlink()
    from qllava.artifact.manifest import Manifest, seal

    seal(adapter, Manifest.model_validate(manifest))
    assert said(lint_vllm(adapter), start, what)


def test_a_trained_tower_beside_the_adapter_is_ignored(recipe_values):
    adapter = train(resolve_recipe({**recipe_values, "max_steps": 1, "tune_vision_tower": "full"})).artifact
    assert said(lint_vllm(adapter), "Ignored", "vision_tower.safetensors")


def test_names_become_the_published_ones(base, tmp_path):
    folder = plain(base, tmp_path / "bare")
    state = load_file(folder / "model.safetensors")
    bare = {k.replace("vision_tower.vision_model.", "vision_tower."): v for k, v in state.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    assert said(lint_vllm(folder), "Not certain", "weights' names")
    lines = to_vllm(folder, tmp_path / "out")
    assert not said(lines, "Not certain", "weights' names")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[k], state[k]) for k in state)
    assert load(tmp_path / "out").manifest is None
    with pytest.raises(UserError, match="is there already"):
        to_vllm(folder, tmp_path / "out")
