"""A study's schema: what it takes, and a word for each mistake."""

from __future__ import annotations

import pytest
import yaml

from qllava.ablate.plan import plan
from qllava.ablate.study import filled, list_studies, load_study, words
from qllava.errors import UserError


def test_loads_with_its_defaults(study):
    found = load_study(study())
    assert (found.against, found.seeds, list(found.arms)) == ("slow", (1, 2), ["slow", "fast"])
    assert found.evaluate["scenes"].metric == "exact_match"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"axs": "x"}, "axs: no such field. Did you mean 'axis'?"),
        ({"title": ""}, "title: "),
        ({"arms": {"one": {}}}, "arms: "),
        ({"arms": {"one": {}, "a/b": {}}}, "arms.a/b: is no name for a folder"),
        ({"arms": {"one": {"papr": {}}, "two": {}}}, "arms.one.papr: no such field. Did you mean 'paper'?"),
        ({"arms": {"one": {"paper": {"gqa": 1}}, "two": {}}}, "arms.one.paper.gqa: no such evaluation."),
        ({"arms": {"one": {"stages": {"instruc": {}}}, "two": {}}}, "no such stage. Did you mean 'instruct'?"),
        ({"reference": "slw"}, "reference: no arm 'slw'. Did you mean 'slow'?"),
        ({"seeds": [1, 1]}, "seeds: one of them stands twice"),
        ({"seeds": []}, "seeds: "),
        ({"evaluate": {"x": {}}}, "names either data, a set of one's own, or a benchmark"),
        ({"evaluate": {"x": {"data": "a", "benchmark": "gqa"}}}, "names either data"),
        ({"evaluate": {"x": {"benchmark": "gqa", "limit": 3}}}, "under which a benchmark has no score"),
    ],
)
def test_names_the_mistake(study, changes, told):
    with pytest.raises(UserError) as caught:
        load_study(study(**changes))
    assert told in str(caught.value) and "rates.yaml has 1 mistake" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"projector": "$align"}, "$align is not known there; there is none before it"),
        ({"projector": "$instruct"}, "$instruct is not known there"),
        ({"data": [{"path": "$data/x.json"}]}, "$data is not known there; `prepare` makes nothing"),
        ({"output_dir": "runs/mine"}, "output_dir is the study's to choose"),
    ],
)
def test_overrides_name_what_is_there(study, values, overrides, told):
    stage = values["stages"]["instruct"] | {"overrides": overrides}
    with pytest.raises(UserError) as caught:
        load_study(study(stages={"instruct": stage}))
    assert told in str(caught.value)


def test_unknown_study_gets_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'demo-shares'"):
        load_study("demo-share")
    with pytest.raises(UserError, match="--list"):
        load_study(tmp_path / "gone.yaml")


def test_words_are_filled_in_whatever_holds_them():
    value = {"data": [{"path": "$data/a.json"}], "projector": "$align", "price": "5 $ and $more"}
    assert words(value) == {"data", "align", "more"}
    assert filled(value, {"data": "/d", "align": "/r/align"}) == {
        "data": [{"path": "/d/a.json"}],
        "projector": "/r/align",
        "price": "5 $ and $more",
    }


@pytest.mark.parametrize("name", [name for name, _, _ in list_studies()])
def test_shipped_studies_load_and_say_how_they_are_run(name):
    file = next(path for n, path, _ in list_studies() if n == name)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 30
    assert any(f"qllava ablate {name}" in line for line in lines)
    study = load_study(name)
    assert study.source or not any(arm.paper for arm in study.arms.values()), "the paper's figures have no source"
    assert yaml.safe_load(file.read_text())["title"] == study.title


@pytest.mark.parametrize("name", [name for name, _, _ in list_studies()])
def test_shipped_studies_name_recipes_that_load(name, tmp_path):
    study = load_study(name)
    found = plan(study, tmp_path / "out", study.seeds)
    assert set(found.scored) == {(arm, seed) for arm in study.arms for seed in study.seeds}
    models = {next(iter(runs.values())).needs[0] for runs in found.scored.values()}
    assert len(models) == len(found.scored), "two arms are the same"
