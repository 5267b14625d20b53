"""The planner's formulas against what autograd keeps, what tensors weigh, and figures worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from layers import HEADS, kept
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from qllava.model.quantize import four_bits
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Quantization
from qllava.train.engine import Engine
from qllava.train.memory import Batch, Shape, estimate, four_bit_bytes, kept_by_layer, operations

VALUES = {
    "stage": "instruct", "tune": "lora", "base": "x", "data": [{"path": "x"}], "output_dir": "x", "global_batch_size": 4,
    "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lora": {"r": 4, "lora_dropout": 0.0},
}  # fmt: skip


def recipe(**changes):
    return resolve_recipe({**VALUES, **changes})


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "PEFT"])
@pytest.mark.parametrize(("hidden", "middle", "positions"), [(64, 176, 128), (128, 176, 128), (64, 352, 96)])
def test_a_layer_keeps_what_the_formula_says(fused, dtype, dropout, hidden, middle, positions):
    sizes = {"dtype": dtype, "positions": positions, "hidden": hidden, "middle": middle, "lora_dropout": dropout}
    measured = kept(fused, layers=3, **sizes) - kept(fused, layers=2, **sizes)
    shape = SimpleNamespace(width=hidden, middle=middle, attention=hidden, heads=HEADS)
    ours = recipe(fused_layers=fused, lora={"r": 4, "lora_dropout": dropout})
    said = kept_by_layer(ours, shape, Batch(positions, 1, 1), dtype.itemsize)
    assert said == pytest.approx(
        measured, rel=1e-9 if fused else 0.05
    )  # of PEFT's, LoRA's own small tensors are left out


@pytest.mark.parametrize("double", [True, False])
def test_a_weight_in_four_bits_takes_what_is_said(double):
    quantization = Quantization(bnb_4bit_use_double_quant=double)
    held = bitsandbytes.nn.Params4bit(
        torch.randn(512, 1024), requires_grad=False, quant_type="nf4", compress_statistics=double
    ).to("cpu")
    state = held.quant_state
    parts = [held.data, state.absmax, *([state.state2.absmax] if double else [])]
    measured = sum(t.nbytes for t in parts) / (512 * 1024)
    said = four_bit_bytes(recipe(tune="qlora", quantization=quantization.model_dump()))
    assert said == pytest.approx(measured, rel=1e-3)
    assert four_bits(torch.ones(64, 64), quantization, torch.device("cpu")).shape == (64, 64)


def vicuna():
    llm = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return LlavaConfig(vision_config=tower, text_config=llm, image_token_index=32000)


def test_7b_by_hand():
    """6,476,005,376 weights in the LLM's linears, 4.127 bits each; 20,979,712 in the projector; r 32 makes 79,953,920."""
    ours = recipe(tune="qlora", lora={"r": 32, "lora_alpha": 64, "lora_dropout": 0.05})
    shape = Shape(ours, vicuna())
    assert shape.linears == 6_476_005_376
    assert shape.trained["LoRA"] == 79_953_920 and shape.trained["projector"] == 20_979_712
    batch = Batch(2048, 1, 200)
    memory = estimate(ours, shape, batch, torch.bfloat16, 32, "cuda")
    others = 2 * 32064 * 4096 + 65 * 4096 + shape.frozen["vision tower"]  # embeddings, head, norms
    assert memory.weights == pytest.approx(6_476_005_376 * 0.5 * (1 + 2 * (1 + 4 / 256) / 64) + 2 * others, rel=1e-4)
    assert memory.trained == (79_953_920 + 20_979_712) * 16
    # all layers run again: each keeps its input, one keeps everything
    assert memory.kept > 32 * 2048 * 4096 * 2 + kept_by_layer(ours, shape, batch, 2)
    assert memory.peak < 8 << 30
    eight = estimate(ours, shape, batch, torch.bfloat16, 32, "cuda", "paged_adamw_8bit")
    assert memory.trained - eight.trained == (79_953_920 + 20_979_712) * 8
    # forward and backward: 4 operations a weight and position, and 2 more where it is run again
    plain, again = (operations(ours, shape, batch, n) for n in (0, 32))
    assert 1.0 < plain / (4 * 6_476_005_376 * 2048) < 1.25
    assert 1.4 < again / plain < 1.55


def test_more_of_anything_takes_more():
    ours = recipe()
    shape = Shape(ours, vicuna())
    base = estimate(ours, shape, Batch(1024, 1, 100), torch.bfloat16, 0, "cuda").peak
    assert estimate(ours, shape, Batch(2048, 2, 100), torch.bfloat16, 0, "cuda").peak > base
    assert estimate(ours, shape, Batch(1024, 1, 100), torch.float32, 0, "cuda").peak > base
    assert estimate(ours, shape, Batch(1024, 1, 100), torch.bfloat16, 4, "cuda").peak < base
    plain = recipe(fused_layers=False)
    assert estimate(plain, shape, Batch(1024, 1, 100), torch.bfloat16, 0, "cuda").peak > base


def test_what_a_whole_model_that_trains_keeps_besides():
    """All logits at once, for the head learns; under DDP autocast's copy of all weights to the end of the forward pass."""
    values = {k: v for k, v in VALUES.items() if k != "lora"}
    full = resolve_recipe({**values, "tune": "full", "fused_layers": False})
    shape, few, many = Shape(full, vicuna()), Batch(2048, 1, 200), Batch(2048, 1, 2000)

    def memory(batch, engine):
        return estimate(full, shape, batch, torch.bfloat16, shape.layers, "cuda", engine=Engine(engine, 8))

    trained = sum(n for part, n in shape.trained.items() if part != "projector")
    assert memory(few, "ddp").kept - memory(few, "fsdp2").kept == pytest.approx(2 * trained * 31 / 32, rel=1e-6)
    assert memory(many, "fsdp2").working == 2000 * 32064 * 12 > memory(few, "fsdp2").working
