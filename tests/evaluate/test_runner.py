"""Answers on disk: in the order of the questions, gone on with after a cut, shared by processes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from qllava.artifact.load import Loaded, load
from qllava.data.sample import ask
from qllava.errors import RunError, UserError
from qllava.evaluate import generate, runner
from qllava.evaluate.answers import read_answers
from qllava.evaluate.question import Question
from qllava.evaluate.run import identity
from qllava.evaluate.runner import answer, digest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from qllava.artifact.assemble import assemble

    return assemble("embedded", "embedded", tmp_path_factory.mktemp("base") / "base", dtype="float32")


@pytest.fixture(scope="module")
def loaded(base) -> Loaded:
    return load(base, dtype="float32")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    words = (
        "What color is it?",
        "Which shape do you see here, at the left or in the middle?",
        "Hi",
        "Is it a red circle?",
    )
    found = []
    for i in range(11):
        file = folder / f"{i}.png"
        Image.new("RGB", (40 + i, 60), ("red", "green", "blue")[i % 3]).save(file)
        found.append(Question(i, ask(words[i % 4], int(i % 5 != 0)), (file,) if i % 5 else ()))
    return found


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_batches_answer_as_one_at_a_time_in_order_with_the_prompt_as_sent(loaded, questions, tmp_path):
    many = answer(loaded, questions, tmp_path / "many", {"model": "m"}, 8, 4)
    one = answer(loaded, questions, tmp_path / "one", {"model": "m"}, 8, 1)
    assert many.texts == one.texts and many.asked == len(questions) and many.rate > 0
    rows = lines(tmp_path / "many" / "answers.jsonl")
    assert [r["question_id"] for r in rows] == list(range(11)) and [r["text"] for r in rows] == many.texts
    assert rows[1].keys() == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert rows[1]["metadata"]["sent"].endswith(
        " USER: <image>\nWhich shape do you see here, at the left or in the middle? ASSISTANT:"
    )
    assert rows[5]["metadata"]["sent"].endswith(
        " USER: Which shape do you see here, at the left or in the middle? ASSISTANT:"
    )
    assert not list((tmp_path / "many").glob("answers.part*"))


def test_a_run_that_was_cut_off_asks_nothing_twice(loaded, questions, tmp_path, monkeypatch):
    whole = answer(loaded, questions, tmp_path / "whole", {}, 6, 2).texts
    asked = []

    def cut(loaded_, questions_, chosen, tokens):
        for n, (numbers, texts) in enumerate(generate.answers(loaded_, questions_, chosen, tokens)):
            if n == 3:
                raise KeyboardInterrupt
            asked.extend(numbers)
            yield numbers, texts

    monkeypatch.setattr(runner, "answers", cut)
    with pytest.raises(KeyboardInterrupt):
        answer(loaded, questions, tmp_path / "cut", {}, 6, 2)
    part = tmp_path / "cut" / "answers.part-0.jsonl"
    assert len(lines(part)) == len(asked) == 6
    part.write_bytes(part.read_bytes() + b'{"question_id": 3, "te')  # killed within a line

    def watched(loaded_, questions_, chosen, tokens):
        for numbers, texts in generate.answers(loaded_, questions_, chosen, tokens):
            asked.extend(numbers)
            yield numbers, texts

    monkeypatch.setattr(runner, "answers", watched)
    again = answer(loaded, questions, tmp_path / "cut", {}, 6, 3)
    assert again.texts == whole and again.asked == 5 and sorted(asked) == list(range(11))
    assert answer(loaded, questions, tmp_path / "cut", {}, 6, 3).asked == 0


def test_answers_of_other_settings_are_not_mixed(loaded, questions, tmp_path):
    answer(loaded, questions[:2], tmp_path / "a", {"model": "one"}, 4)
    with pytest.raises(UserError, match=r"other settings \(model: 'one' there, 'two' now\)"):
        answer(loaded, questions[:2], tmp_path / "a", {"model": "two"}, 4)
    with pytest.raises(UserError, match=r"other settings .*questions"):
        answer(loaded, questions[:3], tmp_path / "a", {"model": "one"}, 4)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "answers.jsonl").touch()
    with pytest.raises(UserError, match="whose answers it holds"):
        answer(loaded, questions[:2], tmp_path / "b", {}, 4)
    part = tmp_path / "c" / "answers.part-0.jsonl"
    part.parent.mkdir()
    part.touch()
    with pytest.raises(UserError, match="whose answers it holds"):
        answer(loaded, questions[:2], tmp_path / "c", {}, 4)
    part.unlink()
    settings = {"questions": digest(questions[:2]), "max_new_tokens": 4}
    (part.parent / "settings.json").write_text(json.dumps(settings))
    part.write_text('{"question_id": 7, "text": "x", "metadata": {"number": 1}}\n')
    with pytest.raises(UserError, match=r"answers\.part-0\.jsonl, line 1 is of another set"):
        answer(loaded, questions[:2], tmp_path / "c", {}, 4)


def broken(file, change):
    rows = [{"question_id": i, "text": "yes"} for i in range(4)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    file.write_text(change(text.splitlines(keepends=True)))
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: "".join(x[:2] + x[3:]), r"line 3 answers question 3, where the question file has 2"),
        (lambda x: "".join(x[:3]), r"ends after line 3 with 3 of 4 answers; the next would be for question 3"),
        (lambda x: x[0] + x[2] + x[1] + x[3], r"line 2 answers question 2, where the question file has 1"),
        (lambda x: "".join([*x[:2], x[1], *x[2:]]), r"line 3 answers question 1 again; line 2 has already"),
        (lambda x: x[0] + x[1][:12] + "\n" + x[2] + x[3], r"line 2 is no JSON"),
        (lambda x: x[0] + '{"question_id": 1}\n' + x[2] + x[3], r"line 2 needs 'text' \(str\), and has none"),
        (lambda x: x[0] + '{"question_id": 1, "text": null}\n', r"line 2 needs 'text' \(str\), and has None"),
        (lambda x: "".join(x) + '{"question_id": 9, "text": "a"}\n', r"line 5 answers question 9, which this set does not"),
        (lambda x: "[1]\n", r"line 1 is list"),
        (lambda x: "", r"ends after line 0 with 0 of 4"),
    ],
)  # fmt: skip
def test_a_broken_answer_file_is_an_error_that_names_the_line(change, words, tmp_path):
    asked = [Question(i, ask("q")) for i in range(4)]
    with pytest.raises(UserError, match=words):
        read_answers(broken(tmp_path / "a.jsonl", change), asked)


def test_ids_that_come_again_are_told_apart_by_their_prompts(tmp_path):
    asked = [Question("img", ask("a?")), Question("img", ask("b?"))]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"question_id": "img", "prompt": p, "text": p}) + "\n" for p in ("a?", "b?")))
    assert read_answers(file, asked) == ["a?", "b?"]
    file.write_text("".join(json.dumps({"question_id": "img", "prompt": p, "text": p}) + "\n" for p in ("b?", "a?")))
    with pytest.raises(UserError, match="line 1 answers question 'img'"):
        read_answers(file, asked)
    file.write_text(3 * (json.dumps({"question_id": "img", "prompt": "a?", "text": "x"}) + "\n"))
    assert read_answers(file, [asked[0]] * 3) == ["x"] * 3  # a set may ask the same twice
    with pytest.raises(UserError, match=r"line 3 answers question 'img' \('a\?'\) again; line 2 has already"):
        read_answers(file, [asked[0]] * 2)


def test_line_breaks_of_other_scripts_stay_inside_an_answer(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps({"question_id": 1, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read_answers(file, [Question(1, ask("q"))]) == ["a\u2028b\x85c"]


@pytest.mark.slow
def test_two_processes_share_the_questions(base, questions, tmp_path):
    """As torchrun starts them; what one of three had answered before is left out."""
    told = [(q.id, q.turns[0].text, len(q.images), [str(f) for f in q.images]) for q in questions]
    program = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from qllava.artifact.load import load
        from qllava.data.sample import ask
        from qllava.evaluate.question import Question
        from qllava.evaluate.runner import answer
        asked = [Question(i, ask(t, n), tuple(map(Path, f))) for i, t, n, f in {told!r}]
        done = answer(load({str(base)!r}, dtype="float32"), asked, Path({str(tmp_path / "two")!r}), {{}}, 6, 2)
        Path({str(tmp_path)!r}, "told-" + os.environ["RANK"]).write_text(f"{{done.asked}} {{len(done.texts)}}")
    """)
    (tmp_path / "p.py").write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    single = answer(load(base, dtype="float32"), questions, tmp_path / "one", {}, 6, 2).texts
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(tmp_path / "p.py")],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == ["11 11"] * 2
    assert [r["text"] for r in lines(tmp_path / "two" / "answers.jsonl")] == single


