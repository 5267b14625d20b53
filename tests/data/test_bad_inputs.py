"""Bad and odd JSON: the message that the user gets for each, or the sample that it becomes; then a mix as users run it."""

from __future__ import annotations

import json
import random
import re

import pytest
from PIL import Image

from qllava.api import train, verify
from qllava.cli import main
from qllava.data.dataset import select, training_set
from qllava.data.rows import from_columns
from qllava.data.sample import Turn
from qllava.errors import UserError
from qllava.model.inputs import load_processing
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts, Recipe, Source

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")
HALF = "\ud83d"  # of a surrogate pair


@pytest.fixture(scope="module")
def processing():
    return load_processing(EMBEDDED, "vicuna_v1", "pad")


def recipe(path, on_bad, **values):
    common = {"stage": "instruct", "tune": "projector", "base": EMBEDDED, "output_dir": "x", "learning_rate": 1e-3}
    sizes = {"global_batch_size": 4, "per_device_train_batch_size": 4}
    return Recipe(**{**common, **sizes, "data": (Source(path=str(path)),), "on_bad": on_bad, **values})


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]


GOOD = {"id": "good", "conversations": talk("Hi", "Hello!")}
EXPECTED = r"expected \{'from': 'human' or 'gpt', 'value': text\}, got "
SEEN = {"image": "a.png"}

BAD = {  # what is wrong: the sample, the message
    "a string": ("text", r"is str, not an object with 'conversations'\."),
    "null": (None, "is NoneType, not an object"),
    "NaN": (float("nan"), "is float, not an object"),
    "no conversations": ({"text": "hi"}, "'conversations' is missing or empty; a LLaVA JSON has a list of from/value"),
    "empty conversations": ({"conversations": []}, "'conversations' is missing or empty"),
    "conversations a string": ({"conversations": "human: hi"}, "a LLaVA JSON has a list of from/value turns there"),
    "conversations an object": ({"conversations": talk("a")[0]}, "a LLaVA JSON has a list of from/value turns there"),
    "turn a string": ({"conversations": ["a", "b"]}, f"turn 1: {EXPECTED}'a'"),
    "turn half of a pair": ({"conversations": [HALF]}, rf"turn 1: {EXPECTED}'\\ud83d'"),
    "turn without value": ({"conversations": [*talk("a"), {"from": "gpt"}]}, f"turn 2: {EXPECTED}{{'from': 'gpt'}}"),
    "value null": ({"conversations": [{"from": "human", "value": None}]}, f"turn 1: {EXPECTED}.*None"),
    "unknown role": ({"conversations": [{"from": "bot", "value": "a"}]}, f"turn 1: {EXPECTED}{{'from': 'bot'"),
    "system role": ({"conversations": [{"from": "system", "value": "a"}, *talk("a", "b")]}, f"turn 1: {EXPECTED}"),
    "a long turn": ({"conversations": [{"from": "bot", "value": "a" * 999}]}, r"'value': 'a{1,60}\.$"),
    "human twice": ({"conversations": talk("a") * 2}, r"must alternate between human and gpt, but turn 2 is user's again"),
    "gpt twice": ({"conversations": [*talk("a", "b"), talk("a", "b")[1]]}, "but turn 3 is assistant's again"),
    "only a gpt turn": ({"conversations": talk("a", "b")[1:]}, r"has no human turn\."),
    "no answer": ({"conversations": talk("a")}, r"no answer to learn from \(no gpt turn after a human one\)\."),
    "gpt first, then no answer": ({"conversations": talk("a", "b")[::-1]}, "no answer to learn from"),
    "two placeholders": ({**SEEN, "conversations": talk("<image><image>", "b")}, r"1 image\(s\) and 2 '<image>' pl"),
    "two images": ({"image": ["a", "b"], "conversations": talk("<image>", "b")}, r"2 image\(s\) and 1 '<image>' pl"),
    "no placeholder": ({**SEEN, "conversations": talk("a", "b")}, "0 '<image>' placeholder.*write one placeholder for each"),
    "placeholder in an answer": ({**SEEN, "conversations": talk("<image>", "<image>")}, "an answer cannot hold '<image>'"),
    "image a number": ({"image": 7, "conversations": talk("<image>", "b")}, "'image' must be a path .*, not '7'"),
    "image empty": ({"image": "", "conversations": talk("<image>", "b")}, "'image' must be a path or a list of paths, not ''"),
    "image an object": ({"image": {"url": "x"}, "conversations": talk("<image>", "b")}, "'image' must be a path"),
    "image half of a pair": ({"image": HALF, "conversations": talk("<image>", "b")}, r"must be a path .*, not '\\ud83d'"),
    "images with null": ({"images": ["a", None], "conversations": talk("<image>", "b")}, "'images' must be a path or"),
    "image and images": ({**SEEN, "images": ["b"], "conversations": talk("<image>", "b")}, "'image' and 'images' name diff"),
    "image that is not there": ({**SEEN, "conversations": talk("<image>", "b")}, r"No image at .*a\.png\."),
    "question half of a pair": ({"conversations": talk(HALF, "b")}, "turn 1: the text holds half of a surrogate pair"),
    "answer half of a pair": ({"conversations": talk("a", f"b{HALF}")}, "turn 2: the text holds half of a surrogate pair"),
    "message without content": ({"messages": [{"role": "user"}]}, f"turn 1: {EXPECTED}{{'from': 'user', 'value': None}}"),
}  # fmt: skip


