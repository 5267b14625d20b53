"""What is sent to a judge, what its failures become, and that no review is asked for twice."""

from __future__ import annotations

import itertools
import json
import os
from datetime import UTC, datetime
from unittest import mock

import pytest
from sets_judged import judge_server

from qllava.errors import RunError, UserError
from qllava.evaluate.judge import Asked, Judge, notes, review

KEY = "sk-secret-123"
THREE = [Asked(i, "sys", f"prompt {i}") for i in range(3)]


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server() as server:
        yield server


def test_the_request_is_the_protocols(served):
    assert served.judge().ask("be fair", "who?\nme") == "8 6\nThe first is better."
    messages = [{"role": "system", "content": "be fair"}, {"role": "user", "content": "who?\nme"}]
    wanted = {"model": "small-judge", "messages": messages, "temperature": 0.2, "max_tokens": 1024}
    assert served.bodies == [wanted] and served.paths == ["/v1/chat/completions"]
    served.judge(url=served.url + "/").ask("", "x")
    assert served.bodies[1]["messages"] == [{"role": "user", "content": "x"}]
    assert served.paths[1] == "/v1/chat/completions"


def test_the_key_is_in_one_header_alone(served, monkeypatch, tmp_path):
    review(served.judge(), tmp_path / "r.jsonl", THREE)
    assert {h.pop("Authorization") for h in served.headers} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps([served.headers, served.bodies, served.paths]) + (tmp_path / "r.jsonl").read_text()
    assert KEY not in repr(served.judge())
    monkeypatch.setenv("MINE", "other\n")
    served.judge(key_env="MINE").ask("", "x")
    assert served.headers[-1]["Authorization"] == "Bearer other"
    monkeypatch.delenv("OPENAI_API_KEY")
    served.judge().ask("", "x")
    assert "Authorization" not in served.headers[-1]
    with pytest.raises(UserError, match="no environment variable NOT_THERE"):
        served.judge(key_env="NOT_THERE").ask("", "x")
    monkeypatch.setenv("MINE", "kéy")
    with pytest.raises(UserError, match="characters that no key has") as error:
        served.judge(key_env="MINE").ask("", "x")
    assert "kéy" not in str(error.value)


def test_busy_twice_and_then_well(served):
    served.first = iter([(429, "{}", {"Retry-After": "0"}), (503, "busy", {})])
    assert served.judge(pause=0.01).ask("s", "x").startswith("8 6")
    assert len(served.bodies) == 3


def test_pauses_double(served, monkeypatch):
    slept = []
    monkeypatch.setattr("qllava.evaluate.judge.time.sleep", slept.append)
    served.first = iter([(500, "", {})] * 2 + [(429, "", {"Retry-After": "7"})] + [(429, "", {"Retry-After": "900"})])
    served.judge(pause=1.0).ask("s", "x")
    assert slept == [1.0, 2.0, 7.0, 60.0]


def test_failing_for_ever_ends(served):
    served.first = itertools.repeat((500, json.dumps({"error": {"message": "No memory."}}), {}))
    with pytest.raises(RunError, match=r"answered 500 3 times: No memory\. Try again later"):
        served.judge(retries=2).ask("s", "x")
    assert len(served.bodies) == 3


@pytest.mark.parametrize(
    ("status", "body", "headers", "says"),
    [
        (401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}), {}, "variable OPENAI_API_KEY"),
        (404, json.dumps({"error": "no such model"}), {}, "no such model.*'small-judge'.*mostly in /v1"),
        (400, "too long", {}, "answered 400: too long"),
        (302, "", {"Location": "http://127.0.0.1:9/v1"}, "answered 302"),
        (200, "<html>hello</html>", {}, "no chat completion, but '<html>hello"),
        (200, '{"choices": []}', {}, "no chat completion"),
        (200, '{"choices": [{"message": {"content": 3}}]}', {}, "no chat completion"),
    ],
)
def test_refusals_are_not_sent_again(served, status, body, headers, says):
    served.first = iter([(status, body, headers)])
    with pytest.raises(UserError, match=says) as error:
        served.judge().ask("s", "x")
    assert len(served.bodies) == 1 and KEY not in str(error.value) and "127.0.0.1:" in str(error.value)


def test_no_content_is_an_empty_review(served):
    served.first = iter([(200, '{"choices": [{"message": {"content": null}}]}', {})])
    assert served.judge().ask("s", "x") == ""


