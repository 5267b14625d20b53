"""The conversation: streamed pieces make the answer, and the terminal's commands do what they say."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from qllava.artifact.load import Loaded
from qllava.errors import UserError
from qllava.model.build import load_model
from qllava.model.inputs import load_processing
from qllava.recipe.schema import Parts
from qllava.serve.chat import Chat, talk

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


@pytest.fixture(scope="module")
def loaded():
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    return Loaded(model, load_processing(EMBEDDED, "vicuna_v1", "pad"), None)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red one.png")
    return tmp_path / "red one.png"


def test_streamed_pieces_make_the_answer(loaded, picture):
    chat, pieces = Chat(loaded, max_new_tokens=8), []
    chat.show(picture)
    answer = chat.ask("What is it?", pieces.append)
    assert answer and "".join(pieces).strip() == answer
    assert [t.images for t in chat.turns] == [1, 0]
    chat.ask("And now?")
    assert [t.images for t in chat.turns] == [1, 0, 0, 0]


def test_commands_of_the_terminal(loaded, picture, capsys):
    chat = Chat(loaded, max_new_tokens=4)
    lines = iter(
        ["", f"/image {picture}", "What is it?", "/image gone.png", "/dance", "/new", "Hi", "/quit", "never read"]
    )
    said = []
    talk(chat, read=lambda prompt: next(lines), say=said.append)
    err = capsys.readouterr().err
    assert "No image at gone.png" in err and "No command /dance" in err
    assert "".join(said).count("\n") >= 2
    assert chat.turns[0].text == "Hi" and next(lines) == "never read"


def test_end_of_input_ends_it(loaded):
    def read(prompt):
        raise EOFError

    talk(Chat(loaded), read=read)


def test_a_missing_image_is_met_before_the_model(tmp_path):
    from qllava.api import chat

    with pytest.raises(UserError, match="No image at"):
        chat(tmp_path / "no model either", image=tmp_path / "gone.png")
