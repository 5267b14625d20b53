"""The errors that a user can mend: each says what is wrong, why, and what to do. The door prints them without a traceback.

`UserError` ends a command with exit code 2 (the command, the recipe or the input is wrong), `RunError` with 1 (the thing
that was run or checked failed).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: exit code 2."""


class RunError(Exception):
    """A run or a check that failed: exit code 1."""


class PeerError(RunError):
    """Another process of the launch failed, and this one with it: its message and exit code.

    `loud`: whether this process is the one that tells it.
    """

    def __init__(self, message: str, code: int, loud: bool) -> None:
        super().__init__(message)
        self.code, self.loud = code, loud


def first_on_host() -> bool:
    """Whether this is the process that speaks for its host's (the only one without a launcher)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def refused(error: OSError) -> str:
    """What the system refused, in a sentence."""
    return f"The system refused{f' {error.filename}' if error.filename else ''}: {error.strerror or error}."


def plain(message: str) -> str:
    """The message of an error that a worker of the data loader raised, without the traceback that torch wraps it in."""
    if "Original Traceback" not in message:
        return message
    return re.split(r"(?m)^qllava\.errors\.\w+: ", message, maxsplit=1)[-1].strip()


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known name is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
