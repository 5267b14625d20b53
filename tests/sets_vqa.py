"""Small sets in the layouts of LLaVA's evaluation data and of the hub: VQAv2, GQA, VizWiz, TextVQA."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
COLORS = ("red", "green", "blue")
VQAV2_IDS = (262144000, 262144001, 262144002)
GQA_IDS = ("201307251", "201640614", "202225914", "201971873")
TEXTVQA_ANSWERS = (  # three pictures, the first asked about twice
    ["nous les gosses"] * 5 + ["dakota"] * 4 + ["clos culombu"],
    ["dakota digital"] * 2 + ["dakota"] * 7 + ["Dakota."],
    ["10,000"] * 3 + ["10000"] * 3 + ["ten"] * 4,
    ["stop"] * 10,
)


def picture(number: int) -> bytes:
    """A JPEG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (32 + number, 24), COLORS[number % 3]).save(out, "JPEG")
    return out.getvalue()


def put_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))


def put_lines(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def put_parquet(file: Path, rows: list[dict]) -> None:
    """Rows with an image each, as the hub's data sets have them, but for those that bring an `image` of their own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"image": {"bytes": picture(number), "path": f"{number}.jpg"}} for number in range(len(rows))]
    pq.write_table(pa.Table.from_pylist([image | row for image, row in zip(images, rows, strict=True)]), file)


def make_vqav2(root: Path) -> None:
    """Three questions of test-dev among five of test2015."""
    names = [f"COCO_test2015_{number:012}.jpg" for number in (262144, 262145, 262146)]
    put_pictures(root / "vqav2/test2015", names)
    texts = ("Is the ball flying towards the batter?", "What sport is this?", "How many players?")
    rows = [
        {"question_id": name, "image": image, "text": text + SHORT, "category": "default"}
        for name, image, text in zip(VQAV2_IDS, names, texts, strict=True)
    ]
    put_lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    others = [rows[0] | {"question_id": name} for name in (1, 2)]
    put_lines(root / "vqav2/llava_vqav2_mscoco_test2015.jsonl", [others[0], rows[2], rows[0], rows[1], others[1]])


def gqa_questions() -> dict[str, dict]:
    """The official file's questions."""
    table = (
        ("Is it overcast?", "n161313", "no", "verify", "global"),
        ("Who is wearing the dress?", "n235859", "woman", "query", "rel"),
        ("What is the color of the car?", "n235859", "light blue", "query", "attr"),
        ("Is it red or green?", "n161313", "red", "choose", "attr"),
    )
    return {
        name: {
            "question": text, "imageId": image, "answer": answer, "isBalanced": True,
            "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
        }
        for name, (text, image, answer, structural, semantic) in zip(GQA_IDS, table, strict=True)
    }  # fmt: skip


def make_gqa(root: Path) -> None:
    """Four questions about two pictures."""
    put_pictures(root / "gqa/data/images", ["n161313.jpg", "n235859.jpg"])
    official = gqa_questions()
    (root / "gqa/data/testdev_balanced_questions.json").write_text(json.dumps(official))
    rows = [
        {"question_id": name, "image": row["imageId"] + ".jpg", "text": row["question"] + SHORT, "category": "default"}
        for name, row in official.items()
    ]
    put_lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", rows)


def make_vizwiz(root: Path) -> None:
    """Three questions."""
    names = [f"VizWiz_test_{number:08}.jpg" for number in range(3)]
    put_pictures(root / "vizwiz/test", names)
    texts = ("What is this?", "Can you tell me what color this is, please? Thank you.", "is this 1% or 2%")
    rows = [
        {"question_id": number, "image": name, "text": text + UNSURE, "category": "default"}
        for number, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    put_lines(root / "vizwiz/llava_test.jsonl", rows)


def textvqa_annotations() -> list[dict]:
    table = (
        ("003a8ae2ef43b901", "what is the brand of this camera?"),
        ("003a8ae2ef43b901", "which word is on the LEFT?"),
        ("b9dc400eb20bad64", "what number is shown?"),
        ("2b538a43dd933fc1", "what does the sign say?"),
    )
    return [
        {"question_id": 34602 + n, "image_id": image, "question": text, "answers": answers, "set_name": "val"}
        for n, ((image, text), answers) in enumerate(zip(table, TEXTVQA_ANSWERS, strict=True))
    ]


def make_textvqa(root: Path) -> None:
    """Four questions about three pictures, with OCR tokens and without; one has no tokens."""
    rows = textvqa_annotations()
    put_pictures(root / "textvqa/train_images", sorted({row["image_id"] + ".jpg" for row in rows}))
    (root / "textvqa/TextVQA_0.5.1_val.json").write_text(json.dumps({"dataset_type": "val", "data": rows}))
    tokens = ("DAKOTA, DIGITAL", "DAKOTA, DIGITAL", "10,000", "")
    lines = [
        {
            "question_id": row["image_id"], "image": row["image_id"] + ".jpg", "category": "default",
            "text": f"{row['question'].capitalize()}\nReference OCR token: {found}{SHORT}",
        }
        for row, found in zip(rows, tokens, strict=True)
    ]  # fmt: skip
    put_lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", lines)
