"""An adapter trained by plain PEFT on the Hugging Face LLaVA, without qllava: taken by merge, combine and chat as it is."""

from __future__ import annotations

import pytest
import torch
from conftest import image_logits as logits
from peft import LoraConfig, PeftModel, get_peft_model

from qllava.api import chat, combine, convert, load, merge
from qllava.artifact.manifest import read_manifest
from qllava.model.build import load_model


@pytest.fixture
def foreign(base, tmp_path):
    model = get_peft_model(
        load_model(base, torch.float32, torch.device("cpu")),
        LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_merge(foreign, base, tmp_path):
    expected = logits(PeftModel.from_pretrained(load_model(base, torch.float32, torch.device("cpu")), foreign))
    merged = merge(foreign, tmp_path / "merged", dtype="float32", base=base)
    torch.testing.assert_close(logits(load(merged, dtype="float32").model), expected, atol=1e-4, rtol=1e-5)
    report = read_manifest(merged).report
    assert report["merged_from"] == str(foreign) and report["proof"]["relative"] < 1e-5
    assert report["base"]["fingerprint"]


def test_combine_and_chat(foreign, base, make, tmp_path):
    both = combine([foreign, make(1)], tmp_path / "both", [1, 0], base=base)
    expected = logits(PeftModel.from_pretrained(load_model(base, torch.float32, torch.device("cpu")), foreign))
    torch.testing.assert_close(logits(load(both, dtype="float32").model), expected, atol=1e-4, rtol=1e-5)
    assert isinstance(chat(foreign, base=base, max_new_tokens=2).ask("Hi"), str)


@pytest.mark.parametrize("to", ["gguf", "vllm", "original"])
def test_converted_with_its_base_in_one_go(foreign, base, tmp_path, to, capsys):
    pytest.importorskip("gguf")
    out = convert(foreign, to, tmp_path / "out", base=base, merge=True)
    files = {p.name for p in out.iterdir()}
    if to == "gguf":
        assert sum(f.endswith(".gguf") for f in files) == 2 and "llama.cpp" in capsys.readouterr().err
    else:
        assert "config.json" in files and any(f.endswith(".safetensors") for f in files)
