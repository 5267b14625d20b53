"""The windowed reader gives what `json.loads` gives, for any file and any window, with the same messages."""

from __future__ import annotations

import json
import math
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qllava.data.json_list import items
from qllava.errors import UserError

anything = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"/\n\t[]{},:\U0001f600é'), max_size=12)
numbers = st.integers() | st.floats() | st.sampled_from([1e300, -0.0, -math.inf, 10**40])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
styles = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 0, 2, "\t"]), "separators": st.sampled_from([(",", ":"), (" , ", " : ")])}
)  # fmt: skip
windows = st.integers(1, 70)


def read(path, window):
    """The items, and the message that ended them."""
    found = []
    try:
        for item in items(path, window):
            found.append(item)
    except UserError as error:
        return found, str(error)
    return found, ""


def same(first, second):
    return json.dumps(first) == json.dumps(second)  # NaN is not itself


@anything
@given(
    rows=st.lists(values, min_size=1, max_size=6), style=styles, around=st.text(" \n\r\t", max_size=40), window=windows
)
@example(rows=["\U0001f600" * 9], style={"ensure_ascii": True}, around="", window=1)
def test_lists_are_what_json_loads_gives(tmp_path, rows, style, around, window):
    path = tmp_path / "a.json"
    path.write_bytes((around + json.dumps(rows, **style) + around).encode())
    found, message = read(path, window)
    assert message == "" and same(found, rows)


def reference(text: str, path):
    """What the whole text gives, with json's own messages, item by item as the reader is to give them."""
    decoder, found = json.JSONDecoder(), []

    def space(at):
        while text[at : at + 1] and text[at] in " \t\n\r":
            at += 1
        return at

    def broken(reason):
        return found, f"{path} is not valid JSON: {reason}."

    at = space(0)
    if at == len(text):
        return found, f"{path} is empty."
    if text[at] != "[":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return broken(error)
        return found, f"{path} holds {type(value).__name__}, not a list of samples, so it is not a LLaVA JSON."
    at = space(at + 1)
    if text[at : at + 1] == "]":
        return found, f"{path} holds no samples."
    while True:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            return broken(error)
        found.append(value)
        at = space(at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            return broken(f"expected a comma or the list's end at character {at}")
        at = space(at + 1)
    return broken(f"more follows after the list's end at character {at}") if space(at + 1) != len(text) else (found, "")


@anything
@given(
    rows=st.lists(values, min_size=1, max_size=5), style=styles, window=windows, cut=st.integers(0, 200),
    damage=st.sampled_from(["", ",", "]", "[", "}", '"', "\\", "x", "\n", "\u00e9", "\\u12", "1e", " ", "\x00", "tru", "-Infinit", "{}"]), whole=st.booleans(),
)  # fmt: skip
def test_broken_files_give_the_same_items_and_messages(tmp_path, rows, style, window, cut, damage, whole):
    path, text = tmp_path / "a.json", json.dumps(rows, **style)
    text = text[:cut] + damage + (text[cut:] if whole else "")
    path.write_bytes(text.encode())
    (found, message), (expected, complaint) = read(path, window), reference(text, path)
    assert message == complaint and same(found, expected)


@pytest.mark.parametrize("window", [1, 7, 4096])
@pytest.mark.parametrize("number", ["9" * 5000, "9" * 5000 + ".5", "-" + "9" * 5000 + "e-4999"])
def test_long_numbers(tmp_path, number, window):
    path, text = tmp_path / "a.json", f'[{{"a": {number}}}, 1]'
    path.write_text(text)
    (found, message), (expected, complaint) = read(path, window), reference(text, path)
    assert message == complaint and same(found, expected) and (number.isdigit() == bool(message))


@anything
@given(head=texts, tail=st.sampled_from([b"\xff", b"\xe2\x28\xa1", b"\xed\xa0\x80", b"\xe2\x82", b"\xf0\x9f\x98"]), window=windows, mark=st.booleans())  # fmt: skip
def test_what_is_not_utf8_is_named_by_its_place(tmp_path, head, tail, window, mark):
    path, data = (
        tmp_path / "a.json",
        b"\xef\xbb\xbf" * mark + b'["' + json.dumps(head, ensure_ascii=False)[1:-1].encode() + tail,
    )
    path.write_bytes(data)
    with pytest.raises(UnicodeDecodeError) as expected:
        data.decode()
    found, message = read(path, window)
    assert not found and message == f"{path} is not UTF-8 ({expected.value}). Save it as UTF-8."


def peak_of(path, wrong=False):
    tracemalloc.start()
    count = 0
    try:
        for _ in items(path):
            count += 1
    except UserError:
        assert wrong
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return count, peak


def test_memory_does_not_follow_the_file(tmp_path):
    """Nor where the file breaks early: the reader must not go on to the end to be sure."""
    row = json.dumps({"id": "\U0001f600", "text": "a" * 1000}, ensure_ascii=False)
    small, large, broken = (tmp_path / f"{n}.json" for n in ("small", "large", "broken"))
    small.write_text("[" + ",".join([row] * 4_000) + "]")
    large.write_text("[" + ",".join([row] * 20_000) + "]")
    broken.write_text("[" + ",".join([row] * 10) + ',{"a": x},' + ",".join([row] * 20_000) + "]")
    (few, least), (many, most), (before, wrong) = peak_of(small), peak_of(large), peak_of(broken, wrong=True)
    assert (few, many, before) == (4_000, 20_000, 10)
    assert most < least * 1.1 and wrong < least * 1.1