def test_other_pictures_and_other_weights_are_other_settings(base, questions, tmp_path):
    """A folder without a manifest is known by its weights, and a question by its images' names and sizes."""
    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    (plain / "qllava.json").unlink()
    before = identity(plain, load(plain, dtype="float32"))
    weights = load_file(plain / "model.safetensors")
    name = next(n for n in weights if weights[n].is_floating_point())
    weights[name] += 1
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    assert before is not None and identity(plain, load(plain, dtype="float32")) != before
    one = next(q for q in questions if q.images)
    moved = tmp_path / one.images[0].parent.name / one.images[0].name
    moved.parent.mkdir(exist_ok=True)
    shutil.copy(one.images[0], moved)
    assert digest([one]) == digest([replace(one, images=(moved, *one.images[1:]))])
    Image.new("RGB", (31, 17), "pink").save(moved)
    assert digest([one]) != digest([replace(one, images=(moved, *one.images[1:]))])
    assert digest([replace(one, images=(b"a",))]) != digest([replace(one, images=(b"b",))])


def test_the_same_weights_go_on_under_another_name(loaded, questions, tmp_path):
    first = answer(loaded, questions[:2], tmp_path, {"model": "a", "weights": "f00d"}, 4)
    again = answer(loaded, questions[:2], tmp_path, {"model": "./a", "weights": "f00d"}, 4)
    assert again.asked == 0 and again.texts == first.texts


