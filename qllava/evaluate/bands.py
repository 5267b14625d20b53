"""Within how many points of a published score a run of the same recipe counts as the same.

For four benchmarks, people who ran LLaVA-1.5's own finetune.sh (7B, full fine-tuning) again published two or more
figures; the half-width is the largest distance of these from the paper's. For the others there is only the sampling
error: 1.96 standard errors of a mean of that many scores between 0 and 1, which says what another draw of questions
would do, not another training run. That LoRA's row and the full row differ is no evidence of either kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_680 = "haotian-liu/LLaVA#680"
_LVIS = "X2FD/LVIS-INSTRUCT4V#10"
_OF = "retrainings of LLaVA-1.5 7B with its finetune.sh"


@dataclass(frozen=True)
class Band:
    half: float  # in points of the score
    source: str


RETRAINED = {
    "gqa": Band(0.6, f"{_OF}, published 62.0: 62.6 ({_680}), 62.5 ({_LVIS})"),
    "scienceqa": Band(4.0, f"{_OF}, published 66.8: 70.8 ({_680}), 68.57 ({_LVIS})"),
    "textvqa_ocr": Band(0.62, f"{_OF}, published 58.2: 58.3 ({_680}), 58.82 ({_LVIS})"),
    "mme": Band(
        53.0,
        f"{_OF}, published 1510.7: 1457.7 ({_680}), 1466.6 (haotian-liu/LLaVA#630), 1490 ({_LVIS}), 1497 by lmms-eval "
        f"(haotian-liu/LLaVA#1835); the author's own runs: ±20 ({_680})",
    ),
}

DISTINCT = {"mmbench": 1164, "mmbench_cn": 1164}
"""Where a file has several rows a question: how many questions it has (CircularEval; open-compass/MMBench#12, #31)."""

UNBOUNDED = {"mme", "llava_bench"}  # sums and ratios, for which the formula says nothing


def band(benchmark: str, published: float, questions: int) -> Band | None:
    """The band around a published score; None where nothing is known.

    Args:
        published: the score that is compared with, in percent or points.
        questions: that were asked.
    """
    if benchmark in RETRAINED:
        return RETRAINED[benchmark]
    count = DISTINCT.get(benchmark, questions)
    share = published / 100
    if benchmark in UNBOUNDED or count < 1 or not 0 < share < 1:
        return None
    half = 100 * 1.96 * math.sqrt(share * (1 - share) / count)
    return Band(round(half, 2), f"sampling error, {count:,} questions (95 %); no two retrainings are published")
