"""How much batches gain in `qllava eval`.

    python -m benchmarks.answering [--questions 512] [--sizes 1 8 32] [--model FOLDER]

Asks the embedded base, or another model, questions about drawn pictures in float32, greedy, 8 tokens at most, with each batch size
in turn. Prints one JSON document: questions a second, how often batches answer as single questions do, and the gain over size 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from qllava.artifact.assemble import assemble
from qllava.artifact.load import load
from qllava.demo import easyvqa
from qllava.evaluate.own import own_questions
from qllava.evaluate.runner import answer

from .machine import commit, machine
from .speed.race import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, test = easyvqa.write(folder / "data")
        questions = own_questions(test, folder / "data" / "easyvqa_test", limit=asked.questions)
        model = asked.model or assemble("embedded", "embedded", folder / "base", dtype="float32")
        loaded = load(model, dtype="float32")
        answer(loaded, questions[:16], folder / "warm", {}, 8, 8)
        found = {n: answer(loaded, questions, folder / str(n), {}, 8, n) for n in asked.sizes}
    first = found[asked.sizes[0]]
    rows = [
        {
            "batch_size": n,
            "questions_per_second": round(done.rate or 0, 2),
            "gain": round(first.seconds / done.seconds, 2),
            "same_as_first": sum(a == b for a, b in zip(done.texts, first.texts, strict=True)),
        }
        for n, done in found.items()
    ]
    print(
        json.dumps(
            {"questions": len(questions), "sizes": rows, "machine": machine("cpu"), "commit": commit(ROOT)}, indent=2
        )
    )


if __name__ == "__main__":
    main()
