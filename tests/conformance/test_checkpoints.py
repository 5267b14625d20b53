"""The original's own checkpoints: in, they give its logits; out again, they are bit by bit what came in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qllava.api import convert, load
from qllava.artifact.manifest import verify
from qllava.errors import UserError
from qllava.model.projector import read_projector

LORA_FILES = ("adapter_model.bin", "non_lora_trainables.bin")


@pytest.fixture
def original(shared, tmp_path) -> Path:
    """The original's folders, under names that say nothing, each where the other expects it; the model with a tokenizer."""
    data = shared / "conformance"
    for name, new in {"original_full": "original_full", "original_lora": "a", "clip": "clip"}.items():
        (tmp_path / new).mkdir()
        for file in (data / name).iterdir():
            shutil.copyfile(file, tmp_path / new / file.name)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(shared / "llama_tokenizer" / file, tmp_path / "original_full" / file)
    return tmp_path


@pytest.fixture
def base(original) -> Path:
    return convert(original / "original_full", "hf", original / "b")


def difference(shared, model: torch.nn.Module, name: str) -> float:
    """The largest distance to the original's logits, over every 25th entry of its vocabulary."""
    folder = shared / "conformance"
    ids = json.loads((folder / "checkpoint_ids.json").read_text())["input_ids"]
    expected = load_file(folder / "checkpoint_logits.safetensors")
    spread = [j for i in ids for j in ([32000] * 16 if i == -200 else [i])]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([spread]), pixel_values=expected["pixel_values"]).logits
    return float((logits[..., :32000:25] - expected[name]).abs().max())


