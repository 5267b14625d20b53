"""How a conversation is written for an LLM: turns in, pieces out. A piece is text, an image, or an end-of-turn token,
and each says itself whether it is supervised. Nothing later has to find a boundary again.

Facts: LLaVA's conversation.py and train.py at c121f04. The text of a piece is exact to the space: tokenizers get it as
the continuation of what stands before, so the space that SentencePiece puts before a fresh stretch is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import UserError, nearest
from .sample import Turn


@dataclass(frozen=True)
class Text:
    text: str
    supervised: bool = False


@dataclass(frozen=True)
class Image:
    supervised: bool = False


@dataclass(frozen=True)
class Begin:
    """The tokenizer's beginning-of-sequence token."""

    supervised: bool = False


@dataclass(frozen=True)
class End:
    """The tokenizer's end-of-sequence token, closing an answer."""

    supervised: bool = True


Piece = Text | Image | Begin | End
Render = Callable[["Template", Sequence[Turn]], Iterator[Piece]]


@dataclass(frozen=True)
class Template:
    """A named way to write conversations.

    `pieces(turns)` writes a whole conversation, or, when it ends with a user's turn, a prompt that the LLM continues.
    """

    name: str
    render: Render
    system: str = ""

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        return list(self.render(self, turns))


def _user(turn: Turn, before: str, after: str) -> Iterator[Piece]:
    """A user's turn between two fixed texts; each image opens a fresh stretch, which begins with a space."""
    for _ in range(turn.images):
        yield Text(before)
        yield Image()
        before = " \n"
    yield Text(before + turn.text + after)


def _two(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`SYSTEM USER: q ASSISTANT: a</s>USER: q ASSISTANT: a</s>`"""
    yield Begin()
    before = f" {template.system} USER: "
    for turn in turns:
        if turn.role == "user":
            yield from _user(turn, before, " ASSISTANT:")
        else:
            yield Text(" " + turn.text, supervised=True)
            yield End()
            before = "USER: "


def _llama_2(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`[INST] <<SYS>>…<</SYS>> q [/INST] a </s><s>[INST] q [/INST] a </s>`"""
    system = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if template.system else ""
    for i, turn in enumerate(turns):
        if turn.role == "user":
            yield Begin()
            yield from _user(turn, (" " if i == 0 else "") + "[INST] " + system, " [/INST]")
            system = ""
        else:
            yield Text(f" {turn.text} ", supervised=True)
            yield End()


def _plain(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`<image>caption\\n`: stage 1. The user's words are thrown away, and no end token follows."""
    if len(turns) > 2 or turns[0].images != 1:
        raise UserError(
            "The template 'plain' takes one image with one caption: a human turn with '<image>', then one gpt turn."
        )
    yield Begin()
    yield Image()
    if len(turns) == 2:
        yield Text(f" {turns[1].text}\n", supervised=True)


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
TEMPLATES = {
    t.name: t
    for t in (
        Template("plain", _plain),
        Template("vicuna_v1", _two, VICUNA_SYSTEM),
        Template("llava_llama_2", _llama_2, LLAVA_SYSTEM),
    )
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in TEMPLATES:
        raise UserError(f"No template '{name}'.{nearest(name, TEMPLATES)} There are: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]
