"""Several adapters on one base in memory: each answers as it does alone."""

from __future__ import annotations

import pytest
import torch
from conftest import image_logits as logits

from qllava.api import load, switch
from qllava.errors import UserError
from qllava.model.build import load_model


@pytest.fixture
def three(make):
    return {"plain": make(1), "wide": make(2, r=8, use_rslora=True), "dora": make(3, use_dora=True)}


def test_each_answers_as_it_does_alone_in_any_order(three, base):
    alone = {name: logits(load(folder).model) for name, folder in three.items()}
    alone["base"] = logits(load_model(base, torch.float32, torch.device("cpu")))
    board = switch(three)
    assert board.active == "plain" and board.names == ["base", "plain", "wide", "dora"]
    for name in ("dora", "base", "wide", "plain", "base", "dora", "wide"):
        loaded = board.use(name)
        torch.testing.assert_close(logits(loaded.model), alone[name], atol=1e-5, rtol=1e-5)
    assert len({float(v.sum()) for v in alone.values()}) == 4


def test_one_request_with_another_and_back(three):
    board = switch(three)
    before = logits(board.loaded.model)
    with board.using("wide") as loaded:
        assert board.active == "wide" and not torch.equal(logits(loaded.model), before)
    assert board.active == "plain" and torch.equal(logits(board.loaded.model), before)
    with pytest.raises(RuntimeError), board.using("dora"):
        raise RuntimeError
    assert board.active == "plain"


def test_one_is_added_and_removed_without_reading_the_base_again(three, make, monkeypatch):
    board = switch({"plain": three["plain"]})
    monkeypatch.setattr("qllava.artifact.switch.load_model", None)
    late = make(4)
    board.add("late", late)
    assert board.active == "plain"
    monkeypatch.undo()
    torch.testing.assert_close(logits(board.use("late").model), logits(load(late).model), atol=1e-5, rtol=1e-5)
    board.remove("late")
    assert board.active == "base" and "late" not in board.names
    torch.testing.assert_close(
        logits(board.use("plain").model), logits(load(three["plain"]).model), atol=1e-5, rtol=1e-5
    )


def test_what_cannot_be_switched_to(three, make, tmp_path):
    from qllava.api import assemble

    board = switch({"plain": three["plain"]})
    other = make(5, str(assemble("embedded", "embedded", tmp_path / "other", dtype="float16")))
    for message, call in {
        "No adapter 'plane' is in memory. Did you mean 'plain'": lambda: board.use("plane"),
        "is on another base": lambda: board.add("other", other),
        "'plain' is taken": lambda: board.add("plain", three["wide"]),
        "no plain name": lambda: board.add("a.b", three["wide"]),
        "is not an artifact": lambda: board.add("none", tmp_path),
        "base cannot be removed": lambda: board.remove("base"),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
    assert board.names == ["base", "plain"] and board.active == "plain"


def test_a_conversation_switches(three):
    from qllava.api import chat

    talk = chat(three["plain"], max_new_tokens=3, adapters={"wide": three["wide"]})
    talk.ask("Hi")
    talk.use("wide")
    talk.ask("And now?")
    assert talk.board.active == "wide" and len(talk.turns) == 4
    alone = chat(three["plain"], max_new_tokens=3)
    with pytest.raises(UserError, match="--adapter NAME=PATH"):
        alone.use("wide")


def test_a_name_given_again_is_another_adapter(three, make):
    """PEFT keeps the settings of a name; and an ordinary name may be a module's."""
    board = switch({"q": three["plain"]})
    board.remove("q")
    other = make(6, lora_alpha=32)
    board.add("q", other)
    torch.testing.assert_close(logits(board.use("q").model), logits(load(other).model), atol=1e-5, rtol=1e-5)
    for name in ("v", "mlp", "model", "layers"):
        board.add(name, three["wide"])
    torch.testing.assert_close(logits(board.use("mlp").model), logits(load(three["wide"]).model), atol=1e-5, rtol=1e-5)
