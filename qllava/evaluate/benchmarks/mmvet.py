"""MM-Vet: 218 open questions; a judge gives each answer 0.0 to 1.0 against the ground truth, by examples in its prompt.

Layout: `mm-vet/` (LLaVA's docs also say `mmvet/`) with LLaVA's llava-mm-vet.jsonl, and images/ and mm-vet.json of the official
mm-vet.zip; or a copy of the hub's lmms-lab/MMVet there. Prompt and scores: MM-Vet's mm-vet_evaluator.py at acde843.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.sample import ask
from ...errors import RunError, UserError
from ..judge import Asked, Judge, notes, review
from ..question import Question
from .base import Benchmark, Score, find, from_hub, image_bytes, need, picture, read_json, read_lines

FOLDERS = ("mm-vet", "mmvet", "mmvet/mm-vet")  # the zip, unpacked into mmvet/, has a folder of its own
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
# The official grader asks for 3, which is what `0.5` takes in GPT-4's vocabulary; another judge's would cut it to `0.`, a score.
MAX_TOKENS = 16
NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
PROMPT = """Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in the ground truth means it is totally right only when all elements in the ground truth are present in the prediction, and <OR> means it is totally right when any one element in the ground truth is present in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the last space of the correctness score.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0
Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of these countries do not accurately represent their landscapes. | The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not very icy and Greenland isn't very green. | 0.4
Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of these countries do not accurately represent their landscapes. | The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names of the countries and their actual physical characteristics. | 1.0
"""


class Truth(NamedTuple):
    question: str
    answer: str
    capabilities: frozenset[str]


def _bare(name: str | int) -> str | int:
    """A question's number, which LLaVA's file has and the official ones write `v1_<number>`."""
    number = str(name).removeprefix("v1_")
    return int(number) if number.isdecimal() else number


def _there(root: Path, name: str) -> Path:
    return find(root, *(f"{folder}/{name}" for folder in FOLDERS))


def _hub(root: Path) -> list[dict[str, Any]] | None:
    """Rows of the hub's copy, where LLaVA's file is not there."""
    if any((root / folder / "llava-mm-vet.jsonl").is_file() for folder in FOLDERS):
        return None
    return from_hub(find(root, *FOLDERS))


def questions(root: Path) -> list[Question]:
    """The questions, in the file's order.

    Raises:
        UserError: a file, a key or an image is missing.
    """
    rows = _hub(root)
    if rows is not None:
        asked = []
        for number, row in enumerate(rows, 1):
            where = f"MM-Vet's row {number}"
            name, image, text = need(row, where, "question_id", "image", "question")
            asked.append(Question(_bare(name), ask(text, 1), (image_bytes(image, where),)))
        return asked
    file, images = _there(root, "llava-mm-vet.jsonl"), _there(root, "images")
    found = [need(row, where, "question_id", "image", "text") for where, row in read_lines(file)]
    return [Question(_bare(name), ask(text, 1), (picture(image, images),)) for name, image, text in found]


def _truths(root: Path) -> dict[str | int, Truth]:
    """By question; from the official mm-vet.json, or the hub's rows."""
    rows = _hub(root)
    if rows is None:
        file = _there(root, "mm-vet.json")
        found = read_json(file)
        if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
            raise UserError(f"{file} is not MM-Vet's: it needs an object of objects, by 'v1_<number>'.")
        named = [(name, f"{file}, {name}", row) for name, row in found.items()]
    else:
        named = [(need(row, f"row {n}", "question_id")[0], f"row {n}", row) for n, row in enumerate(rows, 1)]
    truths = {}
    for name, where, row in named:
        question, answer, capability = need(row, where, "question", "answer", "capability")
        parts = capability.split(",") if isinstance(capability, str) else capability
        truths[_bare(name)] = Truth(question, answer, frozenset(part.strip() for part in parts))
    return truths


def content(truth: Truth, answer: str) -> str:
    """What the judge is asked."""
    wanted = truth.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return PROMPT + "\n" + " | ".join((truth.question, wanted, answer, ""))


def parse(text: str) -> float | None:
    """The score that a review begins with; None where that is no number from 0 to 1."""
    word = (text.split(maxsplit=1) or [""])[0]
    value = float(word) if NUMBER.fullmatch(word) else -1.0
    return value if 0 <= value <= 1 else None


def _combination(capabilities: frozenset[str]) -> str:
    known = [c for c in CAPABILITIES if c in capabilities] + sorted(capabilities - set(CAPABILITIES))
    return "+".join(known) if len(known) > 1 else f"only {''.join(known)}"


