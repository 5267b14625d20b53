"""Several adapters as one: exact sums, ranks, TIES and DARE against their definitions."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from qllava.api import assemble, combine, load, verify
from qllava.artifact.delta import read_changes
from qllava.artifact.stream import BaseTensors
from qllava.errors import UserError


def dense(folder, base):
    tensors = BaseTensors(base)
    return {m: c.delta(tensors.weight(m)) for m, c in read_changes(folder).items()}


KINDS = [
    {},
    {"r": 8, "use_rslora": True},
    {"use_dora": True},
    {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 7}},
]


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "rslora", "dora", "patterns"])
def test_what_a_change_is_equals_pefts_own_merge(make, base, kind):
    folder = make(1, **kind)
    merged = load(folder, dtype="float32").model.merge_and_unload()
    before = BaseTensors(base)
    for module, delta in dense(folder, base).items():
        expected = merged.get_submodule(module).weight - before.weight(module)
        torch.testing.assert_close(delta, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "rslora", "dora", "patterns"])
def test_one_and_zero_give_the_first_back_exactly(make, base, tmp_path, kind):
    first, second = make(1, **kind), make(2)
    folder = combine([first, second], tmp_path / "both", [1, 0])
    was, now = read_changes(first), read_changes(folder)
    assert was.keys() == now.keys()
    for module, change in was.items():
        assert torch.equal(change.a, now[module].a) and torch.equal(change.b, now[module].b)
        assert change.scaling == pytest.approx(now[module].scaling, rel=1e-15)
    a, b = (load_file(f / "projector.safetensors") for f in (first, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_sum_is_exact_whatever_the_ranks_and_in_any_order(make, base, tmp_path):
    adapters, weights = [make(1), make(2, r=8, use_rslora=True), make(3, r=2, lora_alpha=1)], [0.7, -0.4, 1.5]
    folder = combine(adapters, tmp_path / "sum", weights)
    expected = {
        m: sum(w * dense(a, base)[m] for w, a in zip(weights, adapters, strict=True)) for m in dense(folder, base)
    }
    for module, delta in dense(folder, base).items():
        torch.testing.assert_close(delta, expected[module], atol=1e-6, rtol=1e-5)
    assert {c.rank for c in read_changes(folder).values()} == {14}
    turned = combine(adapters[::-1], tmp_path / "turned", weights[::-1])
    for module, delta in dense(turned, base).items():
        torch.testing.assert_close(delta, expected[module], atol=1e-6, rtol=1e-5)
    own = BaseTensors(base)
    projectors = [load_file(a / "projector.safetensors") for a in adapters]
    for key, tensor in load_file(folder / "projector.safetensors").items():
        start = own[f"multi_modal_projector.{key}"]
        wanted = start + sum(w * (p[key] - start) for w, p in zip(weights, projectors, strict=True))
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    assert len(verify(folder).report["conflicts"]) == 3 * 4  # three pairs, four layers


def test_subtracting_itself_leaves_the_base(make, base, tmp_path):
    first = make(1)
    folder = combine([first, first], tmp_path / "none", [1, -1])
    assert all(d.abs().max() < 1e-6 for d in dense(folder, base).values())


def test_a_dora_is_taken_as_what_it_does(make, base, tmp_path):
    first, second = make(1, use_dora=True), make(2)
    folder = combine([first, second], tmp_path / "both", [0.5, 0.5], rank=256)
    for module, delta in dense(folder, base).items():
        expected = 0.5 * dense(first, base)[module] + 0.5 * dense(second, base)[module]
        torch.testing.assert_close(delta, expected, atol=1e-4, rtol=1e-3)


def test_a_rank_is_the_best_one_and_its_error_is_told(make, base, tmp_path):
    adapters = [make(1), make(2)]
    folder = combine(adapters, tmp_path / "cut", rank=3)
    report = verify(folder).report["truncation"]
    lost = whole = 0.0
    for module, delta in dense(folder, base).items():
        full = sum(dense(a, base)[module] for a in adapters)
        u, s, v = torch.linalg.svd(full, full_matrices=False)
        torch.testing.assert_close(delta, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5, rtol=1e-3)
        lost, whole = lost + float((full - delta).norm()) ** 2, whole + float(full.norm()) ** 2
    assert report["relative"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3) and 0 < report["relative"] < 1


def test_ties_by_its_definition(make, base, tmp_path):
    adapters = [make(1), make(2)]
    folder = combine(adapters, tmp_path / "ties", method="ties", rank=256, density=0.3)
    for module, delta in dense(folder, base).items():
        trimmed = []
        for adapter in adapters:
            d = dense(adapter, base)[module]
            limit = d.abs().flatten().sort(descending=True).values[round(0.3 * d.numel()) - 1]
            trimmed.append(torch.where(d.abs() >= limit, d, torch.zeros(())))
        sign = torch.sign(trimmed[0] + trimmed[1])
        total = sum(torch.where(torch.sign(t) == sign, t, torch.zeros(())) for t in trimmed)
        count = sum(((torch.sign(t) == sign) & (t != 0)).float() for t in trimmed)
        torch.testing.assert_close(delta, total / count.clamp(min=1), atol=1e-4, rtol=1e-3)


def test_dare_keeps_the_mean_and_does_not_depend_on_the_order(make, base, tmp_path):
    adapters = [make(1), make(2)]
    one = combine(adapters, tmp_path / "one", method="dare", rank=256, density=0.5, seed=3)
    other = combine(adapters[::-1], tmp_path / "other", method="dare", rank=256, density=0.5, seed=3)
    changed = combine(adapters, tmp_path / "changed", method="dare", rank=256, density=0.5, seed=4)
    for module, delta in dense(one, base).items():
        torch.testing.assert_close(delta, dense(other, base)[module], atol=1e-4, rtol=1e-3)
        assert not torch.allclose(delta, dense(changed, base)[module], atol=1e-4)
        full = sum(dense(a, base)[module] for a in adapters)
        cosine = (delta * full).sum() / (delta.norm() * full.norm())
        assert 0.6 < cosine < 0.85  # half of the entries, doubled: 1 over the root of 2


def test_what_does_not_go_together(make, base, tmp_path):
    first, second = make(1), make(2)
    other = make(3, str(assemble("embedded", "embedded", tmp_path / "half", dtype="float16")))
    for message, options in {
        "is on another base": {"adapters": [first, other]},
        "2 adapters and 1 weights": {"adapters": [first, second], "weights": [1.0]},
        "No method 'slerp'": {"adapters": [first, second], "method": "slerp"},
        "Write --rank": {"adapters": [first, second], "method": "ties"},
        "DoRA's change has the full rank": {"adapters": [first, make(1, use_dora=True)]},
        "finite numbers": {"adapters": [first, second], "weights": [float("nan"), 1.0]},
        "density is a share": {"adapters": [first, second], "method": "ties", "rank": 4, "density": 1.5},
        "is not an artifact": {"adapters": [first, tmp_path]},
        "is no adapter": {"adapters": [first, base]},
        "Name the adapters": {"adapters": []},
        "is there already": {"adapters": [first], "out": first},
    }.items():
        with pytest.raises(UserError, match=message):
            combine(**{"out": tmp_path / "no", **options})
    assert not (tmp_path / "no").exists()
