"""MMBench, dev of 2023-07-12: questions with up to four choices. A server scores them over all rotations (CircularEval).

`mmbench/mmbench_dev_20230712.tsv` has pictures in base64, and the rotations as rows of their own; or the hub's lmms-lab/MMBench
(folder `mmbench/en`, split `dev`), which may be of another version. Facts: LLaVA's scripts/v1_5/eval/mmbench.sh,
llava/eval/model_vqa_mmbench.py and scripts/convert_mmbench_for_submission.py. MMBench-CN (mmbench_cn.py) uses this module.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.sample import ask
from ...errors import UserError
from ..question import Question
from .base import LETTER, Benchmark, find, image_bytes, need
from .vqav2 import VLMEVALKIT, hub_rows

if TYPE_CHECKING:
    import pandas as pd

FILE = "mmbench_dev_20230712.tsv"
PLACES = (f"mmbench/{FILE}", f"mmbench_en/{FILE}")
HUB = ("mmbench/en",)
LETTERS = ("A", "B", "C", "D")
TEXTS = ("question", "hint", *LETTERS)
DROPPED = {"hint", "category", "source", "image", "comment", "l2-category"}  # from a submission
KEPT = ("index", "question", *LETTERS, "answer", "split")  # what is left of the file, in its order
SERVER = "OpenCompass: https://opencompass.org.cn/leaderboard-multimodal"


def is_none(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, and the words nan and none in any case."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.lower() in ("nan", "none"))


def prompt(row: Mapping[str, Any]) -> str:
    """Hint, question and the choices up to the first empty one."""
    lines = [] if is_none(row.get("hint")) else [row["hint"]]
    lines.append(row["question"])
    for letter in LETTERS:
        if is_none(row.get(letter)):
            break
        lines.append(f"{letter}. {row[letter]}")
    return "\n".join(lines)


def _read(file: Path, **how: Any) -> pd.DataFrame:
    """The table, its texts never read as numbers."""
    import pandas as pd

    try:
        table = pd.read_table(file, dtype=dict.fromkeys(TEXTS, str), **how)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"Cannot read {file} as a table with tabs: {error}.") from None
    if missing := {"index", *TEXTS} - set(table.columns):
        raise UserError(
            f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(map(str, table.columns))}."
        )
    return table


def _from_hub(root: Path, places: Sequence[str], hub: Sequence[str]) -> tuple[str, list[dict[str, Any]]] | None:
    """The hub's folder and its rows; None where the original's file is there, or neither is."""
    folders = [name for name in hub if any((root / name).rglob("dev*.parquet"))]
    if not folders or any((root / place).is_file() for place in places):
        return None
    return folders[0], hub_rows(root, folders[0], "dev", places[0])


def _decoded(value: Any, where: str) -> bytes:
    try:
        found = base64.b64decode(value)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UserError(f"{where} has no image in base64: {error}.") from None
    if not found:
        raise UserError(f"{where} has no image in base64: it is empty.")
    return found


def questions(
    root: Path, places: Sequence[str] = PLACES, hub: Sequence[str] = HUB, end: str = LETTER
) -> list[Question]:
    """All rows in their order; a question's prompt in answer files is without `end`, as the original's.

    Raises:
        UserError: the file is missing or malformed; names the row by its index.
    """
    found = _from_hub(root, places, hub)
    if found is None:
        file = find(root, *places)
        rows, decode, what = _read(file).to_dict("records"), _decoded, str(file)
    else:
        folder, rows = found
        decode, what = image_bytes, f"{root / folder}, split dev"
    return [_question(row, f"{what}, row {number}", decode, end) for number, row in enumerate(rows)]


def _question(row: Mapping[str, Any], where: str, decode: Callable[[Any, str], bytes], end: str) -> Question:
    index, text = need(row, where, "index", "question")
    try:
        index = int(index)
    except ValueError:
        raise UserError(f"{where} has the index {index!r}, which is no number.") from None
    where = f"{where} (index {index})"
    if is_none(text):
        raise UserError(f"{where} has no question.")
    shown = prompt(row)
    group = row.get("category")
    image = decode(row.get("image"), where)
    return Question(index, ask(shown + end, 1), (image,), group="" if is_none(group) else str(group), prompt=shown)


def submit(
    root: Path,
    asked: Sequence[Question],
    texts: Sequence[str],
    folder: Path,
    places: Sequence[str] = PLACES,
    hub: Sequence[str] = HUB,
    name: str = "mmbench",
) -> Path:
    """Writes the table that the server takes: the file's own without pictures, with a column `prediction` as the seventh."""
    import pandas as pd
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    found = _from_hub(root, places, hub)
    if found is None:
        table = _read(find(root, *places), usecols=lambda column: column != "image")
        table = table.drop(columns=[column for column in table.columns if column.lower() in DROPPED])
    else:
        rows = [{column: row[column] for column in KEPT if column in row} for row in found[1]]
        table = pd.DataFrame(rows)
    given = {q.id: ILLEGAL_CHARACTERS_RE.sub("", text) for q, text in zip(asked, texts, strict=True)}
    if strangers := given.keys() - set(table["index"]):
        raise UserError(f"The table of {name} under {root} has no index {min(strangers)}, which was asked.")
    table.insert(min(6, len(table.columns)), "prediction", table["index"].map(given).astype(object))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.xlsx"
    table.to_excel(file, index=False, engine="openpyxl")
    return file


DIFFERENCES = (
    'lmms-eval: hint, question and choices with spaces between, "There are several options:" before the choices, a line left '
    "blank after them; a GPT reads the letter out of the answer.",
    f"{VLMEVALKIT} xtuner's harness gives LLaVA's own 7B weights 63.0 on dev-en and 57.4 on dev-cn.",
)

MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 64.3,
            "llava-1.5-13b": 67.7,
            "llava-1.5-hd-13b": 68.8,
            "llava-1.5-7b-lora": 66.1,
            "llava-1.5-13b-lora": 68.5,
            "llava-7b": 38.7,
            "instructblip-7b": 36.0,
            "shikra-13b": 58.8,
            "idefics-9b": 48.2,
            "idefics-80b": 54.5,
            "qwen-vl": 38.2,
            "qwen-vl-chat": 60.6,
        }.items()
    },
    questions=questions,
    official=4329,
    max_new_tokens=1024,
    submit=partial(submit, name="mmbench"),
    server=SERVER,
    differences=DIFFERENCES,
)