def judge_answers(root: Path, questions: Sequence[Question], texts: Sequence[str], judge: Judge, file: Path) -> Score:
    """The score of any answers, ours or published ones, by this judge, at the official grader's temperature of 0.

    Parts: all, each capability, and each combination of them (`rec+know`, `only ocr`).

    Args:
        file: of the reviews; those in it are not asked for again.

    Raises:
        UserError: the set lacks something, or what `review` raises.
        RunError: no review could be parsed.
    """
    known = _truths(root)
    missing = [q.id for q in questions if q.id not in known]
    if missing:
        raise UserError(f"mm-vet.json has no ground truth for question {missing[0]!r}.")
    truths = [known[q.id] for q in questions]
    asked = [Asked(q.id, "", content(t, text)) for q, t, text in zip(questions, truths, texts, strict=True)]
    reviews = review(replace(judge, temperature=0.0, max_tokens=MAX_TOKENS), file, asked)
    graded = [(parse(one.content), truth.capabilities) for one, truth in zip(reviews, truths, strict=True)]
    failures = sum(value is None for value, _ in graded)
    if failures == len(graded):
        raise RunError(
            f"None of {len(reviews):,} reviews in {file} could be scored; the first is "
            f"{reviews[0].content[:100] if reviews else ''!r}. Is {judge.model!r} able to follow the judge's prompt? Delete the file to have them written anew."
        )

    def mean(chosen: Callable[[frozenset[str]], bool]) -> float | None:
        values = [value for value, capabilities in graded if value is not None and chosen(capabilities)]
        total = 0.0  # sum() is more exact than the original's +=, and rounds otherwise in one case of a hundred
        for value in values:
            total += value
        return float(np.round(total / len(values) * 100, 1)) if values else None

    combinations = sorted({truth.capabilities for truth in truths}, key=_combination)
    parts = {
        "all": mean(lambda _: True),
        **{name: mean(lambda own, name=name: name in own) for name in CAPABILITIES},
        **{_combination(c): mean(lambda own, c=c: own == c) for c in combinations},
        "parse failures": float(failures),
    }
    found = {name: value for name, value in parts.items() if value is not None}
    return Score(found, len(questions), notes(reviews, failures))


def read_results(file: Path, questions: Sequence[Question]) -> list[str]:
    """The text for each question out of a file in the grader's form, `{"v1_<number>": text}`, as published results are.

    Raises:
        UserError: it is not one, or an answer is missing.
    """
    found = read_json(file)
    if not isinstance(found, Mapping) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(f"{file} is not in MM-Vet's form, one object of texts by 'v1_<number>'.")
    missing = [q.id for q in questions if f"v1_{q.id}" not in found]
    if missing:
        raise UserError(f"{file} lacks {len(missing):,} of {len(questions):,} answers; the first is 'v1_{missing[0]}'.")
    return [found[f"v1_{q.id}"] for q in questions]


def submit(root: Path, questions: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """mmvet.json, as LLaVA's convert_mmvet_for_eval.py writes it and the official grader takes it."""
    file = folder / "mmvet.json"
    folder.mkdir(parents=True, exist_ok=True)
    answers = {f"v1_{q.id}": text for q, text in zip(questions, texts, strict=True)}
    file.write_text(json.dumps(answers, indent=2), encoding="utf-8")
    return file


MMVET = Benchmark(
    name="mmvet",
    title="MM-Vet",
    main="all",
    paper={
        slug: {"all": value}
        for slug, value in (
            ("blip-2", 22.4), ("instructblip-7b", 26.2), ("instructblip-13b", 25.6), ("llava-7b", 25.5),
            ("llava-1.5-7b", 31.1), ("llava-1.5-13b", 36.1), ("llava-1.5-hd-13b", 39.4),
            ("llava-1.5-7b-lora", 30.2), ("llava-1.5-13b-lora", 38.3),
        )
    },
    questions=questions,
    official=218,
    max_new_tokens=1024,
    submit=submit,
    server="MM-Vet's mm-vet_evaluator (gpt-4-0613)",
    judged=True,
    differences=(
        "the official grader asks up to five times for a number and then scores 0; here one asking that gives none is left "
        "out of the means, and counted",
        "lmms-eval puts 'First please perform reasoning, and think step by step' before each question, and writes "
        "'gpt_query_prompt' over the first column of the judge's examples",
    ),
)  # fmt: skip
