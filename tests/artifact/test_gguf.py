"""GGUF files, read back: every value, the metadata and the vocabulary; and a model made anew from them answers alike."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from qllava.api import assemble
from qllava.artifact.convert.folder import Weights
from qllava.artifact.convert.gguf import to_gguf
from qllava.artifact.convert.gguf_file import Piece, encoded, permuted

TOWER, LLM = "vision_tower.vision_model.", "language_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded base as one folder, with weights that float16 cannot hold exactly."""
    folder = assemble("embedded", "embedded", tmp_path_factory.mktemp("gguf") / "tiny", dtype="float32")
    state = load_file(folder / "model.safetensors")
    made = torch.Generator().manual_seed(0)
    state = {k: v * (1 + 0.01 * torch.rand(v.shape, generator=made)) for k, v in state.items()}
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("qllava.json"))
    save_file(state, plain / "model.safetensors", metadata={"format": "pt"})
    return plain


@pytest.fixture(scope="module", params=["f32", "f16", "bf16", "q8_0"])
def written(request, base, tmp_path_factory):
    return request.param, to_gguf(base, tmp_path_factory.mktemp("out") / "gguf", request.param)


def tensors(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """By name, as float32, in torch's order of dimensions."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(t.shape[::-1].tolist())
        for t in reader.tensors
    }


def field(reader: gguf.GGUFReader, name: str):
    return reader.fields[name].contents()


def unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's rows back in transformers' order, written independently of the converter: even rows, then odd ones."""
    width = array.shape[0] // heads
    order = [h * width + i for h in range(heads) for i in (*range(0, width, 2), *range(1, width, 2))]
    return array[order]


def test_permuting_puts_together_what_is_rotated_together():
    rows = torch.arange(8)[:, None].float()  # two heads of four: pairs are (0, 2) and (1, 3)
    assert permuted(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(unpermuted(permuted(rows, 2).numpy(), 2), rows.numpy())


def test_every_weight_of_the_llm(base, written):
    outtype, folder = written
    reader = gguf.GGUFReader(folder / f"plain-{outtype}.gguf")
    found, state = tensors(reader), load_file(base / "model.safetensors")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    expected = {
        "token_embd.weight": f"{LLM}embed_tokens.weight",
        "output_norm.weight": f"{LLM}norm.weight",
        "output.weight": "language_model.lm_head.weight",
    }
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(4):
        expected |= {f"blk.{layer}.{n}.weight": f"{LLM}layers.{layer}.{own}.weight" for n, own in names.items()}
    assert found.keys() == expected.keys()
    for name, key in expected.items():
        source = state[key].numpy()
        value = unpermuted(found[name], 8) if ".attn_q." in name or ".attn_k." in name else found[name]
        assert value.shape == source.shape
        if source.ndim == 1 or outtype == "f32":
            assert kinds[name] == "F32"
            assert np.array_equal(value, source)
        elif outtype == "q8_0":
            assert kinds[name] == "Q8_0"
            blocks = np.abs(source.reshape(-1, 32)).max(axis=1, keepdims=True)
            bound = blocks / 127 * 0.5 + blocks * 2**-10  # half a step, and the scale's own rounding to float16
            assert (np.abs(value - source).reshape(-1, 32) <= bound + 1e-9).all()
        else:
            assert kinds[name] == outtype.upper()
            bits = {"f16": 11, "bf16": 8}[outtype]
            assert (np.abs(value - source) <= np.abs(source) * 2.0**-bits + 2.0**-25).all()


def test_every_weight_of_the_mmproj(base, written):
    _, folder = written
    reader = gguf.GGUFReader(folder / "mmproj-plain-f16.gguf")
    found, state = tensors(reader), load_file(base / "model.safetensors")
    expected = {
        "v.class_embd": "embeddings.class_embedding",
        "v.patch_embd.weight": "embeddings.patch_embedding.weight",
        "v.position_embd.weight": "embeddings.position_embedding.weight",
        "v.pre_ln.weight": "pre_layrnorm.weight",
        "v.pre_ln.bias": "pre_layrnorm.bias",
    }
    names = {
        "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
    }  # fmt: skip
    for layer in range(5):  # of six: LLaVA reads the last but one
        for end in ("weight", "bias"):
            expected |= {f"v.blk.{layer}.{n}.{end}": f"encoder.layers.{layer}.{own}.{end}" for n, own in names.items()}
    expected = {n: TOWER + k for n, k in expected.items()}
    for name, own in (("mm.0", "linear_1"), ("mm.2", "linear_2")):
        expected |= {f"{name}.{end}": f"multi_modal_projector.{own}.{end}" for end in ("weight", "bias")}
    assert found.keys() == expected.keys()
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    for name, key in expected.items():
        source = state[key].numpy()
        if kinds[name] == "F32":
            assert np.array_equal(found[name], source)
        else:
            assert kinds[name] == "F16" and source.ndim > 1
            assert (np.abs(found[name] - source) <= np.abs(source) * 2.0**-11 + 2.0**-25).all()


def test_metadata_of_the_llm(base, written):
    outtype, folder = written
    reader = gguf.GGUFReader(folder / f"plain-{outtype}.gguf")
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.name": "plain", "llama.vocab_size": 2112,
        "llama.context_length": 2048, "llama.embedding_length": 256, "llama.block_count": 4,
        "llama.feed_forward_length": 704, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 8,
        "llama.rope.dimension_count": 32, "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.padding_token_id": 2049,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "general.file_type": {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[outtype],
    }  # fmt: skip
    assert {name: field(reader, name) for name in expected} == expected
    assert field(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    template = field(reader, "tokenizer.chat_template")
    assert "USER: " in template and "generation %}" not in template and "add_generation_prompt" in template


def test_metadata_of_the_mmproj(written):
    _, folder = written
    reader = gguf.GGUFReader(folder / "mmproj-plain-f16.gguf")
    expected = {
        "general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True,
        "clip.has_text_encoder": False, "clip.has_llava_projector": True, "clip.projector_type": "mlp",
        "clip.use_gelu": False, "clip.vision.image_size": 64, "clip.vision.patch_size": 8,
        "clip.vision.embedding_length": 128, "clip.vision.feed_forward_length": 512, "clip.vision.block_count": 5,
        "clip.vision.feature_layer": [5], "clip.vision.attention.head_count": 4, "clip.vision.projection_dim": 256,
    }  # fmt: skip
    assert {name: field(reader, name) for name in expected} == expected
    assert field(reader, "clip.vision.image_mean") == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert field(reader, "clip.vision.image_std") == pytest.approx([0.26862954, 0.26130258, 0.27577711])


def test_one_token_for_each_row(base, written):
    outtype, folder = written
    reader = gguf.GGUFReader(folder / f"plain-{outtype}.gguf")
    pieces = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    tokens, scores, kinds = (field(reader, f"tokenizer.ggml.{n}") for n in ("tokens", "scores", "token_type"))
    count = pieces.vocab_size()
    assert len(tokens) == len(scores) == len(kinds) == 2112 > count == 2048
    assert tokens[:count] == [pieces.IdToPiece(i) for i in range(count)]
    assert scores[:count] == pytest.approx([pieces.GetScore(i) for i in range(count)])
    assert kinds[:3] == [2, 3, 3] and all(k == (6 if pieces.IsByte(i + 3) else 1) for i, k in enumerate(kinds[3:count]))
    assert tokens[count : count + 3] == ["<image>", "<pad>", "[PAD2050]"] and kinds[count : count + 3] == [3, 3, 5]
    assert set(kinds[count + 2 :]) == {5} and len(set(tokens)) == 2112


def test_a_model_made_from_the_file_has_the_same_logits(base, written):
    outtype, folder = written
    file = f"plain-{outtype}.gguf"
    ours = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    )  # transformers' own reader
    words = "A red circle is left of a blue square."
    ids = AutoTokenizer.from_pretrained(base)(words, return_tensors="pt").input_ids
    assert torch.equal(AutoTokenizer.from_pretrained(folder, gguf_file=file)(words, return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        expected, found = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < {"f32": 1e-5, "f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2}[outtype]


def test_rows_that_do_not_divide_into_blocks_are_f16():
    piece = Piece("x.weight", "x", "q8_0")
    assert encoded(torch.ones(2, 64), piece, gguf).dtype == np.uint8
    assert encoded(torch.ones(2, 48), piece, gguf).dtype == np.float16


def test_every_key_layout_and_shards_are_read(base, tmp_path):
    """A tower's names as transformers 5 writes them, names as in memory, and several files give the same GGUF."""
    expected = to_gguf(base, tmp_path / "expected")
    state = load_file(base / "model.safetensors")
    runtime = {
        k.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
        .replace(TOWER, "model.vision_tower.").replace("multi_modal", "model.multi_modal"): v
        for k, v in state.items()
    }  # fmt: skip
    bare = {k.replace(TOWER, "vision_tower."): v for k, v in state.items()}
    for name, renamed in (("runtime", runtime), ("bare", bare)):
        folder = tmp_path / name / "plain"
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        keys = sorted(renamed)
        for part in (0, 1):
            save_file({k: renamed[k] for k in keys[part::2]}, folder / f"model-0000{part + 1}-of-00002.safetensors")
        assert set(Weights(folder).files) == set(state)
        out = to_gguf(folder, tmp_path / f"{name}-out")
        for file in expected.iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes()
