"""The LLM of a GGUF: llama.cpp's names and metadata for a Llama, and a SentencePiece vocabulary.

In: a LLaVA's folder, config and weights. Out: a `Plan`. The token list has exactly as many entries as the embedding rows:
rows without a token are named `[PAD…]` and marked unused, as llama.cpp's converter does.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ...data.processing import load_tokenizer
from ...errors import UserError
from .folder import Weights, chat_template, settings
from .gguf_file import Piece, Plan, require

ROOT = "language_model.model."
HEAD = "language_model.lm_head.weight"
LAYER = {  # in a layer: llama.cpp's name, and transformers'
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own, which llama.cpp cannot read


class Token(NamedTuple):
    text: str
    score: float
    kind: int  # gguf.TokenType


def plan(folder: Path, config: Any, weights: Weights, outtype: str, gguf: ModuleType) -> Plan:
    """The LLM's file.

    Raises:
        UserError: the LLM is no Llama, or has what llama.cpp's Llama has not; its tokenizer is not SentencePiece; weights
            or tokens do not fit the config.
    """
    text = config.text_config
    if text.model_type != "llama":
        raise UserError(f"The LLM in {folder} is a {text.model_type}; only Llama's architecture is written as GGUF.")
    if text.hidden_act != "silu":
        raise UserError(f"The LLM in {folder} has the activation {text.hidden_act}; llama.cpp's Llama has silu.")
    rope = text.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(
            f"The LLM in {folder} scales its positions by {rope['rope_type']}, which is not written as GGUF."
        )
    tied = bool(text.tie_word_embeddings or config.tie_word_embeddings)
    pieces = list(_pieces(text, weights, outtype, tied))
    rows = (text.vocab_size, text.hidden_size)
    require(pieces, weights, {p.key: rows for p in pieces if p.name in ("token_embd.weight", "output.weight")})
    tokens = vocabulary(folder, text.vocab_size, gguf)

    def describe(writer: Any) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
        writer.add_file_type(gguf.LlamaFileType[names[outtype]])
        _describe_model(writer, text, gguf)
        _describe_tokenizer(writer, folder, text, tokens)

    unused = {k for k in weights.files if k.startswith(ROOT) and k.endswith("rotary_emb.inv_freq")}
    return Plan(pieces, describe, unused | ({HEAD} if tied else set()))


def _pieces(text: Any, weights: Weights, outtype: str, tied: bool) -> Any:
    yield Piece("token_embd.weight", f"{ROOT}embed_tokens.weight", outtype)
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
    for layer in range(text.num_hidden_layers):
        for name, own in LAYER.items():
            key = f"{ROOT}layers.{layer}.{own}"
            kind = "f32" if name.endswith("norm") else outtype
            yield Piece(f"blk.{layer}.{name}.weight", f"{key}.weight", kind, heads.get(name, 0))
            if f"{key}.bias" in weights:
                yield Piece(f"blk.{layer}.{name}.bias", f"{key}.bias", "f32", heads.get(name, 0))
    yield Piece("output_norm.weight", f"{ROOT}norm.weight", "f32")
    if not tied:
        yield Piece("output.weight", HEAD, outtype)


def _describe_model(writer: Any, text: Any, gguf: ModuleType) -> None:
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters or {}
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _describe_tokenizer(writer: Any, folder: Path, text: Any, tokens: list[Token]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([t.text for t in tokens])
    writer.add_token_scores([t.score for t in tokens])
    writer.add_token_types([int(t.kind) for t in tokens])
    tokenizer, _ = load_tokenizer(str(folder))
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    ids["pad"] = tokenizer.pad_token_id if text.pad_token_id is None else text.pad_token_id
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    encoded = tokenizer("a")["input_ids"]  # what it does, whatever its settings are called
    writer.add_add_bos_token(encoded[0] == ids["bos"])
    writer.add_add_eos_token(encoded[-1] == ids["eos"])
    writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    if template := chat_template(folder):
        writer.add_chat_template(GENERATION_TAG.sub("", template))


def vocabulary(folder: Path, rows: int, gguf: ModuleType) -> list[Token]:
    """One token for each of the embedding's rows.

    Raises:
        UserError: the tokenizer is not SentencePiece, or has more tokens than there are rows.
    """
    file = folder / "tokenizer.model"
    if not file.is_file():
        raise UserError(
            f"{folder} has no tokenizer.model. Only SentencePiece tokenizers, as Llama 2's and Vicuna's, are written as GGUF; "
            "a BPE tokenizer (Llama 3, Qwen) needs llama.cpp's own convert_hf_to_gguf.py. If the model had one, copy it "
            "into the folder."
        )
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromFile(str(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file} is no SentencePiece model: {str(error)[:200]}") from None
    added = added_tokens(folder)
    size = max([pieces.vocab_size(), *(i + 1 for i in added)])
    if size > rows:
        raise UserError(
            f"{folder} has {size} tokens and only {rows} embedding rows; tokenizer and model do not belong together."
        )
    tokens = [Token(f"[PAD{i}]", UNUSED_SCORE, gguf.TokenType.UNUSED) for i in range(rows)]
    kinds = (
        (pieces.IsUnknown, gguf.TokenType.UNKNOWN), (pieces.IsControl, gguf.TokenType.CONTROL),
        (pieces.IsUnused, gguf.TokenType.UNUSED), (pieces.IsByte, gguf.TokenType.BYTE),
    )  # fmt: skip
    for i in range(pieces.vocab_size()):
        kind = next((kind for holds, kind in kinds if holds(i)), gguf.TokenType.NORMAL)
        tokens[i] = Token(pieces.IdToPiece(i), pieces.GetScore(i), kind)
    for i, (text, special) in added.items():
        if i < pieces.vocab_size() and tokens[i].text == text:
            continue  # <s> and its like, which the SentencePiece model has
        if special:
            tokens[i] = Token(text, ADDED_SCORE, gguf.TokenType.CONTROL)
        else:
            tokens[i] = Token(text.replace("▁", " "), ADDED_SCORE, gguf.TokenType.USER_DEFINED)
    return tokens


def added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens beside the SentencePiece model's, by id: text, and whether special. transformers 5 has them in tokenizer.json."""
    found: dict[int, tuple[str, bool]] = {i: (t, False) for t, i in settings(folder / "added_tokens.json").items()}
    for i, token in (settings(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        found[int(i)] = (token["content"], bool(token.get("special")))
    for token in settings(folder / "tokenizer.json").get("added_tokens") or []:
        found[token["id"]] = (token["content"], bool(token.get("special")))
    return found
