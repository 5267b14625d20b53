"""What is said of a run: run card, model card, and the way to the hub."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from qllava.api import load, train, verify
from qllava.errors import RunError, UserError
from qllava.recipe import resolve_recipe


@pytest.fixture
def values(recipe_values):
    return {**recipe_values, "tune": "lora", "max_steps": 2, "learning_rate": 1e-3}


def test_the_run_card_holds_what_was_measured(values, tmp_path):
    train(resolve_recipe({**values, "eval_share": 0.2, "eval_steps": 1}))
    card = json.loads((tmp_path / "run" / "run.json").read_text())
    assert card["steps"] == 2 and card["processes"] == 1 and card["device"]
    assert card["recipe"]["lora"]["r"] == 4 and card["versions"]["torch"]
    assert len(card["data_digest"]) == 20 and sum(card["samples"].values()) == 16 and card["dropped"] == []
    assert {p["part"] for p in card["audit"] if p["trainable"]} == {"LoRA", "projector"}
    for measured in ("samples_per_second", "tokens_per_second", "supervised_tokens_per_second", "peak_memory_mib"):
        assert card[measured] > 0
    assert 0 <= card["data_wait_share"] <= 1 and card["eval_loss"] > 0 and card["energy_wh"] is None
    assert card["tokens_per_second"] > card["supervised_tokens_per_second"]
    assert [entry["step"] for entry in card["log"] if "loss" in entry] == [1, 2]
    text = (tmp_path / "run" / "run.md").read_text()
    assert "| LoRA |" in text and card["data_digest"] in text and "torch " in text


def test_the_model_card_is_in_the_hubs_format_and_in_the_manifest(values):
    from huggingface_hub import ModelCard

    artifact = train(resolve_recipe(values)).artifact
    assert "README.md" in verify(artifact).files
    card = ModelCard.load(artifact / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-text-to-text"
    assert {"llava", "qllava", "lora"} <= set(card.data.tags) and card.data.base_model is None  # no hub id
    assert "rank 4" in card.text and "fingerprint" in card.text and "merge" in card.text
    assert load(artifact).model is not None


def test_a_base_on_the_hub_is_named(values, tmp_path):
    from huggingface_hub import ModelCard

    from qllava.artifact.card import model_card
    from qllava.artifact.manifest import read_manifest

    artifact = train(resolve_recipe(values)).artifact
    manifest = read_manifest(artifact)
    for source, expected in (
        ("llava-hf/llava-1.5-7b-hf", ["llava-hf/llava-1.5-7b-hf"]),
        ({"llm": "lmsys/vicuna-7b-v1.5", "vision_tower": "/data/clip"}, ["lmsys/vicuna-7b-v1.5"]),
    ):
        base = manifest.base.model_copy(update={"source": source})
        model_card(manifest.model_copy(update={"base": base}), tmp_path)
        found = ModelCard.load(tmp_path / "README.md").data.base_model
        assert ([found] if isinstance(found, str) else found) == expected


class Hub:
    """In place of `HfApi`."""

    sent: ClassVar[list] = []
    fails = False

    def whoami(self):
        return {"name": "me"}

    def create_repo(self, repo_id, **options):
        self.sent.append(("create", repo_id, options))

    def upload_folder(self, repo_id, folder_path, **options):
        if self.fails:
            raise ConnectionError("no network")
        self.sent.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))
        return f"somewhere/{repo_id}"


def test_the_artifact_is_sent(values, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "sent", [])
    train(resolve_recipe({**values, "push_to_hub": "me/mine"}))
    (_, repo, options), (_, _, files) = Hub.sent
    assert repo == "me/mine" and options == {"private": True, "exist_ok": True}
    assert {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "projector.safetensors",
        "qllava.json",
    } <= set(files)


def test_a_hub_that_fails_costs_nothing(values, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "fails", True)
    with pytest.raises(RunError, match=r"has ended well, but .*hf upload me/mine"):
        train(resolve_recipe({**values, "push_to_hub": "me/mine"}))
    verify(tmp_path / "run" / "final")


def test_the_hub_is_asked_before_the_run(values, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"push_to_hub: .*hf auth login"):
        train(resolve_recipe({**values, "push_to_hub": "me/mine"}))
    with pytest.raises(UserError, match="push_to_hub: Repo id"):
        train(resolve_recipe({**values, "push_to_hub": "a/b/c"}))
    assert not (tmp_path / "run" / "final").exists()


def test_a_trial_of_saving_sees_a_projector_that_would_be_lost(values, monkeypatch, tmp_path):
    monkeypatch.setattr("qllava.artifact.adapter.save_projector", lambda model, folder: None)
    with pytest.raises(RunError, match="parameters train and only"):
        train(resolve_recipe(values))
    assert [p.name for p in (tmp_path / "run").glob(".*")] == [".lock"]
