"""Sets about text in images: OCR-VQA and TextCaps."""

from __future__ import annotations

from collections.abc import Iterator

from .inputs import Inputs
from .rules import Talk, capital

SPLITS = {"train": 1, "val": 2, "test": 3}


def ocrvqa(inputs: Inputs) -> Iterator[Talk]:
    """`dataset.json`: covers by their number, each with a split, questions and answers in two lists."""
    wanted = SPLITS[inputs.split or "train"]
    file = inputs.entries("dataset")
    for name, record in inputs.counted(file):
        if file.whole(record, "split") != wanted:
            inputs.left[f"covers of other splits than {inputs.split or 'train'}"] += 1
            continue
        questions, answers = file.many(record, "questions", str), file.many(record, "answers", str)
        if len(questions) != len(answers):
            raise file.fail(f"{name} has {len(questions)} questions and {len(answers)} answers")
        pairs = [(q.strip(), capital(a.strip())) for q, a in zip(questions, answers, strict=True)]
        yield Talk(name, inputs.image(f"{name}.jpg"), pairs)


def textcaps(inputs: Inputs) -> Iterator[Talk]:
    """`TextCaps_0.1_train.json`, and TextVQA's Rosetta file, whose OCR tokens the published file lists after the prompt."""
    words: dict[str, str] = {}
    if inputs.has("ocr"):
        file = inputs.listed("ocr", "data")
        words = {file.name(r, "image_id"): ", ".join(file.many(r, "ocr_tokens", str)) for r in file}
    file = inputs.listed("captions", "data")
    for record in inputs.counted(file):
        image = file.name(record, "image_id")
        if inputs.has("ocr") and image not in words:
            raise file.fail(f"image {image} is not in {inputs.named('ocr')}")
        seen = f"Reference OCR token: {words[image]}".strip() if inputs.has("ocr") else ""
        yield Talk(image, inputs.image(f"{image}.jpg"), [(seen, file.text(record, "caption_str"))])
