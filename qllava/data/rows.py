"""A source's samples as rows of a memory-mapped `datasets.Dataset`, read once and kept.

In: a LLaVA JSON or JSONL, parquet, a folder, or a set on the hub. Out: a row for each sample, with its turns, its images as
paths or bytes, and, where a sample is malformed, the reason in `error` instead. Nothing is decoded or encoded here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..errors import UserError
from ..recipe.schema import Source
from .image import Ref
from .mixture import kind_of
from .once import for_launch, kept, stamp_of, unchanged
from .sample import Sample, Turn, iter_rows, parse

FEATURES = Features(
    {
        "id": Value("string"),
        "where": Value("string"),  # file and number, for messages
        "root": Value("string"),
        "images": [{"path": Value("string"), "bytes": Value("binary")}],
        "turns": [{"role": Value("string"), "text": Value("string"), "images": Value("int32")}],
        "kind": Value("string"),  # first folder of the first image's path, or `text`
        "words": Value("int32"),  # of all turns, negative for text alone: the original's modality_lengths
        "answered": Value("bool"),  # whether it holds an answer to learn from
        "error": Value("string"),  # why it is no sample; empty for one that is
    }
)
VERSION = 2  # of these columns: part of the key that kept rows are found by
KEPT = 16 << 20  # bytes; smaller files are quicker to read again than to keep
HUB = "hub:"
IMAGE_KEYS = ("image", "images")


def rows_of(source: Source) -> Dataset:
    """The source's rows, memory-mapped where it is large.

    Raises:
        UserError: it is missing, or is nothing that samples can be read from.
    """
    if source.path.startswith(HUB):
        return _kept(source.path, source.split, "", (), stamp_of(()))
    path = Path(source.path)
    root = str((path if path.is_dir() else path.parent) / source.image_root)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"No data file at {path}.")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamp = stamp_of(files)
    if sum(f.stat().st_size for f in files) < KEPT:
        with unchanged(files, stamp, source.path):
            rows = list(_rows(source.path, source.split, root))
        if not rows:
            raise UserError(f"{path} holds no samples.")
        return Dataset.from_list(rows, features=FEATURES)
    return _kept(source.path, source.split, root, files, stamp)


def _kept(path: str, split: str, root: str, files: Sequence[Path], stamp: str) -> Dataset:
    """The rows, found again by path and stamp: an Arrow file that all processes of a node map into their memory."""

    def write(file: Path) -> None:
        with unchanged(files, stamp, path):
            _write(file, _rows(path, split, root), path)

    key = hashlib.sha256(json.dumps([VERSION, path, split, root, stamp]).encode()).hexdigest()[:20]
    file = for_launch(lambda: str(kept(f"{key}.arrow", write, path)))
    return Dataset.from_file(file, info=datasets.DatasetInfo(features=FEATURES))


def _write(file: Path, rows: Iterator[dict[str, Any]], name: str) -> None:
    """The rows as an Arrow file."""
    schema, count = FEATURES.arrow_schema, 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, 1000)):
            count += len(batch)
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    if not count:
        raise UserError(f"{name} holds no samples.")


def _rows(path: str, split: str, root: str) -> Iterator[dict[str, Any]]:
    """Every row of a source."""
    name = path if path.startswith(HUB) else Path(path).name
    single = not path.startswith(HUB) and Path(path).is_file()
    raw = iter_rows(Path(path)) if single and Path(path).suffix.lower() != ".parquet" else _tables(path, split)
    for i, row in enumerate(raw):
        where = f"{name}, sample {i + 1}"
        if isinstance(row, UserError):
            yield columns(None, root, where, str(row))
            continue
        try:
            row = as_llava(row)
            yield columns(parse(row, where), root, where, words=count_words(row["conversations"]))
        except UserError as error:
            yield columns(None, root, where, str(error), row.get("id") if isinstance(row, dict) else None)


def count_words(talk: list[dict[str, str]]) -> int:
    """Words of all messages as they stand in the file, `<image>` among them: the original's measure of length."""
    return sum(len(turn["value"].split()) for turn in talk) or 1


def columns(
    sample: Sample | None, root: str, where: str, error: str = "", name: Any = None, words: int = 1
) -> dict[str, Any]:
    """A sample as a row; or, without one, what was wrong with it."""
    if sample is None:
        name = (where if name is None else str(name)).encode("utf-8", "replace").decode()  # halves of surrogate pairs
        return {
            "id": name, "where": where, "root": root, "images": [], "turns": [], "kind": "",
            "words": 0, "answered": False, "error": error,
        }  # fmt: skip
    first = sample.images[0] if sample.images else None
    return {
        "id": sample.id,
        "where": where,
        "root": root,
        "images": [{"path": i, "bytes": None} if isinstance(i, str) else {"path": None, "bytes": i} for i in sample.images],
        "turns": [{"role": t.role, "text": t.text, "images": t.images} for t in sample.turns],
        "kind": kind_of(None if first is None else inside(first, root) if isinstance(first, str) else ""),
        "words": words if sample.images else -words,
        "answered": any(t.role == "assistant" for t in sample.turns),
        "error": "",
    }  # fmt: skip


