"""Any value anywhere in a set's files: rows that the project reads, or a sentence; never a crash, never half a file."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from pathlib import Path

import pytest
import sets_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from sets_raw import REFCOCO, mix_of, put, row

from qllava.data.sample import parse
from qllava.data.sources.build import build
from qllava.errors import RunError, UserError

SETS = {
    "vqav2": {"set": "vqav2", "prompt": "P"}, "okvqa": {"set": "okvqa"}, "aokvqa": {"set": "aokvqa"}, "gqa": {"set": "gqa"},
    "ocrvqa": {"set": "ocrvqa", "cap": 1}, "textcaps": {"set": "textcaps", "prompt": "P", "per_image": 1},
    "refcoco": {**REFCOCO, "segment": 2}, "visual_genome": {"set": "visual_genome", "prompt": REFCOCO["prompt"], "per_image": 1},
    "own": {"set": "jsonl", "files": {"rows": "own.jsonl"}}, "talks": {"set": "llava", "files": {"rows": "talks.jsonl"}},
    "sharegpt": {"set": "sharegpt", "files": {"rows": "talks.jsonl"}, "max_tokens": 30},
    "captions": {"set": "captions", "prompt": ["P", "Q"]},
}  # fmt: skip
WRONG = st.sampled_from(
    [None, True, -1, 0, 10**30, 1.5, "", " ", "x", "\ud83d", "<image>", [], [None], ["x"], {}, {"x": 1}]
)


def make(raw: Path) -> None:
    for name in ("vqav2", "okvqa", "aokvqa", "gqa", "ocrvqa", "textcaps", "refcoco", "visual_genome"):
        getattr(sets_raw, name)(raw)
    for path in raw.rglob("*.p"):  # the same as JSON, which can be spoiled
        put(raw, str(path.with_suffix(".json").relative_to(raw)), pickle.loads(path.read_bytes()))
    put(raw, "own.jsonl", json.dumps({"id": 1, "image": "a.png", "question": "q?", "answer": "a"}))
    put(raw, "talks.jsonl", json.dumps(row("a", None, "q", "a", "r", "b")))
    put(
        raw,
        "llava_pretrain/blip_laion_cc_sbu_558k_meta.json",
        [{"id": "1", "image": "1.jpg", "blip_caption": "c", "url": "u"}],
    )


def places(value, path=()):
    """The paths of everything inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_wrong(value, path, wrong):
    if not path:
        return wrong
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = wrong
    return value


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_nothing_but_a_sentence_or_good_rows(name, data):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw, out = folder / "raw", folder / "out.json"
        make(raw)
        fields = json.loads(json.dumps(SETS[name]).replace(").p", ").json"))
        mix = str(mix_of(folder, one=fields))
        files = sorted(p for p in raw.rglob("*.json*") if p.parent.name.startswith(name[:4]) or p.name in str(fields) or (name, p.parent.name) in (("visual_genome", "vg"), ("captions", "llava_pretrain")))  # fmt: skip
        file = data.draw(st.sampled_from(files))
        content = json.loads(file.read_text())
        path = data.draw(st.sampled_from(sorted(places(content), key=str)))
        file.write_text(json.dumps(with_wrong(content, path, data.draw(WRONG))))
        try:
            build(mix, raw, out)
        except (UserError, RunError) as error:
            assert len(str(error)) > 20
            assert not out.exists() and not list(folder.glob(".*"))
        else:
            assert all(parse(r) for r in json.loads(out.read_text()))
