"""Ids and labels by construction: pieces in, `Tokens` out.

Each text piece is encoded on its own, as the continuation of what stands before it, with the LLM's own vocabulary. Special
tokens written in a user's text stay text. An image is one `IMAGE` (-200), as in the original, until the collator spreads
it over its patches.

Where a `tokenizer.model` is at hand, SentencePiece itself encodes: transformers 5 rebuilds the merges and splits runs of
spaces otherwise (`"  two"` becomes `▁▁ two` instead of the original's `▁ ▁two`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from .sample import Sample, Turn
from .template import Begin, Image, Piece, Special, Start, Template, Text

IMAGE = -200  # one image in `ids`
IGNORE = -100  # no label
AfterEos = Literal["current", "legacy", "4.31"]


@dataclass(frozen=True)
class Tokens:
    ids: list[int]  # -200 stands for one image
    labels: list[int]  # same length; -100 where nothing is learned
    truncated: bool = False
    counts: tuple[int, ...] = ()  # of each image: the positions that it takes

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE for label in self.labels)

    @property
    def length(self) -> int:
        """Positions, with every image's."""
        return len(self.ids) - len(self.counts) + sum(self.counts)


class Encoder:
    """Encodes text as the original's tokenizer would where it stands.

    Args:
        tokenizer: a transformers tokenizer, for its special ids and, where there is no SentencePiece model, its merges.
        model_file: the LLM's `tokenizer.model`, or None.
        after_eos: how text right after a special token is encoded, which changed with the versions of transformers:
            `current` as the continuation of what stands before (`USER:` is 11889, 29901; today's LLaVA, 4.37 and 5),
            `legacy` as a fresh stretch (3148, 1001, 29901; `legacy=True`), `4.31` as a fresh stretch that loses its first
            space (3308, 1001, 29901; likely what the released weights were trained with).
    """

    def __init__(self, tokenizer: Any, model_file: Path | None = None, after_eos: AfterEos = "current") -> None:
        self.tokenizer = tokenizer
        self.model_file = model_file
        self.after_eos = after_eos
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.adds_bos = self.bos is not None and tokenizer("x").input_ids[:1] == [self.bos]
        self._specials = {t for t in tokenizer.get_added_vocab() if t.strip()}
        self._pieces = self._lead = None
        if model_file is not None:
            self._pieces, spaced = _continuing(model_file)
        else:
            alone = self._fast("x")
            spaced = alone != self._fast("\nx")[-len(alone) :]
            self._lead = self._fast("\n") if spaced else []
        self.prefix = " " if spaced else ""  # what the tokenizer puts before a fresh stretch of text

    def _fast(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode(self, text: str, start: Start = "inside") -> list[int]:
        """Ids of text that stands `inside` other text, `fresh` after nothing or an image, or after a `special` token.

        Special tokens written in it are text.
        """
        if not text:
            return []
        if start == "special":
            if self.after_eos == "4.31":
                return self._shorn(self._encode(self.prefix + text)) if self.prefix else self._encode(text)
            start = "fresh" if self.after_eos == "legacy" else "inside"
        return self._encode(self.prefix + text if start == "fresh" else text)

    def _encode(self, text: str) -> list[int]:
        if self._pieces is not None:
            return self._pieces.encode(text)
        if not self._lead:
            return self._fast(text)
        ids = self._fast("\n" + text)  # the line break takes the space that would go before the text
        if ids[: len(self._lead)] != self._lead:
            raise UserError(f"The tokenizer joins a line break with {text[:20]!r}; give its folder a tokenizer.model.")
        return ids[len(self._lead) :]

    def _shorn(self, ids: list[int]) -> list[int]:
        """The ids without the space that the first one begins with."""
        rest = self.tokenizer.convert_ids_to_tokens(ids[0]).removeprefix("▁")
        if not rest:
            return ids[1:]
        known = self.tokenizer.get_vocab().get(rest)
        return ([known] if known is not None else self._encode(rest)) + ids[1:]

    def special(self, token: str) -> int | None:
        """The id of a special token by its name; None where the tokenizer has no such special token."""
        return self.tokenizer.get_vocab()[token] if token in self._specials else None

    @property
    def specials(self) -> set[str]:
        """The names of the tokenizer's special and added tokens."""
        return self._specials


def _continuing(model_file: Path) -> tuple[Any, bool]:
    """The SentencePiece model of that file, set to add no space in front, and whether it would have added one."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
    spaced = proto.normalizer_spec.add_dummy_prefix
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString()), spaced


def encode_pieces(pieces: Sequence[Piece], encoder: Encoder) -> Tokens:
    """Ids and labels of the pieces, each of the same length; an unsupervised piece's labels are -100."""
    ids: list[int] = []
    labels: list[int] = []
    spelled = False  # the piece before is a special token that the tokenizer does not know, and so is text
    for piece in pieces:
        match piece:
            case Text(text=text, start=start):
                new = encoder.encode(text, "inside" if spelled and start == "special" else start)
            case Image():
                new = [IMAGE]
            case Begin(always=always):
                new = [encoder.bos] if encoder.bos is not None and (always or encoder.adds_bos) else []
            case Special(token=token):
                known = encoder.special(token)
                first = not any(i != encoder.bos for i in ids)
                new = encoder.encode(token, "fresh" if first else "inside") if known is None else [known]
            case _:
                new = [encoder.eos]
        spelled = isinstance(piece, Special) and encoder.special(piece.token) is None
        ids += new
        labels += new if piece.supervised else [IGNORE] * len(new)
    return Tokens(ids, labels)


def encode_prompt(turns: Sequence[Turn], template: Template, encoder: Encoder) -> list[int]:
    """Ids of a conversation that ends with the user's turn, up to where the answer begins."""
    return encode_pieces(template.pieces(turns), encoder).ids


def encode_sample(
    sample: Sample,
    template: Template,
    encoder: Encoder,
    image_tokens: int | Sequence[int],
    max_length: int | None = None,
) -> Tokens:
    """Ids and labels of a whole sample, cut at the end to `max_length` positions, where an image counts `image_tokens` (all
    alike, or one number for each).

    Raises:
        UserError: the sample has no supervised token, or loses its last one, or an image, to the cut.
    """
    tokens = encode_pieces(template.pieces(sample.turns), encoder)
    images = tokens.ids.count(IMAGE)
    counts = (image_tokens,) * images if isinstance(image_tokens, int) else tuple(image_tokens)
    tokens = replace(tokens, counts=counts)
    if tokens.supervised == 0:
        raise UserError(f"Sample {sample.id!r} has no answer to learn from (no supervised token).")
    if max_length is None:
        return tokens
    room, keep, left = max_length, 0, iter(counts)
    for token in tokens.ids:
        room -= next(left) if token == IMAGE else 1
        if room < 0:
            break
        keep += 1
    if keep == len(tokens.ids):
        return tokens
    cut = Tokens(tokens.ids[:keep], tokens.labels[:keep], truncated=True, counts=counts)
    if IMAGE in tokens.ids[keep:]:
        each = f"{counts[0]} positions each" if len(set(counts)) == 1 else f"{', '.join(map(str, counts))} positions"
        raise UserError(f"Sample {sample.id!r}: max_length {max_length} would cut an image away ({each}).")
    if cut.supervised == 0:
        raise UserError(f"Sample {sample.id!r}: max_length {max_length} leaves nothing of its answer.")
    return cut