def read(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def assert_same(one: Path, other: Path) -> None:
    if one.suffix == ".json":
        assert json.loads(one.read_text()) == json.loads(other.read_text())
        return
    a, b = read(one), read(other)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


def test_a_whole_model(shared, original, base):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    manifest = verify(base)
    assert (manifest.kind, manifest.image_aspect_ratio, manifest.dtype) == ("model", "pad", "bfloat16")
    assert difference(shared, load(base, dtype="float32").model, "logits_full") < 1e-4
    plain, info = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert difference(shared, plain, "logits_full") < 1e-4
    table = plain.get_input_embeddings().weight
    assert len(table) == 32064 and not table[32000:].any()
    assert AutoProcessor.from_pretrained(base).tokenizer.convert_tokens_to_ids("<image>") == 32000


def test_a_whole_model_and_back(original, base):
    convert(base, "original", original / "back")
    for file in (original / "original_full").iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "tokenizer_config.json":
            assert_same(file, original / "back" / file.name)
    assert (original / "back" / "tokenizer.model").read_bytes() == (
        original / "original_full" / "tokenizer.model"
    ).read_bytes()


def test_shards_as_pickles_and_a_tower_of_its_own(shared, original):
    """As LLaVA-1.5's released weights are: `.bin` shards with an index, and a tower in them that counts."""
    folder = original / "original_full"
    state = load_file(folder / "model.safetensors")
    tower = {k: v + 0.01 for k, v in load_file(original / "clip" / "model.safetensors").items()}
    state |= {f"model.vision_tower.vision_tower.{k}": v for k, v in tower.items()}
    keys, weight_map = sorted(state), {}
    for i, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({k: state[k] for k in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    torch.save(
        {"model.mm_projector.0.weight": torch.zeros(1)}, folder / "mm_projector.bin"
    )  # lies there too, and is not read
    base = convert(folder, "hf", original / "b")
    assert difference(shared, load(base, dtype="float32").model, "logits_full") > 1e-3
    convert(base, "original", original / "back")
    back = load_file(original / "back" / "model.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_a_lora_folder(shared, original, base):
    adapter = convert(original / "a", "hf", original / "c", base=str(base))
    manifest = verify(adapter)
    assert (manifest.kind, manifest.tune, manifest.image_aspect_ratio) == ("adapter", "lora", "pad")
    assert difference(shared, load(adapter, dtype="float32").model, "logits_lora") < 1e-4
    convert(adapter, "original", original / "back")
    for name in (*LORA_FILES, "config.json", "adapter_config.json"):
        assert_same(original / "a" / name, original / "back" / name)


def test_a_lora_folder_as_it_is(shared, original, base, capsys):
    loaded = load(original / "a", base=str(base), dtype="float32")
    assert difference(shared, loaded.model, "logits_lora") < 1e-4
    assert "bound to no fingerprint" in capsys.readouterr().err


def test_a_lora_folder_on_the_llm_that_it_was_trained_on(shared, original):
    """The LLM alone is named, as the original's --model-base; tower and projector are the checkpoint's."""
    llm = original / "llm"
    shutil.copytree(original / "original_full", llm)
    config = json.loads((llm / "config.json").read_text())
    plain = {k: v for k, v in config.items() if "mm_" not in k and k != "image_aspect_ratio"}
    (llm / "config.json").write_text(json.dumps({**plain, "model_type": "llama"}))
    state = load_file(llm / "model.safetensors")
    save_file({k: v for k, v in state.items() if "mm_" not in k}, llm / "model.safetensors", {"format": "pt"})
    assert difference(shared, load(original / "a", base=str(llm), dtype="float32").model, "logits_lora") < 1e-4


def test_a_projector(shared, original, base):
    file = shared / "conformance" / "mm_projector.bin"
    alone = convert(file, "hf", original / "p")
    bound = convert(file, "hf", original / "q", base=str(base))
    assert read_projector(alone).keys() == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}
    with pytest.raises(UserError, match=r"names no base.*--base"):
        load(alone)
    assert load(alone, base=str(base)).manifest.base is None
    loaded = load(bound, dtype="float32")
    assert (loaded.manifest.tune, loaded.manifest.template, loaded.processing.template.name) == (
        "projector", "plain", "vicuna_v1",
    )  # fmt: skip
    for i, folder in enumerate((alone, bound)):
        convert(folder, "original", original / f"back{i}")
        assert_same(file, original / f"back{i}" / "mm_projector.bin")
    assert_same(original / "original_full" / "config.json", original / "back1" / "config.json")


def test_half_precision_comes_back_as_it_was(original, base):
    state = {k: v.bfloat16() for k, v in read(original / "a" / "non_lora_trainables.bin").items()}
    torch.save(state, original / "a" / "non_lora_trainables.bin")
    adapter = convert(original / "a", "hf", original / "c", base=str(base))
    assert read_projector(adapter)["linear_1.weight"].dtype == torch.float32
    convert(adapter, "original", original / "back")
    assert_same(original / "a" / "non_lora_trainables.bin", original / "back" / "non_lora_trainables.bin")


def test_merged_on_the_way(shared, original, base):
    merged = convert(original / "a", "hf", original / "m", base=str(base), merge=True)
    near = difference(shared, load(merged, dtype="float32").model, "logits_lora")
    whole = convert(original / "a", "original", original / "w", base=str(base), merge=True)
    assert json.loads((whole / "config.json").read_text())["mm_vision_tower"] == "../clip"
    again = difference(shared, load(convert(whole, "hf", original / "n"), dtype="float32").model, "logits_lora")
    assert near < 0.05 and again < 0.05  # bfloat16
    assert not list(original.glob(".*"))


@pytest.mark.parametrize(
    "field", [{"mm_projector_type": "identity"}, {"image_aspect_ratio": "anyres"}, {"model_type": "llava_mpt"}]
)
def test_other_models_of_the_family_are_refused(original, field):
    file = original / "original_full" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **field}))
    with pytest.raises(UserError, match=f"is no LLaVA-1.5.*{next(iter(field))}"):
        convert(original / "original_full", "hf", original / "b")


def test_what_is_missing_is_named_with_the_remedy(original):
    folder = original / "original_full"
    (original / "clip").rename(original / "moved")
    with pytest.raises(UserError, match="--vision-tower"):
        convert(folder, "hf", original / "b")
    convert(folder, "hf", original / "b", vision_tower=str(original / "moved"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="Copy its LLM's tokenizer"):
        convert(folder, "hf", original / "c", vision_tower=str(original / "moved"))
    for source in (folder, original / "a"):
        with pytest.raises(UserError, match="Convert it first"):
            load(source)


def test_unknown_and_missing_weights_are_named(original):
    file = original / "original_full" / "model.safetensors"
    state = load_file(file)
    save_file({**state, "model.image_newline": torch.zeros(4)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"image_newline"):
        convert(original / "original_full", "hf", original / "b")
    del state["model.norm.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"norm\.weight"):
        convert(original / "original_full", "hf", original / "b")
    assert not (original / "b").exists()
