"""The twelve benchmarks of the paper, TextVQA as two tasks: one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import UserError, nearest
from . import llava_bench, mmvet
from .base import Benchmark, Score
from .gqa import GQA
from .mmbench import MMBENCH
from .mmbench_cn import MMBENCH_CN
from .mme import MME
from .pope import POPE
from .scienceqa import SCIENCEQA
from .seed import SEED
from .textvqa import TEXTVQA_NOOCR, TEXTVQA_OCR
from .vizwiz import VIZWIZ
from .vqav2 import VQAV2

BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        VQAV2, GQA, VIZWIZ, SCIENCEQA, TEXTVQA_OCR, TEXTVQA_NOOCR, POPE, MME, MMBENCH, MMBENCH_CN, SEED,
        llava_bench.LLAVA_BENCH, mmvet.MMVET,
    )
}  # fmt: skip
_JUDGED: dict[str, Callable[..., Score]] = {"llava_bench": llava_bench.judge_answers, "mmvet": mmvet.judge_answers}


def judge_answers(name: str) -> Callable[..., Score]:
    """(root, questions, texts, judge, review file) -> Score, of a benchmark that is judged."""
    return _JUDGED[name]


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UserError: there is none.
    """
    if name not in BENCHMARKS:
        raise UserError(f"No benchmark '{name}'.{nearest(name, BENCHMARKS)} There are: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def named(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names, each once; `all` is all of them, and so is `present`.

    Raises:
        UserError: there is none of a name.
    """
    if isinstance(names, str):
        raise UserError(f"Benchmarks are named in a list, such as [{names!r}].")
    return [benchmark(name) for name in (BENCHMARKS if {"all", "present"} & set(names) else dict.fromkeys(names))]
