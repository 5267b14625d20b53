"""What the planner chooses and says."""

from __future__ import annotations

import pytest

from qllava.api import plan
from qllava.errors import UserError
from qllava.recipe import load_recipe, resolve_recipe
from qllava.train import machine
from qllava.train.batches import Sizes, sampler_for, together
from qllava.train.plan import read_size


def recipe(recipe_values, **changes):
    return resolve_recipe({**recipe_values, "tune": "lora", **changes})


def test_the_micro_batches_it_expects_are_those_that_come(recipe_values):
    """The largest of all, and the sum of the averages, against every batch of an epoch."""
    from qllava.data.dataset import select, training_set
    from qllava.model.inputs import processing_for

    for changes in ({}, {"packing": False}, {"pairing": "shared"}):
        ours = recipe(recipe_values, **changes)
        processing = processing_for(ours)
        rows = select(ours, processing).rows
        made = training_set(rows, processing, ours.max_length)
        order = list(sampler_for(ours, rows))
        put = together(ours, processing)
        sizes = Sizes(ours, rows, processing, processing.image_tokens)
        for size in (1, 2, 4):
            batches = [put(made.__getitems__(order[i : i + size])) for i in range(0, len(order), size)]
            found = [b["input_ids"].numel() for b in batches]
            largest, mean = sizes.of(size)
            assert largest.positions == max(found)
            assert mean.positions == pytest.approx(sum(found) / len(found), abs=1)
            images = sum(len(b["pixel_values"]) for b in batches if "pixel_values" in b)
            assert mean.images == pytest.approx(images / len(found), abs=0.5)


def test_a_larger_card_runs_as_fast_or_faster_and_every_choice_keeps_the_global_batch(recipe_values):
    seconds = []
    for size in ("0.64GB", "0.7GB", "2GB"):
        found = plan(recipe(recipe_values, global_batch_size=8), vram=size, tflops=1)
        assert found.chosen.fits and found.chosen.memory.peak < found.budget
        assert all(8 % c.per_device_train_batch_size == 0 for c in found.choices)
        assert found.chosen.seconds <= 1.02 * min(c.seconds for c in found.choices if c.fits)
        seconds.append(found.chosen.seconds)
    assert seconds[0] >= seconds[1] / 1.02 and seconds[1] >= seconds[2] / 1.02


def test_what_fits_nowhere_is_said_with_what_would_make_it(recipe_values):
    found = plan(recipe(recipe_values), vram="0.3GB", tflops=1)
    assert found.chosen is None and "tune=qlora" in found.remedy and "max_length" in found.remedy


def test_a_recipe_without_its_data_is_planned_for_the_longest_samples(recipe_values):
    ours = recipe(recipe_values, data=[{"path": "/nowhere/mine.json"}], max_length=512)
    found = plan(ours, vram="8GB", tflops=1)
    assert found.steps == 4  # its max_steps
    assert found.largest.positions == 512 * found.chosen.per_device_train_batch_size


def test_the_plan_is_plain_values(recipe_values):
    import json

    values = plan(recipe(recipe_values), vram="2GB", tflops=1).as_values()
    assert json.loads(json.dumps(values))["chosen"]["memory"]["peak"] == sum(
        v for k, v in values["chosen"]["memory"].items() if k != "peak"
    )


@pytest.mark.parametrize(("text", "size"), [("12GB", 12 << 30), ("8", 8 << 30), ("1.5 GiB", 3 << 29)])
def test_sizes_of_cards(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "12TB", "-3GB", "0GB"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="no size"):
        read_size(text)


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    monkeypatch.setattr(machine, "LIMITS", (str(limit),))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert machine.machine_memory() == int(0.9 * (1 << 30))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.machine_memory() == int(0.9 * (1 << 30) / 2)
    limit.write_text("max\n")
    assert machine.machine_memory() > 1 << 30


def test_automatic_sizes_are_refused_where_the_order_depends_on_them():
    with pytest.raises(UserError, match="order 'original' depends on it"):
        load_recipe(
            "llava15-7b/instruct-lora",
            ["per_device_train_batch_size=auto", "group_by_modality_length=true", "order=original"],
        )
