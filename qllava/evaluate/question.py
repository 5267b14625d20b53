"""What is asked of a model, and the texts that come back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.image import open_image, size_of
from ..data.processing import Processing
from ..data.sample import PLACEHOLDER, Turn
from ..data.template import Begin, End, Special, Text
from ..data.tokens import encode_prompt


@dataclass(frozen=True)
class Question:
    """One question. `id` is what the set's own files call it, which for TextVQA is its image and so comes again."""

    id: str | int
    turns: tuple[Turn, ...]  # ends with the user's
    images: tuple[Path | bytes, ...] = ()
    answer: Any = None  # what a score compares with; None where a server keeps it
    group: str = ""  # category, split or type, where the set has one
    prompt: str = ""  # as the original writes it into its answer file; by default the last turn's text

    @property
    def shown(self) -> str:
        return self.prompt or self.turns[-1].text


@functools.lru_cache(maxsize=64)
def _open(file: Path | bytes, exif: bool) -> Image.Image:
    return open_image(file, exif)


def ids_of(question: Question, processing: Processing) -> list[int]:
    """The prompt's ids, an image as one -200."""
    return encode_prompt(question.turns, processing.template, processing.encoder)


def length_of(question: Question, processing: Processing) -> int:
    """Positions that a prompt takes once its images are spread."""
    counts = [processing.image_tokens] * len(question.images)
    if processing.tiling is not None:
        counts = processing.tiling.tokens([size_of(file, processing.exif) for file in question.images])
    return len(ids_of(question, processing)) - len(counts) + sum(counts)


def features_of(question: Question, processing: Processing) -> dict[str, Any]:
    """What `generate` takes for a question: `input_ids`, and with images what `Processing.pictures` makes of them.

    Raises:
        UserError: an image is missing or damaged.
    """
    images: Sequence[Image.Image] = [_open(file, processing.exif) for file in question.images]
    return {"input_ids": ids_of(question, processing), **processing.pictures(images)}


def sent(question: Question, processing: Processing) -> str:
    """The whole prompt as it was sent, special tokens and `<image>` written out."""
    names = processing.encoder.tokenizer
    out = []
    for piece in processing.template.pieces(question.turns):
        match piece:
            case Text(text=text):
                out.append(text)
            case Special(token=token):
                out.append(token)
            case Begin(always=always):
                out.append((names.bos_token or "") if always or processing.encoder.adds_bos else "")
            case End():
                out.append(names.eos_token or "")
            case _:
                out.append(PLACEHOLDER)
    return "".join(out)
