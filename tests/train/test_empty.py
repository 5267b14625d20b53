"""FSDP2 and ZeRO-3: the first process alone reads the base; the others begin with its outline, whatever the run starts from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from launching import ON_CPU, command_of, environment_of, values_of
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from qllava.api import assemble, train
from qllava.errors import RunError
from qllava.model.adapt import make_trainable
from qllava.model.base import EMBEDDED
from qllava.model.build import load_model
from qllava.model.empty import empty_like, outline
from qllava.recipe import resolve_recipe

CPU = torch.device("cpu")
STARTS = {
    "pissa": {"init_lora_weights": "pissa"}, "olora": {"init_lora_weights": "olora"}, "eva": {"init_lora_weights": "eva"},
    "dora": {"use_dora": True}, "orthogonal": {"init_lora_weights": "orthogonal"},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 6}, "use_rslora": True},
}  # fmt: skip
CELLS = [(start, "fsdp2") for start in STARTS] + [("pissa", "zero3"), ("eva", "zero3"), ("dora", "zero3")]


@pytest.fixture
def base(tmp_path):
    return str(assemble(str(EMBEDDED / "vision_tower"), str(EMBEDDED / "llm"), tmp_path / "base", dtype="float32"))


def without_weights(base):
    bare = f"{base}-bare"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("*.safetensors*", "qllava.json"), dirs_exist_ok=True)
    return bare


def two(tmp_path, name, engine, values, *more, peaks=""):
    """A run of two processes; the second one's base is a folder without weights."""
    port, processes = command_of(engine)[-2 if engine == "fsdp2" else -3], []
    for rank, base in enumerate((values["base"], without_weights(values["base"]))):
        recipe = tmp_path / f"{name}-{rank}.yaml"
        recipe.write_text(yaml.safe_dump({**values, "base": base, "output_dir": str(tmp_path / name)}))
        environment = environment_of(engine) | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PEAKS": str(peaks),
        }  # fmt: skip
        with (tmp_path / f"{name}-{rank}.log").open("w") as log:
            command = [sys.executable, ON_CPU, "train", str(recipe), *more]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        ended = [p.wait(300) for p in processes]
    finally:
        for process in processes:
            process.kill()
    said = "".join((tmp_path / f"{name}-{rank}.log").read_text()[-3000:] for rank in (0, 1))
    assert ended == [0, 0], said
    return tmp_path / name


def losses(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [e["loss"] for e in state["log_history"] if "loss" in e]


def close(one, other, tolerance):
    for file in sorted(one.glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(other / file.name)
        assert mine.keys() == theirs.keys()
        assert max((mine[k] - theirs[k]).abs().max() for k in mine) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("start", "engine"), CELLS, ids=["-".join(c) for c in CELLS])
def test_every_start_of_lora_is_that_of_one_process(recipe_values, tmp_path, base, start, engine):
    lora = {**recipe_values["lora"], **STARTS[start]}
    more = {"base": base, "lora": lora, "max_steps": 2, "save_steps": 2, "global_batch_size": 16}
    values = values_of(recipe_values, "lora", **more, per_device_train_batch_size=8)
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    out = two(tmp_path, "two", engine, values)
    assert losses(out / "checkpoint-2") == pytest.approx([e["loss"] for e in one.log], rel=2e-4)
    close(one.artifact, out / "final", 2 * 2.1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("tune", "engine"), [("lora", "fsdp2"), ("full", "fsdp2"), ("lora", "zero3")])
def test_it_goes_on_and_ends(recipe_values, tmp_path, base, tune, engine):
    """From a checkpoint with PiSSA's companion in it, or with the whole model; and from the last one, for its artifact alone."""
    values = values_of(recipe_values, tune, base=base, max_steps=4, save_steps=2)
    if tune == "lora":
        values["lora"] = {**values["lora"], "init_lora_weights": "pissa"}
    whole = two(tmp_path, "whole", engine, values)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    two(tmp_path, "cut", engine, values, "--resume")
    close(whole / "final", cut / "final", 0)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-4")
    two(tmp_path, "cut", engine, values, "--resume")
    assert losses(cut / "checkpoint-4") == pytest.approx(losses(whole / "checkpoint-4"), rel=1e-5)
    close(whole / "final", cut / "final", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "engine"), [("continue", "fsdp2"), ("stack", "fsdp2"), ("stack", "zero3")])
