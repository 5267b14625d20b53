"""The image-caption set of the demo's stage `align`: the project's own drawn scenes and Fluent Emoji 3D.

In: a seed. Out: PNG files and a LLaVA JSON. Scenes and their captions are the project's (Apache-2.0); the emoji are
Microsoft's (MIT), their names and tags emojibase's (MIT).
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from . import emoji, world
from .pretrain_vision import on_ground

SCENES = 4000


def write(out: Path, scenes: int = SCENES, seed: int = 7) -> Path:
    """Writes `captions.json` and its pictures (`captions/`) into `out`; returns the JSON."""
    rng = random.Random(seed)
    folder = out / "captions"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []

    def add(name: str, picture: Image.Image, caption: str) -> None:
        picture.save(folder / name)
        talk = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": caption}]
        rows.append({"id": name.removesuffix(".png"), "image": name, "conversations": talk})

    for i in range(scenes):
        scene = world.sample(rng)
        add(f"scene-{i}.png", world.draw(scene), world.tell(rng, scene, size=0.5, place=0.5))
    for entry, picture in emoji.load():
        add(f"emoji-{entry.file.removesuffix('.webp')}.png", on_ground(rng, picture), emoji.caption(rng, entry))
    path = out / "captions.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return path
