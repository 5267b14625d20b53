"""Makes the embedded base: `python -m qllava.demo.pretrain --out DIR` (under an hour on 2 cores)."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from . import corpus, emoji


def sentences(count: int = 40_000) -> Iterator[str]:
    """Text to train the tokenizer on."""
    from ..data.template import TEMPLATES

    rng, emojis = random.Random(1), [e for e, _ in emoji.load()]
    for _ in range(count):
        talk = corpus.conversation(rng, emojis)
        yield corpus.caption(rng, emojis)
        for turn in talk:
            yield from turn["value"].split("\n")
        if rng.random() < 0.1:
            yield TEMPLATES["vicuna_v1"].system
            yield "USER: ASSISTANT:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vision-steps", type=int, default=4000)
    parser.add_argument("--language-steps", type=int, default=3000)
    parser.add_argument("--only", choices=("tokenizer", "vision", "language"))
    args = parser.parse_args()
    from transformers import AutoTokenizer

    from . import pretrain_language, pretrain_tokenizer, pretrain_vision

    llm, tower = args.out / "llm", args.out / "vision_tower"
    report = args.out / "pretraining.json"
    seen = json.loads(report.read_text()) if report.exists() else {}
    if args.only in (None, "tokenizer"):
        pretrain_tokenizer.train(sentences(), llm)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if args.only in (None, "vision"):
        seen["vision_tower"] = pretrain_vision.train(tokenizer, tower, args.vision_steps)
    if args.only in (None, "language"):
        seen["llm"] = pretrain_language.train(tokenizer, llm, args.language_steps)
    report.write_text(json.dumps(seen, indent=2) + "\n")


if __name__ == "__main__":
    main()
