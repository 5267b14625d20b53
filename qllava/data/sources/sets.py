"""The sets that a mix can name: how each is read, which files it has, and which fields of a source it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from . import ocr, own, regions, talks, vqa
from .inputs import Inputs
from .rules import Talk

ASKED = frozenset({"prompt", "prompt_on", "merge", "per_image", "segment"})  # what sets of questions take

WHOLE = frozenset({"prompt", "prompt_on", "segment", "max_tokens", "tokenizer"})  # what whole conversations take


@dataclass(frozen=True)
class Set:
    read: Callable[[Inputs], Iterator[Talk]]
    files: dict[str, str]  # by what they are: where they lie under --raw, unless a source says otherwise
    get: str  # what to get, by its name
    images: str = ""  # folder of its images under the image root
    takes: frozenset[str] = ASKED
    kind: Literal["pairs", "choices", "captions", "regions", "whole"] = "pairs"  # how a talk becomes conversations
    flat: bool = True  # whether a talk is a single pair, so that those of an image are merged
    optional: frozenset[str] = field(default_factory=frozenset)  # files that a source may leave out with null
    splits: tuple[str, ...] = ()


SETS = {
    "vqav2": Set(
        vqa.vqav2,
        {
            "questions": "vqav2/v2_OpenEnded_mscoco_train2014_questions.json",
            "annotations": "vqav2/v2_mscoco_train2014_annotations.json",
        },
        "VQA v2.0's training questions and annotations (visualqa, balanced real images)",
        "coco/train2017",
    ),
    "gqa": Set(
        vqa.gqa,
        {"questions": "gqa/train_balanced_questions.json"},
        "GQA's questions 1.2, balanced, train",
        "gqa/images",
    ),
    "okvqa": Set(
        vqa.okvqa,
        {
            "questions": "okvqa/OpenEnded_mscoco_train2014_questions.json",
            "annotations": "okvqa/mscoco_train2014_annotations.json",
        },
        "OK-VQA's training questions and annotations",
        "coco/train2017",
    ),
    "aokvqa": Set(
        vqa.aokvqa,
        {"questions": "aokvqa/aokvqa_v1p0_train.json"},
        "A-OKVQA 1.0's training file",
        "coco/train2017",
        ASKED | {"each_choice"},
        "choices",
    ),
    "ocrvqa": Set(
        ocr.ocrvqa,
        {"dataset": "ocrvqa/dataset.json"},
        "OCR-VQA's dataset.json",
        "ocr_vqa/images",
        (ASKED - {"merge"}) | {"split"},
        flat=False,
        splits=tuple(ocr.SPLITS),
    ),
    "textcaps": Set(
        ocr.textcaps,
        {"captions": "textcaps/TextCaps_0.1_train.json", "ocr": "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json"},
        "TextCaps 0.1's training file, and the OCR tokens of TextVQA 0.5.1 (Rosetta, train)",
        "textvqa/train_images",
        frozenset({"prompt", "per_image"}),
        "captions",
        optional=frozenset({"ocr"}),
    ),
    "refcoco": Set(
        regions.refcoco,
        {"refs": "", "instances": ""},
        "refs(unc).p and instances.json of RefCOCO and RefCOCO+, refs(umd).p and instances.json of RefCOCOg (the authors' refer data)",
        "coco/train2017",
        ASKED - {"prompt_on"} | {"split"},
        "regions",
        splits=("train", "val", "test", "testA", "testB"),
    ),
    "visual_genome": Set(
        regions.visual_genome,
        {"regions": "vg/region_descriptions.json", "images": "vg/image_data.json"},
        "Visual Genome's region descriptions (1.2 or 1.4) and image meta data",
        "vg",
        ASKED - {"prompt_on", "merge"},
        "regions",
        flat=False,
    ),
    "llava": Set(
        talks.llava, {"rows": ""}, "a LLaVA JSON, such as llava_instruct_150k.json", "", WHOLE, "whole", flat=False
    ),
    "sharegpt": Set(
        talks.sharegpt,
        {"rows": ""},
        "ShareGPT's conversations as JSON (from: human or gpt, value)",
        "",
        WHOLE,
        "whole",
        flat=False,
    ),
    "captions": Set(
        talks.captions,
        {"meta": "llava_pretrain/blip_laion_cc_sbu_558k_meta.json"},
        "LLaVA-Pretrain's blip_laion_cc_sbu_558k_meta.json",
        "",
        frozenset({"prompt"}),
        "captions",
        flat=False,
    ),
    "csv": Set(own.csv, {"rows": ""}, "a CSV of your own", "", ASKED | {"columns"}),
    "jsonl": Set(own.jsonl, {"rows": ""}, "a JSONL of your own", "", ASKED | {"columns"}),
}
