"""A packed row holds every sample as it was, at its own positions, and shares no more than what is alike."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qllava.data.pack import pack

IMAGE, TOKEN, PATCHES = -200, 99, 3
PROCESSING = SimpleNamespace(counts=lambda row: PATCHES, image_token_id=TOKEN, pad_token_id=0)


def row(ids, labels, key=None, image=0.0):
    pixels = None if key is None else torch.full((ids.count(IMAGE), 3, 2, 2), image)
    return {"input_ids": ids, "labels": labels, "images_key": key, "pixel_values": pixels}


def seen(batch):
    """For each sample of the batch: its ids, positions and labels, and which label is predicted from where, read off the row."""
    ids, labels, positions = (batch[k][0].tolist() for k in ("input_ids", "labels", "position_ids"))
    labelled = [i for i, n in enumerate(labels) if n != -100]
    before = dict(zip(labelled, batch["predictors"].tolist(), strict=True))
    for bounds in batch["layout"].groups:
        start, trunk = bounds[:2]
        ends = list(pairwise(bounds[1:])) or [(trunk, trunk)]
        for a, b in ends:
            places = [*range(start, trunk), *range(a, b)]
            yield {
                "ids": [ids[i] for i in places],
                "labels": [labels[i] for i in places],
                "positions": [positions[i] for i in places],
                "before": [places.index(before[i]) for i in places if i in before],
            }


def alone(one):
    """The same of a row that stands alone."""
    ids, labels = [], []
    for i, n in zip(one["input_ids"], [-100, *one["labels"][1:]], strict=True):
        ids += [TOKEN] * PATCHES if i == IMAGE else [i]
        labels += [-100] * PATCHES if i == IMAGE else [n]
    return {
        "ids": ids,
        "labels": labels,
        "positions": list(range(len(ids))),
        "before": [i - 1 for i, n in enumerate(labels) if n != -100],
    }


@st.composite
def samples(draw):
    """A question and an answer, about no image, or one of two; some begin alike."""
    key = draw(st.sampled_from([None, "a", "b"]))
    lead = [1, *draw(st.sampled_from([[], [5], [5, 6]]))]
    lead += [] if key is None else [IMAGE]
    question = draw(st.lists(st.integers(2, 4), max_size=4))
    answer = draw(st.lists(st.integers(2, 4), min_size=1, max_size=4))
    return row(
        lead + question + answer, [-100] * len(lead + question) + answer, key, {"a": 1.0, "b": 2.0}.get(key, 0.0)
    )


@given(st.lists(samples(), min_size=1, max_size=6), st.booleans(), st.sampled_from([1, 8]))
def test_every_sample_is_in_the_row_as_if_it_stood_alone(rows, shared, multiple):
    batch = pack(rows, PROCESSING, shared, multiple)
    found, wanted = list(seen(batch)), [alone(r) for r in rows]
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    if not shared:
        assert found == wanted
    assert batch["input_ids"].shape[1] % multiple == 0
    assert batch["layout"].samples == len(rows)
    assert int(batch["attention_mask"].sum()) == max(end for group in batch["layout"].groups for end in group)
    images = int((batch["input_ids"] == TOKEN).sum()) // PATCHES
    assert len(batch.get("pixel_values", ())) == images
    # the images' tokens stand in the order of the images themselves
    wanted_keys = [r["images_key"] for r in rows if r["images_key"]]
    expected = list(dict.fromkeys(wanted_keys)) if shared and images < len(wanted_keys) else None
    if expected and images == len(expected):
        assert [{1.0: "a", 2.0: "b"}[float(p.flatten()[0])] for p in batch["pixel_values"]] == expected


def test_samples_about_one_image_share_it_and_what_they_begin_with():
    rows = [
        row([1, IMAGE, 7, 8, 20], [-100] * 4 + [20], "a"),
        row([1, IMAGE, 7, 9, 30, 31], [-100] * 4 + [30, 31], "a"),
    ]
    batch = pack(rows, PROCESSING, shared=True)
    assert batch["input_ids"].tolist() == [[1, TOKEN, TOKEN, TOKEN, 7, 8, 20, 9, 30, 31]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7]]
    assert batch["layout"].groups == ((0, 5, 7, 10),)
    assert batch["predictors"].tolist() == [5, 7, 8]
    assert len(batch["pixel_values"]) == 1


def test_answers_to_one_question_go_on_from_it():
    rows = [row([1, IMAGE, 7, 20], [-100] * 3 + [20], "a"), row([1, IMAGE, 7, 21], [-100] * 3 + [21], "a")]
    batch = pack(rows, PROCESSING, shared=True)
    assert batch["input_ids"].tolist() == [[1, TOKEN, TOKEN, TOKEN, 7, 20, 21]]
    assert batch["predictors"].tolist() == [4, 4]


def test_an_image_behind_different_words_is_not_shared():
    rows = [row([1, 5, IMAGE, 20], [-100] * 3 + [20], "a"), row([1, 6, IMAGE, 21], [-100] * 3 + [21], "a")]
    batch = pack(rows, PROCESSING, shared=True)
    assert batch["layout"].groups == ((0, 6), (6, 12))
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_rows_that_only_fill_a_batch_are_no_samples(shared):
    filler = {"input_ids": [1, 1], "labels": [-100, -100], "images_key": None, "pixel_values": None}
    batch = pack([row([1, 7, 20], [-100, -100, 20]), filler], PROCESSING, shared)
    assert batch["layout"].samples == 1
    assert batch["predictors"].tolist() == [1]
