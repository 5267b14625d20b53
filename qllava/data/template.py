"""How a conversation is written for an LLM: turns in, pieces out. A piece is text, an image, or a special token, and each
says itself whether it is supervised. Nothing later has to find a boundary again.

Facts: LLaVA's conversation.py and train.py at c121f04. The text of a piece is exact to the space; what a tokenizer puts
before a fresh stretch of text (SentencePiece's space) is left to the encoder, which a piece's `start` tells where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError, nearest
from .sample import Turn
from .systems import CHATML_SYSTEM, LLAMA_2_SYSTEM, LLAVA_SYSTEM, MPT_SYSTEM, V0_SYSTEM, VICUNA_SYSTEM

Start = Literal["inside", "fresh", "special"]


@dataclass(frozen=True)
class Text:
    text: str
    supervised: bool = False
    start: Start = "inside"
    """Where the original's tokenizer met it: `fresh` at the beginning of a stretch (of all text, or after an image),
    `special` right after a special token, `inside` as the continuation of other text."""


@dataclass(frozen=True)
class Image:
    supervised: bool = False


@dataclass(frozen=True)
class Begin:
    """The tokenizer's beginning-of-sequence token; `always`, or only where the tokenizer itself puts one."""

    always: bool = True
    supervised: bool = False


@dataclass(frozen=True)
class End:
    """The tokenizer's end-of-sequence token, closing an answer."""

    supervised: bool = True


@dataclass(frozen=True)
class Special:
    """A special token by its name; for a tokenizer that has none of that name, the same characters as text."""

    token: str
    supervised: bool = False


Piece = Text | Image | Begin | End | Special
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


def user(turn: Turn, before: str, after: str, start: Start = "inside") -> Iterator[Piece]:
    """A user's turn between two fixed texts; what follows an image is a fresh stretch. Without words, no line break follows."""
    for i in range(turn.images):
        yield Text(before, start=start)
        yield Image()
        before, start = "\n" if turn.text or i + 1 < turn.images else "", "fresh"
    yield Text(before + turn.text + after, start=start)


