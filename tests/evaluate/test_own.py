"""Questions out of a LLaVA JSON, batches that answer as one at a time, and scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rouge_score import rouge_scorer

from qllava.api import assemble, train
from qllava.artifact.load import Loaded
from qllava.cli import main
from qllava.data.sample import Turn, ask
from qllava.errors import UserError
from qllava.evaluate.generate import generate
from qllava.evaluate.metrics import check, kind_of, normalize, rouge_l, vqa_accuracy
from qllava.evaluate.own import evaluate, figures, own_questions, score
from qllava.evaluate.question import Question
from qllava.model.build import load_model
from qllava.model.inputs import load_processing
from qllava.recipe import resolve_recipe
from qllava.recipe.schema import Parts

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


@pytest.fixture(scope="module")
def loaded():
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    return Loaded(model, load_processing(EMBEDDED, "vicuna_v1", "pad"), None)


def test_every_answer_is_a_question(scenes):
    asked = own_questions(scenes, scenes.parent / "images")
    assert len(asked) == 14 + 7 + 2
    second = next(q for q in asked if q.id == "s1/1")
    assert [t.role for t in second.turns] == ["user", "assistant", "user"] and second.answer == ["no"]
    assert second.turns[1] == Turn("assistant", "green") and second.images[0].name == "1.png"
    assert next(q for q in asked if q.id == "t14/0").images == ()


def test_a_batch_answers_as_one_at_a_time(loaded):
    """Prompts of different lengths, with an image and without."""
    pictures = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    prompts = [
        loaded.processing.prompt(
            ask("Which color is it?\nAnswer the question using a single word or phrase.", 1), pictures[:1]
        ),
        loaded.processing.prompt(ask("Hi")),
        loaded.processing.prompt(
            ask("What do you see here, at the left, at the right and in the middle?", 1), pictures[1:]
        ),
    ]
    together = generate(loaded, prompts, max_new_tokens=12)
    assert together == [generate(loaded, [p], max_new_tokens=12)[0] for p in prompts]


def test_the_score_counts_equal_answers(loaded, scenes):
    asked = own_questions(scenes, scenes.parent / "images")
    first = score(loaded, asked, max_new_tokens=4, batch_size=5)
    assert first.questions == len(asked) == len(first.answers)
    assert first.correct == sum(
        normalize(a) == normalize(q.answer[0]) for a, q in zip(first.answers, asked, strict=True)
    )
    assert first.exact_match == first.correct / len(asked)
    assert score(loaded, asked, max_new_tokens=4, batch_size=2).answers == first.answers


@pytest.mark.parametrize(("a", "b"), [(" Red. ", "red"), ("yes", "YES"), ("two words", "Two words.")])
def test_normalize(a, b):
    assert normalize(a) == normalize(b)


def test_evaluate_writes_a_line_an_answer(tmp_path, scenes):
    from qllava.api import assemble

    base = assemble("embedded", "embedded", tmp_path / "base")
    result = evaluate(base, scenes, scenes.parent / "images", out=tmp_path / "a", limit=5)
    lines = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assert result["questions"] == len(lines) == 5
    assert json.loads((tmp_path / "a" / "result.json").read_text())["exact_match"] == result["exact_match"]
    again = evaluate(base, scenes, scenes.parent / "images", out=tmp_path / "a", limit=5)
    assert again["questions_per_second"] is None and again["metrics"] == result["metrics"]  # nothing was asked again
    with pytest.raises(UserError, match="is a file"):
        evaluate(base, scenes, scenes.parent / "images", out=scenes)
    with pytest.raises(UserError, match="numbers above 0"):
        evaluate(base, scenes, scenes.parent / "images", batch_size=-1)


def test_metrics_by_type():
    """Types by the answer, and figures by hand: two of three words of ROUGE-L's longer text are common, F = 0.8."""
    asked = [Question(i, ask("q"), answer=[a], group=kind_of(a)) for i, a in enumerate(("yes", "two", "a red circle"))]
    found = figures(asked, ["Yes.", "3", "red circle"], ["exact_match", "vqa_accuracy", "rouge_l", "cider"])
    assert found["by_type"].keys() == {"yes/no", "number", "other"}
    assert found["by_type"]["yes/no"]["exact_match"] == 1 and found["by_type"]["number"]["vqa_accuracy"] == 0
    other = found["by_type"]["other"]
    assert other["rouge_l"] == pytest.approx(0.8) and other["vqa_accuracy"] == 1 and other["exact_match"] == 0
    assert other["cider"] > 1 > found["by_type"]["number"]["cider"] == 0
    with pytest.raises(UserError, match=r"No metric 'rouge'\. Did you mean 'rouge_l'"):
        check(["rouge"])


def test_ten_references_make_a_soft_score():
    """min(1, matches among the others / 3), averaged over the ten."""
    given = ["cat"] * 2 + ["dog"] * 8
    assert vqa_accuracy(["Cat!"], [given]) == [pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)]
    assert vqa_accuracy(["the dog"], [given]) == [1.0]