def lines(values):
    """As JSONL."""
    return "".join(json.dumps(v) + "\n" for v in values)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_sample_is_named(tmp_path, processing, row, message, suffix):
    """It stops everything with on_bad=error; with on_bad=drop, it is left out and listed."""
    if named := isinstance(row, dict):
        row = {"id": 7, **row}
    values, path = [GOOD, row, GOOD], tmp_path / f"set.{suffix}"
    path.write_text(json.dumps(values) if suffix == "json" else lines(values))
    where = rf"set\.{suffix}, sample 2" + (r" \(id '?7'?\)" if named else "")
    with pytest.raises(UserError, match=rf"(?m)^  - {where}[ :,].*{message}") as caught:
        select(recipe(path, "error"), processing)
    assert str(caught.value).startswith("1 sample cannot be used:\n")
    assert str(caught.value).endswith("\nMend the data, or leave such samples out with on_bad=drop.")
    selection = select(recipe(path, "drop"), processing)
    assert list(selection.rows["id"]) == ["good", "good"] and selection.taken == [2]
    (bad,) = selection.dropped
    assert (bad.source, bad.where) == (str(path), f"set.{suffix}, sample 2")
    assert bad.id == ("7" if named else bad.where)
    assert bad.reason in str(caught.value)


def test_a_bad_id_is_named_by_its_place(tmp_path, processing):
    path = tmp_path / "set.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "id": HALF}]))
    with pytest.raises(UserError, match=r"set\.json, sample 2: its id holds half of a surrogate pair"):
        select(recipe(path, "error"), processing)
    assert [b.id for b in select(recipe(path, "drop"), processing).dropped] == ["?"]


NESTED = '[{"id": 7, "image": ' + "[" * 900 + "]" * 900 + "}]"
STORED = '[{"image": {"path": %s}, "conversations": []}]'
LEAKS = {
    "nested 900 deep": NESTED,
    "null byte in a stored path": STORED % '"a\\u0000b"',
    "stored path a number": STORED % "5",
}


@pytest.mark.parametrize(
    "text",
    LEAKS.values(),
    ids=LEAKS,
)
def test_an_image_that_is_no_path_is_named(tmp_path, processing, text):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(UserError, match=r"sample 1.*'image' must be a path"):
        select(recipe(tmp_path / "set.json", "error"), processing)


