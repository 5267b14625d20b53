"""Fluent Emoji 3D with their names: a real picture-and-caption set small enough to travel with the package.

In: the two npm packages `@lobehub/fluent-emoji-3d` 1.1.0 (pictures, MIT, drawn by Microsoft) and `emojibase-data`
17.0.0 (names, tags, groups, MIT). Out: `assets/emoji.zip`: one WebP of 64 pixels for each of the emoji and
`captions.json`, a list of `{"file", "label", "tags", "group"}`. Rebuild it with

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
    python -m qllava.demo.emoji lobehub-fluent-emoji-3d-1.1.0.tgz emojibase-data-17.0.0.tgz
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .world import EDGE

ARCHIVE = Path(__file__).parent / "assets" / "emoji.zip"
# Left out: people (skin tones and genders would need more than a name), components and flags.
LEFT_OUT = {"people & body", "components", "flags"}


@dataclass(frozen=True)
class Emoji:
    file: str
    label: str
    tags: tuple[str, ...]
    group: str


def build(pictures: Path, names: Path, out: Path = ARCHIVE) -> int:
    """Join the two npm tarballs into `out`; returns the number of emoji."""
    with tarfile.open(names) as tar:
        entries = json.load(tar.extractfile("package/en/data.json"))
        groups = {g["order"]: g["message"] for g in json.load(tar.extractfile("package/en/messages.json"))["groups"]}
    rows, done = [], set()
    with tarfile.open(pictures) as tar, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        files = {m.name: m for m in tar.getmembers()}
        for entry in sorted(entries, key=lambda e: e["hexcode"]):
            group = groups.get(entry.get("group"), "components")
            code = entry["hexcode"].lower()
            found = [
                c for c in (code, code.replace("-fe0f", ""), code + "-fe0f") if f"package/assets/{c}.webp" in files
            ]
            if group in LEFT_OUT or not found or entry["label"] in done:
                continue
            done.add(entry["label"])
            image = Image.open(tar.extractfile(files[f"package/assets/{found[0]}.webp"])).convert("RGBA")
            stream = io.BytesIO()
            image.resize((EDGE, EDGE), Image.Resampling.LANCZOS).save(stream, "WEBP", quality=80, method=6)
            info = zipfile.ZipInfo(f"{found[0]}.webp", date_time=(2024, 1, 1, 0, 0, 0))
            archive.writestr(info, stream.getvalue())
            rows.append({"file": info.filename, "label": entry["label"], "tags": entry["tags"], "group": group})
        info = zipfile.ZipInfo("captions.json", date_time=(2024, 1, 1, 0, 0, 0))
        archive.writestr(info, json.dumps(rows, indent=0, ensure_ascii=False))
    return len(rows)


def load() -> list[tuple[Emoji, Image.Image]]:
    """Every emoji with its RGBA picture of 64 by 64 pixels."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        rows = json.loads(archive.read("captions.json"))
        return [
            (
                Emoji(r["file"], r["label"], tuple(r["tags"]), r["group"]),
                Image.open(archive.open(r["file"])).convert("RGBA"),
            )
            for r in rows
        ]


def caption(rng: random.Random, emoji: Emoji) -> str:
    """A caption from the emoji's name and, half of the time, up to three of its tags."""
    tags = [t for t in emoji.tags if t not in emoji.label]
    told = rng.choice(("{}", "a picture of {}", "here we see {}")).format(emoji.label)
    if tags and rng.random() < 0.5:
        told += ", with " + ", ".join(rng.sample(tags, min(len(tags), rng.randint(1, 3))))
    return told.capitalize() + "."


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), Path(sys.argv[2])), "emoji in", ARCHIVE)
