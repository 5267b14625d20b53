"""MME: yes-or-no questions in fourteen categories, two about each picture.

Under `MME/`: `llava_mme.jsonl` (2,374 questions) and `MME_Benchmark_release_version/` with, in each category's folder, pictures
and texts side by side or in `images/` and `questions_answers_YN/`; or the parquet files of lmms-lab/MME (split `test`). Facts:
LLaVA's scripts/v1_5/eval/mme.sh, the conversion it runs (convert_answer_to_mme.py), MME's eval_tool/calculation.py, and
lmms-eval's lmms_eval/tasks/mme/utils.py. A category's score is accuracy + accuracy+ (both questions of a picture right), in
percent each; perception is the sum of ten categories (2,000 at most), cognition of four (800).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ..question import Question
from .base import SHORT, Benchmark, Score, need
from .vqav2 import VLMEVALKIT, asked, hub_question, hub_rows

QUESTIONS = "MME/llava_mme.jsonl"
OFFICIAL = "MME/MME_Benchmark_release_version"
END = "Please answer yes or no."
BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def parse(text: str) -> str:
    """`yes`, `no` or `other`, by the first four characters."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def official(prompt: str) -> str:
    """The question as MME's own files have it, up to spaces."""
    text = prompt.replace(SHORT.strip(), "").strip()
    return text if END in text else f"{text} {END}"


def _label(answer: object, where: str) -> str:
    label = str(answer).lower().strip().replace(".", "")
    if label not in ("yes", "no"):
        raise UserError(f"{where} needs the answer Yes or No, and has {answer!r:.80}.")
    return label.capitalize()


def _truth(folder: Path, stem: str) -> tuple[Path, dict[str, str]]:
    """The file of a picture's two questions, and their answers by question, spaces made one."""
    inner = folder / "questions_answers_YN"
    file = (inner if inner.is_dir() else folder) / f"{stem}.txt"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read MME's answers from {file}: {error}.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        question, _, answer = line.strip().partition("\t")
        found[" ".join(question.split())] = _label(answer, where)
    return file, found


def questions(root: Path) -> list[Question]:
    """All questions with the answers Yes and No.

    Raises:
        UserError: a file is missing or malformed, or a question has no answer.
    """
    if not (root / QUESTIONS).is_file():
        return _from_hub(root)
    found = []
    truths: dict[tuple[str, str], tuple[Path, dict[str, str]]] = {}
    for question in asked(root / QUESTIONS, root / OFFICIAL):
        category, _, name = str(question.id).partition("/")
        key = category, name.split("/")[-1].split(".")[0]
        if not name or ".." in (category, name):
            raise UserError(f"{root / QUESTIONS}: {question.id!r} is no id of MME, such as 'OCR/0001.jpg'.")
        if key not in truths:
            truths[key] = _truth(root / OFFICIAL / category, key[1])
        file, answers = truths[key]
        text = " ".join(official(question.shown).split())
        if text not in answers:
            raise UserError(f"{file} has no question {text!r:.160}, which {root / QUESTIONS} asks.")
        found.append(replace(question, answer=answers[text], group=category))
    return found


def _from_hub(root: Path) -> list[Question]:
    """Its questions end in "Please answer yes or no.", which LLaVA's prompt (as lmms-eval's) has not."""
    found = []
    for number, row in enumerate(hub_rows(root, "MME", "test", QUESTIONS)):
        where = f"{root / 'MME'}, test row {number}"
        text, answer, category = need(row, where, "question", "answer", "category")
        prompt = text.strip().replace(f" {END}", "") + SHORT
        label = _label(answer, where)
        found.append(hub_question(row, where, "question_id", prompt, answer=label, group=str(category)))
    return found


def _category(images: Mapping[str | int, Sequence[bool]]) -> float:
    right = sum(sum(both) for both in images.values())
    return 100 * right / (2 * len(images)) + 100 * sum(all(both) for both in images.values()) / len(images)


def score(root: Path, asked: Sequence[Question], texts: Sequence[str]) -> Score:
    """Each category's score, and the sums.

    Raises:
        UserError: a picture has not two questions.
    """
    hits: dict[str, dict[str | int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    other = 0
    for question, text in zip(asked, texts, strict=True):
        said = parse(text)
        other += said == "other"
        hits[question.group][question.id].append(said == question.answer.lower())
    for images in hits.values():
        for name, each in images.items():
            if len(each) != 2:
                raise UserError(f"MME scores a picture by two questions; {name!r} has {len(each)}.")
    found = {category: _category(images) for category, images in hits.items()}
    parts = {
        "perception": sum(found.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(found.get(name, 0.0) for name in COGNITION),
        **found,
    }
    missing = [name for name in PERCEPTION + COGNITION if name not in found]
    notes = [f"{other:,} answers are neither yes nor no, and wrong."] if other else []
    notes += [f"No question of: {', '.join(missing)}."] if missing else []
    return Score(parts, len(texts), tuple(notes))


def submit(root: Path, asked: Sequence[Question], texts: Sequence[str], folder: Path) -> Path:
    """Writes `mme/` with a file for each category, which MME's calculation.py reads (`--results_dir`).

    Lines hold text file, question, true answer and given answer; tabs and line breaks in an answer become spaces there.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    for question, text in zip(asked, texts, strict=True):
        image = str(question.id).split("/")[-1]
        row = (f"{Path(image).stem}.txt", official(question.shown), question.answer, BREAKS.sub(" ", text))
        lines[question.group].append("\t".join(row) + "\n")
    place = folder / "mme"
    place.mkdir(parents=True, exist_ok=True)
    for category, rows in lines.items():
        (place / f"{category}.txt").write_text("".join(rows), encoding="utf-8")
    return place


MME = Benchmark(
    name="mme",
    title="MME",
    main="perception",
    paper={
        model: {"perception": value}
        for model, value in {
            "llava-1.5-7b": 1510.7,
            "llava-1.5-13b": 1531.3,
            "llava-1.5-hd-13b": 1500.1,
            "llava-1.5-7b-lora": 1476.9,
            "llava-1.5-13b-lora": 1541.7,
            "llava-7b": 809.6,
            "blip-2": 1293.8,
            "instructblip-13b": 1212.8,
            "qwen-vl-chat": 1487.5,
        }.items()
    },
    questions=questions,
    official=2374,
    most=2000,
    max_new_tokens=128,
    score=score,
    submit=submit,
    differences=(
        "lmms-eval: answers of at most 16 tokens; scored as here.",
        "MME's own calculation.py takes a lone 'y' or 'n' for neither yes nor no, and keeps periods.",
        f"{VLMEVALKIT} Sums of perception and cognition (such as xtuner's 1,775 for the 7B weights) are other figures.",
    ),
)
