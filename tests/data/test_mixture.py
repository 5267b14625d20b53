"""How much of which source is taken: caps, weights, replay, nested and stratified subsets."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllava.data.mixture import choose, kind_of, stratified
from qllava.recipe.schema import Source

kinds = st.lists(st.sampled_from(["coco", "gqa", "text"]), min_size=1, max_size=60)


def source(**values):
    return Source(path="x.json", **values)


def test_everything_by_default_in_order():
    assert choose([["coco"] * 5, ["text"] * 3], [source(), source()], 1.0, 0) == [list(range(5)), list(range(3))]


@given(kinds, st.integers(0, 99))
@settings(deadline=None)
def test_each_subset_lies_in_the_larger_one(each, seed):
    taken = [choose([each], [source()], share, seed)[0] for share in (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)]
    for small, large in pairwise(taken):
        assert set(small) <= set(large)
    assert taken[-1] == list(range(len(each)))


@given(kinds, st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 9))
@settings(deadline=None)
def test_a_subset_takes_the_same_share_of_every_kind(each, share, seed):
    (taken,) = choose([each], [source()], share, seed)
    found = Counter(each[i] for i in taken)
    assert found == {kind: max(1, round(count * share)) for kind, count in Counter(each).items()}


def test_caps_and_weights():
    taken = choose(
        [["a"] * 100] * 4, [source(max_samples=7), source(weight=0.25), source(weight=2.5), source()], 1.0, 3
    )
    assert [len(t) for t in taken] == [7, 25, 250, 100]
    assert max(Counter(taken[0]).values()) == max(Counter(taken[1]).values()) == 1
    assert sorted(set(Counter(taken[2]).values())) == [2, 3] and len(set(taken[2])) == 100
    assert taken[0] != list(range(7))  # drawn, not the first


def test_a_cap_below_a_subset_stays_nested():
    small, large = (choose([["a"] * 100], [source(max_samples=40)], share, 1)[0] for share in (0.5, 1.0))
    assert len(small) == 20 and len(large) == 40 and set(small) < set(large)


def test_replay_is_a_share_of_the_others():
    domain, general = choose([["image"] * 300, ["coco"] * 5000], [source(), source(replay="10%")], 1.0, 0)
    assert (len(domain), len(general)) == (300, 30)
    half = choose([["image"] * 300, ["coco"] * 5000], [source(), source(replay=0.1)], 0.5, 0)
    assert [len(t) for t in half] == [150, 15] and set(half[1]) < set(general)


def test_another_seed_takes_others():
    first, second = (choose([["a"] * 100], [source(max_samples=10)], 1.0, seed) for seed in (1, 2))
    assert first != second


def test_two_sources_are_not_taken_alike():
    first, second = choose([["a"] * 100] * 2, [source(max_samples=10)] * 2, 1.0, 1)
    assert first != second


@pytest.mark.parametrize(
    ("image", "kind"),
    [("coco/train2017/1.jpg", "coco"), ("./gqa/a.jpg", "gqa"), ("a.jpg", "image"), (None, "text"), ("", "image")],
)
def test_kinds(image, kind):
    assert kind_of(image) == kind


def test_stratified_keeps_at_least_one_of_each_kind_in_the_pools_order():
    assert stratified([3, 1, 0, 2], ["a", "b", "a", "b"], 0.1) == [3, 0]
