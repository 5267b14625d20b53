"""What follows `</s>`, in the three ways that versions of transformers encoded it (the real vocabulary)."""

from __future__ import annotations

import pytest

from qllava.data.processing import load_tokenizer
from qllava.data.sample import Turn, parse
from qllava.data.template import TEMPLATES
from qllava.data.tokens import Encoder, encode_pieces, encode_prompt

USER = {"current": [11889, 29901], "legacy": [3148, 1001, 29901], "4.31": [3308, 1001, 29901]}
TALK = (Turn("user", "What is this?", 1), Turn("assistant", "A cat."), Turn("user", "And the color?"), Turn("assistant", "Black."))  # fmt: skip


@pytest.fixture(scope="module")
def encoders(shared):
    tokenizer, model_file = load_tokenizer(str(shared / "llama_tokenizer"))
    assert model_file is not None
    return {(way, sp): Encoder(tokenizer, model_file if sp else None, way) for way in USER for sp in (True, False)}


@pytest.mark.parametrize("sp", [True, False], ids=["sentencepiece", "transformers"])
@pytest.mark.parametrize("way", USER)
def test_user_after_an_answer(encoders, way, sp):
    tokens = encode_pieces(TEMPLATES["vicuna_v1"].pieces(TALK), encoders[way, sp])
    end = tokens.ids.index(2) + 1
    assert tokens.ids[end:] == [*USER[way], 1126, 278, 2927, 29973, 319, 1799, 9047, 13566, 29901, 6054, 29889, 2]
    assert tokens.labels[end:] == [-100] * (len(USER[way]) + 9) + [6054, 29889, 2]


@pytest.mark.parametrize("sp", [True, False], ids=["sentencepiece", "transformers"])
def test_all_before_the_first_end_is_the_same(encoders, sp):
    whole = [encode_pieces(TEMPLATES["vicuna_v1"].pieces(TALK), encoders[way, sp]) for way in USER]
    heads = [(t.ids[: t.ids.index(2) + 1], t.labels[: t.ids.index(2) + 1]) for t in whole]
    assert heads[0] == heads[1] == heads[2] and heads[0][1][-4:] == [319, 6635, 29889, 2]
    prompts = [encode_prompt(TALK[:1], TEMPLATES["vicuna_v1"], encoders[way, sp]) for way in USER]
    assert prompts[0] == prompts[1] == prompts[2] == heads[0][0][:-4]


@pytest.mark.parametrize("sp", [True, False], ids=["sentencepiece", "transformers"])
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[INST]", {"current": [29961, 25580, 29962], "legacy": [518, 25580, 29962], "4.31": [29961, 25580, 29962]}),
        ("7", {"current": [29955], "legacy": [29871, 29955], "4.31": [29955]}),
        ("猫", {"current": [234, 143, 174], "legacy": [29871, 234, 143, 174], "4.31": [234, 143, 174]}),
        ("", {"current": [], "legacy": [], "4.31": []}),
    ],
)
def test_text_after_a_special_token(encoders, sp, text, ids):
    assert {way: encoders[way, sp].encode(text, "special") for way in USER} == ids


@pytest.mark.parametrize("way", USER)
def test_only_what_follows_a_special_token_differs(encoders, way):
    enc = encoders[way, True]
    assert enc.encode("USER:", "inside") == USER["current"] and enc.encode("USER:", "fresh") == USER["legacy"]
    assert enc.encode("", "fresh") == []


# The ids below: the original's train.py over the slow tokenizer of 4.37.2 (legacy=False)
def test_mistral_instruct_over_turns(encoders):
    turns = [Turn(("user", "assistant")[i % 2], t) for i, t in enumerate("abcd")]
    tokens = encode_pieces(TEMPLATES["mistral_instruct"].pieces(turns), encoders["current", True])
    assert tokens.ids == [1, 518, 25580, 29962, 263, 518, 29914, 25580, 29962, 289, 29871, 2, 29961, 25580, 29962, 274, 518, 29914, 25580, 29962, 270, 29871, 2]  # fmt: skip
    assert [i for i in tokens.labels if i != -100] == [289, 29871, 2, 270, 29871, 2]


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        ("vicuna_v1", [3148, 1001, 29901, 29871, -200, 29871, 319, 1799, 9047, 13566, 29901, 263, 2]),
        ("mistral_instruct", [518, 25580, 29962, 29871, -200, 29871, 518, 29914, 25580, 29962, 263, 29871, 2]),
    ],
)
def test_an_image_without_words(encoders, template, ids):
    row = {"image": "x", "conversations": [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "a"}]}
    tokens = encode_pieces(TEMPLATES[template].pieces(parse(row).turns), encoders["current", True])
    assert tokens.ids[-len(ids) :] == ids
