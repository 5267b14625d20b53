"""How fast the data path reads and checks, and whether its memory stays flat.

    python -m benchmarks.data_path [--rows 100000] [--large 600000]

Makes, in a temporary folder, rows about small pictures (half of them text alone) and runs `qllava check` on a tenth of
them and on all, each in its own process; then reads a LLaVA JSON of `--large` rows, twice, up to the first batch. Prints one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from qllava.demo import world

PICTURES = 2000


def make(folder: Path, rows: int) -> Path:
    """A LLaVA JSON of `rows` samples; every second one is about one of `PICTURES` pictures of 64 by 64."""
    rng, images = random.Random(1), folder / "images"
    if not images.is_dir():
        images.mkdir(parents=True)
        for i in range(PICTURES):
            world.draw(world.sample(rng)).resize((224, 224), Image.Resampling.BICUBIC).save(images / f"{i}.jpg")
    path = folder / f"{rows}.json"
    with path.open("w") as file:
        for i in range(rows):
            scene, talk = world.sample(rng), []
            for turn in range(4):
                question = world.ask(rng, scene)
                lead = "<image>\n" if turn == 0 and i % 2 == 0 else ""
                talk += [
                    {"from": "human", "value": f"{lead}{question.text}\n{world.SHORT}"},
                    {"from": "gpt", "value": question.long},
                ]
            row = {"id": f"r{i}", "conversations": talk} | ({"image": f"{i // 2 % PICTURES}.jpg"} if i % 2 == 0 else {})
            file.write(("[" if i == 0 else ",\n") + json.dumps(row))
        file.write("]")
    return path


def recipe(path: Path) -> list[str]:
    """Arguments of a verb: the demo's recipe on that file."""
    return ["demo/instruct", f"data=[{{path: {path}, image_root: images}}]", "projector=null"]


FIRST_BATCH = """
import json, resource, sys, time
started = time.perf_counter()
from qllava.data.collate import collate
from qllava.data.dataset import select, training_set
from qllava.model.inputs import processing_for
from qllava.recipe import load_recipe
from qllava.train.sampler import SeededSampler
recipe = load_recipe(sys.argv[1], sys.argv[2:])
processing = processing_for(recipe)
imported = time.perf_counter()
rows = select(recipe, processing).rows
order = iter(SeededSampler(rows["words"][:], 16, 1, grouped=True))
data = training_set(rows, processing, recipe.max_length)
batch = collate([data[next(order)] for _ in range(16)], processing)
print(json.dumps({"rows": len(rows), "seconds": round(time.perf_counter() - imported, 1),
    "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))
"""


def checked(path: Path, environment: dict[str, str]) -> dict:
    """`qllava check --json` in its own process, with the peak memory of it and of its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        [sys.executable, "-m", "qllava", "check", *recipe(path), "--json"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    found = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "rows": found["samples"], "images": found["images"], "bad": len(found["bad"]), "seconds": found["seconds"],
        "rows_per_second": found["rows_per_second"], "peak_memory_mib": max(peak, before) >> 10,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=600_000)
    args = parser.parse_args()
    result: dict = {
        "command": " ".join(["python -m benchmarks.data_path", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        result["check"] = [checked(make(folder, n), environment) for n in (args.rows // 10, args.rows)]
        large = make(folder, args.large)
        result["file_mib"] = large.stat().st_size >> 20
        for name in ("first_read", "second_read"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_BATCH, *recipe(large)],
                capture_output=True, text=True, check=True, env=environment,
            )  # fmt: skip
            result[name] = json.loads(done.stdout)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
