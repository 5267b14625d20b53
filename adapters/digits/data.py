"""Handwritten digits as a LLaVA JSON: python adapters/digits/data.py --out runs/digits/data

1,797 real scans of 8 by 8 pixels (Alpaydin and Kaynak, 1998; in scikit-learn as `load_digits`), enlarged to 64 by 64, each
with two questions: which digit it is, and whether it is one that is named. Four fifths to train on, one fifth to test.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHORT = "Answer the question using a single word or phrase."
EDGE = 64  # pixels; the embedded tower's


def picture(scan: np.ndarray) -> Image.Image:
    """An 8 by 8 scan of values 0 to 16 as dark ink on white."""
    grey = Image.fromarray((255 - scan * 255 / 16).astype(np.uint8))
    return grey.resize((EDGE, EDGE), Image.Resampling.BICUBIC).convert("RGB")


def sample(number: int, digit: int, rng: random.Random) -> dict:
    """One entry: the digit by its name, and a yes/no question about one."""
    asked = digit if rng.random() < 0.5 else rng.choice([d for d in range(10) if d != digit])
    talk = [
        (f"<image>\nWhich digit is this?\n{SHORT}", NAMES[digit]),
        (f"Is it a {NAMES[asked]}?", "yes" if asked == digit else "no"),
    ]
    turns = [{"from": who, "value": text} for pair in talk for who, text in zip(("human", "gpt"), pair, strict=True)]
    return {"id": f"digit-{number}", "image": f"{number}.png", "conversations": turns}


def build(out: Path) -> None:
    """Writes `train.json`, `test.json` and `images/` into `out`."""
    digits, rng = load_digits(), random.Random(0)
    order = list(range(len(digits.target)))
    rng.shuffle(order)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for i in order:
        picture(digits.images[i]).save(out / "images" / f"{i}.png")
    cut = len(order) * 4 // 5
    for name, numbers in (("train", order[:cut]), ("test", order[cut:])):
        rows = [sample(i, int(digits.target[i]), rng) for i in numbers]
        (out / f"{name}.json").write_text(json.dumps(rows, indent=1))
        print(f"{out / name}.json: {len(rows)} samples")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits/data"))
    build(parser.parse_args().out)
