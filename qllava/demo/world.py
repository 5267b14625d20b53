"""The little world that the embedded base grew up in: scenes that can be drawn, told in words, and asked about.

In: a `random.Random`. Out: a `Scene`, its picture, its telling, and questions with answers.
Everything here is the project's own (Apache-2.0). Nothing is taken from easy-VQA: its images are never opened,
and none of its 107 question texts can be produced (tests/demo/test_world.py checks both grammars against each other).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

EDGE = 64  # pixels
SHORT = "Answer the question using a single word or phrase."

# Each name stands for a range of shades: (hue range in degrees, saturation range, value range), in HSV.
COLORS = {
    "red": ((-8, 8), (0.75, 1.0), (0.8, 1.0)),
    "orange": ((24, 38), (0.85, 1.0), (0.9, 1.0)),
    "yellow": ((54, 62), (0.75, 1.0), (0.9, 1.0)),
    "green": ((95, 140), (0.6, 1.0), (0.45, 1.0)),
    "teal": ((174, 186), (0.8, 1.0), (0.4, 0.6)),
    "blue": ((215, 245), (0.75, 1.0), (0.7, 1.0)),
    "purple": ((270, 295), (0.6, 1.0), (0.45, 0.8)),
    "pink": ((315, 345), (0.3, 0.6), (0.9, 1.0)),
    "brown": ((0, 26), (0.6, 0.85), (0.38, 0.68)),
    "black": ((0, 360), (0.0, 0.1), (0.0, 0.12)),
    "gray": ((0, 360), (0.0, 0.06), (0.42, 0.62)),
    "white": ((0, 360), (0.0, 0.03), (0.96, 1.0)),
}
SHAPES = ("circle", "triangle", "rectangle", "star", "heart", "cross", "diamond", "ring", "crescent", "arrow")
SIZES = {"small": (5, 8), "medium": (9, 13), "large": (14, 22)}  # half the longer side, in pixels
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
NUMBERS = ("zero", "one", "two", "three")


@dataclass(frozen=True)
class Thing:
    shape: str
    color: str
    size: str
    x: float  # centre, pixels
    y: float
    half: float  # half the longer side, pixels
    turn: float  # degrees

    @property
    def place(self) -> str:
        row, column = ROWS[min(int(self.y * 3 / EDGE), 2)], COLUMNS[min(int(self.x * 3 / EDGE), 2)]
        return "center" if (row, column) == ("middle", "center") else f"{row} {column}"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    seed: int


def shade(rng: random.Random, color: str) -> tuple[int, int, int]:
    """One RGB triple (0-255) out of the range that the colour's name covers."""
    import colorsys

    hue, saturation, value = (rng.uniform(*span) for span in COLORS[color])
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))


def sample(rng: random.Random, most: int = 3, sizes: tuple[str, ...] = tuple(SIZES)) -> Scene:
    """A scene of one to `most` things that do not hide one another and differ in shape and colour."""
    count = rng.choices(range(1, most + 1), weights=(5, 3, 2)[:most])[0]
    things: list[Thing] = []
    shapes, colors = rng.sample(SHAPES, count), rng.sample(list(COLORS), count)
    for shape, color in zip(shapes, colors, strict=True):
        for _ in range(40):
            size = rng.choice(sizes)
            half = rng.uniform(*SIZES[size])
            x, y = rng.uniform(half, EDGE - half), rng.uniform(half, EDGE - half)
            if all(math.hypot(x - t.x, y - t.y) > 1.1 * (half + t.half) for t in things):
                turn = rng.choice((0, 0, rng.uniform(0, 360)))
                things.append(Thing(shape, color, size, x, y, half, turn))
                break
    return Scene(tuple(things), rng.getrandbits(32))


