"""Judges: language models behind an OpenAI-compatible endpoint that review answers.

In: an endpoint, and prompts. Out: reviews, in a file of one JSON line each that says which model wrote it, where and when. What
is in the file is not asked again. The key comes from an environment variable; it goes into the request's Authorization header
and nowhere else.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RunError, UserError

DEFAULT_KEY = "OPENAI_API_KEY"
LONGEST_PAUSE = 60.0  # seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Reply(NamedTuple):
    text: str
    model: str  # as the server names it, such as a dated version of the one asked for


@dataclass(frozen=True)
class Judge:
    """A model behind `{url}/chat/completions`. Temperature and length are by default those of LLaVA-Bench's own script."""

    url: str
    model: str
    key_env: str = DEFAULT_KEY
    """Environment variable with the key. The default one may be unset, as local servers take none."""
    temperature: float = 0.2
    max_tokens: int = 1024
    retries: int = 5
    """How often a request is sent again after 429, 5xx or a lost connection."""
    pause: float = 1.0
    """Seconds before the first of them, doubled each time, unless the server names them (Retry-After)."""
    timeout: float = 300.0

    @property
    def host(self) -> str:
        """The endpoint's host and port.

        Raises:
            UserError: the address is none of http or https, or holds a user or a password.
        """
        try:
            parts = urllib.parse.urlsplit(self.url)
            port = f":{parts.port}" if parts.port else ""
            if not (self.url.isascii() and self.url.isprintable() and " " not in self.url):
                raise ValueError
            (parts.hostname or "").encode("idna")
        except ValueError:
            parts, port = urllib.parse.SplitResult("", "", "", "", ""), ""
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise UserError(
                "The judge's URL must begin with http:// or https://, hold no password and end before /chat/completions, "
                "such as https://api.openai.com/v1 or http://localhost:8000/v1."
            )
        return parts.hostname + port

    def ask(self, system: str, user: str) -> str:
        """What the model answers; `reply` tells its name too."""
        return self.reply(system, user).text

    def reply(self, system: str, user: str) -> Reply:
        """One answer.

        Args:
            system: the system message; none is sent where it is empty.

        Raises:
            UserError: the endpoint cannot be reached, refuses the key or the model, or does not speak this protocol.
            RunError: it is still overloaded or failing after the last retry.
        """
        if not self.model.strip():
            raise UserError("Name the judge's model.")
        messages = [{"role": "system", "content": system}] if system else []
        body = {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": user}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return self._read(self._send(json.dumps(body).encode()))

    def _key(self) -> str:
        if self.key_env not in os.environ and self.key_env != DEFAULT_KEY:
            raise UserError(f"There is no environment variable {self.key_env} to take the judge's key from.")
        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{self.key_env} holds characters that no key has.")
        return key

    def _send(self, body: bytes) -> bytes:
        host, key = self.host, self._key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url.rstrip("/") + "/chat/completions", body, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        for tried in range(self.retries + 1):
            pause = min(self.pause * 2**tried, LONGEST_PAUSE)
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                said = _said(error, key)
                if error.code != 429 and error.code < 500:
                    raise UserError(self._refusal(host, error.code, said)) from None
                if tried == self.retries:
                    raise RunError(
                        f"The judge at {host} answered {error.code} {tried + 1} times{said}. "
                        "Try again later: reviews that it has written are kept."
                    ) from None
                asked = error.headers.get("Retry-After", "")
                pause = min(float(asked), LONGEST_PAUSE) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", asked) else pause
            except (OSError, http.client.HTTPException) as error:
                if tried == self.retries:
                    reason = getattr(error, "reason", error) or type(error).__name__
                    raise UserError(
                        f"The judge at {host} cannot be reached: {reason}. Is its server running, and is the URL right?"
                    ) from None
            time.sleep(pause)
        raise AssertionError

    def _refusal(self, host: str, code: int, said: str) -> str:
        remedy = {
            401: f"Put a valid key into the environment variable {self.key_env}.",
            403: f"The key in {self.key_env} may not use {self.model!r}.",
            404: f"Does it have the model {self.model!r}, and does the URL end before /chat/completions, mostly in /v1?",
        }.get(code, "The address may be another's." if code < 400 else "It does not take this request.")
        return f"The judge at {host} answered {code}{said}. {remedy}"

    def _read(self, answer: bytes) -> Reply:
        try:
            found = json.loads(answer)
            text = found["choices"][0]["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            start = answer[:80].decode(errors="replace")
            raise UserError(
                f"The judge at {self.host} answered no chat completion, but {start!r}. "
                "Its URL is what stands before /chat/completions, and mostly ends in /v1."
            ) from None
        return Reply(text or "", str(found.get("model") or ""))


def _said(error: urllib.error.HTTPError, key: str) -> str:
    """`: ` and the message in an error's body, where it has one, without the key."""
    try:
        body = error.read(10_000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        found = json.loads(body)["error"]
        body = found["message"] if isinstance(found, dict) else found
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    text = " ".join(str(body).split()).removesuffix(".")
    return f": {(text.replace(key, '…') if key else text)[:300]}" if text else ""


class Asked(NamedTuple):
    id: str | int
    system: str
    user: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()


@dataclass(frozen=True)
class Review:
    """One line of a review file."""

    question_id: str | int
    content: str
    judge: str  # the model that was asked for
    model: str  # the one that the server says answered
    host: str
    date: str  # in UTC
    prompt_sha256: str  # of what was asked, the answer under review included


def review(judge: Judge, file: Path, asked: Sequence[Asked]) -> list[Review]:
    """A review for each prompt, in their order: out of the file, or asked for and appended to it; an empty one is asked for anew.

    Raises:
        UserError: the file holds reviews by another model, or of other answers; or what `Judge.reply` raises.
    """
    kept = _kept(file, judge)
    for one in asked:
        if str(one.id) in kept and kept[str(one.id)].prompt_sha256 != one.digest:
            raise UserError(
                f"{file} has a review of another answer to question {one.id!r}, or under another prompt. "
                "Name another folder for these with --out."
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        for one in asked:
            if str(one.id) in kept and kept[str(one.id)].content.strip():
                continue
            reply = judge.reply(one.system, one.user)
            today = datetime.now(UTC).date().isoformat()
            made = Review(one.id, reply.text, judge.model, reply.model, judge.host, today, one.digest)
            out.write(json.dumps(asdict(made)) + "\n")
            out.flush()
            kept[str(one.id)] = made
    return [kept[str(one.id)] for one in asked]


def _kept(file: Path, judge: Judge) -> dict[str, Review]:
    """The file's reviews by question. A last line without its end, as a killed run leaves it, is cut off."""
    if not file.exists():
        return {}
    try:
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(file, whole)
        lines = data[:whole].decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read reviews from {file}: {error}.") from None
    kept: dict[str, Review] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            one = Review(**{f.name: found[f.name] for f in fields(Review)})
            if not all(isinstance(getattr(one, f.name), str) for f in fields(Review) if f.name != "question_id"):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(f"{file}, line {number} is no review. Mend or delete that line.") from None
        if one.judge != judge.model:
            raise UserError(
                f"{file} holds reviews by {one.judge!r}, and the judge is {judge.model!r} now. "
                "Scores by two judges do not compare: name another folder with --out."
            )
        kept[str(one.question_id)] = one  # the last one, after those that nothing could be made of
    return kept


def notes(reviews: Sequence[Review], failures: int) -> tuple[str, ...]:
    """Who judged, where and when; and how many reviews could not be parsed."""
    made = Counter((r.judge, r.model, r.host) for r in reviews)
    dates = sorted({r.date for r in reviews})
    who = [
        f"Judge: {judge}{f' (the server says {model})' if model not in ('', judge) else ''} at {host}: {count:,} reviews"
        for (judge, model, host), count in made.items()
    ]
    when = f"Judged on {' to '.join(dict.fromkeys((dates[0], dates[-1])))} (UTC)"
    return (*who, when, f"{failures:,} of {len(reviews):,} reviews could not be parsed, and are in no mean")
