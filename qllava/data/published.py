"""LLaVA-1.5's own data as it was published: how many rows of which source, in which folders their images lie, and where
they come from. Counts: the paper's table 7 with its author's corrections (LLaVA issues 657 and 702); they add up to the file's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .mixture import TEXT

COVERS = (
    "ocr_vqa"  # the source whose pictures, covers of books, are downloaded one by one, and not all are there any more
)


@dataclass(frozen=True)
class Part:
    """A source of a mix."""

    rows: int
    folders: tuple[str, ...] = ()  # under the image root
    get: str = ""  # what to get, by its name


@dataclass(frozen=True)
class Mix:
    title: str
    parts: dict[str, Part]  # by the first folder of their images, `text` for rows without

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    def part_of(self, kind: str) -> str:
        """The part that rows of a kind (of `mixture.kind_of`) belong to; the kind itself where it is none's."""
        single = len(self.parts) == 1 and kind not in ("", TEXT)
        return next(iter(self.parts)) if single else kind


MIXES = {
    "llava-665k": Mix(
        "llava_v1_5_mix665k.json",
        {
            "coco": Part(364_100, ("coco/train2017",), "COCO's train2017 images"),
            "vg": Part(86_417, ("vg/VG_100K", "vg/VG_100K_2"), "Visual Genome's images, parts 1 (VG_100K) and 2 (VG_100K_2)"),
            COVERS: Part(80_000, ("ocr_vqa/images",), "OCR-VQA's images, downloaded by its own script, all named .jpg"),
            "gqa": Part(72_140, ("gqa/images",), "GQA's images"),
            "textvqa": Part(21_953, ("textvqa/train_images",), "TextVQA's training and validation images (train_images)"),
            TEXT: Part(40_688),
        },
    ),
    "llava-558k": Mix(
        "blip_laion_cc_sbu_558k.json",
        {"captions": Part(558_128, (), "the images that LLaVA-Pretrain has beside its captions (folders 00000 and on)")},
    ),
}  # fmt: skip