TWICE = '[{"conversations": [], "conversations": %s}]'
PAIR = ("a", "b")
ODD = {  # what is odd: the sample or the file's text, the turns that it becomes, the one with the image
    "byte order mark": (f"\ufeff{json.dumps([GOOD])}", ("Hi", "Hello!"), None),
    "space around": (f"\r\n\t {json.dumps([GOOD])} \n\n", ("Hi", "Hello!"), None),
    "duplicate keys": (TWICE % json.dumps(talk(*PAIR)), PAIR, None),
    "placeholders without image": ({"conversations": talk("a <image>", "<image>")}, ("a <image>", "<image>"), None),
    "image null": ({"image": None, "conversations": talk("<image>", "b")}, ("<image>", "b"), None),
    "image at the end": ({**SEEN, "conversations": talk("a\n<image>", "b")}, PAIR, 0),
    "an image alone": ({**SEEN, "conversations": talk("<image>", "b")}, ("", "b"), 0),
    "image in the second question": ({**SEEN, "conversations": talk(*PAIR, "<image>c", "d")}, (*PAIR, "c", "d"), 2),
    "image and images the same": ({**SEEN, "images": ["a.png"], "conversations": talk("<image>", "b")}, ("", "b"), 0),
    "gpt first": ({"conversations": [talk("x", "y")[1], *talk(*PAIR)]}, PAIR, None),
    "ends with a question": ({"conversations": talk(*PAIR, "c")}, (*PAIR, "c"), None),
    "roles of chats": (
        {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
        PAIR,
        None,
    ),
    "empty texts": ({"conversations": talk("", "")}, ("", ""), None),
    "odd characters": ({"conversations": talk("\U0001f600\0", "\u2028\x85 b")}, ("\U0001f600\0", "\u2028\x85 b"), None),
    "more keys": ({**GOOD, "model": {"name": [1, {"a": None}]}, "weight": float("nan")}, ("Hi", "Hello!"), None),
}


@pytest.mark.parametrize(("content", "texts", "at"), ODD.values(), ids=ODD)
def test_an_odd_sample_is_taken(tmp_path, processing, content, texts, at):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "set.json"
    path.write_text(content if isinstance(content, str) else json.dumps([content]), encoding="utf-8", newline="")
    turns = tuple(Turn(("user", "assistant")[i % 2], text, int(i == at)) for i, text in enumerate(texts))
    for on_bad in ("error", "drop"):
        selection = select(recipe(path, on_bad), processing)
        (row,) = selection.rows
        sample, root = from_columns(row)
        assert (sample.images, sample.turns, root) == (("a.png",) * (at is not None), turns, tmp_path)
        assert not selection.dropped
    features = training_set(selection.rows, processing, 2048)[0]
    assert any(label >= 0 for label in features["labels"])
    assert (features["pixel_values"] is None) == (at is None)


INVALID = r"set\.json is not valid JSON: "
FILES = {  # what is wrong: the file's bytes, the message
    "not JSON": (b"id,image\n1,a.png\n", INVALID + "Expecting value"),
    "empty": (b"", r"set\.json is empty"),
    "empty list": (b" [ ] ", r"set\.json holds no samples\."),
    "an object": (json.dumps(GOOD).encode(), "holds dict, not a list of samples, so it is not a LLaVA JSON"),
    "NaN": (b"NaN", "holds float, not a list of samples"),
    "JSONL named json": ((json.dumps(GOOD) + "\n" + json.dumps(GOOD)).encode(), INVALID + "Extra data: line 2 column 1"),
    "text after the list": (json.dumps([GOOD]).encode() + b" x", INVALID + "more follows after the list's end"),
    "missing comma": (b'[{"id": 1} {"id": 2}]', INVALID + "expected a comma or the list's end at character 11"),
    "comma too many": (b'[{"id": 1},]', INVALID + "Expecting value: line 1 column 12"),
    "cut in a text": (json.dumps([GOOD]).encode()[:-6], INVALID + "Unterminated string"),
    "UTF-16": (json.dumps([GOOD]).encode("utf-16"), r"is not UTF-8 \('utf-8' codec can't decode byte 0xff in position 0"),
    "Latin-1": ('[{"id": "é"}]'.encode("latin-1"), r"is not UTF-8 \('utf-8' codec can't decode byte 0xe9 in position 9"),
    "a number of 5000 digits": (b'[{"id": ' + b"9" * 5000 + b"}]", INVALID + "Exceeds the limit"),
    "nested without end": (b"[" * 100_000 + b"]" * 100_000, INVALID + ".*recursion"),
    "an object nested without end": (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, INVALID + ".*recursion"),
    "only bad samples": (b'["a"]', r"No sample of .*set\.json can be used|1 sample cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("on_bad", ["error", "drop"])
@pytest.mark.parametrize(("data", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_llava_json_cannot_be_dropped(tmp_path, processing, data, message, on_bad):
    (tmp_path / "set.json").write_bytes(data)
    with pytest.raises(UserError, match=message):
        select(recipe(tmp_path / "set.json", on_bad), processing)


LINES = {  # what is wrong: the second line of a JSONL, the message
    "not JSON": (b"{broken", "Expecting property name"),
    "two objects": (b'{"id": 1} {"id": 2}', "Extra data"),
    "cut": (json.dumps(GOOD).encode()[:-3], r"Expecting|Unterminated"),
    "Latin-1": ('{"id": "é"}'.encode("latin-1"), "'utf-8' codec can't decode byte 0xe9"),
    "nested without end": (b"[" * 100_000, "recursion"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_a_bad_line_is_named_by_its_number(tmp_path, processing, line, message):
    path, good = tmp_path / "set.jsonl", json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n\n" + line + b"\r\n" + good)
    with pytest.raises(UserError, match=rf"set\.jsonl, line 3 is not valid JSON: .*({message})"):
        select(recipe(path, "error"), processing)
    selection = select(recipe(path, "drop"), processing)
    assert list(selection.rows["id"]) == ["good", "good"]
    assert [b.where for b in selection.dropped] == ["set.jsonl, sample 2"]


@pytest.fixture
def mix(scenes, recipe_values):
    """A recipe of two steps on the scenes, two of whose images are damaged, and every sample of `BAD`."""
    rows = [{"id": name, **row} if isinstance(row, dict) else row for name, (row, _) in BAD.items()]
    rows += json.loads(scenes.read_text())
    random.Random(0).shuffle(rows)
    scenes.write_text(json.dumps(rows))
    cut, deep = (scenes.parent / "images" / f"{i}.png" for i in (3, 4))
    cut.write_bytes(cut.read_bytes()[:-30])
    Image.new("I;16", (4, 4)).save(deep)
    values = {k: v for k, v in recipe_values.items() if k != "lora"}
    return {**values, "tune": "projector", "max_steps": 2, "save_steps": 2}


DAMAGED = {"s3": r"3\.png cannot be decoded", "s4": r"4\.png has more than 8 bits a channel"}
TOTAL = len(BAD) + len(DAMAGED)


def assert_all_named(bad):
    """Each bad sample once, under its id (or place, where it has none), with its own message."""
    messages = DAMAGED | {name: message for name, (row, message) in BAD.items() if isinstance(row, dict)}
    reasons = {b["id"]: b["reason"] for b in bad}
    assert len(bad) == len(reasons) == TOTAL and messages.keys() <= reasons.keys()
    assert all(re.search(message, reasons[name]) for name, message in messages.items())
    assert all(name.startswith("scenes.json, sample ") for name in reasons.keys() - messages.keys())


def check(capsys, *arguments):
    """Exit code, stdout and stderr of `qllava check`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["check", *map(str, arguments)])
    return end.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "code"), [((), 1), (("--on-bad", "error"), 1), (("--on-bad", "drop"), 0), (("--on-bad", "report"), 0)]
)
def test_check_lists_all_that_is_bad(capsys, tmp_path, mix, options, code):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(mix))
    ended, out, err = check(capsys, file, *options, "--json")
    found = json.loads(out)
    assert ended == code and "Traceback" not in err
    assert (f"Error: {TOTAL} samples cannot be used. Mend them, or leave them out with on_bad=drop." in err) == bool(
        code
    )
    assert (found["samples"], found["usable"], found["text_only"]) == (TOTAL + 14, 14, 2)
    assert found["taken"] == {mix["data"][0]["path"]: 14} and found["bad_by_source"] == {mix["data"][0]["path"]: TOTAL}
    assert_all_named(found["bad"])
    ended, out, _ = check(capsys, file, *options)
    assert ended == code and f"{TOTAL + 14} samples, 14 usable" in out
    assert out.count("\nBad: ") == 21 and f"Bad: and {TOTAL - 20} more (--json lists them)" in out


def test_a_run_leaves_out_all_that_is_bad(mix):
    with pytest.raises(
        UserError, match=rf"^{len(BAD)} samples cannot be used:\n(  - .*\n){{5}}  - and {len(BAD) - 5} more; "
    ):
        train(resolve_recipe(mix))
    result = train(resolve_recipe({**mix, "on_bad": "drop"}))
    report = verify(result.artifact).report
    assert result.steps == 2 and all(entry["loss"] > 0 for entry in result.log)
    assert report["samples"] == {mix["data"][0]["path"]: 14}
    assert_all_named(report["dropped"])
