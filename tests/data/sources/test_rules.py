"""The rules: merge, segments, choices, boxes, samples, cuts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllava.data.sources import rules
from qllava.data.sources.rules import Talk

pairs = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=4)
talks = st.lists(st.builds(Talk, st.sampled_from("xy"), st.sampled_from("abc"), pairs), max_size=8)


@given(talks)
def test_merge_keeps_every_pair_once_and_in_order(given_talks):
    want: dict[str, list] = {}
    for talk in given_talks:
        want.setdefault(talk.image, []).extend(talk.pairs)
    assert {t.image: t.pairs for t in rules.merge(Talk(t.id, t.image, list(t.pairs)) for t in given_talks)} == want
    assert list(want) == list(dict.fromkeys(t.image for t in given_talks))


@given(st.lists(st.integers(), min_size=1), st.integers(1, 12))
def test_segments_are_all_of_it_in_the_fewest_parts(items, most):
    parts = rules.segments(items, most)
    assert [i for p in parts for i in p] == items
    assert all(1 <= len(p) <= most for p in parts) and len(parts) == -(-len(items) // most)
    assert rules.segments(items, None) == [items]


@given(st.lists(st.integers(), unique=True), st.integers(0, 20), st.integers())
def test_a_sample_keeps_order(items, count, seed):
    found = rules.sample(items, count, Random(seed))
    assert len(found) == min(count, len(items)) and [i for i in items if i in found] == found


@given(st.lists(st.tuples(st.text(max_size=4), st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6, unique=True).flatmap(
    lambda c: st.tuples(st.just(c), st.integers(0, len(c) - 1)))), min_size=1, max_size=3))  # fmt: skip
def test_every_choice_stands_under_every_letter_once(asked):
    questions = [(q, c, right) for q, (c, right) in asked]
    made = rules.each_choice(questions)
    assert len(made) == max(len(c) for _, c, _ in questions)
    for i, (question, choices, right) in enumerate(questions):
        letters = [talk[i][1] for talk in made]
        assert sorted(set(letters)) == list(rules.LETTERS[: len(choices)])
        for text, letter in (talk[i] for talk in made):
            listed = text.removeprefix(question + "\n")
            lines = [f"{rules.LETTERS[j]}. " for j in range(len(choices))]
            assert all(mark in listed for mark in lines) and f"{letter}. {choices[right]}" in listed


@pytest.mark.parametrize(
    ("box", "size", "want"),
    [
        ((0, 0, 10, 10), (10, 10), "[0.0, 0.0, 1.0, 1.0]"),
        ((0, 0, 200, 100), (200, 100), "[0.0, 0.25, 1.0, 0.75]"),  # 50 above and below
        ((0, 0, 100, 200), (100, 200), "[0.25, 0.0, 0.75, 1.0]"),  # 50 at both sides
        ((10, 20, 30, 40), (100, 50), "[0.1, 0.45, 0.4, 0.75]"),  # down: 45 and 75 (the border, 50, and 25) of 100
        ((-5, -5, 300, 300), (100, 100), "[0.0, 0.0, 1.0, 1.0]"),
        ((33.3, 66.6, 0.1, 0.1), (100, 100), "[0.33, 0.67, 0.33, 0.67]"),
    ],
)
def test_boxes_by_hand(box, size, want):
    assert rules.square(box, *size) == want


@given(st.tuples(*[st.floats(-50, 900)] * 2, *[st.floats(0, 900)] * 2), st.integers(1, 700), st.integers(1, 700))
def test_boxes_stay_in_the_square(box, width, height):
    left, top, right, bottom = map(float, rules.square(box, width, height)[1:-1].split(", "))
    assert 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1


class Coin:
    def __init__(self, *sides):
        self.sides = list(sides)

    def random(self):
        return self.sides.pop(0)


def test_both_ways_by_hand():
    made = rules.both_ways(
        [("red hat.", "[1]"), ("red hat.", "[1]"), ("what?", "[2]")], "D {region}.", "L {region}.", Coin(0.1, 0.6, 0.2)
    )
    assert made == [("D [1].", "Red hat."), ("L red hat.", "[1]"), ("D [2].", "What?")]


@given(st.lists(st.integers(0, 50)), st.integers(1, 200))
def test_what_fits_is_as_much_as_fits(lengths, most):
    count = rules.fits(iter(lengths), most)
    assert sum(lengths[:count]) <= most
    assert count == len(lengths) or sum(lengths[: count + 1]) > most


def test_chance_depends_on_its_parts_alone():
    first = [rules.drawn(0, "vg", "1").random(), rules.drawn(0, "vg", "2").random(), rules.drawn(1, "vg", "1").random()]
    assert len(set(first)) == 3 and rules.drawn(0, "vg", "1").random() == first[0] == Random("0/vg/1").random()