def test_one_evaluation_a_folder(loaded, questions, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="Another evaluation is writing"):
        answer(loaded, questions[:2], tmp_path, {}, 4)
    assert answer(loaded, questions[:2], tmp_path, {}, 4).asked == 2


def test_an_interruption_says_what_is_kept(loaded, questions, tmp_path, monkeypatch, capsys):
    def cut(loaded_, questions_, chosen, tokens):
        yield from itertools.islice(generate.answers(loaded_, questions_, chosen, tokens), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "answers", cut)
    with pytest.raises(KeyboardInterrupt):
        answer(loaded, questions, tmp_path, {}, 4, 2)
    assert f"4 of 11 answers are kept in {tmp_path}" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    answer(loaded, questions, tmp_path, {}, 4, 2)
    assert "4 of 11 are answered in" in " ".join(capsys.readouterr().err.split())


def test_memory_that_runs_out_names_batch_size(loaded, questions, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generate, "generate", full)
    with pytest.raises(RunError, match="--batch-size"):
        answer(loaded, questions, tmp_path, {}, 4, 4)


def test_prompts_beyond_the_context_are_told(loaded, tmp_path, capsys):
    answer(loaded, [Question("long", ask("word " * 3000))], tmp_path, {}, 1)
    assert "1 prompts are longer than the" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("variable", [{"WORLD_SIZE": "2"}, {"RANK": "x"}])
def test_a_left_over_environment_is_named(loaded, questions, tmp_path, monkeypatch, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Launch with torchrun"):
        answer(loaded, questions, tmp_path, {}, 4)


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"a": "\\ud83d"}'])
def test_damaged_settings(loaded, questions, tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json"):
        answer(loaded, questions, tmp_path, {}, 4)


@pytest.mark.parametrize(
    "line", [b'{"question_id": 0, "text": "a", "metadata": [1]}', b'{"question_id": "\xff"', b'{"question_id": 0}']
)
def test_a_damaged_line_that_was_kept(loaded, questions, tmp_path, line):
    settings = {"questions": digest(questions), "max_new_tokens": 4}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "answers.part-0.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"answers\.part-0\.jsonl"):
        answer(loaded, questions, tmp_path, {}, 4)
