"""What a benchmark is: its questions, how answers are parsed and scored, what a server takes, and what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..lines import parse, parse_object, read_text
from ..question import Question

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Score:
    """`parts` holds all that was computed, in percent or points, by name; the benchmark's `main` is what a table shows."""

    parts: dict[str, float]
    questions: int
    notes: tuple[str, ...] = ()  # such as how many answers could not be parsed


Published = Mapping[str, Mapping[str, float]]  # by model (a slug of `paper.MODELS`), by part


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `root` in its functions is the folder of all evaluation data (LLaVA's `playground/data/eval`)."""

    name: str
    title: str
    main: str  # the part that a table shows
    paper: Published
    questions: Callable[[Path], list[Question]]
    max_new_tokens: int
    score: Callable[[Path, Sequence[Question], Sequence[str]], Score] | None = None
    """None where the answers are with a server or a judge."""
    submit: Callable[[Path, Sequence[Question], Sequence[str], Path], Path] | None = None
    """(root, questions, texts, folder to write in) -> the file that the server or the grader takes."""
    needs: Callable[[Path], object] | None = None
    """Raises `UserError` for what `submit` would find missing under the root, before anything is asked."""
    server: str = ""  # who scores the submission
    judged: bool = False
    official: int = 0  # questions of the published set, in the smallest of its layouts; 0 where that is not known
    most: float = 100.0  # the highest score that there is
    differences: tuple[str, ...] = field(default=())  # how other harnesses differ


def read_json(file: Path) -> Any:
    """The document in a file.

    Raises:
        UserError: it is missing or no JSON.
    """
    return parse(read_text(file), str(file))


def read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSONL file, with its place for messages.

    Raises:
        UserError: the file is missing, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, parse_object(line, where)


def need(row: Mapping[str, Any], where: str, *names: str) -> list[Any]:
    """The values of these keys.

    Raises:
        UserError: one is missing; names the line.
    """
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}; it has {', '.join(map(str, row))}.")
    return [row[name] for name in names]


def questions_of(benchmark: Benchmark, root: Path) -> list[Question]:
    """All questions of a benchmark.

    Raises:
        UserError: the evaluation data is missing, damaged or of another form.
    """
    if not root.is_dir():
        raise UserError(f"No folder {root} with the evaluation data; --root names it.")
    try:
        found = benchmark.questions(root)
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError) as error:
        raise UserError(f"{benchmark.title}: what lies in {root} for it is of another form: {error!r:.200}.") from error
    for question in found:
        if not isinstance(question.id, str | int) or isinstance(question.id, bool):
            raise UserError(
                f"{benchmark.title}: {question.id!r:.80} is no question_id; it must be a text or a whole number."
            )
    if not found:
        raise UserError(f"{root} has no questions for {benchmark.title}.")
    return found


def shortfall(benchmark: Benchmark, questions: int) -> str:
    """That these are not all questions of the published set; nothing where they are, or its size is not known."""
    return f"{questions:,} of the set's {benchmark.official:,} questions" if questions < benchmark.official else ""


def find(root: Path, *names: str) -> Path:
    """The first of these files or folders under `root` that is there.

    Raises:
        UserError: none is.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(
        f"{root} has none of: {', '.join(names)}. It is the folder that LLaVA's docs call playground/data/eval."
    )


def from_hub(folder: Path, split: str = "") -> list[dict[str, Any]] | None:
    """Rows of a hub data set that was copied into `folder` (its parquet files), images as whole files; None without any.

    Args:
        split: of the files, those whose name or folder begins with it, such as `val` of `val-00000-of-00002.parquet`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.parquet"))
    files = [f for f in files if f.name.startswith(split) or f.parent.name.startswith(split)]
    if not files:
        return None
    rows = []
    for file in files:
        try:
            rows += pq.read_table(file).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from None
    return rows


_LOOKED_FOR = ContextVar("images are looked for", default=True)


@contextmanager
def without_images() -> Iterator[None]:
    """Lets `questions` name pictures that are not there while the block lasts: who scores answers opens none."""
    before = _LOOKED_FOR.set(False)
    try:
        yield
    finally:
        _LOOKED_FOR.reset(before)


def picture(path: str, root: Path) -> Path:
    """The file of a benchmark's picture. Links are followed wherever they lead, as downloaded sets are made of them.

    Raises:
        UserError: the path leaves the root by its own words, or no file is there.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
        raise UserError(f"The image path {path[:200]!r} leaves the image root {root}; paths must stay under it.")
    file = root / path
    if _LOOKED_FOR.get() and not file.is_file():
        raise UserError(f"No image at {file}.")
    return file


def image_bytes(value: Any, where: str) -> bytes:
    """The file in a hub data set's image column (`{"bytes": …, "path": …}`), or in its first entry where it is a list.

    Raises:
        UserError: there is none.
    """
    first = value[0] if isinstance(value, list) and value else value
    found = first.get("bytes") if isinstance(first, dict) else first
    if not isinstance(found, bytes):
        raise UserError(f"{where} has no image.")
    return found


def percent(right: int, of: int) -> float:
    """100 × right / of; 0 of nothing."""
    return 100 * right / of if of else 0.0
