"""Samples to race with: LLaVA JSON and JPEGs of 640 by 480, of lengths that are known in tokens.

In: a set's name, a tokenizer, the batch. Out: a folder with `samples.json` and `images/`. Texts are random words that are one
token each, so a text of n words is n tokens.

`one`, `four` and `eight` have so many questions about an image, each a sample of its own; `mixed-half` is `one` with every
second sample without an image. Of these a set is exactly one batch, which every step sees again: so each contender, whatever its
order and its way to lay samples side by side, takes the same samples in every step, and losses can be compared. `mix665k`
has new samples in every step, in the proportions of LLaVA-1.5's instruction data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIZE = (640, 480)  # pixels
QUESTION, ANSWER = 8, 59  # words of the fixed sets; an answer's end token is its 60th supervised one
SETS = ("one", "four", "eight", "mixed-half", "mix665k")
IMAGES_OF = {"one": 1, "four": 4, "eight": 8, "mixed-half": 1}  # questions an image


@dataclass(frozen=True)
class Part:
    """One source of LLaVA-1.5's instruction data."""

    name: str
    samples: int
    """Published: haotian-liu in LLaVA's issue 702; they add up to the 665,298 rows of the released JSON."""
    turns: tuple[int, int]
    """Questions in one sample, from, to. GQA, VQAv2, OCR-VQA, A-OKVQA, OK-VQA, TextCaps: near the published questions divided
    by images (943K/72K, 444K/83K, 5 an image, 1, 1, 1); VG and RefCOCO: LLaVA-1.5's appendix A.2 (10, and fewer than 10).
    LLaVA-Instruct (conversation, detail, reasoning) and ShareGPT: an assumption."""
    question: tuple[int, int]
    answer: tuple[int, int]
    """Words (tokens) of a question and an answer, from, to: an assumption; nobody has published the lengths."""
    image: bool = True


MIX = (
    Part("LLaVA-Instruct, conversation", 57_669, (2, 6), (8, 18), (15, 60)),
    Part("LLaVA-Instruct, detail", 23_240, (1, 1), (8, 20), (90, 180)),
    Part("LLaVA-Instruct, reasoning", 76_803, (1, 1), (12, 25), (90, 180)),
    Part("ShareGPT", 40_688, (2, 6), (10, 120), (80, 400), image=False),
    Part("VQAv2", 82_783, (3, 8), (6, 20), (1, 2)),
    Part("GQA", 72_140, (8, 18), (8, 14), (1, 2)),
    Part("OK-VQA", 8_998, (1, 1), (16, 24), (1, 3)),
    Part("OCR-VQA", 80_000, (4, 6), (6, 14), (1, 12)),
    Part("A-OKVQA", 66_160, (1, 1), (35, 60), (1, 1)),
    Part("TextCaps", 21_953, (1, 1), (30, 60), (10, 20)),
    Part("RefCOCO", 48_447, (3, 9), (12, 30), (4, 20)),
    Part("VG", 86_417, (10, 10), (12, 30), (4, 20)),
)
LONGEST = 1900  # words of one sample: with template and 2 tokens a turn under max_length 2,048


def single_tokens(encoder) -> list[str]:
    """Words of three letters and more that are one token wherever they stand, also right after a line break."""
    line = encoder.encode("\n")
    words = []
    for token, number in sorted(encoder.tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        word = token.removeprefix("▁")
        if word == token or len(word) < 3 or not (word.isascii() and word.isalpha()):
            continue
        if encoder.encode(f" {word}") == [number] and len(encoder.encode(f"\n{word}")) == len(line) + 1:
            words.append(word)
    return words


def make_set(name: str, folder: Path, words: Sequence[str], batch: int, steps: int) -> Path:
    """Writes the set; returns its `samples.json`.

    Args:
        batch: samples in one optimizer step.
        steps: that will be taken; `mix665k` has samples for all of them.

    Raises:
        ValueError: the batch does not hold whole groups of the set's questions about one image.
    """
    rng = random.Random(f"{name} {batch}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = _mix(rng, words, batch * steps) if name == "mix665k" else _fixed(rng, words, name, batch)
    for image in sorted({row["image"] for row in rows if "image" in row}):
        _picture(folder / "images" / image)
    path = folder / "samples.json"
    path.write_text(json.dumps(rows))
    return path


def _fixed(rng: random.Random, words: Sequence[str], name: str, batch: int) -> list[dict]:
    group = IMAGES_OF[name]
    if batch % group or (name == "mixed-half" and batch % 2):
        raise ValueError(
            f"--data {name} has groups of {group if group > 1 else 2} samples, which {batch} is no multiple of."
        )
    rows = []
    for i in range(batch):
        with_image = name != "mixed-half" or i % 2 == 0
        turns = [(_text(rng, words, QUESTION), _text(rng, words, ANSWER))]
        rows.append(_row(i, turns, f"{i // group}.jpg" if with_image else None))
    return rows


def shares(parts: Sequence[Part], count: int) -> list[int]:
    """How many of `count` samples come from each part: by size, the largest remainders made whole."""
    total = sum(p.samples for p in parts)
    exact = [p.samples * count / total for p in parts]
    whole = [int(e) for e in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole


def _mix(rng: random.Random, words: Sequence[str], count: int) -> list[dict]:
    chosen = [part for part, n in zip(MIX, shares(MIX, count), strict=True) for _ in range(n)]
    rng.shuffle(chosen)
    rows = []
    for i, part in enumerate(chosen):
        turns, room = [], LONGEST
        for _ in range(rng.randint(*part.turns)):
            asked, said = rng.randint(*part.question), rng.randint(*part.answer)
            if asked + said > room:
                break
            turns.append((_text(rng, words, asked), _text(rng, words, said)))
            room -= asked + said
        rows.append(_row(i, turns, f"{i}.jpg" if part.image else None))
    return rows


def _text(rng: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(rng.choices(words, k=count))


def _row(number: int, turns: Sequence[tuple[str, str]], image: str | None) -> dict:
    talk = []
    for i, (asked, said) in enumerate(turns):
        lead = "<image>\n" if i == 0 and image else ""
        talk += [{"from": "human", "value": lead + asked}, {"from": "gpt", "value": said}]
    return {"id": f"r{number}", "conversations": talk} | ({"image": image} if image else {})


def _picture(path: Path) -> None:
    """A JPEG with some detail, so that decoding costs what a photograph's does."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(int(path.stem))
    coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (SIZE[1], SIZE[0], 3))
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def as_messages(row: dict) -> list[dict]:
    """A row's turns as TRL's `messages`: plain text, the image's placeholder left out (TRL puts it first itself)."""
    roles = {"human": "user", "gpt": "assistant"}
    return [
        {"role": roles[turn["from"]], "content": turn["value"].removeprefix("<image>\n")}
        for turn in row["conversations"]
    ]
