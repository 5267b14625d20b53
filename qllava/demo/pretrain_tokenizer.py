"""Trains the embedded tokenizer: SentencePiece BPE with byte fallback and Llama's own settings, 2,048 pieces.

In: sentences of `corpus`. Out: a folder with `tokenizer.model` and `tokenizer_config.json`, as Vicuna ships them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

VOCABULARY = 2048


def train(sentences: Iterable[str], out: Path) -> None:
    import sentencepiece

    out.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(out / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        **special,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
