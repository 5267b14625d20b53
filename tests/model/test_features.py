"""Features: the bits of the whole tower, kept once for each tower, layer, dtype and image, and projected as they would be."""

from __future__ import annotations

import collections
import copy
import dataclasses

import pytest
import torch

from qllava.data import cache
from qllava.data.cache import image_key
from qllava.data.collate import collate
from qllava.data.dataset import training_set
from qllava.data.rows import rows_of
from qllava.errors import RunError, UserError
from qllava.model import feature_cache
from qllava.model.build import load_model
from qllava.model.feature_cache import keep_features, open_features, tower_digest
from qllava.model.features import install_features, layers_read, tower_features
from qllava.model.forward import install_loss
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts, Source

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept")


@pytest.fixture(scope="module")
def base():
    return load_model(EMBEDDED, torch.float32, CPU)


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


@pytest.fixture
def processing():
    return load_processing(EMBEDDED, "vicuna_v1", "pad")


@pytest.fixture
def table(scenes):
    return rows_of(Source(path=str(scenes), image_root="images"))


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [-2, -1, 3, 0, -7, [-2], [1, -2, 4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_they_are_the_bits_of_the_whole_tower(model, layers, strategy, dtype):
    model.config.vision_feature_layer, model.config.vision_feature_select_strategy = layers, strategy
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        states = model.model.vision_tower(pixels(), output_hidden_states=True).hidden_states
        got = tower_features(model, pixels())
    every = [layers] if isinstance(layers, int) else layers
    expected = torch.cat([states[n][:, 1:] if strategy == "default" else states[n] for n in every], dim=-1)
    assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_layers_that_are_not_read_do_not_run(model):
    tower = model.model.vision_tower
    calls = [count_calls(layer) for layer in tower.encoder.layers]
    tower_features(model, pixels())
    assert layers_read(model.config) == [5] and [len(c) for c in calls] == [1, 1, 1, 1, 1, 0]


def test_another_kind_of_tower_runs_whole(model):
    class Other(torch.nn.Module):
        def forward(self, pixel_values, **_):
            return type("Out", (), {"hidden_states": [pixel_values.flatten(2) + n for n in range(7)]})

    model.model.vision_tower = Other()
    assert torch.equal(tower_features(model, pixels()), pixels().flatten(2)[:, 1:] + 5)


def test_an_installed_model_says_the_same(model):
    ids = torch.tensor([[1, *[model.config.image_token_index] * 64, 40, 50]])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels(1)).logits
        install_features(model)
        got = model(input_ids=ids, pixel_values=pixels(1)).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        given = tower_features(model, pixels(1)).clone()
        assert torch.equal(model(input_ids=ids, pixel_values=given).logits, got)
        assert model.get_image_features(pixels(2)).pooler_output[1].shape == (64, model.config.text_config.hidden_size)


def test_kept_features_are_projected_to_the_same_bits_in_bfloat16():
    model = load_model(EMBEDDED, torch.bfloat16, CPU)
    model.model.multi_modal_projector.float()
    install_features(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        given = tower_features(model, pixels()).bfloat16().clone()
        expected, got = (model.model.get_image_features(images).pooler_output for images in (pixels(), given))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_frozen_tower_has_no_graph_and_a_trained_one_has(model):
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: seen.append(given[0].requires_grad))
    install_features(model)
    model.model.get_image_features(pixels(1))
    model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.requires_grad_(True)
    model.model.get_image_features(pixels(1))
    assert seen == [False, True]


def test_gradients_of_a_trained_tower_are_those_of_the_whole_one_with_checkpointing_too(model):
    found = []
    for way in ("whole", "ours", "checkpointed"):
        one = copy.deepcopy(model).train()
        one.model.vision_tower.requires_grad_(True)
        if way == "checkpointed":
            one.model.vision_tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if way != "whole":
            install_features(one)
        calls = count_calls(one.model.vision_tower.encoder.layers[2].mlp)
        torch.stack(
            list(one.model.get_image_features(pixels(), return_dict=True).pooler_output)
        ).square().sum().backward()
        assert len(calls) == (2 if way == "checkpointed" else 1)
        found.append({n: p.grad for n, p in one.model.vision_tower.named_parameters() if p.grad is not None})
    whole, *others = found
    assert len(whole) == 3 + 2 + 5 * 16  # embeddings, norm, and the layers that are read
    for other in others:
        assert other.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-6)


