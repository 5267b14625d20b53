"""The 665K mix in its published shape, made here: time to the first batch and memory, by one process and by several.

Rows, sources and folders are as published (`speed/sets.py`), lengths are its assumptions, pictures are a few small JPEGs under many
names. Texts without an image hold emoji and Chinese, as ShareGPT's do: a file read whole takes 4 bytes a character then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from . import machine
from .speed.sets import MIX, Part

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "GQA": "gqa/images", "OCR-VQA": "ocr_vqa/images", "TextCaps": "textvqa/train_images", "VG": "vg/VG_100K",
}  # fmt: skip  # of the sources that are not COCO's
COCO = "coco/train2017"
PICTURES = 118_287  # of COCO's, which its samples share; of the other sources each sample has its own
LINKS = 30_000  # names of one file; ext4 allows 65,000
FIRST_BATCH = """
import json, sys, time
from qllava.data.collate import collate
from qllava.data.dataset import select, training_set
from qllava.model.inputs import processing_for
from qllava.recipe import load_recipe
from qllava.train.sampler import SeededSampler

def memory():
    lines = open("/proc/self/status").read().splitlines()
    return {name: int(line.split()[1]) >> 10 for line in lines for name in ("VmHWM", "RssAnon") if line.startswith(name)}

recipe = load_recipe(sys.argv[1], sys.argv[2:])
processing = processing_for(recipe)
imported, before = time.perf_counter(), memory()["VmHWM"]
rows = select(recipe, processing).rows
selected = time.perf_counter()
order = iter(SeededSampler(rows["words"][:], 16, 1, grouped=True))
data = training_set(rows, processing, recipe.max_length)
batch = collate([data[next(order)] for _ in range(16)], processing)
after = memory()
print(json.dumps({"rows": len(rows), "select_seconds": round(selected - imported, 1),
    "first_batch_seconds": round(time.perf_counter() - imported, 1), "imported_mib": before,
    "peak_mib": after["VmHWM"], "own_mib": after["RssAnon"]}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", type=float, default=1.0, help="of the mix's rows; the published counts need all")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of a node")
    parser.add_argument("--package", type=Path, default=ROOT, help="checkout whose qllava is measured")
    parser.add_argument(
        "--no-verify", action="store_true", help="leave `qllava data verify` out, which older ones lack"
    )
    parser.add_argument("--folder", type=Path, help="where the mix is made; by default a temporary one")


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The benchmark's document.

    Raises:
        RuntimeError: a process failed.
    """
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks", *words]), "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(args.package), "machine": machine.machine(), "versions": machine.versions(),
        "load_before": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        path = make(folder, args.share)
        result |= {"file_mib": path.stat().st_size >> 20, "images": sum(1 for _ in (folder / "images").rglob("*.jpg"))}
        common = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(args.package.resolve()), "TMPDIR": temporary}
        for count in args.processes:
            environment = common | {"HF_DATASETS_CACHE": str(folder / f"cache{count}")}
            for name in ("first", "again"):
                result[f"{count}_process{'es' * (count > 1)}_{name}"] = run(path, count, environment)
        if not args.no_verify:
            environment = common | {"HF_DATASETS_CACHE": str(folder / f"cache{args.processes[0]}")}
            for name, more in (("verify", ()), ("verify_decode", ("--decode",))):
                result[name] = verified(
                    path, environment, [*(("--mix", "llava-665k") if args.share == 1 else ()), *more]
                )
    return result


def make(folder: Path, share: float) -> Path:
    """The mix's JSON, its pictures in `images/` beside it."""
    rng, root = random.Random(1), folder / "images"
    samples: list[tuple[Part, int]] = [(p, i) for p in MIX for i in range(max(1, round(p.samples * share)))]
    rng.shuffle(samples)
    linked: set[str] = set()
    path = folder / "llava_v1_5_mix665k.json"
    with path.open("w", encoding="utf-8") as file:
        for number, (part, i) in enumerate(samples):
            row: dict[str, Any] = {"id": f"{part.name} {i}"}
            if part.image:
                place = FOLDERS.get(part.name, COCO) + ("_2" if part.name == "VG" and i % 2 else "")
                row["image"] = f"{place}/{i if part.name in FOLDERS else number % round(PICTURES * share + 1):012d}.jpg"
                if row["image"] not in linked:
                    link(root / row["image"], root / f".{len(linked) // LINKS}.picture")
                    linked.add(row["image"])
            row["conversations"] = list(talk(rng, part))
            file.write(("[" if not number else ", ") + json.dumps(row, ensure_ascii=False))
        file.write("]")
    return path


def talk(rng: random.Random, part: Part) -> Iterator[dict[str, str]]:
    """Turns of one sample."""
    words = WORDS if part.image else [*WORDS, *FOREIGN]
    for turn in range(rng.randint(*part.turns)):
        lead = "<image>\n" if part.image and not turn else ""
        for role, length in (("human", part.question), ("gpt", part.answer)):
            text = " ".join(rng.choices(words, k=rng.randint(*length)))
            yield {"from": role, "value": f"{lead if role == 'human' else ''}{text}"}


WORDS = [
    "the",
    "a",
    "of",
    "is",
    "on",
    "in",
    "to",
    "and",
    "what",
    "how",
    "many",
    "color",
    "person",
    "dog",
    "table",
    "street",
    "left",
    "right",
    "behind",
    "holding",
    "wearing",
    "there",
    "image",
    "people",
    "standing",
    "front",
    "building",
    "white",
    "black",
    "large",
    "small",
    "near",
    "sitting",
    "water",
    "train",
    "bus",
    "sign",
    "says",
    "title",
    "book",
    "author",
]
FOREIGN = ("\U0001f600", "图片", "中文", "naïve")


def link(file: Path, picture: Path) -> None:
    """A name more for the picture, which is made where it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not picture.exists():
        Image.effect_noise((320, 240), 40).convert("RGB").save(picture, "JPEG")
    file.hardlink_to(picture)


def run(path: Path, count: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Each of `count` processes of one node up to its first batch."""
    recipe = ["demo/instruct", f"data=[{{path: {path}, image_root: images}}]", "projector=null"]
    port = str(random.randrange(10_000, 60_000))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_BATCH, *recipe], stdout=subprocess.PIPE, text=True,
            cwd=environment["PYTHONPATH"], env=environment | {"LOCAL_WORLD_SIZE": str(count), "LOCAL_RANK": str(i), "RANK": str(i), "MASTER_PORT": port},
        )
        for i in range(count)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("A process failed; what it said stands above.")
    return [json.loads(text) for text in said]


def verified(path: Path, environment: dict[str, str], more: list[str]) -> dict[str, Any]:
    """`qllava data verify` with the memory of its largest process."""
    command = [
        sys.executable,
        "-m",
        "qllava",
        "data",
        "verify",
        path,
        "--image-root",
        path.parent / "images",
        "--json",
        *more,
    ]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out, cwd=environment["PYTHONPATH"], env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        found = json.loads(out.read())
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"data verify found {found['troubles']}.")
    return {k: found[k] for k in ("rows", "images", "ok", "seconds")} | {"peak_mib": usage.ru_maxrss >> 10}
