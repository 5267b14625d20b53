"""Makes the embedded base: `python -m qllava.demo.pretrain --out DIR` (under an hour on 2 cores).

In: nothing but this package. Out: `DIR/vision_tower` and `DIR/llm`, each with a `pretraining.json` that says what it saw and
how well it does. The two have nothing to say to each other, so they are trained at the same time, on one core each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import corpus, emoji

PARTS = ("vision_tower", "llm")


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


def train_part(part: str, out: Path, steps: int) -> None:
    """Trains one part; the tokenizer must be there."""
    from transformers import AutoTokenizer

    from . import pretrain_language, pretrain_vision

    tokenizer = AutoTokenizer.from_pretrained(out / "llm")
    train = pretrain_vision.train if part == "vision_tower" else pretrain_language.train
    report = train(tokenizer, out / part, steps)
    (out / part / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vision-steps", type=int, default=4000)
    parser.add_argument("--language-steps", type=int, default=1500)
    parser.add_argument("--part", choices=PARTS, help="train this part alone, with the tokenizer that is there")
    args = parser.parse_args()
    steps = {"vision_tower": args.vision_steps, "llm": args.language_steps}
    if args.part:
        train_part(args.part, args.out, steps[args.part])
        return
    from .pretrain_tokenizer import train

    train(sentences(), args.out / "llm")
    command = [sys.executable, "-m", "qllava.demo.pretrain", "--out", str(args.out)]
    options = ["--vision-steps", str(args.vision_steps), "--language-steps", str(args.language_steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs = [subprocess.Popen([*command, *options, "--part", part], env=environment) for part in PARTS]
    sys.exit(max(job.wait() for job in jobs))


if __name__ == "__main__":
    main()
