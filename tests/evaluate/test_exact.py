"""Questions out of a LLaVA JSON, batches that answer as one at a time, and scores."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from qllava.artifact.load import Loaded
from qllava.data.sample import Turn, ask, read_samples
from qllava.errors import UserError
from qllava.evaluate.exact import evaluate, normalize, questions, score
from qllava.evaluate.generate import generate
from qllava.model.build import load_model, load_processing
from qllava.recipe.schema import Parts

EMBEDDED = Parts(vision_tower="embedded", llm="embedded")


@pytest.fixture(scope="module")
def loaded():
    model = load_model(EMBEDDED, torch.float32, torch.device("cpu"))
    return Loaded(model, load_processing(EMBEDDED, "vicuna_v1", "pad"), None)


def test_every_answer_is_a_question(scenes):
    asked = questions(read_samples(scenes), scenes.parent / "images")
    assert len(asked) == 14 + 7 + 2
    second = next(q for q in asked if q.id == "s1/1")
    assert [t.role for t in second.turns] == ["user", "assistant", "user"] and second.answer == "no"
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
    asked = questions(read_samples(scenes), scenes.parent / "images")
    first = score(loaded, asked, max_new_tokens=4, batch_size=5)
    assert first.questions == len(asked) == len(first.answers)
    assert first.correct == sum(normalize(a) == normalize(q.answer) for a, q in zip(first.answers, asked, strict=True))
    assert first.exact_match == first.correct / len(asked)
    assert score(loaded, asked, max_new_tokens=4, batch_size=2).answers == first.answers


@pytest.mark.parametrize(("a", "b"), [(" Red. ", "red"), ("yes", "YES"), ("two words", "Two words.")])
def test_normalize(a, b):
    assert normalize(a) == normalize(b)


def test_evaluate_writes_a_line_an_answer(tmp_path, scenes):
    from qllava.api import assemble

    base = assemble("embedded", "embedded", tmp_path / "base")
    result = evaluate(base, scenes, scenes.parent / "images", out=tmp_path / "a" / "answers.jsonl", limit=5)
    lines = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assert result["questions"] == len(lines) == 5
    assert lines[0].keys() == {"id", "prompt", "answer", "expected"}
    with pytest.raises(UserError, match="is there already"):
        evaluate(base, scenes, scenes.parent / "images", out=scenes)
    with pytest.raises(UserError, match="numbers above 0"):
        evaluate(base, scenes, scenes.parent / "images", batch_size=-1)


def test_a_json_without_answers(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "q"}]}]))
    with pytest.raises(UserError, match="no answers to compare with"):
        evaluate(tmp_path, tmp_path / "q.json")
