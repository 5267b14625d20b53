"""Small raw data sets in their published layouts, and a mix of one source built from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from qllava.data.sources.build import build

SHORT = "Answer the question using a single word or phrase."


def put(raw: Path, name: str, content: Any) -> Path:
    """The file under `raw`: a text as it is, anything else as JSON."""
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def mix_of(folder: Path, **sources: Any) -> Path:
    """A mix's YAML."""
    path = folder / "mix.yaml"
    path.write_text(yaml.safe_dump({"title": "mine", "sources": sources}, sort_keys=False))
    return path


def built(folder: Path, seed: int = 0, **fields: Any) -> tuple[list[dict], dict]:
    """The rows that one source gives from `folder/raw`, and what the report says of it."""
    out = folder / f"out-{len(list(folder.iterdir()))}.json"
    report = build(str(mix_of(folder, one=fields)), folder / "raw", out, seed)
    return json.loads(out.read_text()), report["sources"][0]


def row(number: str, image: str | None, *texts: str) -> dict[str, Any]:
    """A LLaVA row with questions and answers in turn."""
    talk = [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]
    return {"id": number} | ({"image": image} if image else {}) | {"conversations": talk}


def vqa_question(image: int, number: int, question: str) -> dict[str, Any]:
    return {"image_id": image, "question": question, "question_id": number}


def vqa_file(questions: list[dict]) -> dict[str, Any]:
    return {
        "info": {"description": "a test", "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco",
        "license": {"name": "CC"}, "questions": questions, "data_subtype": "train2014",
    }  # fmt: skip


def vqa_answer(image: int, number: int, answer: str, *given: str) -> dict[str, Any]:
    people = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(given or (answer,))]
    return {
        "question_type": "what is", "multiple_choice_answer": answer, "answers": people, "image_id": image,
        "answer_type": "other", "question_id": number,
    }  # fmt: skip


def vqav2(raw: Path) -> None:
    questions = [
        vqa_question(458752, 458752000, "What is this photo taken looking through?"),
        vqa_question(262146, 262146000, "What color is the snow?"),
        vqa_question(458752, 458752001, "What position is this man playing?"),
    ]
    answers = [
        vqa_answer(458752, 458752000, "net", "net", "net", "netting"),
        vqa_answer(458752, 458752001, "pitcher"),
        vqa_answer(262146, 262146000, "white"),
    ]
    put(raw, "vqav2/v2_OpenEnded_mscoco_train2014_questions.json", vqa_file(questions))
    put(raw, "vqav2/v2_mscoco_train2014_annotations.json", {"info": {}, "annotations": answers})


def okvqa(raw: Path) -> None:
    questions = [vqa_question(51606, 516065, "What is the hairstyle of the blond called?")]
    people = [{"answer_id": i, "raw_answer": a, "answer_confidence": "yes", "answer": a[:6]}
              for i, a in enumerate(["braid", "pony tail", "pony tail", "braid", "bun"])]  # fmt: skip
    answer = {
        "image_id": 51606,
        "answer_type": "other",
        "question_type": "four",
        "question_id": 516065,
        "answers": people,
        "confidence": 3,
    }
    put(raw, "okvqa/OpenEnded_mscoco_train2014_questions.json", vqa_file(questions))
    put(raw, "okvqa/mscoco_train2014_annotations.json", {"info": {}, "annotations": [answer]})


def aokvqa_record(image: int, number: str, question: str, choices: list[str], right: int) -> dict[str, Any]:
    return {
        "split": "train", "image_id": image, "question_id": number, "question": question, "choices": choices,
        "correct_choice_idx": right, "direct_answers": [choices[right]] * 10, "difficult_direct_answer": False,
        "rationales": ["one", "two", "three"],
    }  # fmt: skip


def aokvqa(raw: Path) -> None:
    first = aokvqa_record(
        299207, "22MexNkBPpdZGX6sxbxVBH", "What is the man awaiting?", ["skateboarder", "train", "delivery", "cab"], 3
    )
    second = aokvqa_record(299207, "2BnCvNkBPpdZGX6sxbxVBH", "Where does he stand?", ["road", "hill"], 0)
    put(raw, "aokvqa/aokvqa_v1p0_train.json", [first, second])


def gqa_question(image: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (1)"}], "entailed": [], "equivalent": ["0"],
        "question": question, "imageId": image, "isBalanced": True, "groups": {"global": None, "local": "06-sky_dark"},
        "answer": answer, "semanticStr": "select: sky (1)", "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "existAttr", "semantic": "attr", "structural": "verify"}, "fullAnswer": f"It is {answer}.",
    }  # fmt: skip


def gqa(raw: Path) -> None:
    put(raw, "gqa/train_balanced_questions.json", {
        "07333408": gqa_question("2375429", "What is on the white wall?", "pipe"),
        "07333405": gqa_question("n161313", "Is that pipe red?", "no"),
        "15736264": gqa_question("2375429", "Is it clean?", "yes"),
    })  # fmt: skip


