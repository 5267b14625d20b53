"""MME's questions, answers, scores and results."""

from __future__ import annotations

import pytest
from sets_choice import MME_ROWS, SHORT, make_mme, picture, write_parquet

from qllava.errors import UserError
from qllava.evaluate.answers import keys
from qllava.evaluate.benchmarks.mme import MME, parse
from qllava.evaluate.benchmarks.paper import MODELS

TEXTS = ["Yes", "Yes", "Yes", "No", "yes.", "maybe\tnot\nsure"]


def test_questions(tmp_path):
    folder = make_mme(tmp_path)
    asked = MME.questions(tmp_path)
    assert [(q.group, q.answer) for q in asked] == [(r[0], r[3]) for r in MME_ROWS]
    assert [q.id for q in asked[::2]] == ["code_reasoning/0020.png", "artwork/14777.jpg", "color/0001.jpg"]
    assert asked[2].shown == "Is this artwork titled venus?" + SHORT and asked[2].images[0].parent.name == "images"
    assert len(set(keys(asked))) == 6 and keys(asked)[0][1]  # ids come again, and the prompt tells them apart
    assert MME.max_new_tokens == 128 and MME.paper.keys() <= MODELS.keys()
    assert MME.paper["llava-1.5-7b"] == {"perception": 1510.7}
    file = folder / "llava_mme.jsonl"
    file.write_text(file.read_text().replace("?", "?  Please answer yes or no.", 1))
    asked = MME.questions(tmp_path)
    assert asked[0].shown == f"{MME_ROWS[0][2]}  Please answer yes or no.{SHORT}" and asked[0].answer == "Yes"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), (" no. ", "no"), ("Y", "yes"), ("n.", "no"), ("x", "other"), ("", "other"), ("It is no", "other"),
        ("a no", "no"), ("Yes, no", "yes"), ("Know", "no"), ("not", "no"), ("I say yes", "other"), ("..yes", "yes"),
    ],
)  # fmt: skip
def test_parse(text, said):
    assert parse(text) == said


def test_score(tmp_path):
    make_mme(tmp_path)
    asked = MME.questions(tmp_path)
    score = MME.score(tmp_path, asked, TEXTS)
    assert score.parts == {"perception": 250, "cognition": 50, "code_reasoning": 50, "artwork": 200, "color": 50}
    assert score.notes[0] == "1 answers are neither yes nor no, and wrong." and "existence, count" in score.notes[1]
    more = [
        *asked[4:],
        *[type(q)(f"color/{n}.jpg", q.turns, q.images, q.answer, q.group) for n in (2, 3) for q in asked[4:]],
    ]
    parts = MME.score(tmp_path, more, ["Yes", "No", "Yes", "Yes", "No", "Yes"]).parts
    assert parts["color"] == pytest.approx(100 * 3 / 6 + 100 * 1 / 3)
    with pytest.raises(UserError, match=r"'color/0001\.jpg' has 1"):
        MME.score(tmp_path, asked[:5], TEXTS[:5])


def test_submission(tmp_path):
    make_mme(tmp_path)
    place = MME.submit(tmp_path, MME.questions(tmp_path), TEXTS, tmp_path / "out")
    assert sorted(f.name for f in place.iterdir()) == ["artwork.txt", "code_reasoning.txt", "color.txt"]
    assert (place / "color.txt").read_text() == (
        "0001.txt\tIs there a red car? Please answer yes or no.\tYes\tyes.\n"
        "0001.txt\tIs there a blue car? Please answer yes or no.\tNo\tmaybe not sure\n"
    )


def test_hub(tmp_path):
    rows = [
        {"question_id": f"{category}/{name}", "image": {"bytes": picture(), "path": name}, "answer": answer,
         "question": f"{question} Please answer yes or no.", "category": category}
        for category, name, question, answer in MME_ROWS
    ]  # fmt: skip
    write_parquet(tmp_path / "MME/data/test-00000-of-00001.parquet", rows)
    asked = MME.questions(tmp_path)
    assert [q.shown for q in asked] == [row[2] + SHORT for row in MME_ROWS]
    assert MME.score(tmp_path, asked, TEXTS).parts["perception"] == 250
    place = MME.submit(tmp_path, asked, TEXTS, tmp_path / "out")
    first = (place / "artwork.txt").read_text().splitlines()[0]
    assert first == "14777.txt\tIs this artwork titled venus? Please answer yes or no.\tYes\tYes"


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"neither MME/llava_mme\.jsonl nor parquet"):
        MME.questions(tmp_path)
    folder = make_mme(tmp_path) / "MME_Benchmark_release_version"
    texts = folder / "color" / "0001.txt"
    texts.write_text("Is there a red car? Please answer yes or no.\tYes\n")
    with pytest.raises(UserError, match=r"0001\.txt has no question 'Is there a blue car\?"):
        MME.questions(tmp_path)
    texts.write_text("Is there a red car? Please answer yes or no. Yes\n")
    with pytest.raises(UserError, match=r"0001\.txt, line 1 needs the answer Yes or No"):
        MME.questions(tmp_path)
    texts.unlink()
    with pytest.raises(UserError, match=r"Cannot read MME's answers from .*0001\.txt"):
        MME.questions(tmp_path)
    (folder / "artwork/images/14777.jpg").unlink()
    with pytest.raises(UserError, match=r"llava_mme\.jsonl, line 3: No image"):
        MME.questions(tmp_path)
