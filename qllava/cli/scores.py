"""How good a model is: eval, score, scoreboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import api
from ..console import first_process, note, table
from ..errors import UserError
from .door import Base, Json, app, show

DATA = Path("playground/data/eval")
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the evaluation data, in the layout of LLaVA's playground/data/eval, or hub data sets in it.",
        show_default=str(DATA),
    ),
]
BENCHMARKS = (
    "vqav2", "gqa", "vizwiz", "scienceqa", "textvqa_ocr", "textvqa_noocr", "pope", "mme", "mmbench", "mmbench_cn", "seed",
    "llava_bench", "mmvet",
)  # fmt: skip  # here as well, so that --help need not read them
UNITS = {"exact_match": "%", "vqa_accuracy": "%", "rouge_l": "of 100", "cider": "of 1,000"}


@app.command(
    "eval",
    epilog="Example: qllava eval runs/mine --data test.json --image-root images, "
    "or: qllava eval runs/mine --benchmark textvqa_ocr --benchmark pope --root playground/data/eval",
)
def evaluate(
    source: Annotated[str, typer.Argument(help="Artifact, run, folder of a Hugging Face LLaVA, or hub id.")],
    data: Annotated[Path | None, typer.Option(help="Your own set: a LLaVA JSON or JSONL with answers.")] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from; by default the JSON's.")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of the paper's, or all, or present (those in --root); may come several times: {', '.join(BENCHMARKS)}."
        ),
    ] = None,
    root: Root = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the answers, in which an evaluation that was cut off goes on. Benchmarks: runs/eval/NAME by default."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="For your own set, 32 by default; a benchmark has its own.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="exact_match (always), vqa_accuracy, rouge_l, cider; may come several times."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Key of the JSON's rows that holds a question's type.")] = None,
    guard: Annotated[
        Path | None,
        typer.Option(help="A LLaVA JSON of general questions, asked of the model before and after its training."),
    ] = None,
    guard_root: Annotated[
        Path | None, typer.Option(help="Folder of the guard's images; by default the JSON's.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="The model before its training; by default what the adapter's manifest names.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Greedy answers to your own set, or to the paper's benchmarks, and their scores."""
    common: dict[str, Any] = {"out": out, "limit": limit, "batch_size": batch_size, "base": base, "dtype": dtype}
    own = {
        "image_root": image_root,
        "max_new_tokens": max_new_tokens,
        "metric": metric,
        "by": by,
        "guard": guard,
        "guard_root": guard_root,
        "before": before,
    }
    if (data is None) == (not benchmark):
        raise UserError("Name either --data, your own set, or --benchmark.")
    if benchmark:
        foreign = [f"--{k.replace('_', '-')}" for k, v in own.items() if v]
        if foreign:
            verb = "belongs" if len(foreign) == 1 else "belong"
            raise UserError(f"{', '.join(foreign)} {verb} to --data, not to --benchmark.")
        results = api.benchmark(source, benchmark, root or DATA, **common)
        _told(results, as_json)
        if first_process() and not as_json:
            from ..evaluate.run import place_of

            note(f"Answers and results are in {place_of(source, out)}; next: qllava scoreboard {place_of(source, out)}")
        return
    if root is not None:
        raise UserError("--root belongs to --benchmark; --data takes --image-root.")
    more = {"metrics": metric or (), "by": by, "guard": guard, "guard_root": guard_root, "before": before}
    result = api.evaluate(source, data, image_root, **common, **more, max_new_tokens=max_new_tokens or 32)
    if as_json:
        show(result)
    elif first_process():
        _own(result)
        if out is not None:
            note(f"Answers and result.json are in {out}.")


def _told(results: dict[str, dict[str, Any]], as_json: bool) -> None:
    from ..evaluate.results import tell

    if as_json:
        show(results)
    elif first_process():
        print("\n".join(tell(result) for result in results.values()))


