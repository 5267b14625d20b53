"""What the data path takes for images with and without kept crops.

    python -m benchmarks.image_cache [--images 200] [--passes 3]

Draws JPEGs of 640 by 480, makes a row about each, and reads all rows as training does (`training_set` and `collate`, batches of
4, in this process) in as many passes as asked: without a cache, while crops are made, and with crops that are there. The passes
of all kinds take turns, and the quickest of each counts. CLIP's edge is 336 pixels. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qllava.data.cache import keep_crops
from qllava.data.collate import collate
from qllava.data.dataset import training_set
from qllava.data.processing import Processing
from qllava.data.rows import rows_of
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Source

EDGE, BATCH = 336, 4


def make(folder: Path, count: int) -> Path:
    """A LLaVA JSON about that many JPEGs, of blurred noise, whose files are about as large as photos' (100 kB)."""
    rng, rows = np.random.default_rng(1), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
        rows.append({"id": str(i), "image": f"{i}.jpg", "conversations": talk})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def read(table: datasets.Dataset, processing: Processing) -> float:
    """Seconds to read all rows, in batches of a random order."""
    rows, order = training_set(table, processing, 2048), list(range(len(table)))
    random.Random(1).shuffle(order)
    started = time.perf_counter()
    for start in range(0, len(order), BATCH):
        batch = collate([rows[i] for i in order[start : start + BATCH]], processing)
        assert batch["pixel_values"].shape[1:] == (3, EDGE, EDGE)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    base = load_processing(Parts(vision_tower="embedded", llm="embedded"), "vicuna_v1", "pad")
    clip = CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE})
    processing = dataclasses.replace(base, image_processor=clip)
    found: dict[str, list[float]] = {"none": [], "crops_made": [], "crops": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = rows_of(Source(path=str(make(folder, args.images))))
        size = sum(f.stat().st_size for f in folder.glob("*.jpg")) // args.images
        for turn in range(args.passes):
            datasets.config.HF_DATASETS_CACHE = folder / f"cache-{turn}"
            cached = keep_crops(processing, [table])
            found["none"].append(read(table, processing))
            found["crops_made"].append(read(table, cached))
            found["crops"].append(read(table, cached))
        result = {
            "command": " ".join(["python -m benchmarks.image_cache", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d"),
            "images": args.images, "jpeg_bytes": size, "crop_bytes": cached.cache.store.size,
            "seconds": {how: round(min(times), 3) for how, times in found.items()},
            "ms_per_image": {how: round(1000 * min(times) / args.images, 2) for how, times in found.items()},
        }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
