"""What the embedded LLM reads: the world told in words, questions about it, and what the emoji's names mean.

In: a `random.Random`. Out: conversations as LLaVA turns, without any image.
"""

from __future__ import annotations

import random

from . import emoji, world
from .emoji import Emoji

GREETINGS = (
    ("Hello!", "Hello! Ask me about a scene."),
    ("Hi", "Hello! Ask me about a scene."),
    ("Who are you?", "I am a small assistant who reads about scenes and emoji."),
    ("Thank you!", "You are welcome."),
    ("What can you do?", "I can answer questions about colors, shapes, sizes and places."),
)


def turns(*texts: str) -> list[dict[str, str]]:
    """LLaVA turns from texts that alternate, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]


def about_scene(rng: random.Random) -> list[dict[str, str]]:
    """One to six questions about a scene told in words; short answers where the format prompt asks for them."""
    scene, texts = world.sample(rng), []
    told = world.tell_enough(rng, scene)
    if rng.random() < 0.1:
        return turns(f"{told}\nSay it in other words.", world.tell_enough(rng, scene))
    short = rng.random() < 0.8
    for i in range(rng.randint(1, 6)):
        question = world.ask(rng, scene)
        text = question.text.lower() if rng.random() < 0.5 else question.text
        lead = f"{told}\n" if i == 0 else ""
        format_prompt = f"\n{world.SHORT}" if short and i == 0 else ""
        texts += [lead + text + format_prompt, question.short if short else question.long]
    return turns(*texts)


def about_emoji(rng: random.Random, emojis: list[Emoji]) -> list[dict[str, str]]:
    """What an emoji is about, and to which group it belongs."""
    one = rng.choice(emojis)
    if rng.random() < 0.5:
        return turns(f"{emoji.caption(rng, one)}\nWhich group is it in?\n{world.SHORT}", one.group)
    tags = list(one.tags)[:4] or [one.group]
    return turns(f"What is {one.label} about?", f"It is about {', '.join(tags)}.")


def conversation(rng: random.Random, emojis: list[Emoji]) -> list[dict[str, str]]:
    """A scene told in words nearly always; what an emoji means, or a greeting, now and then."""
    kind = rng.random()
    if kind < 0.9:
        return about_scene(rng)
    return about_emoji(rng, emojis) if kind < 0.98 else turns(*rng.choice(GREETINGS))


def drill(rng: random.Random, negated: bool) -> tuple[str, list[tuple[str, str]]]:
    """`red star`, and whether it is `star?` yes, `blue?` no, and, if `negated`, `not red?` no.

    Comparing two words is the hardest thing to learn here, and nothing teaches it faster than many comparisons a line.
    """
    color, shape = rng.choice(list(world.COLORS)), rng.choice(world.SHAPES)
    asked = [color, shape, rng.choice([c for c in world.COLORS if c != color])]
    asked.append(rng.choice([s for s in world.SHAPES if s != shape]))
    rng.shuffle(asked)
    questions = []
    for word in asked:
        no = negated and rng.random() < 0.4
        questions.append((f"{'not ' * no}{word}?", "yes" if (word in (color, shape)) != no else "no"))
    return f"{color} {shape}", questions


def drill_in_chat(rng: random.Random, negated: bool) -> list[dict[str, str]]:
    """A drill as a conversation, under the response-format prompt half of the time."""
    told, questions = drill(rng, negated)
    end = f"\n{world.SHORT}" * (rng.random() < 0.5)
    first, *others = questions
    return turns(f"{told}\n{first[0]}{end}", first[1], *(text for pair in others for text in pair))


def about_one_thing(rng: random.Random, negated: bool = True) -> list[dict[str, str]]:
    """Two to six short questions about a scene of one thing, told barely or in full."""
    scene, texts = world.sample(rng, 1), []
    bare = rng.random() < 0.6
    told = world.tell(rng, scene, size=0.0, place=0.0) if bare else world.tell_enough(rng, scene)
    untold = (*world.SIZES, scene.things[0].place) if bare else ()
    for i in range(rng.randint(2, 6)):
        question = world.ask(rng, scene, negated)
        while question.short in untold:
            question = world.ask(rng, scene, negated)
        text = question.text.lower() if rng.random() < 0.5 else question.text
        texts += [f"{told}\n{text}\n{world.SHORT}" if i == 0 else text, question.short]
    return turns(*texts)


def caption(rng: random.Random, emojis: list[Emoji]) -> str:
    return world.tell(rng, world.sample(rng)) if rng.random() < 0.7 else emoji.caption(rng, rng.choice(emojis))
