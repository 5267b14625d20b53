"""`qllava demo`: the whole job on a laptop. In: a folder. Out: data, base, adapters, merged model, a table and a picture.

The steps are the verbs that a user has, called in order: assemble, train (align), train (instruct), merge, and greedy
answers scored by exact match between them.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .. import console
from ..artifact.assemble import assemble
from ..artifact.load import load
from ..artifact.merge import merge
from ..errors import UserError
from ..evaluate.own import Score, own_questions, score
from ..evaluate.question import Question
from ..recipe import load_recipe
from ..train.run import train
from . import captions, easyvqa, sheet

SAMPLE = 1000  # questions on which the steps before the merge are scored
MADE = ("data", "base", "align", "instruct", "merged", "report.json", "sheet.png")  # what the demo writes, and clears
BATCH = 128


class Steps:
    """Wall time and peak resident memory of each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        console.note(f"\n== {name}")
        row: dict[str, Any] = {"step": name}
        peak, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                peak[0] = max(peak[0], psutil.Process().memory_info().rss)

        watcher, started = threading.Thread(target=watch, daemon=True), time.perf_counter()
        watcher.start()
        try:
            yield row
        finally:
            ended.set()
            watcher.join()
        row |= {"seconds": round(time.perf_counter() - started, 1), "peak_memory_mib": peak[0] >> 20}
        self.rows.append(row)


def demo(out: str | Path = "runs/demo", recipe_overrides: tuple[str, ...] = (), test_limit: int | None = None) -> dict:
    """Runs the job in `out` and returns its report, which is also written to `out/report.json`.

    Args:
        recipe_overrides: for both stages, such as `max_steps=5` to try the plumbing.
        test_limit: score the merged model on the first so many test questions only; None takes the official split whole.

    Raises:
        UserError: `out` holds files of other origin.
    """
    out = Path(out)
    _clear(out)
    steps, scores = Steps(), {}
    with steps.step("data: easy-VQA as LLaVA JSON, captions for align"):
        train_json, test_json = easyvqa.write(out / "data")
        caption_json = captions.write(out / "data")
        asked = own_questions(test_json, out / "data" / "easyvqa_test")
        sample = random.Random(0).sample(asked, SAMPLE if test_limit is None else min(test_limit, SAMPLE))
        scores["best answer without the image"] = {"exact_match": easyvqa.blind_score(), "questions": len(asked)}
    with steps.step("assemble the base"):
        base = assemble("embedded", "embedded", out / "base", dtype="float16")
    with steps.step(f"evaluate the base ({len(sample):,} questions)"):
        before = _score(base, sample, scores, "base")
    with steps.step("align: the projector learns from captions"):
        align = _train("demo/align", out, caption_json, out / "data" / "captions", recipe_overrides)
    with steps.step(f"evaluate after align ({len(sample):,} questions)"):
        _score(align, sample, scores, "after align")
    with steps.step("instruct: QLoRA on the LLM, full projector"):
        more = (f"projector={align}", *recipe_overrides)
        instruct = _train("demo/instruct", out, train_json, out / "data" / "easyvqa_train", more)
    with steps.step(f"evaluate the adapter, unmerged ({len(sample):,} questions)"):
        _score(instruct, sample, scores, "after instruct, unmerged")
    with steps.step("merge"):
        merged = merge(instruct, out / "merged")
    official = asked[:test_limit]
    with steps.step(f"evaluate the merged model ({len(official):,} questions, the official test split)"):
        after = _score(merged, official, scores, "merged")
    report = {
        "scores": scores,
        "steps": steps.rows,
        "seconds": round(sum(r["seconds"] for r in steps.rows), 1),
        "projector": str(align),
        "adapter": str(instruct),
        "merged": str(merged),
        "sheet": str(_sheet(out, sample, before, {q.id: a for q, a in zip(official, after.answers, strict=True)})),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _show(report)
    return report


def _clear(out: Path) -> None:
    """Removes what an earlier demo left in `out`; anything else that is there is the user's and stays."""
    if not out.exists():
        return
    strangers = sorted(p.name for p in out.iterdir() if p.name not in MADE) if out.is_dir() else [out.name]
    if strangers:
        raise UserError(f"{out} holds {', '.join(strangers[:3])}, which no demo made. Name another folder with --out.")
    for name in MADE:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _train(name: str, out: Path, data: Path, images: Path, overrides: tuple[str, ...]) -> Path:
    source = f"data=[{{path: '{data.resolve()}', image_root: '{images.resolve()}'}}]"
    recipe = load_recipe(name, (source, f"output_dir={out / name.removeprefix('demo/')}", *overrides))
    return train(recipe).artifact


def _score(source: Path, asked: list[Question], scores: dict, name: str) -> Score:
    result = score(load(source), asked, max_new_tokens=8, batch_size=BATCH)
    scores[name] = {"exact_match": result.exact_match, "questions": result.questions}
    console.note(f"exact match {100 * result.exact_match:.2f} %")
    return result


def _sheet(out: Path, sample: list[Question], before: Score, after: dict[str | int, str]) -> Path:
    """A picture of test images with the answers of before and after, the latter by the question's id."""
    cells = [
        sheet.Cell(q.images[0], q.turns[-1].text.split("\n")[0], q.answer[0], b, after[q.id])
        for q, b in zip(sample, before.answers, strict=True)
        if q.id in after
    ]
    return sheet.write(cells[: sheet.CELLS], out / "sheet.png")


def _show(report: dict) -> None:
    console.table(
        "Exact match on easy-VQA's test split",
        ("model", "exact match", "questions"),
        [(name, f"{100 * s['exact_match']:.2f} %", s["questions"]) for name, s in report["scores"].items()],
    )
    console.table(
        "What it took",
        ("step", "seconds", "peak memory (MiB)"),
        [(r["step"], f"{r['seconds']:.1f}", r["peak_memory_mib"]) for r in report["steps"]],
    )
    image = Path(report["adapter"]).parent.parent / "data" / "easyvqa_test" / "0.png"
    console.note(f"""
{report["seconds"]:.0f} seconds in all. Test images with the answers before and after: {report["sheet"]}

Next:
  qllava chat {report["merged"]} --image {image} --prompt "what color is the shape?"
      chat with the result (without --prompt: a conversation)
  qllava train demo/instruct projector={report["projector"]} 'data=[{{path: mine.json, image_root: images}}]' output_dir=runs/mine
      train on your own LLaVA JSON
  qllava train llava15-7b/task-qlora 'data=[{{path: mine.json, image_root: images}}]' output_dir=runs/mine-7b
      the same with a real LLaVA-1.5 (needs a GPU and the hub)""")
