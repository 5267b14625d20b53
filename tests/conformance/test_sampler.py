"""The order of samples equals the original's for the same state of its random streams (shared/conformance/sampler.json)."""

from __future__ import annotations

import json

import torch

from qllava.train.sampler import original_order


def test_every_case(shared):
    cases = json.loads((shared / "conformance" / "sampler.json").read_text())
    assert len(cases) >= 15
    for case in cases:
        streams = [torch.Generator().manual_seed(case["seed"]) for _ in range(2)]
        found = original_order(case["lengths"], case["batch_size"], case["world_size"], *streams)
        assert found == case["indices"]