def _two(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`SYSTEM USER: q ASSISTANT: a</s>USER: q ASSISTANT: a</s>`"""
    yield Begin()
    before, start = f"{template.system} USER: " if template.system else "USER: ", "fresh"
    for turn in turns:
        if turn.role == "user":
            yield from user(turn, before, " ASSISTANT:", start)
        else:
            yield Text(" " + turn.text, supervised=True)
            yield End()
            before, start = "USER: ", "special"


def _llama_2(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`[INST] <<SYS>>…<</SYS>> q [/INST] a </s><s>[INST] q [/INST] a </s>`; without the inner `<s>` for Mistral."""
    system = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if template.system else ""
    for i, turn in enumerate(turns):
        if turn.role == "user":
            if i == 0 or template.name != "mistral_instruct":
                yield Begin()
            yield from user(turn, "[INST] " + system, " [/INST]", "special" if i else "fresh")
            system = ""
        else:
            yield Text(f" {turn.text} ", supervised=True)
            yield End()


def _chatml(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`<|im_start|>system\\n…<|im_end|><|im_start|>user\\nq<|im_end|><|im_start|>assistant\\na<|im_end|>`, no line breaks between."""
    yield Begin(always=False)
    yield Special("<|im_start|>")
    yield Text(f"system\n{template.system}", start="special")
    yield Special("<|im_end|>")
    yield from _between(turns, lambda _: [Special("<|im_start|>")], "{}\n", "<|im_end|>")


def _between(turns: Sequence[Turn], head: Callable[[str], Iterable[Piece]], opening: str, end: str) -> Iterator[Piece]:
    """Turns that each stand between a head of special tokens and an end; at the end of a prompt, the answer's opening.

    Args:
        head: of a role.
        opening: what the text of a turn begins with, its role in place of `{}`; not supervised.
    """
    for turn in turns:
        yield from head(turn.role)
        if turn.role == "user":
            yield from user(turn, opening.format(turn.role), "", "special")
            yield Special(end)
            continue
        yield Text(opening.format(turn.role), start="special")
        yield Text(turn.text, supervised=True)
        yield Special(end, supervised=True)
    if turns[-1].role == "user":
        yield from head("assistant")
        yield Text(opening.format("assistant"), start="special")


def _llama_3(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\na<|eot_id|>`"""

    def head(role: str) -> Iterator[Piece]:
        yield Special("<|start_header_id|>")
        yield Text(role, start="special")
        yield Special("<|end_header_id|>")

    yield Begin()
    if template.system:
        yield from head("system")
        yield Text(f"\n\n{template.system}", start="special")
        yield Special("<|eot_id|>")
    yield from _between(turns, head, "\n\n", "<|eot_id|>")


def _v0(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`SYSTEM\\n\\n### Human: q\\n### Assistant: a\\n### Human: …`, as train.py writes it.

    The line break and the `###` after an answer are its end, and supervised. (The original also supervises the words
    `Assistant:` and the `###` before a human's turn is the same token as ours.)
    """
    yield Begin()
    before, start = f"{template.system}\n\n### Human: ", "fresh"
    for turn in turns:
        if turn.role == "user":
            yield from user(turn, before, "\n### Assistant:", start)
        else:
            yield Text(f" {turn.text}\n###", supervised=True)
            before, start = " Human: ", "inside"


def _plain(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
    """`<image>caption\\n`: stage 1. The user's words are thrown away, and no end token follows."""
    if len(turns) > 2 or turns[0].images != 1:
        raise UserError(
            "The template 'plain' takes one image with one caption: a human turn with '<image>', then one gpt turn."
        )
    yield Begin()
    yield Image()
    if len(turns) == 2:
        yield Text(f"{turns[1].text}\n", supervised=True, start="fresh")


TEMPLATES = {
    t.name: t
    for t in (
        Template("plain", _plain),
        Template("vicuna_v1", _two, VICUNA_SYSTEM),
        Template("llava_llama_2", _llama_2, LLAVA_SYSTEM),
        Template("llama_2", _llama_2, LLAMA_2_SYSTEM),
        Template("llama_3", _llama_3, LLAVA_SYSTEM),
        Template("mistral_instruct", _llama_2),
        Template("chatml_direct", _chatml, CHATML_SYSTEM),
        Template("mpt", _chatml, MPT_SYSTEM),
        Template("v0", _v0, V0_SYSTEM),
    )
}
OWN = "chat_template"  # the tokenizer's own chat template: see chat_template.py
NAMES = (*TEMPLATES, OWN)

# The LLMs of the paper's ablation (its figure 3), by their hub ids, and the template that each was trained with; and Llama 3.
VICUNAS = [f"lmsys/vicuna-{size}-{v}" for size in ("7b", "13b") for v in ("v1.1", "v1.3", "v1.5")]
TEMPLATE_OF = dict.fromkeys(VICUNAS, "vicuna_v1") | {
    f"meta-llama/Llama-2-{size}-chat-hf": "llava_llama_2" for size in ("7b", "13b")
}
LLAMA_3 = [
    f"meta-llama/{name}-Instruct" for name in ("Meta-Llama-3-8B", "Llama-3.1-8B", "Llama-3.2-1B", "Llama-3.2-3B")
]
TEMPLATE_OF |= dict.fromkeys(LLAMA_3, "llama_3")


def template_for(llm: str, own: bool = False) -> str:
    """The template's name that belongs to an LLM, by its hub id: what `template: auto` means.

    Args:
        own: its tokenizer has a chat template, which is taken for any other LLM.

    Raises:
        UserError: the LLM is none of those known, and has none of its own.
    """
    if llm in TEMPLATE_OF:
        return TEMPLATE_OF[llm]
    if own:
        return OWN
    raise UserError(
        f"template: auto knows the LLMs of the paper's ablation, Llama 3, and any that has a chat template, and {llm} is none of "
        f"them.{nearest(llm, TEMPLATE_OF)} Name one of {', '.join(NAMES)}."
    )


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in TEMPLATES:
        raise UserError(f"No template '{name}'.{nearest(name, NAMES)} There are: {', '.join(NAMES)}.")
    return TEMPLATES[name]