def test_references_and_types_of_ones_own(tmp_path):
    rows = [
        {"id": 1, "kind": "animal", "answers": ["cat", "kitten"], "conversations": [
            {"from": "human", "value": "What?"}, {"from": "gpt", "value": "cat"}]},
        {"id": 1, "kind": "plant", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "fern"}]},
    ]  # fmt: skip
    file = tmp_path / "q.json"
    file.write_text(json.dumps(rows))
    asked = own_questions(file, tmp_path, by="kind")
    assert [q.answer for q in asked] == [["cat", "kitten"], ["fern"]] and [q.group for q in asked] == [
        "animal",
        "plant",
    ]
    assert len({q.id for q in asked}) == 2  # though the JSON gives both the same
    with pytest.raises(UserError, match=r"sample 1 .* has no 'type'; it has id, kind"):
        own_questions(file, tmp_path, by="type")
    file.write_text(json.dumps([{**rows[0], "answers": "cat"}]))
    with pytest.raises(UserError, match="'answers' is no list"):
        own_questions(file, tmp_path)


def test_the_guard_asks_before_and_after(recipe_values, scenes, tmp_path):
    """An adapter of a whole LLaVA: what it was trained from is what its manifest names."""
    whole = assemble("embedded", "embedded", tmp_path / "base")
    values = {k: v for k, v in recipe_values.items() if k != "projector"} | {
        "base": str(whole), "tune": "lora", "max_steps": 2, "output_dir": str(tmp_path / "run"), "learning_rate": 1e-2,
    }  # fmt: skip
    adapter = train(resolve_recipe(values)).artifact
    images = scenes.parent / "images"
    found = evaluate(adapter, scenes, images, out=tmp_path / "e", limit=4, guard=scenes, guard_root=images)
    guard = found["guard"]
    assert Path(guard["model"]) == whole and guard["before"]["questions"] == guard["after"]["questions"] == 23
    alone = evaluate(whole, scenes, images)
    assert guard["before"]["metrics"] == alone["metrics"]
    assert guard["after"]["metrics"] == evaluate(adapter, scenes, images)["metrics"]
    assert guard["change"]["exact_match"] == guard["after"]["metrics"]["exact_match"] - alone["exact_match"]
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        ".lock", "answers.jsonl", "settings.json", "guard_before", "guard_after", "result.json",
    }  # fmt: skip
    with pytest.raises(UserError, match="Name that model with --before"):
        evaluate(whole, scenes, images, guard=scenes, guard_root=images)


def test_a_json_without_answers(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "q"}]}]))
    with pytest.raises(UserError, match="no answers to compare with"):
        evaluate(tmp_path, tmp_path / "q.json")


def rows(tmp_path, *more, value="triangle"):
    made = [
        {"id": i, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": value}]} | m
        for i, m in enumerate(more)
    ]
    (tmp_path / "own.json").write_text(json.dumps(made))
    return tmp_path / "own.json"


def test_more_answers_are_references_beside_the_rows(tmp_path):
    """Exact match takes the row's own; an annotator's answer that is the row's counts once."""
    ten = ["triangle"] * 4 + ["cone"] * 6
    file = rows(tmp_path, {"answers": ["zzz"]}, {"answers": ten}, {})
    asked = own_questions(file, tmp_path)
    assert [q.answer for q in asked] == [["triangle", "zzz"], ["triangle", *ten[1:]], ["triangle"]]
    found = figures(asked, ["triangle"] * 3, ["exact_match", "vqa_accuracy"])["metrics"]
    assert found["exact_match"] == 1.0 and found["vqa_accuracy"] == 1.0
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}] * 2
    with pytest.raises(UserError, match="'answers' is for a row with one answer; this has 2"):
        own_questions(rows(tmp_path, {"answers": ["a"], "conversations": turns}), tmp_path)


@pytest.mark.parametrize("row", [{"answers": ["\ud83d"]}, {"kind": "\ud83d"}])
def test_half_a_character_is_an_error_that_names_the_sample(tmp_path, row):
    with pytest.raises(UserError, match=r"own\.json, sample 1 .*half of a surrogate pair"):
        own_questions(rows(tmp_path, row), tmp_path, "kind" if "kind" in row else None)


def test_a_missing_image_names_the_sample(tmp_path):
    row = {
        "image": "gone.png",
        "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
    }
    with pytest.raises(UserError, match=r"own\.json, sample 1 \(id '0'\).*gone\.png"):
        own_questions(rows(tmp_path, row), tmp_path)


@pytest.mark.parametrize("text", ["三角形", "красный круг", "ein grüner Kreis", "빨간 원"])
def test_rouge_knows_other_scripts(text):
    assert rouge_l([text], [[text]]) == [1.0] and rouge_l([text], [["qq xx"]]) == [0.0]


def test_rouge_is_rouge_score_s_own_in_ascii():
    said, given = "The cat_sat on 2 mats, didn't it?", "the cat sat on a mat; it didn't"
    own = rouge_scorer.RougeScorer(["rougeL"]).score(given, said)["rougeL"].fmeasure
    assert rouge_l([said], [[given]]) == [own]


def test_what_guard_takes_is_looked_for_first(tmp_path, scenes):
    images = scenes.parent / "images"
    with pytest.raises(UserError, match="No model at"):
        evaluate("nowhere", scenes, images, guard=scenes, guard_root=images, before=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="go with --guard"):
        evaluate("nowhere", scenes, images, before="x")


def test_types_with_brackets_are_shown_as_they_are(tmp_path, capsys):
    base = assemble("embedded", "embedded", tmp_path / "base")
    file = rows(tmp_path, {"kind": "[/b]"}, {"kind": "[red]x"})
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(base), "--data", str(file), "--by", "kind"])
    told = capsys.readouterr().err
    assert ended.value.code == 0 and "[/b]" in told and "[red]x" in told
