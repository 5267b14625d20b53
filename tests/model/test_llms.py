"""LLMs of other families in a LLaVA, each with its own chat template, from a run to plain transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)
from transformers.models.auto import AutoModelForCausalLM

from qllava.api import load, merge, train
from qllava.data.template import TEMPLATES, template_for
from qllava.errors import UserError
from qllava.model.base import EMBEDDED, config_of
from qllava.model.inputs import load_processing
from qllava.model.lora import lora_layers
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 2048, "pad_token_id": None}  # fmt: skip
FAMILIES = {
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "phi3": (Phi3Config, {}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "query_pre_attn_scalar": 16}),
}  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def an_llm(folder, config, own=TEMPLATE, **more):
    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "llm")
    tokenizer.chat_template = own
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    AutoModelForCausalLM.from_config(config(**SHAPE, vocab_size=len(tokenizer), **ids, **more)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if (EMBEDDED / "llm" / "tokenizer.model").is_file():
        shutil.copyfile(EMBEDDED / "llm" / "tokenizer.model", folder / "tokenizer.model")
    return Parts(vision_tower="embedded", llm=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_it_merges_and_plain_transformers_agrees(recipe_values, tmp_path, family):
    config, more = FAMILIES[family]
    base = an_llm(tmp_path / "llm", config, **more)
    values = {**recipe_values, "base": base.model_dump(), "template": "auto", "max_steps": 2, "tune": "lora"}
    values["packing"] = family != "gemma2"  # which caps its attention's logits
    result = train(resolve_recipe(values))
    ours = load(result.artifact, dtype="float32")
    inside = {n.split(".")[-1] for n in lora_layers(ours.model)}
    assert inside == ({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"} if family == "phi3" else
                      {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})  # fmt: skip
    assert ours.manifest.template == "chat_template"
    merged = merge(result.artifact, tmp_path / "merged", dtype="float32")
    plain, info = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert plain.config.tie_word_embeddings == bool(more.get("tie_word_embeddings", family == "gemma2"))
    tokens, edge = ours.processing.image_tokens, plain.config.vision_config.image_size
    given = {
        "input_ids": torch.tensor([[1, *[ours.processing.image_token_id] * tokens, 40, 50, 60]]),
        "pixel_values": torch.randn(1, 3, edge, edge),
    }
    with torch.no_grad():
        torch.testing.assert_close(ours.model(**given).logits, plain.eval()(**given).logits, atol=1e-4, rtol=0)
    assert plain.generation_config.eos_token_id == ours.processing.encoder.eos
    assert plain.config.text_config.pad_token_id not in (None, ours.processing.encoder.eos)


def test_the_template_that_belongs_to_an_llm(tmp_path):
    assert template_for("meta-llama/Llama-3.1-8B-Instruct") == "llama_3"
    assert load_processing(an_llm(tmp_path / "a", LlamaConfig), "auto", "pad").template.name == "chat_template"
    with pytest.raises(UserError, match="auto"):
        load_processing(an_llm(tmp_path / "b", LlamaConfig, own=None), "auto", "pad")


def test_llama_3_s_template_is_its_own_jinja_s():
    from jinja2 import Environment

    from qllava.data.sample import Turn
    from qllava.data.template import Begin, Special, Text

    jinja = (  # the conversation's part of Meta-Llama-3-8B-Instruct's chat template
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
        "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    template = TEMPLATES["llama_3"]
    for turns in (
        [Turn("user", "q")],
        [Turn("user", "q"), Turn("assistant", "a")],
        [Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r")],
    ):
        pieces = template.pieces(turns)
        said = "".join(
            "<|begin_of_text|>" if isinstance(p, Begin) else p.token if isinstance(p, Special) else p.text
            for p in pieces
        )
        messages = [{"role": "system", "content": template.system}] + [
            {"role": t.role, "content": t.text} for t in turns
        ]
        wanted = (
            Environment()
            .from_string(jinja)
            .render(messages=messages, bos_token="<|begin_of_text|>", add_generation_prompt=turns[-1].role == "user")
        )
        assert said == wanted
        learned = [p for p in pieces if getattr(p, "supervised", False)]
        assert [p.text if isinstance(p, Text) else p.token for p in learned] == [
            w for t in turns if t.role == "assistant" for w in (t.text, "<|eot_id|>")
        ]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (GPT2Config(n_embd=8, n_layer=1, n_head=2), "lie elsewhere"),
        (T5Config(d_model=8, num_layers=1), "continues text"),
        (
            MixtralConfig(hidden_size=8, num_local_experts=2, num_hidden_layers=1, num_attention_heads=2),
            "mixture of experts",
        ),
    ],
)
def test_what_cannot_be_a_llava_s_llm_is_refused_before_its_weights(tmp_path, config, word):
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED / "llm").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=word):
        config_of(Parts(vision_tower="embedded", llm=str(tmp_path)))


def test_rows_longer_than_the_llm_are_told(recipe_values, tmp_path, capsys):
    from qllava.api import check

    base = an_llm(tmp_path / "llm", LlamaConfig)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    check(resolve_recipe({**recipe_values, "base": base.model_dump(), "template": "auto", "max_length": 256}))
    assert "made for 128 positions" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("config", "more", "word"),
    [
        (MistralConfig, {"sliding_window": 64}, "max_length: 64"),
        (Phi3Config, {"sliding_window": 64}, "max_length: 64"),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "max_length: 64"),
        (Gemma2Config, {"head_dim": 16}, "caps its attention"),
        (MistralConfig, {"sliding_window": 256}, None),
        (Qwen2Config, {"sliding_window": 64}, None),  # not used
    ],
)
def test_attention_that_packed_rows_lack_is_refused(recipe_values, tmp_path, config, more, word):
    base = an_llm(tmp_path / "llm", config, **more)
    values = {**recipe_values, "base": base.model_dump(), "template": "auto", "max_length": 256, "tune": "lora"}
    train(resolve_recipe({**values, "packing": False, "max_steps": 1, "output_dir": str(tmp_path / "padded")}))
    if word is None:
        train(resolve_recipe({**values, "max_steps": 1}))
        return
    with pytest.raises(UserError, match=word):
        train(resolve_recipe(values))
