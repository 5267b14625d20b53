"""Labels by construction, over three families of tokenizers: what is supervised is the answers, byte for byte."""

from __future__ import annotations

import functools

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qllava.data.collate import spread
from qllava.data.processing import load_tokenizer
from qllava.data.sample import Sample, Turn
from qllava.data.template import TEMPLATES, get_template
from qllava.data.tokens import IGNORE, IMAGE, Encoder, encode_sample
from qllava.errors import UserError
from qllava.model.base import EMBEDDED


@functools.cache
def encoder(family: str) -> Encoder:
    if family == "sentencepiece":
        return Encoder(*load_tokenizer(str(EMBEDDED / "llm")))
    if family == "llama":  # the real vocabulary, where it lies beside the checkout
        if SHARED is None:
            pytest.skip("no shared/ folder with the Llama vocabulary (it is not part of the repository)")
        return Encoder(*load_tokenizer(str(SHARED / "llama_tokenizer")))
    if family == "metaspace":  # the same vocabulary through transformers' own rebuilding of it
        return Encoder(load_tokenizer(str(EMBEDDED / "llm"))[0])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["the cat sat on the mat\n\n", "USER: what is this? ASSISTANT: a dog"] * 20, trainer)
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


FAMILIES = ("sentencepiece", "metaspace", "byte-level", "llama")
SHARED = next((f for f in (ROOT.parent / "shared", ROOT / "shared") if (f / "llama_tokenizer").is_dir()), None)
# A sentence mark at a tokenizer's byte level is no text: lone surrogates cannot be encoded, ▁ is SentencePiece's own space
words = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="▁\x00"), min_size=1, max_size=30)
tricky = st.sampled_from(
    ["</s>", "<s>", "<image>", " ASSISTANT: ", "USER:", "  two", "\n", "\n\nx ", "猫 🐱", "a</s>b", "<pad>"]
)
texts = st.one_of(words, tricky)


def decode(enc: Encoder, ids: list[int]) -> bytes:
    """The bytes that ids stand for, without a word of help from the tokenizer's own clean-up."""
    tokens = enc.tokenizer.convert_ids_to_tokens(ids)
    if enc.tokenizer.backend_tokenizer.decoder is not None and "ByteLevel" in str(
        enc.tokenizer.backend_tokenizer.decoder
    ):
        table = {c: b for b, c in _byte_letters().items()}
        return bytes(table[c] for t in tokens for c in t)
    out = b""
    for token in tokens:
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        out += bytes([int(token[3:5], 16)]) if is_byte else token.replace("▁", " ").encode()
    return out


@functools.cache
def _byte_letters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


@pytest.mark.parametrize("family", FAMILIES)
@given(talk=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), image=st.booleans())
@settings(max_examples=60, deadline=None)
def test_supervised_is_answers_and_their_ends(family, talk, image):
    enc = encoder(family)
    turns = [t for i, (q, a) in enumerate(talk) for t in (Turn("user", q, int(image and i == 0)), Turn("assistant", a))]
    tokens = encode_sample(Sample("x", ("a",) * image, tuple(turns)), TEMPLATES["vicuna_v1"], enc, image_tokens=16)
    assert len(tokens.ids) == len(tokens.labels)
    assert all(label in (IGNORE, i) for i, label in zip(tokens.ids, tokens.labels, strict=True))
    assert tokens.ids.count(IMAGE) == int(image)
    spans, current = [], []
    for label in tokens.labels:
        if label == enc.eos:
            spans.append(current)
            current = []
        elif label != IGNORE:
            current.append(label)
    assert current == []  # every answer is closed by an end token that is supervised
    assert [decode(enc, s) for s in spans] == [f" {a}".encode() for _, a in talk]


@pytest.mark.parametrize("family", FAMILIES)
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_specials_in_a_users_text_stay_text(family, text):
    enc = encoder(family)
    assert not {enc.bos, enc.eos} & set(enc.encode(text))
    assert decode(enc, enc.encode(text)) == text.encode()


@pytest.mark.parametrize("family", FAMILIES)
@given(question=words, answer=words, images=st.integers(1, 3), image_tokens=st.sampled_from([4, 16]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_image_tokens_are_exact_around_every_truncation_length(family, question, answer, images, image_tokens, data):
    enc = encoder(family)
    sample = Sample("x", ("a",) * images, (Turn("user", question, images), Turn("assistant", answer)))
    whole = encode_sample(sample, TEMPLATES["vicuna_v1"], enc, image_tokens)
    length = sum(image_tokens if i == IMAGE else 1 for i in whole.ids)
    limit = data.draw(st.integers(1, length + 2))
    try:
        cut = encode_sample(sample, TEMPLATES["vicuna_v1"], enc, image_tokens, limit)
    except UserError as error:
        assert ("cut an image" in str(error)) or (
            "nothing of its answer" in str(error) and limit <= length - whole.supervised
        )
        return
    ids, labels = spread(cut.ids, cut.labels, image_tokens, token=-7)
    assert ids.count(-7) == images * image_tokens and len(ids) == min(limit, length) == len(labels)
    assert all(label == IGNORE for i, label in zip(ids, labels, strict=True) if i == -7)
    assert cut.supervised > 0 and cut.truncated == (limit < length) and cut.ids == whole.ids[: len(cut.ids)]


def test_pad_as_eos_does_not_unlearn_the_end():
    enc = encoder("byte-level")
    enc.tokenizer.pad_token = "</s>"
    sample = Sample("x", (), (Turn("user", "q"), Turn("assistant", "a")))
    assert encode_sample(sample, TEMPLATES["vicuna_v1"], enc, 4).labels[-1] == enc.eos


def test_an_open_question_has_nothing_to_learn():
    with pytest.raises(UserError, match="no answer to learn from"):
        encode_sample(Sample("s7", (), (Turn("user", "q"),)), TEMPLATES["vicuna_v1"], encoder("sentencepiece"), 4)


def test_unknown_template_gets_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'vicuna_v1'"):
        get_template("vicuna_v2")
