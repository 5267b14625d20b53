"""MMBench's and MMBench-CN's questions and submissions."""

from __future__ import annotations

import base64

import pandas as pd
import pytest
from sets_choice import LETTER, MMBENCH_COLUMNS, MMBENCH_ROWS, make_mmbench, make_mmbench_cn, picture, write_parquet

from qllava.errors import UserError
from qllava.evaluate.benchmarks.mmbench import MMBENCH, is_none
from qllava.evaluate.benchmarks.mmbench_cn import MMBENCH_CN
from qllava.evaluate.benchmarks.paper import MODELS

SUBMITTED = ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]


def test_questions(tmp_path):
    make_mmbench(tmp_path)
    asked = MMBENCH.questions(tmp_path)
    assert [q.id for q in asked] == [241, 252, 1000252] and all(type(q.id) is int for q in asked)
    assert [q.shown for q in asked] == [
        "The lines are long.\nWhich one is it?\nA. 1\nB. 2\nC. 3\nD. 4",
        'Is it "true"?\nA. yes\nB. no',
        'Is it "true"?\nA. no\nB. yes',
    ]
    assert asked[1].turns[0].text == 'Is it "true"?\nA. yes\nB. no' + LETTER
    assert asked[0].images == (picture(),) and asked[0].group == "structural"
    assert MMBENCH.score is None and MMBENCH.server and MMBENCH.max_new_tokens == 1024
    assert MMBENCH.paper.keys() | MMBENCH_CN.paper.keys() <= MODELS.keys()
    assert (MMBENCH.paper["llava-1.5-7b"], MMBENCH_CN.paper["llava-1.5-7b"]) == ({"accuracy": 64.3}, {"accuracy": 58.3})


def test_chinese(tmp_path):
    folder = make_mmbench_cn(tmp_path)
    first = MMBENCH_CN.questions(tmp_path)[0]
    assert first.turns[0].text == first.shown + "\n请直接回答选项字母。"
    folder.rename(tmp_path / "mmbench")  # where the docs put it
    assert MMBENCH_CN.questions(tmp_path)[0] == first
    assert MMBENCH_CN.submit(tmp_path, [first], ["A"], tmp_path / "out").name == "mmbench_cn.xlsx"
    with pytest.raises(UserError, match="none of: mmbench/mmbench_dev_20230712"):
        MMBENCH.questions(tmp_path)


def test_none():
    assert all(map(is_none, (None, float("nan"), "nan", "NaN", "None", "none")))
    assert not any(map(is_none, ("", "no", 0, 1.5)))


def test_submission(tmp_path):
    make_mmbench(tmp_path)
    asked = MMBENCH.questions(tmp_path)
    file = MMBENCH.submit(tmp_path, asked[:2], ["B", "A. yes\x07"], tmp_path / "out")
    table = pd.read_excel(file, dtype=str, keep_default_na=False)
    assert file.name == "mmbench.xlsx" and list(table.columns) == SUBMITTED
    assert table.values.tolist() == [
        ["241", "Which one is it?", "1", "2", "3", "4", "B", "B", "dev"],
        ["252", 'Is it "true"?', "yes", "no", "", "", "A. yes", "A", "dev"],
        ["1000252", 'Is it "true"?', "no", "yes", "", "", "", "B", "dev"],
    ]


def test_hub(tmp_path):
    extra = {
        "category": "c",
        "image": {"bytes": picture(), "path": None},
        "source": "s",
        "L2-category": "l",
        "comment": "nan",
    }
    rows = [
        {name: "nan" if value is None else value for name, value in zip(MMBENCH_COLUMNS, row, strict=False)}
        | extra | {"split": "dev"}
        for row in MMBENCH_ROWS
    ]  # fmt: skip
    write_parquet(tmp_path / "mmbench/en/dev-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "mmbench/en/test-00000-of-00001.parquet", rows[:1])
    write_parquet(tmp_path / "mmbench/cn/dev-00000-of-00001.parquet", rows[:1])
    asked = MMBENCH.questions(tmp_path)
    assert [(q.id, q.images) for q in asked] == [(row[0], (picture(),)) for row in MMBENCH_ROWS]
    assert asked[1].shown == 'Is it "true"?\nA. yes\nB. no' and len(MMBENCH_CN.questions(tmp_path)) == 1
    table = pd.read_excel(MMBENCH.submit(tmp_path, asked, ["A", "B", "C"], tmp_path / "out"))
    assert list(table.columns) == SUBMITTED and table["prediction"].tolist() == ["A", "B", "C"]


def test_errors(tmp_path):
    with pytest.raises(UserError, match="none of: mmbench/mmbench_dev_20230712"):
        MMBENCH.questions(tmp_path)
    file = make_mmbench(tmp_path) / "mmbench_dev_20230712.tsv"
    whole = file.read_text()
    file.write_text(whole.replace("hint", "tip"))
    with pytest.raises(UserError, match=r"mmbench_dev_20230712\.tsv has no column hint"):
        MMBENCH.questions(tmp_path)
    file.write_text(whole.replace(base64.b64encode(picture()).decode(), "abcde", 1))
    with pytest.raises(UserError, match=r"row 0 \(index 241\) has no image in base64"):
        MMBENCH.questions(tmp_path)
    file.write_text(whole.replace("Which one is it?", "nan"))
    with pytest.raises(UserError, match=r"row 0 \(index 241\) has no question"):
        MMBENCH.questions(tmp_path)
    file.write_text(whole.replace("1000252", "x"))
    with pytest.raises(UserError, match="row 2 has the index 'x'"):
        MMBENCH.questions(tmp_path)
    file.write_text("")
    with pytest.raises(UserError, match="Cannot read"):
        MMBENCH.questions(tmp_path)
    file.write_text(whole)
    asked = MMBENCH.questions(tmp_path)
    file.write_text("".join(whole.splitlines(True)[:2]))
    with pytest.raises(UserError, match="has no index 252"):
        MMBENCH.submit(tmp_path, asked, ["A"] * 3, tmp_path / "out")
