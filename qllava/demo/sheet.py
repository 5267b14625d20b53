"""A picture of test images with the question and the answers before and after. In: cells. Out: a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.image import open_image

CELLS, COLUMNS = 24, 6
PICTURE, WIDTH, HEIGHT, MARGIN = 128, 250, 236, 12  # pixels


@dataclass(frozen=True)
class Cell:
    image: Path
    question: str
    expected: str
    before: str
    after: str


def write(cells: Sequence[Cell], out: Path) -> Path:
    """Draws the cells, six in a row, and writes `out`."""
    rows = -(-len(cells) // COLUMNS) or 1
    page = Image.new("RGB", (COLUMNS * WIDTH + MARGIN, rows * HEIGHT + MARGIN), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for i, cell in enumerate(cells):
        x, y = MARGIN + (i % COLUMNS) * WIDTH, MARGIN + (i // COLUMNS) * HEIGHT
        picture = open_image(cell.image).resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
        page.paste(picture, (x, y))
        pen.rectangle((x, y, x + PICTURE, y + PICTURE), outline="#999999")
        lines = [(line, "#222222") for line in _wrap(cell.question, pen, font)]
        for name, answer in (("before", cell.before), ("after", cell.after)):
            right = answer.strip().lower() == cell.expected
            shown = _wrap(f"{name}: {answer or '(nothing)'}", pen, font)[0]
            lines.append((shown, "#1a7f37" if right else "#b42318"))
        for n, (line, color) in enumerate(lines):
            pen.text((x, y + PICTURE + 6 + 19 * n), line, fill=color, font=font)
    page.save(out)
    return out


def _wrap(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> list[str]:
    """At most two lines that fit a cell."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and pen.textlength(longer, font=font) > WIDTH - 2 * MARGIN:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line][:2]