# -- drawn ------------------------------------------------------------------------------------------------------------
def outline(thing: Thing, rng: random.Random) -> list[tuple[float, float]]:
    """The shape as a polygon around (0, 0) within ±1."""

    def round_(points: int, radius: float = 1.0, start: float = 0.0, span: float = 2 * math.pi) -> list:
        return [
            (radius * math.cos(start + span * i / points), radius * math.sin(start + span * i / points))
            for i in range(points + (span < 6))
        ]

    flat = rng.uniform(0.4, 1.0)
    match thing.shape:
        case "circle" | "ring":
            return round_(40)
        case "triangle":
            return [(0, -0.9), (0.95 * max(flat, 0.7), 0.75), (-0.95 * max(flat, 0.7), 0.75)]
        case "rectangle":
            w, h = (1, flat) if rng.random() < 0.5 else (flat, 1)
            return [(-w, -h), (w, -h), (w, h), (-w, h)]
        case "diamond":
            return [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)]
        case "star":
            return [
                ((1, 0.42)[i % 2] * math.sin(math.pi * i / 5), -(1, 0.42)[i % 2] * math.cos(math.pi * i / 5))
                for i in range(10)
            ]
        case "heart":
            ts = [2 * math.pi * i / 40 for i in range(40)]
            return [
                (
                    math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
                )
                for t in ts
            ]
        case "cross":
            a = rng.uniform(0.28, 0.4)
            return [
                (-a, -1),
                (a, -1),
                (a, -a),
                (1, -a),
                (1, a),
                (a, a),
                (a, 1),
                (-a, 1),
                (-a, a),
                (-1, a),
                (-1, -a),
                (-a, -a),
            ]
        case "crescent":
            outer = round_(30, 1.0, math.pi * 0.3, math.pi * 1.4)
            return outer + [(0.35 + 0.75 * x, 0.75 * y) for x, y in reversed(outer)]
        case "arrow":
            return [(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]
    raise ValueError(f"no outline for {thing.shape!r}")


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of 64 by 64 pixels, on a plain or shaded ground that no thing's colour vanishes in."""
    rng, scale = random.Random(scene.seed), 3
    fills = [shade(rng, t.color) for t in scene.things]

    def ground_color() -> tuple[int, int, int]:
        if rng.random() < 0.75:
            low = rng.choice((200, 225, 240))
            return tuple(rng.randint(low, 255) for _ in range(3))
        return tuple(rng.randint(0, 255) for _ in range(3))

    ground = ground_color()
    for _ in range(20):
        if all(sum(abs(a - b) for a, b in zip(f, ground, strict=True)) > 110 for f in fills):
            break
        ground = tuple(rng.randint(0, 255) for _ in range(3))
    image = Image.new("RGB", (EDGE * scale, EDGE * scale), ground)
    pen = ImageDraw.Draw(image)
    for thing, fill in zip(scene.things, fills, strict=True):
        cos, sin = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn))
        points = [
            (
                scale * (thing.x + thing.half * (px * cos - py * sin)),
                scale * (thing.y + thing.half * (px * sin + py * cos)),
            )
            for px, py in outline(thing, rng)
        ]
        pen.polygon(points, fill=fill)
        if thing.shape == "ring":
            r, cx, cy = scale * thing.half * 0.55, scale * thing.x, scale * thing.y
            pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=ground)
    return image.resize((EDGE, EDGE), Image.Resampling.BOX)


# -- told -------------------------------------------------------------------------------------------------------------
def noun(rng: random.Random, thing: Thing, size: float = 0.4, place: float = 0.3) -> str:
    words = [thing.size] * (rng.random() < size) + [thing.color, thing.shape]
    return " ".join(words) + (f" at the {thing.place}" if rng.random() < place else "")


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def tell(rng: random.Random, scene: Scene, size: float = 0.4, place: float = 0.3) -> str:
    """One of several captions of the scene; `size` and `place` are the chances that a thing's are told."""
    things = list(scene.things)
    rng.shuffle(things)
    nouns = [article(noun(rng, t, size, place)) for t in things]
    listed = nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]
    opening = rng.choice(("", "", "there is ", "a picture of ", "here we see ", "the scene has "))
    return (opening + listed).capitalize() + "."


