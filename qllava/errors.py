"""The errors that a user can mend: each says what is wrong, why, and what to do. The door prints them without a traceback.

`UserError` ends a command with exit code 2 (the command, the recipe or the input is wrong), `RunError` with 1 (the thing
that was run or checked failed).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: exit code 2."""


class RunError(Exception):
    """A run or a check that failed: exit code 1."""


def plain(message: str) -> str:
    """The message of an error that a worker of the data loader raised, without the traceback that torch wraps it in."""
    if "Original Traceback" not in message:
        return message
    return re.split(r"(?m)^qllava\.errors\.\w+: ", message, maxsplit=1)[-1].strip()


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known name is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
