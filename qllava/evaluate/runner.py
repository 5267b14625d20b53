"""All questions of a set to a model, with the answers on disk as they come.

In: a model, questions, a folder. Out: `answers.jsonl` in the order of the questions. While it runs, each process appends to a
file of its own, `answers.part-RANK.jsonl`, so that a run that was cut off, on however many processes, goes on with what is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .. import console
from ..artifact.alone import alone
from ..artifact.load import Loaded
from ..errors import UserError
from .answers import FILE, keys, read_answers, read_line
from .generate import answers, batches
from .lines import parse_object, read_text
from .question import Question, sent

SETTINGS = "settings.json"
WAIT = timedelta(hours=6)  # for the slowest process's share


@dataclass(frozen=True)
class Answered:
    texts: list[str]  # in the order of the questions
    asked: int  # now, by all processes; the others were answered before
    seconds: float

    @property
    def rate(self) -> float | None:
        """Questions a second, of those that were asked now."""
        return self.asked / self.seconds if self.asked else None


@contextmanager
def together() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are, as their launcher (torchrun, accelerate) says; they can wait for each other."""
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        ours = world > 1 and not dist.is_initialized()
        if ours:
            dist.init_process_group("gloo", timeout=WAIT)
    except ValueError as error:
        raise UserError(
            f"The environment speaks of several processes, but not as torchrun does ({error}). Launch with torchrun, or unset "
            "RANK and WORLD_SIZE."
        ) from None
    try:
        yield rank, world
    finally:
        if ours:
            dist.destroy_process_group()


def meet(world: int) -> None:
    """Waits for all processes."""
    if world > 1:
        dist.barrier()


def digest(questions: Sequence[Question]) -> str:
    """Of ids, prompts and images (name and size), to tell whether a folder's answers are to the same questions."""
    found = hashlib.sha256()
    for q in questions:
        images = [
            hashlib.sha256(i).hexdigest() if isinstance(i, bytes) else (i.parent.name, i.name, i.stat().st_size)
            for i in q.images
        ]
        found.update(json.dumps([str(q.id), [(t.role, t.text, t.images) for t in q.turns], images]).encode())
    return found.hexdigest()[:16]


def answer(
    loaded: Loaded,
    questions: Sequence[Question],
    folder: Path,
    settings: Mapping[str, Any],
    max_new_tokens: int = 128,
    batch_size: int = 32,
    title: str = "answering",
    lasting: bool = True,
) -> Answered:
    """Greedy answers to all questions, those that `folder` holds already left out.

    Args:
        settings: what must be the same for answers to belong together: model, set, prompts.
        lasting: whether the folder is there after an interruption, which says so then.

    Raises:
        UserError: `folder` holds answers of other settings, or a line of it is damaged.
    """
    named = keys(questions)
    settings = {**settings, "questions": digest(questions), "max_new_tokens": max_new_tokens}
    with together() as (rank, world), _alone(folder, rank):
        if rank == 0:
            _open(folder, settings)
        meet(world)
        _same_folder(folder, rank, world)
        done = _done(folder, named, questions)
        meet(world)  # nobody writes before all have read
        left = [i for i in range(len(questions)) if i not in done]
        mine = batches(loaded, questions, left, batch_size)[rank::world] if left else []
        if done and left:
            console.note(
                f"{title}: {len(done):,} of {len(questions):,} are answered in {folder}; going on with the others."
            )
        started, now = time.perf_counter(), 0
        try:
            with (
                console.progress(title, sum(map(len, mine))) as advance,
                (folder / f"answers.part-{rank}.jsonl").open("a", encoding="utf-8") as part,
            ):
                for numbers, texts in answers(loaded, questions, mine, max_new_tokens):
                    rows = [_row(i, questions[i], t, loaded, settings) for i, t in zip(numbers, texts, strict=True)]
                    part.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                    part.flush()
                    now += len(numbers)
                    advance(len(numbers))
        except KeyboardInterrupt:
            kept = f"{len(done) + now:,} of {len(questions):,} answers" if world == 1 else "the answers until now"
            if lasting:
                console.note(f"{title}: {kept} are kept in {folder}; the same command goes on from there.")
            raise
        meet(world)
        seconds = time.perf_counter() - started
        if rank == 0:
            _close(folder, named, questions)
        meet(world)
    return Answered(read_answers(folder / FILE, questions), len(left), seconds)