def test_nobody_there():
    with judge_server() as server:
        gone = server.judge(retries=1)
    with (
        mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1"}),
        pytest.raises(UserError, match="cannot be reached") as error,
    ):
        gone.ask("s", "x")
    assert "Is its server running" in str(error.value)
    for url in ("localhost:8000/v1", "file:///etc/passwd", "https://me:secret@host/v1", "http://host:port/v1", ""):
        with pytest.raises(UserError, match="must begin with http") as error:
            Judge(url, "m").ask("s", "x")
        assert "secret" not in str(error.value)


def test_a_review_says_who_where_and_when(served, tmp_path):
    before = datetime.now(UTC).date().isoformat()
    made = review(served.judge(), tmp_path / "new" / "r.jsonl", THREE)
    lines = [json.loads(line) for line in (tmp_path / "new" / "r.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["judge"] == "small-judge" and line["model"] == "small-judge-0314"
        assert line["host"] == served.url.split("/")[2]
        assert before <= line["date"] <= datetime.now(UTC).date().isoformat()
        assert line["content"] == "8 6\nThe first is better."
    who, when, failed = notes(made, 1)
    assert "'" not in who and "small-judge (the server says small-judge-0314) at 127.0.0.1:" in who
    assert made[0].date in when and failed.startswith("1 of 3 reviews could not be parsed")


def test_a_killed_run_goes_on_and_asks_nothing_twice(served, tmp_path):
    file = tmp_path / "r.jsonl"
    first = review(served.judge(), file, THREE[:2])
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # killed while it wrote the second line
    again = review(served.judge(), file, THREE)
    assert served.prompts == ["prompt 0", "prompt 1", "prompt 1", "prompt 2"]
    assert again[:2] == first and file.read_bytes().startswith(whole)
    assert review(served.judge(), file, THREE) == again and len(served.bodies) == 4
    assert review(served.judge(), file, THREE[::-1]) == again[::-1] and len(served.bodies) == 4


def test_what_was_judged_before_a_failure_is_kept(served, tmp_path):
    usual = served.answer
    served.first = itertools.chain([(200, None, {})], itertools.repeat((500, "", {})))
    with pytest.raises(RunError):
        review(served.judge(retries=0), tmp_path / "r.jsonl", THREE)
    served.first, served.answer = iter(()), usual
    review(served.judge(), tmp_path / "r.jsonl", THREE)
    assert served.prompts == ["prompt 0", "prompt 1", "prompt 1", "prompt 2"]


def test_a_file_of_another_judge_or_other_answers_is_refused(served, tmp_path):
    file = tmp_path / "r.jsonl"
    review(served.judge(), file, THREE)
    held = file.read_bytes()
    with pytest.raises(UserError, match="by 'small-judge', and the judge is 'big-judge' now"):
        review(served.judge(model="big-judge"), file, THREE)
    with pytest.raises(UserError, match="another answer to question 1"):
        review(served.judge(), file, [THREE[0], Asked(1, "sys", "prompt of another answer")])
    assert file.read_bytes() == held and len(served.bodies) == 3
    for damage in (b"nonsense\n", b"{}\n", b"3\n", b"\xff\n"):
        file.write_bytes(held + damage)
        with pytest.raises(UserError, match=r"line 4 is no review|Cannot read reviews"):
            review(served.judge(), file, THREE)


def test_an_empty_review_is_asked_for_anew(served, tmp_path):
    """As a model that thinks before it answers gives one, where the answer may not be long."""
    usual, served.answer = served.answer, lambda _: ""
    review(served.judge(), tmp_path / "r.jsonl", THREE)
    served.answer = usual
    again = review(served.judge(), tmp_path / "r.jsonl", THREE)
    assert all(r.content for r in again) and len(served.bodies) == 6
    assert review(served.judge(), tmp_path / "r.jsonl", THREE) == again and len(served.bodies) == 6


@pytest.mark.parametrize("url", ["http://127.0.0.1/ü", f"http://{'a' * 300}/v1", "http://a\nb/v1", "http://a b/v1"])
def test_an_address_that_can_never_work(url):
    with pytest.raises(UserError, match="judge's URL"):
        Judge(url, "m").ask("", "hi")


def test_a_line_that_is_no_review(served, tmp_path):
    review(served.judge(), tmp_path / "r.jsonl", THREE)
    row = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    for change in ({"content": 5}, {"date": None}):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row | change) + "\n")
        with pytest.raises(UserError, match=r"bad\.jsonl, line 1 is no review"):
            review(served.judge(), tmp_path / "bad.jsonl", THREE)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"deep\.jsonl, line 1"):
        review(served.judge(), tmp_path / "deep.jsonl", THREE)
