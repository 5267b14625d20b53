"""The fused layers compute what PEFT's layers compute, keep less, and stand aside where they do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import HIDDEN, core, kept, language_model

from qllava.data.pack import Layout
from qllava.model.attention import install_attention
from qllava.model.forward import head_loss
from qllava.model.fused import fuse


def run(model, x, **kwargs):
    """Output, and gradients of the input and of all that trains."""
    x = x.clone().requires_grad_()
    weight = torch.linspace(-1, 1, x.numel()).view_as(x).to(x.dtype)
    out = core(model)(inputs_embeds=x, use_cache=False, **kwargs).last_hidden_state
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return out, torch.autograd.grad((out * weight).sum(), wanted)


def compare(plain, fused, tolerance):
    torch.testing.assert_close(
        fused[0], plain[0], rtol=tolerance, atol=tolerance * float(plain[0].detach().abs().max())
    )
    for got, expected in zip(fused[1], plain[1], strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_heads": 2}, {"use_rslora": True}, {"lora": False}, {"rank_pattern": {"down_proj": 7}}, {"target_modules": ["v_proj", "up_proj"]}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_output_and_gradients_equal_pefts(options, dtype):
    plain = language_model(dtype, **options)
    fused = copy.deepcopy(plain)
    assert fuse(core(fused)) == 2
    x = torch.randn(2, 12, HIDDEN, dtype=dtype)
    # the norms compute in float32 in both, whatever the dtype around them
    compare(run(plain, x), run(fused, x), 1e-6 if dtype == torch.float32 else 3e-7)


def test_under_autocast_they_differ_by_rounding_alone():
    plain = language_model(torch.bfloat16)
    exact, fused = copy.deepcopy(plain).float(), copy.deepcopy(plain)
    fuse(core(fused))
    x = torch.randn(2, 12, HIDDEN, dtype=torch.bfloat16)
    true = run(exact, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = run(plain, x), run(fused, x)
    off = [
        sum(float((a.float() - b).norm() / b.norm()) for a, b in zip(which[1], true[1], strict=True))
        for which in (theirs, ours)
    ]
    assert off[1] < 1.2 * off[0]  # as near to float32 as PEFT's
    assert (ours[0].float() - true[0]).norm() < 1.2 * (theirs[0].float() - true[0]).norm()


def test_padded_rows_and_their_mask_are_the_same():
    plain = language_model()
    fused = copy.deepcopy(plain)
    fuse(core(fused))
    mask = torch.tensor([[1] * 12, [0] * 5 + [1] * 7])
    x = torch.randn(2, 12, HIDDEN)
    (a, _), (b, _) = run(plain, x, attention_mask=mask), run(fused, x, attention_mask=mask)
    torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-5, atol=1e-5)


def test_a_packed_row_equals_its_samples_alone():
    model = language_model(torch.float64)
    packed = copy.deepcopy(model)
    install_attention(core(packed))
    fuse(core(packed))
    x = torch.randn(1, 20, HIDDEN, dtype=torch.float64)
    # trunk 0-5, branches 5-8 and 8-12; a sample 12-17; padding
    layout = Layout(((0, 5, 8, 12), (12, 17)), 0)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 0, 1, 2, 3, 4, 0, 0, 0]])
    out = core(packed)(
        inputs_embeds=x, position_ids=positions, attention_mask=torch.empty(1, 1, 0, 0), layout=layout, use_cache=False
    ).last_hidden_state
    for places in ([*range(8)], [*range(5), *range(8, 12)], [*range(12, 17)]):
        alone = core(model)(inputs_embeds=x[:, places], use_cache=False).last_hidden_state
        torch.testing.assert_close(out[:, places], alone, rtol=1e-6, atol=1e-6)


def test_recomputed_layers_give_the_same_gradients():
    plain = language_model(lora_dropout=0.5).train()
    checkpointed = copy.deepcopy(plain)
    fuse(core(plain)), fuse(core(checkpointed))
    core(checkpointed).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    x = torch.randn(1, 12, HIDDEN)
    torch.manual_seed(3)
    expected = run(plain, x)
    torch.manual_seed(3)
    compare(expected, run(checkpointed, x), 1e-6)


def test_dropout_drops_its_share_scales_the_rest_and_is_the_same_backwards():
    model = language_model(torch.float64, layers=1, lora_dropout=0.5).train()
    fuse(core(model))
    x, weight = torch.randn(2, 1, 6, HIDDEN, dtype=torch.float64)

    def out(values):
        torch.manual_seed(1)
        return (core(model)(inputs_embeds=values, use_cache=False).last_hidden_state * weight).sum()

    # the gradient is that of the function with this very mask: central differences along a random direction
    direction = torch.randn_like(x)
    step = 1e-3  # the norms compute in float32
    x.requires_grad_()
    slope = float((torch.autograd.grad(out(x), x)[0] * direction).sum())
    with torch.no_grad():
        measured = float(out(x + step * direction) - out(x - step * direction)) / (2 * step)
    assert abs(slope - measured) < 1e-3 * abs(measured)
    # over many masks it is on average what no dropout gives
    model.eval()
    with torch.no_grad():
        still = core(model)(inputs_embeds=x, use_cache=False).last_hidden_state
        assert torch.equal(still, core(model)(inputs_embeds=x, use_cache=False).last_hidden_state)
        model.train()
        drawn = [core(model)(inputs_embeds=x, use_cache=False).last_hidden_state for _ in range(2)]
    assert not torch.equal(*drawn)


def test_dropout_is_unbiased():
    from qllava.model.fused import Adapter, _dropped

    x = torch.ones(400, 100)
    dropped = _dropped(x, Adapter(1.0, 0.25, seed=5))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(float((dropped == 0).float().mean()) - 0.25) < 0.01
    assert torch.equal(dropped, _dropped(x, Adapter(1.0, 0.25, seed=5)))


def test_layers_that_do_not_fit_stay_as_they_are():
    assert fuse(core(language_model(use_dora=True))) == 0
    full = language_model(lora=False)
    full.layers[0].requires_grad_(True)
    assert fuse(full) == 1


def test_a_layer_keeps_less_than_half_of_what_pefts_keeps():
    """In bfloat16, without dropout and with it."""
    for dropout, share in ((0.0, 0.47), (0.1, 0.28)):
        ours, theirs = (
            kept(f, layers=3, lora_dropout=dropout) - kept(f, layers=2, lora_dropout=dropout) for f in (True, False)
        )
        assert ours < share * theirs


def test_a_layer_that_runs_again_keeps_its_input_alone():
    for fused in (True, False):
        each = kept(fused, layers=3, recomputed=True) - kept(fused, layers=2, recomputed=True)
        assert each == 128 * HIDDEN * 2


def test_the_loss_of_a_frozen_head_and_its_gradient(monkeypatch):
    monkeypatch.setattr("qllava.model.forward.LOGITS_AT_ONCE", 3 * 50)  # three rows at a time
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(10, 8, requires_grad=True), torch.randint(50, (10,))
    expected = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    got = head_loss(head, hidden, targets)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(2 * got, hidden), torch.autograd.grad(2 * expected, hidden))
    assert float(head_loss(head, hidden[:0], targets[:0])) == 0.0