def ocrvqa_record(split: int, questions: list[str], answers: list[str]) -> dict[str, Any]:
    return {
        "questions": questions, "answers": answers, "imageURL": "cover.jpg", "split": split, "title": "A Book",
        "authorName": "An Author", "genre": "Cookbooks",
    }  # fmt: skip


def ocrvqa(raw: Path, covers: int = 1) -> None:
    asked = ["Who wrote this book?", "What is the title of this book?", "Is this a comedy?"]
    books = {f"07{i:08d}": ocrvqa_record(1, asked, ["An Author", f"Book {i}", "no"]) for i in range(covers)}
    put(raw, "ocrvqa/dataset.json", books | {"1780000000": ocrvqa_record(3, asked, ["x", "y", "z"])})


def textcaps(raw: Path, captions: int = 2) -> None:
    data = [
        {"caption_str": f" Caption {i} of {image}. ", "caption_id": i, "image_id": image, "image_classes": ["Sign"],
         "flickr_original_url": "x", "image_width": 9, "image_height": 9, "set_name": "train", "image_name": image,
         "image_path": f"train/{image}.jpg", "reference_strs": [], "reference_tokens": [], "caption_tokens": []}
        for image in ("011e7e629fb9ae7b", "0054c91397f2fe05") for i in range(captions)
    ]  # fmt: skip
    seen = [{"image_id": "011e7e629fb9ae7b", "ocr_tokens": ["ZERO", "Stop"], "ocr_info": []},
            {"image_id": "0054c91397f2fe05", "ocr_tokens": [], "ocr_info": []}]  # fmt: skip
    put(
        raw,
        "textcaps/TextCaps_0.1_train.json",
        {"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": "0.1", "data": data},
    )
    put(
        raw,
        "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json",
        {"dataset_type": "train", "dataset_name": "textvqa", "data": seen},
    )


def refcoco_ref(image: int, annotation: int, split: str, *said: str) -> dict[str, Any]:
    sentences = [{"tokens": s.split(), "raw": s.title(), "sent_id": i, "sent": s} for i, s in enumerate(said)]
    return {
        "sent_ids": list(range(len(said))), "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg", "ann_id": annotation,
        "ref_id": annotation, "image_id": image, "split": split, "sentences": sentences, "category_id": 1,
    }  # fmt: skip


def instances(*images: tuple[int, int, int], boxes: dict[int, list[float]]) -> dict[str, Any]:
    """`instances.json`: images as number, width and height."""
    return {
        "info": {"year": 2014}, "licenses": [], "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
        "images": [{"license": 1, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": h, "width": w, "id": n} for n, w, h in images],
        "annotations": [{"segmentation": [[1.5, 2.0]], "area": 9.5, "iscrowd": 0, "image_id": 1, "bbox": b, "category_id": 1, "id": k}
                        for k, b in boxes.items()],
    }  # fmt: skip


def refcoco(raw: Path) -> None:
    """Two sets: their objects of image 581857 (640 × 480) are in both, one object of 98304 is in a test split."""
    import pickle

    for name, split, refs in (
        (
            "refcoco",
            "unc",
            [refcoco_ref(581857, 11, "train", "the lady in blue", "lady."), refcoco_ref(98304, 12, "testA", "x")],
        ),
        ("refcocog", "umd", [refcoco_ref(581857, 13, "train", "a man with a hat")]),
    ):
        put(raw, f"{name}/instances.json", instances((581857, 640, 480), (98304, 100, 100),
            boxes={11: [64, 0, 128, 240], 12: [0, 0, 1, 1], 13: [320.5, 120, 400, 400]}))  # fmt: skip
        (raw / name / f"refs({split}).p").write_bytes(pickle.dumps(refs, protocol=2))


REFCOCO = {
    "set": "refcoco",
    "files": {
        "refs": ["refcoco/refs(unc).p", "refcocog/refs(umd).p"],
        "instances": ["refcoco/instances.json", "refcocog/instances.json"],
    },
    "prompt": [
        "Please provide a short description for this region: {region}.",
        "Please provide the bounding box coordinate of the region this sentence describes: {region}.",
    ],
}


def visual_genome(raw: Path, regions: int = 2) -> None:
    def region(image: int, i: int) -> dict[str, Any]:
        return {
            "region_id": image * 100 + i,
            "width": 40,
            "height": 50,
            "image_id": image,
            "phrase": f"phrase {i}",
            "y": 0,
            "x": i,
        }

    put(raw, "vg/region_descriptions.json", [
        {"regions": [region(1, i) for i in range(regions)], "id": 1}, {"regions": [region(2, 8)], "id": 2}, {"regions": [], "id": 3},
    ])  # fmt: skip
    put(raw, "vg/image_data.json", [
        {"width": 100, "url": f"https://x.y/u/{folder}/{n}.jpg", "height": 200, "image_id": n, "coco_id": None, "flickr_id": None}
        for n, folder in ((1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K"))
    ])  # fmt: skip