def test_rows_of_features_give_the_loss_and_gradient_of_pixels(model, processing, table):
    kept = keep_features(model, processing, [table, None], torch.float32, CPU)
    install_loss(model)
    model.model.multi_modal_projector.requires_grad_(True)
    results = []
    for way in (processing, kept):
        rows = training_set(table, way, 2048)
        batch = collate([rows[i] for i in (0, 1, 14, 5)], way)
        calls = count_calls(model.model.vision_tower.embeddings)
        loss = model(**batch).loss
        loss.backward()
        gradients = [p.grad.clone() for p in model.model.multi_modal_projector.parameters()]
        model.zero_grad()
        results.append((batch, len(calls), loss, gradients))
    (with_pixels, ran, expected, before), (with_features, ran_again, got, after) = results
    assert "pixel_values" in with_pixels and "pixel_values" not in with_features
    assert with_features["image_features"].shape == (3, 64, 128) and (ran, ran_again) == (1, 0)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


def test_only_what_is_missing_is_made(model, processing, table):
    calls = count_calls(model.model.vision_tower.embeddings)
    twice = table.select([*range(len(table)), *range(len(table))])
    kept = keep_features(model, processing, [twice, table], torch.float32, CPU)
    assert len(calls) == 1  # 14 images at once
    files = sorted(f for f in kept.cache.store.folder.rglob("*") if f.is_file())
    assert len(files) == 14 and all(f.stat().st_size == 64 * 128 * 4 + 4 for f in files)
    keep_features(model, processing, [table], torch.float32, CPU)
    assert len(calls) == 1
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[:-9])
    keep_features(model, processing, [table], torch.float32, CPU)
    assert len(calls) == 2
    again = kept.cache.store.read(files[3].name)
    before = torch.frombuffer(bytearray(whole), dtype=torch.float32, count=64 * 128).reshape(64, 128)
    torch.testing.assert_close(again, before, rtol=1e-5, atol=1e-5)


def test_each_process_makes_its_share(model, processing, table, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, there in (("1", 7), ("0", 14)):
        monkeypatch.setenv("RANK", rank)
        kept = keep_features(model, processing, [table], torch.float32, CPU)
        assert sum(f.is_file() for f in kept.cache.store.folder.rglob("*")) == there


def test_another_tower_layer_dtype_or_preprocessing_has_another_folder(model, processing):
    def folder(**changes):
        way = dataclasses.replace(processing, **changes.pop("way", {}))
        return open_features(
            model, way, changes.get("dtype", torch.float32), torch.device(changes.get("device", "cpu"))
        ).store.folder

    first = folder()
    others = [folder(dtype=torch.bfloat16), folder(device="meta"), folder(way={"image_aspect_ratio": "square"})]
    others += [folder(way={"exif": False})]
    model.config.vision_feature_layer = -3
    others.append(folder())
    model.config.vision_feature_layer = -2
    assert folder() == first
    model.model.vision_tower.encoder.layers[5].mlp.fc1.weight.data[0, 0] += 1  # is not read
    model.model.multi_modal_projector.linear_1.weight.data[0, 0] += 1
    assert folder() == first
    model.model.vision_tower.encoder.layers[4].mlp.fc1.weight.data[0, 0] += 1
    others.append(folder())
    model.model.vision_tower.bfloat16()
    others.append(folder())
    assert len({first, *others}) == 1 + len(others)
    assert len(tower_digest(model)) == 32


def test_a_damaged_or_missing_file_says_how_to_go_on(model, processing, table, scenes):
    kept = keep_features(model, processing, [table], torch.float32, CPU).cache
    root = scenes.parent / "images"
    file = kept.store.file(image_key("0.png", root))
    file.write_bytes(bytes(file.stat().st_size))
    for _ in range(2):
        with pytest.raises(RunError, match=r"0\.png is missing or damaged .*--resume"):
            kept.load("0.png", root)
        assert not file.exists()


def test_a_disk_without_room_is_refused_before_anything_is_made(model, processing, table, monkeypatch):
    calls = count_calls(model.model.vision_tower.embeddings)
    disk = collections.namedtuple("disk", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: disk(0, 0, 100_000))
    with pytest.raises(UserError, match=r"features of 14 images need 0\.5 MB .*image_cache: crops or none"):
        keep_features(model, processing, [table], torch.float32, CPU)
    assert not calls


def test_a_disk_that_fills_up_ends_the_pass(model, processing, table, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "replace", full)
    with pytest.raises(RunError, match=r"No space left on device\. Make room"):
        keep_features(model, processing, [table], torch.float32, CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(model, processing, table, scenes, workers):
    (scenes.parent / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^scenes\.json, sample 6 \(id 's5'\): .*5\.png is not an image"):
        keep_features(model, processing, [table], torch.float32, CPU, workers)


def test_the_pass_draws_nothing_and_leaves_the_mode(model, processing, table, monkeypatch):
    monkeypatch.setattr(feature_cache, "AT_ONCE", 4)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    model.train()
    keep_features(model, processing, [table], torch.bfloat16, CPU)
    assert torch.equal(torch.random.get_rng_state(), state) and model.model.vision_tower.training