def test_it_starts_from_an_adapter(recipe_values, tmp_path, base, how, engine):
    first = values_of(recipe_values, "lora", base=base, max_steps=2, output_dir=str(tmp_path / "first"))
    adapter = str(train(resolve_recipe(first)).artifact)
    values = first | {"adapter": adapter, "adapter_start": how, "projector": None}
    one = train(resolve_recipe({**values, "output_dir": str(tmp_path / "one")}))
    out = two(tmp_path, "two", engine, values)
    assert losses(out / "checkpoint-2") == pytest.approx([e["loss"] for e in one.log], rel=2e-4)
    close(one.artifact, out / "final", 2 * 2.1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tune", "engine"), [("lora", "fsdp2"), ("lora", "zero3"), ("full", "fsdp2"), ("full", "zero3")]
)
def test_the_others_hold_no_more_than_their_part(recipe_values, tmp_path, tune, engine):
    """Of a base of 480 MiB: nothing of it while the first process reads it, then their half, and no more when it is saved."""
    config = AutoConfig.from_pretrained(EMBEDDED / "llm")
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8, "num_attention_heads": 8}
    config.update({**sizes, "num_key_value_heads": 8, "head_dim": 128})
    llm = shutil.copytree(EMBEDDED / "llm", tmp_path / "llm", ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_config(config)
    size = sum(p.numel() for p in model.parameters()) >> 18  # MiB
    model.save_pretrained(llm)
    base = assemble(
        str(EMBEDDED / "vision_tower"), str(llm), tmp_path / "base"
    )  # in bfloat16, so that no file is mapped
    two(
        tmp_path,
        "out",
        engine,
        values_of(recipe_values, tune, base=str(base), max_steps=1, save_steps=1),
        peaks=tmp_path,
    )

    def told(name):
        return [list(map(int, (tmp_path / f"{name}-{rank}").read_text().split())) for rank in (0, 1)]

    (first, *_), (most, now, cut) = told("cut")
    assert first - most >= 0.9 * size
    assert cut - now <= 0.9 * size  # with what the collectives take
    if tune == "full":
        (_, before, peak), (_, now, other) = told("gathered")
        assert peak - before >= 0.9 * size and other - now <= 0.25 * size


def test_the_outline_of_a_model_is_the_model_but_for_its_weights(recipe_values, base):
    for tune in ("projector", "full", "lora"):
        for dtype in (torch.float32, torch.bfloat16):
            recipe = resolve_recipe({**values_of(recipe_values, tune), "base": base})
            model = make_trainable(load_model(base, dtype, CPU), recipe)
            bare = recipe.model_copy(update={"base": without_weights(base)})
            empty = empty_like(outline(model), bare, dtype)
            assert all(p.untyped_storage().nbytes() == p.itemsize for p in empty.parameters())
            assert len({p.data_ptr() for p in empty.parameters()}) == len(list(empty.parameters()))
            assert outline(empty).parameters == outline(model).parameters
            found = dict(empty.named_buffers())
            assert found.keys() == dict(model.named_buffers()).keys()
            assert all(torch.equal(found[n], b) and found[n].dtype == b.dtype for n, b in model.named_buffers())
            assert str(empty) == str(model)


def test_another_configuration_is_refused(recipe_values, base):
    recipe = resolve_recipe({**values_of(recipe_values, "projector"), "base": base})
    told = outline(make_trainable(load_model(base, torch.float32, CPU), recipe))
    with pytest.raises(RunError, match="has to be the same on every machine"):
        empty_like(told, recipe, torch.bfloat16)
