"""Bases as they come: Vicuna's generation settings, tied and untied heads, vocabularies padded or not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from qllava.api import load, merge, train
from qllava.recipe import resolve_recipe

VICUNA = {  # lmsys/vicuna-7b-v1.5's own, which today's transformers refuses to save
    "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0,
    "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0",
}  # fmt: skip


def a_base(shared, folder, vocabulary, tied):
    """A small random LLM with the real Llama vocabulary and Vicuna's generation settings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (shared / "llama_tokenizer").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "generation_config.json").write_text(json.dumps(VICUNA))
    return {"vision_tower": "embedded", "llm": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("vocabulary", [32000, 32003, 32064])
@pytest.mark.parametrize("tune", ["full", "qlora"])
def test_a_run_on_it_is_finished_saved_and_loaded_by_plain_transformers(
    shared, recipe_values, tmp_path, vocabulary, tied, tune
):
    values = {**recipe_values, "base": a_base(shared, tmp_path / "llm", vocabulary, tied), "tune": tune, "max_steps": 2}
    if tune == "full":
        values.pop("lora")
    result = train(resolve_recipe({**values, "learning_rate": 1e-3}))
    whole = result.artifact if tune == "full" else merge(result.artifact, tmp_path / "merged", dtype="float32")
    rows = 32064 if vocabulary == 32000 else vocabulary  # room for <image> and <pad>, where there is none
    model, info = LlavaForConditionalGeneration.from_pretrained(whole, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.tie_word_embeddings == tied and model.lm_head.weight.shape[0] == rows
    assert (model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()) == tied
    stored = {k for f in whole.glob("*.safetensors") for k in load_file(f)}
    assert ("language_model.lm_head.weight" in stored) != tied
    ours = load(result.artifact, dtype="float32")
    ids = torch.tensor([[1, *[ours.processing.image_token_id] * ours.processing.image_tokens, 319, 6635]])
    pixels = torch.randn(1, 3, *[ours.processing.image_processor.crop_size["height"]] * 2)
    with torch.no_grad():
        a, b = (
            ours.model(input_ids=ids, pixel_values=pixels).logits,
            model.eval()(input_ids=ids, pixel_values=pixels).logits,
        )
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    if tune == "full" and vocabulary <= 32000:
        state = json.loads((whole / "generation_config.json").read_text())
        assert "temperature" not in state and state["eos_token_id"] == 2