def inside(path: str, root: str) -> str:
    """The path as it goes on from the root, where it was given whole."""
    return str(Path(path).relative_to(Path(root).resolve())) if path.startswith(f"{Path(root).resolve()}/") else path


def from_columns(row: dict[str, Any]) -> tuple[Sample, Path]:
    """The inverse of `columns`."""
    turns = tuple(Turn(t["role"], t["text"], t["images"]) for t in row["turns"])
    images: tuple[Ref, ...] = tuple(i["bytes"] if i["path"] is None else i["path"] for i in row["images"])
    return Sample(row["id"], images, turns), Path(row["root"])


def _tables(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of whatever `datasets` reads, images left as they are stored."""
    table = _open(path, split)
    for column, feature in table.features.items():
        if isinstance(feature, ImageFeature):
            table = table.cast_column(column, ImageFeature(decode=False))
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            table = table.cast_column(column, type(feature)(ImageFeature(decode=False)))
    yield from table


def _open(path: str, split: str) -> Any:
    from datasets import load_dataset, load_from_disk

    try:
        if path.startswith(HUB):
            name, _, config = path.removeprefix(HUB).partition(":")
            return load_dataset(name, config or None, split=split)
        folder = Path(path)
        if folder.is_file():
            return Dataset.from_parquet(str(folder))
        if (folder / "state.json").is_file():
            return load_from_disk(str(folder))
        tables = sorted(str(p) for p in folder.glob("*.parquet"))
        if tables and not any(p.name.startswith("metadata.") for p in folder.iterdir()):
            return Dataset.from_parquet(tables)
        if not list(folder.glob("**/metadata.*")):
            raise UserError(
                f"The folder {folder} holds neither parquet files nor a metadata.jsonl or .csv that says what its images show."
            )
        return load_dataset("imagefolder", data_dir=str(folder), split=split)
    except UserError:
        raise
    except Exception as error:  # whatever the readers of so many formats raise
        raise UserError(
            f"{path} cannot be read as a data set: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def as_llava(row: Any) -> Any:
    """A row of another layout as a LLaVA sample: `messages` (role, content), `question`/`answer`, `caption` or `text`.

    Images under `image`/`images` may be paths or what `datasets` stores (`bytes`, `path`). Rows that hold `conversations`,
    and whatever is no object, come back as they are.
    """
    if not isinstance(row, dict):
        return row
    row = {**row, **{k: _refs(row[k]) for k in IMAGE_KEYS if row.get(k) is not None}}
    talk = row.get("conversations")
    if isinstance(talk, dict) and all(isinstance(talk.get(k), list) for k in ("from", "value")):  # columns of turns
        pairs = zip(talk["from"], talk["value"], strict=False)
        return {**row, "conversations": [{"from": f, "value": v} for f, v in pairs]}
    if talk is not None:
        return row
    front = "<image>\n" * _count(row)
    if isinstance(row.get("messages"), list):
        return {**row, "conversations": [_message(m) for m in row["messages"]]}
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        pair = (row["question"] if "<image>" in row["question"] else front + row["question"], row["answer"])
    elif front and isinstance(caption := row.get("caption", row.get("text")), str):
        pair = (front.strip(), caption)
    else:
        return row
    return {**row, "conversations": [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]}


def _count(row: dict[str, Any]) -> int:
    found = [row[k] if isinstance(row[k], list) else [row[k]] for k in IMAGE_KEYS if row.get(k) is not None]
    return max(map(len, found), default=0)


def _refs(value: Any) -> Any:
    """Images as `datasets` stores them (`bytes`, `path`) as bytes or a path; anything else as it is, for `parse` to judge."""
    if isinstance(value, list):
        return [_ref(v) for v in value]
    return _ref(value)


def _ref(value: Any) -> Any:
    if not isinstance(value, dict) or not value or not set(value) <= {"bytes", "path"}:
        return value
    return value.get("path", value) if value.get("bytes") is None else value["bytes"]


def _message(message: Any) -> Any:
    """`role`/`content` as `from`/`value`; an image among the parts of a content is a placeholder."""
    if not isinstance(message, dict) or "role" not in message:
        return message
    content = message.get("content")
    if isinstance(content, list):
        parts = [p if isinstance(p, dict) else {"text": p} for p in content]
        content = "".join("<image>\n" if p.get("type") == "image" else str(p.get("text") or "") for p in parts)
    return {"from": message["role"], "value": content}
