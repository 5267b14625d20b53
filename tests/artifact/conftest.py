"""Adapters with random weights on one small base, made by PEFT itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qllava.api import assemble
from qllava.artifact.adapter import save_adapter
from qllava.artifact.manifest import Base, Manifest, writing
from qllava.model.base import portable, sources
from qllava.model.build import load_model
from qllava.model.fingerprint import fingerprint
from qllava.model.projector import projector_of, row_ends


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return str(assemble("embedded", "embedded", tmp_path_factory.mktemp("base") / "base", dtype="float32"))


@pytest.fixture(scope="session")
def make(base, tmp_path_factory):
    """An adapter with random weights on that base, by its kind."""
    count = itertools.count()

    @torch.no_grad()
    def build(seed, source=base, **lora):
        model = load_model(source, torch.float32, torch.device("cpu"))
        torch.manual_seed(seed)
        targets = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.down_proj)"
        options = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **lora}
        model = get_peft_model(model, LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
        for parameter in (*projector_of(model).parameters(), *row_ends(model).values()):
            parameter += 0.02 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("adapters") / f"adapter-{next(count)}"
        manifest = Manifest(
            kind="adapter", holds="adapter", template="vicuna_v1", image_aspect_ratio="pad", tune="lora", dtype="float32",
            base=Base(source=portable(source), fingerprint=fingerprint(sources(source))),
        )  # fmt: skip
        with writing(folder, manifest) as partial:
            save_adapter(model, partial)
        return folder

    return build
