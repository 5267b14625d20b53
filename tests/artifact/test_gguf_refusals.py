"""What cannot become a GGUF is refused before anything is written, and what llama.cpp does otherwise is said."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from qllava.api import assemble, train
from qllava.artifact.convert.gguf import lint_gguf, to_gguf
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded base as one folder without a manifest."""
    folder = assemble("embedded", "embedded", tmp_path_factory.mktemp("gguf") / "base", dtype="float32")
    (folder / "qllava.json").unlink()
    return folder


def edited(base, folder, name: str, **changes):
    """A copy of the base with other values in `name`.json; a key `a.b` is b within a."""
    shutil.copytree(base, folder)
    values = json.loads((folder / f"{name}.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = values
        for step in path:
            inner = inner[step]
        inner[last] = value
    (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text_config__model_type": "mistral"}, "only Llama's architecture"),
        ({"text_config__hidden_act": "gelu"}, "has silu"),
        ({"text_config__rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ({"text_config__num_hidden_layers": 5}, "lacks 9 weights"),
        ({"text_config__num_hidden_layers": 3}, "no LLaVA-1.5 has"),
        ({"text_config__vocab_size": 2113}, "by its config"),
        ({"vision_config__image_size": 72}, "by its config"),
        ({"vision_config__hidden_act": "relu"}, "activation relu"),
        ({"vision_feature_select_strategy": "full"}, "class token"),
        ({"vision_feature_layer": [-2, -3]}, "reads one layer"),
        ({"projector_hidden_act": "relu"}, "another projector"),
        ({"model_type": "llava_next"}, "not a LLaVA"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(base, tmp_path, changes, complaint):
    folder = edited(base, tmp_path / "model", "config", **changes)
    with pytest.raises(UserError, match=complaint):
        to_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_the_tokenizer_must_be_sentencepiece_and_fit(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as Llama 3's looks
    with pytest.raises(UserError, match="no SentencePiece model"):
        to_gguf(folder, tmp_path / "out")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="BPE"):
        to_gguf(folder, tmp_path / "out")
    folder = tmp_path / "larger"
    shutil.copytree(base, folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 2112}))
    with pytest.raises(UserError, match="2113 tokens and only 2112"):
        to_gguf(folder, tmp_path / "out")


def test_adapters_nothing_and_what_is_there_are_refused(base, recipe_values, tmp_path, monkeypatch):
    adapter = train(resolve_recipe(recipe_values)).artifact
    with pytest.raises(UserError, match="qllava merge"):
        to_gguf(adapter, tmp_path / "out")
    with pytest.raises(UserError, match=r"no config\.json"):
        to_gguf(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match="No outtype 'q4'"):
        to_gguf(base, tmp_path / "out", "q4")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        to_gguf(base, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"qllava\[gguf\]"):
        to_gguf(base, tmp_path / "other")


def test_what_float16_cannot_hold_is_an_error_and_leaves_nothing(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    state = load_file(folder / "model.safetensors")
    state["language_model.model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"up_proj\.weight does not fit into f16: its largest value is 1e\+06"):
        to_gguf(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert to_gguf(folder, tmp_path / "out", "bf16").is_dir()


def test_what_llama_cpp_does_otherwise_is_said(base, tmp_path):
    lines = lint_gguf(base)
    assert "25814" in lines[0] and "after_eos" in lines[-1] and not any("squares" in line for line in lines)
    crops = edited(base, tmp_path / "crops", "processor_config", image_processor__do_pad=False)
    assert "pads images to squares" in lint_gguf(crops)[0]
