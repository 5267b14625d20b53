"""How long training waits for its data.

    python -m benchmarks.data_wait [--images 5000] [--steps 100] [--workers 2]

Makes JPEGs of 640 by 480 in a temporary folder, one question about each, and trains `demo/instruct` on them on the embedded
base. Prints one JSON document: the share of the time that steps waited for samples, as the run card says it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy
from PIL import Image

from qllava.api import train

from .machine import commit, machine
from .speed.race import ROOT


def make(folder: Path, count: int) -> Path:
    """A LLaVA JSON about `count` photographs of coloured noise, about 100 kB each."""
    rng, noise = random.Random(1), numpy.random.default_rng(1)
    (folder / "images").mkdir()
    rows = []
    for i in range(count):
        small = noise.integers(0, 256, (60, 80, 3), dtype=numpy.uint8)
        picture = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{i}.jpg", quality=90)
        answer = rng.choice(("red", "green", "blue"))
        talk = [{"from": "human", "value": "<image>\nWhich colour is it mostly?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(i), "image": f"{i}.jpg", "conversations": talk})
    path = folder / "set.json"
    path.write_text(json.dumps(rows))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make(folder, args.images)
        result = train(
            "demo/instruct",
            [
                f"data=[{{path: {data}, image_root: images}}]", "projector=null", f"max_steps={args.steps}",
                f"output_dir={folder / 'run'}", f"dataloader_num_workers={args.workers}", f"save_steps={args.steps}",
            ],
        )  # fmt: skip
        card = json.loads((result.artifact.parent / "run.json").read_text())
    found = {
        "command": " ".join(["python -m benchmarks.data_wait", *sys.argv[1:]]), "commit": commit(ROOT),
        "machine": machine("cpu"), "images": args.images, "workers": args.workers, "steps": card["steps"],
        "samples_per_second": card["samples_per_second"], "data_wait_share": card["data_wait_share"],
    }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
