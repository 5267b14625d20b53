"""4 bits where they belong, and bitsandbytes' traps on the CPU."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qllava.errors import RunError
from qllava.model import quantize
from qllava.model.build import load_model
from qllava.recipe.schema import Parts, Quantization

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")
CPU = torch.device("cpu")


@pytest.fixture
def model():
    return load_model(EMBEDDED, torch.float32, CPU, Quantization())


def whole_folder(tmp_path):
    from qllava.artifact.assemble import assemble

    return str(assemble("embedded", "embedded", tmp_path / "base", dtype="float32"))


@pytest.mark.parametrize("whole", [False, True], ids=["from parts", "whole"])
def test_the_llms_linears_and_nothing_else(tmp_path, whole):
    model = load_model(whole_folder(tmp_path) if whole else EMBEDDED, torch.float32, CPU, Quantization())
    names = set(quantize.quantized_linears(model))
    assert len(names) == 28
    assert all(n.startswith("model.language_model.layers.") for n in names)
    assert type(model.lm_head) is torch.nn.Linear


def test_the_check_sees_a_quantised_stranger(model):
    model.lm_head = bnb.nn.Linear4bit(256, 64, bias=False)
    with pytest.raises(RunError, match=r"outside the LLM are in 4 bits \['lm_head'\]"):
        quantize.check(model)


def test_the_check_sees_a_linear_left_out(model):
    model.model.language_model.layers[0].self_attn.q_proj = torch.nn.Linear(256, 256)
    with pytest.raises(RunError, match="of the LLM's linears are not"):
        quantize.check(model)


def gradients(model, ids):
    model.train()
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits.float().square().mean().backward()
    return embeds.grad


def test_an_evaluation_forward_changes_nothing(model):
    """Without the guard, on a CPU with AVX512-BF16, the weights are repacked here and later gradients are wrong."""
    ids = torch.arange(3, 35)[None]
    before, packed = (
        gradients(model, ids),
        {n: m.weight.data.clone() for n, m in quantize.quantized_linears(model).items()},
    )
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    after = quantize.quantized_linears(model)
    assert all(torch.equal(packed[n], m.weight.data) for n, m in after.items())
    torch.testing.assert_close(gradients(model, ids), before, rtol=0, atol=0)


def test_dequantized_gives_the_same_logits(model):
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        plain = quantize.dequantize(model)
        assert not quantize.quantized_linears(plain)
        torch.testing.assert_close(
            plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected, rtol=1e-4, atol=1e-4
        )
