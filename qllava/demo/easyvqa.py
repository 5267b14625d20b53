"""easy-VQA as LLaVA JSON: a published visual question answering set (MIT) that its own PyPI package carries.

In: the installed package `easy-vqa` 1.0. Out: two LLaVA JSONs with response-format prompts. To train, all questions about
an image become one conversation, the prompt with the first of them, as LLaVA-1.5 merges its VQA sets. To test, every
question stands alone, as it is scored.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from .world import SHORT


def folder() -> Path:
    """Where the package's data lies.

    Raises:
        UserError: the package is not installed.
    """
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise UserError("The package easy-vqa is not installed; `pip install easy-vqa==1.0` brings the demo's data.")
    return Path(spec.origin).parent / "data"


def read(split: str) -> list[tuple[str, str, int]]:
    """(question, answer, number of its image), for `train` or `test`."""
    rows = json.loads((folder() / split / "questions.json").read_text(encoding="utf-8"))
    return [(question, answer, image) for question, answer, image in rows]


def conversations(rows: list[tuple[str, str, int]], seed: int = 0) -> list[dict[str, Any]]:
    """One LLaVA sample an image, its questions in a seeded order."""
    rng, by_image = random.Random(seed), defaultdict(list)
    for question, answer, image in rows:
        by_image[image].append((question, answer))
    samples = []
    for image, pairs in sorted(by_image.items()):
        rng.shuffle(pairs)
        turns = []
        for i, (question, answer) in enumerate(pairs):
            asked = f"<image>\n{question}\n{SHORT}" if i == 0 else question
            turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        samples.append({"id": f"easy-vqa-{image}", "image": f"{image}.png", "conversations": turns})
    return samples


def singles(rows: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """One LLaVA sample a question."""
    return [
        {
            "id": f"easy-vqa-{number}",
            "image": f"{image}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}\n{SHORT}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for number, (question, answer, image) in enumerate(rows)
    ]


def write(out: Path) -> tuple[Path, Path]:
    """Writes `easyvqa_train.json` and `easyvqa_test.json` into `out`, their images into folders of the same names."""
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        shutil.copytree(folder() / split / "images", out / f"easyvqa_{split}")
    train, test = out / "easyvqa_train.json", out / "easyvqa_test.json"
    train.write_text(json.dumps(conversations(read("train")), indent=1) + "\n", encoding="utf-8")
    test.write_text(json.dumps(singles(read("test")), indent=1) + "\n", encoding="utf-8")
    return train, test


def blind_score() -> float:
    """Share of test questions that the most frequent training answer to the same question text gets right."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for question, answer, _ in read("train"):
        answers[question][answer] += 1
    test = read("test")
    return sum(answers[q].most_common(1)[0][0] == a for q, a, _ in test) / len(test)
