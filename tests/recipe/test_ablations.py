"""The recipes of the paper's ablations: each step of the ladder is one change, shares are nested, and all pass `check`."""

from __future__ import annotations

import pytest
from conftest import ROOT

from qllava.ablate.trial import absent, check_as_far
from qllava.recipe import list_shipped, load_recipe, resolve_recipe

LADDER = sorted(f.stem for f in (ROOT / "recipes/ablations/ladder").glob("[0-9]-*.yaml"))
CHANGES = [  # what each step changes of the one before, beside its output_dir
    {"data"}, {"data"}, {"base", "projector"}, {"data"}, {"data"}, {"base", "projector"}, {"data"}, {"data"}, {"base", "projector"},
]  # fmt: skip


def names(recipe) -> list[str]:
    return [s.path.rsplit("/", 1)[1].removesuffix(".json") for s in recipe.data]


@pytest.mark.parametrize("step", range(1, 10))
def test_each_step_of_the_ladder_is_one_change(step):
    before, now = (load_recipe(f"ablations/ladder/{name}") for name in LADDER[step - 1 : step + 1])
    differ = {k for k in type(now).model_fields if getattr(now, k) != getattr(before, k)} - {"output_dir"}
    assert differ == CHANGES[step - 1]
    if differ == {"data"}:
        taken, given = set(names(before)) - set(names(now)), set(names(now)) - set(names(before))
        assert given and taken == ({"vqav2-unprompted"} if step == 2 else set())


def test_the_ladder_ends_with_all_ten_sets_and_the_full_recipe():
    last, plain = load_recipe(f"ablations/ladder/{LADDER[8]}"), load_recipe("llava15-7b/instruct-full")
    assert len(names(last)) == 10
    assert {k for k in type(last).model_fields if getattr(last, k) != getattr(plain, k)} == {"data", "output_dir"}


@pytest.mark.parametrize("percent", [10, 20, 30, 40, 50])
def test_a_share_is_the_full_recipe_on_less(percent):
    share, plain = load_recipe(f"ablations/data/{percent}-percent"), load_recipe("llava15-7b/instruct-full")
    assert share.subset == percent / 100
    assert {k for k in type(share).model_fields if getattr(share, k) != getattr(plain, k)} == {"subset", "output_dir"}


@pytest.mark.parametrize("name", [s.name for s in list_shipped()])
def test_every_recipe_passes_check_until_something_is_read(name, scenes, tmp_path):
    recipe = load_recipe(name)
    if missing := absent(recipe):
        assert check_as_far(recipe) == f"stops at {missing[0]}, which is not here"
    values = recipe.model_dump(exclude_unset=True)
    parts = {} if isinstance(recipe.base, str) else values["base"]
    here = {
        "base": parts | {"vision_tower": "embedded", "llm": "embedded"},
        "data": [{"path": str(scenes), "image_root": "images"}],
        "output_dir": str(tmp_path / "run"),
        "projector": None,
        "adapter": None,
        "subset": 1.0,
    }
    assert check_as_far(resolve_recipe(values | here)) == "ok"
