"""The order: every sample once, by seed and epoch alone, modalities apart where asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qllava.train.sampler import ImageSampler, OriginalSampler, SeededSampler

lengths = st.lists(st.integers(-50, 50).filter(bool), min_size=1, max_size=80)


@given(lengths, st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_sample_once_and_again_the_same(lengths, size, grouped, epoch):
    sampler, twin = (SeededSampler(lengths, size, seed=1, grouped=grouped) for _ in range(2))
    sampler.set_epoch(epoch)
    twin.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths))) and list(sampler) == list(twin)


def test_epochs_and_seeds_differ():
    sampler = SeededSampler([1] * 50, 4, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != list(SeededSampler([1] * 50, 4, seed=2))


@given(lengths, st.integers(1, 9))
def test_whole_batches_hold_one_modality(lengths, size):
    order = list(SeededSampler(lengths, size, seed=0, grouped=True))
    whole = sum(sum((n > 0) == sign for n in lengths) // size for sign in (True, False))
    for i in range(whole):
        assert len({lengths[j] > 0 for j in order[i * size : (i + 1) * size]}) == 1


@given(lengths, st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_the_originals_order_takes_every_sample_once(lengths, batch, world, epoch):
    sampler, twin = (OriginalSampler(lengths, batch, world, seed=3) for _ in range(2))
    sampler.set_epoch(epoch)
    twin.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths))) and list(sampler) == list(twin)


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 3))
def test_samples_of_one_image_stand_together(keys, size, epoch):
    sampler, twin = (ImageSampler(keys, size, seed=1) for _ in range(2))
    sampler.set_epoch(epoch)
    twin.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(keys))) and order == list(twin)
    for key in {k for k in keys if k}:
        places = [i for i, n in enumerate(order) if keys[n] == key]
        assert places == list(range(places[0], places[-1] + 1))
