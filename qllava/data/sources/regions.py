"""Regions with descriptions: RefCOCO, RefCOCO+, RefCOCOg, and Visual Genome.

In: the files as they were published. Out: talks whose pairs hold a description, a box (left, top, width, height) and the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import UserError
from . import plain_pickle, raw
from .inputs import Inputs
from .rules import Talk

Size = tuple[float, float]


def refcoco(inputs: Inputs) -> Iterator[Talk]:
    """`refs(unc).p` (or the same as JSON) with `instances.json`, of each of the three sets; a talk for each referred object.

    Raises:
        UserError: there are not as many of the one as of the other.
    """
    refs, instances = inputs.files["refs"], inputs.files["instances"]
    if len(refs) != len(instances):
        raise UserError(
            f"refcoco has {len(refs)} refs and {len(instances)} instances under files; name them in pairs, a set each."
        )
    for pair in zip(refs, instances, strict=True):
        yield from _refs(inputs, *pair)


def _refs(inputs: Inputs, refs: Path, instances: Path) -> Iterator[Talk]:
    wanted = inputs.split or "train"
    sizes = _sizes(raw.listed(instances, "images"), "id")
    file = raw.listed(instances, "annotations")
    boxes = {file.whole(r, "id"): file.box(r, "bbox") for r in file}
    file = _records(refs)
    for record in inputs.counted(file):
        if file.text(record, "split") != wanted:
            inputs.left[f"objects of other splits than {wanted}"] += 1
            continue
        image, number = file.natural(record, "image_id"), file.whole(record, "ann_id")
        if image not in sizes or number not in boxes:
            raise file.fail(f"image {image} or annotation {number} is not in {instances}")
        said = [(file.text(s, "sent"), boxes[number], *sizes[image]) for s in file.many(record, "sentences")]
        yield Talk(f"{image:012d}", inputs.coco(image), said)


def _records(path: Path) -> raw.Records:
    if path.suffix.lower() == ".json":
        return raw.listed(path)
    value = plain_pickle.load(path)
    if not isinstance(value, list):
        raise UserError(f"{path} holds {type(value).__name__}, not a list of referred objects.")
    return raw.Records(path, value)


def _sizes(file: raw.Records, key: str) -> dict[int, Size]:
    return {file.whole(r, key): _size(file, r) for r in file}


def _size(file: raw.Records, record: Any) -> Size:
    size = file.whole(record, "width"), file.whole(record, "height")
    if min(size) < 1 or max(size) > raw.LARGEST:
        raise file.fail(f"an image of {str(size[0])[:20]} × {str(size[1])[:20]} pixels")
    return size


def visual_genome(inputs: Inputs) -> Iterator[Talk]:
    """`region_descriptions.json` and `image_data.json`, whose addresses say in which of the two folders an image lies."""
    file = inputs.listed("images")
    images: dict[int, tuple[str, Size]] = {}
    for record in file:
        parts = file.text(record, "url").rsplit("/", 2)
        if len(parts) < 3:
            raise file.fail(f"'url' is {parts[-1]!r}, which names no folder and image")
        images[file.whole(record, "image_id")] = f"{parts[1]}/{parts[2]}", _size(file, record)
    file = inputs.listed("regions")
    for record in inputs.counted(file):
        number = file.whole(record, "id")
        if number not in images:
            raise file.fail(f"image {number} is not in {inputs.named('images')}")
        name, size = images[number]
        regions = file.many(record, "regions", dict)
        said = [(*(_quick(r) or _careful(file, r)), *size) for r in regions]
        yield Talk(str(number), inputs.image(name), said)


def _quick(region: dict[str, Any]) -> tuple[str, tuple[float, ...]] | None:
    """The phrase and the box of a region that is whole, as nearly all of the 5.4 million are; None of any other."""
    phrase, box = region.get("phrase"), (region.get("x"), region.get("y"), region.get("width"), region.get("height"))
    whole = type(phrase) is str and set(map(type, box)) <= {int, float} and raw.is_box(*box)
    return (phrase.strip(), box) if whole else None


def _careful(file: raw.Records, region: Any) -> tuple[str, tuple[float, ...]]:
    return file.text(region, "phrase"), file.box(region, ("x", "y", "width", "height"))
