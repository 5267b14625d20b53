"""Whole conversations: LLaVA's own JSON (LLaVA-Instruct, the 558K captions, anyone's) and ShareGPT; and the captions' meta file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import UserError
from ..sample import parse
from . import raw
from .html import markdown
from .inputs import Inputs
from .rules import Talk

SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "chatgpt": 1, "bing": 1, "bard": 1, "assistant": 1}
SILENT = ("system",)  # whose turns are left out


def llava(inputs: Inputs) -> Iterator[Talk]:
    """The rows of LLaVA JSONs or JSONLs; `<image>` moves to the begin of the first question, as in training."""
    for path in inputs.files["rows"]:
        file = raw.samples(path)
        for record in inputs.counted(file):
            try:
                sample = parse(record, "the row")
            except UserError as error:
                raise file.fail(str(error).rstrip(".")) from None
            turns = sample.turns[: len(sample.turns) // 2 * 2]
            if not turns:
                inputs.left["rows without an answer"] += 1
            elif any(t.images for t in turns[1:]) or not all(isinstance(i, str) for i in sample.images):
                inputs.left["rows with images elsewhere than in the first question"] += 1
            else:
                name = sample.id if record.get("id") is not None else str(file.number)
                images = [inputs.image(i) for i in sample.images]
                image: Any = images[0] if len(images) == 1 else images or None
                pairs = [(q.text, a.text) for q, a in zip(turns[::2], turns[1::2], strict=True)]
                yield Talk(name, image, pairs)


def captions(inputs: Inputs) -> Iterator[Talk]:
    """`blip_laion_cc_sbu_558k_meta.json`: images with BLIP's captions."""
    file = inputs.listed("meta")
    for record in inputs.counted(file):
        yield Talk(
            file.name(record, "id"), inputs.image(file.name(record, "image")), [("", file.text(record, "blip_caption"))]
        )


def sharegpt(inputs: Inputs) -> Iterator[Talk]:
    """ShareGPT's conversations as lists of `from` and `value`, its answers' HTML as Markdown.

    Left out are conversations in which the speakers do not take turns, those with an empty turn, those that begin with the question
    and the answer of an earlier one, and the answer at the begin or the question at the end that has no counterpart.
    """
    seen: set[tuple[int, int]] = set()
    for path in inputs.files["rows"]:
        file = raw.samples(path)
        for record in inputs.counted(file):
            turns = [_turn(file, t) for t in file.many(record, "conversations")]
            turns = [t for t in turns if t is not None]
            while turns and turns[0][0] == 1:
                turns = turns[1:]
            turns = turns[: len(turns) - (bool(turns) and turns[-1][0] == 0)]
            key = tuple(hash(text) for _, text in turns[:2])
            if not turns:
                inputs.left["conversations without a question and its answer"] += 1
            elif any(speaker != i % 2 for i, (speaker, _) in enumerate(turns)):
                inputs.left["conversations whose speakers do not take turns"] += 1
            elif not all(text for _, text in turns):
                inputs.left["conversations with an empty turn"] += 1
            elif key in seen:
                inputs.left["conversations that begin as an earlier one"] += 1
            else:
                seen.add(key)
                texts = [text for _, text in turns]
                name = str(record["id"]) if record.get("id") is not None else str(file.number)
                yield Talk(name, None, list(zip(texts[::2], texts[1::2], strict=True)))


def _turn(file: raw.Records, turn: Any) -> tuple[int, str] | None:
    speaker = file.text(turn, "from")
    if speaker in SILENT:
        return None
    if speaker not in SPEAKERS:
        raise file.fail(f"'from' is {speaker!r}, none of {', '.join((*SPEAKERS, *SILENT))}")
    text = file.text(turn, "value")
    return SPEAKERS[speaker], markdown(text) if SPEAKERS[speaker] else text
