"""A conversation with a model about an image.

In: a loaded model, texts, images. Out: the answer's text, piece by piece as it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from .. import console
from ..artifact.load import Loaded, load
from ..artifact.switch import Switch
from ..data.image import open_image
from ..data.sample import Turn, is_text
from ..errors import UserError
from ..evaluate.generate import decode, generate

HELP = (
    "/image FILE takes an image and starts anew, /new starts anew, /use NAME switches adapters, /quit (or Ctrl-D) ends."
)


class _Streamer(TextStreamer):
    """Hands each piece of text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._say(text)


@dataclass
class Chat:
    """One conversation. `ask` adds a question and its answer to it."""

    loaded: Loaded
    max_new_tokens: int = 512
    turns: list[Turn] = field(default_factory=list)
    images: list = field(default_factory=list)
    board: Switch | None = None  # where several adapters are in memory

    def use(self, name: str) -> None:
        """Lets another adapter answer from here on; the conversation so far stays.

        Raises:
            UserError: there is none of that name.
        """
        if self.board is None:
            raise UserError("One model is in memory. Name adapters with --adapter NAME=PATH to switch between them.")
        self.loaded = self.board.use(name)

    def show(self, image: str | Path) -> None:
        """Starts anew with this image.

        Raises:
            UserError: it is missing or is not an image.
        """
        opened = open_image(Path(image), self.loaded.processing.exif)
        self.turns, self.images = [], [opened]

    def ask(self, text: str, say: Callable[[str], None] = lambda piece: None) -> str:
        """The model's answer; `say` gets it piece by piece while it is made."""
        if not is_text(text):
            raise UserError("The text is not valid UTF-8.")
        fresh = len(self.images) if not self.turns else 0
        turns = [*self.turns, Turn("user", text, fresh)]
        prompt = self.loaded.processing.prompt(turns, self.images)
        streamer = _Streamer(self.loaded.processing.encoder.tokenizer, say)
        ids = generate(self.loaded, [prompt], self.max_new_tokens, streamer=streamer)[0]
        answer = decode(self.loaded, ids)
        self.turns = [*turns, Turn("assistant", answer)]
        return answer


def open_chat(
    source: str | Path, image: str | Path | None = None, base: str | None = None, max_new_tokens: int = 512,
    adapters: Mapping[str, str | Path] | None = None,
) -> Chat:  # fmt: skip
    """A conversation with the model at `source`, about `image` if one is given.

    Args:
        adapters: more of the same base, by name, to switch to (`Chat.use`); `source` is then called `first`.

    Raises:
        UserError: the model or the image is missing or wrong.
    """
    if image is not None:
        open_image(Path(image))  # before a model is read
    if adapters and "first" in adapters:
        raise UserError("The model named first is called `first` already; give the other another name.")
    board = Switch({"first": source, **adapters}, base) if adapters else None
    chat = Chat(load(source, base) if board is None else board.loaded, max_new_tokens, board=board)
    if image is not None:
        chat.show(image)
    return chat


def talk(chat: Chat, read: Callable[[str], str] = input, say: Callable[[str], None] | None = None) -> None:
    """The conversation in a terminal, until the user ends it."""
    say = say or (lambda piece: print(piece, end="", flush=True))
    console.note(HELP)
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            match line.split(maxsplit=1):
                case []:
                    continue
                case ["/quit"]:
                    return
                case ["/new"]:
                    chat.turns = []
                case ["/image", file]:
                    chat.show(file)
                case ["/use", name]:
                    chat.use(name)
                case [word, *_] if word.startswith("/"):
                    console.note(f"No command {word}. {HELP}")
                case _:
                    chat.ask(line, say)
                    say("\n")
        except UserError as error:
            console.note(str(error))
        except KeyboardInterrupt:
            say("\n")