def _own(result: dict[str, Any]) -> None:
    metrics = list(result["metrics"])
    heads = [f"{m} ({UNITS[m]})" for m in metrics]
    if len(result["by_type"]) > 1:
        rows = [
            (kind, found["questions"], *(f"{100 * found[m]:.2f}" for m in metrics))
            for kind, found in result["by_type"].items()
        ]
        table("By type", ("type", "questions", *heads), rows)
    if "guard" in result:
        g = result["guard"]
        rows = [
            (head, f"{100 * g['before']['metrics'][m]:.2f}", f"{100 * g['after']['metrics'][m]:.2f}", f"{100 * v:+.2f}")
            for head, (m, v) in zip(heads, g["change"].items(), strict=True)
        ]
        title = f"What it cost: {g['after']['questions']:,} general questions, before ({g['model']}) and after"
        table(title, ("metric", "before", "after", "change"), rows)
    rate = result["questions_per_second"]
    speed = f", {rate:,.1f} questions a second" if rate else ""
    print(f"exact match {100 * result['exact_match']:.2f} % ({result['correct']:,} of {result['questions']:,}{speed})")
    for name in metrics[1:]:
        print(f"{name} {100 * result['metrics'][name]:.2f} {UNITS[name]}")


@app.command(epilog="Example: qllava score pope runs/eval/mine/pope/answers.jsonl --root playground/data/eval")
def score(
    benchmark: Annotated[str, typer.Argument(help=f"The benchmark's name: {', '.join(BENCHMARKS)}.")],
    answers: Annotated[Path, typer.Argument(help="Answer file (JSONL), ours or of LLaVA's own scripts.")],
    root: Root = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; by default the answer file's.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that compares, such as http://localhost:8000/v1.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Which of its models.")] = None,
    judge_key: Annotated[str, typer.Option(help="Environment variable that holds its key.")] = "OPENAI_API_KEY",
    reference: Annotated[
        Path | None, typer.Option(help="A published answer file, for the same judge to compare.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Scores an answer file without a model, and writes what a server takes."""
    who = None
    if judge is not None or judge_model is not None:
        if judge is None or judge_model is None:
            raise UserError("A judge is an endpoint and a model: --judge URL --judge-model NAME.")
        from ..evaluate.judge import Judge

        who = Judge(judge, judge_model, judge_key)
    result = api.score(benchmark, answers, root or DATA, out=out, judge=who, reference=reference)
    if as_json:
        show(result)
        return
    from ..evaluate.results import tell

    if result["parts"]:
        counts = ("parse failures",)
        rows = [(k, f"{v:.0f}" if k in counts else f"{v:.2f}") for k, v in result["parts"].items()]
        table(result["title"], ("part", "score"), rows)
    print(tell(result, asked=False))


@app.command(epilog="Example: qllava scoreboard runs/eval/mine --expect llava-1.5-7b-lora --out board")
def scoreboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of qllava eval, such as runs/eval/mine.")],
    expect: Annotated[
        str | None,
        typer.Option(
            help="The published model to compare with: llava-1.5-7b, llava-1.5-7b-lora, llava-1.5-13b, …; a wrong one lists them."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scoreboard.md, .json, .html and chart.png; none by default.")
    ] = None,
    record: Annotated[
        list[str] | None,
        typer.Option(help="BENCHMARK=SCORE, as a server reported it for the (only) run; may come several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Results beside the paper's, with a verdict for each."""
    board = api.scoreboard(runs, expect, out, record=record or ())
    if as_json:
        show(board)
        return
    from rich.console import Console

    from ..evaluate.scoreboard_page import verdicts

    against = f"against {board['expect_title']}" if expect else "no row to compare with: --expect names one"
    for run in board["runs"]:
        head, rows = verdicts(board, run)
        ran = [
            row
            for row, b in zip(rows, board["benchmarks"], strict=True)
            if run["cells"][b["name"]]["verdict"] != "not run"
        ]
        table(
            f"{run['name']}, {against}",
            head[:-1],
            [row[:-1] for row in ran],
            Console(highlight=False),
        )
        left = [b["name"] for b in board["benchmarks"] if run["cells"][b["name"]]["verdict"] == "not run"]
        remarks = [f"{row[0]}: {row[-1]}" for row in ran if row[-1]] + run["notes"]
        for remark in [*remarks, *([f"Not run: {', '.join(left)}."] if left else [])]:
            note(remark)
    if record:
        note(f"Recorded in {runs[0]}: {', '.join(record)}.")
    if out is not None:
        note(f"Written to {out}: scoreboard.html, .md, .json and chart.png.")
