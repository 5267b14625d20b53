"""The raw sets of LLaVA-1.5's data in their published layouts and sizes, made here: random words and boxes, the real numbers of records.

In: a folder and a share of the size. Numbers of images, questions and choices are those of the sets' own papers and sites. Of RefCOCO's
expressions the number is real; how many an image has is chosen so that stretches of nine are as many as the published rows,
since nobody has published which images they are. ShareGPT holds more conversations than are taken, HTML, and such as are left out.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .data_scale import FOREIGN, WORDS

VQAV2, GQA, OKVQA, AOKVQA = (443_757, 82_783), (943_000, 72_140), (9_009, 8_998), (17_056, 16_540)  # questions, images
COVERS, TRAINED, ASKED = 207_572, 166_022, 1_002_146  # OCR-VQA: covers, those of the training split, questions
TEXTCAPS = 109_765, 21_953  # captions, images
REFCOCO = {"refcoco": ("unc", 120_624), "refcoco+": ("unc", 120_191), "refcocog": ("umd", 80_512)}  # expressions
SEGMENTS, REFERRED = 48_447, 24_000  # published rows; images with an expression, an assumption
VG = 5_408_689, 108_077  # regions, images
INSTRUCT, SHAREGPT, UNSOUND, CAPTIONS = 157_712, 60_000, 3_000, 558_128
OTHERS = 60_000  # annotations of instances.json that nothing refers to


def make(folder: Path, share: float = 1.0) -> None:
    """Every file that the shipped mixes name."""

    def size(number: int) -> int:
        return max(2, round(number * share))

    chance = random.Random(1)
    phrases = [" ".join(chance.choices(WORDS, k=chance.randint(2, 7))) for _ in range(5_000)]
    for make_set in (
        _vqa_like,
        _gqa,
        _aokvqa,
        _ocrvqa,
        _textcaps,
        _refcoco,
        _visual_genome,
        _instruct,
        _sharegpt,
        _captions,
    ):
        make_set(folder, size, random.Random(make_set.__name__), phrases)


Size = Callable[[int], int]


def _write(path: Path, head: str, rows: Iterable[str], tail: str) -> None:
    """Rows between head and tail, without line breaks, as most of these files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        for number, row in enumerate(rows):
            file.write(f", {row}" if number else row)
        file.write(tail)


def _spread(count: int, images: int) -> Iterator[int]:
    """Numbers of images, so that each is asked about, and all equally often as far as that goes."""
    return (i % images + 1 for i in range(count))


