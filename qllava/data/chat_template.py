"""Any LLM's own chat template as a `Template`: its Jinja is rendered around marks that stand for the user's and the
assistant's texts, so that every boundary is known without searching for it in the result.

In: a tokenizer with a chat template. Out: a `Template` whose literal parts know their special tokens, whose user's texts are
text whatever they hold, and whose answers are supervised up to and with the special token that ends them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import UserError
from .sample import Turn
from .template import OWN, Piece, Special, Template, Text, user

MARK = "\x02{}\x03"  # no chat template writes these
MARKS = re.compile("\x02(\\d+)\x03")


def chat_template(tokenizer: Any) -> Template:
    """The tokenizer's own chat template.

    Raises:
        UserError: it has none, or one that closes answers with no special token.
    """
    if not tokenizer.chat_template:
        raise UserError("template: chat_template, but the LLM's tokenizer has no chat template. Name another template.")
    specials = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len, reverse=True)
    split = re.compile("|".join(re.escape(s) for s in specials if s.strip()) or "(?!)")
    trims = "\t\x02\t" not in _render(tokenizer, [Turn("user", "\t\x02\t")])

    def render(template: Template, turns: Sequence[Turn]) -> Iterator[Piece]:
        turns = [Turn(t.role, t.text.strip() if trims else t.text, t.images) for t in turns]
        marked = [Turn(t.role, MARK.format(i)) for i, t in enumerate(turns)]
        text = _render(tokenizer, marked)
        parts = MARKS.split(text)  # literal, number, literal, number, …, literal
        if [int(n) for n in parts[1::2]] != list(range(len(turns))):
            raise UserError(
                "The LLM's chat template does not write every turn once and in order, so it cannot be used."
            )
        if MARKS.sub(lambda found: turns[int(found[1])].text, text) != _render(tokenizer, turns):
            raise UserError(
                "The LLM's chat template changes the text of a turn, so what is trained would not be what it says."
            )
        start, answered = "fresh", False
        for i, literal in enumerate(parts[0::2]):
            turn = turns[i] if i < len(turns) else None
            pieces = list(_literal(literal, split, answered, start))
            if answered and not any(isinstance(p, Special) for p in pieces):
                raise UserError(
                    "The LLM's chat template closes answers with no special token, so none could be learned."
                )
            if turn is None:
                yield from pieces
                return
            if turn.role == "user":
                tail = (
                    pieces.pop() if pieces and isinstance(pieces[-1], Text) else Text("", start=_after(pieces, start))
                )
                yield from pieces
                yield from user(turn, tail.text, "", tail.start)
            else:
                asked, lead = MARKS.split(_render(tokenizer, marked[:i]))[-1], ""
                if literal.startswith(asked):  # what a prompt does not hold, the model must say: it is answer, too
                    pieces, lead = list(_literal(asked, split, answered, start)), literal[len(asked) :]
                yield from pieces
                yield from _said(lead + turn.text, len(lead), split, _after(pieces, start))
            start, answered = "inside", turn.role == "assistant"

    return Template(OWN, render)


def _render(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The conversation as the tokenizer's Jinja writes it; with a prompt for an answer where it ends with the user's turn."""
    from jinja2 import TemplateError

    messages = [{"role": t.role, "content": t.text} for t in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1].role == "user")
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The LLM's chat template refuses the conversation: {error}") from None


def _literal(text: str, split: re.Pattern[str], answered: bool, start: str) -> Iterator[Piece]:
    """Pieces of a template's own text; after an answer, all up to the first special token, and that token, is supervised."""
    at = 0
    for found in split.finditer(text):
        if found.start() > at:
            yield Text(text[at : found.start()], supervised=answered, start=start)
        yield Special(found.group(), supervised=answered)
        at, start, answered = found.end(), "special", False
    if at < len(text):
        yield Text(text[at:], start=start)


def _said(text: str, lead: int, split: re.Pattern[str], start: str) -> Iterator[Piece]:
    """An answer, whose first `lead` characters are the template's own and may hold special tokens; all supervised."""
    at = 0
    for found in split.finditer(text, 0, lead):
        if found.start() > at:
            yield Text(text[at : found.start()], supervised=True, start=start)
        yield Special(found.group(), supervised=True)
        at, start = found.end(), "special"
    yield Text(text[at:], supervised=True, start=start)


def _after(pieces: Sequence[Piece], start: str) -> str:
    """Where text stands that follows these pieces."""
    if not pieces:
        return start
    return "special" if isinstance(pieces[-1], Special) else "inside"
