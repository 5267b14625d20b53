"""How answers are compared with given ones: exact match, VQA accuracy, ROUGE-L, CIDEr. Each gives one figure an answer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence

from ..errors import UserError, nearest
from .vqa_text import normalize as vqa_normalize

Metric = Callable[
    [Sequence[str], Sequence[Sequence[str]]], list[float]
]  # (answers, references of each) -> 0 to 1 (CIDEr: to 10)
SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # kana, Han, Hangul
WORD = re.compile(rf"[{SINGLE}]|[^\W_{SINGLE}]+")
EXTRA = "pip install 'qllava[metrics]'"


def normalize(answer: str) -> str:
    """Lower case, without surrounding space and one final full stop."""
    return answer.strip().lower().removesuffix(".")


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1 where the answer equals the first reference after `normalize`."""
    return [float(normalize(a) == normalize(r[0])) for a, r in zip(answers, references, strict=True)]


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """VQAv2's: min(1, matches / 3) averaged over leaving out each annotator; with fewer than four references, 1 for any match.

    Both sides are normalised as EvalAI does.
    """
    found = []
    for answer, given in zip(answers, references, strict=True):
        said = vqa_normalize(answer)
        same = [vqa_normalize(r) == said for r in given]
        if len(given) < 4:
            found.append(float(any(same)))
        else:
            found.append(sum(min(1.0, (sum(same) - s) / 3) for s in same) / len(same))
    return found


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L's F measure against the best reference, by Google's rouge-score, without stemming.

    Words are runs of letters and digits of any script (rouge-score's own drop all but ASCII), Chinese, Japanese and Korean
    characters one by one.
    """
    _need("rouge_score", "rouge_l")
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    return [scorer.score_multi(list(r), a)["rougeL"].fmeasure for a, r in zip(answers, references, strict=True)]


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr by pycocoevalcap: 0 to 10, with the weights of words from these references.

    Words are split at what is no letter or digit and written small; COCO's own tool splits by Stanford's PTB tokenizer, which
    needs Java, so figures can differ from published ones in the second place.
    """
    _need("pycocoevalcap", "cider")
    from pycocoevalcap.cider.cider import Cider

    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    given = {i: [words(r) for r in refs] for i, refs in enumerate(references)}
    said = {i: [words(a)] for i, a in enumerate(answers)}
    return [float(v) for v in Cider().compute_score(given, said)[1]]


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "rouge_l": rouge_l,
    "cider": cider,
}


def check(names: Sequence[str]) -> None:
    """Raises `UserError` for a metric that there is not, or whose package is missing."""
    if isinstance(names, str):
        raise UserError(f"Metrics are named in a list, such as [{names!r}].")
    for name in names:
        if name not in METRICS:
            raise UserError(f"No metric '{name}'.{nearest(name, METRICS)} There are: {', '.join(METRICS)}.")
    for name, package in (("rouge_l", "rouge_score"), ("cider", "pycocoevalcap")):
        if name in names:
            _need(package, name)


def _need(package: str, metric: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{metric} takes a package that is not installed: {EXTRA}")


def kind_of(answer: str) -> str:
    """VQAv2's types of answer: `yes/no`, `number` or `other`."""
    said = vqa_normalize(answer)
    if said in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"\d+(\.\d+)?", said) else "other"
