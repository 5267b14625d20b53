"""Answers as EvalAI's VQA servers read them, and VQA accuracy over ten annotators.

In: an answer as a model wrote it. Out: its normal form, or a score from 0 to 1. Facts: LLaVA's m4c_evaluator.py at
c121f04 (itself from mmf), whose results are met exactly, odd ones too; checked in tests/evaluate/test_vqa_text.py. What
cannot change a result is left out: the rule about commas between digits (all commas are gone before it is asked),
contractions with capitals (the text has none by then), and the growth of the number table by words that stand for
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import UserError

ANNOTATORS = 10
ARTICLES = frozenset(("a", "an", "the"))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(DIGITS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32  # at most: the original passes re.UNICODE, which is 32, where `sub` takes a count

# A word that lacks exactly one of these apostrophes gets it back: "couldnt've" and "couldn'tve" do, not "couldntve".
_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form for form in _FORMS.split() for i, letter in enumerate(form) if letter == "'"
} | {"somebody'd": "somebodyd"}  # so in the original: the wrong way round


def normalize(answer: str) -> str:
    """An answer's normal form: lower case, no articles, little punctuation, number words as digits.

    A punctuation mark with a space beside it anywhere in the text goes; otherwise each becomes a space.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    before = text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in before or f" {mark}" in before else " ")
    text = PERIOD.sub("", text, count=PERIODS)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """The mean over the annotators of min(1, how many of the nine others gave this answer / 3).

    Raises:
        UserError: there are not ten references, for which alone this is defined.
    """
    if len(references) != ANNOTATORS:
        raise UserError(f"VQA accuracy takes {ANNOTATORS} reference answers, and there are {len(references)}.")
    given = normalize(answer)
    same = [normalize(reference) == given for reference in references]
    if not any(same):
        return 0.0
    return sum(min(1, (sum(same) - own) / 3) for own in same) / len(same)
