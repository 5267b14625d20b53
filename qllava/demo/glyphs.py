"""A task that needs detail: a small glyph on a large picture, and its shape.

In: a seed. Out: PNG files and two LLaVA JSONs. A picture is 4 to 5 times as long as the embedded tower's edge of 64 pixels, so
that padded and resized to one view the glyph is 3 to 4 pixels long; cut into tiles it keeps its 14 to 17. Its shape is lost
with the pixels, its colour hardly; to train, both are asked, to test, the shape alone.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .world import SHORT, Thing, outline, shade

SIZES = ((256, 64), (64, 256), (320, 64), (64, 320))
SHAPES = ("circle", "triangle", "rectangle", "cross")
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
HALF = (7.0, 8.5)  # half a glyph's longer side, in pixels
TRAIN, TEST = 1000, 300  # pictures
SHAPE = "Which shape is shown?"
SCALE = 3  # drawn so much larger, then reduced


def glyph(rng: random.Random, size: tuple[int, int]) -> Thing:
    """One, whole inside a picture of this size."""
    half = rng.uniform(*HALF)
    x, y = (rng.uniform(half + 1, edge - half - 1) for edge in size)
    return Thing(rng.choice(SHAPES), rng.choice(COLORS), "small", x, y, half, 0.0)


def draw(rng: random.Random, size: tuple[int, int], thing: Thing) -> Image.Image:
    """The picture, on a light ground."""
    ground = tuple(rng.randint(225, 255) for _ in range(3))
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), ground)
    points = [(SCALE * (thing.x + thing.half * x), SCALE * (thing.y + thing.half * y)) for x, y in outline(thing, rng)]
    ImageDraw.Draw(image).polygon(points, fill=shade(rng, thing.color))
    return image.resize(size, Image.Resampling.BOX)


def split(folder: Path, pictures: int, seed: str) -> list[dict[str, Any]]:
    """Draws the pictures into `folder`; one LLaVA sample a picture: its shape and its colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(seed), []
    for number in range(pictures):
        size = SIZES[number % len(SIZES)]
        thing = glyph(rng, size)
        draw(rng, size, thing).save(folder / f"{number}.png")
        turns = [
            {"from": "human", "value": f"<image>\n{SHAPE}\n{SHORT}"},
            {"from": "gpt", "value": thing.shape},
            {"from": "human", "value": "Name the color of the shape."},
            {"from": "gpt", "value": thing.color},
        ]
        rows.append({"id": f"glyphs-{number}", "image": f"{number}.png", "conversations": turns})
    return rows


def singles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first question of each sample alone, as it is scored."""
    return [row | {"conversations": row["conversations"][:2]} for row in rows]


def write(out: Path, train: int = TRAIN, test: int = TEST, seed: int = 11) -> tuple[Path, Path]:
    """Writes `glyphs_train.json` and `glyphs_test.json` into `out`, their pictures into folders of the same names."""
    out.mkdir(parents=True, exist_ok=True)
    files = out / "glyphs_train.json", out / "glyphs_test.json"
    for file, count, name in zip(files, (train, test), ("train", "test"), strict=True):
        rows = split(out / file.stem, count, f"{seed}:{name}")
        file.write_text(
            json.dumps(rows if name == "train" else singles(rows), indent=1) + "\n",
            encoding="utf-8",
        )
    return files


def blind_score(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Share of test questions that the most frequent training answer gets right."""
    most = Counter(row["conversations"][1]["value"] for row in train).most_common(1)[0][0]
    return sum(row["conversations"][1]["value"] == most for row in test) / len(test)
