"""Files read record by record, whatever the window, with the place of what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qllava.data.sources.raw import entries, listed
from qllava.errors import UserError

values = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=3), s, max_size=3), max_leaves=8)  # fmt: skip
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.lists(values, max_size=5), st.integers(1, 60), st.sampled_from([None, 1]))
def test_a_list_and_a_list_under_a_key(tmp_path, items, window, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=indent))
    assert list(listed(path, window=window)) == items
    path.write_text(json.dumps({"info": {"data": [9]}, "data": items, "end": 1}, indent=indent))
    assert list(listed(path, "data", window=window)) == items


@quick
@given(st.dictionaries(st.text(max_size=5), values, max_size=5), st.integers(1, 60))
def test_an_objects_entries(tmp_path, items, window):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=1))
    assert list(entries(path, window=window)) == list(items.items())


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 60))
def test_lines_of_records(tmp_path, gaps, window):
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join("\n" * gap + f'{{"n": {i}}}' for i, gap in enumerate(gaps)) + "]")
    file = listed(path, window=window)
    for i, _ in enumerate(file):
        assert f"record {i + 1} (line {1 + sum(gaps[: i + 1])}): no" in str(file.fail("no"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}', "has no 'data'"),
        ('{"data": {}}', "'data' is no list"),
        ("[]", "is no JSON object"),
        ('{"data": [1,\n2 3]}', "expected a comma or ']' at character 15"),
        ('{"data": [1,\n2', "expected a comma or ']'"),
        ('{"data": [1,\n{"a": }]}', "line 2 column 7"),
        ('{"data" [1]}', "expected a colon"),
        ("{data: [1]}", "expected a name in quotes"),
        ("", "is no JSON object"),
        ('{"data": []} {', "more follows after its end at character 13"),
    ],
)
def test_broken_files(tmp_path, text, says):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        list(listed(path, "data"))
    assert says in str(error.value) and str(path) in str(error.value)
