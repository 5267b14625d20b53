"""Ids and labels equal those of the original LLaVA, case by case (shared/conformance/tokens.jsonl.gz)."""

from __future__ import annotations

import gzip
import json

import pytest

from qllava.data.processing import load_tokenizer
from qllava.data.sample import ask, parse
from qllava.data.template import TEMPLATES
from qllava.data.tokens import Encoder, encode_pieces, encode_prompt, encode_sample

SYSTEM = [1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889]  # fmt: skip


@pytest.fixture(scope="module")
def encoders(shared):
    tokenizer, model_file = load_tokenizer(str(shared / "llama_tokenizer"))
    assert model_file is not None
    return {"sentencepiece": Encoder(tokenizer, model_file), "transformers": Encoder(tokenizer)}


@pytest.fixture(scope="module")
def cases(shared):
    with gzip.open(shared / "conformance" / "tokens.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("backend", ["sentencepiece", "transformers"])
def test_every_case(cases, encoders, backend):
    wrong = []
    for number, case in enumerate(cases):
        row = {
            "id": str(number),
            "conversations": case["conversations"],
            **({"image": "x.png"} if case["image"] else {}),
        }
        tokens = encode_pieces(TEMPLATES[case["template"]].pieces(parse(row).turns), encoders[backend])
        if tokens.ids != case["input_ids"] or tokens.labels != case["labels"]:
            wrong.append(number)
    assert len(cases) == 300
    assert wrong == []


def encode(encoder, *texts, template="vicuna_v1"):
    talk = [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]
    row = {"id": "x", "conversations": talk, **({"image": "x.png"} if "<image>" in texts[0] else {})}
    return encode_sample(parse(row), TEMPLATES[template], encoder, image_tokens=576)


def supervised(tokens):
    return [label for label in tokens.labels if label != -100]


def test_two_turns(encoders):
    got = encode(encoders["sentencepiece"], "<image>\nWhat is this?", "A cat.", "And the color?", "It is black.")
    assert got.ids == SYSTEM + [3148, 1001, 29901, 29871, -200, 29871, 13, 5618, 338, 445, 29973, 319, 1799, 9047, 13566, 29901, 319, 6635, 29889, 2, 11889, 29901, 1126, 278, 2927, 29973, 319, 1799, 9047, 13566, 29901, 739, 338, 4628, 29889, 2]  # fmt: skip
    assert supervised(got) == [319, 6635, 29889, 2, 739, 338, 4628, 29889, 2]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("<image>\nDescribe the image.", "A red bus."), [319, 2654, 3593, 29889, 2]),
        (("Hi", "Line 1\nLine 2"), [7407, 29871, 29896, 13, 3542, 29871, 29906, 2]),
        (("Hi", " two"), [29871, 1023, 2]),
        (("<image>\n这是什么？", "猫 🐱"), [29871, 234, 143, 174, 29871, 243, 162, 147, 180, 2]),
    ],
)
def test_golden_answers(encoders, texts, expected):
    assert supervised(encode(encoders["sentencepiece"], *texts)) == expected


def test_transformers_splits_runs_of_spaces_otherwise(encoders):
    """Why SentencePiece itself encodes where it can: the day this fails, transformers has mended its merges."""
    assert encoders["sentencepiece"].encode("  two") == [29871, 1023]
    assert encoders["transformers"].encode("  two") == [259, 10184]


def test_plain(encoders):
    got = encode(encoders["sentencepiece"], "<image>", "a cat on a mat", template="plain")
    assert got.ids == [1, -200, 263, 6635, 373, 263, 1775, 13]
    assert got.labels == [-100, -100, 263, 6635, 373, 263, 1775, 13]


def test_prompt(encoders):
    ids = encode_prompt(ask("hi", images=1), TEMPLATES["vicuna_v1"], encoders["sentencepiece"])
    assert ids == [*SYSTEM, 3148, 1001, 29901, 29871, -200, 29871, 13, 2918, 319, 1799, 9047, 13566, 29901]
