"""What becomes of a set's records: the paper's rules (appendix A.2), each a pure function.

In: `Talk`s, what a reader knows of an image. Out: conversations, lists of question and answer. Whatever is drawn comes from a `Random`
that is given; `drawn` makes one of seed, source and image, so that no source's choices depend on another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
REGION = "{region}"  # where a prompt has the box or the description
Pair = tuple[str, str]


class Talk(NamedTuple):
    """What one record, or all records of an image, say."""

    id: str
    image: str | list[str] | None
    pairs: list[Any]  # of question and answer; what else a set has, its own arrangement makes into that


def drawn(*parts: object) -> Random:
    """A source of chance that depends on the parts alone."""
    return Random("/".join(map(str, parts)))


def merge(talks: Iterable[Talk]) -> Iterator[Talk]:
    """One talk an image, with the id of its first, in the order in which images first appear. Talks without one stay as they are."""
    found: dict[Any, Talk] = {}
    for number, talk in enumerate(talks):
        known = found.setdefault(number if talk.image is None else talk.image, talk)
        if known is not talk:
            known.pairs.extend(talk.pairs)
    yield from found.values()


def sample(items: list[Any], count: int | None, chance: Random) -> list[Any]:
    """`count` of the items, in their order; all where there are no more."""
    if count is None or len(items) <= count:
        return items
    return [items[i] for i in sorted(chance.sample(range(len(items)), count))]


def segments(pairs: Sequence[Any], most: int | None) -> list[Sequence[Any]]:
    """The pairs in stretches of at most `most`, each as long as it can be."""
    if most is None:
        return [pairs]
    return [pairs[i : i + most] for i in range(0, len(pairs), most)]


def capital(text: str) -> str:
    """The text with a capital at its begin, as all short answers of the published file have it."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """The text with a full stop at its end."""
    return text if text.endswith((".", "!", "?")) else text + "."


def each_choice(pairs: Sequence[tuple[str, Sequence[str], int]]) -> list[list[Pair]]:
    """Multiple choice, once for every choice: the k-th time the choices have moved on by k places, and the answer's letter with them.

    In: question, choices, number of the right one. Where questions have different numbers of choices, the largest counts.
    """
    return [[lettered(*pair, k) for pair in pairs] for k in range(max(len(p[1]) for p in pairs))]


def lettered(question: str, choices: Sequence[str], right: int, turn: int = 0) -> Pair:
    """The question with its choices under letters, and the right one's letter."""
    count = len(choices)
    moved = [choices[(i - turn) % count] for i in range(count)]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, moved, strict=False))
    return f"{question}\n{listed}", LETTERS[(right + turn) % count]


def square(box: Sequence[float], width: float, height: float) -> str:
    """A box as LLaVA-1.5 writes it: `[x1, y1, x2, y2]` as shares of the image padded to a square, with two decimals.

    In: left, top, width and height in pixels. What reaches beyond the image ends at its border.
    """
    side = max(width, height)
    left, top, wide, high = box
    xs = [(min(max(x, 0), width) + (side - width) / 2) / side for x in (left, left + wide)]
    ys = [(min(max(y, 0), height) + (side - height) / 2) / side for y in (top, top + high)]
    return str([round(v, 2) + 0.0 for v in (xs[0], ys[0], xs[1], ys[1])])


def outside(box: Sequence[float], width: float, height: float) -> bool:
    """Whether nothing of the box is in the image."""
    left, top, wide, high = box
    return left >= width or top >= height or left < 0 >= left + wide or top < 0 >= top + high


def both_ways(pairs: Sequence[Pair], describe: str, locate: str, chance: Random) -> list[Pair]:
    """Of each region, by a fair coin, either the description of its box or the box of its description.

    In: description and box.
    """
    return [
        (describe.replace(REGION, box), sentence(capital(text)))
        if chance.random() < 0.5
        else (locate.replace(REGION, text.removesuffix(".")), box)
        for text, box in pairs
    ]


def fits(lengths: Iterable[int], most: int) -> int:
    """How many of the first pairs fit into `most` together."""
    total = count = 0
    for length in lengths:
        total += length
        if total > most:
            break
        count += 1
    return count


def conversation(pairs: Sequence[Pair], prompt: str | None, every: bool, images: int) -> list[dict[str, str]]:
    """The turns as LLaVA JSON has them: `<image>` opens the first question, the prompt ends the first (or every) one."""
    turns = []
    for i, (question, answer) in enumerate(pairs):
        lead = "" if i else "<image>\n" * images
        tail = f"\n{prompt}" if prompt and (every or not i) else ""
        turns += [{"from": "human", "value": f"{lead}{question}{tail}"}, {"from": "gpt", "value": answer}]
    return turns
