"""What ends an answer, by template."""

from __future__ import annotations

import pytest

from qllava.data.processing import Processing, load_tokenizer, make_template
from qllava.data.tokens import Encoder
from qllava.errors import UserError
from qllava.model.base import EMBEDDED


def processing(template, specials=()):
    tokenizer, _ = load_tokenizer(str(EMBEDDED / "llm"))
    tokenizer.add_tokens(list(specials), special_tokens=True)
    return Processing(
        Encoder(tokenizer), None, make_template(template, tokenizer), "pad", image_tokens=4, image_token_id=-1, pad_token_id=0
    )  # fmt: skip


@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "llava_llama_2", "mistral_instruct", "v0"])
def test_the_end_token_ends_answers(template):
    made = processing(template)
    assert made.end_ids == [made.encoder.eos]


@pytest.mark.parametrize("template", ["chatml_direct", "mpt"])
def test_chatml_ends_with_its_own_token_too(template):
    made = processing(template, ["<|im_start|>", "<|im_end|>"])
    assert made.end_ids == [made.encoder.eos, made.encoder.special("<|im_end|>")]
    spelled = processing(template)  # written as text where the tokenizer has no such token
    assert spelled.end_ids == [made.encoder.eos] and spelled.stop == "<|im_end|>" and made.stop is None


def test_v0_ends_with_a_mark():
    assert processing("v0").stop == "###" and processing("vicuna_v1").stop is None


def test_a_tokenizer_without_a_chat_template_says_so():
    with pytest.raises(UserError, match="has no chat template"):
        processing("chat_template")
