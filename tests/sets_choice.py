"""Small sets of yes-or-no and multiple-choice benchmarks, in the layout that LLaVA's docs and scripts give the real ones."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

POPE_ROWS = [  # id in the question file, image, object, category, label
    (0, "COCO_val2014_1.jpg", "dog", "adversarial", "yes"),
    (1, "COCO_val2014_1.jpg", "cat", "adversarial", "no"),
    (2, "COCO_val2014_1.jpg", "dog", "popular", "yes"),
    (3, "COCO_val2014_2.jpg", "car", "popular", "no"),
    (4, "COCO_val2014_1.jpg", "dog", "random", "yes"),
    (5, "COCO_val2014_2.jpg", "fork", "random", "no"),
]
MME_ROWS = [  # category, image under the category's folder, question, answer
    ("code_reasoning", "0020.png", "Is a python code shown in the picture?", "Yes"),
    ("code_reasoning", "0020.png", "Is a c++ code shown in the picture?", "No"),
    ("artwork", "images/14777.jpg", "Is this artwork titled venus?", "Yes"),
    ("artwork", "images/14777.jpg", "Is this artwork titled mars?", "No"),
    ("color", "0001.jpg", "Is there a red car?", "Yes"),
    ("color", "0001.jpg", "Is there a blue car?", "No"),
]
SQA_ROWS = {  # by id: question, choices, answer, hint, image
    "4": ("Which is highlighted?", ["Ohio", "Texas", "Iowa"], 1, "", "image.png"),
    "5": ("Is water  wet?", ["no", "yes"], 1, "Water is a liquid.", None),
    "11": ("Which is red?", ["this", "that"], 0, "Look at it.", "image.png"),
}
SEED_TYPES = {"Scene Understanding": 1, "Text Understanding": 9, "Action Recognition": 10}
SEED_ROWS: list[tuple[str, int, str, str, str]] = [  # id in the annotations, type, data type, image, answer
    ("101669", 1, "image", "SEED-Bench-image/1454426_2591111986", "A"),
    ("101670", 9, "image", "SEED-Bench-image/107674_144590648", "D"),
    ("v7", 10, "video", "SEED-Bench-video-image/task10/v7.png", "C"),
]
MMBENCH_COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
    "split",
)  # fmt: skip
MMBENCH_ROWS: list[tuple[Any, ...]] = [  # index, question, hint, A, B, C, D, answer; the rest is made up
    (241, "Which one is it?", "The lines are long.", "1", "2", "3", "4", "B"),
    (252, 'Is it "true"?', None, "yes", "no", None, None, "A"),
    (1000252, 'Is it "true"?', None, "no", "yes", None, None, "B"),
]


def picture(color: str = "red") -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(file, "PNG")
    return file.getvalue()


def save(file: Path, color: str = "red") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(color))


def write_lines(file: Path, rows: Sequence[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(file: Path, rows: Sequence[dict]) -> None:
    """Rows as a hub data set has them, to be copied under a set's folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def make_pope(root: Path) -> Path:
    folder = root / "pope"
    asked = []
    for number, image, thing, category, _ in POPE_ROWS:
        save(folder / "val2014" / image)
        text = f"Is there a {thing} in the image?{SHORT}"
        asked.append({"question_id": number, "image": image, "text": text, "category": category})
    write_lines(folder / "llava_pope_test.jsonl", asked)
    for category in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": image, "text": f"Is there a {thing} in the image?", "label": label}
            for n, (image, thing, label) in enumerate(((r[1], r[2], r[4]) for r in POPE_ROWS if r[3] == category), 1)
        ]
        write_lines(folder / "coco" / f"coco_pope_{category}.json", rows)
    return folder


def make_mme(root: Path) -> Path:
    folder = root / "MME" / "MME_Benchmark_release_version"
    asked = []
    for category, image, question, answer in MME_ROWS:
        save(folder / category / image)
        inner = "questions_answers_YN/" if image.startswith("images/") else ""
        texts = folder / category / f"{inner}{Path(image).stem}.txt"
        texts.parent.mkdir(parents=True, exist_ok=True)
        with texts.open("a") as file:
            file.write(f"{question} Please answer yes or no.\t{answer}\n")
        name = f"{category}/{Path(image).name}"
        row = {"question_id": name, "image": f"{category}/{image}", "text": question + SHORT, "category": category}
        asked.append(row)
    write_lines(folder.parent / "llava_mme.jsonl", asked)
    return folder.parent


def make_scienceqa(root: Path) -> Path:
    folder = root / "scienceqa"
    asked, problems = [], {}
    for name, (question, choices, answer, hint, image) in SQA_ROWS.items():
        options = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCDE", choices, strict=False))
        text = f"Context: {hint or 'N/A'}\nQuestion: {question}\nOptions: {options}".replace("  ", " ")
        row: dict[str, Any] = {"id": name}
        if image:
            save(folder / "images/test" / name / image)
            row["image"] = f"{name}/{image}"
            text += "\n<image>"
        row["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": "The answer is A."}]
        asked.append(row)
        problems[name] = {"question": question, "choices": choices, "answer": answer, "hint": hint, "image": image}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(asked))
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"train": ["1"], "test": list(SQA_ROWS)}))
    return folder


def make_seed(root: Path) -> Path:
    folder = root / "seed_bench"
    asked, annotated = [], []
    for name, kind, data, image, answer in SEED_ROWS:
        save(folder / image)
        text = f"What is in {name}?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}"
        asked.append({"question_id": int(name) if name.isdigit() else name, "image": image, "text": text})
        annotated.append({"question_id": name, "question_type_id": kind, "data_type": data, "answer": answer})
    write_lines(folder / "llava-seed-bench.jsonl", asked)
    (folder / "SEED-Bench.json").write_text(json.dumps({"question_type": SEED_TYPES, "questions": annotated}))
    return folder


def _make_mmbench(file: Path) -> Path:
    import pandas as pd

    image = base64.b64encode(picture()).decode()
    rows = [(*row, "structural", image, "web", "attribute", None, "dev") for row in MMBENCH_ROWS]
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=list(MMBENCH_COLUMNS)).to_csv(file, sep="\t", index=False)
    return file.parent


def make_mmbench(root: Path) -> Path:
    return _make_mmbench(root / "mmbench" / "mmbench_dev_20230712.tsv")


def make_mmbench_cn(root: Path) -> Path:
    return _make_mmbench(root / "mmbench_cn" / "mmbench_dev_cn_20231003.tsv")
