"""What a run starts from: every start of LoRA, and every use of an adapter, from the recipe to the merged model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from qllava.api import assemble, load, merge, train, verify
from qllava.artifact.load import Loaded
from qllava.errors import RunError, UserError
from qllava.model.build import load_model
from qllava.model.inputs import processing_for
from qllava.recipe import resolve_recipe

STARTS = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
    "loftq": {"init_lora_weights": "loftq"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 6}},
}


def recipe(values, **changes):
    lora = {**values["lora"], **changes.pop("lora", {})}
    return resolve_recipe({**values, "learning_rate": 1e-3, "warmup_steps": 0, **changes, "lora": lora})


def weights(folder):
    return {f"{f.name}:{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@torch.no_grad()
def logits(source):
    """Of one image and three words, in float32."""
    loaded = source if isinstance(source, Loaded) else load(source, dtype="float32")
    torch.manual_seed(0)
    config = loaded.processing.image_processor
    ids = torch.tensor([[1, *[loaded.processing.image_token_id] * loaded.processing.image_tokens, 40, 50, 60]])
    return loaded.model(
        input_ids=ids, pixel_values=torch.randn(1, 3, config.crop_size["height"], config.crop_size["width"])
    ).logits


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_every_start_resumes_bit_for_bit_and_merges(recipe_values, tmp_path, start):
    """PEFT's PiSSA reloads as another model, and its EVA moves ranks; neither may show in what is kept."""
    common = {
        "max_steps": 4,
        "save_steps": 2,
        "lora": STARTS[start],
        "global_batch_size": 16,
        "per_device_train_batch_size": 8,
    }
    whole = train(recipe(recipe_values, **common, output_dir=str(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    resumed = train(recipe(recipe_values, **common, output_dir=str(tmp_path / "cut")), resume=True)
    expected, got = weights(whole.artifact), weights(resumed.artifact)
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)
    assert whole.log[-1]["loss"] < whole.log[0]["loss"]
    config = json.loads((whole.artifact / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True  # nothing starts anew when it is loaded
    merged = merge(whole.artifact, tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(whole.artifact), atol=1e-3, rtol=0)


def test_eva_moves_ranks_and_keeps_their_sum(recipe_values):
    result = train(recipe(recipe_values, max_steps=1, lora={"init_lora_weights": "eva", "r": 4}))
    config = json.loads((result.artifact / "adapter_config.json").read_text())
    ranks = [v.shape[0] for k, v in load_file(result.artifact / "adapter_model.safetensors").items() if "lora_A" in k]
    assert len(set(ranks)) > 1 and sum(ranks) == 4 * 28 and max(ranks) <= 8
    assert config["rank_pattern"]


@pytest.mark.parametrize("tune", ["projector", "lora", "qlora", "full"])
@pytest.mark.parametrize("whole", [False, True], ids=["from parts", "from a LLaVA"])
def test_a_base_to_start_from_gives_equal_logits_at_step_0(recipe_values, tmp_path, tune, whole):
    values = {k: v for k, v in recipe_values.items() if k != "lora" or "lora" in tune}
    still = {"tune": tune, "learning_rate": 1e-12, "projector_learning_rate": None, "max_steps": 1, "warmup_steps": 0}
    if whole:
        still["base"] = str(assemble("embedded", "embedded", tmp_path / "base", dtype="float32"))
    mine = resolve_recipe({**values, **still})
    quantization = mine.quantization if tune == "qlora" else None
    base = load_model(mine.base, torch.float32, torch.device("cpu"), quantization)
    processing = processing_for(mine)
    expected = logits(Loaded(base, processing, None))
    torch.testing.assert_close(logits(train(mine).artifact), expected, atol=1e-4, rtol=0)


@pytest.fixture
def first(recipe_values, tmp_path):
    """A trained adapter."""
    return train(recipe(recipe_values, tune="lora", output_dir=str(tmp_path / "first"))).artifact


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora", "qlora"])
@pytest.mark.parametrize("how", ["continue", "stack", "merge-then-new"])
def test_an_adapter_to_start_from_gives_equal_logits_at_step_0(recipe_values, tmp_path, first, tune, how):
    """At a rate of nearly nothing, what comes out answers as what went in; and the run resumes bit for bit."""
    if tune == "qlora":
        first = train(recipe(recipe_values, tune="qlora", output_dir=str(tmp_path / "first-qlora"))).artifact
    before = logits(first)
    still = {
        "learning_rate": 1e-12,
        "projector_learning_rate": 1e-12,
        "max_steps": 1,
        "adapter": str(first),
        "tune": tune,
    }
    same = train(recipe(recipe_values, **still, adapter_start=how, output_dir=str(tmp_path / "still")))
    tolerance = (
        2e-3 if how != "merge-then-new" else 0.15 if tune == "qlora" else 0.06
    )  # the merged base is in bfloat16, or in 4 bits again
    assert (logits(same.artifact) - before).abs().max() < tolerance
    common = {"adapter": str(first), "adapter_start": how, "tune": tune, "max_steps": 4, "save_steps": 2}
    whole = train(recipe(recipe_values, **common, output_dir=str(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    resumed = train(recipe(recipe_values, **common, output_dir=str(tmp_path / "cut")), resume=True)
    expected, got = weights(whole.artifact), weights(resumed.artifact)
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    manifest = verify(whole.artifact)
    assert manifest.report["started_from"] == str(first)
    merged = merge(whole.artifact, tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(whole.artifact), atol=1e-3, rtol=0)


def test_what_cannot_be_started_from(recipe_values, tmp_path, first):
    bad = {
        "not an artifact": {"adapter": str(tmp_path)},
        r"lora\.r=4 lora\.lora_alpha=8": {"adapter": str(first), "lora": {"r": 8, "lora_alpha": 16}},
        "Wrong base": {"adapter": str(first), "base": str(merge(first, tmp_path / "other"))},
        "whole model, no adapter": {"adapter": str(tmp_path / "other")},
        "projector: comes with the adapter": {"adapter": str(first), "projector": str(first)},
        "says what adapter is for": {"adapter_start": "stack"},
        "LoRA starts from the adapter": {
            "adapter": str(first),
            "lora": {"init_lora_weights": "pissa", "lora_dropout": 0.0},
        },
    }
    for message, change in bad.items():
        with pytest.raises(UserError, match=message):
            train(recipe(recipe_values, tune="lora", **change, output_dir=str(tmp_path / "no")))
    alone = resolve_recipe({**{k: v for k, v in recipe_values.items() if k != "lora"}, "tune": "projector", "max_steps": 1, "output_dir": str(tmp_path / "projector")})  # fmt: skip
    projector = train(alone).artifact
    with pytest.raises(UserError, match="has no LoRA to start from, only a projector"):
        train(recipe(recipe_values, tune="lora", adapter=str(projector), output_dir=str(tmp_path / "no")))


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_vision_tower_that_trains_at_its_own_rate(recipe_values, tmp_path, how):
    """The first step's audit asserts a gradient for each of its tensors."""
    values = {"tune_vision_tower": how, "vision_tower_learning_rate": 1e-4, "max_steps": 2, "save_steps": 1}
    whole = train(recipe(recipe_values, **values, output_dir=str(tmp_path / "a")))
    checkpointed = train(recipe(recipe_values, **values, gradient_checkpointing=True, output_dir=str(tmp_path / "b")))
    assert [e["loss"] for e in whole.log] == pytest.approx([e["loss"] for e in checkpointed.log], rel=1e-5)
    part = next(p for p in whole.audit if p["part"].startswith("vision tower") and p["trainable"])
    assert part["dtype"] == "float32"
    shutil.rmtree(tmp_path / "b" / "final")
    shutil.rmtree(tmp_path / "b" / "checkpoint-2")
    resumed = train(
        recipe(recipe_values, **values, gradient_checkpointing=True, output_dir=str(tmp_path / "b")), resume=True
    )
    expected, got = weights(resumed.artifact), weights(whole.artifact)
    assert all(torch.allclose(expected[k], got[k], atol=1e-4) for k in expected)
    merged = merge(whole.artifact, tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(whole.artifact), atol=1e-3, rtol=0)


def test_the_tower_is_frozen_and_out_of_the_graph_by_default(recipe_values):
    from qllava.model.adapt import make_trainable
    from qllava.model.build import load_model

    mine = recipe(recipe_values, tune="lora")
    model = make_trainable(load_model(mine.base, torch.float32, torch.device("cpu")), mine)
    edge = model.config.vision_config.image_size
    tower = model.get_base_model().model.vision_tower
    assert not tower(torch.randn(1, 3, edge, edge), output_hidden_states=True).hidden_states[-2].requires_grad


def test_lora_plus(recipe_values):
    from qllava.model.adapt import make_trainable
    from qllava.model.build import load_model
    from qllava.train.optimizer import groups

    mine = recipe(recipe_values, tune="lora", loraplus_lr_ratio=16, weight_decay=0.1)
    model = make_trainable(load_model(mine.base, torch.float32, torch.device("cpu")), mine)
    names = {id(p): n for n, p in model.named_parameters()}
    made = groups(model, mine, {n for n in names.values() if "bias" not in n})
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in made for p in g["params"]}
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    for name, (rate, decay) in found.items():
        expected = 1e-3 if "lora_A" in name else 16e-3 if "lora_B" in name else mine.projector_learning_rate
        assert rate == pytest.approx(expected) and decay == (0.0 if "bias" in name else 0.1)
    log = train(mine).log
    assert log[0]["projector_learning_rate"] == pytest.approx(log[0]["learning_rate"])


def test_a_run_of_text_alone_with_a_tower_that_trains(recipe_values, tmp_path):
    rows = [
        {"id": str(i), "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
        for i in range(8)
    ]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    data = [{"path": str(tmp_path / "text.json")}]
    assert train(recipe(recipe_values, data=data, tune_vision_tower="full", max_steps=1)).steps == 1


def test_a_tower_that_trains_in_bfloat16(recipe_values):
    """Its unread last layer runs as well, and CLIP's norms take one dtype."""
    result = train(recipe(recipe_values, tune_vision_tower="full", dtype="bfloat16", max_steps=1))
    assert next(p for p in result.audit if p["part"] == "vision tower")["dtype"] == "float32"


def test_eva_with_more_directions_than_a_batch_has_tokens(recipe_values, monkeypatch):
    monkeypatch.setattr("qllava.model.lora.MOST_BATCHES", 8)
    with pytest.raises(UserError, match="EVA has not settled after 8 batches"):
        train(recipe(recipe_values, per_device_train_batch_size=1, lora={"init_lora_weights": "eva", "r": 128}))


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_a_rank_beyond_the_weights(recipe_values, init):
    with pytest.raises(UserError, match=r"which has only 256.*rank_pattern: \{self_attn\.[kqvo]_proj: 256\}"):
        train(recipe(recipe_values, lora={"init_lora_weights": init, "r": 300}))


def test_what_continue_would_silently_leave_out(recipe_values, tmp_path):
    patterned = train(
        recipe(recipe_values, tune="lora", lora={"rank_pattern": {"down_proj": 2}}, output_dir=str(tmp_path / "a"))
    ).artifact
    with pytest.raises(RunError, match="vision tower's LoRA"):
        train(
            recipe(
                recipe_values,
                tune="lora",
                adapter=str(patterned),
                tune_vision_tower="lora",
                output_dir=str(tmp_path / "b"),
            )
        )
    with pytest.raises(UserError, match=r"lora\.rank_pattern: .* which is kept\. Drop the field"):
        changed = {"rank_pattern": {"mlp.down_proj": 16}}
        train(recipe(recipe_values, tune="lora", adapter=str(patterned), lora=changed, output_dir=str(tmp_path / "b")))


def test_a_merged_base_is_of_the_adapter_as_it_is_now(recipe_values, tmp_path, first):
    """Lost before its first checkpoint, the adapter replaced meanwhile; and a base that has moved since."""
    values = {"tune": "lora", "adapter": str(first.parent), "adapter_start": "merge-then-new", "max_steps": 1}
    train(recipe(recipe_values, **values))
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    train(recipe(recipe_values, **values))
    for folder in ("final", "checkpoint-1"):
        shutil.rmtree(tmp_path / "run" / folder)
    shutil.rmtree(first.parent)
    train(recipe(recipe_values, tune="lora", seed=9, output_dir=str(first.parent)))
    with pytest.raises(UserError, match=r"is not made of .* as it is now"):
        train(recipe(recipe_values, **values))


def test_merge_then_new_takes_the_base_from_where_it_is(recipe_values, tmp_path):
    base = assemble("embedded", "embedded", tmp_path / "there", dtype="float32")
    adapter = train(
        recipe(recipe_values, tune="lora", base=str(base), max_steps=1, output_dir=str(tmp_path / "a"))
    ).artifact
    base.rename(tmp_path / "moved")
    values = {
        "tune": "lora",
        "adapter": str(adapter),
        "adapter_start": "merge-then-new",
        "base": str(tmp_path / "moved"),
    }
    result = train(recipe(recipe_values, **values, max_steps=1))
    assert verify(result.artifact).report["how"] == "merge-then-new"
