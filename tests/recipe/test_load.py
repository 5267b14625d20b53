"""From YAML to a recipe: `extends`, overrides, and all mistakes at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllava.errors import UserError
from qllava.recipe import load_recipe, resolve_recipe
from qllava.recipe.load import merge, parse_override, read_yaml

GOOD = {
    "stage": "instruct",
    "tune": "lora",
    "base": "some/llava",
    "data": [{"path": "a.json"}],
    "output_dir": "out",
    "global_batch_size": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-4,
}


def test_defaults_and_overrides():
    recipe = resolve_recipe(GOOD, ["lora.r=64", "learning_rate=2e-5", "report_to=[tensorboard]"])
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (64, 256)
    assert recipe.learning_rate == 2e-5
    assert recipe.report_to == ("tensorboard",)
    assert recipe.template == "vicuna_v1"


def test_all_mistakes_come_at_once_with_the_nearest_name():
    bad = {
        **GOOD,
        "learning_rat": 1e-4,
        "tune": "qlor",
        "lora": {"rank": 3},
        "global_batch_size": "many",
        "warmup_ratio": 0.1,
    }
    del bad["output_dir"]
    with pytest.raises(UserError) as caught:
        resolve_recipe(bad, name="mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml has 6 mistakes")
    assert "learning_rat: no such field. Did you mean 'learning_rate'?" in message
    assert "Did you mean 'qlora'?" in message
    assert "lora.rank: no such field" in message
    assert "global_batch_size" in message and "'many'" in message
    assert "output_dir: is missing" in message
    assert "warmup_ratio: no such field; transformers 5 calls it warmup_steps" in message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"stage": "align"}, "tune"),
        ({"template": "plain"}, "template"),
        ({"per_device_train_batch_size": 3}, "per_device_train_batch_size"),
        ({"tune": "full", "lora": {"r": 8}}, "lora"),
        ({"quantization": {"bnb_4bit_quant_type": "fp4"}}, "quantization"),
        ({"max_steps": 0}, "max_steps"),
        ({"save_steps": 1.5}, "save_steps"),
    ],
)
def test_impossible_combinations(change, field):
    with pytest.raises(UserError, match=f"- {field}: "):
        resolve_recipe({**GOOD, **change})


def test_extends_holds_only_the_difference(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "stage: instruct\ntune: lora\nbase: x\ndata: [{path: ./d.json}]\noutput_dir: out\n"
        "global_batch_size: 8\nper_device_train_batch_size: 4\nlearning_rate: 2e-4\nlora: {r: 16, lora_alpha: 32}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nlora: {r: 8}\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (8, 32)
    assert recipe.data[0].path == str(tmp_path / "d.json")  # ./ is the YAML's own folder
    assert recipe.learning_rate == 2e-4  # YAML 1.1 would read a string


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a\n- b\n", "holds a list"),
        ("a: [\n", "is not a YAML file"),
        ("extends: self.yaml\n", "extends itself"),
        ("extends: gone.yaml\n", "No recipe at"),
        ("", "is empty"),
        ("extends: 3\n", "extends names one YAML file"),
        ("a: 2026-99-99\n", "is not a YAML file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, complaint):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_recipe(tmp_path / "self.yaml")


@pytest.mark.parametrize("override", ["learning_rate", "=3", " "])
def test_override_without_a_key(override):
    with pytest.raises(UserError, match="is no override"):
        parse_override(override)


nested = st.recursive(st.integers(), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3), max_leaves=8)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


@given(mappings, mappings)
def test_merge_keeps_what_lies_on_top(under, over):
    merged = merge(under, over)
    assert set(merged) == set(under) | set(over)
    assert merge(merged, over) == merged
    assert merge({}, over) == over and merge(under, {}) == under


def test_image_root_starts_from_the_json_whatever_file_names_it(tmp_path):
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**GOOD, "data": [{"path": "./d.json", "image_root": "../img"}]}))
    source = load_recipe(tmp_path / "r.yaml").data[0]
    assert (source.path, source.image_root) == (str(tmp_path / "d.json"), "../img")


@pytest.mark.parametrize("override", ["Parts=3", "str=3", "lora.str=3", "base.Parts=3", "seed=-1", "output_dir=''"])
def test_odd_overrides_get_a_message(override):
    with pytest.raises(UserError, match="mistake"):
        resolve_recipe(GOOD, [override])


def test_a_recipe_can_be_rebuilt_from_its_dump():
    from qllava.recipe import Recipe

    recipe = resolve_recipe({**GOOD, "tune": "projector"})
    assert resolve_recipe(Recipe(**recipe.model_dump()).model_dump()) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=/tmp/a.json", "is a list of sources, each with its fields; write data: [{path: FILE"),
        ("data=[/tmp/a.json]", "is a list of sources"),
        ("data.0.weight=2", "which an override replaces as a whole"),
        ("data=[]", "names no source"),
        ("data=[{path: ''}]", "data.0.path"),
        ("template=vicuna_v2", "Did you mean 'vicuna_v1'"),
        ("data=[{path: a.json, replay: 10%}]", "every source is a replay"),
        ("data=[{path: a.json}, {path: b.json, replay: 10%, weight: 2}]", "weight and max_samples cannot too"),
        ("subset=0%", "subset"),
    ],
)
def test_mistakes_about_data_say_how_it_is_written(override, message):
    with pytest.raises(UserError) as error:
        load_recipe("demo/instruct", [override])
    assert message in str(error.value) and "has 1 mistake:" in str(error.value)


def test_the_originals_order_is_of_grouped_batches():
    with pytest.raises(UserError, match="Write group_by_modality_length: true"):
        load_recipe("demo/align", ["order=original"])


def test_all_mistakes_at_once_with_the_templates_name():
    with pytest.raises(UserError, match="3 mistakes"):
        load_recipe("demo/instruct", ["template=vicuna_v2", "learning_rate=-1", "after_eos=5"])


def test_numbers_and_percentages_are_taken_as_they_are_meant():
    recipe = load_recipe("demo/instruct", ["after_eos=4.31", "subset=50%"])
    assert recipe.after_eos == "4.31" and recipe.subset == 0.5


def test_the_templates_are_those_that_there_are():
    from typing import get_args

    from qllava.data.template import NAMES
    from qllava.recipe.schema import TemplateName

    assert set(get_args(TemplateName)) == {*NAMES, "auto"}


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("demo/instruct", ["lora.init_lora_weights=pisa"], "lora.init_lora_weights"),
        ("demo/instruct", ["lora.init_lora_weights=false"], "Write true"),
        ("demo/instruct", ["lora.init_lora_weights=pissa", "lora.use_dora=true"], "Drop one of the two"),
        ("demo/instruct", ["lora.init_lora_weights=olora", "lora.lora_dropout=0.1"], "Write lora_dropout: 0.0"),
        ("demo/instruct", ["tune=lora", "lora.init_lora_weights=loftq"], "Write tune: qlora"),
        ("demo/instruct", ["lora.eva_config.rho=3"], "counts for init_lora_weights: eva alone"),
        ("demo/align", ["tune_vision_tower=full"], "stage 'align' trains the projector alone"),
        ("demo/align", ["loraplus_lr_ratio=16"], "has no LoRA"),
        ("demo/align", ["sample_generations=3"], "knows no questions"),
        ("demo/instruct", ["vision_tower_learning_rate=2e-6"], "the vision tower is frozen"),
        ("llava15-7b/instruct-full", ["tune_vision_tower=lora"], "Write tune_vision_tower: full"),
        ("demo/instruct", ["early_stopping_patience=2"], "Write eval_share"),
        ("demo/instruct", ["eval_steps=1.5"], "eval_steps: is a whole number"),
        ("demo/instruct", ["eval_share=100%"], "eval_share"),
        ("demo/instruct", ["adapter_start=stack"], "says what adapter is for"),
        ("demo/instruct", ["adapter=x"], "projector: comes with the adapter"),
        ("demo/align", ["adapter=x"], "trains no adapter"),
        (
            "demo/instruct",
            ["adapter=x", "projector=null", "adapter_start=stack", "lora.use_dora=true"],
            "lora.use_dora",
        ),
        ("demo/instruct", ["loraplus_lr_ration=16"], "Did you mean 'loraplus_lr_ratio'"),
        ("demo/instruct", ["mm_vision_tower_lr=2e-6"], "vision_tower_learning_rate"),
    ],
)
def test_what_does_not_go_together_says_why(recipe, overrides, message):
    with pytest.raises(UserError) as error:
        load_recipe(recipe, overrides)
    assert message in str(error.value) and "has 1 mistake:" in str(error.value)


def test_starts_of_lora_by_their_names():
    for init in ("true", "gaussian", "orthogonal", "eva", "olora", "pissa", "pissa_niter_16", "loftq"):
        recipe = load_recipe("demo/instruct", [f"lora.init_lora_weights={init}"])
        assert recipe.lora.init_lora_weights == (True if init == "true" else init)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.yaml"
    for text, says in (
        ("stage: instruct\ntune: lora\nstage: pretrain\n", "line 3: 'stage' stands there a second time"),
        ("lora:\n  r: 1\n  lora_alpha: 2\n  r: 3\n", "line 4: 'r' stands there a second time"),
        ("data: [{path: a, path: b}]\n", "line 1: 'path' stands there a second time"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            load_recipe(path)
    with pytest.raises(UserError, match="'r' stands there a second time"):
        parse_override("lora={r: 1, r: 2}")
    path.write_text("x: &x {r: 1}\nlora: {<<: *x, r: 2}\n")
    assert read_yaml(path)["lora"] == {"r": 2}


def test_an_alias_that_holds_itself(tmp_path):
    path = tmp_path / "a.yaml"
    for text in ("data: &a {x: *a}\n", "data: &a [*a]\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="holds itself"):
            load_recipe(path)


def test_what_is_no_mapping_is_called_what_it_should_be(tmp_path):
    path = tmp_path / "a.yaml"
    for text, holds in (("", "is empty"), ("- a\n", "holds a list")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"is not a recipe: it {holds}"):
            read_yaml(path)
        with pytest.raises(UserError, match=f"is not a mix: it {holds}"):
            read_yaml(path, kind="mix")
