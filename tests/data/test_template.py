"""The text of every template, letter by letter as the original's get_prompt and train.py write it, and what of it is learned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllava.data.sample import Turn, ask, parse
from qllava.data.template import (
    NAMES,
    TEMPLATE_OF,
    TEMPLATES,
    Begin,
    End,
    Image,
    Piece,
    Special,
    Text,
    get_template,
    template_for,
)
from qllava.errors import UserError

TALK = (Turn("user", "What is it?", 1), Turn("assistant", "A cat."), Turn("user", "And its color?"), Turn("assistant", "Black."))  # fmt: skip

# Of each: one turn, two turns, and two with the second answer open. `<s>` in front is the tokenizer's.
VICUNA = "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
LLAVA = "<s>[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
LLAMA = "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't know the answer to a question, please don't share false information.\n<</SYS>>\n\n"
CHATML = "<s><|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n"
MPT = "<s><|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.<|im_end|><|im_start|>user\n"
V0 = "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.\n\n### Human: "
LLAMA_3 = "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
IM_TURNS = (
    "<image>\nWhat is it?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>",
    "<|im_start|>user\nAnd its color?<|im_end|><|im_start|>assistant\n",
    "Black.<|im_end|>",
)
LLAMA_TURNS = ("<image>\nWhat is it? [/INST] A cat. </s>", "<s>[INST] And its color? [/INST]", " Black. </s>")
TURNS = {  # what stands in front, the first turn, the second turn's question, its answer
    "vicuna_v1": (
        VICUNA,
        "<image>\nWhat is it? ASSISTANT: A cat.</s>",
        "USER: And its color? ASSISTANT:",
        " Black.</s>",
    ),
    "llava_llama_2": (LLAVA, *LLAMA_TURNS),
    "llama_2": (LLAMA, *LLAMA_TURNS),
    "llama_3": (
        LLAMA_3,
        "<image>\nWhat is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nAnd its color?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "Black.<|eot_id|>",
    ),
    "mistral_instruct": (
        "<s>[INST] ",
        "<image>\nWhat is it? [/INST] A cat. </s>",
        "[INST] And its color? [/INST]",
        " Black. </s>",
    ),
    "chatml_direct": (CHATML, *IM_TURNS),
    "mpt": (MPT, *IM_TURNS),
    "v0": (  # train.py's text, less the space with which it ends
        V0,
        "<image>\nWhat is it?\n### Assistant: A cat.\n###",
        " Human: And its color?\n### Assistant:",
        " Black.\n###",
    ),
}
ENDS = {  # what stands before an answer and is learned with it, and what closes it
    "vicuna_v1": (" ", "</s>"),
    "llava_llama_2": (" ", " </s>"),
    "llama_2": (" ", " </s>"),
    "mistral_instruct": (" ", " </s>"),
    "llama_3": ("", "<|eot_id|>"),
    "chatml_direct": ("", "<|im_end|>"),
    "mpt": ("", "<|im_end|>"),
    "v0": (" ", "\n###"),
}
CHATS = [n for n in TEMPLATES if n != "plain"]


def write(piece: Piece) -> str:
    match piece:
        case Text(text=text) | Special(token=text):
            return text
        case Image():
            return "<image>"
        case Begin():
            return "<s>"
        case End():
            return "</s>"


def written(name: str, turns: tuple[Turn, ...]) -> str:
    return "".join(map(write, get_template(name).pieces(turns)))


def learned(name: str, turns: tuple[Turn, ...]) -> list[str]:
    """The supervised stretches, each as one text."""
    spans, before = [], False
    for piece in get_template(name).pieces(turns):
        if piece.supervised:
            spans = [*spans[:-1], spans[-1] + write(piece)] if before else [*spans, write(piece)]
        before = piece.supervised
    return spans


@pytest.mark.parametrize("name", CHATS)
def test_text_is_the_originals(name):
    front, first, question, answer = TURNS[name]
    assert written(name, TALK[:2]) == front + first
    assert written(name, TALK) == front + first + question + answer
    assert written(name, TALK[:3]) == front + first + question


@pytest.mark.parametrize("name", CHATS)
def test_only_answers_and_their_ends_are_learned(name):
    before, after = ENDS[name]
    assert learned(name, TALK) == [f"{before}A cat.{after}", f"{before}Black.{after}"]
    assert learned(name, TALK[:3]) == [f"{before}A cat.{after}"]
    assert learned(name, TALK[:1]) == []


texts = st.one_of(
    st.text(max_size=20), st.sampled_from(["</s>", " ASSISTANT: ", "[/INST]", "<|im_end|>", "\n###", "<image>", "<s>"])
)


@pytest.mark.parametrize("name", CHATS)
@given(talk=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), opened=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_learned_does_not_hang_on_the_words(name, talk, opened):
    turns = [t for q, a in talk for t in (Turn("user", q), Turn("assistant", a))]
    before, after = ENDS[name]
    answers = [a for _, a in talk][: len(talk) - opened]
    assert learned(name, tuple(turns[: len(turns) - opened])) == [before + a + after for a in answers]


@pytest.mark.parametrize("name", CHATS)
def test_an_open_conversation_is_the_beginning_of_the_closed_one(name):
    """What is asked of the model is what it was trained to continue."""
    closed, before = written(name, TALK), ENDS[name][0]
    assert closed == written(name, TALK[:3]) + before + "Black." + ENDS[name][1]
    assert closed.startswith(written(name, TALK[:1]) + before + "A cat.")


@pytest.mark.parametrize("name", CHATS)
def test_text_without_an_image(name):
    front, first, _, _ = TURNS[name]
    assert written(name, (Turn("user", "What is it?"), TALK[1])) == front + first.removeprefix("<image>\n")


@pytest.mark.parametrize("name", CHATS)
def test_an_image_in_a_later_turn(name):
    front, first, question, _ = TURNS[name]
    turns = (Turn("user", "What is it?"), TALK[1], Turn("user", "And its color?", 1))
    shown = front + first.removeprefix("<image>\n") + question.replace("And", "<image>\nAnd")
    assert written(name, turns) == shown


def test_several_images_each_have_their_line():
    assert written("mistral_instruct", ask("Which?", 3)) == "<s>[INST] <image>\n<image>\n<image>\nWhich? [/INST]"


def test_an_image_without_words_has_no_line_break():
    """The original strips `<image>\\n` where nothing follows."""
    sample = parse(
        {"image": "a", "conversations": [{"from": "human", "value": "<image>\n "}, {"from": "gpt", "value": "A cat."}]}
    )
    assert written("vicuna_v1", sample.turns) == VICUNA + "<image> ASSISTANT: A cat.</s>"
    assert written("chatml_direct", sample.turns[:1]) == CHATML + "<image><|im_end|><|im_start|>assistant\n"
    assert written("mistral_instruct", ask("", 2)) == "<s>[INST] <image>\n<image> [/INST]"


@pytest.mark.parametrize("name", CHATS)
def test_starts_tell_what_stands_before(name):
    """`fresh` after nothing or an image, `special` after a special token, `inside` after text: read from the pieces."""
    pieces = get_template(name).pieces(TALK)
    for i, piece in enumerate(pieces):
        if not isinstance(piece, Text):
            continue
        last = pieces[i - 1]
        if isinstance(last, Text):
            assert piece.start == "inside", piece
        elif isinstance(last, Image) or (i == 1 and isinstance(last, Begin)):
            assert piece.start == "fresh", piece
        else:
            assert piece.start == "special", piece


def test_only_the_tokenizers_own_begin_opens_chatml():
    """Its vocabularies have no `<s>` in front unless the tokenizer itself puts one; the others always begin with it."""
    always = {n: [p.always for p in get_template(n).pieces(TALK) if isinstance(p, Begin)] for n in CHATS}
    assert {n for n, a in always.items() if a == [False]} == {"chatml_direct", "mpt"}
    assert {n for n, a in always.items() if a == [True, True]} == {"llama_2", "llava_llama_2"}
    assert {n for n, a in always.items() if a == [True]} == {"vicuna_v1", "mistral_instruct", "v0", "llama_3"}


def test_plain_is_the_image_and_its_caption():
    turns = (Turn("user", "Describe it.", 1), Turn("assistant", "a cat on a mat"))
    assert written("plain", turns) == "<s><image>a cat on a mat\n"
    assert learned("plain", turns) == ["a cat on a mat\n"]
    assert (written("plain", turns[:1]), learned("plain", turns[:1])) == ("<s><image>", [])
    assert [p.start for p in get_template("plain").pieces(turns) if isinstance(p, Text)] == ["fresh"]


@pytest.mark.parametrize("turns", [TALK, (Turn("user", "x"), TALK[1]), (Turn("user", "x", 2), TALK[1])])
def test_plain_takes_one_image_and_one_caption(turns):
    with pytest.raises(UserError, match="one image with one caption"):
        get_template("plain").pieces(turns)


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize(
    ("llm", "template"),
    [
        ("lmsys/vicuna-{}-v1.1", "vicuna_v1"),
        ("lmsys/vicuna-{}-v1.3", "vicuna_v1"),
        ("lmsys/vicuna-{}-v1.5", "vicuna_v1"),
        ("meta-llama/Llama-2-{}-chat-hf", "llava_llama_2"),
    ],
)
def test_templates_of_the_papers_llms(llm, size, template):
    assert template_for(llm.format(size)) == template


def test_every_llm_of_the_paper_has_a_template_that_there_is():
    assert len(TEMPLATE_OF) == 12 and set(TEMPLATE_OF.values()) <= set(TEMPLATES)


def test_auto_for_another_llm_says_what_to_do():
    with pytest.raises(UserError) as error:
        template_for("Qwen/Qwen2.5-7B-Instruct")
    text = str(error.value)
    assert "Qwen/Qwen2.5-7B-Instruct is none of them" in text and "Did you mean" not in text
    assert text.endswith(f"Name one of {', '.join(NAMES)}.") and "chat_template" in text
    with pytest.raises(UserError, match=r"Did you mean 'lmsys/vicuna-7b-v1\.5'\?"):
        template_for("vicuna-7b-v1.5")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vicuna", "vicuna_v1"),
        ("llama2", "llama_2"),
        ("llava_llama2", "llava_llama_2"),
        ("mistral", "mistral_instruct"),
        ("chatml", "chatml_direct"),
        ("chat-template", "chat_template"),
        ("Plain", "plain"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(UserError, match=rf"^No template '{name}'\. Did you mean '{near}'\?") as error:
        get_template(name)
    assert all(n in str(error.value) for n in NAMES)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(UserError, match=r"^No template 'qwerty'\. There are: plain, vicuna_v1, "):
        get_template("qwerty")


def test_names_are_those_of_the_templates_and_the_llms_own():
    assert (*TEMPLATES, "chat_template") == NAMES and all(t.name == n for n, t in TEMPLATES.items())