# -- asked ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Question:
    text: str
    short: str  # the answer under the response-format prompt
    long: str  # the answer without it


def _is(flag: bool) -> str:
    return "yes" if flag else "no"


def ask(rng: random.Random, scene: Scene, negated: bool = True) -> Question:
    """A question whose answer the scene decides: colour, shape, presence, absence (if `negated`), number, size, place."""
    things, thing = scene.things, rng.choice(scene.things)
    the = f"the {thing.shape}" if len(things) > 1 or rng.random() < 0.7 else rng.choice(("the figure", "the thing"))
    kind = rng.choices(("color", "shape", "present", "absent", "count", "size", "place"), (24, 24, 22, 22, 3, 3, 2))[0]
    kind = "present" if kind == "absent" and not negated else kind
    if kind == "color":
        text = rng.choice(
            (
                f"Which color does {the} have?",
                f"What color has {the}?",
                f"Name the color of {the}.",
                f"What is {the}'s color?",
                f"{the.capitalize()} is of what color?",
                f"Tell me the color of {the}.",
            )
        )
        return Question(text, thing.color, f"{the.capitalize()} is {thing.color}.")
    if kind == "shape":
        choices = [
            f"Which shape is {thing.color}?",
            f"Name the {thing.color} shape.",
            f"What kind of shape is the {thing.color} one?",
            f"The {thing.color} thing is what?",
        ]
        if len(things) == 1:
            choices += [
                "Which shape is shown?",
                "Name the shape.",
                "What shape do you see?",
                "Which shape does it hold?",
                "What figure is this?",
                "Tell me the shape in the picture.",
            ]
        return Question(rng.choice(choices), thing.shape, f"It is {article(thing.shape)}.")
    if kind in ("present", "absent"):
        asked = thing if rng.random() < 0.5 else None
        shape, color = (asked.shape, asked.color) if asked else (rng.choice(SHAPES), rng.choice(list(COLORS)))
        what, here = rng.choice(
            (
                (shape, any(t.shape == shape for t in things)),
                (f"{color} shape", any(t.color == color for t in things)),
                (f"{color} {shape}", any((t.shape, t.color) == (shape, color) for t in things)),
            )
        )
        if kind == "present":
            text = rng.choice(
                (
                    f"Do you see {article(what)}?",
                    f"Can {article(what)} be seen?",
                    f"Is any {what} shown?",
                    f"Does it show {article(what)}?",
                    f"Is there {article(what)} here?",
                    f"Does the picture contain {article(what)}?",
                    f"Is {article(what)} in view?",
                )
            )
            return Question(
                text, _is(here), f"{_is(here).capitalize()}, there is {article(what) if here else 'no ' + what}."
            )
        text = rng.choice(
            (
                f"Is there no {what} here?",
                f"Is no {what} shown?",
                f"Is {article(what)} missing?",
                f"Does it not show {article(what)}?",
                f"Does the picture not contain {article(what)}?",
                f"Is there not {article(what)} here?",
                f"Is it true that no {what} is in view?",
            )
        )
        return Question(
            text, _is(not here), f"{_is(not here).capitalize()}, there is {article(what) if here else 'no ' + what}."
        )
    if kind == "count":
        text = rng.choice(("How many shapes are there?", "What is the number of shapes?"))
        many = NUMBERS[len(things)]
        return Question(text, many, f"There {'is' if len(things) == 1 else 'are'} {many}.")
    if kind == "size":
        return Question(f"How large is {the}?", thing.size, f"{the.capitalize()} is {thing.size}.")
    return Question(f"Where is {the}?", thing.place, f"{the.capitalize()} is at the {thing.place}.")


def tell_enough(rng: random.Random, scene: Scene) -> str:
    """A caption with every thing's size and place, so that each question of `ask` can be answered from it."""
    return tell(rng, scene, size=1.0, place=1.0)