def _vqa_like(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    for name, prefix, (count, images) in (("vqav2", "v2_", VQAV2), ("okvqa", "", OKVQA)):
        head = '{"info": {"description": "made", "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "%s": ['
        asked = (
            f'{{"image_id": {image}, "question": "{chance.choice(phrases)}?", "question_id": {i}}}'
            for i, image in enumerate(_spread(size(count), size(images)))
        )
        _write(folder / name / f"{prefix}OpenEnded_mscoco_train2014_questions.json", head % "questions", asked, "]}")
        given = (_answers(i, image, chance, phrases) for i, image in enumerate(_spread(size(count), size(images))))
        _write(folder / name / f"{prefix}mscoco_train2014_annotations.json", head % "annotations", given, "]}")


def _answers(number: int, image: int, chance: random.Random, phrases: list[str]) -> str:
    answer = chance.choice(WORDS)
    people = ", ".join(
        f'{{"answer": "{answer}", "raw_answer": "{answer}", "answer_confidence": "yes", "answer_id": {k + 1}}}'
        for k in range(10)
    )
    return (
        f'{{"question_type": "what is", "multiple_choice_answer": "{answer}", "answers": [{people}], "image_id": {image}, '
        f'"answer_type": "other", "question_id": {number}}}'
    )


def _gqa(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    count, images = size(GQA[0]), size(GQA[1])
    steps = json.dumps(
        [
            {"operation": o, "dependencies": [i], "argument": "sky (2486325)"}
            for i, o in enumerate(("select", "relate", "query"))
        ]
    )
    rows = (
        f'"{i:08d}": {{"semantic": {steps}, "entailed": ["{i:08d}"], "equivalent": ["{i:08d}"], "question": "{chance.choice(phrases)}?", '
        f'"imageId": "{image}", "isBalanced": true, "groups": {{"global": "color", "local": "06-sky_dark"}}, '
        f'"answer": "{chance.choice(WORDS)}", "semanticStr": "select: sky (2486325) ->relate: _,on,s (2486325) [0] ->query: color [1]", '
        f'"annotations": {{"answer": {{}}, "question": {{"2": "2486325"}}, "fullAnswer": {{"1": "2486325"}}}}, '
        f'"types": {{"detailed": "existAttr", "semantic": "attr", "structural": "verify"}}, "fullAnswer": "{chance.choice(phrases)}."}}'
        for i, image in enumerate(_spread(count, images))
    )
    _write(folder / "gqa/train_balanced_questions.json", "{", rows, "}")


def _aokvqa(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    rows = (
        json.dumps({
            "split": "train", "image_id": image, "question_id": f"q{i}", "question": chance.choice(phrases) + "?",
            "choices": chance.sample(WORDS, 4), "correct_choice_idx": chance.randrange(4), "direct_answers": ["a"] * 10,
            "difficult_direct_answer": False, "rationales": chance.sample(phrases, 3),
        })
        for i, image in enumerate(_spread(size(AOKVQA[0]), size(AOKVQA[1])))
    )  # fmt: skip
    _write(folder / "aokvqa/aokvqa_v1p0_train.json", "[", rows, "]")


def _ocrvqa(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    covers, trained, asked = size(COVERS), size(TRAINED), size(ASKED)

    def row(i: int) -> str:
        count = asked // covers + (i < asked % covers)
        said = {"questions": [f"{p}?" for p in chance.sample(phrases, count)], "answers": chance.sample(phrases, count)}
        split = 1 if i < trained else 2 + i % 2
        return f'"{i:010d}": ' + json.dumps(
            {**said, "imageURL": f"images/{i}.jpg", "split": split, "title": "t", "authorName": "a", "genre": "g"}
        )

    _write(folder / "ocrvqa/dataset.json", "{", map(row, range(covers)), "}")


def _textcaps(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    captions, images = size(TEXTCAPS[0]), size(TEXTCAPS[1])
    rows = (
        json.dumps({
            "caption_str": chance.choice(phrases), "caption_id": i, "image_id": f"{image:016x}", "image_name": f"{image:016x}",
            "image_path": f"train/{image:016x}.jpg", "set_name": "train", "image_width": 1024, "image_height": 768,
            "reference_strs": chance.sample(phrases, 5), "caption_tokens": WORDS[:12],
        })
        for i, image in enumerate(_spread(captions, images))
    )  # fmt: skip
    _write(folder / "textcaps/TextCaps_0.1_train.json", '{"dataset_name": "textcaps", "data": [', rows, "]}")
    seen = (
        json.dumps({"image_id": f"{i + 1:016x}", "ocr_tokens": chance.sample(WORDS, 8), "ocr_info": []})
        for i in range(images)
    )
    _write(folder / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json", '{"data": [', seen, "]}")


def expressions(total: int, rows: int, images: int) -> list[int]:
    """How many expressions each image has, so that stretches of at most nine are `rows`."""
    parts = [rows // images + (i < rows % images) for i in range(images)]
    short = rows * 9 - total
    return [9 * p - min(8, short // images + (i < short % images)) for i, p in enumerate(parts)]


def _refcoco(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    images = size(REFERRED)
    counts = expressions(size(sum(total for _, total in REFCOCO.values())), size(SEGMENTS), images)
    objects = [(image, min(3, count - k)) for image, count in enumerate(counts, 1) for k in range(0, count, 3)]
    chance.shuffle(objects)
    for name, (split, total) in REFCOCO.items():
        refs: list[dict[str, Any]] = []
        said = 0
        while objects and (said < size(total) or name == list(REFCOCO)[-1]):
            image, count = objects.pop()
            said += count
            refs.append(_reference(len(refs), image, chance.sample(phrases, count)))
        test = {**refs[0], "split": "testA"}
        path = folder / name / f"refs({split}).p"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps([*refs, test], protocol=2))
        sizes = ", ".join(
            f'{{"license": 1, "file_name": "x.jpg", "height": 480, "width": 640, "id": {n}}}'
            for n in range(1, images + 1)
        )
        outline = [round(chance.uniform(0, 400), 2) for _ in range(60)]
        boxes = (
            f'{{"segmentation": [{outline}], "area": 9.5, "iscrowd": 0, "image_id": 1, "bbox": [{n % 500}.25, {n % 400}, 99.5, 60.0], '
            f'"category_id": 1, "id": {n}}}'
            for n in range(len(refs) + size(OTHERS))
        )
        _write(folder / name / "instances.json", f'{{"info": {{}}, "images": [{sizes}], "annotations": [', boxes, "]}")


def _reference(number: int, image: int, said: list[str]) -> dict[str, Any]:
    sentences = [{"tokens": text.split(), "raw": text, "sent_id": i, "sent": text} for i, text in enumerate(said)]
    return {
        "sent_ids": [0], "file_name": "x.jpg", "ann_id": number, "ref_id": number, "image_id": image, "split": "train",
        "sentences": sentences, "category_id": 1,
    }  # fmt: skip


def _visual_genome(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    regions, images = size(VG[0]), size(VG[1])

    def row(i: int) -> str:
        count = regions // images + (i < regions % images)
        said = ", ".join(
            f'{{"region_id": {i * 60 + k}, "width": {90 + k}, "height": {60 + k}, "image_id": {i + 1}, "phrase": "{p}", "y": {k}, "x": {2 * k}}}'
            for k, p in enumerate(chance.choices(phrases, k=count))
        )
        return f'{{"regions": [{said}], "id": {i + 1}}}'

    _write(folder / "vg/region_descriptions.json", "[", map(row, range(images)), "]")
    data = (
        f'{{"width": 800, "url": "x/{("VG_100K", "VG_100K_2")[i % 2]}/{i + 1}.jpg", "height": 600, "image_id": {i + 1}, "coco_id": null}}'
        for i in range(images)
    )
    _write(folder / "vg/image_data.json", "[", data, "]")


def _talk(name: str, texts: Iterable[str], **more: str) -> str:
    turns = [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]
    return json.dumps({"id": name, **more, "conversations": turns}, ensure_ascii=False)


def _instruct(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    rows = (
        _talk(
            f"{i:012d}",
            [f"{chance.choice(phrases)}?\n<image>", *(" ".join(chance.sample(phrases, 8)) for _ in range(5))],
            image=f"{i % 118287:012d}.jpg",
        )
        for i in range(size(INSTRUCT))
    )
    _write(folder / "llava/llava_instruct_150k.json", "[", rows, "]")


def _sharegpt(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    def texts(i: int, turns: int) -> Iterator[str]:
        for k in range(turns):
            text = " ".join((*chance.choices(phrases, k=30 + 70 * (k % 2)), *FOREIGN))
            yield (
                f"<p>{i} {text}</p><pre><div>python<button>Copy code</button></div><code>{text}</code></pre>"
                if k % 2 and i % 3 == 0
                else f"{i} {text}"
            )

    def row(i: int) -> str:
        turns = 1 if i < size(UNSOUND) else 2 * chance.randint(1, 6)
        return _talk(f"chat_{i}", texts(i, turns))

    _write(folder / "sharegpt/sharegpt.json", "[", map(row, range(size(SHAREGPT))), "]")


def _captions(folder: Path, size: Size, chance: random.Random, phrases: list[str]) -> None:
    rows = (
        f'{{"id": "{i:09d}", "image": "{i % 600:05d}/{i:09d}.jpg", "blip_caption": "{chance.choice(phrases)}", "url": "x"}}'
        for i in range(size(CAPTIONS))
    )
    _write(folder / "llava_pretrain/blip_laion_cc_sbu_558k_meta.json", "[", rows, "]")