def _row(number: int, question: Question, text: str, loaded: Loaded, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of LLaVA's own scripts; `metadata.sent` is the whole prompt."""
    row = {"question_id": question.id, "prompt": question.shown, "text": text}
    metadata = {"number": number, "sent": sent(question, loaded.processing)}
    if question.answer is not None:
        metadata["expected"] = question.answer
    return row | {
        "answer_id": f"{settings['questions']}-{number}",
        "model_id": settings.get("model", ""),
        "metadata": metadata,
    }


def _alone(folder: Path, rank: int) -> AbstractContextManager:
    """Keeps a second evaluation out of the folder while the block lasts."""
    taken = f"Another evaluation is writing its answers to {folder}. Wait for it, or name another --out."
    return nullcontext() if rank else alone(folder, taken)


def _same_folder(folder: Path, rank: int, world: int) -> None:
    """All processes must see the files that the first has written."""
    if world == 1:
        return
    file = folder / SETTINGS
    seen = file.stat().st_mtime_ns if file.is_file() else None
    told = [seen]
    dist.broadcast_object_list(told, 0)
    if seen != told[0]:
        raise UserError(
            f"Process {rank} does not see the same {folder} as the first. Name an --out that all machines share."
        )


def _open(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that its answers are of these settings; cuts a half-written last line off its parts."""
    file = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            before = parse_object(read_text(file), str(file))
            # The same weights may lie elsewhere now, or be named otherwise.
            same = ("model", "base") if settings.get("weights") is not None else ()
            keys_ = (before.keys() | settings.keys()) - {*same}
            other = sorted(k for k in keys_ if before.get(k) != settings.get(k))
            if other:
                changes = "; ".join(
                    "the questions are others (another set, or --limit)"
                    if k == "questions"
                    else f"{k}: {before.get(k)!r} there, {settings.get(k)!r} now"
                    for k in other
                )
                raise UserError(
                    f"{folder} holds answers of other settings ({changes}). Name another --out, or remove it."
                )
        elif found := sorted(folder.glob("answers*.jsonl")):
            raise UserError(
                f"{found[0]} is there, without the {SETTINGS} that says whose answers it holds. Name another --out."
            )
        else:
            _replace(file, json.dumps(settings, indent=2) + "\n")
        for part in folder.glob("answers.part-*.jsonl"):
            whole = part.read_bytes()
            if not whole.endswith(b"\n"):
                part.write_bytes(whole[: whole.rfind(b"\n") + 1])
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot keep answers in {folder}: {error}.") from None


def _done(folder: Path, named: Sequence[Any], questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
    """What is answered already, by the question's number."""
    if (folder / FILE).is_file():
        return {i: {} for i in range(len(questions))}
    found: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob("answers.part-*.jsonl")):
        for n, line in enumerate(read_text(part).split("\n"), 1):
            if not line:
                continue
            where = f"{part}, line {n}"
            try:
                row = read_line(line, where)
            except UserError as error:
                raise UserError(f"{error} Remove that line, and its question is asked again.") from None
            metadata = row.get("metadata")
            number = metadata.get("number") if isinstance(metadata, dict) else None
            if (
                not isinstance(number, int)
                or not 0 <= number < len(named)
                or str(row["question_id"]) != named[number][0]
            ):
                raise UserError(f"{where} is of another set of questions. Name another --out, or remove {folder}.")
            found[number] = row
    return found


def _close(folder: Path, named: Sequence[Any], questions: Sequence[Question]) -> None:
    """Joins the parts into `answers.jsonl`, in the order of the questions."""
    if not (folder / FILE).is_file():
        done = _done(folder, named, questions)
        _replace(folder / FILE, "".join(json.dumps(done[i], ensure_ascii=False) + "\n" for i in range(len(questions))))
    for part in folder.glob("answers.part-*.jsonl"):
        part.unlink()


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)
