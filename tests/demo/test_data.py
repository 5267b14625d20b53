"""The demo's data: easy-VQA as it is published, and a world that has taken nothing from it."""

from __future__ import annotations

import json
import random

import pytest

from qllava.data.processing import load_tokenizer
from qllava.data.sample import read_samples
from qllava.data.tokens import Encoder
from qllava.demo import captions, corpus, easyvqa, emoji, world
from qllava.demo.pretrain_language import LESSONS, OTHER_WEIGHT, TEMPLATE, row
from qllava.model.base import EMBEDDED


def test_easy_vqa_is_whole(tmp_path):
    train, test = easyvqa.write(tmp_path)
    merged, singles = list(read_samples(train)), list(read_samples(test))
    assert (len(merged), len(singles)) == (4000, 9673)
    assert sum(len(s.turns) // 2 for s in merged) == 38_575
    assert len({t.text for s in merged for t in s.turns if t.role == "assistant"}) == 13
    for sample in merged:
        assert world.SHORT in sample.turns[0].text
        assert not any(world.SHORT in t.text for t in sample.turns[1:])
    assert all(world.SHORT in s.turns[0].text for s in singles)
    for split in ("train", "test"):
        assert len(list((tmp_path / f"easyvqa_{split}").glob("*.png"))) == {"train": 4000, "test": 1000}[split]


def test_the_blind_score():
    assert round(100 * easyvqa.blind_score(), 1) == 67.0


def test_the_world_cannot_ask_any_of_easy_vqas_questions():
    """Checked over far more questions than the grammar has texts."""
    theirs = {q for split in ("train", "test") for q, _, _ in easyvqa.read(split)}
    assert len(theirs) == 107
    rng, ours = random.Random(0), set()
    for _ in range(60_000):
        ours.add(world.ask(rng, world.sample(rng)).text.lower())
    assert len(ours) > 1500
    assert not {t.strip(" .?") for t in ours} & {t.strip(" .?") for t in theirs}


def test_answers_are_what_the_scene_says():
    rng = random.Random(1)
    for _ in range(3000):
        scene = world.sample(rng)
        question = world.ask(rng, scene)
        shapes, colors = {t.shape for t in scene.things}, {t.color for t in scene.things}
        if question.short in world.SHAPES:
            assert question.short in shapes
        elif question.short in world.COLORS:
            assert question.short in colors
        elif question.short in ("yes", "no"):
            named = [w.strip("?.,") for w in question.text.lower().split()]
            pairs = {w for t in scene.things for w in (t.shape, t.color)}
            words = [w for w in named if w in world.SHAPES or w in world.COLORS]
            absent = any(mark in question.text.lower() for mark in (" no ", " not ", "missing"))
            if len(words) == 1:
                assert (question.short == "yes") == ((words[0] in pairs) != absent)
        assert question.short in question.long.lower() or question.short in ("yes", "no")


def test_the_telling_answers_the_questions():
    """Every colour, shape, size and place that can be asked for stands in the full telling."""
    rng = random.Random(2)
    for _ in range(500):
        scene = world.sample(rng)
        told = world.tell_enough(rng, scene).lower()
        for thing in scene.things:
            assert f"{thing.size} {thing.color} {thing.shape} at the {thing.place}" in told


def test_drawings_show_their_colours():
    rng = random.Random(3)
    for _ in range(200):
        scene = world.sample(rng, most=1)
        image, thing = world.draw(scene), scene.things[0]
        assert image.size == (64, 64) and image.mode == "RGB"
        assert len(image.getcolors(4096)) >= 2, thing
    assert world.draw(scene).tobytes() == world.draw(scene).tobytes()


def test_emoji_have_names_and_pictures():
    emojis = emoji.load()
    assert len(emojis) == 1238
    assert all(picture.size == (64, 64) and e.label and e.group for e, picture in emojis)


def test_captions_are_a_llava_json(tmp_path):
    path = captions.write(tmp_path, scenes=20)
    samples = list(read_samples(path))
    assert len(samples) == 20 + 1238
    assert all((tmp_path / "captions" / s.images[0]).is_file() and s.turns[1].text for s in samples)
    assert json.loads(captions.write(tmp_path / "again", scenes=20).read_text()) == json.loads(path.read_text())


def test_the_llm_reads_text_alone():
    rng, emojis = random.Random(4), [e for e, _ in emoji.load()]
    for _ in range(300):
        talk = corpus.conversation(rng, emojis)
        assert not any("<image>" in t["value"] for t in talk) and len(talk) % 2 == 0
    assert TEMPLATE.name == "vicuna_v1"


@pytest.mark.parametrize("negated", [True, False])
def test_drills_ask_for_what_stands_there(negated):
    rng, seen = random.Random(5), set()
    for _ in range(500):
        told, questions = corpus.drill(rng, negated)
        assert len({q.strip("?").removeprefix("not ") for q, _ in questions}) == 4  # nothing is asked for twice
        for question, answer in questions:
            there = question.strip("?").removeprefix("not ") in told.split()
            assert (answer == "yes") == (there != question.startswith("not "))
            seen.add((question.startswith("not "), answer))
    assert len(seen) == (4 if negated else 2)


def test_a_drill_in_chat_holds_the_drill():
    talk = corpus.drill_in_chat(random.Random(3), True)
    told, questions = corpus.drill(random.Random(3), True)
    assert talk[0]["value"].startswith(f"{told}\n{questions[0][0]}") and talk[-1]["value"] == questions[-1][1]


def test_every_lesson_makes_rows_that_weigh_answers():
    encoder = Encoder(*load_tokenizer(str(EMBEDDED / "llm")))
    rng, emojis = random.Random(8), [e for e, _ in emoji.load()][:20]
    assert LESSONS[-1].end == 1.0 and [each.end for each in LESSONS] == sorted(each.end for each in LESSONS)
    for lesson in LESSONS:
        for _ in range(40):
            ids, weights = row(rng, emojis, encoder, lesson)
            assert len(ids) == len(weights) and max(weights[1:]) in (1.0, OTHER_WEIGHT)


def test_practice_asks_only_what_is_told():
    rng = random.Random(6)
    for _ in range(500):
        talk = corpus.about_one_thing(rng)
        told = talk[0]["value"].split("\n")[0].lower()
        for answer in (t["value"] for t in talk[1::2]):
            assert answer in ("yes", "no", "one") or answer in told
