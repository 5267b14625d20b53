"""Adapters that others wrote: the same logits as PEFT's own, whatever their keys; what has no place is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from qllava.api import convert, load, train
from qllava.artifact.manifest import verify
from qllava.errors import RunError, UserError
from qllava.model.build import load_model
from qllava.recipe import resolve_recipe

RUNTIME, OLD = "base_model.model.model.language_model.", "base_model.model.language_model.model."


@torch.no_grad()
def logits(model):
    torch.manual_seed(0)
    llava = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.tensor([[1, *[llava.config.image_token_index] * llava.config.image_seq_length, 40, 50, 60]])
    edge = llava.config.vision_config.image_size
    return model.eval()(input_ids=ids, pixel_values=torch.randn(1, 3, edge, edge)).logits


def peft_adapter(base, folder, **options):
    """An adapter made by plain PEFT, as if it had been trained; and the model that it makes."""
    model = load_model(base, torch.float32, torch.device("cpu"))
    targets = r"model\.language_model\..*\.(q_proj|v_proj|down_proj)"
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets, **options}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def rename(folder, pairs, **config):
    file = folder / "adapter_model.safetensors"
    state = {}
    for key, tensor in load_file(file).items():
        for old, new in pairs:
            key = key.replace(old, new)
        state[key] = tensor
    save_file(state, file, {"format": "pt"})
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))


PROJECTOR = {"modules_to_save": ["multi_modal_projector"]}
VARIANTS = {
    "plain": {}, "projector": PROJECTOR, "rslora": {"use_rslora": True}, "dora": {"use_dora": True, **PROJECTOR},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"layers.1.self_attn.q_proj": 3}},
    "one layer": {"target_modules": r"model\.language_model\.layers\.2\..*proj"},
    "lora on the projector": {"target_modules": r".*(language_model.*q_proj|linear_1)"},
}  # fmt: skip


@pytest.mark.parametrize("keys", ["today", "transformers 4"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_plain_peft(base, tmp_path, options, keys):
    expected = logits(peft_adapter(base, tmp_path / "x", **options))
    assert (expected - logits(load(base, dtype="float32").model)).abs().max() > 0.1
    if keys != "today":
        projector = ("base_model.model.model.multi_modal", "base_model.model.multi_modal")
        rename(tmp_path / "x", [(RUNTIME, OLD), projector], target_modules=["q_proj", "v_proj", "down_proj"])
    for source in (tmp_path / "x", convert(tmp_path / "x", "hf", tmp_path / "y")):
        torch.testing.assert_close(logits(load(source, dtype="float32").model), expected, atol=1e-4, rtol=0)
    assert verify(tmp_path / "y").base.source == base


def test_a_bin_of_an_older_peft(base, tmp_path):
    expected = logits(peft_adapter(base, tmp_path / "x"))
    file = tmp_path / "x" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    torch.testing.assert_close(logits(load(tmp_path / "x", dtype="float32").model), expected, atol=1e-4, rtol=0)


def test_xtuner(base, tmp_path):
    """Its folders: PEFT on the bare LLM, and the projector as a sequence."""
    expected = logits(peft_adapter(base, tmp_path / "p", **PROJECTOR))
    state = load_file(tmp_path / "p" / "adapter_model.safetensors")
    folder = tmp_path / "iter_500"
    for name in ("llm_adapter", "projector"):
        (folder / name).mkdir(parents=True)
    lora = {k.replace(RUNTIME, "base_model.model.model."): v for k, v in state.items() if "lora_" in k}
    save_file(lora, folder / "llm_adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    config |= {
        "base_model_name_or_path": None,
        "modules_to_save": None,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    (folder / "llm_adapter" / "adapter_config.json").write_text(json.dumps(config))
    sequence = {"linear_1": "model.0", "linear_2": "model.2"}
    projector = {f"{sequence[k.split('.')[-2]]}.{k.split('.')[-1]}": v for k, v in state.items() if "lora_" not in k}
    save_file(projector, folder / "projector" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"does not say what base.*--base"):
        load(folder)
    adapter = convert(folder, "hf", tmp_path / "y", base=base)
    torch.testing.assert_close(logits(load(adapter, dtype="float32").model), expected, atol=1e-4, rtol=0)
    shutil.copytree(folder / "llm_adapter", folder / "visual_encoder_adapter")
    with pytest.raises(UserError, match="visual_encoder_adapter"):
        convert(folder, "hf", tmp_path / "z", base=base)


REFUSED = {
    "vision tower": ({"target_modules": "all-linear"}, "LoRA on model.vision_tower"),
    "embeddings": ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.weight"),
    "head": ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
}


@pytest.mark.parametrize(("options", "named"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_is_named(base, tmp_path, options, named):
    peft_adapter(base, tmp_path / "x", **options)
    for verb in (lambda: convert(tmp_path / "x", "hf", tmp_path / "y"), lambda: load(tmp_path / "x")):
        with pytest.raises(UserError, match=named):
            verb()
    assert not (tmp_path / "y").exists()


def test_another_base_is_refused(base, tmp_path):
    peft_adapter(base, tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    save_file({k: torch.zeros(5, 5) for k in load_file(file)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="does not fit the base"):
        load(tmp_path / "x")
    with pytest.raises(UserError, match=r"cannot be read.*--base"):
        load(tmp_path / "x", base=str(tmp_path / "gone"))


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("damage", ["cut", "garbage", "code", "bare code", "no tensors", "half"])
def test_a_damaged_bin(base, tmp_path, damage, capsys):
    peft_adapter(base, tmp_path / "x")
    weights = tmp_path / "x" / "adapter_model.safetensors"
    state, file = load_file(weights), weights.with_suffix(".bin")
    weights.unlink()
    if damage == "half":
        state.pop(next(k for k in state if "lora_B" in k))
    torch.save({"a": 1} if damage == "no tensors" else state, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "garbage":
        file.write_bytes(b"no weights at all")
    elif damage == "code":
        torch.save({**state, "x": Code()}, file)
    elif damage == "bare code":
        file.write_bytes(pickle.dumps({"x": Code()}))
    kind, message = {
        "code": (UserError, "holds more than tensors"), "bare code": (UserError, "holds more than tensors"),
        "no tensors": (UserError, "is no set of weights"),
        "half": (RunError, "is not whole"),
    }.get(damage, (RunError, "is damaged"))  # fmt: skip
    with pytest.raises(kind, match=message):
        convert(tmp_path / "x", "hf", tmp_path / "y")
    assert "run" not in capsys.readouterr().out.split()


@pytest.mark.parametrize("keys", ["published", "runtime", "built from a config"])
def test_a_hugging_face_model_of_any_layout(base, tmp_path, keys):
    shutil.copytree(base, tmp_path / "x")
    (tmp_path / "x" / "qllava.json").unlink()
    file = tmp_path / "x" / "model.safetensors"
    pairs = {
        "runtime": [("language_model.lm_head", "lm_head"), ("language_model.model.", "model.language_model."),
                    ("vision_tower.vision_model.", "model.vision_tower."), ("multi_modal", "model.multi_modal")],
        "built from a config": [("vision_tower.vision_model.", "vision_tower.")],
    }.get(keys, [])  # fmt: skip
    state = load_file(file)
    for old, new in pairs:
        state = {(new + k[len(old) :] if k.startswith(old) else k): v for k, v in state.items()}
    save_file(state, file, {"format": "pt"})
    found = load_file(convert(tmp_path / "x", "hf", tmp_path / "y") / "model.safetensors")
    expected = load_file(Path(base) / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    assert torch.equal(logits(load(tmp_path / "y").model), logits(load(base).model))


def test_out_to_the_original_and_in_again(recipe_values, tmp_path):
    """What was trained here, on parts: the adapter, and with its base one model whose tower had been trained as well."""
    adapter = train(resolve_recipe({**recipe_values, "tune": "lora"})).artifact
    parts = "{vision_tower: embedded, llm: embedded}"
    expected = logits(load(adapter, dtype="float32").model)
    out = convert(adapter, "original", tmp_path / "o")
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["mm_projector_type"]) == (
        "llava_llama",
        2048,
        "mlp2x_gelu",
    )
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == sorted(
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    )
    torch.testing.assert_close(logits(load(out, base=parts, dtype="float32").model), expected, atol=1e-4, rtol=0)
    whole = convert(adapter, "original", tmp_path / "w", merge=True)
    assert not [k for k in load_file(whole / "model.safetensors") if "vision_tower" in k]
    again = logits(load(convert(whole, "hf", tmp_path / "n"), dtype="float32").model)
    assert (again - expected).abs().max() < 0.2 * expected.abs().max()  # bfloat16


def test_a_tower_that_was_trained_goes_along(recipe_values, tmp_path):
    values = {**recipe_values, "tune": "lora", "tune_vision_tower": "full", "vision_tower_learning_rate": 1e-3}
    adapter = train(resolve_recipe(values)).artifact
    with pytest.raises(UserError, match=r"vision tower of its own.*--merge"):
        convert(adapter, "original", tmp_path / "o")
    whole = convert(adapter, "original", tmp_path / "w", merge=True)
    assert json.loads((whole / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
    assert [k for k in load_file(whole / "model.safetensors") if "vision_tower" in k]


def test_a_model_that_names_no_tower_takes_it_along(base, tmp_path):
    shutil.copytree(base, tmp_path / "x")
    (tmp_path / "x" / "qllava.json").unlink()
    out = convert(tmp_path / "x", "original", tmp_path / "o")
    again = convert(out, "hf", tmp_path / "n")
    assert torch.equal(logits(load(again, dtype="float32").model), logits(load(base, dtype="float32").model))


def test_a_tokenizer_without_sentencepiece_goes_out_without_the_new_tokens(base, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(base, tmp_path / "x")
    for name in ("qllava.json", "tokenizer.model"):
        (tmp_path / "x" / name).unlink()
    out = convert(tmp_path / "x", "original", tmp_path / "o", vision_tower="openai/clip-vit-large-patch14-336")
    config = json.loads((out / "config.json").read_text())
    assert config["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"
    assert config["vocab_size"] == len(AutoTokenizer.from_pretrained(out)) == 2048
    assert "<image>" not in "".join(f.read_text() for f in out.glob("*.json"))


def test_wrong_requests(base, tmp_path):
    (tmp_path / "taken").mkdir()
    for source, to, out, complaint in (
        (base, "orignal", "o", "Did you mean 'original'"), (base, "hf", "taken", "is there already"),
        (tmp_path / "gone", "hf", "o", "holds nothing that can be converted"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=complaint):
            convert(source, to, tmp_path / out)
    with pytest.raises(UserError, match="whole model; --base"):
        convert(base, "hf", tmp_path / "o", base=base)
    with pytest.raises(UserError, match="nothing to merge"):
        convert(base, "hf", tmp_path / "o", merge=True)
